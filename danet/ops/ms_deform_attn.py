"""Multi-scale deformable attention, the operator of Deformable DETR (https://arxiv.org/abs/2010.04159, equation 3).

Every query samples P points of each of L feature maps (levels), separately for each of M heads, and adds the samples
with its attention weights. The linear layers of the equation are not part of the operator:

    out[n, q, m*D + d] = sum_{l < L, p < P} a[n, q, m, l, p] * value_l[n, m, d, Y, X]

    X = sampling_locations[n, q, m, l, p, 0] * W_l - 1/2
    Y = sampling_locations[n, q, m, l, p, 1] * H_l - 1/2

Locations are (x, y) pairs. 0 and 1 are the outer edges of a level, as in `F.grid_sample` with align_corners=False after
`2 * location - 1`. a is `attention_weights`, or its softmax over the L * P points of a query and head. value_l is level
l: the H_l * W_l pixels of `value` that begin at pixel level_start_index[l], row by row. A level may be empty.

value_l[Y, X] is interpolated bilinearly between the four pixels around (Y, X), and is zero outside the level. A sample
with Y <= -1, Y >= H_l, X <= -1 or X >= W_l is zero and all its gradients are zero, as in the kernel of the authors;
`F.grid_sample` has the same values, but gives locations at exactly Y = -1 or X = -1 a gradient. A sample with a NaN
coordinate is NaN in the forward pass; its gradients are zero. Samples of empty levels are zero.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.ops import library, onnx_form
from danet.ops.common import autocast, check_bool, check_shape, check_tensor, compute_dtype, dtype_name, memoize_check
from danet.ops.sampling import weighted_gather

MAX_POINTS = 256
"""Maximum of L * P in the compiled kernels. The reference implementation computes calls with more points."""

MAX_PIXELS = 2**31
"""The compiled kernels need S < MAX_PIXELS. The reference implementation computes larger calls."""


class MsDeformAttnSizes(NamedTuple):
    """The sizes of one call: value [N, S, M, D], sampling_locations [N, Q, M, L, P, 2], output [N, Q, M*D]."""

    N: int
    S: int
    M: int
    D: int
    Q: int
    L: int
    P: int


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    *,
    softmax: bool = False,
) -> Tensor:
    """Multi-scale deformable attention, with the signature of the authors' `MSDeformAttnFunction.apply`.

    The formula is in the docstring of this module. Gradients exist for value, sampling_locations and attention_weights.

    Args:
        value: [N, S, M, D], float64, float32, float16 or bfloat16: the S pixels of all levels, for M heads of D
            channels.
        spatial_shapes: [L, 2], (H_l, W_l) of each level in pixels, int64 or int32; or a sequence of pairs.
        level_start_index: [L], the first pixel of each level, int64 or int32; or a sequence; or None: the levels follow
            one another from pixel 0.
        sampling_locations: [N, Q, M, L, P, 2] (x, y), from 0 to 1 inside a level. They have value's dtype, or float32
            (recommended if value has a half dtype: bfloat16 has only 8 bits for a position in the whole image).
        attention_weights: [N, Q, M, L, P] of value's dtype or float32.
        im2col_step: ignored; a batch of any size is one call.
        softmax: take attention_weights as logits; the kernel normalizes them over the L * P points of a query and head.

    Returns:
        [N, Q, M*D] of value's dtype. Half dtypes accumulate in float32. Under autocast, value is cast to autocast's
        dtype; the locations and weights stay as they are (our decision, for precise positions).

    Raises:
        TypeError: if a tensor argument is not a dense tensor of a supported dtype, or if softmax is not a bool.
        ValueError: if a shape or device does not match.
        RuntimeError: on the CPU, if a level does not lie within the S pixels of value. On CUDA devices, such a level
            gives NaN instead (our decision: a check would wait for the device). Also if torch.func's grad or vjp is
            active, which only `ms_deform_attn_reference` supports. Forward-mode AD is computed by the reference.

    Example:
        >>> import torch
        >>> from danet.ops import ms_deform_attn
        >>> shapes = torch.tensor([[8, 10], [4, 5]])  # two levels of 80 and 20 pixels
        >>> value = torch.randn(1, 100, 8, 32)
        >>> locations, weights = torch.rand(1, 300, 8, 2, 4, 2), torch.rand(1, 300, 8, 2, 4)
        >>> ms_deform_attn(value, shapes, torch.tensor([0, 80]), locations, weights).shape
        torch.Size([1, 300, 256])
    """
    (value,) = autocast(value)
    sampling_locations, attention_weights = _common_dtype(value, sampling_locations, attention_weights)
    shapes, starts = _level_tensors(value, spatial_shapes, level_start_index)
    tensors = value, sampling_locations, attention_weights
    sizes = check_ms_deform_attn(*tensors, shapes, starts, softmax)
    if library.runs_compiled(value) and sizes.L * sizes.P <= MAX_POINTS and sizes.S < MAX_PIXELS:
        return library.call("ms_deform_attn", *tensors, shapes, starts, softmax)
    return _unchecked_reference(*tensors, shapes, starts, softmax)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    *,
    softmax: bool = False,
) -> Tensor:
    """`ms_deform_attn` in plain PyTorch, for any device and any order of derivatives, also in forward mode.

    Arguments, result and errors are those of `ms_deform_attn`, except that autocast does not cast value. It reads
    spatial_shapes and level_start_index from the device.

    Example:
        >>> import torch
        >>> from danet.ops import ms_deform_attn, ms_deform_attn_reference
        >>> tensors = torch.randn(1, 100, 2, 8), torch.rand(1, 7, 2, 2, 4, 2), torch.rand(1, 7, 2, 2, 4)
        >>> arguments = tensors[0], [(8, 10), (4, 5)], None, *tensors[1:]
        >>> torch.allclose(ms_deform_attn(*arguments), ms_deform_attn_reference(*arguments), atol=1e-5)
        True
    """
    check_tensor("ms_deform_attn", "value", value)
    sampling_locations, attention_weights = _common_dtype(value, sampling_locations, attention_weights)
    shapes, starts = _level_tensors(value, spatial_shapes, level_start_index)
    check_ms_deform_attn(value, sampling_locations, attention_weights, shapes, starts, softmax)
    return _unchecked_reference(value, sampling_locations, attention_weights, shapes, starts, softmax)


def _common_dtype(value: Any, *points: Any) -> tuple[Any, ...]:
    """The locations and weights in one dtype: value's, or float32 if one of them has not value's half dtype."""
    if not all(isinstance(each, Tensor) for each in (value, *points)) or value.dtype == torch.float64:
        return points
    if all(each.dtype == value.dtype for each in points):
        return points
    known = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(each.float() if each.dtype in known else each for each in points)


def _level_tensors(value: Any, shapes: Any, starts: Any) -> tuple[Any, Any]:
    """spatial_shapes and level_start_index as int64 tensors on value's device; TypeError if they hold no integers."""
    if not isinstance(value, Tensor):
        return shapes, starts  # the check of value raises the error
    result: list[Tensor] = []
    for name, given in (("spatial_shapes", shapes), ("level_start_index", starts)):
        if given is None and name == "level_start_index":
            count = result[0].prod(-1)
            result.append(count.cumsum(0) - count)
            continue
        try:
            tensor = given if isinstance(given, Tensor) else torch.tensor(given, device=value.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"ms_deform_attn: {name} must be a tensor of integers, got {given!r}") from None
        if tensor.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"ms_deform_attn: {name} must be int64 or int32, got {dtype_name(tensor.dtype)}")
        # Copy to another device. A copy to a GPU needs no wait, because the kernels run after it on the same stream; a
        # copy to the CPU must be complete, because the CPU reads it at once.
        result.append(tensor.to(device=value.device, dtype=torch.int64, non_blocking=not value.is_cpu))
    return result[0], result[1]


