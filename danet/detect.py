"""``danet detect``: targets in images, folders, videos or a webcam, as pictures and as boxes."""

import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from danet.data.video import Frame, ImageFiles, Video, VideoWriter, open_source
from danet.inference.box_files import BoxTables
from danet.inference.pipeline import Ahead, Behind, Turns
from danet.utils import cli
from danet.utils.drawing import draw_boxes, enlarge
from danet.utils.errors import UserError
from danet.utils.files import write_json, write_text
from danet.utils.image_io import to_display, write_image

if TYPE_CHECKING:
    from torch import Tensor

    from danet.boxes import Detections
    from danet.inference.detector import Detector

DEPTH = 2
"""Batches that are prepared ahead of the network, and pictures that wait to be written."""
TURN = 16, 1 << 20
"""Most batches and pixels that the network computes in a turn."""


@dataclass
class DetectOptions:
    """Options of ``danet detect``."""

    sources: list[str]
    """Images, folders of images, videos, or a webcam's number; also given as leading words."""

    weights: str | None = None
    """Weights file (.safetensors) written by danet train, or one exported as .onnx; by default the detector of drones
    that comes with the package."""

    out: str = "runs/detect"
    """Folder for the results and config.yaml; files of the same name in it are replaced."""

    score: float | None = None
    """Lowest score of a detection, 0 to 1; by default 0.5, or what an exported file says."""

    iou: float | None = None
    """Overlap (IoU, 0 to 1) above which only the better of two boxes is kept; by default 0.5, or the file's."""

    max_detections: int | None = None
    """Most detections an image; by default 300, or the file's."""

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

    json: str | None = None
    """Write the run's figures, which are printed at its end, to this file as well."""


