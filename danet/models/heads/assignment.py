"""Label assignment: matches predictions (cells or anchors) to ground-truth boxes.

A cell is the square of stride x stride pixels of the input that one position of a feature map stands for. A prediction
is assigned to one box, whose coordinates it learns, or to none. It is a positive if it learns the class of this box; it
is ignored if it is excluded from the classification loss; all others learn the background.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danet.boxes import centred_boxes, centres, inside, iou, size

# ``assign_by_centre``: smallest and largest size of the boxes of a level, in strides.
MIN_SIZE_STRIDES, MAX_SIZE_STRIDES = 2.5, 6.0
# ``assign_by_centre``: maximum distance of assigned and of positive cells from a box's centre.
ASSIGNED_RADIUS_STRIDES, POSITIVE_RADIUS_STRIDES = 1.5, 1.0
# ``assign_by_atss``, both as in the ATSS paper: number of candidate cells of a box on each level, and the side of the
# square that represents a cell when its IoU with a box is computed.
ATSS_CANDIDATES = 9
ATSS_SIDE_STRIDES = 8.0
# ``assign_by_overlap``: minimum IoU of an anchor with its box.
POSITIVE_IOU = 0.5


class Targets:
    """Ground truth of a batch, padded to the same number of boxes per image.

    Because of the padding, `assign_by_centre` and `assign_by_atss` need no loop over the images.

    Args:
        boxes: for every image ``[M_i, 4]``, the corners (x0, y0, x1, y1) in pixels.
        labels: for every image int64 ``[M_i]``, the class index, or -1 for a distractor (trained as background).
        ignore: for every image bool ``[M_i]``, whether the box is an ignore region, in which nothing is trained.

    Example:
        >>> boxes = [torch.tensor([[4.0, 4, 12, 12], [20, 20, 30, 30]]), torch.zeros(0, 4)]
        >>> labels = [torch.tensor([0, -1]), torch.zeros(0, dtype=torch.int64)]
        >>> targets = Targets(boxes, labels, ignore=[torch.zeros(len(label), dtype=torch.bool) for label in labels])
        >>> targets.boxes.shape, targets.valid.tolist()
        (torch.Size([2, 1, 4]), [[True], [False]])
    """

    boxes: Tensor
    """Boxes of the classes, without distractors and ignore regions, float32 ``[N, M, 4]``."""
    labels: Tensor
    """Class indices of ``boxes``, int64 ``[N, M]``."""
    valid: Tensor
    """False where ``boxes`` and ``labels`` are padding, bool ``[N, M]``."""
    ignore_regions: Tensor
    """Ignore regions, float32 ``[N, K, 4]``."""
    ignore_regions_valid: Tensor
    """False where ``ignore_regions`` is padding, bool ``[N, K]``."""

    def __init__(self, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]) -> None:
        is_target = [(label >= 0) & ~skip for label, skip in zip(labels, ignore, strict=True)]
        self.boxes, self.valid = _pad([box[keep].float() for box, keep in zip(boxes, is_target, strict=True)])
        self.labels, _ = _pad([label[keep] for label, keep in zip(labels, is_target, strict=True)])
        regions = [box[skip].float() for box, skip in zip(boxes, ignore, strict=True)]
        self.ignore_regions, self.ignore_regions_valid = _pad(regions)


class CellAssignment(NamedTuple):
    """The assignment of the P cells of an anchor-free head, ``[N, P]`` each."""

    box_index: Tensor
    """int64, the index of the box that the cell is assigned to and learns to predict, or -1."""
    positive: Tensor
    """bool, whether the cell is a positive of the classification loss."""
    ignored: Tensor
    """bool, whether the cell is excluded from the classification loss unless it is positive."""


@torch.no_grad()
def assign_by_centre(reference_boxes: Tensor, targets: Targets) -> CellAssignment:
    """Assigns boxes to the cells around their centres, on the levels that fit their size (our decision).

    A box belongs to the levels where its size ``sqrt(area)`` is 2.5 to 6 strides; the finest level also takes all
    smaller boxes, the coarsest level all larger ones. On these levels, a box is assigned to the cell that contains its
    centre, so that even the smallest box has a cell. It is also assigned to all cells whose centres lie inside the box
    and within 1.5 strides of its centre, horizontally and vertically. A cell that several boxes claim gets the smallest
    of them. An assigned cell is positive if its centre is within 1 stride of the box's centre, horizontally and
    vertically. The cell that contains the box's centre always is: its centre is at most half a stride away.

    Args:
        reference_boxes: ``[P, 4]``, centres and strides of the cells, see ``Head.reference_boxes``.
        targets: the batch's ground truth.
    """
    ignored = _in_ignore_region(reference_boxes[:, :2], reference_boxes[:, 2], targets)
    if targets.boxes.shape[1] == 0:
        return _no_boxes(ignored)
    centre, stride = reference_boxes[:, None, :2], reference_boxes[:, None, 2]
    boxes = targets.boxes[:, None]

    # Find the levels of each box.
    sizes = size(boxes)
    finest, coarsest = reference_boxes[:, 2].min(), reference_boxes[:, 2].max()
    on_level = (sizes < MAX_SIZE_STRIDES * stride) | (stride == coarsest)
    on_level &= (sizes >= MIN_SIZE_STRIDES * stride) | (stride == finest)

    # Find the cells around its centre.
    distance = ((centres(boxes) - centre).abs() / stride[..., None]).amax(-1)
    near = (distance < ASSIGNED_RADIUS_STRIDES) & inside(centre, boxes)
    contains_centre = _contains_centre(reference_boxes[:, :2], reference_boxes[:, 2], targets.boxes)
    candidate = on_level & (near | contains_centre) & targets.valid[:, None]

    # Select the smallest candidate box of each cell.
    smallest, index = torch.where(candidate, sizes, torch.inf).min(dim=-1)
    box_index = torch.where(smallest.isfinite(), index, -1)
    central = (candidate & (distance < POSITIVE_RADIUS_STRIDES)).gather(2, index[..., None])[..., 0]
    return CellAssignment(box_index, (box_index >= 0) & central, ignored | (box_index >= 0))


@torch.no_grad()
def assign_by_atss(reference_boxes: Tensor, targets: Targets) -> CellAssignment:
    """Adaptive Training Sample Selection (ATSS), in the form for heads without anchors.

    Zhang et al., CVPR 2020, https://arxiv.org/abs/1912.02424. The candidates of a box are the nine cells of every level
    that are nearest to its centre. The IoU of a candidate with the box is that of a square around the cell's centre,
    whose side is eight strides. The threshold of a box is the mean plus the standard deviation of the IoUs of all its
    candidates. The box is assigned to the candidates whose IoU is at least the threshold and whose centres lie inside
    the box. A cell that several boxes claim gets the one with the largest IoU. All assigned cells are positive.

    A box for which no candidate satisfies these conditions is assigned to the cell of the finest level that contains
    its centre, with precedence over other boxes (our decision; the original method leaves the box out).

    Args:
        reference_boxes: ``[P, 4]``, centres and strides of the cells, see ``Head.reference_boxes``.
        targets: the batch's ground truth.
    """
    cell_centres, strides = reference_boxes[:, :2], reference_boxes[:, 2]
    ignored = _in_ignore_region(cell_centres, strides, targets)
    images, count = targets.boxes.shape[:2]
    if count == 0:
        return _no_boxes(ignored)

    # Find the candidates of each box: the nearest cells of every level.
    distance = (cell_centres - centres(targets.boxes)[:, :, None]).square().sum(-1)
    nearest = []
    for stride in strides.unique():
        level = (strides == stride).nonzero().squeeze(1)
        nearest.append(level[distance[..., level].topk(min(ATSS_CANDIDATES, len(level)), largest=False).indices])
    candidates = torch.cat(nearest, dim=-1)

    # Select the candidates that reach the box's IoU threshold and whose centres are inside the box.
    squares = centred_boxes(cell_centres, ATSS_SIDE_STRIDES * strides[:, None])
    overlap = iou(targets.boxes.flatten(0, 1)[:, None], squares).view(images, count, -1)
    candidate_iou = overlap.gather(-1, candidates)
    selected = candidate_iou >= (candidate_iou.mean(-1, keepdim=True) + candidate_iou.std(-1, keepdim=True))
    within = inside(cell_centres[:, None], targets.boxes[:, None]).transpose(1, 2)
    positive = torch.zeros_like(within).scatter_(-1, candidates, selected) & within

    # Assign a box to which no candidate was assigned to the cell of the finest level that contains its centre.
    finest = _contains_centre(cell_centres, strides, targets.boxes).transpose(1, 2) & (strides == strides.min())
    fallback = finest & ~positive.any(-1, keepdim=True)

    # Select the box of each cell: such a box comes first, then the box with the largest IoU.
    quality = torch.where(fallback, torch.inf, torch.where(positive, overlap, -torch.inf))
    best, index = torch.where(targets.valid[..., None], quality, -torch.inf).max(dim=1)
    box_index = torch.where(best > -torch.inf, index, -1)
    return CellAssignment(box_index, box_index >= 0, ignored | (box_index >= 0))


@torch.no_grad()
def assign_by_overlap(reference_boxes: Tensor, cell_sizes: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Assigns every anchor to the box with which it has the largest IoU, if that is at least 0.5.

    Every box is also assigned to the anchor that has the largest IoU with it, even if that is lower. If several boxes
    have the same best anchor, the box with the larger IoU gets it, and the others get their next best anchors.
    "Overlap" in the name means the IoU; ``danet.boxes.overlaps`` tells whether boxes intersect at all.

    Args:
        reference_boxes: ``[P, 4]``, centres and sizes of the anchors, see ``Head.reference_boxes``.
        cell_sizes: ``[P]``, the strides of the anchors' levels in pixels.
        targets: the batch's ground truth.

    Returns:
        The index of each anchor's box or -1, int64 ``[N, P]``, and whether an ignore region contains the centre of the
        anchor's cell, or the cell contains the centre of an ignore region, bool ``[N, P]``.
    """
    anchors = centred_boxes(reference_boxes[:, :2], reference_boxes[:, 2:])
    ignored = _in_ignore_region(reference_boxes[:, :2], cell_sizes, targets)
    box_index = torch.full(ignored.shape, -1, device=reference_boxes.device)
    for i, count in enumerate(targets.valid.sum(1).tolist()):
        if count == 0:
            continue
        overlap = iou(anchors[:, None], targets.boxes[i, :count])
        best, index = overlap.max(dim=1)
        box_index[i] = torch.where(best >= POSITIVE_IOU, index, -1)
        # Assign each box to its best anchor. If boxes share their best anchor, the one with the larger IoU gets it, and
        # the other one gets its next best anchor.
        for box in overlap.max(dim=0).values.argsort(descending=True, stable=True).tolist():
            anchor = overlap[:, box].argmax()
            box_index[i, anchor] = box
            overlap[anchor] = -1.0
    return box_index, ignored


