"""Label assignment: matches predictions (cells or anchors) to ground-truth boxes."""

from typing import NamedTuple

import torch
from torch import Tensor

from danet.boxes import centred_boxes, centres, inside, iou, size

# ``assign_by_centre``: box sizes of a level, and distances of cells from a box's centre, all in strides.
MIN_SIZE_STRIDES, MAX_SIZE_STRIDES = 2.5, 6.0
ASSIGNED_RADIUS_STRIDES, POSITIVE_RADIUS_STRIDES = 1.5, 1.0
# ``assign_by_atss``: candidates per level and side of a cell's square, as in the ATSS paper.
ATSS_CANDIDATES = 9
ATSS_SIDE_STRIDES = 8.0
# ``assign_by_overlap``
POSITIVE_IOU = 0.5


class Targets:
    """Ground truth of a batch, padded to the same number of boxes per image, for assignment without loops over images.

    Args:
        boxes: for every image ``[M_i, 4]`` in pixels.
        labels: for every image int64 ``[M_i]``, the class index, or -1 for a distractor (trained as background).
        ignore: for every image bool ``[M_i]``, whether the box is an ignore region.

    Example:
        >>> boxes = [torch.tensor([[4.0, 4, 12, 12], [20, 20, 30, 30]]), torch.zeros(0, 4)]
        >>> labels = [torch.tensor([0, -1]), torch.zeros(0, dtype=torch.int64)]
        >>> targets = Targets(boxes, labels, ignore=[label == 7 for label in labels])
        >>> targets.boxes.shape, targets.valid.tolist()
        (torch.Size([2, 1, 4]), [[True], [False]])
    """

    boxes: Tensor
    """Boxes of the classes, float32 ``[N, M, 4]``."""
    labels: Tensor
    """int64 ``[N, M]``."""
    valid: Tensor
    """Which of ``boxes`` are no padding, bool ``[N, M]``."""
    ignored: Tensor
    """Ignore regions, float32 ``[N, K, 4]``."""
    ignored_valid: Tensor
    """Which of ``ignored`` are no padding, bool ``[N, K]``."""

    def __init__(self, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]) -> None:
        objects = [(label >= 0) & ~skip for label, skip in zip(labels, ignore, strict=True)]
        self.boxes, self.valid = _pad([b[o].float() for b, o in zip(boxes, objects, strict=True)])
        self.labels, _ = _pad([label[o] for label, o in zip(labels, objects, strict=True)])
        self.ignored, self.ignored_valid = _pad([b[s].float() for b, s in zip(boxes, ignore, strict=True)])


class CellAssignment(NamedTuple):
    """The assignment of the P cells of an anchor-free head, ``[N, P]`` each."""

    box_index: Tensor
    """int64, the box whose coordinates the cell regresses, or -1."""
    positive: Tensor
    """bool, whether the cell is a positive of the classification loss."""
    ignored: Tensor
    """bool, whether the cell is excluded from the classification loss unless it is positive."""


@torch.no_grad()
def assign_by_centre(references: Tensor, targets: Targets) -> CellAssignment:
    """Assigns boxes to the cells around their centres, on the levels that fit their size (our decision).

    A box belongs to the levels where ``sqrt(area)`` is 2.5 to 6 strides; the finest level also takes all smaller boxes,
    the coarsest all larger ones. On these levels a box is assigned to the cell that contains its centre, so that no box
    is too small, and to all cells whose centres lie inside the box and within 1.5 strides of its centre. Where boxes
    compete, the smaller one wins. Assigned cells are positive within 1 stride of the box's centre.

    Args:
        references: ``[P, 4]``, centres and strides of the cells, see ``Head.references``.
        targets: the batch's ground truth.
    """
    ignored = _ignored(references[:, :2], references[:, 2], targets)
    if targets.boxes.shape[1] == 0:
        return _no_boxes(ignored)
    centre, stride = references[:, None, :2], references[:, None, 2]
    boxes = targets.boxes[:, None]

    # Levels of each box.
    sizes = size(boxes)
    finest, coarsest = references[:, 2].min(), references[:, 2].max()
    on_level = (sizes < MAX_SIZE_STRIDES * stride) | (stride == coarsest)
    on_level &= (sizes >= MIN_SIZE_STRIDES * stride) | (stride == finest)

    # Cells around its centre.
    distance = ((centres(boxes) - centre).abs() / stride[..., None]).amax(-1)
    near = (distance < ASSIGNED_RADIUS_STRIDES) & inside(centre, boxes)
    holds_centre = _holds_centre(references[:, :2], references[:, 2], targets.boxes)
    candidate = on_level & (near | holds_centre) & targets.valid[:, None]

    # The smallest candidate box of each cell.
    smallest, index = torch.where(candidate, sizes, torch.inf).min(dim=-1)
    box_index = torch.where(smallest.isfinite(), index, -1)
    central = (candidate & ((distance < POSITIVE_RADIUS_STRIDES) | holds_centre)).gather(2, index[..., None])[..., 0]
    return CellAssignment(box_index, (box_index >= 0) & central, ignored | (box_index >= 0))


