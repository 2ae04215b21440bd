"""SaFEM, the Scale-adaptive Feature Enhancement Mechanism of DANet, fused for inference.

Equations 1 and 2 of section 3.1.1 (https://doi.org/10.1145/3581783.3612146), in one pass over the image:

    d = relu(depthwise(x) + depthwise_bias)                                3x3, one kernel per channel
    offset, mask = the first 18 G and the other 9 G channels of predictor d + predictor_bias
    z = sdc(x, offset, mask)                                               3x3, G groups
    s = softmax over the channels of (reduce gelu(expand z + expand_bias) + reduce_bias)
    out[c] = scale * C * s[c] * x[c]                                       or, as ACFA combines two levels (equation 3),
    out[c] = scale * C * s[c] * up[c] + weight[n, c] * x[c]

and the channel weights of ACFA's deeper level (equation 4), `acfa_weight`:

    weight[n, c] = sigmoid(reduce gelu(expand mean over the pixels of z + expand_bias) + reduce_bias)

w_g of equation 1 is folded into `expand`, and batch norms into the convolutions before them. On the CPU in float32, and
in bfloat16 if the processor has AMX or AVX512_BF16, one kernel takes a block of pixels through all steps while it is in
the cache. On CUDA devices in float16 and bfloat16, one kernel takes a tile of pixels through all steps in shared
memory, if C is a multiple of 16 and of 8 * G and at most 512, and G is at most 8. Elsewhere each step is a call of its
own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.ops import library
from danet.ops.common import check_image, check_like_input, check_shape, check_tensor, integer, is_autocast
from danet.ops.rep_conv import rep_conv
from danet.ops.sdc import MAX_ELEMENTS, sdc, sdc_reference
from danet.ops.softmax_gate import softmax_gate, softmax_gate_reference


@dataclass(frozen=True, eq=False)
class PreparedSafem:
    """The weights of `safem` and `acfa_weight`, from `prepare_safem`.

    depthwise is [C, 1, 3, 3], predictor [27*G, C, 1, 1], expand [2*C, C, 1, 1] and reduce [C, 2*C, 1, 1]; each bias has
    one value per output channel. packed holds the same weights in the layout of the fused kernel, or is None if that
    kernel does not exist for their device and dtype. Do not save it, because the layout depends on the processor.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_safem
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> prepare_safem(*map(torch.randn, shapes), groups=2).groups
        2
    """

    groups: int
    depthwise: Tensor
    depthwise_bias: Tensor
    predictor: Tensor
    predictor_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    reduce: Tensor
    reduce_bias: Tensor
    packed: Tensor | None


def prepare_safem(
    depthwise: Tensor,
    depthwise_bias: Tensor,
    predictor: Tensor,
    predictor_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    *,
    groups: int,
) -> PreparedSafem:
    """Check the weights of a SaFEM and pack them for the fused kernel, once before many calls.

    The shapes are those of `PreparedSafem`. The tensors are copied: later changes of them have no effect.

    Raises:
        TypeError: if an argument is not a dense tensor of a supported dtype, if dtypes differ, or if groups is not an
            integer.
        ValueError: if a shape or device does not match, or if groups does not divide C.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_safem, safem
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> weights = prepare_safem(*map(torch.randn, shapes), groups=2)
        >>> safem(torch.randn(1, 8, 5, 6), weights).shape
        torch.Size([1, 8, 5, 6])
    """
    check_tensor("safem", "depthwise", depthwise)
    G, C = integer("safem", "groups", groups, minimum=1), depthwise.shape[0]
    if C == 0 or C % G != 0:
        raise ValueError(f"safem: groups must divide C = {C}, got {groups}")
    shapes: dict[str, tuple[Any, str, tuple[int, ...]]] = {
        "depthwise": (depthwise, "[C, 1, 3, 3]", (C, 1, 3, 3)),
        "depthwise_bias": (depthwise_bias, "[C]", (C,)),
        "predictor": (predictor, "[27*G, C, 1, 1]", (27 * G, C, 1, 1)),
        "predictor_bias": (predictor_bias, "[27*G]", (27 * G,)),
        "expand": (expand, "[2*C, C, 1, 1]", (2 * C, C, 1, 1)),
        "expand_bias": (expand_bias, "[2*C]", (2 * C,)),
        "reduce": (reduce, "[C, 2*C, 1, 1]", (C, 2 * C, 1, 1)),
        "reduce_bias": (reduce_bias, "[C]", (C,)),
    }
    for name, (value, symbols, shape) in shapes.items():
        check_like_input("safem", name, value, depthwise)
        check_shape("safem", name, value, symbols, shape)
    tensors = [value.detach().clone() for value, _, _ in shapes.values()]
    packed = None
    if library.has_kernel(depthwise) and depthwise.is_cpu and depthwise.dtype in _fused_dtypes():
        packed = torch.ops.danet.prepare_safem(*(value.contiguous() for value in tensors), G)
    elif library.has_kernel(depthwise) and _fits_cuda_kernel(depthwise, G):
        packed = pack_for_cuda(tensors)
    return PreparedSafem(G, *tensors, packed)  # type: ignore[call-arg]  # mypy does not know that the list has eight


def _fits_cuda_kernel(depthwise: Tensor, groups: int) -> bool:
    """Whether the fused CUDA kernel supports these weights; meta tensors take the same steps as CUDA tensors."""
    C = depthwise.shape[0]
    is_half = depthwise.dtype in (torch.float16, torch.bfloat16)
    return not depthwise.is_cpu and is_half and C % 16 == 0 and C % (8 * groups) == 0 and C <= 512 and groups <= 8


def pack_for_cuda(weights: Sequence[Tensor]) -> Tensor:
    """The weights of a SaFEM in one tensor, as the CUDA kernel reads them (csrc/safem/safem_pass.cuh).

    Args:
        weights: the eight tensors of `prepare_safem`, on any device.

    Returns:
        One dimension, of the dtype of the weights: the depth-wise weight as [9, C], and the weights of the three 1x1
        convolutions in the order in which the tensor cores take them (`_pack_fragments`), each followed by its bias. C
        must be a multiple of 16.
    """
    depthwise, depthwise_bias, predictor, predictor_bias, expand, expand_bias, reduce, reduce_bias = weights
    parts = [
        *(depthwise.flatten(1).t(), depthwise_bias),
        *(_pack_fragments(predictor), F.pad(predictor_bias, (0, -len(predictor_bias) % 16))),
        *(_pack_fragments(expand), expand_bias),
        *(_pack_fragments(reduce), reduce_bias),
    ]
    return torch.cat([part.reshape(-1) for part in parts])


def _pack_fragments(weight: Tensor) -> Tensor:
    """[N, K, 1, 1] -> the layout of csrc/safem/safem_matrix.cuh; N is rounded up to 16 and K to 32, with zeros."""
    N, K = weight.shape[:2]
    padded = F.pad(weight[:, :, 0, 0], (0, -K % 32, 0, -N % 16))
    blocks = padded.reshape(-1, 4, 2, 2, padded.shape[1] // 32, 4, 8)  # [chunk, t, n, j, k_block, u, e]
    return blocks.permute(0, 2, 4, 1, 3, 5, 6)


def safem(
    input: Tensor, weights: PreparedSafem, *, up: Tensor | None = None, weight: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """SaFEM: the input times its own channel attention; with `up` and `weight`, ACFA's sum of two levels.

    The formulas are in the docstring of this module. If a gradient is needed, the steps run as differentiable calls of
    their own.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weights: from `prepare_safem`, of input's dtype.
        up: [N, 4*C, ceil(H / 2), ceil(W / 2)], the deeper level after a 2x2 transposed convolution of stride 2, before
            its pixels are moved to their places: 4 output pixels of C channels per input pixel, in row-major order.
        weight: [N, C] of input's dtype, the channel weights of `input`; required with `up`.
        scale: factor of the attention.

    Returns:
        [N, C, H, W] in the memory format channels-last.

    Raises:
        TypeError: if input is not a dense tensor of a supported dtype, if weights do not come from `prepare_safem`, or
            if dtypes differ.
        ValueError: if a shape or device does not match, or if only one of `up` and `weight` is given.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_safem, safem
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> weights = prepare_safem(*map(torch.randn, shapes), groups=2)
        >>> input, up, weight = torch.randn(1, 8, 5, 6), torch.randn(1, 32, 3, 3), torch.ones(1, 8)
        >>> safem(input, weights, up=up, weight=weight, scale=0.5).shape
        torch.Size([1, 8, 5, 6])
    """
    _check_safem(input, weights, up, weight)
    if _has_fused_kernel(input, weights, up, weight):
        return library.call("safem", input, weights.packed, up, weight, weights.groups, scale)
    return _safem_in_steps(input, weights, up, weight, scale, COMPILED)


def safem_reference(
    input: Tensor, weights: PreparedSafem, *, up: Tensor | None = None, weight: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """`safem` in plain PyTorch, for any device and any order of derivatives. Arguments and errors are those of `safem`.

    Example:
        >>> import torch
        >>> from danet.ops import prepare_safem, safem, safem_reference
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> weights = prepare_safem(*(torch.randn(shape, dtype=torch.float64) for shape in shapes), groups=2)
        >>> input = torch.randn(1, 8, 5, 6, dtype=torch.float64)
        >>> torch.allclose(safem(input, weights), safem_reference(input, weights))
        True
    """
    _check_safem(input, weights, up, weight)
    return _safem_in_steps(input, weights, up, weight, scale, REFERENCE)


def acfa_weight(input: Tensor, weights: PreparedSafem) -> Tensor:
    """The channel weights of ACFA's deeper level (equation 4), w_d = sigmoid(FFN(GAP(SDC(input)))).

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16: the deeper level.
        weights: from `prepare_safem`, of input's dtype.

    Returns:
        [N, C] of input's dtype, the argument `weight` of `safem` for the shallower level.

    Raises:
        TypeError: if input is not a dense tensor of a supported dtype, if weights do not come from `prepare_safem`, or
            if their dtypes differ.
        ValueError: if a shape or device does not match.

    Example:
        >>> import torch
        >>> from danet.ops import acfa_weight, prepare_safem
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> weights = prepare_safem(*map(torch.randn, shapes), groups=2)
        >>> acfa_weight(torch.randn(3, 8, 5, 6), weights).shape
        torch.Size([3, 8])
    """
    _check_input(input, weights)
    if _has_fused_kernel(input, weights):
        return library.call("acfa_weight", input, weights.packed, weights.groups)
    return _acfa_weight_in_steps(input, weights, COMPILED)


def acfa_weight_reference(input: Tensor, weights: PreparedSafem) -> Tensor:
    """`acfa_weight` in plain PyTorch, for any device and any order of derivatives.

    Arguments and errors are those of `acfa_weight`.

    Example:
        >>> import torch
        >>> from danet.ops import acfa_weight, acfa_weight_reference, prepare_safem
        >>> shapes = (8, 1, 3, 3), (8,), (54, 8, 1, 1), (54,), (16, 8, 1, 1), (16,), (8, 16, 1, 1), (8,)
        >>> weights = prepare_safem(*(torch.randn(shape, dtype=torch.float64) for shape in shapes), groups=2)
        >>> input = torch.randn(1, 8, 5, 6, dtype=torch.float64)
        >>> torch.allclose(acfa_weight(input, weights), acfa_weight_reference(input, weights))
        True
    """
    _check_input(input, weights)
    return _acfa_weight_in_steps(input, weights, REFERENCE)


def _fused_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes for which the CPU has the fused kernel."""
    return (torch.float32, torch.bfloat16) if torch.ops.danet.matrix_unit() else (torch.float32,)


