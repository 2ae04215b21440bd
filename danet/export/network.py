"""DANet of torch's own operators alone, for files that run where danet is not installed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.export.deformable_sampling import deform_conv
from danet.models import DANet
from danet.models.blocks import FusedMBB, fold_norm
from danet.models.safem import SaFEM
from danet.ops import SDC

Sample = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
"""One of the functions of danet.export.deformable_sampling."""

EXAMPLE = (2, 64, 96)
"""Batch, height and width that a network is traced with: all different, none of them 1, which torch.export would take
for sizes that never change."""


class BoxesAndScores(nn.Module):
    """What a file computes, the network fused and decoded; nothing is suppressed.

    Shapes: images ``[N, input_channels, H, W]`` as ``danet.data.normalize.normalize`` makes them -> boxes ``[N, P, 4]``
    (x0, y0, x1, y1 in pixels of the images) and scores ``[N, P, classes]`` in [0, 1], all float32.
    """

    def __init__(self, model: DANet, sample: Sample) -> None:
        super().__init__()
        self.network = of_standard_operators(model, sample)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(images)
        return self.network.head.boxes(output.deltas), self.network.head.scores(output.logits)


class Predictions(nn.Module):
    """A fused network with plain tensors as results: the logits of the four levels, then their deltas."""

    def __init__(self, model: DANet) -> None:
        super().__init__()
        self.network = of_standard_operators(model, deform_conv)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return (*output.logits, *output.deltas)


def trace(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The graph of ``network(images)`` for any batch, height and width, whatever those of ``images`` are."""
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(free,))


def example(model: DANet) -> Tensor:
    """Images of the size EXAMPLE."""
    batch, height, width = EXAMPLE
    return torch.zeros(batch, model.config.input_channels, height, width)


def of_standard_operators(model: DANet, sample: Sample) -> DANet:
    """A fused float32 copy on the CPU with plain convolutions, ``sdc`` as ``sample`` computes it; for inference."""
    network = model.fused().cpu().float()
    _replace(network, sample)
    return network.eval().requires_grad_(False)


def _replace(parent: nn.Module, sample: Sample) -> None:
    for name, child in parent.named_children():
        if isinstance(child, FusedMBB):
            setattr(parent, name, _Convolution(child))
            continue
        _replace(child, sample)
        if isinstance(child, SDC):
            setattr(parent, name, _SDC(child, sample))
        elif isinstance(child, SaFEM):
            setattr(parent, name, _SaFEM(child))


class _Convolution(nn.Module):
    """A FusedMBB without what the kernels of danet.ops have prepared of its weight."""

    weight: Tensor
    bias: Tensor

    def __init__(self, block: FusedMBB) -> None:
        super().__init__()
        self.stride, self.relu = block.stride, block.relu
        self.register_buffer("weight", block.weight.contiguous())
        self.register_buffer("bias", block.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=1)
        return F.relu(y) if self.relu else y


class _SDC(nn.Module):
    """An SDC whose samples are taken by ``sample``, its norm part of the convolution before it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, module: SDC, sample: Sample) -> None:
        super().__init__()
        self.groups, self.kernel_size, self.sample = module.groups, module.kernel_size, sample
        self.predictor, self.projection = module.predictor, module.projection
        for name, tensor in zip(("weight", "bias"), fold_norm(module.depthwise.weight, module.norm), strict=True):
            self.register_buffer(name, tensor.float().detach())

    def forward(self, x: Tensor) -> Tensor:
        around = F.conv2d(x, self.weight, self.bias, padding=1, groups=x.shape[1])
        predicted = self.predictor(F.relu(around))
        offsets = 2 * self.groups * self.kernel_size**2
        sampled = self.sample(x, predicted[:, :offsets], predicted[:, offsets:], self.groups, self.kernel_size)
        return self.projection(sampled)


class _SaFEM(nn.Module):
    """A SaFEM by its gate, which is torch's softmax."""

    def __init__(self, module: SaFEM) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.gate(x) * x

    def gate(self, x: Tensor) -> Tensor:
        return self.module.gate(x)
