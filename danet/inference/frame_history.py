"""Keeps the latest frames of a video for networks that compare a frame with earlier ones (``model.lags``)."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from danet.data.temporal import LAG_TOLERANCE, choose_frames
from danet.data.video import Frame

MAX_FRAMES = 64
"""Maximum number of frames that are kept."""


class FrameHistory:
    """The latest frames of a source, as far back as the largest lag.

    Args:
        lags: seconds.

    Example:
        >>> history = FrameHistory([0.5])
        >>> frames = [Frame("a.mp4", i, np.zeros((64, 96), np.uint8), time=0.1 * i) for i in range(8)]
        >>> [list(history.add(frame)) for frame in frames]
        [[], [], [], [], [0.5], [0.5], [0.5], [0.5]]
    """

    def __init__(self, lags: Sequence[float]) -> None:
        self._lags = list(lags)
        # Frames that follow each other more closely than this are not needed: another one is near enough to each lag.
        self._interval = max((LAG_TOLERANCE * min(self._lags), max(self._lags) / MAX_FRAMES) if self._lags else (0.0,))
        self._frames: deque[tuple[float, np.ndarray]] = deque(maxlen=MAX_FRAMES)

    def add(self, frame: Frame) -> dict[float, np.ndarray]:
        """Adds the next frame, and returns the earlier frames for each lag; a lag without a frame is left out.

        If the time of the source jumps back, as after a camera was opened again, all earlier frames are forgotten. The
        frames of a folder of images have no time and so no past.
        """
        if not self._lags or frame.time is None:
            return {}
        if self._frames and frame.time < self._frames[-1][0]:
            self._frames.clear()
        chosen = choose_frames([(frame.time - time, image) for time, image in self._frames], self._lags)
        if not self._frames or frame.time - self._frames[-1][0] >= self._interval:
            self._frames.append((frame.time, frame.image))
        return chosen
