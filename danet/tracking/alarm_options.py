"""Options of alarms; importing this loads neither torch nor OpenCV."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.tracking.tracker_options import TrackerOptions
from danet.utils.errors import UserError, check_values
from danet.utils.files import read_yaml

DEFAULT_HITS, DEFAULT_WINDOW, DEFAULT_SCORE = 6, 10, 0.5
"""Alarms of weights that danet calibrate has not calibrated."""


@dataclass
class AlarmOptions:
    """When a track raises an alarm. Raises UserError for a value out of range.

    Example:
        >>> AlarmOptions(hits=5, window=8).complete().score
        0.5
    """

    hits: int | None = None
    """A track raises an alarm once it was detected in this many of the last `window` frames; by default 6, or the value
    that danet calibrate has stored in the weights."""

    window: int | None = None
    """See `hits`; by default 10, or the value in the weights."""

    score: float | None = None
    """Smallest score of the track, 0 to 1; it is the mean over the last 15 frames. By default 0.5, or the value in the
    weights."""

    classes: list[str] | None = None
    """Names of the classes that raise alarms; by default all that are reported, or those for which the weights were
    calibrated."""

    zones: str | None = None
    """JSON or YAML file with a list of polygons, each a list of points [x, y] in pixels, or an object with `name` and
    `points`. Only tracks whose centre lies in one of them raise alarms; by default all do."""

    displacement: float = 0.0
    """Smallest distance in pixels between the first and the present place of the track; the motion of the camera is not
    part of it."""

    end: float = 2.0
    """Seconds without the track after which the alarm ends."""

    def __post_init__(self) -> None:
        check_values(self, ["hits", "window"], "be at least 1", lambda value: value >= 1, prefix="--alarm.")
        check_values(self, ["score"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--alarm.")
        check_values(self, ["displacement", "end"], "be 0 or more", lambda value: value >= 0, prefix="--alarm.")
        if self.classes is not None and not self.classes:
            raise UserError("--alarm.classes must name at least one class, got none; leave it out for all classes")
        if self.hits is not None and self.window is not None and self.hits > self.window:
            raise UserError(f"--alarm.hits must be at most --alarm.window ({self.window}), got {self.hits}")

    def complete(
        self, calibration: CalibratedThresholds | None = None, reported: Sequence[str] | None = None
    ) -> "CompleteOptions":
        """Sets the values that are None: to those of weights that were calibrated, or else to the defaults.

        Args:
            calibration: of the weights; None if they were not calibrated.
            reported: names of the classes that are reported. ``calibration`` is used only if alarms of one of its
                classes can occur.

        Raises:
            UserError: ``hits`` was given and ``window`` was not, or the other way round, and they do not fit together.

        Example:
            >>> calibration = CalibratedThresholds(0.7, 0.6, 8, 12, ("drone",), 1.0, 3.5, 0, 0.86)
            >>> complete = AlarmOptions(score=0.9).complete(calibration, ["drone", "bird"])
            >>> complete.hits, complete.window, complete.score, complete.classes
            (8, 12, 0.9, ['drone'])
        """
        classes, is_used = self.classes, calibration is not None
        if calibration is not None and reported is not None and classes is None:
            classes = [name for name in reported if name in calibration.classes] or None
            is_used = classes is not None
        elif calibration is not None and classes is not None:
            is_used = not set(calibration.classes).isdisjoint(classes)
        defaults = (DEFAULT_HITS, DEFAULT_WINDOW, DEFAULT_SCORE)
        if calibration is not None and is_used:
            defaults = (calibration.hits, calibration.window, calibration.alarm_score)
        given = (self.hits, self.window, self.score)
        hits, window, score = (default if mine is None else mine for mine, default in zip(given, defaults, strict=True))
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return CompleteOptions(**{**values, "hits": hits, "window": window, "score": score, "classes": classes})


@dataclass
class CompleteOptions(AlarmOptions):
    """Options without open values, see ``AlarmOptions.complete``."""

    hits: int = DEFAULT_HITS
    window: int = DEFAULT_WINDOW
    score: float = DEFAULT_SCORE

    def describe(
        self, given: AlarmOptions, calibration: CalibratedThresholds | None, settings: Mapping[str, Any] | None = None
    ) -> str:
        """One line that states the values and where they come from, for the output of a command.

        Args:
            given: the options from which these were completed.
            calibration: of the weights.
            settings: options of the detector and of the tracker, see ``calibrated_settings``.

        Example:
            >>> given = AlarmOptions(score=0.7)
            >>> given.complete().describe(given, None)
            'alarms: score from 0.7 on (option), detections in 6 of 10 frames (default)'
        """
        is_used = calibration is not None and not set(calibration.classes).isdisjoint(self.classes or ())
        other = "weights" if is_used else "default"
        score_origin = other if given.score is None else "option"
        frames_origin = "option" if given.hits is not None and given.window is not None else other
        if (given.hits is None) != (given.window is None):
            frames_origin = f"option and {other}"
        text = f"alarms: score from {self.score:g} on ({score_origin}), "
        text += f"detections in {self.hits} of {self.window} frames ({frames_origin})"
        if calibration is None or not is_used:
            return text
        differing = [f"alarm.{name}" for name in ("hits", "window", "score") if getattr(given, name) is not None]
        differing += [] if set(self.classes or ()) <= set(calibration.classes) else ["alarm.classes"]
        # An alarm that ends earlier can begin again, while the track continues.
        differing += ["alarm.end"] if self.end < AlarmOptions.end else []
        differing += calibration.differing_settings(settings or {})
        if differing:
            return f"{text}; the rate that danet calibrate measured does not hold with your --{', --'.join(differing)}"
        return f"{text}; {calibration.describe_measurement()}"


def calibrated_settings(
    *,
    iou: float,
    input_size: Sequence[int] | str | None,
    polarity: str,
    tiles: tuple[Sequence[int] | None, float, int],
    tracker: TrackerOptions,
) -> dict[str, Any]:
    """The options on which the rate of false alarms depends, beside those of alarms, for ``CalibratedThresholds``.

    Args:
        iou, input_size, polarity: of the detector.
        tiles: the options ``tile``, ``overlap`` and ``tile_every``.
        tracker: of the tracker.

    Example:
        >>> settings = calibrated_settings(
        ...     iou=0.5, input_size=(256, 320), polarity="auto", tiles=(None, 0.2, 10), tracker=TrackerOptions()
        ... )
        >>> settings["input_size"], settings["tracker.confirm"]
        ([256, 320], 4.0)
    """
    size = input_size if input_size is None or isinstance(input_size, str) else list(input_size)
    of_tracker = {f"tracker.{name}": value for name, value in dataclasses.asdict(tracker).items()}
    tile, overlap, tile_every = tiles
    of_tiles = {"tile": None if tile is None else list(tile), "overlap": overlap, "tile_every": tile_every}
    return {"iou": iou, "input_size": size, "polarity": polarity, **of_tiles, **of_tracker}


def read_zones(path: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Reads the polygons of a zones file: name and points (x, y) of each.

    Raises:
        UserError: the file cannot be read, or holds something else than polygons of at least three points.

    Example:
        >>> path = getfixture("tmp_path") / "zones.json"
        >>> _ = path.write_text('[[[0, 0], [9, 0], [9, 9]], {"name": "gate", "points": [[0, 0], [5, 0], [5, 5]]}]')
        >>> [name for name, points in read_zones(str(path))]
        ['zone 1', 'gate']
    """
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: zones must be a list of polygons, got {type(content).__name__}; see --alarm.zones")
    return [_read_zone(path, number, item) for number, item in enumerate(content, 1)]


def _read_zone(path: str, number: int, item: Any) -> tuple[str, list[tuple[float, float]]]:
    name = str(item.get("name", f"zone {number}")) if isinstance(item, dict) else f"zone {number}"
    points = item.get("points") if isinstance(item, dict) else item
    if not isinstance(points, list) or len(points) < 3 or not all(_is_point(point) for point in points):
        raise UserError(f"{path}: {name} must be a list of at least three points [x, y], got {str(points)[:80]}")
    return name, [(float(x), float(y)) for x, y in points]


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e6 for x in point)
    )
