"""Options of alarms; importing this loads neither torch nor OpenCV."""

from dataclasses import dataclass
from typing import Any

from danet.utils.errors import UserError, check_values
from danet.utils.files import read_yaml


@dataclass
class AlarmOptions:
    """When a track raises an alarm. Raises UserError for a value out of range.

    Example:
        >>> AlarmOptions(hits=5, window=8).score
        0.5
    """

    hits: int = 6
    """A track raises an alarm once it was detected in this many of the last `window` frames."""

    window: int = 10
    """See `hits`."""

    score: float = 0.5
    """Smallest score of the track, 0 to 1; it is the mean over the last 15 frames."""

    classes: list[str] | None = None
    """Names of the classes that raise alarms; by default all that are reported."""

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
        if self.hits > self.window:
            raise UserError(f"--alarm.hits must be at most --alarm.window ({self.window}), got {self.hits}")


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
