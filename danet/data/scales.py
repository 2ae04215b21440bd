"""Size ranges of targets: small, medium or large by the square root of the area of the box (our decision)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.data_options import EDGES, SCALES, Augmentation, Scale, check_scale_edges

if TYPE_CHECKING:  # OpenCV and torch are not needed to measure boxes
    from danet.data.transforms import AnnotatedImage

__all__ = ["EDGES", "SCALES", "Scale", "SizeRange", "box_sizes", "check_scale_edges"]


class SizeRange:
    """The target sizes of one scale; it selects the training data of the teacher of that scale.

    Section 3.2.1 of the paper (https://doi.org/10.1145/3581783.3612146). Our decisions: Sizes are measured after
    augmentation, as the network sees them. Targets of other sizes become ignore regions, so that they are neither
    positive nor background. An image without targets is used, because its distractors help at every scale. An image
    with targets is used if the augmentation can scale one of them into the range, and is then scaled accordingly.

    Args:
        scale: small (below the first edge), medium, or large (at least the second edge).
        edges: the two edges, pixels of sqrt(width * height).
        target: name of the class that is divided by size; boxes of other classes do not change.

    Attributes:
        low, high: sizes with low <= size < high are in the range, in pixels.

    Example:
        >>> medium = SizeRange("medium", EDGES, "drone")
        >>> str(medium), medium.contains(np.array([[0, 0, 15, 15], [0, 0, 40, 40]])).tolist()
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
        """Returns whether to use an image that the augmentation may scale by ``magnification`` (lowest, highest)."""
        sizes = box_sizes(record.boxes[_is(record.names, self.target) & ~record.ignore])
        return not len(sizes) or bool(self._can_reach(sizes, magnification).any())

    def ignore_other_scales(self, record: ImageRecord) -> ImageRecord:
        """Returns a copy whose targets of other sizes, measured without augmentation, are ignore regions."""
        other = _is(record.names, self.target) & ~self.contains(record.boxes)
        return dataclasses.replace(record, ignore=record.ignore | other)

    def contains(self, boxes: np.ndarray) -> np.ndarray:
        """Returns which boxes ``[M, 4]`` have a size in the range, bool ``[M]``."""
        return self._can_reach(box_sizes(boxes), (1.0, 1.0))

    def limit_scale(
        self, frame: "AnnotatedImage", targets: np.ndarray, options: Augmentation, rng: np.random.Generator
    ) -> Augmentation:
        """Limits the magnification to values that scale a randomly chosen target into the range.

        Args:
            frame: image with M boxes.
            targets: bool ``[M]``, which boxes are targets.
            options: the augmentation; returned unchanged if no allowed magnification fits any target.
            rng: source of randomness.
        """
        sizes = box_sizes(frame.boxes[targets & ~frame.ignore])
        sizes = sizes[self._can_reach(sizes, options.scale)]
        if not sizes.size:
            return options
        size = float(rng.choice(sizes))
        low, high = np.clip([self.low / size, self.high / size], *options.scale).tolist()
        return dataclasses.replace(options, scale=(low, high))

    def _can_reach(self, sizes: np.ndarray, magnification: tuple[float, float]) -> np.ndarray:
        """Returns which sizes some magnification between the given two scales into the range, bool ``[M]``."""
        return (sizes * magnification[0] < self.high) & (sizes * magnification[1] >= self.low)


def _is(names: Sequence[str], target: str) -> np.ndarray:
    return np.array([name == target for name in names], bool)


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """Returns the sizes sqrt(width * height) of boxes ``[M, 4]`` in pixels, float64 ``[M]``."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64))