def _has_fused_kernel(input: Tensor, weights: PreparedSafem, *others: Tensor | None) -> bool:
    """Whether the fused kernel takes this call: packed weights, no gradients, no autocast, within its limit."""
    if weights.packed is None or (not input.is_meta and is_autocast(input)):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, *others)):
        return False
    _, C, H, W = input.shape
    return library.runs_compiled(input) and (H + 4) * (W + 4) * C < MAX_ELEMENTS


class _Steps(NamedTuple):
    """The functions that compute single steps of the formulas."""

    sdc: Any
    softmax_gate: Any
    pointwise: Any


def _pointwise(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution. On CUDA devices without gradients, `rep_conv` adds the bias in the same kernel."""
    if input.is_cpu or (torch.is_grad_enabled() and any(t.requires_grad for t in (input, weight, bias))):
        return F.conv2d(input, weight, bias)
    return rep_conv(input, weight, bias, relu=False)


COMPILED = _Steps(sdc, softmax_gate, _pointwise)
REFERENCE = _Steps(sdc_reference, softmax_gate_reference, F.conv2d)


def _sample(input: Tensor, weights: PreparedSafem, steps: _Steps) -> Tensor:
    """z of the formulas."""
    G = weights.groups
    features = F.conv2d(input, weights.depthwise, weights.depthwise_bias, padding=1, groups=input.shape[1])
    predicted = steps.pointwise(F.relu(features), weights.predictor, weights.predictor_bias)
    return steps.sdc(input, predicted[:, : 18 * G], predicted[:, 18 * G :], groups=G)


def _feed_forward(input: Tensor, weights: PreparedSafem, steps: _Steps) -> Tensor:
    """reduce gelu(expand input + expand_bias) + reduce_bias."""
    hidden = F.gelu(steps.pointwise(input, weights.expand, weights.expand_bias))
    return steps.pointwise(hidden, weights.reduce, weights.reduce_bias)


def _safem_in_steps(
    input: Tensor, weights: PreparedSafem, up: Tensor | None, weight: Tensor | None, scale: float, steps: _Steps
) -> Tensor:
    logits = _feed_forward(_sample(input, weights, steps), weights, steps)
    if up is None or weight is None:  # both or neither
        return _scale(steps.softmax_gate(input, logits), scale)
    C, H, W = input.shape[1:]
    placed = _place(up, C)[:, :, :H, :W]
    gated = _scale(steps.softmax_gate(placed, logits.to(placed.dtype)), scale)
    return torch.addcmul(gated, weight[:, :, None, None], input)


def _place(up: Tensor, C: int) -> Tensor:
    """[N, 4*C, h, w] -> [N, C, 2*h, 2*w] in channels-last memory, by one copy: four pixels become a block of 2x2."""
    blocks = up.permute(0, 2, 3, 1).unflatten(3, (2, 2, C)).transpose(2, 3)  # [N, h, 2, w, 2, C]
    return blocks.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


def _scale(value: Tensor, scale: float) -> Tensor:
    """scale * value, without a pass over the value if the scale is 1, as in all networks but literal ones."""
    return value if scale == 1 else scale * value


def _acfa_weight_in_steps(input: Tensor, weights: PreparedSafem, steps: _Steps) -> Tensor:
    mean = _sample(input, weights, steps).mean(dim=(2, 3), keepdim=True)
    return torch.sigmoid(_feed_forward(mean, weights, steps)).flatten(1)


def _check_input(input: Any, weights: Any) -> None:
    check_image("safem", "input", input)
    if not isinstance(weights, PreparedSafem):
        raise TypeError(f"safem: weights must be what prepare_safem returns, got {type(weights).__name__}")
    check_like_input("safem", "weights", weights.depthwise, input)
    if weights.depthwise.shape[0] != input.shape[1]:
        raise ValueError(f"safem: input must have C = {weights.depthwise.shape[0]} like weights, got {input.shape[1]}")


def _check_safem(input: Any, weights: Any, up: Any, weight: Any) -> None:
    _check_input(input, weights)
    if (up is None) != (weight is None):
        given, missing = ("weight", "up") if up is None else ("up", "weight")
        raise ValueError(f"safem: up and weight must be given together, got {given} without {missing}")
    if up is not None:
        N, C, H, W = input.shape
        check_like_input("safem", "up", up, input)
        expected = (N, 4 * C, (H + 1) // 2, (W + 1) // 2)
        check_shape("safem", "up", up, "[N, 4*C, ceil(H / 2), ceil(W / 2)]", expected)
        check_like_input("safem", "weight", weight, input)
        check_shape("safem", "weight", weight, "[N, C]", (N, C))


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last)


def _fake_acfa_weight(input: Tensor, packed: Tensor, groups: int) -> Tensor:
    return input.new_empty(input.shape[:2])


def _flops(input: Any, packed: Any, up: Any, weight: Any, groups: int, scale: float, **_: Any) -> int:
    """FLOPs of the convolutions for an input of shape `input`; a multiply-add counts as two."""
    return 2 * math.prod(input) * (9 + 27 * groups + 4 * input[1])


def _flops_acfa_weight(input: Any, packed: Any, groups: int, **_: Any) -> int:
    """FLOPs of the convolutions before the mean, counted as for `safem`."""
    return 2 * math.prod(input) * (9 + 27 * groups)


library.register("safem", 4, fake=_fake, batched=[0, 2, 3], flops=_flops)
library.register("acfa_weight", 2, fake=_fake_acfa_weight, batched=[0], flops=_flops_acfa_weight)
for _name in ("safem", "acfa_weight"):
    library.register_forward_only(_name)
