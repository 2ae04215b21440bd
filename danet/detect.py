"""``danet detect``: targets in images, folders, videos or a webcam, as pictures and as boxes."""

import csv
import io
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from danet import cli
from danet.data.image import to_display, write_image
from danet.errors import UserError
from danet.files import write_json, write_text
from danet.video import Frame, ImageFiles, Video, VideoWriter, open_source
from danet.visual import draw_boxes, enlarge

if TYPE_CHECKING:
    from danet.boxes import Detections
    from danet.detector import Detector

COLUMNS = ("file", "frame", "class", "score", "x0", "y0", "x1", "y1")


@dataclass
class DetectOptions:
    """Options of ``danet detect``."""

    sources: list[str]
    """Images, folders of images, videos, or a webcam's number; also given as leading words."""

    weights: str
    """Weights file (.safetensors) written by danet train."""

    out: str = "runs/detect"
    """Folder for the results and config.yaml; files of the same name in it are replaced."""

    score: float = 0.5
    """Lowest score of a detection, 0 to 1."""

    iou: float = 0.5
    """Overlap (IoU, 0 to 1) above which only the better of two boxes is kept."""

    max_detections: int = 300
    """Most detections an image."""

    input_size: list[int] | None = None
    """Height and width in pixels (one number: a square) every image is fitted into; by default its own size."""

    batch: int = 1
    """Images that go through the network at once."""

    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the network's numbers."""

    deploy: bool = True
    """Run the network in its fused form; false takes it as it was trained, to compare."""

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

    quiet: bool = False
    """Print only errors and warnings."""


def detect(options: DetectOptions) -> int:
    """Finds targets in images, folders of images, videos or a webcam's picture.

    Annotated pictures and videos and the boxes (``boxes.csv``, ``boxes.json``; corners in pixels of the
    source) go to ``options.out``. Ctrl-C finishes the files with what was done up to there.
    """
    _check(options)
    cli.check_out(options)
    import torch

    import danet
    from danet.inference import choose_device, parse_size
    from danet.ops import describe

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    detector = danet.load(
        options.weights,
        device,
        score_threshold=options.score,
        iou_threshold=options.iou,
        max_detections=options.max_detections,
        input_size=parse_size(options.input_size),
        dtype=getattr(torch, options.dtype),
        deploy=options.deploy,
    )
    sources = [open_source(source) for source in options.sources]
    for source in sources:
        if isinstance(source, ImageFiles):
            source.check()
    pictures = _place_pictures(sources, Path(options.out))
    if not options.quiet:
        print(describe())

    results = Results()
    started = time.perf_counter()
    interrupted = False
    try:
        with _progress(sources, options.quiet) as progress:
            for source, places in zip(sources, pictures, strict=True):
                for _ in _process(source, places, detector, options, results):
                    elapsed = time.perf_counter() - started
                    progress.update(progress.task_ids[0], completed=results.frames, fps=results.frames / elapsed)
    except KeyboardInterrupt:
        interrupted = True
    elapsed = time.perf_counter() - started

    tables = _write_tables(results, detector, options)
    if not options.quiet:
        hardware = f"{device}, threads {torch.get_num_threads()}, batch {options.batch}"
        _print_summary(results, elapsed, hardware, tables)
    if interrupted:
        print(f"danet detect: interrupted after {results.frames} frames; what is written is complete", file=sys.stderr)
        return 130
    return 0


@dataclass
class Results:
    """What has been found so far."""

    rows: list[dict] = field(default_factory=list)
    """One dict with the keys COLUMNS for each box."""
    pictures: list[Path] = field(default_factory=list)
    """Annotated images and videos that were written."""
    frames: int = 0
    frames_with_boxes: int = 0
    detector_seconds: float = 0.0

    def add(self, frame: Frame, detections: "Detections", classes: Sequence[str]) -> None:
        self.frames += 1
        self.frames_with_boxes += len(detections.scores) > 0
        for box, score, label in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        ):
            corners = (round(value, 2) for value in box)
            row = (frame.name, frame.index, classes[label], round(score, 4), *corners)
            self.rows.append(dict(zip(COLUMNS, row, strict=True)))


