"""Augmentation of 8-bit and 16-bit infrared images and their boxes, before ``danet.data.normalize.normalize``.

``normalize`` removes gain and offset, so that varying them has little effect. The transforms here vary what remains:
geometry, gamma, polarity, shading, noise, blur and the contrast of single targets. Strengths are in units of the
image's span (difference of its 99th and 1st percentile), so that they suit both an 8-bit video and a 14-bit sensor.

All randomness comes from the generator that is passed in. Images are ``[H, W]`` or ``[H, W, 3]``, uint8 or uint16. They
are not changed in place unless stated. Boxes are float32 ``[M, 4]`` (x0, y0, x1, y1) in pixels; pixel i is [i, i + 1).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

from danet.boxes import area, centres, clip, inside, intersection
from danet.data.data_options import Augmentation
from danet.data.normalize import intensity_range

PASTED_SPEED_PIXELS_PER_S = (2.0, 100.0)
"""Minimum and maximum speed of a pasted object; its logarithm is uniformly distributed."""


class AnnotatedImage(NamedTuple):
    """An image and its boxes: the arguments and the result of ``augment``."""

    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]``, uint8 or uint16."""
    boxes: np.ndarray
    """float32 ``[M, 4]``."""
    labels: np.ndarray
    """int64 ``[M]``, -1 for distractors."""
    ignore: np.ndarray
    """bool ``[M]``, True for ignore regions."""
    past: tuple[tuple[float, np.ndarray], ...] = ()
    """Earlier frames, aligned with the image: pairs of the seconds before it and ``[H, W]`` of the same dtype."""
    extra: np.ndarray | None = None
    """Further channels, float32 ``[E, H, W]``, which geometric transforms change in the same way as the image."""


def augment(
    frame: AnnotatedImage,
    rng: np.random.Generator,
    options: Augmentation,
    donor: AnnotatedImage | None = None,
) -> AnnotatedImage:
    """Returns a random variant of an image and its boxes.

    Args:
        frame: the image and its boxes; it is not changed.
        rng: source of all randomness; equal generators give equal results.
        options: the augmentation.
        donor: image whose objects may be pasted into this one; by default, objects of this image are duplicated.

    Returns:
        The image, of ``options.crop`` pixels and the dtype of the input, and its boxes. A box whose centre is outside
        the crop is dropped, unless it is an ignore region that overlaps the crop. The remaining boxes are clipped to
        the crop. Earlier frames (``past``) are left out.

    Example:
        >>> boxes = np.array([[10, 10, 22, 18]], np.float32)
        >>> frame = AnnotatedImage(np.zeros((256, 320), np.uint8), boxes, np.array([0]), np.array([False]))
        >>> augment(frame, np.random.default_rng(0), Augmentation.off(flip=1.0)).boxes
        array([[298.,  10., 310.,  18.]], dtype=float32)
    """
    return warp_and_crop(vary_frame(frame, rng, options, donor), rng, options)


def vary_frame(
    frame: AnnotatedImage, rng: np.random.Generator, options: Augmentation, donor: AnnotatedImage | None = None
) -> AnnotatedImage:
    """First half of ``augment``, on the whole frame: pastes objects, then applies photometric distortion."""
    if rng.random() < options.copy_paste:
        for _ in range(rng.integers(1, 3)):
            frame = paste_object(frame, frame if donor is None else donor, rng, options)
    image, past = _photometric_distortion(frame, rng, options)
    return frame._replace(image=image, past=past)


# --- geometry ---


