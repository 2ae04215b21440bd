"""SaFEM (paper section 3.1.1, equations 1 and 2) for inference, all of it in one pass over the image.

    d = relu(depthwise(x) + depthwise_bias)                                3x3, a kernel for each channel
    offset, mask = the first 18 G and the other 9 G channels of predictor d + predictor_bias
    z = sdc(x, offset, mask)                                               3x3, G groups
    s = softmax over the channels of (reduce gelu(expand z + expand_bias) + reduce_bias)
    out[c] = scale * C * s[c] * x[c]                                       or, as ACFA combines two levels (equation 3),
    out[c] = scale * C * s[c] * up[c] + weight[n, c] * x[c]

w_g of equation 1 is part of `expand`, and norms are part of the convolutions before them. On the CPU in float32 a block
of pixels goes through all steps while it is in the cache; elsewhere the steps are calls of their own.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.ops import library
from danet.ops.common import check_image, check_like_input, check_shape, check_tensor, integer
from danet.ops.sdc import sdc, sdc_reference
from danet.ops.softmax_gate import softmax_gate, softmax_gate_reference


@dataclass(frozen=True, eq=False)
class PreparedSafem:
    """Weights for `safem` and `sdc_mean`; rebuilt rather than saved.

    depthwise: [C, 1, 3, 3]; predictor: [27*G, C, 1, 1]; expand: [2*C, C, 1, 1]; reduce: [C, 2*C, 1, 1]; and their
    biases. expand and reduce are None where only `sdc_mean` is wanted.
    packed: what the kernel reads in their place, laid out for this processor; None where there is no such kernel.
    """

    groups: int
    depthwise: Tensor
    depthwise_bias: Tensor
    predictor: Tensor
    predictor_bias: Tensor
    expand: Tensor | None
    expand_bias: Tensor | None
    reduce: Tensor | None
    reduce_bias: Tensor | None
    packed: Tensor | None


def prepare_safem(
    depthwise: Tensor,
    depthwise_bias: Tensor,
    predictor: Tensor,
    predictor_bias: Tensor,
    expand: Tensor | None = None,
    expand_bias: Tensor | None = None,
    reduce: Tensor | None = None,
    reduce_bias: Tensor | None = None,
    *,
    groups: int,
) -> PreparedSafem:
    """Lay the weights out once (shapes as PreparedSafem has them); they are detached, and copied where they are packed.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
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
    attends = any(value is not None for value in (expand, expand_bias, reduce, reduce_bias))
    for name, (value, symbols, shape) in list(shapes.items())[: 8 if attends else 4]:
        check_like_input("safem", name, value, depthwise)
        check_shape("safem", name, value, symbols, shape)
    tensors: list[Any] = [None if value is None else value.detach() for value, _, _ in shapes.values()]
    packed = None
    if library.has_kernel(depthwise) and depthwise.is_cpu and depthwise.dtype == torch.float32:
        dense = [None if value is None else value.contiguous() for value in tensors]
        packed = torch.ops.danet.prepare_safem(*dense, G)
    return PreparedSafem(G, *tensors, packed)  # type: ignore[call-arg]  # eight of them, which a list does not say