def _no_boxes(ignored: Tensor) -> CellAssignment:
    """The assignment of a batch without boxes: no cell is assigned."""
    return CellAssignment(torch.full(ignored.shape, -1, device=ignored.device), torch.zeros_like(ignored), ignored)


def _contains_centre(cell_centres: Tensor, cell_sizes: Tensor, boxes: Tensor) -> Tensor:
    """Whether each cell contains the centre of each box.

    Cells contain their left and upper edges, not their right and lower ones, so that exactly one cell of a level
    contains a point.

    Args:
        cell_centres: ``[P, 2]``.
        cell_sizes: ``[P]``.
        boxes: ``[N, M, 4]``.

    Returns:
        bool ``[N, P, M]``.
    """
    distance = centres(boxes)[:, None] - cell_centres[:, None]
    half = cell_sizes[:, None, None] / 2
    return ((distance >= -half) & (distance < half)).all(-1)


def _in_ignore_region(cell_centres: Tensor, cell_sizes: Tensor, targets: Targets) -> Tensor:
    """Whether each cell's centre lies in an ignore region, or the cell contains a region's centre: bool ``[N, P]``.

    The second condition finds ignore regions that are smaller than a cell and contain no cell centre, such as the
    narrow strip of a target that remains at the edge of a cropped image.
    """
    covered = inside(cell_centres[:, None], targets.ignore_regions[:, None])
    covered |= _contains_centre(cell_centres, cell_sizes, targets.ignore_regions)
    return (covered & targets.ignore_regions_valid[:, None]).any(-1)


def _pad(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors ``[M_i, ...]`` -> ``[N, max M, ...]`` filled with zeros, and a bool mask ``[N, max M]``."""
    padded = tensors[0].new_zeros(len(tensors), max(map(len, tensors)), *tensors[0].shape[1:])
    valid = torch.zeros(padded.shape[:2], dtype=torch.bool, device=padded.device)
    for i, t in enumerate(tensors):
        padded[i, : len(t)] = t
        valid[i, : len(t)] = True
    return padded, valid
