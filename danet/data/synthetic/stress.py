"""A stress set: tiny dim targets in real frames, before dark sky and beside clouds (our decision).

Detectors miss such targets most often. In each frame, one target is added to the pixels at a place that is dark, or
structured, or random. In the earlier frames of the frame (``ImageRecord.past``), the target is where it was then. An
earlier frame is left out if the motion of the camera since then is not known, as after a cut. The same frames without a
target are in the set as well: every detection in them is a false alarm.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from danet.boxes import intersection
from danet.data.class_map import IGNORE
from danet.data.coco_dataset import ImageRecord
from danet.data.normalize import intensity_range
from danet.data.temporal import background_shift, to_grey
from danet.data.transforms import add_patch
from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.progress import track

TARGET = "drone"
FLOCKING = {"bird", "birds"}
"""Frames with objects of these classes are not used: a flock often has more birds than boxes, and a detection of a bird
without a box would count as a false alarm."""
SIZE_PIXELS = (3.0, 10.0)
"""Minimum and maximum size of the visible spot, sqrt(width * height). It is twice as large as the core, in which the
spot has at least half of its maximum."""
BOX_RATIO = 1.35
"""Side of a box / side of the visible spot. The boxes are as loose as labels of real videos: in the Svanstrom videos,
the boxes of drones below 14 pixels are 2.6 times as wide as the core and 3.4 times as high (medians of 682 boxes)."""
CONTRAST_COUNTS = (2.0, 10.0)
"""Minimum and maximum brightness of a target above its surroundings, in counts of an 8-bit image."""
SPEED_PIXELS_PER_S = (5.0, 60.0)
ASPECT = (1.0, 2.0)
"""Ratio of the width of a target to its height."""
PLACES: tuple[Literal["dark", "structured", "random"], ...] = ("dark", "structured", "random")
CANDIDATES = 40
"""Number of random places among which a dark or structured one is chosen."""
SURROUNDINGS_PIXELS = 25
"""Side of the square around a place whose brightness and structure are measured."""
NEARBY_PIXELS = 9
"""Side of the square around a place in which the visibility of a target is measured."""
MIN_VISIBILITY = 2.0
"""Minimum ratio of a target's contrast to the standard deviation around it. With 1, a fifth of the targets would lie in
waves or leaves, where a person does not see them either."""
MARGIN_PIXELS = 12
"""Minimum distance of a target to the border of the image and to other objects."""


def make_stress_set(
    frames: Sequence[ImageRecord], folder: Path, count: int, seed: Sequence[int], *, moving: bool, quiet: bool = True
) -> list[ImageRecord]:
    """Writes frames with one added target each, and lists the same frames without it.

    Args:
        frames: real frames. Their own boxes become ignore regions. Frames with objects of FLOCKING are not used.
        folder: new folder for the images.
        count: number of frames with a target; they are chosen at random, each at most once.
        seed: seed of all randomness.
        moving: whether the targets move against the background. Frames without earlier frames are then not used.
        quiet: show no progress bar.

    Returns:
        The records of the ``count`` frames with a target, then those of the same frames as they are.

    Raises:
        UserError: there are too few frames, or an image cannot be read.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> _ = cv2.imwrite(str(path), np.full((64, 96), 100, np.uint8))
        >>> frame = ImageRecord(path, 96, 64, np.zeros((0, 4)), [], np.zeros(0, bool))
        >>> records = make_stress_set([frame], path.parent / "out", count=1, seed=[0], moving=False)
        >>> [record.names for record in records]
        [['drone'], []]
    """
    usable = [record for record in frames if min(record.width, record.height) > 4 * MARGIN_PIXELS]
    usable = [record for record in usable if FLOCKING.isdisjoint(record.names)]
    usable = [record for record in usable if record.past or not moving]
    order = np.random.default_rng(seed).permutation(len(usable))
    planned = (_plan(usable[number], np.random.default_rng([*seed, int(number)]), moving=moving) for number in order)
    chosen = list(itertools.islice((plan for plan in planned if plan is not None), count))
    if len(chosen) < count:
        needed = " that have earlier frames and" if moving else " that have"
        left_out = " (frames with birds are not used)" if any(FLOCKING & set(record.names) for record in frames) else ""
        raise UserError(
            f"stress set: {count} frames{needed} a place where a dim target is visible are needed, the dataset has "
            f"{len(chosen)}{left_out}"
        )
    folder.mkdir(parents=True)
    with_target, without = [], []
    for index, plan in enumerate(track(chosen, "adding targets", quiet=quiet)):
        with_target.append(_add_target(plan, folder / f"{index:05d}"))
        without.append(_copy(plan.record, folder / f"{index:05d}_without"))
    return with_target + without


class _Plan(NamedTuple):
    """What ``_add_target`` adds to a frame."""

    record: ImageRecord
    """The frame, whose boxes are ignore regions."""
    shifts: list[np.ndarray]
    """The shift (x, y) of the background from each earlier frame of ``record``."""
    patch: np.ndarray
    box_size: np.ndarray
    """Width and height in pixels."""
    centre: np.ndarray
    """(x, y) in pixels."""
    velocity: np.ndarray
    """(x, y) in pixels per second, against the background."""


def _plan(record: ImageRecord, rng: np.random.Generator, *, moving: bool) -> _Plan | None:
    """Draws a target for a frame; None if its motion cannot be shown, or if it would be visible nowhere."""
    image = read_image(record.path)
    patch, box_size = _make_patch(rng, 1.0 if image.dtype == np.uint8 else 256.0)
    centre = _choose_place(to_grey(image), record.boxes, float(patch.max()), rng)
    if centre is None:
        return None
    record, shifts = _keep_known_shifts(record, image)
    if moving and not record.past:
        return None
    velocity = np.zeros(2)
    if moving:
        speed = math.exp(rng.uniform(*np.log(SPEED_PIXELS_PER_S)))
        direction = rng.uniform(0, 2 * math.pi)
        velocity = speed * np.array([math.cos(direction), math.sin(direction)])
    record = replace(record, names=[IGNORE] * len(record.names), ignore=np.ones(len(record.names), bool))
    return _Plan(record, shifts, patch, box_size, centre, velocity)


def _keep_known_shifts(record: ImageRecord, image: np.ndarray) -> tuple[ImageRecord, list[np.ndarray]]:
    """The record with those earlier frames from which the shift (x, y) of the background is known; and these shifts."""
    grey, span = to_grey(image), intensity_range(image).span
    shifts = [background_shift(to_grey(read_image(file)), grey, span) for _, file in record.past]
    past = tuple(each for each, shift in zip(record.past, shifts, strict=True) if shift is not None)
    return replace(record, past=past), [shift for shift in shifts if shift is not None]


def _add_target(plan: _Plan, stem: Path) -> ImageRecord:
    """Writes a frame and its earlier frames with a target; returns the new record."""
    record, shifts, patch, box_size, centre, velocity = plan
    image = read_image(record.path)
    path = _write(image, patch, centre, stem.with_suffix(".png"))
    past = []
    for number, ((seconds, file), shift) in enumerate(zip(record.past, shifts, strict=True)):
        position = centre - velocity * seconds - shift
        past.append((seconds, _write(read_image(file), patch, position, stem.with_name(f"{stem.name}_{number}.png"))))
    box = np.concatenate([centre - box_size / 2, centre + box_size / 2]).astype(np.float32)
    return replace(
        record,
        path=path,
        boxes=np.concatenate([record.boxes, box[None]]),
        names=[*record.names, TARGET],
        ignore=np.append(record.ignore, False),
        past=tuple(past),
    )


def _copy(record: ImageRecord, stem: Path) -> ImageRecord:
    """Writes a frame and its earlier frames as they are; returns the new record."""
    nothing, place = np.zeros((1, 1), np.float32), np.zeros(2)
    path = _write(read_image(record.path), nothing, place, stem.with_suffix(".png"))
    past = [
        (seconds, _write(read_image(file), nothing, place, stem.with_name(f"{stem.name}_{number}.png")))
        for number, (seconds, file) in enumerate(record.past)
    ]
    return replace(record, path=path, past=tuple(past))


def _make_patch(rng: np.random.Generator, counts: float) -> tuple[np.ndarray, np.ndarray]:
    """A bright Gaussian spot, float32 ``[h, w]`` with odd sides, and the (width, height) of its box in pixels."""
    size = rng.uniform(*SIZE_PIXELS)
    aspect = math.sqrt(rng.uniform(*ASPECT))
    spot_size = np.array([size * aspect, size / aspect])
    sigma = spot_size / 5  # the core, at half of the maximum, is then half as wide as the visible spot
    radius = math.ceil(3 * sigma.max())
    x, y = (np.exp(-0.5 * (np.arange(-radius, radius + 1) / each) ** 2) for each in sigma)
    return (rng.uniform(*CONTRAST_COUNTS) * counts * np.outer(y, x)).astype(np.float32), BOX_RATIO * spot_size


def _choose_place(grey: np.ndarray, boxes: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray | None:
    """Chooses the centre (x, y) of a target: the middle of a pixel, away from all boxes.

    A place is used only if the contrast of the target is at least MIN_VISIBILITY times the standard deviation around
    it, which leaves out most places in trees. None if no candidate is such a place.
    """
    kind = PLACES[rng.integers(len(PLACES))]
    height, width = grey.shape
    nearby, _ = _deviation_and_mean(grey, NEARBY_PIXELS)
    structure, brightness = _deviation_and_mean(grey, SURROUNDINGS_PIXELS)
    places = rng.integers(MARGIN_PIXELS, [width - MARGIN_PIXELS, height - MARGIN_PIXELS], (CANDIDATES, 2))
    margin = MARGIN_PIXELS * np.array([-1, -1, 1, 1])
    free = [place for place in places if not intersection(boxes, np.tile(place, 2) + margin).any()]
    visible = [place for place in free if MIN_VISIBILITY * nearby[place[1], place[0]] <= contrast]
    if not visible:
        return None
    if kind == "dark":
        best = min(visible, key=lambda place: brightness[place[1], place[0]])
    elif kind == "structured":
        best = max(visible, key=lambda place: structure[place[1], place[0]])
    else:
        best = visible[0]
    return np.asarray(best) + 0.5


def _deviation_and_mean(grey: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation and mean of the square of ``side`` pixels around each pixel, float32 ``[H, W]``."""
    values = grey.astype(np.float32)
    mean = cv2.blur(values, (side, side))
    variance = cv2.blur(values * values, (side, side)) - mean * mean
    return np.sqrt(np.maximum(variance, 0)), mean


def _write(image: np.ndarray, patch: np.ndarray, centre: np.ndarray, path: Path) -> Path:
    """Writes an image with a patch whose middle pixel contains ``centre``."""
    image = image.copy()
    corner = np.floor(centre).astype(int) - np.array(patch.shape[::-1]) // 2
    add_patch(image, patch if image.ndim == 2 else np.repeat(patch[..., None], 3, axis=2), corner.tolist())
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path
