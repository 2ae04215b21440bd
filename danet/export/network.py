"""DANet built from torch's own operators only, for files that run where danet is not installed."""

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
"""A function of danet.export.deformable_sampling."""

EXAMPLE_SHAPE = (2, 64, 96)
"""Batch size, height and width of the images that a network is traced with. All differ and none is 1, because
torch.export treats sizes of 1 as constants."""


class BoxesAndScores(nn.Module):
    """The fused network with decoded outputs, before non-maximum suppression: what an exported file computes.

    Takes normalized images ``[N, network_channels, H, W]`` (``danet.data.normalize.normalize``). Returns boxes
    ``[N, P, 4]`` (x0, y0, x1, y1 in pixels of the images) and scores ``[N, P, classes]`` in [0, 1]; all are float32.
    """

    def __init__(self, model: DANet, sample: Sample) -> None:
        super().__init__()
        self.network = use_standard_operators(model, sample)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(images)
        return self.network.head.boxes(output.deltas), self.network.head.scores(output.logits)


class Predictions(nn.Module):
    """The fused network with plain tensors as outputs: the logits of the four levels, then their deltas.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> network = Predictions(build_model(ModelConfig(name="danet_nano"))).eval()
        >>> len(network(torch.zeros(1, 1, 64, 96)))
        8
    """

    def __init__(self, model: DANet) -> None:
        super().__init__()
        self.network = use_standard_operators(model, deform_conv)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return (*output.logits, *output.deltas)


def trace(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Traces ``network(images)`` with dynamic batch size, height and width."""
    if images.shape[0] == 1:  # torch.export takes a size of 1 as a constant
        images = torch.cat([images, images])
    dynamic = {0: torch.export.Dim("N"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(dynamic,))


def example_images(model: DANet) -> Tensor:
    """Zero images of EXAMPLE_SHAPE."""
    batch, height, width = EXAMPLE_SHAPE
    return torch.zeros(batch, model.config.network_channels, height, width)


def use_standard_operators(model: DANet, sample: Sample) -> DANet:
    """Returns a fused float32 copy on the CPU for inference, whose ``sdc`` is computed by ``sample``."""
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
    """A FusedMBB as a plain convolution, without the weight layouts that the kernels of danet.ops need."""

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
    """An SDC that samples with ``sample``; its norm is folded into the depthwise convolution."""

    weight: Tensor
    bias: Tensor

    def __init__(self, module: SDC, sample: Sample) -> None:
        super().__init__()
        self.groups, self.kernel_size, self.sample = module.groups, module.kernel_size, sample
        self.predictor, self.projection = module.predictor, module.projection
        for name, tensor in zip(("weight", "bias"), fold_norm(module.depthwise.weight, module.norm), strict=True):
            self.register_buffer(name, tensor.float().detach())

    def forward(self, x: Tensor) -> Tensor:
        context = F.conv2d(x, self.weight, self.bias, padding=1, groups=x.shape[1])
        predicted = self.predictor(F.relu(context))
        offset_channels = 2 * self.groups * self.kernel_size**2
        sampled = self.sample(
            x, predicted[:, :offset_channels], predicted[:, offset_channels:], self.groups, self.kernel_size
        )
        return self.projection(sampled)


class _SaFEM(nn.Module):
    """A SaFEM (Scale-adaptive Feature Enhancement Mechanism) without its fused kernel: the gate times the input."""

    def __init__(self, module: SaFEM) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.gate(x) * x

    def gate(self, x: Tensor) -> Tensor:
        return self.module.gate(x)
