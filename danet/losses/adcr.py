"""ADCR: targets are to look alike to the network, and unlike what could be taken for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.losses.region_sampling import choose_regions, sample_regions
from danet.models.blocks import channels_last
from danet.models.danet import DANet, Output
from danet.models.ufp import UFP
from danet.utils import distributed

if TYPE_CHECKING:
    from danet.data.loader import Batch
    from danet.training.options import AdcrOptions


class ADCR(nn.Module):
    """Anti-Distractor Contrastive Regularisation (section 3.1.3, eqs. 6 and 7) of every stage's output.

    Regions of targets and distractors (``choose_regions``) are cut out of the maps at 7 x 7 positions, projected by
    the level's ``UFP`` and compared by the cosine of what comes out, flattened: nothing is pooled. Everything is
    computed in float32, also under autocast.

    With several processes the samples of all are compared. Each process computes the same loss, and its own samples'
    part of the gradient times the number of processes, so that gradients averaged over processes (as
    DistributedDataParallel does it) are those of one process with the whole batch.

    Args:
        widths, strides: of the maps that are compared, the finest first.
        target: label of the class that is to be told from all others.
        weight, temperature, negatives, literal: see ``danet.training.options.AdcrOptions``.
    """

    SIZE = 7

    def __init__(
        self,
        widths: Sequence[int],
        strides: Sequence[int],
        *,
        target: int = 0,
        weight: float = 1.0,
        temperature: float = 0.1,
        negatives: int = 3,
        literal: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.target = target
        self.weight = weight
        self.temperature = temperature
        self.negatives = negatives
        self.literal = literal
        self.projectors = nn.ModuleList(UFP(width) for width in widths)

    def forward(self, output: Output, batch: "Batch") -> dict[str, Tensor]:
        """The term ``adcr`` of the overall loss (eq. 10), weighted, as the training loop asks for it."""
        return {"adcr": self.weight * self.loss(output.features[: len(self.strides)], *batch)}

    def loss(
        self, features: list[Tensor], images: Tensor, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]
    ) -> Tensor:
        """The loss of a batch, a float32 scalar: 0, with a graph, where no image shows a target.

        Args:
            features: of the levels compared, ``[N, widths[l], H_l, W_l]``. The others: see ``choose_regions``.
        """
        with torch.autocast(images.device.type, enabled=False):
            regions = choose_regions(images, boxes, labels, ignore, target=self.target, ratio=self.negatives)
            both = [torch.cat(pair) for pair in zip(*regions, strict=True)]
            flags = [torch.arange(len(b)) < len(p) for b, p in zip(both, regions.positives, strict=True)]
            positive = distributed.gather(torch.cat(flags).long().to(images.device)).bool()
            losses = []
            for projector, feature, stride in zip(self.projectors, features, self.strides, strict=True):
                vectors = distributed.gather(self.project(projector, feature.float(), both, stride))
                terms = contrastive_terms(vectors[positive], vectors[~positive], self.temperature, literal=self.literal)
                losses.append(terms.sum() if self.literal else terms.sum() / max(1, len(terms)))
            total = torch.stack(losses)
            return total.sum() if self.literal else total.mean()

    def project(self, projector: nn.Module, features: Tensor, regions: list[Tensor], stride: int) -> Tensor:
        """What is compared: unit vectors ``[sum M_i, C * SIZE * SIZE]`` of a level's regions, image after image."""
        if any(map(len, regions)):
            sampled = sample_regions(features, regions, stride, self.SIZE)
            return F.normalize(projector(sampled).flatten(1), dim=1, eps=1e-6)
        # Nothing to compare here, perhaps in another process: gradients are zero then, not missing.
        nothing = torch.stack([tensor[:0].sum() for tensor in (features, *projector.parameters())]).sum()
        return nothing.expand(0, features.shape[1] * self.SIZE**2)


def contrastive_terms(positives: Tensor, negatives: Tensor, temperature: float, *, literal: bool = False) -> Tensor:
    """Eqs. 6 and 7 for every anchor: ``[P]``, what is to be averaged, or summed for the literal form.

    ``-mean over p of log(exp(a.p / mu) / (sum over p' of exp(a.p' / mu) + sum over n of exp(a.n / mu)))``, anchors a
    and positives p, p' being the same samples. An anchor is no positive of its own, unless it is the only one (there
    would be none) or ``literal``.

    Args:
        positives, negatives: unit vectors ``[P, D]`` and ``[Q, D]``, so that products are cosines.
    """
    count = len(positives)
    pairs = positives @ positives.T / temperature
    others = torch.ones_like(pairs, dtype=torch.bool)
    if count > 1 and not literal:
        others.fill_diagonal_(False)
    against = torch.cat([pairs.masked_fill(~others, -torch.inf), positives @ negatives.T / temperature], dim=1)
    return against.logsumexp(dim=1) - (pairs * others).sum(1) / others.sum(1)


def build_adcr(model: DANet, options: "AdcrOptions", target: int) -> ADCR:
    """The loss for a model and the label of its target."""
    adcr = ADCR(
        model.widths[: options.levels],
        model.backbone.strides[: options.levels],
        target=target,
        weight=options.weight,
        temperature=options.temperature,
        negatives=options.negatives,
        literal=options.literal,
    )
    return channels_last(adcr)
