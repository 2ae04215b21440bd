"""Which prediction answers for which box: what the losses of ``danet.losses.detection`` teach it from."""

from typing import NamedTuple

import torch
from torch import Tensor

from danet.boxes import area, iou

# By centre: the levels of a box in strides of sqrt(area), and the cells about its centre in strides.
LOW, HIGH = 2.5, 6.0
RADIUS, SURE_RADIUS = 1.5, 1.0
# ATSS, the constants of its paper: candidates a level, and the side of a cell's square in strides.
CANDIDATES = 9
SIDE = 8.0
# By overlap.
POSITIVE_IOU = 0.5


class Targets:
    """Boxes of a batch padded to equal numbers, so that assignment runs without a loop over images.

    Args:
        boxes: a list of ``[M_i, 4]``. labels: a list of int64 ``[M_i]``, class index or -1 (distractor:
            background). ignore: a list of bool ``[M_i]``, regions in which nothing is learned.
    """

    def __init__(self, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]) -> None:
        objects = [(label >= 0) & ~skip for label, skip in zip(labels, ignore, strict=True)]
        self.boxes, self.valid = _pad([b[o].float() for b, o in zip(boxes, objects, strict=True)])
        self.labels, _ = _pad([label[o] for label, o in zip(labels, objects, strict=True)])
        self.ignored, self.ignored_valid = _pad([b[s].float() for b, s in zip(boxes, ignore, strict=True)])


class Cells(NamedTuple):
    """What the cells of an anchor-free head learn, ``[N, P]`` each."""

    matched: Tensor  # int64, the index of the box that a cell answers for, or -1
    sure: Tensor  # bool, whether it learns that the box is there
    free: Tensor  # bool, answers for a box or lies in an ignore region: unless it is sure, it learns neither


@torch.no_grad()
def by_centre(references: Tensor, targets: Targets) -> Cells:
    """Cells near a box's centre, on the levels of its size; see ``AnchorFreeLoss``.

    Args:
        references: ``[P, 4]`` cell centres and strides.
    """
    ignored = _ignored(references[:, :2], references[:, 2], targets)
    if targets.boxes.shape[1] == 0:
        return _nothing(ignored)
    centre, stride = references[:, None, :2], references[:, None, 2]
    boxes = targets.boxes[:, None]
    size = area(boxes).sqrt()
    finest, coarsest = references[:, 2].min(), references[:, 2].max()
    in_range = (size < HIGH * stride) | (stride == coarsest)
    in_range &= (size >= LOW * stride) | (stride == finest)
    distance = (boxes[..., :2] + boxes[..., 2:]) / 2 - centre
    strides_away = (distance.abs() / stride[..., None]).amax(-1)
    inside = _inside(centre, targets.boxes)
    holds_centre = _holds_centre(references[:, :2], references[:, 2], targets.boxes)
    positive = in_range & (((strides_away < RADIUS) & inside) | holds_centre) & targets.valid[:, None]
    cost = torch.where(positive, size, torch.inf)
    best, index = cost.min(dim=-1)
    matched = torch.where(best.isfinite(), index, -1)
    central = (positive & ((strides_away < SURE_RADIUS) | holds_centre)).gather(2, index[..., None])[..., 0]
    return Cells(matched, (matched >= 0) & central, ignored | (matched >= 0))


