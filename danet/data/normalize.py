"""Normalizes images of 8-bit and 16-bit sensors to the range that the network expects."""

from typing import NamedTuple

import cv2
import numpy as np

from danet.utils.image_io import percentiles

PERCENTILES = (1.0, 50.0, 99.0)
"""Percentiles of an image that define its dark level, its median and its bright level."""
MIN_RANGE_COUNTS = 64.0
"""Minimum difference of the bright and the dark level in sensor counts: keeps the noise of an empty sky small."""
RANGE_UNITS = 2.0
"""Difference of the bright and the dark level in the normalized image."""
CLIP_UNITS = 8.0
"""Normalized values are clipped to +-CLIP_UNITS."""


class IntensityRange(NamedTuple):
    """The levels of an image, in counts, that ``normalize`` uses."""

    median: float
    span: float
    """Difference of the 99th and the 1st percentile, at least MIN_RANGE_COUNTS."""


def intensity_range(image: np.ndarray) -> IntensityRange:
    """Measures the median and the span of an image.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]``, uint8 or uint16.

    Example:
        >>> intensity_range(np.arange(200, dtype=np.uint8).reshape(10, 20))
        IntensityRange(median=100.0, span=196.0)
    """
    low, median, high = percentiles(image, PERCENTILES)
    return IntensityRange(median, max(high - low, MIN_RANGE_COUNTS))


def normalize(image: np.ndarray, channels: int = 1, intensities: IntensityRange | None = None) -> np.ndarray:
    """Scales an image robustly: ``(image - median) * RANGE_UNITS / span``, clipped to +-CLIP_UNITS.

    Median and span are percentiles of the image, so that a 14-bit sensor and an 8-bit video look the same to the
    network. Our decision.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.
        channels: channels of the result, 1 or 3.
        intensities: the range to use instead of the image's own. A crop needs that of its whole frame: a crop of
            empty sky would otherwise be stretched to full contrast.

    Returns:
        float32 ``[channels, H, W]``.

    Example:
        >>> image = np.arange(200, dtype=np.uint8).reshape(10, 20)
        >>> normalized = normalize(image)
        >>> normalized.shape, round(float(normalized.max()), 2)
        ((1, 10, 20), 1.01)
    """
    if channels == 1 and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif channels == 3 and image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    median, span = intensities or intensity_range(image)
    counts = np.arange(256, dtype=np.float32) if image.dtype == np.uint8 else image.astype(np.float32)
    scaled: np.ndarray = (counts - np.float32(median)) * np.float32(RANGE_UNITS / span)
    np.clip(scaled, -CLIP_UNITS, CLIP_UNITS, out=scaled)
    if image.dtype == np.uint8:
        scaled = cv2.LUT(image, scaled)
    return scaled[None] if scaled.ndim == 2 else np.ascontiguousarray(scaled.transpose(2, 0, 1))