@memoize_check
def check_ms_deform_attn(
    value: Any, locations: Any, weights: Any, shapes: Any, starts: Any, softmax: Any
) -> MsDeformAttnSizes:
    """The sizes of a call; TypeError or ValueError if an argument is invalid."""
    op = "ms_deform_attn"
    check_tensor(op, "value", value)
    if value.ndim != 4 or 0 in value.shape[2:]:
        raise ValueError(f"{op}: value must be [N, S, M, D] with M, D >= 1, got {list(value.shape)}")
    for name, each in (("sampling_locations", locations), ("attention_weights", weights)):
        check_tensor(op, name, each)
        allowed = [value.dtype] if value.dtype == torch.float64 else [value.dtype, torch.float32]
        if each.dtype not in allowed:
            names = " or ".join(dict.fromkeys(map(dtype_name, allowed)))
            raise TypeError(f"{op}: {name} must be {names} for this value, got {dtype_name(each.dtype)}")
        if each.device != value.device:
            raise ValueError(f"{op}: {name} must be on value's device {value.device}, got {each.device}")
    N, S, M, D = value.shape
    if locations.ndim != 6:
        raise ValueError(
            f"{op}: sampling_locations must be [N, Q, M, L, P, 2] with 6 dimensions, got {list(locations.shape)}"
        )
    _, Q, _, L, P, _ = locations.shape
    if L < 1 or P < 1:
        raise ValueError(
            f"{op}: sampling_locations must be [N, Q, M, L, P, 2] with L, P >= 1, got {list(locations.shape)}"
        )
    check_shape(op, "sampling_locations", locations, "[N, Q, M, L, P, 2]", (N, Q, M, L, P, 2))
    check_shape(op, "attention_weights", weights, "[N, Q, M, L, P]", (N, Q, M, L, P))
    check_shape(op, "spatial_shapes", shapes, "[L, 2]", (L, 2))
    check_shape(op, "level_start_index", starts, "[L]", (L,))
    check_bool(op, "softmax", softmax)
    return MsDeformAttnSizes(N, S, M, D, Q, L, P)


