"""The detection terms of eq. 10: which prediction answers for which box, and how wrong it is."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from danet.boxes import area, giou, iou
from danet.models.detector import DANet, Output
from danet.models.head import AnchorFreeHead, AnchorHead


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


class AnchorFreeLoss(nn.Module):
    """Preset ``default``: focal loss on the cells, GIoU on the cells that answer for a box.

    A box belongs to the levels where ``sqrt(area)`` is 2.5 to 6 strides (the finest level takes all that
    are smaller, the coarsest all that are larger); there, the cells whose centres lie within 1.5 strides
    of its centre and inside it answer for it, and always the cell that contains its centre, so that no
    box is too small to be learned. Where boxes compete, the smaller wins.

    All of these learn the box, but only those within 1 stride of its centre learn that something is
    there; the others are free to say either. Where the window of a loosely drawn box ends is chance, and
    learning it as truth keeps every score near 0.5. Targets are 0 or 1: soft ones have the same effect.
    """

    RADIUS = 1.5
    SURE_RADIUS = 1.0
    LOW, HIGH = 2.5, 6.0
    ALPHA, GAMMA = 0.25, 2.0
    BOX_WEIGHT = 2.0

    def __init__(self, head: AnchorFreeHead) -> None:
        super().__init__()
        self.head = head

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

    @torch.no_grad()
    def assign(self, references: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Which box each cell answers for, and what it learns of it.

        Args:
            references: ``[P, 4]`` cell centres and strides.

        Returns:
            ``[N, P]`` each: the index of the cell's box or -1 (int64), whether it learns that the box is
            there (bool), and whether it is free of learning either (bool; it answers for a box, or lies in
            an ignore region; where both are true, it learns).
        """
        centre, stride = references[:, None, :2], references[:, None, 2]
        ignored = _ignored(references[:, :2], references[:, 2], targets)
        if targets.boxes.shape[1] == 0:
            return torch.full(ignored.shape, -1, device=references.device), torch.zeros_like(ignored), ignored

        boxes = targets.boxes[:, None]
        size = area(boxes).sqrt()
        finest, coarsest = references[:, 2].min(), references[:, 2].max()
        in_range = (size < self.HIGH * stride) | (stride == coarsest)
        in_range &= (size >= self.LOW * stride) | (stride == finest)
        distance = (boxes[..., :2] + boxes[..., 2:]) / 2 - centre
        strides_away = (distance.abs() / stride[..., None]).amax(-1)
        inside = _inside(centre, targets.boxes)
        holds_centre = _holds_centre(references[:, :2], references[:, 2], targets.boxes)
        positive = in_range & (((strides_away < self.RADIUS) & inside) | holds_centre) & targets.valid[:, None]
        cost = torch.where(positive, size, torch.inf)
        best, index = cost.min(dim=-1)
        matched = torch.where(best.isfinite(), index, -1)
        central = (positive & ((strides_away < self.SURE_RADIUS) | holds_centre)).gather(2, index[..., None])[..., 0]
        return matched, (matched >= 0) & central, ignored | (matched >= 0)


class AnchorLoss(nn.Module):
    """Preset ``paper``: cross-entropy and smooth-L1 (section 3.3) on matched anchors.

    An anchor answers for the box it overlaps most if IoU >= 0.5; each box's best anchor always does.
    Of the other anchors the hardest negatives are learned, three for every positive (what the paper
    leaves out follows the lab's earlier detector).
    """

    POSITIVE_IOU = 0.5
    NEGATIVES_PER_POSITIVE = 3

    def __init__(self, head: AnchorHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        logits = self.head.flatten(output.logits, self.head.outputs)
        deltas = self.head.flatten(output.deltas, 4)
        references = self.head.references(output.logits)
        matched, ignored = self.assign(references, self.head.cell_sizes(output.logits), targets)

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

    @torch.no_grad()
    def assign(self, references: Tensor, cells: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
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
            matched[i] = torch.where(best >= self.POSITIVE_IOU, index, -1)
            # Boxes that want the same anchor: the better fit takes it, the other its next best.
            for box in overlap.max(dim=0).values.argsort(descending=True, stable=True).tolist():
                anchor = overlap[:, box].argmax()
                matched[i, anchor] = box
                overlap[anchor] = -1.0
        return matched, ignored


class DetectionLoss(nn.Module):
    """The named terms of the overall loss for a batch; their sum is what is minimised.

    The terms of eq. 10 that a model's head asks for: ``cls`` and ``reg``. Further terms (ADCR,
    distillation) are added to the dictionary by the training loop from ``output.features``.

    Args (of the call):
        output: of ``DANet.forward``. boxes, labels, ignore: lists over the images, see ``Targets``.
    """

    def __init__(self, model: DANet) -> None:
        super().__init__()
        head = model.head
        self.loss: AnchorLoss | AnchorFreeLoss
        if isinstance(head, AnchorHead):
            self.loss = AnchorLoss(head)
        elif isinstance(head, AnchorFreeHead):
            self.loss = AnchorFreeLoss(head)
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
