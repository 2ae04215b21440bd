"""LCDC, the Local Cross-channel Depth-wise Convolution: a 1-D convolution along the channels at every position.

DANet (https://doi.org/10.1145/3581783.3612146), section 3.2.2, uses it in the EKEM (Element-wise Knowledge Enhancement
Module). With c' = c + j - (k - 1) / 2, and zeros outside the channels:

    out[n, c, y, x] = sum_{j < k} weight[p, j] * input[n, c', y, x]

The weight has either one kernel that all positions share (p = 0), or one kernel per position (p = y * W + x), which is
the paper's literal form, a depth-wise convolution of an HW x 1 x C tensor. With `gate`, the result is
sigmoid(out) * input.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.ops import library
from danet.ops.common import (
    autocast,
    check_bool,
    check_image,
    check_like_input,
    compute_dtype,
    integer,
    memoize_check,
)


def lcdc(input: Tensor, weight: Tensor, *, gate: bool = False) -> Tensor:
    """A 1-D convolution along the channels at every position.

    See the head of this file for the formula. Half types accumulate in float32.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weight: [P, k] of input's dtype, with k odd. P = 1: all positions share the kernel; P = H*W: one kernel per
            position.
        gate: Return sigmoid(lcdc(input)) * input, the enhancement of the EKEM.

    Returns:
        [N, C, H, W] of input's dtype, in channels-last memory format.

    Raises:
        TypeError: If input or weight is not a dense tensor of a supported dtype, if their dtypes differ, or if gate
            is not a bool.
        ValueError: If input is not [N, C, H, W] with C, H, W >= 1, if weight is not [1 or H*W, k] with k odd, or if
            the tensors are on different devices.

    Example:
        >>> import torch
        >>> from danet.ops import lcdc
        >>> input = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> lcdc(input, torch.ones(1, 3)).flatten()
        tensor([3., 6., 5.])
    """
    input, weight = autocast(input, weight)
    check_lcdc(input, weight, gate)
    if library.runs_compiled(input):
        return library.call("lcdc", input, weight, gate)
    return lcdc_reference(input, weight, gate=gate)


def lcdc_reference(input: Tensor, weight: Tensor, *, gate: bool = False) -> Tensor:
    """`lcdc` in plain PyTorch, for any device and with second-order gradients; half types accumulate in float32.

    Arguments, result and errors are those of `lcdc`.

    Example:
        >>> import torch
        >>> from danet.ops import lcdc, lcdc_reference
        >>> input, weight = torch.randn(2, 8, 4, 5), torch.randn(1, 3)
        >>> torch.allclose(lcdc(input, weight), lcdc_reference(input, weight), atol=1e-6)
        True
    """
    check_lcdc(input, weight, gate)
    C, H, W = input.shape[1:]
    P, k = weight.shape
    dtype = compute_dtype(input.dtype)
    rows = input.permute(0, 2, 3, 1).to(dtype)  # [N, H, W, C]
    taps = weight.to(dtype).view(1, 1, k) if P == 1 else weight.to(dtype).reshape(H, W, k)
    padded = F.pad(rows, (k // 2, k // 2))
    out = padded[..., :C] * taps[..., 0:1]
    for j in range(1, k):
        out = out + padded[..., j : j + C] * taps[..., j : j + 1]
    if gate:
        out = torch.sigmoid(out) * rows
    return out.to(input.dtype).contiguous().permute(0, 3, 1, 2)


def lcdc_kernel_size(channels: int, tau: float = 2) -> int:
    """The paper's kernel size k: the largest odd integer <= (log2(channels) + 1) / tau, and at least 1.

    The paper writes log without a base; base 2 is our decision.

    Args:
        channels: Number of input channels, at least 1.
        tau: The paper's temperature, greater than 0.

    Raises:
        TypeError: If channels is not an integer.
        ValueError: If channels < 1 or tau <= 0.

    Example:
        >>> from danet.ops import lcdc_kernel_size
        >>> lcdc_kernel_size(64)
        3
    """
    integer("lcdc_kernel_size", "channels", channels, minimum=1)
    if not tau > 0:
        raise ValueError(f"lcdc_kernel_size: tau must be > 0, got {tau!r}")
    k = math.floor((math.log2(channels) + 1) / tau)
    return max(k if k % 2 == 1 else k - 1, 1)


@memoize_check
def check_lcdc(input: Any, weight: Any, gate: Any) -> None:
    """Raises the errors that `lcdc` documents."""
    check_image("lcdc", "input", input)
    check_like_input("lcdc", "weight", weight, input)
    H, W = input.shape[2:]
    if weight.ndim != 2 or weight.shape[0] not in (1, H * W):
        raise ValueError(f"lcdc: weight must be [P, k] with P = 1 or H*W = {H * W}, got {list(weight.shape)}")
    if weight.shape[1] % 2 == 0:
        raise ValueError(f"lcdc: weight must be [P, k] with k odd, got {list(weight.shape)}")
    check_bool("lcdc", "gate", gate)


def _fake(input: Tensor, weight: Tensor, gate: bool) -> Tensor:
    check_lcdc(input, weight, gate)
    return torch.empty_like(input, memory_format=torch.channels_last)


library.register("lcdc", 2, fake=_fake, batched=[0])
library.register_gradient("lcdc", 2, reference=lambda *t: lcdc_reference(*t[:2], gate=t[2]), batched=[])
