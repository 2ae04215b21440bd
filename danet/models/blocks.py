"""The two blocks that everything else is made of: MBB and FFN."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from danet.ops import PreparedRepConv, prepare_rep_conv, rep_conv

Module = TypeVar("Module", bound=nn.Module)


class MBB(nn.Module):
    """Multi-Branch Block (section 3.1, after RepVGG): ReLU(BN(Conv3x3) + BN(Conv1x1) + BN(shortcut)).

    The shortcut exists where input and output have the same shape. ``fuse()`` gives the equivalent
    single 3x3 convolution for inference.

    Shapes: ``[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv3x3 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm3x3 = nn.BatchNorm2d(out_channels)
        # Its stride is taken in forward: the backward of oneDNN's strided 1x1 convolution writes out of bounds
        # for channels-last input of fewer than 16 channels (torch 2.13, AVX-512).
        self.conv1x1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm1x1 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.BatchNorm2d(in_channels) if stride == 1 and in_channels == out_channels else None
        for conv in (self.conv3x3, self.conv1x1):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm3x3(self.conv3x3(x)) + self.norm1x1(self.conv1x1(x[:, :, :: self.stride, :: self.stride]))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return torch.relu(y)

    @torch.no_grad()
    def fuse(self) -> "FusedMBB":
        """The same function in eval mode as one 3x3 convolution with bias.

        Exact but for rounding: every branch is linear once its batch norm's statistics are frozen, and
        a 1x1 kernel or a shortcut is a 3x3 kernel whose only taps are in the middle. Summed in
        float64.
        """
        kernel, bias = fold_norm(self.conv3x3.weight, self.norm3x3)
        pointwise, pointwise_bias = fold_norm(self.conv1x1.weight, self.norm1x1)
        kernel[:, :, 1:2, 1:2] += pointwise
        bias += pointwise_bias
        if self.shortcut is not None:
            channels = self.shortcut.num_features
            identity = torch.eye(channels, device=kernel.device)[:, :, None, None]
            scale, shift = fold_norm(identity, self.shortcut)
            kernel[:, :, 1:2, 1:2] += scale
            bias += shift
        dtype = self.conv3x3.weight.dtype
        return FusedMBB(kernel.to(dtype), bias.to(dtype), stride=self.stride)

    @torch.no_grad()
    def load_fused(self, weight: Tensor, bias: Tensor) -> None:
        """Becomes what ``fuse()`` gave, ``[out, in, 3, 3]`` and ``[out]``: all in the 3x3 branch.

        The others add nothing, until they are trained on. Before that, ``calibrate_norm`` must give the
        3x3 branch's norm its statistics.
        """
        self.conv3x3.weight.copy_(weight)
        for norm in (self.norm3x3, self.norm1x1, self.shortcut):
            if norm is not None:
                norm.reset_parameters()
                norm.weight.zero_()
        self.norm3x3.weight.fill_(math.sqrt(1 + self.norm3x3.eps))  # its variance is one
        self.norm3x3.bias.copy_(bias)

    @property
    def has_default_stats(self) -> bool:
        """Whether the 3x3 branch's norm has the statistics that ``load_fused`` leaves, or a block begins with: none."""
        mean, variance = self.norm3x3.running_mean, self.norm3x3.running_var
        return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())

    @torch.no_grad()
    def calibrate_norm(self, x: Tensor) -> None:
        """After ``load_fused``: takes the statistics of the block's input ``[N, in_channels, H, W]``.

        What is computed in eval mode stays the same. So it does in training mode, on batches like this one, which would
        otherwise be scaled to a variance of one.
        """
        norm = self.norm3x3
        kernel, bias = fold_norm(self.conv3x3.weight, norm)
        self.conv3x3.weight.copy_(kernel)
        variance, mean = torch.var_mean(self.conv3x3(x).float(), dim=(0, 2, 3), correction=0)
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": variance})
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)


class FusedMBB(nn.Module):
    """An MBB for inference: 3x3 convolution, bias and ReLU in one pass (``danet.ops.rep_conv``)."""

    weight: Tensor
    bias: Tensor
    transformed: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.relu = relu
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.register_buffer("transformed", None, persistent=False)
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        weight = PreparedRepConv(self.weight, self.transformed, self.stride)
        return rep_conv(x, weight, self.bias, stride=self.stride, relu=self.relu)

    def _prepare(self) -> None:
        self.transformed = prepare_rep_conv(self.weight, stride=self.stride).transformed

    # Whatever changes the weight: a move, a conversion, a loaded state.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedMBB":
        before = self.weight
        super()._apply(fn, recurse)
        if self.weight is not before:
            self._prepare()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()


def channels_last(module: Module, **changes: Any) -> Module:
    """``module`` itself, its weights in channels-last memory; ``changes`` are further ones of ``Module.to``."""
    return module.to(memory_format=torch.channels_last, **changes)  # type: ignore[call-overload]  # not in torch's hints


def fold_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias in float64 of a convolution without bias followed by a frozen batch norm."""
    assert norm.running_mean is not None and norm.running_var is not None  # ours track them
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight.double() * scale[:, None, None, None], norm.bias.double() - norm.running_mean.double() * scale


class FFN(nn.Sequential):
    """Two 1x1 layers, C to 2C to C, GELU between (section 3.1.1).

    The last layer starts at zero, so that a gate computed from it starts neutral (our decision).
    """

    def __init__(self, channels: int) -> None:
        last = nn.Conv2d(2 * channels, channels, 1)
        super().__init__(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
