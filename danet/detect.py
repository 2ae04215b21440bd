"""``danet detect``: finds targets in images, folders, videos, cameras and streams; writes boxes and annotated files."""

import contextlib
import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import write_json, write_text
from danet.utils.help_page import HelpPage
from danet.utils.printable import printable
from danet.utils.progress import count_items
from danet.utils.urls import mask_url

if TYPE_CHECKING:
    from danet.inference.detector import Detector

PAGE = HelpPage(
    {
        "input": ["sources", "weights", "input_size", "polarity"],
        "detections": ["score", "iou", "max_detections", "classes"],
        "results": [
            "out",
            "overwrite",
            "save_images",
            "save_csv",
            "save_json",
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
class DetectOptions:
    """Options of ``danet detect``."""

    sources: list[str]
    """Images, videos, folders of images and videos, patterns such as 'clips/*.mp4', URLs of streams and files, or the
    number of a webcam; may be given without the option's name."""

    weights: str | None = None
    """Weights file (.safetensors) written by danet train, or an .onnx file written by danet export; by default the
    drone detector that is part of the package."""

    out: str = "runs/detect"
    """Folder for the results and config.yaml. If it holds the results of an earlier run, they go to runs/detect-2,
    runs/detect-3 and so on."""

    overwrite: bool = False
    """Replace the results of an earlier run in the folder."""

    score: float | None = None
    """Score threshold, 0 to 1: detections with a lower score are dropped; by default 0.5, or the value in an .onnx
    file."""

    iou: float | None = None
    """IoU threshold of non-maximum suppression, 0 to 1; by default 0.5, or the value in an .onnx file."""

    max_detections: int | None = None
    """Maximum number of detections per image; by default 300, or the value in an .onnx file."""

    input_size: list[int | Literal["native"]] | None = None
    """Height and width in pixels that every image is letterboxed to; one number stands for a square. native keeps the
    size of each image. By default, images of another scale than the weights were trained for are scaled to it."""

    polarity: Literal["auto", "white", "black"] = "auto"
    """white: hot is bright. black: hot is dark, the frames are inverted for the network. auto decides on the first
    frames of each source."""

    classes: list[str] | None = None
    """Names of the classes to report, or all; by default those that the weights are known to detect reliably."""

    batch: int = 1
    """Batch size: images that go through the network at once."""

    device: str = "auto"
    """cpu, cuda, cuda:N or N (the number of a GPU); auto uses a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the network. auto: bfloat16 on CPUs with a matrix unit (Intel AMX) if it is faster and its
    detections agree with those of float32, otherwise float32."""

    deploy: bool = True
    """Run the fused network; false runs the network as it was trained, for comparison."""

    threads: int | None = None
    """CPU threads of the network; by default all cores that the process may use."""

    save_images: bool = True
    """Write annotated images and videos."""

    save_csv: bool = True
    """Write boxes.csv."""

    save_json: bool = True
    """Write boxes.json."""

    show_scores: bool = True
    """Draw the score beside each class name."""

    upscale: float | Literal["auto"] = "auto"
    """Enlargement of annotated images and videos; auto enlarges small frames, so that their text is legible."""

    video_format: Literal["auto", "mp4", "webm"] = "auto"
    """Format of annotated videos. auto: one that web browsers play, MP4 with H.264 or WebM with VP8, if OpenCV can
    write it here."""

    max_pixels: int = 1 << 26
    """Maximum number of pixels of an image: larger ones are refused before they are decoded."""

    quiet: bool = False
    """Print only errors and warnings."""

    json: str | None = None
    """Also write the counts and times of the run, which are printed at its end, to this JSON file."""


def detect(options: DetectOptions) -> int:
    """Finds targets in images, videos, folders of both, streams or the picture of a webcam.

    Annotated files and the boxes (``boxes.csv``, ``boxes.json``; corners in pixels of the source) are written to
    ``options.out``. After Ctrl-C, SIGTERM and SIGHUP, and when the disk is full, the files are complete up to that
    frame.

    Exit code: 0; 1 if frames of a source are missing or a file could not be written; 2 for invalid input; 130 after
    Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    check_values(options, ["score", "iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
    counts = ["max_detections", "batch", "threads", "max_pixels"]
    check_values(options, counts, "be at least 1", lambda value: value >= 1, prefix="--")
    if options.upscale != "auto":
        check_values(options, ["upscale"], "lie between 0.1 and 16", lambda value: 0.1 <= value <= 16, prefix="--")
    if not options.sources:
        raise UserError("sources: none given; name images, folders, videos, or the number of a webcam")
    cli.check_out(options)
    from danet.inference.shared_images import shared_run

    with shared_run(options) as own:
        return _detect(own)


def _detect(options: DetectOptions) -> int:
    """Finds targets in the sources, or in the share of this process, see ``detect``."""
    import torch

    from danet.data.frame_sources import ImageFiles, open_sources
    from danet.data.video import Video
    from danet.inference.annotated_output import AnnotatedOutput, output_paths
    from danet.inference.box_files import BoxFiles
    from danet.inference.shared_images import is_shared
    from danet.inference.shared_sources import SharedSources
    from danet.inference.stream import DetectionStream
    from danet.inference.video_format import PLAYED_BY_BROWSERS, choose_codec, choose_suffix
    from danet.ops import describe
    from danet.ops.common import dtype_name
    from danet.utils.distributed import gather_objects, rank
    from danet.utils.stop_signals import StopSignals

    detector = _load_detector(options)

    # Find invalid sources before anything is written.
    sources = open_sources(options.sources, max_pixels=options.max_pixels)
    for source in sources:
        if isinstance(source, ImageFiles):
            source.check()
    suffix = choose_suffix(options.video_format)
    # Of several processes, the first one chooses the folder.
    out = gather_objects(_choose_folder(options, lambda folder: output_paths(sources, folder, video_suffix=suffix)))[0]
    paths = output_paths(sources, out, video_suffix=suffix)
    has_video = options.save_images and any(isinstance(source, Video) for source in sources)
    if not options.quiet:
        print(describe())
        if detector.dtype_note:
            print(detector.dtype_note)
        if out != Path(options.out):
            print(f"{options.out} holds an earlier run; the results go to {out} (--overwrite replaces it)")
        if has_video and choose_codec(suffix) not in PLAYED_BY_BROWSERS:
            print("annotated videos are MPEG-4, which web browsers do not play; OpenCV here cannot write H.264 or VP8")

    header = {
        "weights": options.weights,
        "classes": detector.classes,
        "reported_classes": detector.reported_classes,
        "score_threshold": detector.score_threshold,
        "iou_threshold": detector.iou_threshold,
        "sources": [mask_url(source) for source in options.sources],
    }
    csv = out / "boxes.csv" if options.save_csv and rank() == 0 else None
    json = out / "boxes.json" if options.save_json and rank() == 0 else None
    boxes = BoxFiles(csv, json, header, detector.classes)
    stream = DetectionStream(detector, batch=options.batch)
    output = AnnotatedOutput(
        detector.classes,
        show_scores=options.show_scores,
        upscale=None if options.upscale == "auto" else options.upscale,
        background=stream.has_free_core,
    )
    totals = [source.total for source in sources]
    total = None if None in totals else sum(count or 0 for count in totals)
    started = time.perf_counter()
    write_error, is_incomplete = None, False
    if rank() == 0:
        write_text(out / "config.yaml", cli.dump(options))
    with StopSignals() as stop:
        try:
            with boxes, count_items("detect", total, "frames", quiet=options.quiet) as show_count:
                if is_shared():
                    writer = output if options.save_images else None
                    share = SharedSources(stream, sources, paths, writer, stop.interrupt, max_pixels=options.max_pixels)
                    for frame, detections in share.run():
                        boxes.add(frame, detections)
                    is_incomplete = share.has_failed_peer
                for source, files in [] if is_shared() else zip(sources, paths, strict=True):
                    with contextlib.ExitStack() as stack:
                        write = stack.enter_context(output.open(source, files)) if options.save_images else None
                        stack.callback(
                            lambda: boxes.footer.update({"dropped": stream.dropped} if stream.dropped else {})
                        )
                        frames = stack.enter_context(contextlib.closing(stream.run(source)))
                        for frame, detections in stop.interrupt(frames):
                            boxes.add(frame, detections)
                            if write is not None:
                                write(frame, detections)
                            show_count(boxes.frames)
        except KeyboardInterrupt:
            pass  # from a stop signal
        except OSError as error:
            write_error = f"{error.filename or out}: {error.strerror or error}"
        except UserError as error:
            write_error = str(error)
    elapsed = time.perf_counter() - started

    figures = {  # the times of the parts may overlap
        "frames": boxes.frames,
        "frames_with_boxes": boxes.frames_with_boxes,
        "boxes": dict(boxes.counts),
        "dropped": stream.dropped,
        "seconds": elapsed,
        "reading_seconds": stream.reading_seconds,
        "network_seconds": stream.network_seconds,
        "writing_seconds": output.seconds,
        "device": str(detector.device),
        "dtype": dtype_name(detector.dtype),
        "threads": torch.get_num_threads(),
        "batch": options.batch,
    }
    if options.json is not None and rank() == 0:
        try:
            write_json(options.json, figures)
        except UserError as error:
            write_error = write_error or str(error)
    with contextlib.suppress(OSError):  # after SIGHUP there is no terminal any more
        if not options.quiet:
            _print_summary(figures, output.paths, boxes.paths)
            if boxes.frames and not boxes.counts:
                print(_advise(options, detector))
        if stop.received is not None:
            reason = "interrupted" if stop.received == signal.SIGINT else f"stopped by {stop.received.name}"
            complete = "all files are complete" if write_error is None else write_error
            print(f"danet detect: {reason} after {boxes.frames} frames; {complete}", file=sys.stderr)
        elif write_error is not None:
            print(f"danet detect: error: {write_error}; {boxes.frames} frames were processed", file=sys.stderr)
    if stop.received is not None:
        return stop.exit_code
    is_incomplete = is_incomplete or any(source.trouble is not None for source in sources)
    return int(write_error is not None or is_incomplete)


def _load_detector(options: DetectOptions) -> "Detector":
    """Loads the detector, and prepares the process for it: a library must not make these settings."""
    import torch

    import danet
    from danet.inference.input_size import parse_size_option
    from danet.inference.loading import choose_device, parse_dtype
    from danet.utils.malloc import share_malloc_arena, tune_malloc

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    share_malloc_arena()
    thresholds = {
        "score_threshold": options.score,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    detector = danet.load(
        options.weights,
        choose_device(options.device, options.weights),
        **{name: value for name, value in thresholds.items() if value is not None},
        input_size=parse_size_option(options.input_size),
        polarity=options.polarity,
        classes=options.classes,
        dtype=parse_dtype(options.dtype),
        deploy=options.deploy,
    )
    detector.notify = lambda level, line: None if options.quiet else print(line)
    if detector.device.type == "cpu":
        tune_malloc()
    return detector


def _choose_folder(options: DetectOptions, annotated: Callable[[Path], list[list[Path]]]) -> Path:
    """The folder for the results: ``options.out``, or runs/detect-2 and so on if it holds files of an earlier run.

    Args:
        options: the options.
        annotated: returns the annotated files of each source in a folder.

    Raises:
        UserError: the folder has no name of its own to number, as "." has none, and holds files of an earlier run.
    """
    first = Path(options.out)

    def is_free(folder: Path) -> bool:
        tables = [folder / name for name in ("config.yaml", "boxes.csv", "boxes.json")]
        files = itertools.chain(tables, *annotated(folder)) if options.save_images else tables
        return not any(path.exists() for path in files)

    if options.overwrite or is_free(first):
        return first
    if first.name in ("", ".."):
        raise UserError(f"--out {options.out}: holds an earlier run; --overwrite replaces it, or give another --out")
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in numbered if is_free(folder))


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
    frames = figures["frames"]
    by_class = ", ".join(f"{printable(name)} {count}" for name, count in Counter(figures["boxes"]).most_common())
    where = f" ({by_class}) in {figures['frames_with_boxes']} frames" if by_class else ""
    print(f"{frames} frames, {sum(figures['boxes'].values())} boxes{where}")
    if figures["dropped"]:
        print(f"{figures['dropped']} more frames were dropped because a live source does not wait")
    if frames:
        hardware = "{device}, {dtype}, threads {threads}, batch {batch}".format(**figures)
        print(
            f"{frames / figures['seconds']:.1f} frames/s from reading to writing, "
            f"{frames / figures['network_seconds']:.1f} in the network and decoding alone ({hardware})"
        )
        parts = {"reading": "reading", "network": "network and decoding", "writing": "drawing and writing"}
        each = (f"{name} {1e3 * figures[f'{part}_seconds'] / frames:.1f} ms" for part, name in parts.items())
        print(f"per frame: {', '.join(each)}")
    for folder, group in itertools.groupby(annotated, key=lambda path: path.parent):
        paths = list(group)
        for line in paths if len(paths) <= 3 else [f"{folder} ({len(paths)} images)"]:
            print(f"  {printable(line)}")
    for path in tables:
        print(f"  {printable(path)}")


def main(argv: Sequence[str] | None = None) -> int:
    inputs = {"sources": (), "weights": ()}
    return cli.run(
        detect, DetectOptions, prog="danet detect", positionals=["sources"], inputs=inputs, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
