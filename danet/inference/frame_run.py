"""Loads a detector and runs it over the frames of sources; files stay whole when the run is stopped."""

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

import danet
from danet.data.frame_sources import ImageFiles, open_sources
from danet.data.video import Frame, Video
from danet.inference.annotated_output import AnnotatedOutput, output_paths, source_paths
from danet.inference.detector import Detector
from danet.inference.frame_options import FrameOptions
from danet.inference.input_size import parse_size_option, parse_tile_option
from danet.inference.live_preview import LivePreview
from danet.inference.loading import choose_device
from danet.inference.shared_images import is_shared
from danet.inference.shared_sources import SharedSources
from danet.inference.stream import DetectionStream, FrameTracker
from danet.inference.tiling import Tiling
from danet.inference.video_format import PLAYED_BY_BROWSERS, choose_codec, choose_suffix
from danet.ops import describe
from danet.ops.common import dtype_name
from danet.utils import cli
from danet.utils.distributed import gather_objects, rank
from danet.utils.errors import UserError
from danet.utils.files import write_json, write_text
from danet.utils.malloc import share_malloc_arena, tune_malloc
from danet.utils.printable import printable
from danet.utils.progress import count_items
from danet.utils.stop_signals import StopSignals

Source = ImageFiles | Video
Add = Callable[[Frame, Any], object]
"""Takes a frame, and its detections or tracks."""


class SourceFiles(NamedTuple):
    """Paths of the files about one source; the options decide which of them are written."""

    annotated: list[Path]
    """The annotated video, or the annotated images."""
    text: Path
    """A text about the source. No other source has a text of this name."""


