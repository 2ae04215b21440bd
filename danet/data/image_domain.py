"""The images that a network was trained for: their size, their pixel scale and their polarity."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from danet.data.coco_dataset import ImageRecord
from danet.data.transforms import Augmentation
from danet.utils.errors import UserError

KEY = "trained_for"
"""Name in the metadata of a weights file."""

MAX_SIDE_PIXELS = 1 << 16
"""Maximum height and width that metadata may state."""

BOTH_POLARITIES_PROBABILITY = 0.25
"""Training that swaps black-hot and white-hot at least this often makes a network for both polarities."""

OUTLIERS_PER_END = 0.05
"""Fraction of the training images at either end of the sizes that does not count."""

TRUSTED_PART = 1 / 3
"""Part of the logarithmic range of magnifications in training at which detection is taken to be as good."""

MIN_SCALE_RANGE = 1.05
"""Images that are larger or smaller by less than this factor are never scaled: resampling costs more than it gains."""

TrainedPolarity = Literal["white", "any"]


@dataclass(frozen=True)
class ImageDomain:
    """The sizes, the pixel scale and the polarity of the images that a network was trained for.

    A detector uses it to fit the frames of another camera to what the network knows. ``danet train`` stores it in the
    metadata of the weights.

    Args:
        smallest, largest: (height, width) in pixels of the smallest and the largest training images by area, without
            the twentieth at either end, which may be outliers.
        pixel_scale: minimum and maximum magnification of such an image at which the network detects as well.
        polarity: "white" if targets have the polarity of the training images, which is taken to be white-hot (hot is
            bright); "any" if training swapped the polarity often.

    Example:
        >>> domain = ImageDomain((256, 320), (256, 320), pixel_scale=(0.8, 1.25))
        >>> domain.fitted_size(512, 640), domain.fitted_size(256, 336)
        ((256, 320), None)
    """

    smallest: tuple[int, int]
    largest: tuple[int, int]
    pixel_scale: tuple[float, float] = (1.0, 1.0)
    polarity: TrainedPolarity = "white"

    def fitted_size(self, height: int, width: int) -> tuple[int, int] | None:
        """The (height, width) in pixels to which an image is scaled for the network.

        It then has the area of a training image, at the middle of ``pixel_scale``. None if the image needs no scaling:
        its magnification, measured by the area, lies in ``pixel_scale``.
        """
        nearest = min(max(height * width, math.prod(self.smallest)), math.prod(self.largest))
        magnification = math.sqrt(height * width / nearest)
        low, high = self.pixel_scale
        if low <= magnification <= high:
            return None
        factor = math.sqrt(low * high) / magnification
        return max(1, round(height * factor)), max(1, round(width * factor))

    def __str__(self) -> str:
        sizes = [f"{width} x {height}" for height, width in (self.smallest, self.largest)]
        return sizes[0] if sizes[0] == sizes[1] else " to ".join(sizes)

    def to_metadata(self) -> dict[str, Any]:
        """The metadata from which ``from_metadata`` reads the same domain; JSON can represent it."""
        sizes = [list(self.smallest), list(self.largest)]
        return {KEY: {"image_sizes": sizes, "pixel_scale": list(self.pixel_scale), "polarity": self.polarity}}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "ImageDomain | None":
        """Reads the domain from the metadata of a weights file; None if it has none.

        Raises:
            UserError: the domain in the metadata is not valid.

        Example:
            >>> domain = ImageDomain((256, 320), (256, 320))
            >>> ImageDomain.from_metadata(domain.to_metadata()) == domain
            True
        """
        if KEY not in metadata:
            return None
        try:
            stored = metadata[KEY]
            sizes = [(int(height), int(width)) for height, width in stored["image_sizes"]]
            low, high = (float(value) for value in stored["pixel_scale"])
            valid = len(sizes) == 2 and all(1 <= side <= MAX_SIDE_PIXELS for size in sizes for side in size)
            if valid and 0 < low <= high < math.inf and stored["polarity"] in ("white", "any"):
                smallest, largest = sorted(sizes, key=math.prod)
                return cls(smallest, largest, (low, high), stored["polarity"])
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
        raise UserError(f"metadata: {KEY} must state image_sizes, pixel_scale and polarity as danet train writes them")

    @classmethod
    def of_training(cls, records: Iterable[ImageRecord], augmentation: Augmentation) -> "ImageDomain":
        """The domain of a network that is trained on ``records`` with ``augmentation``.

        Crops do not count: they have the pixel scale of the whole image. Of the magnifications of the augmentation only
        the inner third (on a logarithmic scale) is trusted. The evidence: the weights ``danet_s``, trained with 0.85 to
        1.2, find 96 to 100 of 100 drones at 0.7 to 1.05, 90 at 1.1 and 74 at 1.2 (``experiments/other_cameras.py``, on
        the tuning recordings, which are neither trained on nor used for validation).
        """
        sizes = sorted(((record.height, record.width) for record in records), key=math.prod)
        outliers = int(len(sizes) * OUTLIERS_PER_END)
        polarity: TrainedPolarity = "any" if augmentation.polarity >= BOTH_POLARITIES_PROBABILITY else "white"
        middle = math.sqrt(math.prod(augmentation.scale))
        width = max((augmentation.scale[1] / middle) ** TRUSTED_PART, MIN_SCALE_RANGE)
        pixel_scale = round(middle / width, 3), round(middle * width, 3)
        return cls(sizes[outliers], sizes[-1 - outliers], pixel_scale, polarity)
