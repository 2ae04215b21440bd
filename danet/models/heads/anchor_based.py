"""The anchor-based head of the preset ``paper``."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.boxes import centres
from danet.config import Assignment
from danet.models.heads.assignment import Targets, assign_by_overlap
from danet.models.heads.head import Head, Output, decode_deltas, loss_normalizer


class AnchorHead(Head):
    """Anchor-based head: softmax over background (index 0) and classes, cross-entropy and smooth-L1 loss.

    The losses are those of section 3.3 of the DANet paper (https://doi.org/10.1145/3581783.3612146), which gives no
    anchors. Our decision: four anchors per position, of two sizes (2 and 3.2 strides) and two shapes (square, and 1.6
    times as wide as high, since drones seen from the side are wide). Deltas are divided by the variances 0.1 and 0.2
    of SSD (https://arxiv.org/abs/1512.02325).

    The classification loss takes all assigned anchors and, for every assigned anchor of an image, the three unassigned
    ones with the highest loss (hard negative mining, as in the authors' earlier detector DAGNet).

    Example:
        >>> head = AnchorHead(channels=8, strides=(4, 8), classes=2)
        >>> logits, deltas = head([torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 3, 3)])
        >>> list(head.scores(logits).shape), list(head.boxes(deltas).shape)
        ([1, 180, 2], [1, 180, 4])
    """

    SIZES = (2.0, 3.2)
    ASPECT_RATIOS = (1.0, 1.6)
    VARIANCES = (0.1, 0.1, 0.2, 0.2)
    NEGATIVES_PER_POSITIVE = 3

    predictions_per_position: ClassVar[int] = len(SIZES) * len(ASPECT_RATIOS)
    background_outputs: ClassVar[int] = 1

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        stride = self.strides[level]
        return [
            (size * stride * math.sqrt(aspect), size * stride / math.sqrt(aspect))
            for size in self.SIZES
            for aspect in self.ASPECT_RATIOS
        ]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.outputs).softmax(dim=-1)[..., 1:]

    def decode_boxes(self, deltas: Tensor, references: Tensor) -> Tensor:
        return decode_deltas(deltas * deltas.new_tensor(self.VARIANCES), references)

    def encode_boxes(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas ``[M, 4]`` that decode to ``boxes [M, 4]`` (corners), relative to references (centre and size)."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        offsets = (centres(boxes) - references[:, :2]) / references[:, 2:]
        deltas = torch.cat([offsets, (sizes / references[:, 2:]).log()], dim=1)
        return deltas / deltas.new_tensor(self.VARIANCES)

    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        logits = self.flatten(output.logits, self.outputs)
        deltas = self.flatten(output.deltas, 4)
        references = self.references(output.logits)
        box_index, ignored = assign_by_overlap(references, self.cell_sizes(output.logits), targets)

        image, anchor = (box_index >= 0).nonzero(as_tuple=True)
        box = box_index[image, anchor]
        positives = loss_normalizer(len(image), logits)
        labels = torch.zeros_like(box_index)
        labels[image, anchor] = targets.labels[image, box] + 1
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(box_index)

        # Mine hard negatives per image, so that the choice does not depend on how processes share a batch. An image
        # without positives is prone to false positives: it also gives three negatives.
        hardness = torch.where((box_index >= 0) | ignored, -torch.inf, entropy.detach())
        quota = self.NEGATIVES_PER_POSITIVE * (box_index >= 0).sum(1, keepdim=True).clamp(min=1)
        rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        selected = (box_index >= 0) | ((rank < quota) & hardness.isfinite())

        wanted = self.encode_boxes(targets.boxes[image, box], references[anchor])
        distance = F.smooth_l1_loss(deltas[image, anchor], wanted, reduction="sum")
        return {"cls": entropy[selected].sum() / positives, "reg": distance / positives}
