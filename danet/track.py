"""``danet track``: follows targets through videos, cameras and streams; writes tracks and videos, raises alarms."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from danet.inference.frame_options import FrameOptions
from danet.tracking.alarm_options import AlarmOptions, calibrated_settings
from danet.tracking.tracker_options import TrackerOptions
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.help_page import HelpPage
from danet.utils.printable import printable
from danet.utils.shipped_weights import shipped_names

if TYPE_CHECKING:
    from danet.data.frame_sources import ImageFiles
    from danet.data.video import Frame, Video
    from danet.inference.detector import Detector
    from danet.inference.frame_run import Source, SourceFiles
    from danet.tracking.tracks import Tracks

PAGE = HelpPage(
    {
        "input": ["sources", "weights", "input_size", "tile", "polarity"],
        "tracks": ["classes", "tracker.high_score", "tracker.confirm", "tracker.max_gap", "tracker.camera_motion"],
        "distance": ["target_size", "focal_px"],
        "alarms": ["alarm.hits", "alarm.window", "alarm.score", "alarm.classes", "alarm.zones", "webhook", "mqtt"],
        "results": [
            "out",
            "overwrite",
            "save_images",
            "save_mot",
            "save_jsonl",
            "save_csv",
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
        "danet track video.mp4": "follow drones with the detector of the package; the results go to runs/track",
        "danet track rtsp://camera/live --save_images false": "a stream; follow runs/track/tracks.jsonl while it grows",
        "danet track 0 --alarm.hits 8 --webhook http://host/alarm": "a camera; alarms after 8 of the last 10 frames",
    },
)


@dataclass
class TrackOptions(FrameOptions):
    """Options of ``danet track``."""

    out: str = "runs/track"
    """Folder for the results and config.yaml. If it holds the results of an earlier run, they go to runs/track-2,
    runs/track-3 and so on."""

    tracker: TrackerOptions = field(default_factory=TrackerOptions)
    """Options of the tracker."""

    alarm: AlarmOptions = field(default_factory=AlarmOptions)
    """When a track raises an alarm."""

    webhook: str | None = None
    """URL to which the start and the end of every alarm are sent as JSON (HTTP POST)."""

    mqtt: str | None = None
    """MQTT broker to which they are sent: HOST, HOST:PORT or mqtt://USER:PASSWORD@HOST:PORT; needs paho-mqtt."""

    mqtt_topic: str = "danet/alarms"
    """Topic of the messages to the broker."""

    target_size: float | None = None
    """Width of the target in metres; with `focal_px`, tracks.jsonl states the distance of each track."""

    focal_px: float | None = None
    """Focal length of the camera in pixels of the frame."""

    save_mot: bool = True
    """Write a text in the format of the MOT Challenge for each source."""

    save_jsonl: bool = True
    """Write tracks.jsonl: one JSON object per frame, as soon as the frame is done."""

    save_csv: bool = True
    """Write tracks.csv: one row per track and frame, with time stamps."""

    show_trails: bool = True
    """Draw the path of each target over the last frames."""


