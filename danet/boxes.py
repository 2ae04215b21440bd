"""Box geometry. Boxes are float arrays ``[..., 4]`` of (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1).

All functions but ``nms`` and ``select`` take torch tensors or numpy arrays and return the same kind. Functions of two
arguments broadcast: ``iou(a, b)`` compares row with row, ``iou(a[:, None], b)`` compares all pairs.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from danet.detections import Detections

NMS_CANDIDATES = 1000
"""Candidates that enter non-maximum suppression, as in the detectors of torchvision and detectron2."""

NMS_BLOCK = 128
"""Boxes that ``nms`` compares at a time on the CPU."""

Array = TypeVar("Array", Tensor, np.ndarray)


def xywh_to_xyxy(boxes: Array) -> Array:
    """Converts COCO's (x, y, width, height), with (x, y) the upper left corner, to corners.

    Example:
        >>> xywh_to_xyxy(np.array([2.0, 3.0, 10.0, 5.0])).tolist()
        [2.0, 3.0, 12.0, 8.0]
    """
    return _library(boxes).concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_xywh(boxes: Array) -> Array:
    """Converts corners to COCO's (x, y, width, height), with (x, y) the upper left corner.

    Example:
        >>> xyxy_to_xywh(np.array([2.0, 3.0, 12.0, 8.0])).tolist()
        [2.0, 3.0, 10.0, 5.0]
    """
    return _library(boxes).concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def centred_boxes(centres: Array, sizes: Array) -> Array:
    """Boxes ``[..., 4]`` from their centres ``[..., 2]`` (x, y) and sizes ``[..., 2]`` (width, height).

    Example:
        >>> centred_boxes(torch.tensor([10.0, 20.0]), torch.tensor([4.0, 6.0])).tolist()
        [8.0, 17.0, 12.0, 23.0]
    """
    return _library(centres).concatenate([centres - sizes / 2, centres + sizes / 2], -1)


def centres(boxes: Array) -> Array:
    """Centres ``[..., 2]`` (x, y) in pixels.

    Example:
        >>> centres(torch.tensor([8.0, 17.0, 12.0, 23.0])).tolist()
        [10.0, 20.0]
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def area(boxes: Array) -> Array:
    """Areas ``[...]`` in square pixels; an inverted box has area 0.

    Example:
        >>> area(torch.tensor([[0.0, 0.0, 4.0, 3.0], [5.0, 0.0, 4.0, 3.0]])).tolist()
        [12.0, 0.0]
    """
    return _at_least(boxes[..., 2] - boxes[..., 0], 0) * _at_least(boxes[..., 3] - boxes[..., 1], 0)


def size(boxes: Array) -> Array:
    """One size per box, ``[...]`` in pixels: ``sqrt(width * height)``, by which targets are small, medium or large.

    In ``centred_boxes`` and ``xyxy_to_xywh``, sizes are width and height instead.

    Example:
        >>> size(np.array([0.0, 0.0, 9.0, 4.0])).item()
        6.0
    """
    return _library(boxes).sqrt(area(boxes))