def detect(options: DetectOptions) -> int:
    """Finds targets in images, folders of images, videos or a webcam's picture.

    Annotated pictures and videos and the boxes (``boxes.csv``, ``boxes.json``; corners in pixels of the
    source) go to ``options.out``. Ctrl-C and a full disk finish the files with what was done up to there.
    Exit code: 0, 1 where frames of a source are missing or a file could not be written, 2 for bad input, 130
    after Ctrl-C.
    """
    _check(options)
    cli.check_out(options)
    import torch

    import danet
    from danet.inference.predict import choose_device, parse_size
    from danet.ops import describe

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device, options.weights)
    limits = {
        "score_threshold": options.score,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    detector = danet.load(
        options.weights,
        device,
        **{name: limit for name, limit in limits.items() if limit is not None},
        input_size=parse_size(options.input_size),
        dtype=getattr(torch, options.dtype),
        deploy=options.deploy,
    )
    sources = [open_source(source) for source in options.sources]
    for source in sources:
        if isinstance(source, ImageFiles):
            source.check()
    out = Path(options.out)
    pictures = _place_pictures(sources, out)
    if not options.quiet:
        print(describe())

    head = {
        "weights": options.weights,
        "classes": detector.classes,
        "score_threshold": detector.score_threshold,
        "iou_threshold": detector.iou_threshold,
        "sources": options.sources,
    }
    tables = BoxTables(
        out / "boxes.csv" if options.save_csv else None,
        out / "boxes.json" if options.save_json else None,
        head,
        detector.classes,
    )
    run = Run(detector, options, tables)
    started = time.perf_counter()
    interrupted, trouble = False, None
    write_text(out / "config.yaml", cli.dump(options))
    with tables:
        try:
            with _progress(sources, options.quiet) as progress:
                for source, places in zip(sources, pictures, strict=True):
                    for _ in run.process(source, places):
                        elapsed = time.perf_counter() - started
                        progress.update(progress.task_ids[0], completed=tables.frames, fps=tables.frames / elapsed)
        except KeyboardInterrupt:
            interrupted = True
        except UserError as error:
            trouble = str(error)
        tables.tail = {"dropped": run.dropped} if run.dropped else {}
    elapsed = time.perf_counter() - started

    hardware = {"device": str(device), "threads": torch.get_num_threads(), "batch": options.batch}
    if not options.quiet:
        _print_summary(run, elapsed, "{device}, threads {threads}, batch {batch}".format(**hardware))
    if options.json is not None:
        write_json(options.json, {**_figures(run, elapsed), **hardware})
    if trouble is not None:
        print(f"danet detect: error: {trouble}; {tables.frames} frames were done", file=sys.stderr)
        return 1
    if interrupted:
        print(f"danet detect: interrupted after {tables.frames} frames; what is written is complete", file=sys.stderr)
        return 130
    return int(any(isinstance(source, Video) and source.trouble is not None for source in sources))


class Run:
    """The sources' way through the network: reading and preprocessing go ahead of it, drawing and writing follow it.

    Where the network leaves a core free, as on a GPU, they have threads of their own, so that everything waits for the
    network alone. Where it takes all cores they would only slow it down; it computes several batches in a turn, then
    the next ones are read while the last ones are written. A live source is always read in a thread, and frames that
    come too fast are dropped.
    """

    def __init__(self, detector: "Detector", options: DetectOptions, tables: BoxTables) -> None:
        import torch

        from danet.utils.malloc import share_malloc_arena

        share_malloc_arena()
        self.detector = detector
        self.options = options
        self.tables = tables
        self.pictures: list[Path] = []
        self.dropped = 0
        # Where the time goes; with threads of their own these overlap.
        self.reading_seconds = self.network_seconds = self.writing_seconds = 0.0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.free = detector.device.type != "cpu" or cores > torch.get_num_threads()

    def process(self, source: ImageFiles | Video, places: Sequence[Path]) -> Iterator[None]:
        """Detects in one source and writes its pictures; yields after each frame."""
        live = isinstance(source, Video) and source.live
        remaining = iter(places)
        with ExitStack() as stack:
            video = None
            if self.options.save_images and isinstance(source, Video):
                self.pictures.append(next(remaining))
                video = stack.enter_context(VideoWriter(self.pictures[-1], source.fps))
            behind = stack.enter_context(Behind(depth=DEPTH if self.free else 0))
            batches = self._prepared(source, 1 if live else self.options.batch)
            found = self._overlapping(batches, stack, live) if live or self.free else self._in_turns(batches, stack)
            for frame, detections in found:
                self.tables.add(frame, detections)
                if self.options.save_images:
                    path = None if video is not None else next(remaining)
                    behind.put(self._save, frame, detections, video, path)
                yield

    def _overlapping(self, batches: Iterator[tuple], stack: ExitStack, live: bool) -> Iterator[tuple]:
        """Frames with their detections, while the next batches are prepared."""
        ahead = stack.enter_context(Ahead(batches, depth=DEPTH, drop=live))
        for batch in ahead:
            self.dropped += ahead.dropped
            ahead.dropped = 0
            yield from self._detect(*batch)

    def _in_turns(self, batches: Iterator[tuple], stack: ExitStack) -> Iterator[tuple]:
        """Frames with their detections, computed in turns; the next batches are prepared while these are written."""

        def full(turn: list[tuple]) -> bool:
            return len(turn) >= TURN[0] or sum(tensor[:, 0].numel() for _, tensor, _ in turn) >= TURN[1]

        turns = stack.enter_context(Turns(batches, full=full))
        for turn in turns:
            found = [self._detect(*batch) for batch in turn]
            turns.go_on()
            yield from itertools.chain.from_iterable(found)

    def _detect(self, frames: list[Frame], tensor: "Tensor", geometry: list) -> list[tuple]:
        started = time.perf_counter()
        found = self.detector.postprocess(*self.detector.forward(tensor, geometry))
        self.network_seconds += time.perf_counter() - started
        return list(zip(frames, found, strict=True))

    def _prepared(self, source: ImageFiles | Video, batch: int) -> Iterator[tuple]:
        started = time.perf_counter()
        for frames in _batches(source, batch):
            prepared = frames, *self.detector.preprocess([frame.image for frame in frames])
            self.reading_seconds += time.perf_counter() - started
            yield prepared
            started = time.perf_counter()

    def _save(self, frame: Frame, detections: "Detections", video: VideoWriter | None, path: Path | None) -> None:
        started = time.perf_counter()
        picture = _annotate(frame.image, detections, self.detector.classes, self.options)
        if video is not None:
            video.write(picture)
        elif path is not None:  # one of the two is given
            write_image(path, picture)
            self.pictures.append(path)
        self.writing_seconds += time.perf_counter() - started


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


def _figures(run: Run, elapsed: float) -> dict:
    """What was done, and how long it took in all and in its parts, which may overlap."""
    return {
        "frames": run.tables.frames,
        "frames_with_boxes": run.tables.frames_with_boxes,
        "boxes": dict(run.tables.counts),
        "dropped": run.dropped,
        "seconds": elapsed,
        "reading_seconds": run.reading_seconds,
        "network_seconds": run.network_seconds,
        "writing_seconds": run.writing_seconds,
    }


def _print_summary(run: Run, elapsed: float, hardware: str) -> None:
    tables = run.tables
    by_class = ", ".join(f"{name} {count}" for name, count in tables.counts.most_common())
    boxes = f"{tables.counts.total()} boxes"
    print(
        f"{tables.frames} frames, {boxes}" + (f" ({by_class}) in {tables.frames_with_boxes} frames" if by_class else "")
    )
    if run.dropped:
        print(f"{run.dropped} more frames were dropped, since the source does not wait")
    if tables.frames:
        print(
            f"{tables.frames / elapsed:.1f} frames/s from reading to writing, "
            f"{tables.frames / run.network_seconds:.1f} in network and decoding alone ({hardware})"
        )
        parts = {
            "reading": run.reading_seconds,
            "network and decoding": run.network_seconds,
            "drawing and writing": run.writing_seconds,
        }
        each = ", ".join(f"{name} {1e3 * seconds / tables.frames:.1f} ms" for name, seconds in parts.items())
        print(f"a frame: {each}")
    for folder, group in itertools.groupby(run.pictures, key=lambda path: path.parent):
        paths = list(group)
        for line in paths if len(paths) <= 3 else [f"{folder} ({len(paths)} pictures)"]:
            print(f"  {line}")
    for path in tables.paths:
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
    progress.add_task("detect", total=None if None in totals else sum(total or 0 for total in totals), fps=0.0)
    return progress


def _check(options: DetectOptions) -> None:
    """Raises UserError for a value that cannot be meant."""
    for name in ("score", "iou"):
        value = getattr(options, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise UserError(f"--{name} must lie between 0 and 1, got {value}")
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
