"""The reparameterised MBB (paper section 3, after RepVGG): 3x3 convolution, bias and ReLU in one pass.

    out[n, o, y, x] = relu(bias[o] + sum_{c, i, j < 3} weight[o, c, i, j] * input[n, c, y*s - 1 + i, x*s - 1 + j])

with zeros outside the input and stride s of 1 or 2. Forward only: it runs after training, when `fuse()` has folded a
block's branches and norms into one kernel.
"""

import math
from dataclasses import dataclass
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
    check_shape,
    check_tensor,
    integer,
    memoize_check,
)


@dataclass(frozen=True, eq=False)
class PreparedRepConv:
    """A weight laid out for `rep_conv`; lives beside the raw weight, is rebuilt rather than saved.

    weight: [C_out, C, 3, 3], a copy, detached from autograd.
    transformed: what the kernel reads in its place, laid out for this processor; None where it reads the weight.
    stride: of the convolution that `transformed` is for.
    """

    weight: Tensor
    transformed: Tensor | None
    stride: int = 1


def prepare_rep_conv(weight: Tensor, *, stride: int = 1) -> PreparedRepConv:
    """Lay a [C_out, C, 3, 3] weight out once, for one stride; a later change of `weight` does not reach the result."""
    _check_weight(weight)
    _check_stride(stride)
    copy = weight.detach().clone(memory_format=torch.channels_last)
    known = library.has_kernel(copy) and not copy.is_meta
    transformed = torch.ops.danet.prepare_rep_conv(copy, stride) if known else None
    return PreparedRepConv(copy, transformed if transformed is not None and transformed.numel() > 0 else None, stride)


def rep_conv(
    input: Tensor,
    weight: Tensor | PreparedRepConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
) -> Tensor:
    """3x3 convolution with padding 1, bias and an optional ReLU; forward only.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weight: [C_out, C, 3, 3] of input's dtype, or what `prepare_rep_conv` made of it for this stride (for another
            stride it counts as not prepared, which is slower).
        bias: [C_out] of input's dtype, or None.
        stride: 1 or 2.
        relu: clamp the result at zero.

    On CUDA devices float32 factors are rounded to tf32 where torch.backends.cudnn allows it, as in torch's convolution.

    Returns:
        [N, C_out, ceil(H / stride), ceil(W / stride)] in channels-last strides.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
        RuntimeError: from backward; `rep_conv_reference` has gradients.
    """
    raw, transformed = weight, None
    if isinstance(weight, PreparedRepConv):
        raw, transformed = weight.weight, weight.transformed if weight.stride == stride else None
    input, raw, bias = autocast(input, raw, bias)
    check_rep_conv(input, raw, bias, stride, relu)
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (input, raw, bias)):
        return _ForwardOnly.apply(input, raw, transformed, bias, stride, relu)
    return _compute(input, raw, transformed, bias, stride, relu)


def _compute(
    input: Tensor, weight: Tensor, transformed: Tensor | None, bias: Tensor | None, stride: int, relu: bool
) -> Tensor:
    if library.has_kernel(input):
        tf32 = input.is_cuda and _allows_tf32()
        return library.call("rep_conv", input, weight, transformed, bias, stride, relu, tf32)
    return rep_conv_reference(input, weight, bias, stride=stride, relu=relu)


@torch.compiler.assume_constant_result
def _allows_tf32() -> bool:
    """torch's flag of its own convolutions; only CUDA devices have tf32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # torch sets it at run time


def rep_conv_reference(
    input: Tensor,
    weight: Tensor | PreparedRepConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
) -> Tensor:
    """`rep_conv` in plain PyTorch: any device, and differentiable; half types accumulate in float32."""
    if isinstance(weight, PreparedRepConv):
        weight = weight.weight
    check_rep_conv(input, weight, bias, stride, relu)
    dtype = input.dtype
    if input.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        # A GPU's half convolution sums in float32 by itself; most CPUs have no half units, and are faster this way.
        input, weight = input.float(), weight.float()
        bias = None if bias is None else bias.float()
    out = F.conv2d(input.contiguous(memory_format=torch.channels_last), weight, bias, stride=stride, padding=1)
    if relu:
        out = F.relu(out)
    return out.to(dtype).contiguous(memory_format=torch.channels_last)


@memoize_check
def check_rep_conv(input: Any, weight: Any, bias: Any, stride: Any, relu: Any) -> None:
    check_tensor("rep_conv", "input", input)
    check_image("rep_conv", "input", input)
    _check_weight(weight)
    check_like_input("rep_conv", "weight", weight, input)
    C_out, C = weight.shape[0], input.shape[1]
    check_shape("rep_conv", "weight", weight, "[C_out, C, 3, 3]", (C_out, C, 3, 3))
    if bias is not None:
        check_like_input("rep_conv", "bias", bias, input)
        check_shape("rep_conv", "bias", bias, "[C_out]", (C_out,))
    _check_stride(stride)
    check_bool("rep_conv", "relu", relu)


def _check_stride(stride: Any) -> None:
    if integer("rep_conv", "stride", stride, minimum=1) > 2:
        raise ValueError(f"rep_conv: stride must be 1 or 2, got {stride}")


def _check_weight(weight: Any) -> None:
    check_tensor("rep_conv", "weight", weight)
    if weight.ndim != 4 or 0 in weight.shape or tuple(weight.shape[2:]) != (3, 3):
        raise ValueError(f"rep_conv: weight must be [C_out, C, 3, 3], got {list(weight.shape)}")


class _ForwardOnly(torch.autograd.Function):
    """Says who has gradients when one is asked. The operator has no rule for them, which makes it cheap to call."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, transformed: Tensor | None, bias: Tensor | None, stride: int, relu: bool
    ) -> Tensor:
        return _compute(input, weight, transformed, bias, stride, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> None:
        raise RuntimeError(
            "rep_conv: forward only, no gradient is defined; train before fuse(), or use rep_conv_reference"
        )


def _fake(
    input: Tensor, weight: Tensor, prepared: Tensor | None, bias: Tensor | None, stride: int, relu: bool, tf32: bool
) -> Tensor:
    check_rep_conv(input, weight, bias, stride, relu)
    N, _, H, W = input.shape
    shape = (N, weight.shape[0], (H - 1) // stride + 1, (W - 1) // stride + 1)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _vmap(
    info: Any,
    in_dims: tuple,
    input: Tensor,
    weight: Tensor,
    prepared: Tensor | None,
    bias: Tensor | None,
    *options: Any,
) -> tuple:
    if in_dims[1:4] == (None, None, None):
        folded = library.fold_batch(input, in_dims[0], info.batch_size)
        out = torch.ops.danet.rep_conv(folded, weight, prepared, bias, *options)
        return out.unflatten(0, (info.batch_size, -1)), 0
    calls = library.unbatch(info.batch_size, in_dims, input, weight, prepared, bias)
    return torch.stack([torch.ops.danet.rep_conv(*tensors, *options) for tensors in calls]), 0


def _flops(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of a direct convolution, as torch counts its own; a multiply-add is two."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


library.register("rep_conv", fake=_fake, vmap=_vmap, flops=_flops)