def letterbox(
    image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[float, tuple[float, float]]]:
    """Scales an image to fit into ``size``, keeping its aspect ratio, and centers it on a background of its median.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]``, uint8 or uint16.
        boxes: ``[M, 4]`` in pixels of the image.
        size: (height, width) in pixels; the image is enlarged if it is smaller.

    Returns:
        The image of ``size``, the boxes in it, and ``(scale, (x, y))`` for ``undo_letterbox``.

    Example:
        >>> image, boxes, (scale, offset) = letterbox(np.zeros((64, 128)), np.array([[10, 10, 20, 20]]), (64, 64))
        >>> image.shape, boxes.tolist(), scale, offset
        ((64, 64), [[5.0, 21.0, 10.0, 26.0]], 0.5, (0.0, 16.0))
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    offset = (float((size[1] - round(width * scale)) // 2), float((size[0] - round(height * scale)) // 2))
    matrix = np.array([[scale, 0.0, offset[0]], [0.0, scale, offset[1]]])
    return warp(image, matrix, size), warp_boxes(boxes, matrix), (scale, offset)


def undo_letterbox(boxes: np.ndarray, scale: float, offset: tuple[float, float]) -> np.ndarray:
    """Converts boxes of a letterboxed image to pixels of the original image, float32 ``[M, 4]``.

    Example:
        >>> undo_letterbox(np.array([[10, 26, 20, 36]]), 0.5, (0.0, 16.0))
        array([[20., 20., 40., 40.]], dtype=float32)
    """
    return ((np.asarray(boxes, np.float32).reshape(-1, 4) - np.tile(offset, 2)) / scale).astype(np.float32)


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: float | None = None) -> np.ndarray:
    """Resamples an image with an affine map; positions outside the image get its median, or the value ``fill``.

    The border is constant, because a reflected border would show copies of targets.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]``.
        matrix: ``[2, 3]``, maps positions in the image to positions in the result, in pixels; pixel i covers [i, i+1).
        size: (height, width) of the result.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    border = median(image) if fill is None else (fill,)
    if scale < 0.9:  # low-pass filter: bilinear sampling alone skips pixels, which may belong to small targets
        image = cv2.GaussianBlur(image, (0, 0), 0.5 * math.sqrt(1.0 / scale**2 - 1.0), borderType=cv2.BORDER_REPLICATE)
    shifted = matrix.astype(np.float64).copy()  # OpenCV's origin is the centre of pixel 0
    shifted[:, 2] += 0.5 * shifted[:, :2].sum(axis=1) - 0.5
    return cv2.warpAffine(image, shifted, size[::-1], flags=cv2.INTER_LINEAR, borderValue=border)


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Returns the axis-aligned bounding boxes of the mapped corners of ``boxes``, float32 ``[M, 4]``."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def warp_and_crop(frame: AnnotatedImage, rng: np.random.Generator, options: Augmentation) -> AnnotatedImage:
    """Second half of ``augment``: scales, flips, rotates and crops the frame in one resampling.

    The result has no earlier frames (``past``): what the network needs of them is in ``extra``.
    """
    height, width = frame.image.shape[:2]
    size = options.crop or (height, width)
    scale = math.exp(rng.uniform(*np.log(options.scale)))
    mirror = -1.0 if rng.random() < options.flip else 1.0
    angle = math.radians(rng.uniform(-options.rotation, options.rotation))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array([[mirror * cos, -sin, 0.0], [mirror * sin, cos, 0.0]])
    # Rotate about the centre of the image.
    matrix[:, 2] = np.array([width, height]) * scale / 2 - matrix[:, :2] @ (np.array([width, height]) / 2)

    # Choose the upper left corner of the crop: anywhere in the scaled image, or so that it contains a random target.
    low = np.minimum(0.0, np.array([width, height]) * scale - size[::-1])
    high = np.maximum(0.0, np.array([width, height]) * scale - size[::-1])
    targets = np.flatnonzero((frame.labels >= 0) & ~frame.ignore)
    if targets.size and rng.random() < options.around_target:
        box = warp_boxes(frame.boxes[rng.choice(targets)], matrix)[0]
        low, high = (np.clip(bound, low, high) for bound in (box[2:] - size[::-1], box[:2]))
        low, high = np.minimum(low, high), np.maximum(low, high)  # swapped if the target is larger than the crop
    # Shift by whole pixels, so that an image of magnification 1 is copied exactly.
    matrix[:, 2] -= np.round(rng.uniform(low, high))

    image = warp(frame.image, matrix, size)
    extra = (
        None if frame.extra is None else np.stack([warp(channel, matrix, size, fill=0.0) for channel in frame.extra])
    )
    boxes, kept, new_ignore = _clip(warp_boxes(frame.boxes, matrix), frame.ignore, size, options)
    return AnnotatedImage(image, boxes[kept], frame.labels[kept], (frame.ignore | new_ignore)[kept], extra=extra)


