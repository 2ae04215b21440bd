"""The anchor-based head of the preset ``paper``.

An anchor is a box of fixed size and shape around the centre of a position of a feature map. Each prediction moves and
scales its anchor so that it fits a target.
"""

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
    """Anchor-based head: softmax over the background (index 0) and the classes, cross-entropy and smooth-L1 loss.

    The losses are those of section 3.3 of the DANet paper (https://doi.org/10.1145/3581783.3612146), which gives no
    anchors. Our decision: four anchors per position, of two sizes (2 and 3.2 strides) and two shapes (square, and 1.6
    times as wide as high, since drones seen from the side are wide). Deltas are divided by the variances 0.1 and 0.2
    of SSD (https://arxiv.org/abs/1512.02325).

    The classification loss is computed on all assigned anchors and on hard negatives, which are the unassigned anchors
    of an image with the highest loss, three for each assigned anchor. The paper does not say how negatives are chosen;
    we follow an earlier detector of its authors.

    Example:
        >>> head = AnchorHead(channels=8, strides=(4, 8), num_classes=2)
        >>> logits, deltas = head([torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 3, 3)])
        >>> list(head.scores(logits).shape), list(head.boxes(deltas).shape)
        ([1, 180, 2], [1, 180, 4])
    """

    SIZES = (2.0, 3.2)
    ASPECT_RATIOS = (1.0, 1.6)
    VARIANCES = (0.1, 0.1, 0.2, 0.2)
    NEGATIVES_PER_POSITIVE = 3

    predictions_per_position: ClassVar[int] = len(SIZES) * len(ASPECT_RATIOS)
    background_channels: ClassVar[int] = 1

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        stride = self.strides[level]
        return [
            (size * stride * math.sqrt(aspect), size * stride / math.sqrt(aspect))
            for size in self.SIZES
            for aspect in self.ASPECT_RATIOS
        ]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.score_channels).softmax(dim=-1)[..., 1:]

    def decode_boxes(self, deltas: Tensor, reference_boxes: Tensor) -> Tensor:
        return decode_deltas(deltas * deltas.new_tensor(self.VARIANCES), reference_boxes)

    def encode_boxes(self, boxes: Tensor, reference_boxes: Tensor) -> Tensor:
        """Deltas ``[M, 4]`` of boxes ``[M, 4]`` (corners) and reference boxes ``[M, 4]``; inverts ``decode_boxes``."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        offsets = (centres(boxes) - reference_boxes[:, :2]) / reference_boxes[:, 2:]
        deltas = torch.cat([offsets, (sizes / reference_boxes[:, 2:]).log()], dim=1)
        return deltas / deltas.new_tensor(self.VARIANCES)

    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        logits = self.flatten(output.logits, self.score_channels)
        deltas = self.flatten(output.deltas, 4)
        reference_boxes = self.reference_boxes(output.logits)
        box_index, ignored = assign_by_overlap(reference_boxes, self.cell_sizes(output.logits), targets)

        # Cross-entropy of every anchor, whose label is the class of its box + 1, or 0 for the background.
        image, anchor = (box_index >= 0).nonzero(as_tuple=True)
        box = box_index[image, anchor]
        normalizer = loss_normalizer(len(image), logits)
        labels = torch.zeros_like(box_index)
        labels[image, anchor] = targets.labels[image, box] + 1
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(box_index)

        # Select the hard negatives of each image separately, so that the selection does not depend on how a batch is
        # divided among processes. An image without positives also gives three negatives, against false positives.
        hardness = torch.where((box_index >= 0) | ignored, -torch.inf, entropy.detach())
        negatives = self.NEGATIVES_PER_POSITIVE * (box_index >= 0).sum(1, keepdim=True).clamp(min=1)
        rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        selected = (box_index >= 0) | ((rank < negatives) & hardness.isfinite())

        # Smooth-L1 loss of the assigned anchors.
        delta_targets = self.encode_boxes(targets.boxes[image, box], reference_boxes[anchor])
        distance = F.smooth_l1_loss(deltas[image, anchor], delta_targets, reduction="sum")
        return {"cls": entropy[selected].sum() / normalizer, "reg": distance / normalizer}
