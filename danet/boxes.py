"""Geometry of boxes: float ``[M, 4]`` tensors (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Candidates that enter non-maximum suppression, as in torchvision's and detectron2's detectors.
NMS_CANDIDATES = 1000
NMS_BLOCK = 128


class Detections(NamedTuple):
    """The objects found in one image, best first."""

    boxes: Tensor
    """float32 [M, 4] (x0, y0, x1, y1) in pixels."""
    scores: Tensor
    """float32 [M] in [0, 1], descending."""
    labels: Tensor
    """int64 [M], indices into the model's classes."""


def area(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``; an inverted box has area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection areas of boxes ``[..., 4]`` that broadcast against each other."""
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: ``[A, 4], [B, 4] -> [A, B]``; 0 where both are empty."""
    a, b = a[:, None], b[None]
    overlap = intersection(a, b)
    union = area(a) + area(b) - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def iop(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over the predicted box's area: ``[A, 4], [B, 4] -> [A, B]``.

    The right question where truth boxes are drawn loosely around the target.
    """
    predicted, truth = predicted[:, None], truth[None]
    inside = area(predicted)
    return intersection(predicted, truth) / inside.clamp(min=torch.finfo(inside.dtype).tiny)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of box i of ``a`` with box i of ``b``: ``[M, 4], [M, 4] -> [M]`` in (-1, 1].

    Rezatofighi et al., CVPR 2019.
    """
    overlap = intersection(a, b)
    union = area(a) + area(b) - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).tiny
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Greedy non-maximum suppression without a loop over boxes.

    A box is dropped where a kept box of higher score has IoU > ``threshold`` with it. The best boxes that are left are
    compared with each other, a block at a time; those of them that stay are compared with all others. Within a block,
    greedy suppression is the fixed point of "kept unless a kept better box covers it"; iterating from "all kept"
    reaches it in as many rounds as the longest chain of mutually covering boxes, usually 2-4.

    Args:
        boxes: ``[M, 4]``. scores: ``[M]``. threshold: IoU in [0, 1]. limit: the most boxes to keep.

    Returns:
        int64 indices of the kept boxes, in descending order of score.
    """
    rest = scores.argsort(descending=True, stable=True)
    limit = len(rest) if limit is None else limit
    # On the CPU a matrix of all pairs takes longer than a few small ones, elsewhere it takes one launch.
    size = NMS_BLOCK if boxes.device.type == "cpu" else max(1, len(rest))
    best = [rest[:0]]
    while len(rest) > 0 and sum(map(len, best)) < limit:
        block, rest = rest[:size], rest[size:]
        block = block[_uncovered((iou(boxes[block], boxes[block]) > threshold).triu(diagonal=1))]
        best.append(block)
        rest = rest[~(iou(boxes[block], boxes[rest]) > threshold).any(0)]
    return torch.cat(best)[:limit]


def _uncovered(covers: Tensor) -> Tensor:
    """Which boxes no box that stays covers: bool ``[M, M]`` (box i, a better one, covers box j) ``-> [M]``."""
    kept = torch.ones_like(covers[0])
    while True:
        updated = ~(covers & kept[:, None]).any(0)
        if torch.equal(updated, kept):
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
    """Turns a head's dense predictions for one image into detections.

    Each position speaks for its best class, and suppression runs over all classes at once: two
    objects of different classes hardly share a box in the sky, while one object often excites two
    classes (our decision).

    Args:
        boxes: gives those of some positions, ``[M] -> [M, 4]``: most positions hold nothing, and need none.
        scores: ``[P, classes]`` in [0, 1].
    """
    best, labels = scores.max(dim=1)
    candidates = (best > score_threshold).nonzero()[:, 0]
    if len(candidates) == 0:
        return Detections(best.new_zeros(0, 4, dtype=torch.float32), best[candidates].float(), labels[candidates])
    if len(candidates) > NMS_CANDIDATES:
        candidates = candidates[best[candidates].topk(NMS_CANDIDATES).indices]
    found, best, labels = boxes(candidates).float(), best[candidates].float(), labels[candidates]
    kept = nms(found, best, iou_threshold, max_detections)
    return Detections(found[kept], best[kept], labels[kept])