class FrameRun:
    """One run of a command over all frames of its sources.

    Invalid sources are found before anything is written. The run survives stop signals and a full disk: its files are
    then complete up to that frame.

    Attributes:
        detector: the loaded detector.
        sources: the opened sources.
        out: the folder for the results.
        files: the files of each source.
        stream: detects in the frames; its attributes measure the time.
        output: writes the annotated files.
        preview: shows the annotated frames in web browsers; None without ``options.serve``.
        frames: number of frames that were processed.
        error: why a file could not be written; None if all could.
        is_incomplete: whether another process could not read some frames; that process has printed why.
        seconds: duration of ``process``.

    Args:
        options: of the command.
        prog: the command, such as ``danet detect``.
        tables: names of the outputs that list the results of all sources -> whether this run writes them. An output
            folder that contains one of these names belongs to an earlier run. With ``options.overwrite``, those that
            this run does not write are removed.
        thresholds: thresholds of the detector; those that are None keep their defaults.
        annotate: class that draws the detections or tracks, with its own options set.
        texts: whether the command writes a text for each source.
        check: called with the detector and the sources before anything is printed; raises UserError for options that do
            not fit them.

    Raises:
        UserError: the weights or a source cannot be opened, or ``options.out`` cannot be used.
    """

    def __init__(
        self,
        options: FrameOptions,
        *,
        prog: str,
        tables: Mapping[str, bool],
        thresholds: dict[str, Any],
        annotate: Callable[..., AnnotatedOutput] = AnnotatedOutput,
        texts: bool = False,
        check: Callable[[Detector, Sequence[Source]], None] = lambda detector, sources: None,
    ) -> None:
        self.options = options
        self.prog = prog
        self._omitted = [name for name, is_written in tables.items() if not is_written]
        self.detector = load_detector(options, thresholds)
        self.sources = open_sources(options.sources, max_pixels=options.max_pixels)
        for source in self.sources:
            if isinstance(source, ImageFiles):
                source.check()
        check(self.detector, self.sources)
        if options.serve is not None and is_shared():
            raise UserError("--serve: shows the frames of one process; start one without torchrun")
        suffix = choose_suffix(options.video_format)

        def source_files(folder: Path) -> list[SourceFiles]:
            annotated = output_paths(self.sources, folder, video_suffix=suffix)
            return list(map(SourceFiles, annotated, source_paths(self.sources, folder, suffix=".txt")))

        def written(folder: Path) -> Iterator[Path]:
            yield from (folder / name for name in tables)
            for files in source_files(folder):
                yield from files.annotated if options.save_images else ()
                yield from (files.text,) if texts else ()

        # Of several processes, the first one chooses the folder.
        self.out = gather_objects(choose_folder(options, written))[0]
        folders = dict.fromkeys((Path(options.out), self.out))  # --json must not replace an earlier run either
        cli.check_outputs([options.json, *(folder / name for folder in folders for name in tables)])
        kept = kept_files(self.out, list(written(self.out))) if options.overwrite else []
        self.files = source_files(self.out)
        self.stream = DetectionStream(self.detector, batch=options.batch, tile_every=options.tile_every)
        self.output = annotate(
            self.detector.classes,
            show_scores=options.show_scores,
            upscale=None if options.upscale == "auto" else options.upscale,
            background=self.stream.has_free_core,
        )
        self.preview = None if options.serve is None else LivePreview(options.serve, self.output.draw)
        self.frames = 0
        self.error: str | None = None
        self.is_incomplete = False
        self.seconds = 0.0
        self._stop = StopSignals()
        if not options.quiet:
            self._print_start(suffix, kept)

    def process(
        self,
        results: Callable[[Source, SourceFiles], contextlib.AbstractContextManager[Add]],
        files: Sequence[contextlib.AbstractContextManager],
        *,
        tracker: FrameTracker | None = None,
    ) -> None:
        """Processes the frames of all sources; a stop signal or a full disk ends it in order.

        Args:
            results: opens the results of a source: a context manager whose function takes each frame with its
                detections, or with its tracks if there is a tracker.
            files: what is opened before the first source and completed after the last one.
            tracker: follows the targets.
        """
        if rank() == 0:
            write_text(self.out / "config.yaml", cli.dump(self.options))
        started = time.perf_counter()
        with self._stop:
            try:
                with contextlib.ExitStack() as stack:
                    # Remove tables of an earlier run that this one does not replace: they list other results.
                    for table in self._omitted if self.options.overwrite and rank() == 0 else ():
                        (self.out / table).unlink(missing_ok=True)
                    for each in files:
                        stack.enter_context(each)
                    if self.preview is not None:
                        stack.enter_context(self.preview)
                    name = self.prog.rpartition(" ")[2]
                    show_count = stack.enter_context(count_items(name, self.total, "frames", quiet=self.options.quiet))
                    if is_shared():
                        self._process_shared(results)
                    else:
                        for source, own in zip(self.sources, self.files, strict=True):
                            self._process_source(source, own, results, tracker, show_count)
            except KeyboardInterrupt:
                pass  # from a stop signal
            except OSError as error:
                self.error = f"{error.filename or self.out}: {error.strerror or error}"
            except UserError as error:
                self.error = str(error)
        self.seconds = time.perf_counter() - started

    def _process_source(
        self,
        source: Source,
        files: SourceFiles,
        results: Callable[[Source, SourceFiles], contextlib.AbstractContextManager[Add]],
        tracker: FrameTracker | None,
        show_count: Callable[[int], object],
    ) -> None:
        with contextlib.ExitStack() as stack:
            add = stack.enter_context(results(source, files))
            is_annotated = self.options.save_images
            write = stack.enter_context(self.output.open(source, files.annotated)) if is_annotated else None
            stream: Any = self.stream.run(source) if tracker is None else self.stream.track(source, tracker)
            # A stop signal raises KeyboardInterrupt while a frame is fetched, and nowhere else, so that files stay
            # whole.
            for frame, found, *tracks in self._stop.interrupt(stack.enter_context(contextlib.closing(stream))):
                shown = tracks[0] if tracks else found
                add(frame, shown)
                if write is not None:
                    write(frame, shown)
                if self.preview is not None:
                    self.preview.show(frame.image, shown)
                self.frames += 1
                show_count(self.frames)

    def _process_shared(self, results: Callable[[Source, SourceFiles], contextlib.AbstractContextManager[Add]]) -> None:
        """Processes the sources together with other processes; the first source's results take all frames."""
        writer = self.output if self.options.save_images else None
        paths = [files.annotated for files in self.files]
        share = SharedSources(
            self.stream, self.sources, paths, writer, self._stop.interrupt, max_pixels=self.options.max_pixels
        )
        with results(self.sources[0], self.files[0]) as add:
            for frame, found in share.run():
                add(frame, found)
                self.frames += 1
        self.is_incomplete = share.has_failed_peer

    def figures(self) -> dict[str, Any]:
        """Times and settings of the run; the times of the parts may overlap."""
        return {
            "frames": self.frames,
            "dropped": self.stream.dropped,
            "seconds": self.seconds,
            "reading_seconds": self.stream.reading_seconds,
            "network_seconds": self.stream.network_seconds,
            "writing_seconds": self.output.seconds,
            "device": str(self.detector.device),
            "dtype": dtype_name(self.detector.dtype),
            "threads": torch.get_num_threads(),
            "batch": self.options.batch,
        }

    def finish(self, figures: dict[str, Any], print_summary: Callable[[], None]) -> int:
        """Writes the figures to ``options.json``, prints the summary and how the run ended; returns the exit code."""
        if self.options.json is not None and rank() == 0:
            try:
                write_json(self.options.json, figures)
            except UserError as error:
                self.error = self.error or str(error)
        frames, stop = self.frames, self._stop
        with contextlib.suppress(OSError):  # after SIGHUP there is no terminal any more
            if not self.options.quiet:
                print_summary()
            if stop.received is not None:
                reason = "interrupted" if stop.received == signal.SIGINT else f"stopped by {stop.received.name}"
                complete = "all files are complete" if self.error is None else self.error
                print(f"{self.prog}: {reason} after {frames} frames; {complete}", file=sys.stderr)
            elif self.error is not None:
                print(f"{self.prog}: error: {self.error}; {frames} frames were processed", file=sys.stderr)
        if stop.received is not None:
            return stop.exit_code
        is_incomplete = self.is_incomplete or any(source.trouble is not None for source in self.sources)
        return int(self.error is not None or is_incomplete or self.output.skipped > 0)

    @property
    def total(self) -> int | None:
        """Number of frames of all sources; None if it is unknown."""
        totals = [source.total for source in self.sources]
        return None if None in totals else sum(count or 0 for count in totals)

    def _print_start(self, suffix: str, kept: Sequence[Path]) -> None:
        options = self.options
        print(describe())
        if self.detector.dtype_note:
            print(self.detector.dtype_note)
        if self.detector.tiling is not None:
            print(_describe_tiles(self.detector.tiling, options.tile_every))
        if self.preview is not None:
            print(f"live preview at {self.preview.url}", flush=True)
        if self.out != Path(options.out):
            print(f"{options.out} holds an earlier run; the results go to {self.out} (--overwrite replaces it)")
        if kept:
            print(
                f"{self.out} keeps files that this run does not replace: {len(kept)}, such as {printable(kept[0])}; "
                "another --out keeps the results of runs apart"
            )
        has_video = options.save_images and any(isinstance(source, Video) for source in self.sources)
        if has_video and choose_codec(suffix) not in PLAYED_BY_BROWSERS:
            print(
                "annotated videos are MPEG-4, which browsers do not play; install PyAV (pip install av) to write H.264"
            )
        elif has_video and options.video_format == "auto" and suffix == ".webm":
            print("annotated videos are WebM, which is slow to write; install PyAV (pip install av) to write H.264")