@torch.no_grad()
def by_atss(references: Tensor, targets: Targets) -> Cells:
    """Adaptive training sample selection (Zhang et al., CVPR 2020), as it is for heads without anchors.

    Candidates of a box are the nine cells of every level that are nearest to its centre. Of those, the cells answer
    for it whose squares of eight strides have an IoU with it of at least the mean plus the standard deviation of all
    candidates', and whose centres it contains. Where boxes compete, the larger IoU wins. All of them learn both box
    and class. A box between the cells' centres, which would get none, gets the finest cell that holds its centre (the
    original leaves it out).

    Args:
        references: ``[P, 4]`` cell centres and strides.
    """
    centres, strides = references[:, :2], references[:, 2]
    ignored = _ignored(centres, strides, targets)
    images, boxes = targets.boxes.shape[:2]
    if boxes == 0:
        return _nothing(ignored)
    half = SIDE / 2 * strides[:, None]
    squares = torch.cat([centres - half, centres + half], dim=1)
    overlap = iou(targets.boxes.flatten(0, 1), squares).view(images, boxes, -1)
    middle = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    distance = (centres - middle[:, :, None]).square().sum(-1)
    nearest = []
    for stride in strides.unique():
        level = (strides == stride).nonzero().squeeze(1)
        nearest.append(level[distance[..., level].topk(min(CANDIDATES, len(level)), largest=False).indices])
    candidates = torch.cat(nearest, dim=-1)
    fit = overlap.gather(-1, candidates)
    enough = fit >= (fit.mean(-1, keepdim=True) + fit.std(-1, keepdim=True))
    inside = _inside(centres[:, None], targets.boxes).transpose(1, 2)
    positive = torch.zeros_like(inside).scatter_(-1, candidates, enough) & inside

    home = _holds_centre(centres, strides, targets.boxes).transpose(1, 2) & (strides == strides.min())
    alone = home & ~positive.any(-1, keepdim=True)
    quality = torch.where(alone, torch.inf, torch.where(positive, overlap, -torch.inf))
    best, index = torch.where(targets.valid[..., None], quality, -torch.inf).max(dim=1)
    matched = torch.where(best > -torch.inf, index, -1)
    return Cells(matched, matched >= 0, ignored | (matched >= 0))


@torch.no_grad()
def by_overlap(references: Tensor, cells: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """For every image and anchor the index of its box or -1, and whether it lies in an ignore region.

    Args:
        references: ``[P, 4]`` centres and sizes of the anchors. cells: ``[P]`` strides of their levels.
    """
    centre, size = references[:, :2], references[:, 2:]
    anchors = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    ignored = _ignored(centre, cells, targets)
    matched = torch.full(ignored.shape, -1, device=references.device)
    for i, count in enumerate(targets.valid.sum(1).tolist()):
        if count == 0:
            continue
        overlap = iou(anchors, targets.boxes[i, :count])
        best, index = overlap.max(dim=1)
        matched[i] = torch.where(best >= POSITIVE_IOU, index, -1)
        # Boxes that want the same anchor: the better fit takes it, the other its next best.
        for box in overlap.max(dim=0).values.argsort(descending=True, stable=True).tolist():
            anchor = overlap[:, box].argmax()
            matched[i, anchor] = box
            overlap[anchor] = -1.0
    return matched, ignored


def _nothing(ignored: Tensor) -> Cells:
    """Without boxes."""
    return Cells(torch.full(ignored.shape, -1, device=ignored.device), torch.zeros_like(ignored), ignored)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points ``[P, 1, 2]`` lie in boxes ``[N, M, 4]``: bool ``[N, P, M]``."""
    boxes = boxes[:, None]
    return ((points >= boxes[..., :2]) & (points < boxes[..., 2:])).all(-1)


def _holds_centre(centres: Tensor, cells: Tensor, boxes: Tensor) -> Tensor:
    """Whether cells (centres ``[P, 2]``, sides ``[P]``) contain the centres of boxes ``[N, M, 4]``: bool ``[N, P, M]``.

    Cells are half-open, so that exactly one of a level contains a point.
    """
    distance = (boxes[:, None, :, :2] + boxes[:, None, :, 2:]) / 2 - centres[:, None]
    half = cells[:, None, None] / 2
    return ((distance >= -half) & (distance < half)).all(-1)


def _ignored(centres: Tensor, cells: Tensor, targets: Targets) -> Tensor:
    """Whether a cell's centre lies in an ignore region or the cell holds a region's centre: bool ``[N, P]``.

    The latter, since most regions are slivers of targets, smaller than a cell.
    """
    inside = _inside(centres[:, None], targets.ignored) | _holds_centre(centres, cells, targets.ignored)
    return (inside & targets.ignored_valid[:, None]).any(-1)


def _pad(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors ``[M_i, ...]`` -> ``[N, max M, ...]`` filled with zeros, and a bool mask ``[N, max M]``."""
    longest = max(len(t) for t in tensors)
    padded = tensors[0].new_zeros(len(tensors), longest, *tensors[0].shape[1:])
    valid = torch.zeros(len(tensors), longest, dtype=torch.bool, device=padded.device)
    for i, t in enumerate(tensors):
        padded[i, : len(t)] = t
        valid[i, : len(t)] = True
    return padded, valid
