"""SSKD: three teachers, each for the images with targets of its scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danet.boxes import area
from danet.data.loader import Batch
from danet.data.scales import EDGES, SCALES
from danet.distill.eadm import EADM
from danet.distill.teachers import Teacher
from danet.models import Output
from danet.utils import distributed


class Distiller(nn.Module):
    """Scale-Specific Knowledge Distiller (section 3.2): a loss term with projections of its own.

    An image goes to the teachers of the scales of its targets, in pixels as the network sees them, and to none if it
    shows no target. A teacher without images does not run. The term is the EADM distance, as its mean over a teacher's
    images, over the four stages, and over the teachers that have images.

    Parameters and state are those of the EADMs; the teachers are no part of either.

    Args:
        widths: channels of the student's four maps.
        teachers: by scale, at least one. An image whose scale has no teacher is taught by nobody.
        weight: of the term (lambda_2 of eq. 10).
        edges: between small, medium and large, in pixels of sqrt(width * height).
        target: index of the class whose boxes decide.
        literal: see ``EADM``.
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
        unknown = [scale for scale in teachers if scale not in SCALES]
        if unknown or not teachers:
            raise ValueError(f"Distiller: teachers must be some of {', '.join(SCALES)}, got {list(teachers)}")
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
        """The weighted term ``sskd`` for what the student computed for a batch; zero if no image is taught."""
        routes = route(batch.boxes, batch.labels, batch.ignore, edges=self.edges, target=self.target)
        # Gradients are averaged over processes: divided by the mean count, they are those of the whole batch.
        counts = distributed.mean(routes.sum(1).float())
        rows = {scale: row for row, scale in enumerate(SCALES) if scale in self.teachers and counts[row] > 0}
        total = output.features[0].new_zeros((), dtype=torch.float32)
        for scale, row in rows.items():
            chosen = routes[row].nonzero().squeeze(1)
            if not len(chosen):  # another process has this teacher's images
                continue
            eadms: Any = self.eadms[scale]  # a ModuleList, which a ModuleDict does not say
            maps = self.teachers[scale](batch.images[chosen])
            for module, feature, target in zip(eadms, output.features, maps, strict=True):
                distances = module(feature[chosen], target)
                total = total + distances.sum() / (counts[row] * len(maps) * len(rows))
        return {"sskd": self.weight * total}


def route(
    boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor], *, edges: Sequence[float], target: int
) -> Tensor:
    """Which images show a target of which scale, bool ``[3, N]``.

    Args:
        boxes, labels, ignore: of a ``Batch``.
    """
    routes = torch.zeros(len(SCALES), len(boxes), dtype=torch.bool, device=boxes[0].device)
    bounds = torch.tensor(edges, device=boxes[0].device)
    for image, (box, label, skip) in enumerate(zip(boxes, labels, ignore, strict=True)):
        sizes = area(box[(label == target) & ~skip]).sqrt()
        routes[torch.bucketize(sizes, bounds, right=True), image] = True
    return routes
