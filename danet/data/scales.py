"""Scale buckets: targets are small, medium or large by the square root of their box's area (our decision)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.transforms import Annotated, Augmentation
from danet.utils.errors import UserError

Scale = Literal["small", "medium", "large"]
SCALES: tuple[Scale, ...] = ("small", "medium", "large")
EDGES = (14.0, 18.0)
"""In pixels; on the Svanstrom infrared videos they give the paper's proportions of the three scales."""


def check_scale_edges(edges: Sequence[float]) -> None:
    """Raises UserError unless the edges between small, medium and large are two ascending numbers of pixels."""
    if not 0 < edges[0] < edges[1] < math.inf:
        raise UserError(f"scale_edges must be two positive numbers of pixels, the smaller first, got {tuple(edges)}")


class ScaleBucket:
    """The part of a training set that the teacher of one scale learns (section 3.2.1).

    Sizes count as the network sees them, after augmentation; what is decided here about other boxes is our decision:
    targets of another scale become ignore regions, neither taught nor taken for background. An image takes part if a
    magnification that the augmentation allows brings one of its targets into the bucket, and is then magnified by one
    of those; of the images without a target, all take part, since distractors are to be told apart at every scale.

    Args:
        scale: small (below the first edge), medium, or large (from the second edge on).
        edges: pixels of sqrt(width * height).
        target: name of the class that is sorted by size; boxes of other classes stay as they are.
    """

    def __init__(self, scale: Scale, edges: Sequence[float], target: str) -> None:
        bounds = (0.0, *edges, math.inf)
        index = SCALES.index(scale)
        self.scale = scale
        self.low, self.high = bounds[index], bounds[index + 1]
        self.target = target

    def __str__(self) -> str:
        below = "" if self.high == math.inf else f" and below {self.high:g}"
        return f"{self.scale} (from {self.low:g}{below} pixels)"

    def accepts(self, record: ImageRecord, magnification: tuple[float, float] = (1.0, 1.0)) -> bool:
        """Whether an image takes part, given the smallest and the largest magnification."""
        targets = _is(record.names, self.target) & ~record.ignore
        sizes = _size(record.boxes[targets])
        return not targets.any() or bool(self._reached(sizes, magnification).any())

    def ignore_other_scales(self, record: ImageRecord) -> ImageRecord:
        """The image with its targets of other scales as ignore regions, at its own size."""
        other = _is(record.names, self.target) & ~self.contains(record.boxes)
        return dataclasses.replace(record, ignore=record.ignore | other)

    def contains(self, boxes: np.ndarray) -> np.ndarray:
        """Which of ``[M, 4]`` boxes have this scale, bool ``[M]``."""
        return self._reached(_size(boxes), (1.0, 1.0))

    def limit_scale(
        self, frame: Annotated, targets: np.ndarray, options: Augmentation, rng: np.random.Generator
    ) -> Augmentation:
        """``options`` with those magnifications that bring a random one of ``targets`` (bool ``[M]``) into the bucket.

        As they are for a frame in which that is possible for none.
        """
        sizes = _size(frame.boxes[targets & ~frame.ignore])
        sizes = sizes[self._reached(sizes, options.scale)]
        if not sizes.size:
            return options
        size = float(rng.choice(sizes))
        low, high = np.clip([self.low / size, self.high / size], *options.scale).tolist()
        return dataclasses.replace(options, scale=(low, high))

    def _reached(self, sizes: np.ndarray, magnification: tuple[float, float]) -> np.ndarray:
        return (sizes * magnification[0] < self.high) & (sizes * magnification[1] >= self.low)


def _is(names: Sequence[str], target: str) -> np.ndarray:
    return np.array([name == target for name in names], bool)


def _size(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64))
