"""Scale buckets: a target is small, medium or large by the square root of its box's area (our decision)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.data_options import EDGES, SCALES, Augmentation, Scale, check_scale_edges

if TYPE_CHECKING:  # OpenCV and torch are not needed to measure boxes
    from danet.data.transforms import Annotated

__all__ = ["EDGES", "SCALES", "Scale", "ScaleBucket", "box_sizes", "check_scale_edges"]


class ScaleBucket:
    """The part of a training set on which the teacher of one scale is trained (section 3.2.1 of the paper).

    Our decisions: The size of a target is measured after augmentation, as the network sees it. Targets of other scales
    become ignore regions, so that they are neither positive nor background. An image is used if it has no target (its
    distractors help at every scale), or if the augmentation can scale one of its targets into the bucket; it is then
    scaled accordingly.

    Paper: https://doi.org/10.1145/3581783.3612146

    Args:
        scale: small (below the first edge), medium, or large (at least the second edge).
        edges: the two edges, pixels of sqrt(width * height).
        target: name of the class that is divided by size; boxes of other classes do not change.

    Attributes:
        low, high: the bucket holds sizes with low <= size < high, in pixels.

    Example:
        >>> bucket = ScaleBucket("medium", EDGES, "drone")
        >>> str(bucket), bucket.contains(np.array([[0, 0, 15, 15], [0, 0, 40, 40]])).tolist()
        ('medium (from 14 and below 18 pixels)', [True, False])
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
        """Returns whether to train on an image; ``magnification`` is the range that the augmentation allows."""
        targets = _is(record.names, self.target) & ~record.ignore
        sizes = box_sizes(record.boxes[targets])
        return not targets.any() or bool(self._reached(sizes, magnification).any())

    def ignore_other_scales(self, record: ImageRecord) -> ImageRecord:
        """Returns the record with its targets of other scales, measured without augmentation, as ignore regions."""
        other = _is(record.names, self.target) & ~self.contains(record.boxes)
        return dataclasses.replace(record, ignore=record.ignore | other)

    def contains(self, boxes: np.ndarray) -> np.ndarray:
        """Returns which boxes ``[M, 4]`` have this scale, bool ``[M]``."""
        return self._reached(box_sizes(boxes), (1.0, 1.0))

    def limit_scale(
        self, frame: "Annotated", targets: np.ndarray, options: Augmentation, rng: np.random.Generator
    ) -> Augmentation:
        """Limits the magnification to values that scale a randomly chosen target into the bucket.

        Args:
            frame: image with M boxes.
            targets: bool ``[M]``, which boxes are targets.
            options: the augmentation; returned unchanged if no allowed magnification fits any target.
            rng: source of randomness.
        """
        sizes = box_sizes(frame.boxes[targets & ~frame.ignore])
        sizes = sizes[self._reached(sizes, options.scale)]
        if not sizes.size:
            return options
        size = float(rng.choice(sizes))
        low, high = np.clip([self.low / size, self.high / size], *options.scale).tolist()
        return dataclasses.replace(options, scale=(low, high))

    def _reached(self, sizes: np.ndarray, magnification: tuple[float, float]) -> np.ndarray:
        """Returns for which sizes some magnification of the range leads into the bucket."""
        return (sizes * magnification[0] < self.high) & (sizes * magnification[1] >= self.low)


def _is(names: Sequence[str], target: str) -> np.ndarray:
    return np.array([name == target for name in names], bool)


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """Returns the sizes sqrt(width * height) of boxes ``[M, 4]`` in pixels, float64 ``[M]``."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64))
