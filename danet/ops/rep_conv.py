"""The convolution of a fused MBB (Multi-Branch Block): 3x3 convolution, bias and ReLU in one pass.

    out[n, o, y, x] = relu(bias[o] + sum_{c, i, j < 3} weight[o, c, i, j] * input[n, c, y*s - 1 + i, x*s - 1 + j])

with zeros outside the input and stride s = 1 or 2. It is for inference only: after training, `fuse()` folds the
branches and batch norms of a block into one 3x3 convolution, as in RepVGG (https://arxiv.org/abs/2101.03697). See
DANet (https://doi.org/10.1145/3581783.3612146), section 3.1. 1x1 kernels are accepted too.

On the CPU, most layers are computed by Winograd's algorithm (Lavin and Gray, https://arxiv.org/abs/1509.09308), or in
bfloat16 by AMX or AVX512_BF16; on CUDA devices by an implicit GEMM on the tensor cores.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.ops import library
from danet.ops.common import (
    FLOATING,
    autocast,
    check_bool,
    check_image,
    check_shape,
    check_tensor,
    dtype_name,
    integer,
    memoize_check,
)


@dataclass(frozen=True, eq=False)
class PreparedRepConv:
    """A weight in the memory layout of `rep_conv`'s kernel; made by `prepare_rep_conv`.

    The layout depends on the processor: do not save it, prepare the weight again instead.

    Attributes:
        weight: [C_out, C, 3, 3] or [C_out, C, 1, 1], a copy, detached from autograd.
        transformed: The weight, reordered for the kernel (`prepared` in C++); None if the kernel reads `weight` itself.
            Winograd's transform of the weight is not stored; every call computes it.
        stride: The stride that `transformed` is for.
        input_dtype: The dtype of the inputs that `transformed` is for; None stands for the weight's dtype.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_rep_conv
        >>> prepare_rep_conv(torch.randn(16, 8, 3, 3), stride=2).stride
        2
    """

    weight: Tensor
    transformed: Tensor | None
    stride: int = 1
    input_dtype: torch.dtype | None = None


def prepare_rep_conv(weight: Tensor, *, stride: int = 1, input_dtype: torch.dtype | None = None) -> PreparedRepConv:
    """Prepare a weight once for many calls of `rep_conv` with one stride.

    Args:
        weight: [C_out, C, 3, 3] or [C_out, C, 1, 1]. It is copied: later changes of it have no effect on the result.
        stride: 1 or 2; 1 for 1x1 kernels.
        input_dtype: The dtype of the inputs, by default that of the weight. A float32 weight can be prepared for inputs
            in bfloat16 or float16.

    Raises:
        TypeError: If weight is not a dense tensor of a supported dtype, if input_dtype does not fit it, or if stride is
            not an integer.
        ValueError: If weight has another shape, or stride is not allowed for it.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_rep_conv, rep_conv
        >>> prepared = prepare_rep_conv(torch.randn(16, 8, 3, 3))
        >>> rep_conv(torch.randn(1, 8, 20, 24), prepared).shape
        torch.Size([1, 16, 20, 24])
    """
    _check_weight(weight)
    _check_stride(stride, weight)
    _check_input_dtype(input_dtype or weight.dtype, weight)
    copy = weight.detach().clone(memory_format=torch.channels_last)
    has_layout = library.has_kernel(copy) and not copy.is_meta
    if not copy.is_cpu and library.has_kernel(copy) and input_dtype not in (None, copy.dtype):
        prepared = split_weight(copy, input_dtype)
    else:
        prepared = torch.ops.danet.prepare_rep_conv(copy, stride, input_dtype) if has_layout else None
    filled = prepared if prepared is not None and prepared.numel() > 0 else None
    return PreparedRepConv(copy, filled, stride, input_dtype)


def split_weight(weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A float32 weight as sums of two values of a half type, for the tensor cores of CUDA devices.

    Returns:
        [2 * C_out, C, k, k]: for each output channel its rounded weight, and then the rounding errors; None if a value
        is too large for the half type.
    """
    high = weight.to(dtype)
    if not high.is_meta and not bool(high.isfinite().all()):
        return None
    rows = torch.stack([high, (weight - high.float()).to(dtype)], 1).flatten(0, 1)
    return rows.contiguous(memory_format=torch.channels_last)


