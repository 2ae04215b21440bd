"""ADCR: contrastive loss between the features of targets and of distractors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.data.loader import Batch
from danet.losses.region_sampling import choose_regions, sample_regions
from danet.models import Output
from danet.models.ufp import UFP
from danet.utils import distributed


class ADCR(nn.Module):
    """Anti-Distractor Contrastive Regularization of the backbone's stage outputs.

    Section 3.1.3, eqs. 6 and 7 of the DANet paper (https://doi.org/10.1145/3581783.3612146). Regions of targets
    (positives) and distractors (negatives), see ``choose_regions``, are sampled from the maps at 7 x 7 positions,
    projected by one ``UFP`` (Uncompressed Feature Projector) per level, flattened without pooling and compared by
    cosine similarity. Everything is computed in float32, also under autocast.

    With several processes, the samples of all of them are compared. Every process computes the same loss, but only the
    gradient of its own samples. This gradient is multiplied by the number of processes, so that the average over the
    processes (as DistributedDataParallel computes it) equals the gradient of one process with the whole batch.

    Args:
        widths: channels of the maps that are compared, finest level first.
        strides: their strides in pixels.
        target: label of the class to distinguish from all others.
        weight: weight of the term, lambda_1 of eq. 10.
        temperature: mu of eq. 7.
        negatives: number of negatives per positive.
        literal: eq. 6 as printed: sums over anchors and levels instead of means, and each anchor (here: a positive
            region that is compared with all others) also counts as its own positive.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> model = build_model(ModelConfig(name="danet_nano"))
        >>> box, label, ignore = torch.tensor([[8.0, 8, 20, 18]]), torch.tensor([0]), torch.tensor([False])
        >>> batch = Batch(torch.rand(1, 1, 64, 64), [box], [label], [ignore])
        >>> term = ADCR(model.widths, model.backbone.strides, weight=0.1)
        >>> list(term(model(batch.images), batch))
        ['adcr']
    """

    SIDE = 7
    """Positions per side at which a region is sampled."""

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

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted term ``adcr`` for a batch, see ``danet.losses.LossTerm``."""
        return {"adcr": self.weight * self.loss(output.features[: len(self.strides)], batch)}

    def loss(self, features: list[Tensor], batch: Batch) -> Tensor:
        """The unweighted loss, a float32 scalar.

        It is zero if no image shows a target, but still connected to the parameters, so that backward works.

        Args:
            features: maps of the levels to compare, ``[N, widths[l], H_l, W_l]``.
            batch: the images and their ground truth.
        """
        images = batch.images
        with torch.autocast(images.device.type, enabled=False):
            regions = choose_regions(batch, target=self.target, ratio=self.negatives)
            samples = [torch.cat(pair) for pair in zip(*regions, strict=True)]
            is_positive = [torch.arange(len(s)) < len(p) for s, p in zip(samples, regions.positives, strict=True)]
            positive = distributed.gather(torch.cat(is_positive).long().to(images.device)).bool()
            losses = []
            for projector, feature, stride in zip(self.projectors, features, self.strides, strict=True):
                vectors = distributed.gather(self.project(projector, feature.float(), samples, stride))
                terms = contrastive_terms(vectors[positive], vectors[~positive], self.temperature, literal=self.literal)
                losses.append(terms.sum() if self.literal else terms.sum() / max(1, len(terms)))
            total = torch.stack(losses)
            return total.sum() if self.literal else total.mean()

    def project(self, projector: nn.Module, features: Tensor, regions: list[Tensor], stride: int) -> Tensor:
        """Projected, flattened regions of a level as unit vectors ``[sum M_i, C * SIDE * SIDE]``, image by image."""
        if any(map(len, regions)):
            sampled = sample_regions(features, regions, stride, self.SIDE)
            return F.normalize(projector(sampled).flatten(1), dim=1, eps=1e-6)
        # Without regions: return an empty result that depends on the features and all parameters, because other
        # processes may have regions. Then the gradients are zero here, not missing.
        nothing = torch.stack([tensor[:0].sum() for tensor in (features, *projector.parameters())]).sum()
        return nothing.expand(0, features.shape[1] * self.SIDE**2)


def contrastive_terms(positives: Tensor, negatives: Tensor, temperature: float, *, literal: bool = False) -> Tensor:
    """The contrastive loss of eqs. 6 and 7 for every anchor, ``[P]``; the positives are the anchors.

    ``-mean over p of log(exp(a.p / mu) / (sum over p' of exp(a.p' / mu) + sum over n of exp(a.n / mu)))`` for anchor a,
    positives p and p', negatives n and temperature mu. An anchor is excluded from its own positives (our decision),
    unless it is the only one or ``literal`` is set.

    Args:
        positives: unit vectors ``[P, D]``.
        negatives: unit vectors ``[Q, D]``.
        temperature: mu.
        literal: count each anchor also as its own positive, as eq. 6 is printed. ``ADCR.loss`` adds up the terms if
            literal, and averages them otherwise.
    """
    count = len(positives)
    similarity = positives @ positives.T / temperature
    pairs = torch.ones_like(similarity, dtype=torch.bool)
    if count > 1 and not literal:
        pairs.fill_diagonal_(False)
    logits = torch.cat([similarity.masked_fill(~pairs, -torch.inf), positives @ negatives.T / temperature], dim=1)
    return logits.logsumexp(dim=1) - (similarity * pairs).sum(1) / pairs.sum(1)