def _unchecked_reference(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor, starts: Tensor, softmax: bool
) -> Tensor:
    """`ms_deform_attn_reference` on validated arguments, in the order of the operator's schema.

    Every padded level is a table with one row per pixel and head. Every sample is a weighted sum of four rows, those of
    the pixels around it (see `danet.ops.sampling`). For ONNX, grid_sample takes the place of both.
    """
    N, S, M, D = value.shape
    Q, P = locations.shape[1], locations.shape[4]
    dtype = compute_dtype(value.dtype)
    weights, locations = weights.to(dtype), locations.to(dtype)
    if softmax:
        weights = weights.flatten(3).softmax(-1).view(weights.shape)
    if onnx_form.is_active():
        return onnx_form.sample_levels(value.to(dtype), locations, weights, shapes, starts).to(value.dtype)
    # Begin with a zero that depends on all tensors, so that gradients exist if all levels are empty.
    nothing = sum(each.flatten()[:0].sum() for each in (value.to(dtype), locations, weights))
    out = torch.as_tensor(nothing).expand(N * Q * M, D)
    head = torch.arange(N * M, device=value.device).view(N, 1, M, 1)
    for level, ((H, W), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        if H < 0 or W < 0 or (H * W > 0 and not 0 <= start <= S - H * W):
            raise RuntimeError(
                f"ms_deform_attn: level {level} must lie within the S = {S} pixels of value, "
                f"got {H} * {W} pixels from {start}"
            )
        if H * W == 0 or out.numel() == 0:
            continue
        # Compute the coordinates. Move those outside, and NaN, to the padding below or on the right, so that values and
        # derivatives are zero; the weight makes the samples of NaN coordinates NaN.
        x, y = locations[:, :, :, level, :, 0] * W - 0.5, locations[:, :, :, level, :, 1] * H - 0.5
        nan = x.isnan() | y.isnan()
        m = weights[:, :, :, level].masked_fill(nan, math.nan)
        y = y.masked_fill(~((y > -1) & (y < H)), H)
        x = x.masked_fill(~((x > -1) & (x < W)), W)
        # Compute the weights of the four corners.
        y_floor, x_floor = y.detach().floor(), x.detach().floor()
        bottom, right = y - y_floor, x - x_floor
        vertical, horizontal = (m * (1 - bottom), m * bottom), (1 - right, right)
        corners = torch.stack([v * h for v in vertical for h in horizontal]).view(4, N * Q * M, P)
        # Sum the rows of the four corners over the points. Rows and columns -1, H and H + 1 of a level are padding.
        pixels = value[:, start : start + H * W].to(dtype).permute(0, 2, 1, 3).reshape(N * M, H, W, D)
        table = F.pad(pixels, (0, 0, 1, 2, 1, 2)).reshape(-1, D)
        row = (head * (H + 3) + 1 + y_floor.long()) * (W + 3) + 1 + x_floor.long()
        out = out + weighted_gather(table, corners, row.view(-1, P), (0, 1, W + 3, W + 4))
    return out.view(N, Q, M * D).to(value.dtype)


def _fake(value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor, starts: Tensor, softmax: bool) -> Tensor:
    sizes = check_ms_deform_attn(value, locations, weights, shapes, starts, softmax)
    return value.new_empty(sizes.N, sizes.Q, sizes.M * sizes.D)


library.register("ms_deform_attn", 5, fake=_fake, batched=[0, 1, 2])
library.register_gradient(
    "ms_deform_attn",
    5,
    reference=_unchecked_reference,
    batched=[0, 1, 2, 3],
    backward_options=lambda: (torch.are_deterministic_algorithms_enabled(),),
    constants=2,
    memory_format=lambda _: torch.contiguous_format,
)
