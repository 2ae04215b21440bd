"""The basic blocks of the network: ``MBB``, its form for inference ``FusedMBB``, and ``FFN``."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from danet.ops import PreparedRepConv, prepare_rep_conv, rep_conv


class MBB(nn.Module):
    """Multi-Branch Block: ``ReLU(BN(Conv3x3(x)) + BN(Conv1x1(x)) + BN(x))``.

    Section 3.1 of the DANet paper (https://doi.org/10.1145/3581783.3612146), after RepVGG
    (https://arxiv.org/abs/2101.03697). The shortcut branch ``BN(x)`` exists only if input and output have the same
    shape. ``fuse`` returns the equivalent 3x3 convolution for inference; ``load_fused`` and ``calibrate_norm`` turn
    such a convolution, as compact weights files store it, into a block that can be trained again.

    Shapes: ``[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Example:
        >>> block, x = MBB(8, 8).eval(), torch.randn(1, 8, 16, 16)
        >>> torch.allclose(block.fuse()(x), block(x), atol=1e-4)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv3x3 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm3x3 = nn.BatchNorm2d(out_channels)
        # ``forward`` applies its stride by slicing: the backward of oneDNN's strided 1x1 convolution writes out of
        # bounds for channels-last input with fewer than 16 channels (torch 2.13, AVX-512).
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
        """The block in eval mode as one 3x3 convolution with bias and ReLU, equal up to rounding.

        Every branch is linear when the statistics of its batch norm are frozen, and a 1x1 kernel or a shortcut is a 3x3
        kernel with values in the middle only. The branches are summed in float64.
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
        """Loads the weight ``[out, in, 3, 3]`` and bias ``[out]`` of a fused block into the 3x3 branch.

        The other branches get scales of zero and contribute again once they are trained. Before training,
        ``calibrate_norm`` must estimate the running statistics of the 3x3 branch's norm.
        """
        self.conv3x3.weight.copy_(weight)
        for norm in (self.norm3x3, self.norm1x1, self.shortcut):
            if norm is not None:
                norm.reset_parameters()
                norm.weight.zero_()
        self.norm3x3.weight.fill_(math.sqrt(1 + self.norm3x3.eps))  # cancels the norm's division
        self.norm3x3.bias.copy_(bias)

    @property
    def has_default_stats(self) -> bool:
        """Whether the running statistics of the 3x3 branch's norm are the initial ones, as after ``load_fused``."""
        mean, variance = self.norm3x3.running_mean, self.norm3x3.running_var
        return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())

    @torch.no_grad()
    def calibrate_norm(self, x: Tensor) -> None:
        """Estimates the running statistics of the 3x3 branch's norm from an input ``[N, in_channels, H, W]``.

        Called after ``load_fused``. The block still computes the same function in eval mode, and from now on also in
        training mode for batches with similar statistics. Without this call, the norm would scale the outputs of the
        convolution to a variance of one in training mode.
        """
        norm = self.norm3x3
        kernel, bias = fold_norm(self.conv3x3.weight, norm)
        self.conv3x3.weight.copy_(kernel)
        variance, mean = torch.var_mean(self.conv3x3(x).float(), dim=(0, 2, 3), correction=0)
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": variance})
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)


class FusedMBB(nn.Module):
    """A 3x3 or 1x1 convolution, bias and an optional ReLU in one pass (``danet.ops.rep_conv``).

    It is an MBB for inference, or another convolution, such as one that predicts scores or boxes.

    Args:
        weight: ``[C_out, C, 3, 3]`` or ``[C_out, C, 1, 1]``.
        bias: ``[C_out]``.
        stride: of the convolution, 1 or 2.
        relu: whether a ReLU follows.

    Attributes:
        out_dtype: dtype of the result; if None, it is that of the weight.
        input_dtype: dtype of the input; if None, it is that of the weight. Call ``prepare`` after a change.
    """

    weight: Tensor
    bias: Tensor
    out_dtype: torch.dtype | None
    input_dtype: torch.dtype | None
    transformed: Tensor | None  # see ``PreparedRepConv``

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.relu = relu
        self.out_dtype = self.input_dtype = None
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.register_buffer("transformed", None, persistent=False)
        self.prepare()

    def forward(self, x: Tensor) -> Tensor:
        weight = PreparedRepConv(self.weight, self.transformed, self.stride, self.input_dtype)
        return rep_conv(x, weight, self.bias, stride=self.stride, relu=self.relu, out_dtype=self.out_dtype)

    def prepare(self) -> None:
        """Lays the weight out for the kernel."""
        prepared = prepare_rep_conv(self.weight, stride=self.stride, input_dtype=self.input_dtype)
        self.transformed = prepared.transformed

    # Prepare the weight again after a move, a conversion or a loaded state.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedMBB":
        before = self.weight, self.transformed
        super()._apply(fn, recurse)
        if self.weight.dtype != before[0].dtype:
            self.input_dtype = None  # the input is probably converted too
        if self.weight is not before[0] or self.transformed is not before[1]:
            self.prepare()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.prepare()


def fold_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, both float64, of a convolution without bias followed by a frozen batch norm."""
    assert norm.running_mean is not None and norm.running_var is not None  # for mypy; they may be None in torch
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight.double() * scale[:, None, None, None], norm.bias.double() - norm.running_mean.double() * scale


class FFN(nn.Sequential):
    """Feed-forward network: two 1x1 convolutions, C to 2C and back to C channels, with a GELU in between.

    Section 3.1.1 of the DANet paper (https://doi.org/10.1145/3581783.3612146). The last layer is initialized with
    zeros, so that attention weights computed from it are uniform at first (our decision).

    Shapes: ``[N, channels, H, W] -> [N, channels, H, W]``.

    Example:
        >>> FFN(4)(torch.randn(1, 4, 2, 2)).abs().max().item()
        0.0
    """

    def __init__(self, channels: int) -> None:
        last = nn.Conv2d(2 * channels, channels, 1)
        super().__init__(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
