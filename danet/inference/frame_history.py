"""Keeps the latest frames of a video for networks that compare a frame with earlier ones (``model.lags``)."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from danet.data.temporal import LAG_TOLERANCE, choose_frames, to_grey
from danet.data.video import Frame

FRAMES_PER_LAG = 32
"""Frames that are kept for a lag follow each other at intervals of at least the lag divided by this number."""


class FrameHistory:
    """The latest frames of a source: for each lag a queue of frames, the first of which are about as old as the lag.

    Args:
        lags: seconds.

    Attributes:
        missing: lags for which no frame has been found, although the source has been running for longer, as with a low
            frame rate. For frames without a time, these are all lags.

    Example:
        >>> history = FrameHistory([0.5])
        >>> frames = [Frame("a.mp4", i, np.zeros((64, 96), np.uint8), time=0.1 * i) for i in range(8)]
        >>> [list(history.add(frame)) for frame in frames]
        [[], [], [], [], [0.5], [0.5], [0.5], [0.5]]
    """

    def __init__(self, lags: Sequence[float]) -> None:
        # Each lag has its own queue: with one queue, a long lag would leave too few frames for a short one.
        self._frames: dict[float, deque[tuple[float, np.ndarray]]] = {lag: deque() for lag in lags}
        self._found: set[float] = set()
        self._last: Frame | None = None
        self._start_s = 0.0
        self.missing: list[float] = []

    def add(self, frame: Frame) -> dict[float, np.ndarray]:
        """Adds the next frame, and returns the earlier frames for each lag, in grey; a lag without a frame is left out.

        All earlier frames are forgotten if the frame belongs to another source, or if the time of the source jumps
        back, as after a camera was opened again. The frames of a folder of images have no time and so no past.
        """
        if frame.time is None or not self._continues(frame):
            self._restart(frame)
        self._last = frame._replace(image=np.zeros((0, 0), np.uint8))
        if frame.time is None:
            self.missing = list(self._frames)
            return {}
        past: dict[float, np.ndarray] = {}
        kept: np.ndarray | None = None
        for lag, frames in self._frames.items():
            past |= choose_frames([(frame.time - time, image) for time, image in frames], [lag])
            if not frames or frame.time - frames[-1][0] >= lag / FRAMES_PER_LAG:
                kept = to_grey(frame.image) if kept is None else kept  # a third of the memory of a colour frame
                frames.append((frame.time, kept))
            # Drop a frame if the one after it is old enough: that one is nearer to the lag for all later frames.
            while len(frames) > 1 and frame.time - frames[1][0] >= lag:
                frames.popleft()
        self._found |= past.keys()
        age = frame.time - self._start_s
        self.missing = [lag for lag in self._frames if lag not in self._found and age > (1 + LAG_TOLERANCE) * lag]
        return past

    def _continues(self, frame: Frame) -> bool:
        """Whether a frame with a time follows the last one in the same source."""
        last = self._last
        if last is None or last.time is None or frame.time is None:
            return False
        return frame.name == last.name and frame.time >= last.time

    def _restart(self, frame: Frame) -> None:
        for frames in self._frames.values():
            frames.clear()
        self._found.clear()
        self._start_s = frame.time or 0.0
