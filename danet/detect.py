"""``danet detect``: finds targets in images, folders, videos, cameras and streams; writes boxes and annotated files."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.inference.frame_options import FrameOptions
from danet.utils import cli
from danet.utils.errors import check_values
from danet.utils.help_page import HelpPage
from danet.utils.printable import printable
from danet.utils.shipped_weights import shipped_names
from danet.utils.urls import mask_url

if TYPE_CHECKING:
    from danet.inference.detector import Detector

PAGE = HelpPage(
    {
        "input": ["sources", "weights", "input_size", "tile", "polarity"],
        "detections": ["score", "iou", "max_detections", "classes"],
        "results": [
            "out",
            "overwrite",
            "save_images",
            "save_csv",
            "save_json",
            "serve",
            "show_scores",
            "upscale",
            "quiet",
            "json",
        ],
        "machine": ["device", "dtype", "batch", "threads"],
        "more": ["config", "print_config", "help", "help_all", "debug"],
    },
    {
        "danet detect video.mp4": "find drones with the detector of the package; the results go to runs/detect",
        "danet detect pictures/ --score 0.3 --out runs/pictures": "a folder of images, with a lower threshold",
        "danet detect 0": "the first camera; also rtsp://... and other streams",
        "danet detect video.mp4 --weights runs/first/weights.safetensors": "a detector of your own",
    },
)


@dataclass
class DetectOptions(FrameOptions):
    """Options of ``danet detect``."""

    out: str = "runs/detect"
    """Folder for the results and config.yaml. If it holds the results of an earlier run, they go to runs/detect-2,
    runs/detect-3 and so on."""

    score: float | None = None
    """Score threshold, 0 to 1: detections with a lower score are dropped; by default the value that danet calibrate has
    stored in the weights, or the value in an .onnx file, or else 0.5."""

    max_detections: int | None = None
    """Maximum number of detections per image; by default 300, or the value in an .onnx file."""

    save_csv: bool = True
    """Write boxes.csv."""

    save_json: bool = True
    """Write boxes.json."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or without sources."""
        check_values(self, ["score"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        check_values(self, ["max_detections"], "be at least 1", lambda value: value >= 1, prefix="--")
        super().check()


def detect(options: DetectOptions) -> int:
    """Finds targets in images, videos, folders of both, streams or the picture of a webcam.

    Annotated files and the boxes (``boxes.csv``, ``boxes.json``; corners in pixels of the source) are written to
    ``options.out``. After Ctrl-C, SIGTERM and SIGHUP, and when the disk is full, the files are complete up to that
    frame.

    Exit code: 0; 1 if frames of a source are missing or a file could not be written; 2 for invalid input; 130 after
    Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    options.check()
    cli.check_out(options)
    from danet.inference.shared_images import shared_run

    with shared_run(options) as own:
        return _detect(own)


def _detect(options: DetectOptions) -> int:
    """Finds targets in the sources, or in the share of this process, see ``detect``."""
    from danet.inference.box_files import BoxFiles
    from danet.inference.frame_run import FrameRun
    from danet.utils.distributed import rank

    run = FrameRun(
        options,
        prog="danet detect",
        tables={"config.yaml": True, "boxes.csv": options.save_csv, "boxes.json": options.save_json},
        thresholds={
            "score_threshold": options.score,
            "iou_threshold": options.iou,
            "max_detections": options.max_detections,
        },
    )
    detector = run.detector
    header = {
        "weights": options.weights,
        "classes": detector.classes,
        "reported_classes": detector.reported_classes,
        "score_threshold": detector.score_threshold,
        "iou_threshold": detector.iou_threshold,
        "sources": [mask_url(source) for source in options.sources],
    }
    csv = run.out / "boxes.csv" if options.save_csv and rank() == 0 else None
    json = run.out / "boxes.json" if options.save_json and rank() == 0 else None
    boxes = BoxFiles(csv, json, header, detector.classes)
    if not options.quiet:
        print(_describe_score(options, detector))

    @contextlib.contextmanager
    def results(*_: object) -> Iterator[Callable]:
        try:
            yield boxes.add
        finally:
            boxes.footer.update({"dropped": run.stream.dropped} if run.stream.dropped else {})

    run.process(results, [boxes])
    figures = {"frames_with_boxes": boxes.frames_with_boxes, "boxes": dict(boxes.counts), **run.figures()}

    def print_summary() -> None:
        _print_summary(figures, run.output.paths, boxes.paths)
        if boxes.frames and not boxes.counts:
            print(_advise(options, detector))

    return run.finish(figures, print_summary)


def _describe_score(options: DetectOptions, detector: "Detector") -> str:
    """The score threshold and where it comes from, in one line."""
    calibration, origin = detector.calibration, "default"
    if options.score is not None:
        origin = "--score"
    elif calibration is not None and calibration.detection_score == detector.score_threshold:
        origin = calibration.describe_request()
    elif Path(options.weights or "").suffix.lower() == ".onnx":
        origin = "of the .onnx file"
    return f"score threshold: {detector.score_threshold:g} ({origin})"


def _advise(options: DetectOptions, detector: "Detector") -> str:
    """What to try after a run without boxes, in one line."""
    advice = [f"a lower --score (it is {detector.score_threshold:g})"]
    if options.polarity != "black":
        advice.append("--polarity black if hot is dark in the frames")
    if detector.domain is not None:
        size = detector.domain.smallest
        advice.append(
            f"--input_size native, or a size at which targets have the pixels of frames of {size[1]} x {size[0]}"
        )
    if len(detector.reported_classes) < len(detector.classes):
        advice.append(f"--classes all (reported: {', '.join(map(printable, detector.reported_classes))})")
    return f"no boxes; try {'; '.join(advice)}; or train on frames of this camera"


def _print_summary(figures: dict[str, Any], annotated: Sequence[Path], tables: Sequence[Path]) -> None:
    from danet.inference.frame_run import print_files, print_speed

    frames = figures["frames"]
    by_class = ", ".join(f"{printable(name)} {count}" for name, count in Counter(figures["boxes"]).most_common())
    where = f" ({by_class}) in {figures['frames_with_boxes']} frames" if by_class else ""
    print(f"{frames} frames, {sum(figures['boxes'].values())} boxes{where}")
    parts = {"reading": "reading", "network": "network and decoding", "writing": "drawing and writing"}
    print_speed(figures, parts)
    print_files(annotated, tables)


def main(argv: Sequence[str] | None = None) -> int:
    inputs = {"sources": (), "weights": shipped_names()}
    return cli.run(
        detect, DetectOptions, prog="danet detect", positionals=["sources"], inputs=inputs, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