def rep_conv(
    input: Tensor,
    weight: Tensor | PreparedRepConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A 3x3 convolution with padding 1, or a 1x1 convolution, with bias and an optional ReLU; forward only.

    Half types accumulate in float32. On CUDA devices, float32 operands are rounded to tf32 if
    torch.backends.cudnn.conv.fp32_precision is "tf32", as in torch's own convolution.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weight: [C_out, C, 3, 3] or [C_out, C, 1, 1] of input's dtype, or float32 for an input in float16 or bfloat16.
            The result of `prepare_rep_conv` is faster if it was prepared for this stride and for input's dtype.
        bias: [C_out] of the weight's dtype, or None.
        stride: 1 or 2; 1 for 1x1 kernels.
        relu: Apply ReLU to the result.
        out_dtype: dtype of the result, by default that of the weight.

    Returns:
        [N, C_out, ceil(H / stride), ceil(W / stride)] of out_dtype, in channels-last memory format.

    Raises:
        TypeError: If a tensor is not dense and of a supported dtype, if the dtypes do not fit together, if stride is
            not an integer or relu is not a bool.
        ValueError: If a shape does not match, if stride is not allowed, or if the tensors are on different devices.
        RuntimeError: In backward; use `rep_conv_reference` for gradients.

    Example:
        >>> import torch
        >>> from danet.ops import rep_conv
        >>> input, weight, bias = torch.randn(2, 8, 20, 24), torch.randn(16, 8, 3, 3), torch.randn(16)
        >>> rep_conv(input, weight, bias, stride=2).shape
        torch.Size([2, 16, 10, 12])
    """
    raw, prepared = weight, None
    if isinstance(weight, PreparedRepConv):
        raw, prepared = weight.weight, weight.transformed if weight.stride == stride else None
        if isinstance(input, Tensor) and (weight.input_dtype or raw.dtype) != input.dtype:
            prepared = None
    dtype = raw.dtype if isinstance(raw, Tensor) else None
    input, raw, bias = autocast(input, raw, bias)
    if dtype is not None and raw.dtype != dtype:
        prepared = None  # it holds the weight in its own dtype
    check_rep_conv(input, raw, bias, stride, relu, out_dtype)
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (input, raw, bias)):
        return _ForwardOnly.apply(input, raw, prepared, bias, stride, relu, out_dtype)
    return _compute(input, raw, prepared, bias, stride, relu, out_dtype)


def _compute(
    input: Tensor,
    weight: Tensor,
    prepared: Tensor | None,
    bias: Tensor | None,
    stride: int,
    relu: bool,
    out_dtype: torch.dtype | None,
) -> Tensor:
    if not library.runs_compiled(input):
        return rep_conv_reference(input, weight, bias, stride=stride, relu=relu, out_dtype=out_dtype)
    if input.device.type == "cpu":
        return library.call("rep_conv", input, weight, prepared, bias, stride, relu, False, out_dtype)
    # A split weight has at least the precision of tf32, unless it is below the smallest normal value of float16.
    if input.dtype != weight.dtype and prepared is not None and _allows_tf32():
        out = library.call("rep_conv", input, weight, prepared, bias, stride, relu, False, None)
        return out if out_dtype is None else out.to(out_dtype)
    # The other kernels for CUDA have one dtype for all tensors.
    input = input.to(weight.dtype)
    out = library.call("rep_conv", input, weight, prepared, bias, stride, relu, _allows_tf32(), None)
    return out if out_dtype is None else out.to(out_dtype)


def _allows_tf32() -> bool:
    """Whether torch allows tf32 in its own convolutions on CUDA devices."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # torch sets it at run time


# Let torch.compile take the result as a constant. This is what torch.compiler.assume_constant_result does, but calling
# it imports torch._dynamo, which takes longer than importing torch.
_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def rep_conv_reference(
    input: Tensor,
    weight: Tensor | PreparedRepConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`rep_conv` in plain PyTorch, for any device and with gradients; half types accumulate in float32.

    Arguments, result and errors are those of `rep_conv`, except that backward works.

    Example:
        >>> import torch
        >>> from danet.ops import rep_conv, rep_conv_reference
        >>> input, weight = torch.randn(2, 8, 20, 24), torch.randn(16, 8, 3, 3)
        >>> torch.allclose(rep_conv(input, weight), rep_conv_reference(input, weight), atol=1e-3)
        True
    """
    if isinstance(weight, PreparedRepConv):
        weight = weight.weight
    check_rep_conv(input, weight, bias, stride, relu, out_dtype)
    dtype, out_dtype = weight.dtype, out_dtype or weight.dtype
    if input.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        # Convert to float32: CPU convolutions may accumulate in the half type. GPUs accumulate in float32 themselves.
        weight, bias = weight.float(), None if bias is None else bias.float()
    input = _channels_last(input.to(weight.dtype))
    out = F.conv2d(input, weight, bias, stride=stride, padding=weight.shape[2] // 2)
    if relu:
        out = F.relu(out)
    return _channels_last(out.to(dtype).to(out_dtype))


def _channels_last(input: Tensor) -> Tensor:
    """The tensor in channels-last memory format; vmap supports permute, but not contiguous with a memory format."""
    rows = input.permute(0, 2, 3, 1)
    # An empty tensor is contiguous whatever its strides are.
    rows = rows.contiguous() if input.numel() else rows.clone(memory_format=torch.contiguous_format)
    return rows.permute(0, 3, 1, 2)


@memoize_check
def check_rep_conv(input: Any, weight: Any, bias: Any, stride: Any, relu: Any, out_dtype: Any = None) -> None:
    """Raises the errors that `rep_conv` documents."""
    check_image("rep_conv", "input", input)
    _check_weight(weight)
    _check_input_dtype(input.dtype, weight)
    if weight.device != input.device:
        raise ValueError(f"rep_conv: weight must be on input's device {input.device}, got {weight.device}")
    (C_out, _, k, _), C = weight.shape, input.shape[1]
    check_shape("rep_conv", "weight", weight, f"[C_out, C, {k}, {k}]", (C_out, C, k, k))
    if bias is not None:
        check_tensor("rep_conv", "bias", bias)
        if bias.dtype != weight.dtype:
            expected = "input" if weight.dtype == input.dtype else "weight"
            raise TypeError(
                f"rep_conv: bias must have {expected}'s dtype {dtype_name(weight.dtype)}, got {dtype_name(bias.dtype)}"
            )
        if bias.device != input.device:
            raise ValueError(f"rep_conv: bias must be on input's device {input.device}, got {bias.device}")
        check_shape("rep_conv", "bias", bias, "[C_out]", (C_out,))
    _check_stride(stride, weight)
    check_bool("rep_conv", "relu", relu)
    if out_dtype is not None and out_dtype not in FLOATING:
        raise TypeError(f"rep_conv: out_dtype must be float64, float32, float16 or bfloat16, got {out_dtype!r}")


def _check_stride(stride: Any, weight: Tensor) -> None:
    if integer("rep_conv", "stride", stride, minimum=1) > 2:
        raise ValueError(f"rep_conv: stride must be 1 or 2, got {stride}")
    if stride != 1 and weight.shape[2] == 1:
        raise ValueError(f"rep_conv: stride must be 1 for a weight [C_out, C, 1, 1], got {stride}")


def _check_weight(weight: Any) -> None:
    check_tensor("rep_conv", "weight", weight)
    if weight.ndim != 4 or 0 in weight.shape or tuple(weight.shape[2:]) not in ((3, 3), (1, 1)):
        raise ValueError(f"rep_conv: weight must be [C_out, C, 3, 3] or [C_out, C, 1, 1], got {list(weight.shape)}")


def _check_input_dtype(dtype: torch.dtype, weight: Tensor) -> None:
    is_wider = weight.dtype == torch.float32 and dtype in (torch.float16, torch.bfloat16)
    if weight.dtype != dtype and not is_wider:
        also = " or float32" if dtype in (torch.float16, torch.bfloat16) else ""
        raise TypeError(
            f"rep_conv: weight must have input's dtype {dtype_name(dtype)}{also}, got {dtype_name(weight.dtype)}"
        )


class _ForwardOnly(torch.autograd.Function):
    """Raises a clear error in backward. The operator itself has no autograd rule, which saves time in every call."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _compute(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> None:
        raise RuntimeError(
            "rep_conv: forward only, no gradient is defined; train before fuse(), or use rep_conv_reference"
        )


def _fake(
    input: Tensor,
    weight: Tensor,
    prepared: Tensor | None,
    bias: Tensor | None,
    stride: int,
    relu: bool,
    tf32: bool,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    check_rep_conv(input, weight, bias, stride, relu, out_dtype)
    N, _, H, W = input.shape
    shape = (N, weight.shape[0], (H - 1) // stride + 1, (W - 1) // stride + 1)
    dtype = out_dtype or weight.dtype
    return torch.empty(shape, dtype=dtype, device=input.device, memory_format=torch.channels_last)


def _flops(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """FLOPs of a direct convolution, two per multiply-add, as torch counts them for its own convolution."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


library.register("rep_conv", 4, fake=_fake, batched=[0], flops=_flops)
library.register_forward_only("rep_conv")
