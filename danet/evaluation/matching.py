"""Which detection found which object: greedy matching under a selectable criterion.

Everything works on flat arrays over a whole dataset, so that thousands of images with hundreds of
detections each take a second; only pairs that pass the criterion are walked one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from danet.data.class_map import IGNORE

HIT, FALSE_ALARM, IGNORED = 1, 0, -1
"""What a detection turned out to be; an IGNORED one counts neither way."""

_CHUNK = 1 << 19


@dataclass(frozen=True)
class Criterion:
    """When a detection may be paired with a truth, and which pair is better.

    ``quality(detections [P, 4], truths [P, 4]) -> [P]`` grows with the fit; a pair is accepted from
    ``threshold`` upwards, or above it when ``strict``. ``region_quality`` is the same against ignore
    regions, which are larger than what they hide.
    """

    name: str
    title: str
    quality: Callable[[np.ndarray, np.ndarray], np.ndarray]
    region_quality: Callable[[np.ndarray, np.ndarray], np.ndarray]
    threshold: float
    strict: bool = False

    def accepts(self, quality: np.ndarray) -> np.ndarray:
        return quality > self.threshold if self.strict else quality >= self.threshold


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of the pairs ``a[i], b[i]``, boxes ``[P, 4]`` xyxy."""
    shared = _intersection(a, b)
    return shared / np.maximum(_area(a) + _area(b) - shared, np.finfo(float).tiny)


def iop(detections: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Intersection over the detection's (the predicted box's) area."""
    return _intersection(detections, truths) / np.maximum(_area(detections), np.finfo(float).tiny)


def negative_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minus the distance of the centres, in pixels."""
    return -np.hypot(*(0.5 * (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:])).T)


def _negative_distance_to_region(detections: np.ndarray, regions: np.ndarray) -> np.ndarray:
    centre = 0.5 * (detections[:, :2] + detections[:, 2:])
    inside = np.all((centre >= regions[:, :2]) & (centre < regions[:, 2:]), axis=1)
    return np.where(inside, 0.0, -np.inf)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return np.maximum(sides[:, 0], 0.0) * np.maximum(sides[:, 1], 0.0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("iou50", "IoU ≥ 0.5", iou, iop, 0.5),
        Criterion("iou30", "IoU ≥ 0.3", iou, iop, 0.3),
        Criterion("iop50", "IoP ≥ 0.5", iop, iop, 0.5),
        Criterion("center3", "centre < 3 px", negative_distance, _negative_distance_to_region, -3.0, strict=True),
    )
}
"""The criteria by name. Ignore regions use COCO's rule for crowds: intersection over the detection's area."""


class ClassData(NamedTuple):
    """All detections and truths of one class in a dataset of N images, float64 boxes in pixels."""

    boxes: np.ndarray  # [D, 4] xyxy, by descending score
    scores: np.ndarray  # [D]
    image: np.ndarray  # [D] index of the image
    truths: np.ndarray  # [T, 4] xyxy, by ascending image
    truth_image: np.ndarray  # [T]
    crowd: np.ndarray  # bool [T], ignore regions
    images: int  # N


class Matches(NamedTuple):
    """The result of ``match``."""

    outcome: np.ndarray  # int8 [D]: HIT, FALSE_ALARM or IGNORED
    truth: np.ndarray  # int64 [D], the truth a detection took, or -1
    counted: np.ndarray  # bool [T], truths that can be hit or missed


