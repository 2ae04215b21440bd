"""Matching of detections to ground truth: greedy, best score first, under a selectable criterion.

Everything works on flat arrays over a whole dataset, so that thousands of images with hundreds of detections each take
about a second. Only pairs that the criterion accepts are visited one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from danet.boxes import centre_distance, centres, inside, iop, iou, size
from danet.data.class_map import IGNORE

HIT, FALSE_ALARM, IGNORED = 1, 0, -1
"""Outcome of a detection: true positive, false positive, or excluded from the metrics."""

_CHUNK = 1 << 19
"""Detections paired at once; limits the memory for their pairs."""


@dataclass(frozen=True)
class Criterion:
    """When a detection may be matched to a ground-truth box, and which of several pairs is preferred.

    ``quality`` and ``region_quality`` take detections and ground-truth boxes that broadcast against each other, as
    float64 ``[..., 4]``, and return ``[...]``; a better fit has a higher quality. A pair is accepted if its quality is
    at least ``threshold``, or above it if ``strict``. ``region_quality`` is used for ignore regions, which are usually
    larger than the objects inside.
    """

    name: str
    title: str
    quality: Callable[[np.ndarray, np.ndarray], np.ndarray]
    region_quality: Callable[[np.ndarray, np.ndarray], np.ndarray]
    threshold: float
    strict: bool = False

    def accepts(self, quality: np.ndarray) -> np.ndarray:
        return quality > self.threshold if self.strict else quality >= self.threshold


def _negative_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -centre_distance(a, b)


def _negative_distance_to_region(detections: np.ndarray, regions: np.ndarray) -> np.ndarray:
    return np.where(inside(centres(detections), regions), 0.0, -np.inf)


CRITERIA = {
    criterion.name: criterion
    for criterion in (
        Criterion("iou50", "IoU ≥ 0.5", iou, iop, 0.5),
        Criterion("iou30", "IoU ≥ 0.3", iou, iop, 0.3),
        Criterion("iop50", "IoP ≥ 0.5", iop, iop, 0.5),
        Criterion("center3", "centre < 3 px", _negative_distance, _negative_distance_to_region, -3.0, strict=True),
    )
}
"""The criteria by name. Ignore regions use COCO's rule for crowd regions: intersection over the detection's area."""


class ClassData(NamedTuple):
    """All D detections and T ground-truth boxes of one class in N images; boxes are float64, in pixels."""

    boxes: np.ndarray  # [D, 4] (x0, y0, x1, y1), by descending score
    scores: np.ndarray  # [D]
    image: np.ndarray  # [D] index of the image
    truths: np.ndarray  # [T, 4] (x0, y0, x1, y1), by ascending image index
    truth_image: np.ndarray  # [T]
    crowd: np.ndarray  # bool [T], True for ignore regions
    images: int  # N


class Matches(NamedTuple):
    """The result of ``match``."""

    outcome: np.ndarray  # int8 [D]: HIT, FALSE_ALARM or IGNORED
    truth: np.ndarray  # int64 [D], index of the matched truth, or -1
    counted: np.ndarray  # bool [T], truths that count as hits or misses


def flatten(records: Sequence, predictions: Sequence, classes: Sequence[str]) -> dict[str, ClassData]:
    """Collects ground truth and detections of a dataset by class.

    Args:
        records: N images with ``boxes`` ``[M, 4]``, ``names`` and ``ignore`` (danet.data.coco_dataset.ImageRecord).
        predictions: N triples ``(boxes [K, 4], scores [K], labels [K])`` of arrays or CPU tensors,
            labels being indices into ``classes``.
        classes: the detector's classes. An ignore region applies to the class that it names, or to all classes if its
            name is "ignore".

    Raises ValueError if ``records`` and ``predictions`` differ in length.
    """
    if len(records) != len(predictions):
        counts = f"{len(records)} images, {len(predictions)} entries"
        raise ValueError(f"predictions: must have one entry per image, got {counts}")
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
        detected = labels == label
        annotated = (names == name) | ((names == IGNORE) & crowd)
        found = (boxes[detected], scores[detected], image[detected])
        result[name] = ClassData(*found, truths[annotated], truth_image[annotated], crowd[annotated], len(records))
    return result


def match(data: ClassData, criterion: Criterion, size_range: tuple[float, float] | None = None) -> Matches:
    """Matches detections to ground truth, highest score first; each takes the free truth that fits it best.

    A truth is matched at most once. An ignore region is matched any number of times, but only by detections that fit no
    free truth. With ``size_range = (low, high)``, truths count if low <= sqrt(area) < high, in pixels; other truths are
    ignored, and so are unmatched detections of other sizes (COCO's rule).

    Example:
        >>> from types import SimpleNamespace
        >>> image = SimpleNamespace(boxes=[[0, 0, 10, 10]], names=["drone"], ignore=[False])
        >>> detections = [[0, 0, 10, 9], [30, 30, 40, 40]], [0.8, 0.6], [0, 0]
        >>> data = flatten([image], [detections], ["drone"])["drone"]
        >>> match(data, CRITERIA["iou50"]).outcome.tolist() == [HIT, FALSE_ALARM]
        True
    """
    counted = ~data.crowd
    if size_range is not None:
        counted &= in_range(data.truths, size_range)
    detection, truth = _accepted_pairs(data, criterion, counted)
    outcome = np.full(len(data.scores), FALSE_ALARM, np.int8)
    if size_range is not None:
        outcome[~in_range(data.boxes, size_range)] = IGNORED
    matched_truth = np.full(len(data.scores), -1, np.int64)
    taken = np.zeros(len(data.truths), bool).tolist()
    crowd, is_counted = data.crowd.tolist(), counted.tolist()
    last_matched = -1
    for d, t in zip(detection.tolist(), truth.tolist(), strict=True):
        if d == last_matched or (taken[t] and not crowd[t]):
            continue
        last_matched = d
        taken[t] = True
        matched_truth[d] = t
        outcome[d] = HIT if is_counted[t] else IGNORED
    return Matches(outcome, matched_truth, counted)


def in_range(boxes: np.ndarray, size_range: tuple[float, float]) -> np.ndarray:
    """Mask ``[M]`` of the boxes ``[M, 4]`` with low <= sqrt(area) < high, in pixels."""
    low, high = size_range
    return (size(boxes) >= low) & (size(boxes) < high)


def _accepted_pairs(data: ClassData, criterion: Criterion, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of detections and truths that the criterion accepts as pairs.

    Sorted by detection; for each detection counted truths come first, then better qualities.
    """
    start = np.searchsorted(data.truth_image, np.arange(data.images + 1))
    truths_in_image = np.diff(start)[data.image]
    detections, truths, qualities = [], [], []
    for low in range(0, len(data.scores), _CHUNK):
        # Pair every detection of the chunk with all truths of its image.
        count = truths_in_image[low : low + _CHUNK]
        detection = np.repeat(np.arange(low, low + len(count)), count)
        step = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        truth = start[data.image[detection]] + step
        detected, annotated, crowd = data.boxes[detection], data.truths[truth], data.crowd[truth]
        quality = criterion.quality(detected, annotated)
        if crowd.any():
            quality[crowd] = criterion.region_quality(detected[crowd], annotated[crowd])
        keep = criterion.accepts(quality)
        detections.append(detection[keep])
        truths.append(truth[keep])
        qualities.append(quality[keep])
    detection, truth = _stack(detections, (0,)).astype(np.int64), _stack(truths, (0,)).astype(np.int64)
    order = np.lexsort((-_stack(qualities, (0,)), ~counted[truth], detection))
    return detection[order], truth[order]


def _stack(parts: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty)