def _process(
    source: ImageFiles | Video,
    places: Sequence[Path],
    detector: "Detector",
    options: DetectOptions,
    results: Results,
) -> Iterator[None]:
    """Detects in one source and writes its pictures; yields after each frame."""
    remaining = iter(places)
    with ExitStack() as stack:
        video = None
        if options.save_images and isinstance(source, Video):
            results.pictures.append(next(remaining))
            video = stack.enter_context(VideoWriter(results.pictures[-1], source.fps))
        for frames in _batches(source, options.batch):
            started = time.perf_counter()
            found = detector.batch([frame.image for frame in frames])
            results.detector_seconds += time.perf_counter() - started
            for frame, detections in zip(frames, found, strict=True):
                results.add(frame, detections, detector.classes)
                if options.save_images:
                    picture = _annotate(frame.image, detections, detector.classes, options)
                    if video is not None:
                        video.write(picture)
                    else:
                        path = next(remaining)
                        write_image(path, picture)
                        results.pictures.append(path)
                yield


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Up to ``size`` successive frames of equal size, so that a result does not depend on its neighbours."""
    for _, group in itertools.groupby(frames, key=lambda frame: frame.image.shape[:2]):
        while batch := list(itertools.islice(group, size)):
            yield batch


def _annotate(
    image: np.ndarray, detections: "Detections", classes: Sequence[str], options: DetectOptions
) -> np.ndarray:
    return draw_boxes(
        enlarge(to_display(image), options.upscale),
        detections.boxes.numpy() * options.upscale,
        detections.scores.tolist() if options.show_scores else None,
        detections.labels.tolist(),
        classes,
    )


def _place_pictures(sources: Sequence[ImageFiles | Video], out: Path) -> list[list[Path]]:
    """Where each source's pictures go: ``out/clip.mp4``, ``out/image.png`` or ``out/folder/image.png``.

    Names that would meet get _2, _3...; a picture that would replace a source is a UserError.
    """
    taken: set[Path] = set()
    inputs = {Path(s.name).resolve() for s in sources if isinstance(s, Video)}
    inputs |= {path.resolve() for s in sources if isinstance(s, ImageFiles) for path in s.paths}

    def place(folder: Path, stem: str, suffix: str) -> Path:
        path = next(
            path
            for path in (folder / f"{stem}{'' if n == 1 else f'_{n}'}{suffix}" for n in itertools.count(1))
            if path not in taken
        )
        if path.resolve() in inputs:
            raise UserError(f"--out {out}: the result would replace the source {path}")
        taken.add(path)
        return path

    pictures = []
    for source in sources:
        if isinstance(source, Video):
            pictures.append([place(out, Path(source.name).stem, ".mp4")])
        else:
            name = Path(source.name)
            folder = out / name.resolve().name if name.is_dir() else out
            # JPEG stays JPEG; everything else becomes PNG, which every viewer shows.
            pictures.append(
                [
                    place(folder, p.stem, p.suffix if p.suffix.lower() in (".jpg", ".jpeg") else ".png")
                    for p in source.paths
                ]
            )
    return pictures


def _write_tables(results: Results, detector: "Detector", options: DetectOptions) -> list[Path]:
    """Writes config.yaml, boxes.csv and boxes.json; returns the paths of the boxes."""
    write_text(Path(options.out) / "config.yaml", cli.dump(options))
    written = []
    if options.save_csv:
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(results.rows)
        written.append(Path(options.out) / "boxes.csv")
        write_text(written[-1], text.getvalue())
    if options.save_json:
        content = {
            "weights": options.weights,
            "classes": detector.classes,
            "score_threshold": options.score,
            "iou_threshold": options.iou,
            "sources": options.sources,
            "frames": results.frames,
            "boxes": results.rows,
        }
        written.append(Path(options.out) / "boxes.json")
        write_json(written[-1], content)
    return written


def _print_summary(results: Results, elapsed: float, hardware: str, tables: Sequence[Path]) -> None:
    counts = Counter(row["class"] for row in results.rows)
    by_class = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    print(
        f"{results.frames} frames, {len(results.rows)} boxes"
        + (f" ({by_class}) in {results.frames_with_boxes} frames" if results.rows else "")
    )
    if results.frames:
        print(
            f"{results.frames / elapsed:.1f} frames/s from reading to writing, "
            f"{results.frames / results.detector_seconds:.1f} in the detector alone ({hardware})"
        )
    for folder, paths in itertools.groupby(results.pictures, key=lambda path: path.parent):
        paths = list(paths)
        for line in paths if len(paths) <= 3 else [f"{folder} ({len(paths)} pictures)"]:
            print(f"  {line}")
    for path in tables:
        print(f"  {path}")


def _progress(sources: Sequence[ImageFiles | Video], quiet: bool) -> Progress:
    """A bar on stderr, only in a terminal; without an end if a source's length is unknown."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("detect"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]:.1f} frames/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    totals = [source.total for source in sources]
    progress.add_task("detect", total=None if None in totals else sum(totals), fps=0.0)
    return progress


def _check(options: DetectOptions) -> None:
    """Raises UserError for a value that cannot be meant."""
    for name in ("score", "iou"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise UserError(f"--{name} must lie between 0 and 1, got {getattr(options, name)}")
    for name in ("max_detections", "batch", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if not 0.1 <= options.upscale <= 16.0:
        raise UserError(f"--upscale must lie between 0.1 and 16, got {options.upscale}")
    if not options.sources:
        raise UserError("no source: name images, folders, videos or a webcam's number")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(detect, DetectOptions, prog="danet detect", positionals=["sources"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
