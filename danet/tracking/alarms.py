"""Alarms: a track that persists becomes one event at its start and one at its end."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from danet.data.video import Frame
from danet.tracking.alarm_options import AlarmOptions, CompleteOptions, read_zones
from danet.tracking.tracker import DEFAULT_INTERVAL_S
from danet.tracking.tracks import Track, Tracks
from danet.utils.drawing import enlarge
from danet.utils.errors import UserError
from danet.utils.image_io import to_display

CROP_CONTEXT = 3.0
"""Side of a crop, as a multiple of the longer side of the box."""
MIN_CROP_PIXELS = 32
CROP_SIDE_PIXELS = 128
"""Smaller crops are enlarged to about this size."""


@dataclass(frozen=True)
class AlarmEvent:
    """The start or the end of an alarm.

    Example:
        >>> event = AlarmEvent("start", 1, "a.mp4", 12, 0.4, 3, "drone", 0.8, (1.0, 2.0, 5.0, 4.0), None, 0.4)
        >>> event.to_dict()["event"], event.to_dict()["track"]
        ('start', 3)
    """

    kind: str
    """start or end."""
    alarm: int
    """Number of the alarm, from 1; start and end have the same."""
    file: str
    """Name of the video, without passwords, or of the image."""
    frame: int
    time: float
    """Seconds from the start of the source."""
    track: int
    name: str
    """Class of the track."""
    score: float
    """Score of the track; in the end event, its largest score."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels; in the end event, the last box of the track."""
    zone: str | None
    """Name of the zone; None without zones."""
    duration: float
    """Seconds since the first detection of the track."""
    crop: np.ndarray | None = None
    """Picture of the target where its score was highest so far, uint8 BGR; None without an image."""
    source: str | None = None
    """Name of the source in the results, such as that of the folder of an image; None if it is not known."""

    def to_dict(self) -> dict[str, Any]:
        """All fields but the crop, as JSON can represent them."""
        return {
            "event": self.kind,
            "alarm": self.alarm,
            "file": self.file,
            "source": self.source,
            "frame": self.frame,
            "time": round(self.time, 3),
            "track": self.track,
            "class": self.name,
            "score": round(self.score, 4),
            "box": [round(side, 2) for side in self.box],
            "zone": self.zone,
            "duration": round(self.duration, 3),
        }


@dataclass
class _Watched:
    """A track that has been seen lately."""

    track: Track
    last_seen: float
    hits: deque
    zone: str | None = None
    alarm: int = 0
    best_score: float = -1.0
    best_track_score: float = 0.0
    qualified_score: float | None = None
    """Largest score of the track in the frames in which it met all conditions but that of the score; None if it met
    them in none. It raises an alarm if this is at least ``AlarmOptions.score``."""
    crop: np.ndarray | None = None
    touched: bool = field(default=True)