def intersection(a: Array, b: Array) -> Array:
    """Areas ``[...]`` of the intersections of boxes that broadcast against each other.

    Example:
        >>> intersection(np.array([0, 0, 4, 4.0]), np.array([2, 3, 9, 9.0])).item()
        2.0
    """
    library = _library(a)
    sides = library.minimum(a[..., 2:], b[..., 2:]) - library.maximum(a[..., :2], b[..., :2])
    sides = _at_least(sides, 0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Array, b: Array) -> Array:
    """Intersection over union ``[...]`` of boxes that broadcast against each other; 0 where both are empty.

    Example:
        >>> a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
        >>> iou(a[:, None], a).tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    shared = intersection(a, b)
    return _divide(shared, area(a) + area(b) - shared)


def iop(predicted: Array, truth: Array) -> Array:
    """Intersection over the area of the predicted box, ``[...]``; the boxes broadcast against each other.

    Suits ground truth that is drawn loosely around the target.

    Example:
        >>> iop(np.array([2, 2, 6, 4.0]), np.array([0, 0, 4, 9.0])).item()
        0.5
    """
    return _divide(intersection(predicted, truth), area(predicted))


def giou(a: Array, b: Array) -> Array:
    """Generalized IoU ``[...]`` in (-1, 1] of boxes that broadcast against each other.

    Rezatofighi et al., CVPR 2019, https://arxiv.org/abs/1902.09630.

    Example:
        >>> giou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])).item()
        -0.5
    """
    library = _library(a)
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    sides = library.maximum(a[..., 2:], b[..., 2:]) - library.minimum(a[..., :2], b[..., :2])
    hull = _at_least(sides, 0).prod(-1)
    return _divide(shared, union) - _divide(hull - union, hull)


def centre_distance(a: Array, b: Array) -> Array:
    """Euclidean distances ``[...]`` in pixels between the centres of boxes that broadcast against each other.

    Example:
        >>> centre_distance(np.array([0, 0, 2, 2.0]), np.array([3, 4, 5, 6.0])).item()
        5.0
    """
    offset = 0.5 * (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:])
    return _library(a).hypot(offset[..., 0], offset[..., 1])


def inside(points: Array, boxes: Array) -> Array:
    """Whether points ``[..., 2]`` (x, y) lie in boxes, bool ``[...]``; they broadcast against each other.

    Boxes are half-open: they contain their left and upper edges, not their right and lower ones.

    Example:
        >>> inside(np.array([[0, 0], [4, 1.0]]), np.array([0, 0, 4, 4.0])).tolist()
        [True, False]
    """
    return _library(points).all((points >= boxes[..., :2]) & (points < boxes[..., 2:]), -1)


def overlaps(a: Array, b: Array) -> Array:
    """Whether boxes overlap, bool ``[...]``; they broadcast against each other.

    Boxes that only share an edge or a corner do not overlap. A box without area overlaps a box if it lies strictly
    inside it.

    Example:
        >>> overlaps(np.array([0, 0, 4, 4.0]), np.array([[4, 0, 8, 4], [3, 3, 8, 8.0]])).tolist()
        [False, True]
    """
    return ~_library(a).any((b[..., :2] >= a[..., 2:]) | (b[..., 2:] <= a[..., :2]), -1)


def clip(boxes: Array, height: float, width: float) -> Array:
    """Boxes clipped to an image of ``height`` x ``width`` pixels; a box outside of it has no area left.

    Example:
        >>> clip(np.array([-2, 5, 9, 30.0]), 20, 40).tolist()
        [0.0, 5.0, 9.0, 20.0]
    """
    library = _library(boxes)
    x, y = library.clip(boxes[..., 0::2], 0, width), library.clip(boxes[..., 1::2], 0, height)
    return library.stack([x, y], -1).reshape(boxes.shape)


def _library(array: Tensor | np.ndarray) -> Any:
    """The array namespace, which the array API standard calls xp: torch or numpy, whose functions take the array."""
    return torch if isinstance(array, Tensor) else np


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient of areas, 0 where both are 0."""
    library = _library(denominator)
    return numerator / _at_least(denominator, library.finfo(denominator.dtype).tiny)


def _at_least(array: Array, minimum: float) -> Array:
    """Clips from below; ``numpy.clip`` takes several times as long for small arrays."""
    return array.clip(minimum) if isinstance(array, Tensor) else np.maximum(array, array.dtype.type(minimum))


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Greedy non-maximum suppression without a loop over boxes.

    A box is dropped if a kept box with a higher score has IoU > ``threshold`` with it. Boxes are processed in blocks,
    best scores first: suppression within the block, then of all remaining boxes by the kept boxes of the block. Within
    a block, the rule "a box is dropped if a kept box with a higher score suppresses it" is applied to all boxes at
    once, starting with all boxes kept, until nothing changes. This takes at most one round per box of the longest chain
    of overlapping boxes, usually 2 to 4 rounds.

    Args:
        boxes: ``[M, 4]`` in pixels.
        scores: ``[M]``.
        threshold: IoU in [0, 1].
        limit: maximum number of boxes to keep; None keeps all.

    Returns:
        int64 indices of the kept boxes, in descending order of score.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [20, 20, 28, 28]])
        >>> nms(boxes, torch.tensor([0.6, 0.9, 0.5]), threshold=0.5).tolist()
        [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    if boxes.device.type == "cpu":  # numpy's functions start faster than torch's, and there are few boxes
        values = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32)).numpy()
        with np.errstate(all="ignore"):
            return torch.from_numpy(_nms(values, order.numpy(), threshold, limit, NMS_BLOCK))
    # Several small IoU matrices are faster than one large one on the CPU; elsewhere one launch is faster.
    return _nms(boxes, order, threshold, limit, max(1, len(order)))


