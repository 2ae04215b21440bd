"""Options of training data: datasets, scales and augmentation.

Importing this module loads neither torch, numpy nor OpenCV, so that commands read their options without delay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from danet.utils.errors import UserError

Scale = Literal["small", "medium", "large"]
SCALES: tuple[Scale, ...] = ("small", "medium", "large")
EDGES = (14.0, 18.0)
"""Edges between the scales in pixels. With them, the Svanstrom videos have the paper's proportions of the scales."""


def check_scale_edges(edges: Sequence[float]) -> None:
    """Checks the edges between small, medium and large.

    Raises:
        UserError: unless the edges are two positive, finite, ascending numbers of pixels.
    """
    if not 0 < edges[0] < edges[1] < math.inf:
        raise UserError(f"scale_edges must be two positive numbers of pixels, the smaller first, got {tuple(edges)}")


@dataclass
class DataSource:
    """A COCO dataset that is a part of the training set.

    Example:
        >>> DataSource("train.json", weight=0.5, class_map={"uav": "drone"}).weight
        0.5
    """

    path: str
    """COCO json; a folder that contains annotations.json, exactly one json, or one for each split; or the data.yaml of
    a YOLO dataset."""

    weight: float = 1.0
    """Average number of times that an epoch shows each image of this dataset: with 0.5, an epoch shows half of them.
    If this is no integer, epochs show the next smaller or larger number of images, so that the average is right."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names of categories; boxes of a category that is renamed to "ignore" become ignore regions."""


@dataclass(frozen=True)
class Augmentation:
    """Options of the augmentation; the defaults suit 320 x 256 frames with targets of 3 to 60 pixels.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> Augmentation(crop=(128, 160), rotation=10).flip
        0.5
    """

    crop: tuple[int, int] | None = (256, 320)
    """Height and width of the training images in pixels; null keeps the size of each image."""

    around_target: float = 0.7
    """Probability of placing the crop so that it contains a random target; otherwise its position is random."""

    scale: tuple[float, float] = (0.6, 1.6)
    """Minimum and maximum magnification; its logarithm is uniformly distributed."""

    flip: float = 0.5
    """Probability of a left-right flip."""

    rotation: float = 0.0
    """Maximum rotation in degrees, at most 45; off by default, because boxes of rotated targets are less tight."""

    min_visible: float = 0.5
    """A box that keeps less than this fraction of its area in the crop becomes an ignore region."""

    min_size: float = 2.0
    """A box that is scaled to less than this size, sqrt(width * height) in pixels, becomes an ignore region."""

    copy_paste: float = 0.25
    """Probability of pasting one or two objects (targets or distractors) of a random training image."""

    paste_scale: tuple[float, float] = (0.7, 1.3)
    """Minimum and maximum magnification of a pasted object."""

    paste_contrast: tuple[float, float] = (1.0, 1.0)
    """Minimum and maximum factor of the contrast of a pasted object; its logarithm is uniformly distributed."""

    paste_visibility: float = 3.0
    """An object is pasted only where its contrast is at least this many standard deviations of the pixels there."""

    past_dropout: float = 0.2
    """With `model.lags`: probability of training on an image without its earlier frames, as on a single image."""

    target_contrast: float = 0.25
    """Probability for each box of changing the contrast of its object against its surroundings."""

    polarity: float = 0.05
    """Probability of swapping black-hot and white-hot."""

    gamma: float = 0.3
    """Maximum absolute logarithm of the gamma exponent; 0 is off."""

    contrast: tuple[float, float] = (0.6, 1.3)
    """Range of a random gain about the image's median, which can make the contrast very low or saturate pixels."""

    shading: float = 0.15
    """Maximum amplitude of added low-frequency shading, in spans; 0 is off."""

    blur: float = 0.2
    """Probability of a Gaussian blur with a standard deviation of 0.3 to 1 pixel."""

    noise: float = 0.03
    """Maximum standard deviation of added sensor noise, in spans; half of the images get noise; 0 is off."""

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise UserError(f"crop must be two positive numbers of pixels, got {self.crop}")
        for name in ("scale", "contrast", "paste_scale", "paste_contrast"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UserError(f"{name} must be two positive numbers, the smaller first, got {(low, high)}")
        for name in (
            "around_target",
            "flip",
            "copy_paste",
            "past_dropout",
            "target_contrast",
            "polarity",
            "blur",
            "min_visible",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("gamma", "shading", "noise", "min_size", "paste_visibility"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.rotation <= 45:
            raise UserError(f"rotation must lie between 0 and 45 degrees, got {self.rotation}")

    @classmethod
    def off(cls, **changes: Any) -> "Augmentation":
        """Returns options that change nothing, except for ``changes``.

        Example:
            >>> Augmentation.off(flip=1.0).noise
            0.0
        """
        nothing: dict[str, Any] = {item.name: 0.0 for item in fields(cls) if not item.name.startswith("paste_")}
        return cls(**{**nothing, "crop": None, "scale": (1.0, 1.0), "contrast": (1.0, 1.0), **changes})
