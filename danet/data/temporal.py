"""Input channels that compare an image with its past and with its neighborhood (our decision).

A small dim target is often invisible in a single frame: a person sees it because it moves. With ``model.lags``, the
network gets, for each lag, the difference to the frame that many seconds before, after the motion of the camera has
been removed, and what these differences share. With ``model.local_contrast``, it gets the small details of the image.
All are divided by their local deviation, so that a dim target in a calm sky is as strong as the motion of leaves, or as
the edges of clouds.

Images are ``[H, W]``, uint8 or uint16, of one size.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LAG_TOLERANCE = 0.25
"""A frame is used for a lag if its age differs from the lag by at most this fraction of the lag."""
MAX_SHIFT_FRACTION = 0.4
"""Larger shifts, as a fraction of the side of the image, are rejected as wrong estimates."""
MIN_SHIFT_PIXELS = 0.1
"""Smaller shifts are not corrected: interpolation would change the image more than the shift does."""
CUT_FRACTION = 0.12
"""Two frames whose median absolute difference exceeds this fraction of the intensity span show different scenes."""
SMOOTHING_PIXELS = 0.7
"""Standard deviation of the Gaussian that smooths a difference. It divides white noise by 2.4, and the contrast of a
target with a core of 3 pixels by 1.4."""
SMOOTHING = cv2.getGaussianKernel(2 * math.ceil(4 * SMOOTHING_PIXELS) + 1, SMOOTHING_PIXELS).ravel().tolist()
"""The weights of this Gaussian along an axis."""
DETAIL_PIXELS = 9
"""Side of the square whose mean is subtracted: clouds, their drift, and a change of the sensor's offset vary over more
pixels than a distant target covers."""
NEIGHBORHOOD_PIXELS = 21
"""Side of the square over which the standard deviation of the details is measured."""
DEVIATION_UNITS = 0.5
"""The channels are scaled so that the local standard deviation of the details has this value."""
LIMIT_UNITS = 4.0
"""Values x become x / (1 + |x| / LIMIT_UNITS), so that strong targets do not hide the other channels."""
MIN_DEVIATION_SPANS = 1 / 400
"""Added to the local deviation, as a fraction of the intensity span. Without it, the channels would show the blocks of
the video compression in flat areas."""
SPARSE = np.s_[::4, ::4]
"""Medians are computed from every fourth pixel of every fourth row, to save time."""


def align(past: np.ndarray, image: np.ndarray, span: float) -> np.ndarray | None:
    """Shifts an earlier frame so that its background covers that of ``image``.

    The shift is found by phase correlation at half of the resolution, and is used only if it makes the frames more
    similar than no shift. Pixels that the shifted frame does not cover are copied from ``image``.

    Args:
        past, image: ``[H, W]``, uint8 or uint16.
        span: span of the intensities of ``image``, see ``danet.data.normalize.intensity_range``.

    Returns:
        ``[H, W]`` of the same dtype, or None if the frames show different scenes, as after a cut.

    Example:
        >>> image = np.random.default_rng(0).integers(0, 255, (64, 96), np.uint8)
        >>> aligned = align(np.roll(image, 4, axis=1), image, span=250.0)
        >>> bool((aligned[:, :90] == image[:, :90]).all())
        True
    """
    alignment = _find_alignment(past, image, span)
    return None if alignment is None else alignment[1]


def background_shift(past: np.ndarray, image: np.ndarray, span: float) -> np.ndarray | None:
    """The shift (x, y) in pixels by which ``align`` moves an earlier frame; zeros if it does not move the frame.

    Arguments as for ``align``. None if the shift is unknown, because the frames show different scenes.

    Example:
        >>> image = cv2.blur(np.random.default_rng(0).integers(0, 255, (128, 160), np.uint8), (5, 5))
        >>> background_shift(np.roll(image, 4, axis=1), image, span=250.0).round().tolist()
        [-4.0, 0.0]
        >>> background_shift(image, image, span=250.0).tolist()
        [0.0, 0.0]
        >>> background_shift(255 - image, image, span=64.0) is None
        True
    """
    alignment = _find_alignment(past, image, span)
    return None if alignment is None else alignment[0]


def _find_alignment(past: np.ndarray, image: np.ndarray, span: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The shift (x, y) of an earlier frame and the shifted frame; None if the frames show different scenes."""
    if past.shape != image.shape:
        return None
    candidates = [(np.zeros(2), past)]
    shift = _estimate_shift(past, image)
    if shift is not None:
        candidates.append((shift, _translate(past, shift, image)))
    differences = [_absolute_difference(image, each) for _, each in candidates]
    # Compare means, because the median of a flat sky is zero with any shift; limit the weight of moving targets.
    best = 0
    if shift is not None:
        best = int(np.argmin([np.minimum(difference, span / 4).mean() for difference in differences]))
    return candidates[best] if np.median(differences[best]) <= CUT_FRACTION * span else None


