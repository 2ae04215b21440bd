"""Finds the detections of a new target in the frames before its first strong detection."""

from collections import deque
from typing import NamedTuple

import numpy as np

from danet.tracking.camera_motion import Motion
from danet.tracking.kalman import KalmanFilter, to_measurements, warp

MAX_TRACED_FRAMES = 15
"""Frames that a target is traced back (our decision): half a second of video. A false target that stands still would
else get many more false boxes."""

Box = tuple[float, float, float, float]


class _Frame(NamedTuple):
    number: int
    elapsed: float
    """Seconds since the frame before."""
    motion: np.ndarray | None
    """float64 ``[2, 3]``: maps a pixel of the frame before to this frame; None for a still camera."""
    boxes: np.ndarray
    """float64 ``[K, 4]``: the detections that belong to no target."""
    scores: np.ndarray
    is_free: np.ndarray
    """bool ``[K]``: whether no other target has been traced back to the detection."""


class WeakDetections:
    """Remembers the detections of the last frames that belong to no target.

    A target begins with a strong detection, but the detector often finds it with low scores before. Once a target is
    confirmed, ``trace`` follows these detections backwards.

    Args:
        kalman: the filter of the tracker.
        gate: largest squared Mahalanobis distance, as of the tracker.
        frames: number of frames that are remembered.

    Example:
        >>> weak = WeakDetections(KalmanFilter(), gate=16.0, frames=64)
        >>> for number in (1, 2):
        ...     box = np.array([[10.0 + number, 20.0, 14.0 + number, 23.0]])
        ...     weak.add(number, 0.04, None, box, np.array([0.2]))
        >>> weak.add(3, 0.04, None, np.zeros((0, 4)), np.zeros(0))  # its strong detection belongs to a target
        >>> weak.trace(3, (13.0, 20.0, 17.0, 23.0))
        [(1, (11.0, 20.0, 15.0, 23.0), 0.2), (2, (12.0, 20.0, 16.0, 23.0), 0.2)]
    """

    def __init__(self, kalman: KalmanFilter, *, gate: float, frames: int) -> None:
        self._kalman, self._gate = kalman, gate
        self._frames: deque[_Frame] = deque(maxlen=frames)

    def clear(self) -> None:
        """Forgets all frames: at a cut, and at the begin of another source."""
        self._frames.clear()

    def add(self, number: int, elapsed: float, motion: Motion | None, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Adds a frame.

        Args:
            number: of the frame, one more than that of the frame before.
            elapsed: seconds since the frame before.
            motion: of the camera since the frame before; None if it stands still.
            boxes, scores: ``[K, 4]`` and ``[K]``, the detections that belong to no target.
        """
        matrix = None if motion is None else motion.matrix
        self._frames.append(_Frame(number, elapsed, matrix, boxes, scores, np.ones(len(scores), bool)))

    def trace(self, number: int, box: Box) -> list[tuple[int, Box, float]]:
        """The number, box and score of each earlier detection of a target, the oldest first.

        The Kalman filter follows the target from frame to frame, backwards in time. The first frame without a detection
        inside of the gate ends this, and MAX_TRACED_FRAMES.

        Args:
            number: of the frame with the first detection of the target.
            box: this detection.
        """
        frames = [frame for frame in self._frames if frame.number <= number]
        state = self._kalman.initiate(to_measurements(np.array([box])))
        found: list[tuple[int, Box, float]] = []
        pairs = list(zip(frames[:0:-1], frames[-2::-1], strict=True))
        for later, frame in pairs[:MAX_TRACED_FRAMES]:
            if later.motion is not None:
                state = warp(state, _inverse(later.motion))
            state = self._kalman.predict(state, later.elapsed)
            free = np.flatnonzero(frame.is_free)
            measurements = to_measurements(frame.boxes[free])
            centre, size = self._kalman.distances(state, measurements)
            cost = np.where((centre <= self._gate) & (size <= self._gate), centre + size, np.inf)[0]
            if not len(cost) or not np.isfinite(cost.min()):
                break
            best = int(cost.argmin())
            state = self._kalman.update(state, measurements[best : best + 1])
            index = int(free[best])
            frame.is_free[index] = False
            x0, y0, x1, y1 = (float(side) for side in frame.boxes[index])
            found.append((frame.number, (x0, y0, x1, y1), float(frame.scores[index])))
        return found[::-1]


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The motion backwards in time; that of a still camera if the matrix has no inverse."""
    linear = matrix[:, :2]
    if abs(np.linalg.det(linear)) < 1e-6:
        return np.eye(2, 3)
    inverse = np.linalg.inv(linear)
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])