class Alarms:
    """Decides from the tracks of each frame which alarms start and end.

    Args:
        options: see ``AlarmOptions``; values that are None get their defaults.

    Attributes:
        started: number of alarms so far.

    Raises:
        UserError: the zones cannot be read.

    Example:
        >>> alarms = Alarms(AlarmOptions(hits=2, window=3))
        >>> track = Track(1, (10.0, 10.0, 14.0, 12.0), 0.8, 0, "drone", (0.0, 0.0), True, 3, 0.1)
        >>> [len(alarms.update(Tracks([track]), seconds=t / 30)) for t in range(3)]
        [0, 1, 0]
        >>> [event.kind for event in alarms.finish()]
        ['end']
    """

    def __init__(self, options: AlarmOptions | None = None) -> None:
        self.options: CompleteOptions = (options or AlarmOptions()).complete()
        self.started = 0
        self._numbers = itertools.count(1)
        self._zones = [] if self.options.zones is None else read_zones(self.options.zones)
        self._polygons = [np.array(points, np.float32).reshape(-1, 1, 2) for _, points in self._zones]
        self._watched: dict[int, _Watched] = {}
        self._place: tuple[str, str | None, int, float] = ("", None, 0, 0.0)

    def check(self, classes: Sequence[str], reported: Sequence[str], sizes: Iterable[tuple[int, int]]) -> None:
        """Checks that every class and every zone of the options can occur.

        Args:
            classes: all classes of the detector.
            reported: those of which the tracks are reported.
            sizes: (width, height) of the frames in pixels; a zone must overlap the frames of one size at least.

        Raises:
            UserError: a class is unknown or not reported, or a zone lies outside of all frames.

        Example:
            >>> Alarms(AlarmOptions(classes=["plane"])).check(["drone", "bird"], ["drone"], [(64, 48)])
            Traceback (most recent call last):
            danet.utils.errors.UserError: --alarm.classes: 'plane' is no class of the model (drone, bird)
        """
        for name in self.options.classes or ():
            if name not in classes:
                raise UserError(f"--alarm.classes: {name!r} is no class of the model ({', '.join(classes)})")
            if name not in reported:
                raise UserError(
                    f"--alarm.classes: {name!r} is not reported and can raise no alarm; reported are "
                    f"{', '.join(reported)}, and --classes changes that"
                )
        # Look at the next size only while a zone is outside, because the sizes of a folder of images are read from it.
        outside = [(name, polygon) for (name, _), polygon in zip(self._zones, self._polygons, strict=True)]
        checked: set[tuple[int, int]] = set()
        remaining = iter(sizes)
        while outside and (size := next(remaining, None)) is not None:
            if size not in checked:
                outside = [(name, polygon) for name, polygon in outside if not _overlaps(polygon, size)]
                checked.add(size)
        if outside and checked:
            shown = ", ".join(f"{width} x {height}" for width, height in sorted(checked)[:3])
            raise UserError(
                f"{self.options.zones}: {outside[0][0]} must overlap the frames ({shown} pixels), but lies outside; "
                "give its points in pixels of the frames"
            )

    def update(
        self,
        tracks: Tracks,
        *,
        seconds: float,
        file: str = "",
        source: str | None = None,
        frame: int = 0,
        image: np.ndarray | None = None,
    ) -> list[AlarmEvent]:
        """Takes the tracks of the next frame; returns the events of this frame.

        Args:
            tracks: of the frame.
            seconds: time of the frame.
            file: name of the video or image.
            source: name of the source in the results.
            frame: number of the frame.
            image: its pixels, for the crops.
        """
        self._place = (file, source, frame, seconds)
        events = []
        for watched in self._watched.values():
            watched.touched = False
        for track in tracks:
            watched = self._watched.setdefault(track.id, _Watched(track, seconds, deque(maxlen=self.options.window)))
            watched.touched, watched.track = True, track
            if track.is_detected:
                watched.last_seen = seconds
                self._keep_best(watched, track, image)
            zone = self._find_zone(track)
            watched.hits.append(track.is_detected and (zone is not None or not self._zones))
            watched.zone = zone or watched.zone
            if self._qualifies(watched):
                watched.qualified_score = max(watched.qualified_score or 0.0, track.score)
                if watched.alarm == 0 and track.score >= self.options.score:
                    watched.alarm = next(self._numbers)
                    self.started += 1
                    events.append(self._event("start", watched, track.score))
        for number, watched in list(self._watched.items()):
            if not watched.touched:
                watched.hits.append(False)
            if seconds - watched.last_seen > self.options.end or seconds < watched.last_seen:
                events += self._forget(number)
        return events

    def update_frame(self, frame: Frame, tracks: Tracks, *, source: str | None = None) -> list[AlarmEvent]:
        """Like ``update``, for a frame of a source; images without time count DEFAULT_INTERVAL_S each."""
        seconds = frame.index * DEFAULT_INTERVAL_S if frame.time is None else frame.time
        return self.update(
            tracks, seconds=seconds, file=frame.name, source=source, frame=frame.index, image=frame.image
        )

    def finish(self) -> list[AlarmEvent]:
        """Ends all alarms, as at the end of a source."""
        return [event for number in list(self._watched) for event in self._forget(number)]

    def _forget(self, number: int) -> list[AlarmEvent]:
        """Stops to watch a track; returns the end of its alarm if it has raised one."""
        watched = self._watched.pop(number)
        return [self._event("end", watched, watched.best_track_score)] if watched.alarm else []

    def _qualifies(self, watched: _Watched) -> bool:
        """Whether the track meets all conditions but that of the score."""
        options, track = self.options, watched.track
        return (
            sum(watched.hits) >= options.hits
            and (options.classes is None or track.name in options.classes)
            and track.displacement >= options.displacement
        )

    def _find_zone(self, track: Track) -> str | None:
        for (name, _), polygon in zip(self._zones, self._polygons, strict=True):
            if cv2.pointPolygonTest(polygon, track.centre, False) >= 0:
                return name
        return None

    def _keep_best(self, watched: _Watched, track: Track, image: np.ndarray | None) -> None:
        watched.best_track_score = max(watched.best_track_score, track.score)
        if image is not None and track.score > watched.best_score:
            watched.best_score, watched.crop = track.score, crop_around(image, track.box)

    def _event(self, kind: str, watched: _Watched, score: float) -> AlarmEvent:
        track, (file, source, frame, seconds) = watched.track, self._place
        return AlarmEvent(
            kind=kind,
            alarm=watched.alarm,
            file=file,
            frame=frame,
            time=seconds,
            track=track.id,
            name=track.name,
            score=score,
            box=track.box,
            zone=watched.zone,
            duration=track.age,
            crop=watched.crop,
            source=source,
        )


def _overlaps(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a polygon ``[P, 1, 2]`` covers a pixel of a frame of a size (width, height)."""
    mask = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return bool(mask.any())


def crop_around(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A square picture of a box with its surroundings, enlarged to about CROP_SIDE_PIXELS.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16.
        box: (x0, y0, x1, y1) in pixels.

    Returns:
        uint8 BGR; smaller where the square reaches over the edge of the image.

    Example:
        >>> crop_around(np.zeros((100, 100), np.uint8), (50, 50, 54, 52)).shape
        (128, 128, 3)
    """
    x0, y0, x1, y1 = box
    half = max(MIN_CROP_PIXELS, CROP_CONTEXT * max(x1 - x0, y1 - y0)) / 2
    height, width = image.shape[:2]
    x, y = min(max((x0 + x1) / 2, 0), width - 1), min(max((y0 + y1) / 2, 0), height - 1)
    left, top = max(0, round(x - half)), max(0, round(y - half))
    part = image[top : max(top + 1, round(y + half)), left : max(left + 1, round(x + half))]
    return enlarge(to_display(part), max(1, round(CROP_SIDE_PIXELS / max(part.shape[:2]))))
