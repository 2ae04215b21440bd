"""The thresholds that ``danet calibrate`` stores in a weights file; importing this loads no torch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danet.utils.errors import UserError

KEY = "calibration"
"""Name in the metadata of a weights file."""

MAX_WINDOW_FRAMES = 10_000
"""Maximum of ``window`` in metadata and in ``danet calibrate``."""


@dataclass(frozen=True)
class CalibratedThresholds:
    """Thresholds that were chosen on footage without targets, and the rate of false alarms that was measured there.

    Example:
        >>> thresholds = CalibratedThresholds(0.7, 0.6, 6, 10, ("drone",), 1.0, 3.5, 0, 0.86)
        >>> CalibratedThresholds.from_metadata(thresholds.to_metadata()) == thresholds
        True
        >>> thresholds.supports_request
        True
    """

    detection_score: float
    """Score threshold of detections in single frames, as ``danet detect`` uses it."""
    alarm_score: float
    """Smallest score of a track that raises an alarm, as ``danet track`` uses it."""
    hits: int
    """A track raises an alarm once it was detected in this many of the last ``window`` frames."""
    window: int
    """See ``hits``."""
    classes: tuple[str, ...]
    """Names of the classes whose alarms were counted."""
    requested_per_hour: float
    """False alarms per hour that the user asked for."""
    hours: float
    """Duration of the footage in which alarms can begin."""
    false_alarms: int
    """Number of tracks that raised an alarm in the footage, at these thresholds."""
    at_most_per_hour: float
    """Upper limit of the rate of false alarms, with 95 % confidence."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the detector and of the tracker with which this was measured."""

    def __post_init__(self) -> None:
        scores = (self.detection_score, self.alarm_score)
        rates = (self.requested_per_hour, self.hours, self.at_most_per_hour)
        counts = (self.hits, self.window, self.false_alarms)
        is_valid = (
            all(_is_number(score) and 0 <= score <= 1 for score in scores)
            and all(_is_number(rate) and rate > 0 for rate in rates)
            and all(type(count) is int for count in counts)
            and 1 <= self.hits <= self.window <= MAX_WINDOW_FRAMES
            and self.false_alarms >= 0
            and len(self.classes) > 0
            and all(isinstance(name, str) for name in self.classes)
            and isinstance(self.settings, Mapping)
        )
        if not is_valid:
            raise ValueError("CalibratedThresholds: a value is out of range")

    @property
    def supports_request(self) -> bool:
        """Whether the footage was long enough to support the rate that was asked for."""
        return self.at_most_per_hour <= self.requested_per_hour

    def differing_settings(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of the settings that differ from those with which the thresholds were chosen.

        Example:
            >>> thresholds = CalibratedThresholds(0.7, 0.6, 6, 10, ("drone",), 1.0, 3.5, 0, 0.86, {"iou": 0.5})
            >>> thresholds.differing_settings({"iou": 0.4})
            ['iou']
        """
        return [name for name, value in settings.items() if self.settings.get(name, value) != value]

    def describe_request(self) -> str:
        """What was asked for, for the output of commands that use ``detection_score``."""
        return f"of the weights, which danet calibrate chose for {self.requested_per_hour:g} false alarms per hour"

    def describe_measurement(self) -> str:
        """What was measured at ``alarm_score``, ``hits`` and ``window``."""
        return (
            f"danet calibrate counted {self.false_alarms} false alarms in {show_hours(self.hours)} without targets, "
            f"at most {show_rate(self.at_most_per_hour)} per hour with 95 % confidence"
        )

    def to_metadata(self) -> dict[str, Any]:
        """The metadata from which ``from_metadata`` reads the same values; JSON can represent it."""
        return {KEY: {**dataclasses.asdict(self), "classes": list(self.classes)}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "CalibratedThresholds | None":
        """Reads the thresholds from the metadata of a weights file; None if it has none.

        Raises:
            UserError: the thresholds in the metadata are not valid.

        Example:
            >>> CalibratedThresholds.from_metadata({}) is None
            True
        """
        if KEY not in metadata:
            return None
        try:
            stored = metadata[KEY]
            return cls(**{**stored, "classes": tuple(stored["classes"])})
        except (KeyError, TypeError, ValueError):
            raise UserError(f"metadata: {KEY} is not as danet calibrate writes it; calibrate again") from None


def show_hours(hours: float) -> str:
    """A duration with three digits in a unit that suits it.

    Example:
        >>> show_hours(3.5), show_hours(0.25), show_hours(0.005)
        ('3.5 h', '15 min', '18 s')
    """
    unit, seconds = ("h", 3600) if hours >= 1 else ("min", 60) if hours >= 1 / 60 else ("s", 1)
    return f"{hours * 3600 / seconds:.3g} {unit}"


def show_rate(per_hour: float) -> str:
    """A rate with three digits, and without an exponent.

    Example:
        >>> show_rate(0.8612), show_rate(3594.9)
        ('0.861', '3595')
    """
    return f"{per_hour:.3g}" if per_hour < 1000 else f"{per_hour:.0f}"


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
