"""The anchor-free head (option ``model.head: default``): one prediction per cell.

A cell is the square of stride x stride pixels of the input that one position of a feature map stands for.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.boxes import giou
from danet.config import Assignment
from danet.models.heads.assignment import Targets, assign_by_atss, assign_by_centre
from danet.models.heads.head import Head, Output, decode_deltas, loss_normalizer


class AnchorFreeHead(Head):
    """Anchor-free head (our decision): one prediction per cell, a sigmoid score per class, focal and GIoU loss.

    A box is encoded as (dx, dy, log w, log h): the offset of its centre from the cell's centre, and its size, in
    strides. FCOS (https://arxiv.org/abs/1904.01355) predicts the distances from the cell's centre to the four sides
    instead; these cannot describe a box that does not contain the cell's centre, such as one of a tiny target.

    Label assignment: ``assign_by_centre`` or ``assign_by_atss`` (Adaptive Training Sample Selection).

    Classification: focal loss (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002) with targets 0 and 1; soft
    targets gave the same results. ``assign_by_centre`` makes only the cells near a box's centre positives, and this
    loss excludes the other cells that are assigned to the box. The reason is that ground-truth boxes are often larger
    than the object: if the cells near their borders were positives, too, all scores would stay near 0.5.

    Regression: loss of the generalized IoU (GIoU, https://arxiv.org/abs/1902.09630) on all assigned cells.

    Example:
        >>> head = AnchorFreeHead(channels=8, strides=(4, 8), num_classes=2)
        >>> logits, deltas = head([torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 3, 3)])
        >>> list(head.scores(logits).shape), list(head.boxes(deltas).shape)
        ([1, 45, 2], [1, 45, 4])
    """

    score_prior: ClassVar[float | None] = 0.01  # as in the focal loss paper: almost all cells are background

    FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
    BOX_WEIGHT = 2.0

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        return [(self.strides[level], self.strides[level])]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.score_channels).sigmoid()

    def decode_boxes(self, deltas: Tensor, reference_boxes: Tensor) -> Tensor:
        return decode_deltas(deltas, reference_boxes)

    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        logits = self.flatten(output.logits, self.score_channels)
        reference_boxes = self.reference_boxes(output.logits)
        boxes = self.boxes(output.deltas)
        assign = {"centre": assign_by_centre, "atss": assign_by_atss}[assignment]
        box_index, positive, ignored = assign(reference_boxes, targets)

        # Classification loss of the positive and background cells.
        image, cell = positive.nonzero(as_tuple=True)
        score_targets = torch.zeros_like(logits)
        score_targets[image, cell, targets.labels[image, box_index[image, cell]]] = 1.0
        focal = focal_loss(logits, score_targets, self.FOCAL_ALPHA, self.FOCAL_GAMMA).sum(-1)
        focal = torch.where(ignored & ~positive, 0.0, focal)
        classification = focal.sum() / loss_normalizer(len(image), logits)

        # Regression loss of all assigned cells.
        image, cell = (box_index >= 0).nonzero(as_tuple=True)
        overlap = giou(boxes[image, cell], targets.boxes[image, box_index[image, cell]])
        regression = self.BOX_WEIGHT * (1.0 - overlap).sum() / loss_normalizer(len(image), logits)
        return {"cls": classification, "reg": regression}


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every element (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002, eqs. 1 to 5)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    one_minus_p_t = probability * (1 - targets) + (1 - probability) * targets
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * one_minus_p_t**gamma * entropy
