"""``danet calibrate``: chooses thresholds from footage without targets, and stores them in the weights."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from danet.inference.calibrated_thresholds import MAX_WINDOW_FRAMES
from danet.inference.tile_options import DEFAULT_OVERLAP, DEFAULT_TILE_EVERY, check_tile_options
from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import check_folder, check_new_file, write_json
from danet.utils.help_page import HelpPage
from danet.utils.printable import printable
from danet.utils.progress import count_items
from danet.utils.shipped_weights import shipped_names

if TYPE_CHECKING:
    from danet.calibration.choice import AlarmChoice
    from danet.calibration.footage import FalseAlarm, Footage
    from danet.data.frame_sources import ImageFiles
    from danet.data.video import Video
    from danet.inference.calibrated_thresholds import CalibratedThresholds

SHOWN_FALSE_ALARMS = 5
"""Number of false alarms of which the video and the time are printed."""

PAGE = HelpPage(
    {
        "input": ["weights", "negatives", "positives", "classes", "input_size", "tile", "polarity"],
        "choice": ["false_alarms_per_hour", "hits", "window"],
        "results": ["out", "overwrite", "quiet", "json"],
        "machine": ["device", "dtype", "batch", "threads"],
        "more": ["config", "print_config", "help", "help_all", "debug"],
    },
    {
        "danet calibrate weights.safetensors --negatives clips/": "at most one false alarm per hour; write "
        "weights-calibrated.safetensors",
        "danet calibrate weights.safetensors --negatives clips/ --out weights.safetensors --overwrite": "in place",
        "danet track video.mp4 --weights weights-calibrated.safetensors": "use the thresholds",
    },
)


@dataclass
class CalibrateOptions:
    """Options of ``danet calibrate``."""

    weights: str | None = None
    """Weights file (.safetensors) written by danet train; also given as the first argument. By default the drone
    detector that is part of the package."""

    negatives: list[str] = dataclasses.field(default_factory=list)
    """Footage without targets: videos, folders of videos, folders of images that follow each other at 25 frames per
    second, or patterns such as 'clips/*.mp4'. Other objects may be in it, such as birds; they must not raise alarms."""

    false_alarms_per_hour: float = 1.0
    """Rate of false alarms that must not be exceeded."""

    positives: str | None = None
    """COCO json (or a folder with one) of images with targets, on which the recall at the chosen thresholds is
    measured. If the images state `video` and `frame`, alarms are measured too."""

    hits: int | None = None
    """Use this M of N instead of choosing it: a track raises an alarm once it was detected in `hits` of the last
    `window` frames."""

    window: int | None = None
    """See `hits`."""

    classes: list[str] | None = None
    """Names of the classes that raise alarms, or all; by default those that the weights are known to detect reliably.
    The thresholds hold for alarms of these classes."""

    out: str | None = None
    """Weights file to write; by default the name of `weights` with -calibrated, such as weights-calibrated.safetensors.
    It may be the file of `weights` itself, with `overwrite`."""

    overwrite: bool = False
    """Replace an existing file."""

    fps: float = 30.0
    """Frames per second of the videos of `positives`."""

    iou: float | None = None
    """IoU threshold of non-maximum suppression, 0 to 1; by default 0.5."""

    input_size: list[int | Literal["native"]] | None = None
    """Height and width in pixels that every image is letterboxed to, as in danet track."""

    tile: list[int] | None = None
    """Height and width in pixels of overlapping tiles into which larger frames are cut, as in danet track."""

    overlap: float = DEFAULT_OVERLAP
    """Minimum overlap of neighbouring tiles, as a fraction of their side, 0 to 0.9."""

    tile_every: int = DEFAULT_TILE_EVERY
    """With tile: every so many frames of a video are searched completely, as in danet track."""

    polarity: Literal["auto", "white", "black"] = "auto"
    """white: hot is bright. black: hot is dark. auto decides on the first frames of each source."""

    batch: int = 1
    """Batch size: images that go through the network at once."""

    device: str = "auto"
    """cpu, cuda, cuda:N or N (the number of a GPU); auto uses a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the network, as in danet track."""

    deploy: bool = True
    """Run the fused network; false runs the network as it was trained, for comparison."""

    threads: int | None = None
    """CPU threads of the network; by default all cores that the process may use."""

    max_pixels: int = 1 << 26
    """Maximum number of pixels of an image: larger ones are refused before they are decoded."""

    quiet: bool = False
    """Print only errors and warnings."""

    json: str | None = None
    """Also write the thresholds, and the false alarms of the footage with their scores, to this file."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or without footage."""
        check_values(
            self, ["false_alarms_per_hour"], "be positive", lambda value: 0 < value < float("inf"), prefix="--"
        )
        check_values(self, ["fps"], "be positive", lambda value: 0 < value < float("inf"), prefix="--")
        check_values(self, ["iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        check_tile_options(self.tile, self.overlap)
        if self.tile is None and self.tile_every != DEFAULT_TILE_EVERY:
            raise UserError("--tile_every: needs --tile")
        counts = ["hits", "window", "batch", "threads", "max_pixels", "tile_every"]
        check_values(self, counts, "be at least 1", lambda value: value >= 1, prefix="--")
        if not self.negatives:
            raise UserError("--negatives: none given; name videos, or folders of videos, that show no targets")
        if (self.hits is None) != (self.window is None):
            raise UserError("--hits and --window must be given together; give both, or none")
        if self.hits is not None and self.window is not None and self.hits > self.window:
            raise UserError(f"--hits must be at most --window ({self.window}), got {self.hits}")
        check_values(
            self, ["window"], f"be at most {MAX_WINDOW_FRAMES}", lambda value: value <= MAX_WINDOW_FRAMES, prefix="--"
        )


def calibrate(options: CalibrateOptions) -> int:
    """Chooses the score and the M of N of alarms from footage without targets, and stores them in the weights.

    The footage is tracked as by ``danet track``. The thresholds are the most sensitive ones for which the footage
    shows, with 95 % confidence, at most ``options.false_alarms_per_hour``. They are written to the metadata of a
    weights file, from which ``danet track``, ``detect``, ``evaluate`` and ``export`` take them.

    Exit code: 0; 1 if frames of the footage are missing; 2 for invalid input.
    """
    options.check()
    from danet.calibration.choice import CANDIDATES, choose_alarm, choose_detection_score
    from danet.calibration.footage import watch
    from danet.checkpoint import SHIPPED, add_metadata
    from danet.inference.calibrated_thresholds import CalibratedThresholds
    from danet.inference.frame_run import load_detector
    from danet.tracking.alarm_options import AlarmOptions, calibrated_settings
    from danet.tracking.tracker_options import TrackerOptions

    out = _choose_path(options)
    tracker, pause = TrackerOptions(), AlarmOptions().end
    detector = load_detector(options, {"score_threshold": tracker.low_score, "iou_threshold": options.iou})
    sources = _open(options)
    if options.positives is not None:
        from danet.calibration.positives import read_positives

        positives = read_positives(options.positives, detector.reported_classes)
    if not options.quiet:
        print(f"negatives: {len(sources)} sources; alarms of {', '.join(map(printable, detector.reported_classes))}")
    fixed = None if options.hits is None or options.window is None else (options.hits, options.window)
    candidates = CANDIDATES if fixed is None else (fixed,)
    totals = [source.total for source in sources]
    total = None if None in totals else sum(count or 0 for count in totals)
    with count_items("calibrate", total, "frames", quiet=options.quiet) as show_count:
        footage = watch(
            detector,
            sources,
            candidates,
            batch=options.batch,
            tile_every=options.tile_every,
            show_count=show_count,
        )

    choices = choose_alarm(footage, options.false_alarms_per_hour, candidates)
    chosen = choices[0]
    thresholds = CalibratedThresholds(
        detection_score=choose_detection_score(footage, options.false_alarms_per_hour, pause=pause),
        alarm_score=chosen.score,
        hits=chosen.hits,
        window=chosen.window,
        classes=tuple(detector.reported_classes),
        requested_per_hour=options.false_alarms_per_hour,
        hours=chosen.hours,
        false_alarms=chosen.false_alarms,
        at_most_per_hour=chosen.at_most_per_hour,
        settings=calibrated_settings(
            iou=detector.iou_threshold,
            input_size=detector.input_size,
            polarity=options.polarity,
            tiles=(options.tile, options.overlap, options.tile_every),
            tracker=tracker,
        ),
    )
    single = footage.count_single(thresholds.detection_score, pause=pause)
    recall: dict[str, Any] = {}
    if options.positives is not None:
        from danet.calibration.positives import measure

        recall = measure(detector, positives, thresholds, fps=options.fps, batch=options.batch, quiet=options.quiet)
    add_metadata(options.weights or SHIPPED, out, thresholds.to_metadata())
    if options.json is not None:
        write_json(options.json, _report(footage, choices, thresholds, single, recall))
    if not options.quiet:
        _print(footage, choices, thresholds, single, recall)
    if not thresholds.supports_request:
        print(f"danet calibrate: warning: {_shortage(thresholds)}", file=sys.stderr)
    if not options.quiet:
        print(f"  {printable(out)}")
    troubles = [source for source in sources if source.trouble is not None]
    return int(bool(troubles))


def _choose_path(options: CalibrateOptions) -> Path:
    """The weights file to write.

    Raises:
        UserError: ``options.weights`` is no weights file, or the file to write exists already or cannot be written.
    """
    from danet.checkpoint import FORMAT, SHIPPED, load_tensors
    from danet.inference.loading import is_onnx

    source = Path(options.weights or SHIPPED)
    if is_onnx(source):
        raise UserError(
            f"{source}: the thresholds of an ONNX file are fixed; calibrate the weights and export them again"
        )
    load_tensors(source, FORMAT)
    folder = Path() if options.weights is None else source.parent  # a name of weights in the package has no folder
    out = folder / f"{source.stem}-calibrated.safetensors" if options.out is None else Path(options.out)
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"--out {out}: a weights file ends in .safetensors")
    check_new_file(out, overwrite=options.overwrite)
    check_folder(out.parent)
    cli.check_outputs([out, options.json])
    return out


def _open(options: CalibrateOptions) -> "list[ImageFiles | Video]":
    """The sources of the footage.

    Raises:
        UserError: a source cannot be opened, does not end, or is given twice.
    """
    from danet.data.frame_sources import ImageFiles, open_sources
    from danet.data.video import Video

    sources = open_sources(options.negatives, max_pixels=options.max_pixels)
    known: set[str] = set()
    for name in (str(path) for source in sources for path in getattr(source, "paths", [source.name])):
        file = name if "://" in name else os.path.realpath(name)
        if file in known:
            raise UserError(f"--negatives: {name} is given twice, and would count as footage twice")
        known.add(file)
    for source in sources:
        if isinstance(source, Video) and source.live:
            raise UserError(f"--negatives: {source.name} is a camera or a stream, which does not end; record it first")
        if isinstance(source, ImageFiles):
            source.check()
    return sources


def _shortage(thresholds: "CalibratedThresholds") -> str:
    from danet.calibration.rates import hours_needed
    from danet.inference.calibrated_thresholds import show_hours, show_rate

    return (
        f"the footage is too short to show at most {thresholds.requested_per_hour:g} false alarms per hour: alarms can "
        f"begin in {show_hours(thresholds.hours)} of it, which shows at most {show_rate(thresholds.at_most_per_hour)} "
        "with 95 % confidence; "
        f"at least {show_hours(hours_needed(thresholds.requested_per_hour))} without false alarms are needed"
    )


def _print(
    footage: "Footage",
    choices: "Sequence[AlarmChoice]",
    thresholds: "CalibratedThresholds",
    single: int,
    recall: dict[str, Any],
) -> None:
    from danet.inference.calibrated_thresholds import show_hours, show_rate

    print(f"footage: {footage.frames} frames, {show_hours(footage.hours)}")
    for choice in sorted(choices, key=lambda each: each.window):
        is_chosen = (choice.hits, choice.window) == (thresholds.hits, thresholds.window)
        print(
            f"alarms after {choice.hits} of {choice.window} frames: score {choice.score:g}, false alarms "
            f"{choice.false_alarms} in {show_hours(choice.hours)} in which they can begin, at most "
            f"{show_rate(choice.at_most_per_hour)} per hour with 95 % confidence{' (chosen)' if is_chosen else ''}"
        )
    print(
        f"single frames (danet detect): score {thresholds.detection_score:g}, false alarms {single}, counted once if "
        "they follow each other within 2 s"
    )
    worst = footage.tracks[thresholds.hits, thresholds.window][:SHOWN_FALSE_ALARMS]
    for alarm in worst:
        print(f"  highest scores: {alarm.score:.3f} in {printable(alarm.file)} at {alarm.seconds:.1f} s")
    for line in recall.get("lines", ()):
        print(line)


def _report(
    footage: "Footage",
    choices: "Sequence[AlarmChoice]",
    thresholds: "CalibratedThresholds",
    single: int,
    recall: dict[str, Any],
) -> dict[str, Any]:
    def rows(alarms: "Sequence[FalseAlarm]") -> list[dict[str, Any]]:
        return [alarm._asdict() for alarm in alarms]

    return {
        "thresholds": {**dataclasses.asdict(thresholds), "supports_request": thresholds.supports_request},
        "videos": footage.videos,
        "frames": footage.frames,
        "hours": footage.hours,
        "choices": [dataclasses.asdict(choice) for choice in choices],
        "single_frame_false_alarms": single,
        "highest_scores": [
            {"hits": hits, "window": window, "tracks": rows(found)} for (hits, window), found in footage.tracks.items()
        ],
        "positives": {name: value for name, value in recall.items() if name != "lines"} or None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    inputs = {"weights": shipped_names(), "negatives": (), "positives": ()}
    return cli.run(
        calibrate,
        CalibrateOptions,
        prog="danet calibrate",
        positionals=["weights"],
        inputs=inputs,
        page=PAGE,
        argv=argv,
    )


if __name__ == "__main__":
    raise SystemExit(main())