def flatten(records: Sequence, predictions: Sequence, classes: Sequence[str]) -> dict[str, ClassData]:
    """Gathers images and detections by class.

    Args:
        records: N images with ``boxes`` ``[M, 4]``, ``names`` and ``ignore`` (danet.data.coco_dataset.ImageRecord).
        predictions: N triples ``(boxes [K, 4], scores [K], labels [K])`` of arrays or CPU tensors,
            labels being indices into ``classes``.
        classes: the detector's classes. An ignore region counts for the class it names, or for all
            classes when its name is "ignore".

    Raises ValueError when the two sequences differ in length.
    """
    if len(records) != len(predictions):
        raise ValueError(f"predictions must be one entry an image: {len(records)} images, {len(predictions)} entries")
    boxes = _stack([np.asarray(boxes, np.float64).reshape(-1, 4) for boxes, _, _ in predictions], (0, 4))
    scores = _stack([np.asarray(scores, np.float64) for _, scores, _ in predictions], (0,))
    labels = _stack([np.asarray(labels, np.int64) for _, _, labels in predictions], (0,))
    image = np.repeat(np.arange(len(predictions)), [len(scores) for _, scores, _ in predictions])
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels, image = boxes[order], scores[order], labels[order], image[order]

    truths = _stack([np.asarray(record.boxes, np.float64).reshape(-1, 4) for record in records], (0, 4))
    crowd = _stack([np.asarray(record.ignore, bool) for record in records], (0,)).astype(bool)
    truth_image = np.repeat(np.arange(len(records)), [len(record.boxes) for record in records])
    names = np.array([name for record in records for name in record.names], dtype=object)

    result = {}
    for label, name in enumerate(classes):
        mine = labels == label
        own = (names == name) | ((names == IGNORE) & crowd)
        result[name] = ClassData(
            boxes[mine], scores[mine], image[mine], truths[own], truth_image[own], crowd[own], len(records)
        )
    return result


def match(data: ClassData, criterion: Criterion, size_range: tuple[float, float] | None = None) -> Matches:
    """Greedy matching, best score first; every detection takes the best free truth that it fits.

    A truth is taken at most once, an ignore region any number of times and only by detections that
    fit no free truth. With ``size_range = (low, high)`` only truths with low <= sqrt(area) < high
    pixels count; the others are ignored, as are unmatched detections of other sizes (COCO's rule).
    """
    counted = ~data.crowd
    if size_range is not None:
        counted &= in_range(data.truths, size_range)
    detection, truth = _accepted_pairs(data, criterion, counted)
    outcome = np.full(len(data.scores), FALSE_ALARM, np.int8)
    if size_range is not None:
        outcome[~in_range(data.boxes, size_range)] = IGNORED
    partner = np.full(len(data.scores), -1, np.int64)
    taken = np.zeros(len(data.truths), bool).tolist()
    crowd, real = data.crowd.tolist(), counted.tolist()
    last = -1
    for d, t in zip(detection.tolist(), truth.tolist(), strict=True):
        if d == last or (taken[t] and not crowd[t]):
            continue
        last = d
        taken[t] = True
        partner[d] = t
        outcome[d] = HIT if real[t] else IGNORED
    return Matches(outcome, partner, counted)


def in_range(boxes: np.ndarray, size_range: tuple[float, float]) -> np.ndarray:
    """Which boxes ``[M, 4]`` have low <= sqrt(area) < high, in pixels."""
    size = np.sqrt(np.maximum(_area(boxes), 0.0))
    return (size >= size_range[0]) & (size < size_range[1])


def _accepted_pairs(data: ClassData, criterion: Criterion, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that the criterion accepts: by detection, counted truths first, best quality first."""
    start = np.searchsorted(data.truth_image, np.arange(data.images + 1))
    many = np.diff(start)[data.image]
    detections, truths, qualities = [], [], []
    for low in range(0, len(data.scores), _CHUNK):
        count = many[low : low + _CHUNK]
        detection = np.repeat(np.arange(low, low + len(count)), count)
        step = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        truth = start[data.image[detection]] + step
        found, wanted, crowd = data.boxes[detection], data.truths[truth], data.crowd[truth]
        quality = criterion.quality(found, wanted)
        if crowd.any():
            quality[crowd] = criterion.region_quality(found[crowd], wanted[crowd])
        keep = criterion.accepts(quality)
        detections.append(detection[keep])
        truths.append(truth[keep])
        qualities.append(quality[keep])
    detection, truth = _stack(detections, (0,)).astype(np.int64), _stack(truths, (0,)).astype(np.int64)
    order = np.lexsort((-_stack(qualities, (0,)), ~counted[truth], detection))
    return detection[order], truth[order]


def _stack(parts: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty)
