"""What all detection heads share: the network's ``Output`` and the abstract ``Head``."""

import functools
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from danet.boxes import centred_boxes
from danet.config import Assignment
from danet.models.blocks import MBB, FusedMBB
from danet.models.heads.assignment import Targets
from danet.utils import distributed

MAX_LOG_SIZE = 8.0
"""Predicted log sizes are clamped to this: exp(8) strides exceed any image, so that only diverging sizes change."""


class Output(NamedTuple):
    """The network's output for a batch; every list holds one tensor for each of the strides 4, 8, 16, 32.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> output = build_model(ModelConfig(name="danet_nano"))(torch.zeros(2, 1, 64, 96))
        >>> [list(feature.shape) for feature in output.features[:2]]
        [[2, 16, 16, 24], [2, 32, 8, 12]]
    """

    features: list[Tensor]
    """Backbone stage outputs (after SaFEM) ``[N, widths[l], H_l, W_l]``, the inputs of ADCR and SSKD."""
    logits: list[Tensor]
    """Class scores before sigmoid or softmax, ``[N, A * outputs, H_l, W_l]``, see ``Head``."""
    deltas: list[Tensor]
    """Encoded boxes ``[N, A * 4, H_l, W_l]``, see ``Head``."""


class Head(nn.Module, ABC):
    """Abstract detection head: predictions, their meaning as scores and boxes, label assignment and loss.

    At every level, one tower classifies and another one regresses boxes; each is an MBB and a 3x3 convolution. The
    levels share no towers, since their batch-norm statistics differ. Each position has A predictions, each of which
    is relative to a reference box: a cell or an anchor.

    A new head implements the abstract methods. It may override ``__init__``, ``forward``, ``fuse`` and
    ``score_parameters`` if it has other layers.

    Shapes: maps ``[N, channels, H_l, W_l]`` -> logits ``[N, A * outputs, H_l, W_l]`` and deltas
    ``[N, A * 4, H_l, W_l]`` for every level.

    Args:
        channels: channels of the maps.
        strides: pixels per position of every level.
        classes: number of classes.
    """

    predictions_per_position: ClassVar[int] = 1
    """A."""
    background_outputs: ClassVar[int] = 0
    """Score outputs of a prediction that precede those of the classes."""
    score_prior: ClassVar[float | None] = None
    """Initial score of every class, which sets the bias of the last convolution; None leaves the bias at zero."""

    def __init__(self, channels: int, strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.strides = strides
        self.outputs = self.background_outputs + classes
        self.classify = nn.ModuleList(
            _tower(channels, self.predictions_per_position * self.outputs, self.score_prior) for _ in strides
        )
        self.regress = nn.ModuleList(_tower(channels, self.predictions_per_position * 4) for _ in strides)
        self.towers: nn.ModuleList | None = None  # of a fused head

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if self.towers is not None:
            predictions = [tower(feature) for tower, feature in zip(self.towers, features, strict=True)]
            return [logits for logits, _ in predictions], [deltas for _, deltas in predictions]
        logits = [tower(feature) for tower, feature in zip(self.classify, features, strict=True)]
        deltas = [tower(feature) for tower, feature in zip(self.regress, features, strict=True)]
        return logits, deltas

    def fuse(self) -> "Head":
        """Converts this head to its form for inference, in place, and returns it.

        Both towers of a level read the same features, so that their MBBs become one convolution.
        """
        pairs = zip(self.classify, self.regress, strict=True)
        self.towers = nn.ModuleList(FusedTowers(classify, regress) for classify, regress in pairs)
        del self.classify, self.regress
        return self

    def predict_in_float32(self) -> None:
        """Makes a fused head compute its last convolutions in float32, also after a conversion to 16 bits.

        In bfloat16, the rounded logarithm of a box's size would change the size by 1 %.
        """
        tower: Any  # a FusedTowers, which the type of a ModuleList does not say
        for tower in self.towers or ():
            tower.classify.float()
            tower.regress.float()

    def score_parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the class scores, from which classes are copied by name (``danet train --weights``).

        Dimension 0 of each has the outputs of A predictions, those of a prediction in the order background, classes.
        """
        towers: Any = self.classify
        return [parameter for tower in towers for parameter in tower[-1].parameters()]

    @abstractmethod
    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        """Width and height in pixels of the A reference boxes at a position of ``level``."""

    @abstractmethod
    def scores(self, logits: list[Tensor]) -> Tensor:
        """Class scores ``[N, P, classes]`` in [0, 1] of all P predictions of all levels."""

    @abstractmethod
    def decode_boxes(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes ``[..., P, 4]`` in pixels from deltas ``[..., P, 4]`` and reference boxes ``[P, 4]``."""

    @abstractmethod
    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        """The terms ``cls`` and ``reg`` of the overall loss (eq. 10) for a batch.

        Args:
            output: of the network in training mode.
            targets: the batch's ground truth.
            assignment: label assignment, for heads that have a choice.
        """

    def flatten(self, maps: list[Tensor], values: int) -> Tensor:
        """``[N, A * values, H_l, W_l]`` of all levels -> float32 ``[N, P, values]``, in the order of ``references``."""
        return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, values) for m in maps], dim=1).float()

    def references(self, maps: list[Tensor]) -> Tensor:
        """Reference boxes of all predictions, float32 ``[P, 4]``: centre x, y, width, height in pixels."""
        sizes = tuple(tuple(self.reference_sizes(level)) for level in range(len(self.strides)))
        # torch.export uses symbolic sizes, which cannot be keys of a cache.
        references = _references.__wrapped__ if torch.compiler.is_exporting() else _references
        return references(self.strides, sizes, tuple(tuple(m.shape[2:]) for m in maps), maps[0].device)

    def boxes(self, deltas: list[Tensor]) -> Tensor:
        """Boxes ``[N, P, 4]`` (x0, y0, x1, y1) in pixels of the input."""
        return self.decode_boxes(self.flatten(deltas, 4), self.references(deltas))

    def cell_sizes(self, maps: list[Tensor]) -> Tensor:
        """Strides ``[P]`` of the levels of all predictions, in the order of ``references``."""
        counts = [m.shape[2] * m.shape[3] * self.predictions_per_position for m in maps]
        levels = zip(maps, counts, self.strides, strict=True)
        return torch.cat([m.new_full((count,), float(stride)) for m, count, stride in levels]).float()