def _clip(
    boxes: np.ndarray, ignore: np.ndarray, size: tuple[int, int], options: Augmentation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips boxes ``[M, 4]`` to the crop; returns them, and as bool ``[M]`` which to keep and which to ignore."""
    clipped = clip(boxes, *size)
    whole, visible = area(boxes), area(clipped)
    kept = (visible > 0) & (inside(centres(boxes), np.array([0, 0, size[1], size[0]])) | ignore)
    return clipped, kept, (visible < options.min_visible * whole) | (whole < options.min_size**2)


# --- brightness ---


def median(image: np.ndarray) -> tuple[float, ...]:
    """Returns the median of each channel, estimated from every third row and column for speed."""
    sparse = image[::3, ::3]
    return tuple(np.atleast_1d(np.median(sparse.reshape(-1, *image.shape[2:]), axis=0)).tolist())


def span(image: np.ndarray) -> float:
    """Returns the span of an image, see ``intensity_range``, estimated from every third row and column."""
    return intensity_range(image[::3, ::3]).span


def _photometric_distortion(
    frame: AnnotatedImage, rng: np.random.Generator, options: Augmentation
) -> tuple[np.ndarray, tuple[tuple[float, np.ndarray], ...]]:
    """Returns copies of the image and of its earlier frames, in their dtype, with random changes of the brightness.

    Intensities, polarity, shading and blur change alike in all frames; each frame has noise of its own.
    """
    image = frame.image.astype(np.float32)
    past = [each.astype(np.float32) for _, each in frame.past]
    images = [image, *past]
    intensity_span = span(frame.image)

    for box, ignored in zip(frame.boxes, frame.ignore, strict=True):
        if rng.random() < options.target_contrast and not ignored:
            factor = math.exp(rng.uniform(-0.7, 0.3))
            for each in images:
                change_contrast(each, box, factor)
    low, high = float(image.min()), float(image.max())
    # Work in place: touching new memory takes as long as the arithmetic.
    if rng.random() < options.polarity:
        for each in images:
            np.subtract(np.float32(low + high), each, out=each)
    if options.gamma:
        exponent = math.exp(rng.uniform(-options.gamma, options.gamma))
        for each in past:
            apply_gamma(np.clip(each, low, high, out=each), exponent, (low, high))
        apply_gamma(image, exponent)
    gain = rng.uniform(*options.contrast)
    if gain != 1.0:
        centre = float(np.mean(median(image)))
        for each in images:
            each *= np.float32(gain)
            each += np.float32((1.0 - gain) * centre)
    if options.shading:
        field = shading(image.shape[:2], rng, rng.uniform(0, options.shading) * intensity_span)
        for each in images:
            each += _per_channel(field, each)
    if rng.random() < options.blur:
        sigma = rng.uniform(0.3, 1.0)
        for each in images:
            cv2.GaussianBlur(each, (0, 0), sigma, dst=each)
    if options.noise and rng.random() < 0.5:
        sigma = rng.uniform(0, options.noise) * intensity_span
        for each in images:
            each += _per_channel(sensor_noise(image.shape[:2], rng, sigma), each)

    limits = np.iinfo(frame.image.dtype)
    for each in images:
        np.clip(np.rint(each, out=each), limits.min, limits.max, out=each)
    rounded = [each.astype(frame.image.dtype) for each in images]
    return rounded[0], tuple((lag, each) for (lag, _), each in zip(frame.past, rounded[1:], strict=True))


def _per_channel(field: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Reshapes a field ``[H, W]`` so that it broadcasts against the image."""
    return field[..., None] if image.ndim == 3 else field


def apply_gamma(image: np.ndarray, exponent: float, limits: tuple[float, float] | None = None) -> None:
    """Applies a gamma curve in place to float32 ``[H, W, ...]``; the image keeps its minimum and maximum.

    With ``limits``, these two values stay as they are, and no pixel may lie outside of them.
    """
    low, high = limits or (image.min(), image.max())
    if high > low:
        image -= low
        image *= 1 / (high - low)
        cv2.pow(image, exponent, dst=image)
        image *= high - low
        image += low


def shading(size: tuple[int, int], rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Returns a smooth random field, float32 ``[H, W]``, like the drift of an uncooled sensor."""
    coarse: np.ndarray = cv2.resize(rng.standard_normal((4, 4), np.float32), (48, 48), interpolation=cv2.INTER_CUBIC)
    coarse *= amplitude / max(float(np.abs(coarse).max()), 1e-6)
    return cv2.resize(coarse, size[::-1])  # cubic interpolation to full size is five times slower


# Quantiles of the normal distribution, scaled to unit variance. Indexing them by random bytes is ten times faster than
# drawing normal values, and precise enough, since the image is rounded to integers.
_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)
_QUANTILES /= _QUANTILES.std()


def sensor_noise(size: tuple[int, int], rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Returns white noise, float32 ``[H, W]``; 30 % of the calls add column noise, as read-out circuits do."""
    random_bytes = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size)
    noise: np.ndarray = cv2.LUT(random_bytes, _QUANTILES * np.float32(sigma))
    if rng.random() < 0.3:
        noise += rng.uniform(0.2, 0.8) * sigma * rng.standard_normal((1, size[1]), np.float32)
    return noise


# --- single objects ---


def change_contrast(image: np.ndarray, box: np.ndarray, factor: float) -> None:
    """Scales the contrast of an object against its surroundings, with soft edges, in place.

    Args:
        image: float32 ``[H, W]`` or ``[H, W, 3]``.
        box: ``[4]``, the object.
        factor: new contrast / old contrast.
    """
    x0, y0, x1, y1 = _surroundings(box)
    height, width = image.shape[:2]
    window = _soft_window(y1 - y0, x1 - x0)[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
    region = image[max(y0, 0) : y1, max(x0, 0) : x1]
    region += (factor - 1.0) * _per_channel(window, image) * (region - _border_level(region))


def paste_object(
    frame: AnnotatedImage, donor: AnnotatedImage, rng: np.random.Generator, options: Augmentation
) -> AnnotatedImage:
    """Pastes a random object of ``donor``, randomly flipped and scaled, at a free place of ``frame``.

    The object's difference from its surroundings, in units of the span, is added with soft edges. The frame is returned
    unchanged if the donor has no suitable object, if the scaled object is larger than the image, or if eight random
    places are occupied or too cluttered.
    """
    height, width = frame.image.shape[:2]
    x0, y0, x1, y1 = (np.array([_surroundings(box) for box in donor.boxes]).reshape(-1, 4)).T
    # Choose an object that lies in the image with its surroundings and is not too large.
    whole = (x0 >= 0) & (y0 >= 0) & (x1 <= donor.image.shape[1]) & (y1 <= donor.image.shape[0])
    fits = whole & ~donor.ignore & ((x1 - x0) * 2 < width) & ((y1 - y0) * 2 < height)
    if not fits.any() or donor.image.shape[2:] != frame.image.shape[2:]:
        return frame
    index = rng.choice(np.flatnonzero(fits))
    # Cut out its contrast, then flip and scale it.
    left, top = x0[index], y0[index]
    patch = donor.image[top : y1[index], left : x1[index]].astype(np.float32)
    patch = (patch - _border_level(patch)) * _per_channel(_soft_window(*patch.shape[:2]), patch)
    patch *= span(frame.image) / span(donor.image)
    box = donor.boxes[index] - np.array([left, top, left, top], np.float32)
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
        box = np.array([patch.shape[1] - box[2], box[1], patch.shape[1] - box[0], box[3]], np.float32)
    before = np.array(patch.shape[1::-1])
    after = np.maximum(np.rint(before * rng.uniform(*options.paste_scale)).astype(int), 3)
    if (after > [width, height]).any():
        return frame
    method = cv2.INTER_AREA if after[0] < before[0] else cv2.INTER_LINEAR
    patch = cv2.resize(patch, after.tolist(), interpolation=method)
    box = box * np.tile(after / before, 2)
    if options.paste_contrast != (1.0, 1.0):
        patch = patch * np.float32(math.exp(rng.uniform(*np.log(options.paste_contrast))))

    # Find a place without other boxes where the object is visible.
    for _ in range(8):
        place = rng.integers(0, np.array([width, height]) - after + 1)
        (x, y), (right, bottom) = place, place + after
        region = frame.image[y:bottom, x:right]
        occupied = intersection(frame.boxes, np.array([x, y, right, bottom])).any()
        if occupied or np.abs(patch).max() < options.paste_visibility * region.std():
            continue
        image = frame.image.copy()
        add_patch(image, patch, (x, y))
        return AnnotatedImage(
            image,
            np.concatenate([frame.boxes, (box + np.tile(place, 2))[None].astype(np.float32)]),
            np.append(frame.labels, donor.labels[index]),
            np.append(frame.ignore, False),
            _paste_into_past(frame.past, patch, (x, y), rng) if frame.past else (),
        )
    return frame


def _paste_into_past(
    past: tuple[tuple[float, np.ndarray], ...], patch: np.ndarray, place: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[float, np.ndarray], ...]:
    """Pastes an object into the earlier frames, where it was on a straight way to ``place`` (x, y)."""
    speed = math.exp(rng.uniform(*np.log(PASTED_SPEED_PIXELS_PER_S)))
    direction = rng.uniform(0, 2 * math.pi)
    velocity = speed * np.array([math.cos(direction), math.sin(direction)])
    grey = patch if patch.ndim == 2 else patch.mean(axis=2)
    moved = []
    for age, image in past:
        image = image.copy()
        add_patch(image, grey, np.rint(np.array(place) - age * velocity).astype(int).tolist())
        moved.append((age, image))
    return tuple(moved)


def add_patch(image: np.ndarray, patch: np.ndarray, place: Sequence[int]) -> None:
    """Adds a patch to an image in place; what lies outside the image is cut off.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]``, uint8 or uint16; the sum is rounded and clipped.
        patch: float32 ``[h, w]`` or ``[h, w, 3]``.
        place: (x, y) of the upper left pixel.

    Example:
        >>> image = np.full((2, 3), 250, np.uint8)
        >>> add_patch(image, np.full((2, 2), 9.0, np.float32), (2, -1))
        >>> image.tolist()
        [[250, 250, 255], [250, 250, 250]]
    """
    x, y = place
    height, width = image.shape[:2]
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + patch.shape[0], height), min(x + patch.shape[1], width)
    if top >= bottom or left >= right:
        return
    region = image[top:bottom, left:right]
    limits = np.iinfo(image.dtype)
    visible = patch[top - y : bottom - y, left - x : right - x]
    region[:] = np.clip(np.rint(region + visible), limits.min, limits.max)


def _surroundings(box: np.ndarray) -> tuple[int, int, int, int]:
    """Returns a box with a margin of a quarter of its sides, at least two pixels, rounded outwards to whole pixels."""
    margin_x, margin_y = (max(2.0, 0.25 * side) for side in (box[2] - box[0], box[3] - box[1]))
    x0, y0 = math.floor(box[0] - margin_x), math.floor(box[1] - margin_y)
    return x0, y0, math.ceil(box[2] + margin_x), math.ceil(box[3] + margin_y)


def _soft_window(height: int, width: int) -> np.ndarray:
    """Returns a window, float32 ``[height, width]``: 1 inside, smoothly falling to 0 in the outer sixth of a side."""
    ramps = []
    for side in (height, width):
        position = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side)) / max(side / 6, 1.5)
        ramps.append(np.clip(position, 0, 1))
    window = np.outer(*ramps)
    return (window * window * (3 - 2 * window)).astype(np.float32)


def _border_level(region: np.ndarray) -> np.ndarray:
    """Returns the median of the border pixels of ``[h, w]`` or ``[h, w, 3]``: the level of the surroundings."""
    rim = np.concatenate([region[0], region[-1], region[:, 0], region[:, -1]])
    return np.median(rim, axis=0).astype(np.float32)