def safem(
    input: Tensor,
    weights: PreparedSafem,
    *,
    up: Tensor | None = None,
    weight: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The features of `input`, weighted; with `up` and `weight` those of two levels, combined.

    Differentiable where the steps are calls of their own, which is also what it is made of where gradients are asked.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        weights: of input's dtype, from `prepare_safem`.
        up: [N, 4*C, ceil(H / 2), ceil(W / 2)]: of a 2x2 transposed convolution of stride 2 the four pixels that come
            of one, row by row, before they are put in place.
        weight: [N, C], of input's dtype.
        scale: a factor of the softmax's weights.

    Returns:
        [N, C, H, W] in channels-last strides.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    check_safem(input, weights, up, weight)
    if _fused(input, weights, up, weight):
        return library.call("safem", input, weights.packed, up, weight, weights.groups, scale)
    return _in_steps(input, weights, up, weight, scale, sdc, softmax_gate)


def safem_reference(
    input: Tensor,
    weights: PreparedSafem,
    *,
    up: Tensor | None = None,
    weight: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`safem` in plain PyTorch: any device, double backward."""
    check_safem(input, weights, up, weight)
    return _in_steps(input, weights, up, weight, scale, sdc_reference, softmax_gate_reference)


def sdc_mean(input: Tensor, weights: PreparedSafem) -> Tensor:
    """The mean over the pixels of z, before w_g: [N, C, H, W] -> [N, C, 1, 1] (ACFA's GAP(SDC(F_d)), equation 4).

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    _check_input(input, weights)
    if weights.expand is None and _fused(input, weights):
        return library.call("sdc_mean", input, weights.packed, weights.groups)
    return _sample(input, weights, sdc).mean(dim=(2, 3), keepdim=True)


def sdc_mean_reference(input: Tensor, weights: PreparedSafem) -> Tensor:
    """`sdc_mean` in plain PyTorch: any device, double backward."""
    _check_input(input, weights)
    return _sample(input, weights, sdc_reference).mean(dim=(2, 3), keepdim=True)


def _fused(input: Tensor, weights: PreparedSafem, *others: Tensor | None) -> bool:
    """Whether the kernel of one pass takes this call: float32 on the CPU, without gradients or autocast."""
    if weights.packed is None or torch.is_autocast_enabled(input.device.type):
        return False
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, *others))
    return library.has_kernel(input) and not needed


def _sample(input: Tensor, weights: PreparedSafem, sdc: Any) -> Tensor:
    G = weights.groups
    around = F.conv2d(input, weights.depthwise, weights.depthwise_bias, padding=1, groups=input.shape[1])
    predicted = F.conv2d(F.relu(around), weights.predictor, weights.predictor_bias)
    return sdc(input, predicted[:, : 18 * G], predicted[:, 18 * G :], groups=G)


def _in_steps(
    input: Tensor,
    weights: PreparedSafem,
    up: Tensor | None,
    weight: Tensor | None,
    scale: float,
    sdc: Any,
    softmax_gate: Any,
) -> Tensor:
    assert weights.expand is not None and weights.reduce is not None  # check_safem has seen to it
    hidden = F.gelu(F.conv2d(_sample(input, weights, sdc), weights.expand, weights.expand_bias))
    logits = F.conv2d(hidden, weights.reduce, weights.reduce_bias)
    if up is None or weight is None:  # they come together
        return scale * softmax_gate(input, logits)
    C, H, W = input.shape[1:]
    placed = F.pixel_shuffle(up.unflatten(1, (4, C)).transpose(1, 2).flatten(1, 2), 2)[:, :, :H, :W]
    return scale * softmax_gate(placed, logits.to(placed.dtype)) + weight[:, :, None, None] * input


def _check_input(input: Any, weights: Any) -> None:
    check_tensor("safem", "input", input)
    check_image("safem", "input", input)
    if not isinstance(weights, PreparedSafem):
        raise TypeError(f"safem: weights must be what prepare_safem returns, got {type(weights).__name__}")
    check_like_input("safem", "weights", weights.depthwise, input)
    if weights.depthwise.shape[0] != input.shape[1]:
        raise ValueError(f"safem: weights are for C = {weights.depthwise.shape[0]}, input has {input.shape[1]}")


def check_safem(input: Any, weights: Any, up: Any, weight: Any) -> None:
    _check_input(input, weights)
    if weights.expand is None:
        raise ValueError("safem: weights have no expand and reduce; they are for sdc_mean")
    if (up is None) != (weight is None):
        raise ValueError("safem: up and weight come together")
    if up is not None:
        N, C, H, W = input.shape
        check_like_input("safem", "up", up, input)
        expected = (N, 4 * C, (H + 1) // 2, (W + 1) // 2)
        check_shape("safem", "up", up, "[N, 4*C, ceil(H / 2), ceil(W / 2)]", expected)
        check_like_input("safem", "weight", weight, input)
        check_shape("safem", "weight", weight, "[N, C]", (N, C))


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last)


def _fake_mean(input: Tensor, packed: Tensor, groups: int) -> Tensor:
    return input.new_empty((input.shape[0], input.shape[1], 1, 1))


def _vmap(
    info: Any,
    in_dims: tuple,
    input: Tensor,
    packed: Tensor,
    up: Tensor | None,
    weight: Tensor | None,
    *options: Any,
) -> tuple:
    if in_dims[1] is not None:
        calls = library.each_of_batch(info.batch_size, in_dims, input, packed, up, weight)
        return torch.stack([torch.ops.danet.safem(*tensors, *options) for tensors in calls]), 0
    pairs = ((input, in_dims[0]), (up, in_dims[2]), (weight, in_dims[3]))
    image, up, weight = (
        None if value is None else library.fold_batch(value, dim, info.batch_size) for value, dim in pairs
    )
    out = torch.ops.danet.safem(image, packed, up, weight, *options)
    return out.unflatten(0, (info.batch_size, -1)), 0


def _vmap_mean(info: Any, in_dims: tuple, input: Tensor, packed: Tensor, groups: int) -> tuple:
    if in_dims[1] is not None:
        calls = library.each_of_batch(info.batch_size, in_dims, input, packed)
        return torch.stack([torch.ops.danet.sdc_mean(*tensors, groups) for tensors in calls]), 0
    folded = library.fold_batch(input, in_dims[0], info.batch_size)
    return torch.ops.danet.sdc_mean(folded, packed, groups).unflatten(0, (info.batch_size, -1)), 0


def _flops(input: Any, packed: Any, up: Any, weight: Any, groups: int, scale: float, **_: Any) -> int:
    """Of its convolutions; a multiply-add is two."""
    N, C, H, W = input
    return 2 * N * H * W * C * (9 + 27 * groups + 4 * C)


def _flops_mean(input: Any, packed: Any, groups: int, **_: Any) -> int:
    N, C, H, W = input
    return 2 * N * H * W * C * (9 + 27 * groups)


library.register("safem", fake=_fake, vmap=_vmap, flops=_flops)
library.register("sdc_mean", fake=_fake_mean, vmap=_vmap_mean, flops=_flops_mean)