def _nms(boxes: Array, order: Array, threshold: float, limit: int | None, block_size: int) -> Array:
    """``nms`` for torch tensors or numpy arrays, in blocks of boxes; ``order``: indices by descending score."""
    library, rest = _library(boxes), order
    limit = len(rest) if limit is None else limit
    kept = [rest[:0]]
    while len(rest) > 0 and sum(map(len, kept)) < limit:
        block, rest = rest[:block_size], rest[block_size:]
        suppresses = library.triu(iou(boxes[block][:, None], boxes[block]) > threshold, 1)
        block = block[_unsuppressed(suppresses)]
        kept.append(block)
        if len(rest) > 0:
            rest = rest[~(iou(boxes[block][:, None], boxes[rest]) > threshold).any(0)]
    return library.concatenate(kept)[:limit]


def _unsuppressed(suppresses: Any) -> Any:
    """Mask ``[M]`` of the boxes to keep.

    ``suppresses[i, j]``: box i has a higher score than box j, and their IoU exceeds the threshold.
    """
    kept = ~suppresses.any(0)
    while True:
        updated = ~(suppresses & kept[:, None]).any(0)
        if (updated == kept).all():
            return kept
        kept = updated


def select(
    boxes: Callable[[Tensor], Tensor],
    scores: Tensor,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Postprocessing: turns the dense predictions of a head for one image into detections, by thresholds and ``nms``.

    Each of the P predictions counts for its best class only, and suppression runs over all classes together: objects of
    different classes rarely overlap in the sky, while one object often gets scores of two classes (our decision).

    Args:
        boxes: function that decodes boxes ``[M, 4]`` from int64 indices ``[M]`` among the P predictions. Only boxes
            whose scores exceed the threshold are decoded.
        scores: ``[P, classes]`` in [0, 1].
        score_threshold: detections have higher scores than this.
        iou_threshold: see ``nms``.
        max_detections: maximum number of detections.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [20, 20, 28, 28]])
        >>> scores = torch.tensor([[0.1, 0.9], [0.0, 0.2]])
        >>> select(boxes.__getitem__, scores, score_threshold=0.5, iou_threshold=0.5, max_detections=10).labels
        tensor([1])
    """
    candidates, best, labels = _candidates(scores, score_threshold)
    if len(candidates) == 0:
        return Detections(best.new_zeros(0, 4, dtype=torch.float32), best.float(), labels)
    if len(candidates) > NMS_CANDIDATES:
        strongest = best.topk(NMS_CANDIDATES).indices
        candidates, best, labels = candidates[strongest], best[strongest], labels[strongest]
    found, best = boxes(candidates).float(), best.float()
    kept = nms(found, best, iou_threshold, max_detections)
    return Detections(found[kept], best[kept], labels[kept])


def _candidates(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The predictions whose best score exceeds the threshold: their indices, best scores and labels."""
    if scores.device.type == "cpu":
        # Compute the best class only of the few predictions that have a score above the threshold. NOTE: torch's max
        # over a dimension wakes all threads even for a few rows, which takes longer than all other postprocessing.
        rows = (scores > threshold).nonzero()[:, 0].unique_consecutive()
        few = scores[rows].detach().to(torch.promote_types(scores.dtype, torch.float32))
        labels = torch.from_numpy(few.numpy().argmax(1))
        best = few.gather(1, labels[:, None])[:, 0]
        # Drop predictions that have a NaN, as the comparison of their maximum does.
        is_candidate = best > threshold
        return rows[is_candidate], best[is_candidate], labels[is_candidate]
    best, labels = scores.max(dim=1)
    rows = (best > threshold).nonzero()[:, 0]
    return rows, best[rows], labels[rows]