def track(options: TrackOptions) -> int:
    """Follows targets through videos, cameras and streams; a folder of images counts as one video.

    The annotated videos, ``tracks.jsonl``, ``tracks.csv``, ``alarms.jsonl`` with a picture of each alarm in ``alarms``,
    and for each source a text in the format of the MOT Challenge are written to ``options.out``. The tables grow under
    their own names, each frame as soon as it is done. After Ctrl-C, SIGTERM and SIGHUP, and when the disk is full, all
    files are complete up to that frame; after kill -9 the tables are.

    Exit code: 0; 1 if frames of a source are missing or a file could not be written; 2 for invalid input; 130 after
    Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    options.check()
    cli.check_out(options)
    from danet.data.frame_sources import ImageFiles
    from danet.inference.frame_run import FrameRun, print_files, print_speed
    from danet.tracking.alarm_output import AlarmOutput
    from danet.tracking.alarms import Alarms
    from danet.tracking.annotated_tracks import AnnotatedTracks
    from danet.tracking.delivery import mqtt, webhook
    from danet.tracking.distance import DistanceEstimator
    from danet.tracking.track_files import TrackFiles
    from danet.tracking.tracker import Tracker

    if (options.target_size is None) != (options.focal_px is None):
        raise UserError("--target_size and --focal_px must be given together; give both, or none")
    estimator = None
    if options.target_size is not None and options.focal_px is not None:
        estimator = DistanceEstimator(options.target_size, options.focal_px)
    alarms = Alarms(options.alarm)  # reads the zones, so that errors in them appear before the weights are loaded

    def check(detector: "Detector", sources: "Sequence[ImageFiles | Video]") -> None:
        alarms.options = options.alarm.complete(detector.calibration, detector.reported_classes)
        sizes = itertools.chain.from_iterable(source.frame_sizes() for source in sources)
        alarms.check(detector.classes, detector.reported_classes, sizes)

    deliveries = [] if options.webhook is None else [webhook(options.webhook)]
    deliveries += [] if options.mqtt is None else [mqtt(options.mqtt, options.mqtt_topic)]
    run = FrameRun(
        options,
        prog="danet track",
        tables={
            "config.yaml": True,
            "tracks.jsonl": options.save_jsonl,
            "tracks.csv": options.save_csv,
            "alarms.jsonl": True,
            "alarms": True,
        },
        thresholds={"iou_threshold": options.iou},
        annotate=functools.partial(AnnotatedTracks, show_trails=options.show_trails),
        texts=options.save_mot,
        check=check,
    )
    tracker = Tracker(options.tracker)
    files = TrackFiles(
        run.out / "tracks.csv" if options.save_csv else None, run.out / "tracks.jsonl" if options.save_jsonl else None
    )
    alarm_output = AlarmOutput(run.out, deliveries)
    # config.yaml states the values that are used.
    run.options = dataclasses.replace(options, alarm=alarms.options)
    if not options.quiet:
        settings = calibrated_settings(
            iou=run.detector.iou_threshold,
            input_size=run.detector.input_size,
            polarity=options.polarity,
            tiles=(options.tile, options.overlap, options.tile_every),
            tracker=options.tracker,
        )
        print(alarms.options.describe(options.alarm, run.detector.calibration, settings))

    @contextlib.contextmanager
    def results(source: "Source", own: "SourceFiles") -> Iterator[Callable]:
        # The images of a folder are numbered by their places in it, of which some may be unreadable.
        places = {str(path): i for i, path in enumerate(source.paths)} if isinstance(source, ImageFiles) else {}

        def add(frame: "Frame", tracks: "Tracks") -> None:
            numbered = frame._replace(index=places.get(frame.name, frame.index))
            files.add(numbered, tracks, [] if estimator is None else list(map(estimator.estimate, tracks)))
            alarm_output.add(alarms.update_frame(numbered, tracks, source=own.text.stem))

        with files.source(own.text if options.save_mot else None):
            try:
                yield add
            finally:
                alarm_output.add(alarms.finish())  # also after a stop signal

    run.process(results, [files, alarm_output], tracker=tracker)
    figures = {
        "targets": dict(files.ids),
        "boxes": files.boxes,
        "cuts": tracker.cuts,
        "alarms": alarms.started,
        "alarm_options": dataclasses.asdict(alarms.options),
        **run.figures(),
        "tracking_seconds": run.stream.tracking_seconds,
    }

    def print_summary() -> None:
        by_class = ", ".join(f"{printable(name)} {count}" for name, count in files.ids.most_common())
        count = f"targets: {sum(files.ids.values())}{f' ({by_class})' if by_class else ''}"
        cuts = f", cuts: {tracker.cuts}" if tracker.cuts else ""
        print(f"frames: {run.frames}, {count}, alarms: {alarms.started}{cuts}")
        parts = {"reading": "reading", "network": "network and decoding", "tracking": "tracking"}
        print_speed(figures, parts | {"writing": "drawing and writing"})
        print_files(run.output.paths, [*files.paths, alarm_output.path])

    return run.finish(figures, print_summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    inputs = {"sources": (), "weights": shipped_names(), "alarm.zones": ()}
    return cli.run(
        track, TrackOptions, prog="danet track", positionals=["sources"], inputs=inputs, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
