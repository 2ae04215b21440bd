"""The tracks of one frame: what a tracker returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import torch

from danet.boxes import Detections
from danet.utils.drawing import PALETTE, SHADOW_COLOR, draw_boxes, enlarge
from danet.utils.image_io import to_display


class EarlierBox(NamedTuple):
    """A detection of a target before it was confirmed."""

    frames_ago: int
    """Number of frames between it and the frame in which the target was confirmed, at least 1."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels."""
    score: float
    """Of the detection."""


@dataclass(frozen=True)
class Track:
    """One target in one frame.

    Example:
        >>> track = Track(3, (10.0, 10.0, 14.0, 12.0), 0.8, 0, "drone", (25.0, 0.0), True, 12, 0.44)
        >>> track.centre
        (12.0, 11.0)
    """

    id: int
    """Number of the target, from 1; it is never used again."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels: that of the detection, or the predicted one if there is none in this frame."""
    score: float
    """In [0, 1]: mean score of its class over the last frames; a frame without a detection counts as 0."""
    label: int
    """Index of its class, which is decided over the whole track."""
    name: str
    """Name of its class."""
    velocity: tuple[float, float]
    """(x, y) in pixels per second; the motion of the camera is not part of it."""
    is_detected: bool
    """Whether a detection of this frame belongs to it; if not, the box is predicted."""
    hits: int
    """Number of detections so far."""
    age: float
    """Seconds since its first detection."""
    trail: tuple[tuple[float, float], ...] = ()
    """Its last centres (x, y) in pixels of this frame, the oldest first."""
    displacement: float = 0.0
    """Distance in pixels between its first and its present centre, relative to the scene: the motion of the camera is
    not part of it."""

    earlier: tuple["EarlierBox", ...] = ()
    """In the frame in which the target is reported first: its detections in the frames before it was confirmed, the
    oldest first. Those before its first strong detection have low scores."""

    width_error: float = 0.0
    """Standard deviation of the width of its box in the Kalman filter, relative to the width."""

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


class Tracks(Sequence[Track]):
    """The tracks of one frame, by ascending id.

    Args:
        items: the tracks.
        classes: names of all classes of the detector.

    Example:
        >>> one = Track(3, (10.0, 10.0, 14.0, 12.0), 0.8, 0, "drone", (25.0, 0.0), True, 12, 0.44)
        >>> tracks = Tracks([one], ["drone"])
        >>> len(tracks), tracks.ids, tracks
        (1, [3], Tracks(1: 3 drone 0.80 at (10.0, 10.0, 14.0, 12.0)))
        >>> tracks.plot(np.zeros((48, 64), np.uint8)).shape
        (48, 64, 3)
    """

    def __init__(self, items: Sequence[Track] = (), classes: Sequence[str] = ()) -> None:
        self.items = list(items)
        self.classes = list(classes)

    @property
    def ids(self) -> list[int]:
        """The number of each target."""
        return [track.id for track in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Track]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Track: ...
    @overload
    def __getitem__(self, index: slice) -> "Tracks": ...
    def __getitem__(self, index: int | slice) -> "Track | Tracks":
        return Tracks(self.items[index], self.classes) if isinstance(index, slice) else self.items[index]

    def __repr__(self) -> str:
        shown = (f"{t.id} {t.name} {t.score:.2f} at ({', '.join(f'{x:.1f}' for x in t.box)})" for t in self.items)
        return f"Tracks({len(self)}{': ' if self.items else ''}{', '.join(shown)})"

    def to_detections(self) -> Detections:
        """The boxes, scores and labels as ``Detections``, by descending score.

        Example:
            >>> len(Tracks().to_detections())
            0
        """
        ordered = sorted(self.items, key=lambda track: -track.score)
        boxes = torch.tensor([track.box for track in ordered], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([track.score for track in ordered], dtype=torch.float32)
        labels = torch.tensor([track.label for track in ordered], dtype=torch.int64)
        return Detections(boxes, scores, labels, self.classes)

    def to_dict(self) -> list[dict[str, Any]]:
        """One dict for each track, which JSON can represent; the trail is left out.

        Example:
            >>> one = Track(3, (1.0, 2.0, 5.0, 4.0), 0.8, 0, "drone", (25.0, 0.0), True, 12, 0.44)
            >>> Tracks([one]).to_dict()[0]["box"]
            [1.0, 2.0, 5.0, 4.0]
        """
        return [
            {
                "id": track.id,
                "class": track.name,
                "score": round(track.score, 4),
                "box": [round(side, 2) for side in track.box],
                "velocity": [round(speed, 2) for speed in track.velocity],
                "detected": track.is_detected,
                "hits": track.hits,
                "age": round(track.age, 3),
            }
            for track in self.items
        ]

    def plot(self, image: np.ndarray, *, scores: bool = True, upscale: float = 1.0, trails: bool = True) -> np.ndarray:
        """Draws boxes with class and number, and trails, into a copy of the frame.

        Args:
            image: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16.
            scores: draw the score beside the class.
            upscale: enlargement of the frame.
            trails: draw the path of each target over the last frames.

        Returns:
            uint8 BGR ``[H * upscale, W * upscale, 3]``.
        """
        canvas = enlarge(to_display(image), upscale)
        if trails:
            for track in self.items:
                points = np.round(np.array(track.trail, np.float64).reshape(-1, 2) * upscale * 8).astype(np.int32)
                for color, width in ((SHADOW_COLOR, 3), (PALETTE[track.label % len(PALETTE)], 1)):
                    cv2.polylines(canvas, [points], False, color, width, cv2.LINE_AA, shift=3)
        boxes = np.array([track.box for track in self.items], np.float32).reshape(-1, 4) * upscale
        return draw_boxes(
            canvas,
            boxes,
            [track.score for track in self.items] if scores else None,
            list(range(len(self))),
            [f"{track.name} {track.id}" for track in self.items],
            [PALETTE[track.label % len(PALETTE)] for track in self.items] or None,
        )
