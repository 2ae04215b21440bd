"""The anchor-free head of the preset ``default``."""

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

    A box is (dx, dy, log w, log h) relative to the cell's centre, in strides. Unlike distances to the four sides
    (FCOS, https://arxiv.org/abs/1904.01355), this also describes a target that lies between two cell centres.

    Classification: focal loss (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002) with targets 0 and 1; soft
    targets gave the same results. Regression: GIoU loss on all assigned cells. Only cells near a box's centre are
    positive for classification, and the other assigned cells are excluded from it: ground truth is often drawn
    loosely, so that its border is arbitrary, and positives up to the border keep all scores near 0.5.

    Example:
        >>> head = AnchorFreeHead(channels=8, strides=(4, 8), classes=2)
        >>> logits, deltas = head([torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 3, 3)])
        >>> list(head.scores(logits).shape), list(head.boxes(deltas).shape)
        ([1, 45, 2], [1, 45, 4])
    """

    score_prior: ClassVar[float | None] = 0.01  # of the focal loss paper: almost all cells are background

    FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
    BOX_WEIGHT = 2.0

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        return [(self.strides[level], self.strides[level])]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.outputs).sigmoid()

    def decode_boxes(self, deltas: Tensor, references: Tensor) -> Tensor:
        return decode_deltas(deltas, references)

    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        logits = self.flatten(output.logits, self.outputs)
        references = self.references(output.logits)
        boxes = self.boxes(output.deltas)
        assign = {"centre": assign_by_centre, "atss": assign_by_atss}[assignment]
        box_index, positive, ignored = assign(references, targets)

        # Classification: positive and background cells.
        image, cell = positive.nonzero(as_tuple=True)
        wanted = torch.zeros_like(logits)
        wanted[image, cell, targets.labels[image, box_index[image, cell]]] = 1.0
        focal = focal_loss(logits, wanted, self.FOCAL_ALPHA, self.FOCAL_GAMMA).sum(-1)
        focal = torch.where(ignored & ~positive, 0.0, focal)
        positives = loss_normalizer(len(image), logits)

        # Regression: all assigned cells.
        image, cell = (box_index >= 0).nonzero(as_tuple=True)
        overlap = giou(boxes[image, cell], targets.boxes[image, box_index[image, cell]])
        assigned = loss_normalizer(len(image), logits)
        return {"cls": focal.sum() / positives, "reg": self.BOX_WEIGHT * (1.0 - overlap).sum() / assigned}


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every element (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    error = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * error**gamma * entropy
