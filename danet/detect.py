"""``danet detect``: finds targets in images, folders, videos, cameras and streams; writes boxes and annotated files."""

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import write_json, write_text
from danet.utils.progress import count_items
from danet.utils.urls import mask_url


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
    """Folder for the results and config.yaml; files of the same name in it are replaced."""

    score: float | None = None
    """Score threshold, 0 to 1: detections with a lower score are dropped; by default 0.5, or the value in an .onnx
    file."""

    iou: float | None = None
    """IoU threshold of non-maximum suppression, 0 to 1; by default 0.5, or the value in an .onnx file."""

    max_detections: int | None = None
    """Maximum number of detections per image; by default 300, or the value in an .onnx file."""

    input_size: list[int] | None = None
    """Height and width in pixels that every image is letterboxed to; one number stands for a square. By default images
    keep their size."""

    batch: int = 1
    """Batch size: images that go through the network at once."""

    device: str = "auto"
    """cpu, cuda or cuda:N; auto uses a GPU if there is one."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the network."""

    deploy: bool = True
    """Run the fused network; false runs the network as it was trained, for comparison."""

    threads: int | None = None
    """CPU threads of the network; by default all cores."""

    save_images: bool = True
    """Write annotated images and videos."""

    save_csv: bool = True
    """Write boxes.csv."""

    save_json: bool = True
    """Write boxes.json."""

    show_scores: bool = True
    """Draw the score beside each class name."""

    upscale: float = 1.0
    """Enlargement of annotated images and videos, so that small frames and their text are easier to read."""

    max_pixels: int = 1 << 26
    """Maximum number of pixels of an image: larger ones are refused before they are decoded."""

    quiet: bool = False
    """Print only errors and warnings."""

    json: str | None = None
    """Also write the counts and times of the run, which are printed at its end, to this JSON file."""


def detect(options: DetectOptions) -> int:
    """Finds targets in images, videos, folders of both, streams or the picture of a webcam.

    Annotated files and the boxes (``boxes.csv``, ``boxes.json``; corners in pixels of the source) are written to
    ``options.out``. After Ctrl-C, and when the disk is full, the files are complete up to that frame.

    Exit code: 0; 1 if frames of a source are missing or a file could not be written; 2 for invalid input; 130 after
    Ctrl-C.
    """
    check_values(options, ["score", "iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
    counts = ["max_detections", "batch", "threads", "max_pixels"]
    check_values(options, counts, "be at least 1", lambda value: value >= 1, prefix="--")
    check_values(options, ["upscale"], "lie between 0.1 and 16", lambda value: 0.1 <= value <= 16, prefix="--")
    if not options.sources:
        raise UserError("sources: none given; name images, folders, videos, or the number of a webcam")
    cli.check_out(options)
    import torch

    import danet
    from danet.data.video import ImageFiles, open_sources
    from danet.inference.annotated_output import AnnotatedOutput, output_paths
    from danet.inference.box_files import BoxFiles
    from danet.inference.loading import choose_device, parse_size
    from danet.inference.stream import DetectionStream
    from danet.ops import describe
    from danet.utils.malloc import share_malloc_arena, tune_malloc

    # Prepare the process: these settings must not be made by a library.
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    share_malloc_arena()
    device = choose_device(options.device, options.weights)
    thresholds = {
        "score_threshold": options.score,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    detector = danet.load(
        options.weights,
        device,
        **{name: value for name, value in thresholds.items() if value is not None},
        input_size=parse_size(options.input_size),
        dtype=getattr(torch, options.dtype),
        deploy=options.deploy,
    )
    if detector.device.type == "cpu":
        tune_malloc()

    # Find invalid sources before anything is written.
    sources = open_sources(options.sources, max_pixels=options.max_pixels)
    for source in sources:
        if isinstance(source, ImageFiles):
            source.check()
    out = Path(options.out)
    paths = output_paths(sources, out)
    if not options.quiet:
        print(describe())

    header = {
        "weights": options.weights,
        "classes": detector.classes,
        "score_threshold": detector.score_threshold,
        "iou_threshold": detector.iou_threshold,
        "sources": [mask_url(source) for source in options.sources],
    }
    csv = out / "boxes.csv" if options.save_csv else None
    json = out / "boxes.json" if options.save_json else None
    boxes = BoxFiles(csv, json, header, detector.classes)
    stream = DetectionStream(detector, batch=options.batch)
    output = AnnotatedOutput(
        detector.classes, show_scores=options.show_scores, upscale=options.upscale, background=stream.has_free_core
    )
    totals = [source.total for source in sources]
    total = None if None in totals else sum(count or 0 for count in totals)
    started = time.perf_counter()
    interrupted, write_error = False, None
    write_text(out / "config.yaml", cli.dump(options))
    with boxes:
        try:
            with count_items("detect", total, "frames", quiet=options.quiet) as show_count:
                for source, files in zip(sources, paths, strict=True):
                    with contextlib.ExitStack() as stack:
                        write = stack.enter_context(output.open(source, files)) if options.save_images else None
                        for frame, detections in stack.enter_context(contextlib.closing(stream.run(source))):
                            boxes.add(frame, detections)
                            if write is not None:
                                write(frame, detections)
                            show_count(boxes.frames)
        except KeyboardInterrupt:
            interrupted = True
        except UserError as error:
            write_error = str(error)
        boxes.footer = {"dropped": stream.dropped} if stream.dropped else {}
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
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch": options.batch,
    }
    if not options.quiet:
        _print_summary(figures, output.paths, boxes.paths)
    if options.json is not None:
        write_json(options.json, figures)
    if write_error is not None:
        print(f"danet detect: error: {write_error}; {boxes.frames} frames were processed", file=sys.stderr)
        return 1
    if interrupted:
        print(f"danet detect: interrupted after {boxes.frames} frames; all files are complete", file=sys.stderr)
        return 130
    return int(any(source.trouble is not None for source in sources))


def _print_summary(figures: dict[str, Any], annotated: Sequence[Path], tables: Sequence[Path]) -> None:
    frames = figures["frames"]
    by_class = ", ".join(f"{name} {count}" for name, count in Counter(figures["boxes"]).most_common())
    where = f" ({by_class}) in {figures['frames_with_boxes']} frames" if by_class else ""
    print(f"{frames} frames, {sum(figures['boxes'].values())} boxes{where}")
    if figures["dropped"]:
        print(f"{figures['dropped']} more frames were dropped because a live source does not wait")
    if frames:
        hardware = "{device}, threads {threads}, batch {batch}".format(**figures)
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
            print(f"  {line}")
    for path in tables:
        print(f"  {path}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(detect, DetectOptions, prog="danet detect", positionals=["sources"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
