"""The two detection heads: dense predictions at strides 4 to 32, and what they mean as boxes."""

import functools
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from danet.models.blocks import MBB

# exp(8) strides is larger than any image: the clamp only keeps a diverging size finite.
MAX_LOG_SIZE = 8.0


class Head(nn.Module, ABC):
    """A tower of one MBB for each task at every level, then 3x3 convolutions.

    The towers are not shared between levels, whose batch-norm statistics differ.

    Shapes: maps ``[N, channels, H_l, W_l]`` -> logits ``[N, A * outputs, H_l, W_l]`` and deltas
    ``[N, A * 4, H_l, W_l]`` for every level, with A predictions at a position.
    """

    def __init__(
        self, channels: int, strides: tuple[int, ...], *, anchors: int, outputs: int, prior: float | None
    ) -> None:
        super().__init__()
        self.strides = strides
        self.outputs = outputs
        self.classify = nn.ModuleList(_tower(channels, anchors * outputs) for _ in strides)
        self.regress = nn.ModuleList(_tower(channels, anchors * 4) for _ in strides)
        if prior is not None:
            tower: Any  # a Sequential, which a ModuleList does not say
            for tower in self.classify:
                nn.init.constant_(tower[-1].bias, math.log(prior / (1.0 - prior)))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits = [tower(feature) for tower, feature in zip(self.classify, features, strict=True)]
        deltas = [tower(feature) for tower, feature in zip(self.regress, features, strict=True)]
        return logits, deltas

    @abstractmethod
    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        """Width and height in pixels of what the predictions at a position of ``level`` are measured against."""

    @abstractmethod
    def scores(self, logits: list[Tensor]) -> Tensor:
        """``[N, P, classes]`` in [0, 1]."""

    @abstractmethod
    def place(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes ``[..., P, 4]`` of flattened deltas against their references ``[P, 4]``."""

    def flatten(self, maps: list[Tensor], values: int) -> Tensor:
        """``[N, A * values, H_l, W_l]`` of all levels -> float32 ``[N, P, values]``, in the order of ``references``."""
        return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, values) for m in maps], dim=1).float()

    def references(self, maps: list[Tensor]) -> Tensor:
        """What every prediction is measured against: ``[P, 4]`` centre x, y, width, height in pixels."""
        sizes = tuple(tuple(self.reference_sizes(level)) for level in range(len(self.strides)))
        # In torch.export's graphs sizes are symbols, which are no keys of a cache.
        references = _references.__wrapped__ if torch.compiler.is_exporting() else _references
        return references(self.strides, sizes, tuple(tuple(m.shape[2:]) for m in maps), maps[0].device)

    def boxes(self, deltas: list[Tensor]) -> Tensor:
        """``[N, P, 4]`` (x0, y0, x1, y1) in pixels of the input."""
        return self.place(self.flatten(deltas, 4), self.references(deltas))

    def cell_sizes(self, maps: list[Tensor]) -> Tensor:
        """The stride of every prediction's level, ``[P]``, in the order of ``references``."""
        return torch.cat(
            [
                m.new_full((m.shape[2] * m.shape[3] * len(self.reference_sizes(level)),), float(stride))
                for level, (stride, m) in enumerate(zip(self.strides, maps, strict=True))
            ]
        ).float()


class AnchorFreeHead(Head):
    """Preset ``default``: one prediction a cell, a sigmoid score for every class.

    A box is (dx, dy, log w, log h) against the cell's centre in units of the stride. Unlike distances
    to four sides, this also describes a target smaller than the gap between cell centres.
    """

    def __init__(self, channels: int, strides: tuple[int, ...], classes: int) -> None:
        # The prior of focal loss (Lin et al., ICCV 2017): almost every cell is background.
        super().__init__(channels, strides, anchors=1, outputs=classes, prior=0.01)

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        return [(self.strides[level], self.strides[level])]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.outputs).sigmoid()

    def place(self, deltas: Tensor, references: Tensor) -> Tensor:
        return decode(deltas, references)


class AnchorHead(Head):
    """Preset ``paper``: anchors, a softmax over the classes and background (index 0).

    Four anchors a position: two sizes, 2 and 3.2 strides, and two shapes, square and 1.6 times as
    wide as high, since drones seen from the side are wide (our decision; the paper gives none).
    Deltas are divided by the usual variances 0.1 and 0.2 (SSD).
    """

    SIZES = (2.0, 3.2)
    ASPECTS = (1.0, 1.6)
    VARIANCES = (0.1, 0.1, 0.2, 0.2)

    def __init__(self, channels: int, strides: tuple[int, ...], classes: int) -> None:
        anchors = len(self.SIZES) * len(self.ASPECTS)
        super().__init__(channels, strides, anchors=anchors, outputs=classes + 1, prior=None)

    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        stride = self.strides[level]
        return [
            (size * stride * math.sqrt(aspect), size * stride / math.sqrt(aspect))
            for size in self.SIZES
            for aspect in self.ASPECTS
        ]

    def scores(self, logits: list[Tensor]) -> Tensor:
        return self.flatten(logits, self.outputs).softmax(dim=-1)[..., 1:]

    def place(self, deltas: Tensor, references: Tensor) -> Tensor:
        return decode(deltas * deltas.new_tensor(self.VARIANCES), references)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """The deltas ``[M, 4]`` that turn ``anchors`` (centre and size) into ``boxes`` (corners)."""
        size = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        deltas = torch.cat([(centre - anchors[:, :2]) / anchors[:, 2:], (size / anchors[:, 2:]).log()], dim=1)
        return deltas / deltas.new_tensor(self.VARIANCES)


@functools.lru_cache(maxsize=32)
def _references(
    strides: tuple[int, ...],
    sizes: tuple[tuple[tuple[float, float], ...], ...],
    shapes: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """``Head.references``; the same for all images of a size, which come one after the other."""
    levels = []
    with torch.inference_mode(False):  # training may use them after detection has made them
        for stride, of_level, (height, width) in zip(strides, sizes, shapes, strict=True):
            y = (torch.arange(height, device=device) + 0.5) * stride
            x = (torch.arange(width, device=device) + 0.5) * stride
            centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2)
            extents = torch.tensor(of_level, dtype=torch.float32, device=device)
            levels.append(torch.cat(torch.broadcast_tensors(centres, extents), dim=-1).reshape(-1, 4))
        return torch.cat(levels)


def decode(deltas: Tensor, references: Tensor) -> Tensor:
    """Deltas ``[N, P, 4]`` against references ``[P, 4]`` (centre and size) -> corners ``[N, P, 4]`` in pixels."""
    centre = references[:, :2] + deltas[..., :2] * references[:, 2:]
    half = references[:, 2:] * deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _tower(channels: int, outputs: int) -> nn.Sequential:
    predict = nn.Conv2d(channels, outputs, 3, padding=1)
    for parameter in predict.parameters():
        nn.init.zeros_(parameter)
    nn.init.normal_(predict.weight, std=0.01)
    return nn.Sequential(MBB(channels, channels), predict)
