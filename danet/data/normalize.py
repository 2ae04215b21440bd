"""Brings the range of any sensor's counts to the range that the network expects."""

from typing import NamedTuple

import cv2
import numpy as np

from danet.utils.image_io import percentiles

# Counts between the 1st and 99th percentile that are stretched to the network's range at least: an
# empty sky keeps its noise small instead of having it amplified.
MIN_RANGE_COUNTS = 64.0
# What is called dark, middle and bright; how many units from dark to bright; where units end.
PERCENTILES = (1.0, 50.0, 99.0)
RANGE_UNITS = 2.0
CLIP_UNITS = 8.0


class IntensityRange(NamedTuple):
    """Where an image's counts lie: what ``normalize`` subtracts and divides by."""

    median: float
    span: float
    """From the 1st to the 99th percentile, at least MIN_RANGE_COUNTS."""


def intensity_range(image: np.ndarray) -> IntensityRange:
    """The levels of a grey or colour image of uint8 or uint16."""
    low, median, high = percentiles(image, PERCENTILES)
    return IntensityRange(median, max(high - low, MIN_RANGE_COUNTS))


def normalize(image: np.ndarray, channels: int = 1, frame: IntensityRange | None = None) -> np.ndarray:
    """Robust scaling of one image to float32 ``[channels, H, W]``, the median at 0.

    The span from the 1st to the 99th percentile becomes 2 units (at least MIN_RANGE_COUNTS counts, for
    8-bit and 16-bit images alike), so that a 14-bit sensor and an 8-bit video look the same to the
    network; hotter and colder pixels keep their order up to 8 units. Our decision.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.
        channels: 1 or 3.
        frame: levels of the whole frame where ``image`` is a part of it. A piece of sky has other
            levels than the frame that it is cut from, and the network is to see it as part of that.
    """
    if channels == 1 and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif channels == 3 and image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    median, span = frame or intensity_range(image)
    counts = np.arange(256, dtype=np.float32) if image.dtype == np.uint8 else image.astype(np.float32)
    scaled: np.ndarray = (counts - np.float32(median)) * np.float32(RANGE_UNITS / span)
    np.clip(scaled, -CLIP_UNITS, CLIP_UNITS, out=scaled)
    if image.dtype == np.uint8:
        scaled = cv2.LUT(image, scaled)
    return scaled[None] if scaled.ndim == 2 else np.ascontiguousarray(scaled.transpose(2, 0, 1))