def _describe_tiles(tiling: Tiling, every: int) -> str:
    """One line about the tiles into which frames are cut."""
    height, width = tiling.size
    line = f"larger frames are cut into tiles of {width} x {height} pixels that overlap by {tiling.overlap:.0%} or more"
    if every == 1:
        return f"{line}; every frame is searched completely"
    return (
        f"{line}; one of {every} frames of a video is searched completely, the others around its targets "
        "(--tile_every 1 searches all completely)"
    )


class DetectorOptions(Protocol):
    """The options of a command that ``load_detector`` uses, see ``FrameOptions``."""

    weights: str | None
    classes: list[str] | None
    input_size: list[int | Literal["native"]] | None
    tile: list[int] | None
    overlap: float
    polarity: Literal["auto", "white", "black"]
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    deploy: bool
    threads: int | None
    quiet: bool


def load_detector(options: DetectorOptions, thresholds: dict[str, Any]) -> Detector:
    """Loads the detector, and prepares the process for it: a library must not make these settings."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    share_malloc_arena()
    detector = danet.load(
        options.weights,
        choose_device(options.device, options.weights),
        **{name: value for name, value in thresholds.items() if value is not None},
        input_size=parse_size_option(options.input_size),
        tile=parse_tile_option(options.tile),
        overlap=options.overlap,
        polarity=options.polarity,
        classes=options.classes,
        dtype=options.dtype,
        deploy=options.deploy,
    )
    detector.notify = lambda level, line: None if options.quiet else print(line)
    if detector.device.type == "cpu":
        tune_malloc()
    return detector


def choose_folder(options: FrameOptions, written: Callable[[Path], Iterable[Path]]) -> Path:
    """The folder for the results: ``options.out``, or OUT-2, OUT-3 and so on if it holds files of an earlier run.

    Args:
        options: the options.
        written: returns the files that the run writes into a folder.

    Raises:
        UserError: the folder has no name of its own to number, as "." has none, and holds files of an earlier run.
    """
    first = Path(options.out)

    def is_free(folder: Path) -> bool:
        return not any(path.exists() for path in written(folder))

    if options.overwrite or is_free(first):
        return first
    if first.name in ("", ".."):
        raise UserError(f"--out {options.out}: holds an earlier run; --overwrite replaces it, or give another --out")
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in numbered if is_free(folder))


def kept_files(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Files and folders that a run leaves as they are, such as the results of other sources from an earlier run.

    Args:
        folder: of the results.
        written: the files and folders that the run writes; only the folders that hold them are searched.
    """
    replaced = {*written, *(parent for path in written for parent in path.parents)}
    searched = {folder, *(path.parent for path in written if folder in path.parents)}
    found = (path for each in searched if each.is_dir() for path in each.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path not in replaced)


def print_speed(figures: dict[str, Any], parts: dict[str, str]) -> None:
    """Prints frames per second, and the milliseconds of each part: its name in ``figures`` -> its name in the text."""
    frames = figures["frames"]
    if figures["dropped"]:
        print(f"{figures['dropped']} more frames were dropped because a live source does not wait")
    if frames:
        hardware = "{device}, {dtype}, threads {threads}, batch {batch}".format(**figures)
        print(
            f"{frames / figures['seconds']:.1f} frames/s from reading to writing, "
            f"{frames / figures['network_seconds']:.1f} in the network and decoding alone ({hardware})"
        )
        each = (f"{name} {1e3 * figures[f'{part}_seconds'] / frames:.1f} ms" for part, name in parts.items())
        print(f"per frame: {', '.join(each)}")


def print_files(annotated: Sequence[Path], tables: Sequence[Path]) -> None:
    """Prints the names of the files that were written; of a folder with many images only their number."""
    for folder, group in itertools.groupby(annotated, key=lambda path: path.parent):
        paths = list(group)
        for line in paths if len(paths) <= 3 else [f"{folder} ({len(paths)} images)"]:
            print(f"  {printable(line)}")
    for path in tables:
        print(f"  {printable(path)}")