@torch.no_grad()
def assign_by_atss(references: Tensor, targets: Targets) -> CellAssignment:
    """Adaptive Training Sample Selection in its form for heads without anchors.

    Zhang et al., CVPR 2020, https://arxiv.org/abs/1912.02424. The candidates of a box are the nine cells of every level
    that are nearest to its centre, each represented by a square of eight strides around the cell's centre. A box is
    assigned to the candidates whose squares have an IoU with it of at least the mean plus the standard deviation over
    all its candidates, if the box contains their centres. Where boxes compete, the larger IoU wins. All assigned cells
    are positive. A box without any such cell is assigned to the cell of the finest level that contains its centre (our
    decision; the original leaves it out).

    Args:
        references: ``[P, 4]``, centres and strides of the cells, see ``Head.references``.
        targets: the batch's ground truth.
    """
    cell_centres, strides = references[:, :2], references[:, 2]
    ignored = _ignored(cell_centres, strides, targets)
    images, count = targets.boxes.shape[:2]
    if count == 0:
        return _no_boxes(ignored)

    # Candidates: the nearest cells of every level.
    distance = (cell_centres - centres(targets.boxes)[:, :, None]).square().sum(-1)
    nearest = []
    for stride in strides.unique():
        level = (strides == stride).nonzero().squeeze(1)
        nearest.append(level[distance[..., level].topk(min(ATSS_CANDIDATES, len(level)), largest=False).indices])
    candidates = torch.cat(nearest, dim=-1)

    # Select those above the adaptive IoU threshold whose centres are inside the box.
    squares = centred_boxes(cell_centres, ATSS_SIDE_STRIDES * strides[:, None])
    overlap = iou(targets.boxes.flatten(0, 1)[:, None], squares).view(images, count, -1)
    of_candidates = overlap.gather(-1, candidates)
    selected = of_candidates >= (of_candidates.mean(-1, keepdim=True) + of_candidates.std(-1, keepdim=True))
    within = inside(cell_centres[:, None], targets.boxes[:, None]).transpose(1, 2)
    positive = torch.zeros_like(within).scatter_(-1, candidates, selected) & within

    # Give a box without cells the finest cell that contains its centre.
    home = _holds_centre(cell_centres, strides, targets.boxes).transpose(1, 2) & (strides == strides.min())
    fallback = home & ~positive.any(-1, keepdim=True)

    # The best box of each cell.
    quality = torch.where(fallback, torch.inf, torch.where(positive, overlap, -torch.inf))
    best, index = torch.where(targets.valid[..., None], quality, -torch.inf).max(dim=1)
    box_index = torch.where(best > -torch.inf, index, -1)
    return CellAssignment(box_index, box_index >= 0, ignored | (box_index >= 0))


@torch.no_grad()
def assign_by_overlap(references: Tensor, cells: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Assigns every anchor to the box it overlaps most if their IoU is at least 0.5, and every box to its best anchor.

    Args:
        references: ``[P, 4]``, centres and sizes of the anchors, see ``Head.references``.
        cells: ``[P]``, the strides of their levels.
        targets: the batch's ground truth.

    Returns:
        The index of each anchor's box or -1, int64 ``[N, P]``, and whether the anchor lies in an ignore region, bool
        ``[N, P]``.
    """
    anchors = centred_boxes(references[:, :2], references[:, 2:])
    ignored = _ignored(references[:, :2], cells, targets)
    box_index = torch.full(ignored.shape, -1, device=references.device)
    for i, count in enumerate(targets.valid.sum(1).tolist()):
        if count == 0:
            continue
        overlap = iou(anchors[:, None], targets.boxes[i, :count])
        best, index = overlap.max(dim=1)
        box_index[i] = torch.where(best >= POSITIVE_IOU, index, -1)
        # If boxes share their best anchor, the one with the larger IoU takes it and the other its next best.
        for box in overlap.max(dim=0).values.argsort(descending=True, stable=True).tolist():
            anchor = overlap[:, box].argmax()
            box_index[i, anchor] = box
            overlap[anchor] = -1.0
    return box_index, ignored


def _no_boxes(ignored: Tensor) -> CellAssignment:
    """The assignment of a batch without boxes."""
    return CellAssignment(torch.full(ignored.shape, -1, device=ignored.device), torch.zeros_like(ignored), ignored)


def _holds_centre(cell_centres: Tensor, cells: Tensor, boxes: Tensor) -> Tensor:
    """Whether cells (centres ``[P, 2]``, sides ``[P]``) contain the centres of boxes ``[N, M, 4]``: bool ``[N, P, M]``.

    Cells are half-open, so that exactly one cell of a level contains a point.
    """
    distance = centres(boxes)[:, None] - cell_centres[:, None]
    half = cells[:, None, None] / 2
    return ((distance >= -half) & (distance < half)).all(-1)


def _ignored(cell_centres: Tensor, cells: Tensor, targets: Targets) -> Tensor:
    """Whether a cell's centre lies in an ignore region, or the cell contains a region's centre: bool ``[N, P]``.

    The second condition matters because most ignore regions are narrow remains of targets, smaller than a cell.
    """
    covered = inside(cell_centres[:, None], targets.ignored[:, None])
    covered |= _holds_centre(cell_centres, cells, targets.ignored)
    return (covered & targets.ignored_valid[:, None]).any(-1)


def _pad(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors ``[M_i, ...]`` -> ``[N, max M, ...]`` filled with zeros, and a bool mask ``[N, max M]``."""
    longest = max(len(t) for t in tensors)
    padded = tensors[0].new_zeros(len(tensors), longest, *tensors[0].shape[1:])
    valid = torch.zeros(len(tensors), longest, dtype=torch.bool, device=padded.device)
    for i, t in enumerate(tensors):
        padded[i, : len(t)] = t
        valid[i, : len(t)] = True
    return padded, valid