class FusedTowers(nn.Module):
    """Both towers of a head at one level, for inference: one convolution in place of their two MBBs."""

    def __init__(self, classify: Any, regress: Any) -> None:
        super().__init__()
        blocks = [classify[0].fuse(), regress[0].fuse()]
        self.channels = blocks[0].weight.shape[0]
        self.blocks = FusedMBB(torch.cat([b.weight for b in blocks]), torch.cat([b.bias for b in blocks]))
        self.classify, self.regress = (
            FusedMBB(tower[1].weight.detach(), tower[1].bias.detach(), relu=False) for tower in (classify, regress)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.blocks(x).to(self.classify.weight.dtype)
        return self.classify(y[:, : self.channels]), self.regress(y[:, self.channels :])


def decode_deltas(deltas: Tensor, references: Tensor) -> Tensor:
    """Boxes ``[..., P, 4]`` in pixels from deltas ``[..., P, 4]`` and reference boxes ``[P, 4]`` (centre and size).

    Deltas are (dx, dy, log w, log h) in units of the reference box's size.
    """
    centre = references[:, :2] + deltas[..., :2] * references[:, 2:]
    return centred_boxes(centre, references[:, 2:] * deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp())


def loss_normalizer(positives: int, like: Tensor) -> Tensor:
    """Divisor of a loss that is summed over positives: their mean number per process, from a total of at least 1.

    Gradients are averaged over processes. Divided by the mean number, they equal those of one process with the whole
    batch.
    """
    return distributed.total(like.new_tensor(float(positives))).clamp(min=1.0) / distributed.world_size()


@functools.lru_cache(maxsize=32)
def _references(
    strides: tuple[int, ...],
    sizes: tuple[tuple[tuple[float, float], ...], ...],
    shapes: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """``Head.references``, cached because consecutive images mostly have one size."""
    levels = []
    with torch.inference_mode(False):  # the cached tensor may be used in training after inference
        for stride, of_level, (height, width) in zip(strides, sizes, shapes, strict=True):
            y = (torch.arange(height, device=device) + 0.5) * stride
            x = (torch.arange(width, device=device) + 0.5) * stride
            centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2)
            extents = torch.tensor(of_level, dtype=torch.float32, device=device)
            levels.append(torch.cat(torch.broadcast_tensors(centres, extents), dim=-1).reshape(-1, 4))
        return torch.cat(levels)


def _tower(channels: int, outputs: int, prior: float | None = None) -> nn.Sequential:
    predict = nn.Conv2d(channels, outputs, 3, padding=1)
    assert predict.bias is not None
    nn.init.normal_(predict.weight, std=0.01)
    nn.init.constant_(predict.bias, 0.0 if prior is None else math.log(prior / (1.0 - prior)))
    return nn.Sequential(MBB(channels, channels), predict)
