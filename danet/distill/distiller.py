"""SSKD, Scale-Specific Knowledge Distiller: every image is distilled from the teachers of its targets' scales.

Section 3.2 of the DANet paper (https://doi.org/10.1145/3581783.3612146).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danet.boxes import size
from danet.data.loader import Batch
from danet.data.scales import EDGES, SCALES
from danet.distill.eadm import EADM
from danet.distill.teachers import Teacher
from danet.models import Output
from danet.utils import distributed


class Distiller(nn.Module):
    """Scale-Specific Knowledge Distiller (section 3.2): a loss term, see ``danet.losses``.

    An image is assigned to the teachers of the scales of its targets (see ``route``) and to none if it has no target.
    Teachers without images do not run. The term is the distance that ``EADM`` (Element-wise Attentive Distillation
    Module) computes, averaged over the images of a teacher, over the four stages, and over the teachers that have
    images.

    ``parameters()`` and ``state_dict()`` hold the EADMs only, not the teachers.

    Args:
        widths: channels of the student's four maps.
        teachers: the teacher of each scale ("small", "medium", "large"), at least one. Images of a scale without a
            teacher are not distilled.
        weight: weight of the term, lambda_2 of eq. 10.
        edges: boundaries between small, medium and large targets: sqrt(width * height) of their boxes in pixels of the
            network's input.
        target: index of the class whose boxes determine the scale.
        literal: see ``EADM``.

    Raises:
        ValueError: there is no teacher, or one of an unknown scale.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> student, network = (build_model(ModelConfig(name="danet_nano")) for _ in range(2))
        >>> distiller = Distiller(student.widths, {"small": Teacher(network)})
        >>> box, label, ignore = torch.tensor([[8.0, 8, 20, 18]]), torch.tensor([0]), torch.tensor([False])
        >>> batch = Batch(torch.rand(1, 1, 64, 64), [box], [label], [ignore])
        >>> distiller(student(batch.images), batch)["sskd"].shape
        torch.Size([])
    """

    def __init__(
        self,
        widths: Sequence[int],
        teachers: Mapping[str, Teacher],
        *,
        weight: float = 0.05,
        edges: Sequence[float] = EDGES,
        target: int = 0,
        literal: bool = False,
    ) -> None:
        super().__init__()
        if not teachers or not set(teachers) <= set(SCALES):
            raise ValueError(f"Distiller: teachers must have keys from {', '.join(SCALES)}, got {list(teachers)}")
        self.teachers = {scale: teachers[scale] for scale in SCALES if scale in teachers}
        self.eadms = nn.ModuleDict(
            {
                scale: nn.ModuleList(EADM(*pair, literal=literal) for pair in zip(widths, teacher.widths, strict=True))
                for scale, teacher in self.teachers.items()
            }
        )
        self.weight = weight
        self.edges = tuple(edges)
        self.target = target

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted term ``sskd``, a float32 scalar; zero if no image of the batch has a teacher.

        Args:
            output: what the student returned for ``batch.images``.
            batch: the images and their ground truth.
        """
        routes = route(batch.boxes, batch.labels, batch.ignore, edges=self.edges, target=self.target)
        # Gradients are averaged over processes later. Because each process divides by the mean count over processes,
        # the average is the gradient of the whole batch.
        counts = distributed.mean(routes.sum(1).float())
        rows = {scale: row for row, scale in enumerate(SCALES) if scale in self.teachers and counts[row] > 0}
        total = output.features[0].new_zeros((), dtype=torch.float32)
        for scale, row in rows.items():
            chosen = routes[row].nonzero().squeeze(1)
            if not len(chosen):  # only other processes have images for this teacher
                continue
            eadms: Any = self.eadms[scale]  # a ModuleList; the type of ModuleDict's values is Module
            maps = self.teachers[scale](batch.images[chosen])
            for module, feature, teacher_feature in zip(eadms, output.features, maps, strict=True):
                distances = module(feature[chosen], teacher_feature)
                total = total + distances.sum() / (counts[row] * len(maps) * len(rows))
        return {"sskd": self.weight * total}

    def fingerprints(self) -> dict[str, str]:
        """A hash of each teacher's weights; a run resumes only with the same teachers.

        The keys name the teachers in an error message, such as "distill.small with the content".
        """
        return {f"distill.{scale} with the content": each.fingerprint() for scale, each in self.teachers.items()}


def route(
    boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor], *, edges: Sequence[float], target: int
) -> Tensor:
    """Assigns images to the scales of their targets.

    Args:
        boxes: float ``[M_i, 4]`` (x0, y0, x1, y1) in pixels for each of the N images, as in a ``Batch``.
        labels: int64 ``[M_i]`` for each image. Only boxes of class ``target`` count.
        ignore: bool ``[M_i]`` for each image. Ignore regions do not count.
        edges: the smallest sqrt(width * height) of medium and of large targets, in pixels.
        target: index of the target class.

    Returns:
        bool ``[3, N]``: whether image n has a small, medium or large target.

    Example:
        >>> boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 30, 30]])]  # 10 and 30 pixels
        >>> labels, ignore = [torch.tensor([0, 0])], [torch.tensor([False, False])]
        >>> route(boxes, labels, ignore, edges=(14, 18), target=0).tolist()
        [[True], [False], [True]]
    """
    routes = torch.zeros(len(SCALES), len(boxes), dtype=torch.bool, device=boxes[0].device)
    bounds = torch.tensor(edges, device=boxes[0].device)
    for image, (box, label, skip) in enumerate(zip(boxes, labels, ignore, strict=True)):
        sizes = size(box[(label == target) & ~skip])
        routes[torch.bucketize(sizes, bounds, right=True), image] = True
    return routes
