"""LCDC, the local cross-channel depth-wise convolution (paper section 3.2.2, EKEM).

With c' = c + j - (k - 1) / 2 and zero outside the channels,

    out[n, c, y, x] = sum_{j < k} weight[p, j] * input[n, c', y, x]

p = 0 for a kernel shared by all positions, p = y * W + x for one kernel a position (the paper's literal depth-wise
form on HW x 1 x C). With `gate` the result is sigmoid(out) * input.
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
    check_tensor,
    compute_dtype,
    integer,
    memoize_check,
)


def lcdc(input: Tensor, weight: Tensor, *, gate: bool = False) -> Tensor:
    """A 1-D convolution along the channel axis at every position.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weight: [P, k] of input's dtype, k odd; P = 1 (shared by all positions) or P = H*W.
        gate: return sigmoid(lcdc(input)) * input, EKEM's enhancement.

    Returns:
        [N, C, H, W] in channels-last strides.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    input, weight = autocast(input, weight)
    check_lcdc(input, weight, gate)
    if library.has_kernel(input):
        return library.call("lcdc", input, weight, gate)
    return lcdc_reference(input, weight, gate=gate)


def lcdc_reference(input: Tensor, weight: Tensor, *, gate: bool = False) -> Tensor:
    """`lcdc` in plain PyTorch: any device, double backward; half types accumulate in float32."""
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
    """The paper's k: the largest odd integer not above (log2(channels) + 1) / tau, at least 1."""
    integer("lcdc_kernel_size", "channels", channels, minimum=1)
    if not tau > 0:
        raise ValueError(f"lcdc_kernel_size: tau must be > 0, got {tau!r}")
    k = math.floor((math.log2(channels) + 1) / tau)
    return max(k if k % 2 == 1 else k - 1, 1)


@memoize_check
def check_lcdc(input: Any, weight: Any, gate: Any) -> None:
    check_tensor("lcdc", "input", input)
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


def _vmap(info: Any, in_dims: tuple, input: Tensor, weight: Tensor, gate: bool) -> tuple:
    if in_dims[1] is None:
        out = torch.ops.danet.lcdc(library.fold_batch(input, in_dims[0], info.batch_size), weight, gate)
        return out.unflatten(0, (info.batch_size, -1)), 0
    calls = library.unbatch(info.batch_size, in_dims, input, weight)
    return torch.stack([torch.ops.danet.lcdc(*tensors, gate) for tensors in calls]), 0


def _vmap_backward(info: Any, in_dims: tuple, grad_output: Tensor, input: Tensor, weight: Tensor, gate: bool) -> tuple:
    calls = library.unbatch(info.batch_size, in_dims, grad_output, input, weight)
    grads = [torch.ops.danet.lcdc_backward(*tensors, gate) for tensors in calls]
    return tuple(torch.stack(each) for each in zip(*grads, strict=True)), (0, 0)


library.register("lcdc", fake=_fake, vmap=_vmap)
library.register_gradient("lcdc", 2, reference=lambda *t: lcdc_reference(*t[:2], gate=t[2]), vmap=_vmap_backward)
