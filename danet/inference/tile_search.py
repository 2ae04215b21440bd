"""Chooses the tiles in which each frame of a video is searched: the whole frame now and then, else around targets."""

from typing import Protocol

import numpy as np

from danet.boxes import Detections, centre_distance, size
from danet.inference.preprocessing import Placement
from danet.inference.tile_options import DEFAULT_TILE_EVERY

MIN_REACH_PIXELS = 32.0
REACH_SIZES = 3.0
"""A detection continues a target of the frame before if their centres are at most so many pixels and so many sizes of
the target apart, whichever is more."""


class FollowedTargets(Protocol):
    """What knows where the targets are: a ``danet.tracking.tracker.Tracker``.

    Attributes:
        cuts: number of cuts between shots so far.
        followed_boxes: float ``[M, 4]`` in pixels of the last frame.
    """

    cuts: int

    @property
    def followed_boxes(self) -> np.ndarray: ...


class TileSearch:
    """Chooses the tiles of the frames of one source.

    Every ``every`` frames, and after a cut, the whole frame is searched; in the frames between, crops around the
    targets. Without a tracker, the targets are the detections of the last frame, and the places where a target has been
    lost since the last complete search.

    Args:
        every: 1 searches every frame completely.
        tracker: follows the targets.

    Example:
        >>> import torch
        >>> from danet.inference.tiling import Tiling
        >>> tiling = Tiling((64, 64))
        >>> place = Placement(200, 300, (1.0, 1.0), (0.0, 0.0), tiling, tuple(tiling.grid(200, 300)))
        >>> found = Detections(torch.tensor([[100.0, 20, 104, 23]]), torch.tensor([0.9]), torch.tensor([0]))
        >>> search, counts = TileSearch(3), []
        >>> for _ in range(4):
        ...     counts.append(len(search.choose(place, (200, 300)).tiles))
        ...     search.update(found)
        >>> counts
        [24, 1, 1, 24]
    """

    def __init__(self, every: int = DEFAULT_TILE_EVERY, tracker: FollowedTargets | None = None) -> None:
        self._every, self._tracker = every, tracker
        self._cuts = 0
        self._boxes = np.zeros((0, 4))
        self._age = 0
        """Frames since the last complete search; 0 before one."""

    def choose(self, place: Placement, input_size: tuple[int, int]) -> Placement:
        """The place of the next frame in the network's input, (height, width) ``input_size``, with its tiles."""
        if place.tiling is None:
            return place
        if self._tracker is not None and self._tracker.cuts != self._cuts:  # also at the first frame of later sources
            self._cuts, self._age = self._tracker.cuts, 0
        is_complete = self._age == 0
        self._age = (self._age + 1) % self._every
        if is_complete:
            self._boxes = np.zeros((0, 4))
            return place._replace(tiles=tuple(place.tiling.grid(*input_size)))
        boxes = self._boxes if self._tracker is None else self._tracker.followed_boxes
        return place._replace(tiles=tuple(place.tiling.crops(place.to_input(boxes), *input_size)))

    def update(self, found: Detections) -> None:
        """Takes the detections of the frame."""
        if self._tracker is not None:
            return
        boxes = found.boxes.numpy().astype(np.float64)
        reach = np.maximum(MIN_REACH_PIXELS, REACH_SIZES * size(self._boxes))
        is_lost = ~(centre_distance(self._boxes[:, None], boxes[None]) <= reach[:, None]).any(1)
        self._boxes = np.concatenate([boxes, self._boxes[is_lost]])