def _estimate_shift(past: np.ndarray, image: np.ndarray) -> np.ndarray | None:
    """The shift (x, y) in pixels from ``past`` to ``image`` by phase correlation.

    None if there is nothing to try beside no shift: the estimate is too small to correct, or too large to be right.
    """
    height, width = (side // 2 for side in image.shape)
    if min(height, width) < 2:  # too small for phase correlation
        return None
    scaled = [cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA) for each in (past, image)]
    # Remove the mean: otherwise the window itself is the strongest pattern of both frames.
    first, second = (each.astype(np.float32) - np.float32(each.mean()) for each in scaled)
    (x, y), _ = cv2.phaseCorrelate(first, second, cv2.createHanningWindow((width, height), cv2.CV_32F))
    shift = np.array([x * image.shape[1] / width, y * image.shape[0] / height])
    is_small = np.abs(shift).max() < MIN_SHIFT_PIXELS
    is_large = (np.abs(shift) > MAX_SHIFT_FRACTION * np.array(image.shape[::-1])).any()
    return None if is_small or is_large or not np.isfinite(shift).all() else shift


def _translate(past: np.ndarray, shift: np.ndarray, image: np.ndarray) -> np.ndarray:
    """``past`` shifted by (x, y) pixels; places that it does not cover have the pixels of ``image``."""
    whole = np.rint(shift)
    shift = whole if np.abs(shift - whole).max() < MIN_SHIFT_PIXELS else shift
    matrix = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]])
    # A transparent border keeps the pixels of the destination.
    return cv2.warpAffine(
        past, matrix, image.shape[::-1], dst=image.copy(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
    )


def _absolute_difference(image: np.ndarray, past: np.ndarray) -> np.ndarray:
    """The absolute difference of some pixels, minus its median, which is a change of the sensor's offset."""
    difference = image[SPARSE].astype(np.float32) - past[SPARSE]
    difference -= np.median(difference)
    return np.abs(difference, out=difference)


def temporal_difference(image: np.ndarray, past: np.ndarray, span: float) -> np.ndarray:
    """The smoothed difference to an aligned earlier frame, in units of its local noise.

    The noise is measured around each pixel, because it differs within a frame: waves and leaves move, and the sky does
    not. With one value for the whole frame, a dim target before the sky would be as weak as the motion of the leaves.

    Args:
        image: ``[H, W]``, uint8 or uint16.
        past: the frame from ``align``.
        span: span of the intensities of ``image``.

    Returns:
        float32 ``[H, W]``; the noise has a standard deviation of DEVIATION_UNITS, values are below LIMIT_UNITS.

    Example:
        >>> image = np.full((64, 96), 100, np.uint8)
        >>> moved = image.copy()
        >>> moved[20:24, 30:34] = 120
        >>> float(temporal_difference(moved, image, span=64.0).max()) > 1
        True
    """
    return _normalize_details(cv2.subtract(image, past, dtype=cv2.CV_32F), span)


def local_contrast(image: np.ndarray, span: float) -> np.ndarray:
    """Details of an image that are as small as a distant target, in units of their local standard deviation.

    Args:
        image: ``[H, W]``, uint8 or uint16.
        span: span of the intensities of ``image``.

    Returns:
        float32 ``[H, W]``, values are below LIMIT_UNITS: the smoothed image minus its mean over DETAIL_PIXELS. It is
        scaled so that its standard deviation over NEIGHBORHOOD_PIXELS is about DEVIATION_UNITS.

    Example:
        >>> image = np.full((64, 96), 100, np.uint8)
        >>> image[20:23, 30:33] = 110
        >>> float(local_contrast(image, span=64.0)[21, 31]) > 1
        True
    """
    return _normalize_details(image.astype(np.float32), span)


def _normalize_details(values: np.ndarray, span: float) -> np.ndarray:
    """Removes what is larger than DETAIL_PIXELS, and divides by the local deviation of the rest."""
    size = DETAIL_PIXELS, DETAIL_PIXELS
    details: np.ndarray = cv2.GaussianBlur(values, (len(SMOOTHING), len(SMOOTHING)), SMOOTHING_PIXELS)
    background: np.ndarray = cv2.blur(values, size, borderType=cv2.BORDER_REFLECT_101)
    details -= background
    size = NEIGHBORHOOD_PIXELS, NEIGHBORHOOD_PIXELS
    variance: np.ndarray = cv2.blur(details * details, size, borderType=cv2.BORDER_REFLECT_101)
    # OpenCV adds and subtracts columns as the square moves, so that rounding makes the variance of a flat area slightly
    # negative. Its square root would be NaN.
    np.maximum(variance, 0, out=variance)
    deviation: np.ndarray = cv2.sqrt(variance, dst=variance)
    deviation += np.float32(MIN_DEVIATION_SPANS * span)
    details *= np.float32(DEVIATION_UNITS)
    details /= deviation
    return _compress(details)


def _compress(values: np.ndarray) -> np.ndarray:
    """Limits values to +-LIMIT_UNITS smoothly, in place."""
    divisor = np.abs(values)
    divisor *= np.float32(1 / LIMIT_UNITS)
    divisor += np.float32(1)
    values /= divisor
    return values


def common_difference(differences: Sequence[np.ndarray]) -> np.ndarray:
    """What several differences share: the one nearest to zero where all have the same sign, and 0 elsewhere.

    A moving target is brighter (or darker) than its place was in every earlier frame, whereas the places that it has
    left differ from one of them only, and noise differs from frame to frame.

    Args:
        differences: at least one of ``temporal_difference``, float32 ``[H, W]``.

    Example:
        >>> rows = np.float32([[0.5, 0.5, -2.0], [0.2, -1.0, -3.0]])
        >>> common_difference(list(rows[:, None])).tolist()
        [[0.20000000298023224, 0.0, -2.0]]
    """
    smallest, largest = differences[0], differences[0]
    for each in differences[1:]:
        smallest, largest = np.minimum(smallest, each), np.maximum(largest, each)
    return np.maximum(smallest, 0) + np.minimum(largest, 0)


def extra_channels(
    image: np.ndarray, past: Sequence[np.ndarray | None], span: float, *, with_local_contrast: bool
) -> np.ndarray:
    """All channels that ``model.local_contrast`` and ``model.lags`` add to the normalized image.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.
        past: for each lag the grey frame from ``align``, or None for a difference of zero.
        span: span of the intensities of ``image``.
        with_local_contrast: whether the local contrast is the first channel.

    Returns:
        float32 ``[E, H, W]``: the local contrast, then one difference for each lag, and with several lags their
        ``common_difference``. The latter leaves out lags without a frame.

    Example:
        >>> extra_channels(np.zeros((64, 96), np.uint8), [None, None], 64.0, with_local_contrast=True).shape
        (4, 64, 96)
    """
    import torch  # here, because the importers use this module, and their --help must appear at once

    from danet.ops import library

    grey = to_grey(image)
    if library.WHY_NOT is not None:
        return _extra_channels_reference(grey, past, span, with_local_contrast=with_local_contrast)
    channels = library.call(
        "detail_channels",
        _to_tensor(grey),
        [torch.empty(0) if each is None else _to_tensor(each) for each in past],
        SMOOTHING,
        DETAIL_PIXELS,
        NEIGHBORHOOD_PIXELS,
        DEVIATION_UNITS,
        LIMIT_UNITS,
        MIN_DEVIATION_SPANS * span,
        with_local_contrast,
    )
    return channels.numpy()


def _extra_channels_reference(
    grey: np.ndarray, past: Sequence[np.ndarray | None], span: float, *, with_local_contrast: bool
) -> np.ndarray:
    """``extra_channels`` without compiled operators."""
    differences = [None if each is None else temporal_difference(grey, each, span) for each in past]
    if len(past) > 1:
        known = [each for each in differences if each is not None]
        differences.append(common_difference(known) if known else None)
    channels = [local_contrast(grey, span)] if with_local_contrast else []
    channels += [np.zeros(grey.shape, np.float32) if each is None else each for each in differences]
    return np.stack(channels) if channels else np.empty((0, *grey.shape), np.float32)


def _to_tensor(image: np.ndarray) -> "torch.Tensor":
    """A tensor of the pixels. They are copied only if their layout needs it, or if they are read-only: torch warns of
    read-only arrays."""
    import torch

    image = np.ascontiguousarray(image)
    return torch.from_numpy(image if image.flags.writeable else image.copy())


def to_grey(image: np.ndarray) -> np.ndarray:
    """Converts ``[H, W, 3]`` (BGR) to ``[H, W]``; a grey image is returned as it is."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def choose_frames(frames: Iterable[tuple[float, T]], lags: Sequence[float]) -> dict[float, T]:
    """Chooses for each lag the frame whose age is nearest to it.

    Args:
        frames: earlier frames, as pairs of their age in seconds and anything that stands for the frame.
        lags: in seconds. A lag without a frame whose age differs by at most LAG_TOLERANCE of it is left out.

    Example:
        >>> choose_frames([(0.1, "a"), (0.52, "b"), (0.6, "c")], lags=[0.1, 0.5, 1.0])
        {0.1: 'a', 0.5: 'b'}
    """
    chosen = {}
    known = list(frames)
    for lag in lags:
        age, frame = min(known, key=lambda pair: abs(pair[0] - lag), default=(math.inf, None))
        if frame is not None and abs(age - lag) <= LAG_TOLERANCE * lag:
            chosen[lag] = frame
    return chosen


class MissingFrames:
    """Counts the images that lack an earlier frame for a lag, whose input channel is zero there.

    Args:
        pasts: for each image its earlier frames, as pairs of their age in seconds and anything else.
        lags: in seconds.

    Attributes:
        images: number of images.
        counts: lag -> number of images without a frame for it.

    Example:
        >>> missing = MissingFrames([[], [(0.1, "a.png")], [(0.1, "b.png"), (0.5, "a.png")]], lags=[0.1, 0.5])
        >>> missing.counts
        {0.1: 1, 0.5: 2}
        >>> missing.line("images")
        'of 3 images, 1 lack the earlier frame for lag 0.1 s and 2 for lag 0.5 s; their input channels are zero'
    """

    def __init__(self, pasts: Iterable[Sequence[tuple[float, Any]]], lags: Sequence[float]) -> None:
        self.images = 0
        self.counts = dict.fromkeys(lags, 0)
        for past in pasts if lags else ():
            self.images += 1
            found = choose_frames(past, lags)
            for lag in lags:
                self.counts[lag] += lag not in found

    @property
    def unavailable(self) -> list[float]:
        """Lags for which no image has a frame."""
        return [lag for lag, count in self.counts.items() if count == self.images]

    def line(self, images: str) -> str | None:
        """One line about the counts; None if no image lacks a frame. ``images`` names the images."""
        parts = [(count, f"for lag {lag:g} s") for lag, count in self.counts.items() if count]
        if not parts:
            return None
        texts = [f"{parts[0][0]} lack the earlier frame {parts[0][1]}", *(f"{n} {text}" for n, text in parts[1:])]
        listed = " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
        return f"of {self.images} {images}, {listed}; their input channels are zero"
