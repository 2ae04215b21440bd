"""The detection terms of eq. 10: how wrong the predictions are that answer for boxes, and all others."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from danet.boxes import giou
from danet.config import Assignment
from danet.losses.assignment import Targets, by_atss, by_centre, by_overlap
from danet.models.danet import DANet, Output
from danet.models.head import AnchorFreeHead, AnchorHead


class AnchorFreeLoss(nn.Module):
    """Preset ``default``: focal loss on the cells, GIoU on the cells that answer for a box.

    A box belongs to the levels where ``sqrt(area)`` is 2.5 to 6 strides (the finest level takes all that
    are smaller, the coarsest all that are larger); there, the cells whose centres lie within 1.5 strides
    of its centre and inside it answer for it, and always the cell that contains its centre, so that no
    box is too small to be learned. Where boxes compete, the smaller wins.

    All of these learn the box, but only those within 1 stride of its centre learn that something is
    there; the others are free to say either. Where the window of a loosely drawn box ends is chance, and
    learning it as truth keeps every score near 0.5. Targets are 0 or 1: soft ones have the same effect.

    With ``assignment="atss"`` cells are chosen by ATSS instead, the rival of docs/results.md.
    """

    ALPHA, GAMMA = 0.25, 2.0
    BOX_WEIGHT = 2.0

    def __init__(self, head: AnchorFreeHead, assignment: Assignment = "centre") -> None:
        super().__init__()
        self.head = head
        self.assign = {"centre": by_centre, "atss": by_atss}[assignment]

    def forward(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        logits = self.head.flatten(output.logits, self.head.outputs)
        references = self.head.references(output.logits)
        boxes = self.head.boxes(output.deltas)
        matched, sure, free = self.assign(references, targets)

        image, cell = sure.nonzero(as_tuple=True)
        hard = torch.zeros_like(logits)
        hard[image, cell, targets.labels[image, matched[image, cell]]] = 1.0
        focal = _focal(logits, hard, self.ALPHA, self.GAMMA).sum(-1)
        focal = torch.where(free & ~sure, 0.0, focal)
        certain = _normaliser(len(image), logits)

        image, cell = (matched >= 0).nonzero(as_tuple=True)
        overlap = giou(boxes[image, cell], targets.boxes[image, matched[image, cell]])
        positives = _normaliser(len(image), logits)
        return {
            "cls": focal.sum() / certain,
            "reg": self.BOX_WEIGHT * (1.0 - overlap).sum() / positives,
        }


class AnchorLoss(nn.Module):
    """Preset ``paper``: cross-entropy and smooth-L1 (section 3.3) on matched anchors.

    An anchor answers for the box it overlaps most if IoU >= 0.5; each box's best anchor always does.
    Of the other anchors the hardest negatives are learned, three for every positive (what the paper
    leaves out follows the lab's earlier detector).
    """

    NEGATIVES_PER_POSITIVE = 3

    def __init__(self, head: AnchorHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        logits = self.head.flatten(output.logits, self.head.outputs)
        deltas = self.head.flatten(output.deltas, 4)
        references = self.head.references(output.logits)
        matched, ignored = by_overlap(references, self.head.cell_sizes(output.logits), targets)

        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        truth = matched[image, anchor]
        positives = _normaliser(len(image), logits)
        labels = torch.zeros_like(matched)
        labels[image, anchor] = targets.labels[image, truth] + 1
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(matched)

        # Mined image by image, so that the choice does not depend on how a batch is split over processes.
        # An image without targets is all the more a place for false alarms: it gives three as well.
        hardness = torch.where((matched >= 0) | ignored, -torch.inf, entropy.detach())
        quota = self.NEGATIVES_PER_POSITIVE * (matched >= 0).sum(1, keepdim=True).clamp(min=1)
        rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        learned = (matched >= 0) | ((rank < quota) & hardness.isfinite())

        encoded = self.head.encode(targets.boxes[image, truth], references[anchor])
        distance = F.smooth_l1_loss(deltas[image, anchor], encoded, reduction="sum")
        return {"cls": entropy[learned].sum() / positives, "reg": distance / positives}


class DetectionLoss(nn.Module):
    """The named terms of the overall loss for a batch; their sum is what is minimised.

    The terms of eq. 10 that a model's head asks for: ``cls`` and ``reg``. Further terms (ADCR,
    distillation) are added to the dictionary by the training loop from ``output.features``.

    Args (of the call):
        output: of ``DANet.forward``. boxes, labels, ignore: lists over the images, see ``Targets``.
    """

    def __init__(self, model: DANet, assignment: Assignment = "centre") -> None:
        super().__init__()
        head = model.head
        self.loss: AnchorLoss | AnchorFreeLoss
        if isinstance(head, AnchorHead):
            self.loss = AnchorLoss(head)
        elif isinstance(head, AnchorFreeHead):
            self.loss = AnchorFreeLoss(head, assignment)
        else:
            raise TypeError(f"DetectionLoss: no loss for a {type(head).__name__}")

    def forward(
        self, output: Output, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]
    ) -> dict[str, Tensor]:
        return self.loss(output, Targets(boxes, labels, ignore))


def _normaliser(count: int, like: Tensor) -> Tensor:
    """Positives an average process, at least one in all.

    Gradients are averaged over processes, so that dividing by the mean count makes the step equal to
    that of one process with the whole batch.
    """
    total = like.new_tensor(float(count))
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return total.clamp(min=1.0)
    torch.distributed.all_reduce(total)
    return total.clamp(min=1.0) / torch.distributed.get_world_size()


def _focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), elementwise."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * wrong**gamma * entropy
