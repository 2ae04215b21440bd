"""The operators as standard operators of ONNX, for networks that are exported with torch.onnx.export.

`sdc` and the operators built on it become GridSample (opset 16 and later), or, within `standard_operators(True)`,
DeformConv (opset 22). `ms_deform_attn` becomes GridSample. The others are exported by their references. `sizes` and
`options` are SdcSizes and SdcOptions of danet/ops/sdc.py, which imports this module.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_use_deform_conv: bool | None = None
"""Set by `standard_operators`. Not a context variable, because torch.compile cannot trace these."""


@contextlib.contextmanager
def standard_operators(deform_conv: bool) -> Iterator[None]:
    """Within this block, torch.export traces the deformable operators as GridSample or, if asked, as DeformConv."""
    global _use_deform_conv
    before, _use_deform_conv = _use_deform_conv, deform_conv
    try:
        yield
    finally:
        _use_deform_conv = before


def is_active() -> bool:
    """Whether the operators are being traced for an ONNX file."""
    if not torch.compiler.is_exporting():
        return False
    return _use_deform_conv is not None or torch.onnx.is_in_onnx_export()


def uses_deform_conv() -> bool:
    """Whether the file may have DeformConv nodes."""
    return bool(_use_deform_conv)


def sample_grid(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    sizes: Any,
    options: Any,
    taps: tuple[Tensor, Tensor],
    *,
    sum_taps: bool = True,
) -> Tensor:
    """The reference of `sdc` by grid_sample, from the tap positions Y [H_out, 1, 1, K] and X [W_out, 1, K]."""
    N, C, H, W, G, K, H_out, W_out = sizes
    weights = mask.reshape(N, G, K, H_out, W_out)
    weights = weights.softmax(2) if options.softmax else weights
    pairs = offset.reshape(N, G, K, 2, H_out, W_out) * options.offset_scale
    y = pairs[:, :, :, 0] + taps[0].permute(3, 0, 1, 2).reshape(K, H_out, 1)
    x = pairs[:, :, :, 1] + taps[1].permute(2, 1, 0).reshape(K, 1, W_out)
    # Convert pixels to the coordinates of grid_sample: the borders are -1 and 1, a pixel's value is at its center.
    grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], dim=-1).reshape(N * G, K * H_out, W_out, 2)
    features = input.reshape(N * G, C // G, H, W)
    sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = sampled.reshape(N, G, C // G, K, H_out, W_out) * weights.unsqueeze(2)
    if sum_taps:
        return samples.sum(3).reshape(N, C, H_out, W_out)
    return samples.permute(0, 3, 1, 2, 4, 5).reshape(N, K * C, H_out, W_out)


def sample_levels(value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
    """The reference of `ms_deform_attn` by grid_sample, one call per level; the arguments are those of the operator.

    The sizes of the levels may depend on the input. No level may be empty.
    """
    N, S, M, D = value.shape
    Q, P = locations.shape[1], locations.shape[4]
    grid = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).reshape(-1, N * M, Q, P, 2)
    weights = weights.permute(3, 0, 2, 1, 4).reshape(-1, N * M, 1, Q, P)
    levels = []
    for level, ((H, W), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        # Assume that the level lies within value, because torch.export does not know numbers that are in tensors.
        for size in (H, W, start, S - start - H * W):
            torch._check(size >= 0)
        pixels = value.narrow(1, start, H * W).permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        sampled = F.grid_sample(pixels, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        levels.append((sampled * weights[level]).sum(-1))
    return sum(levels[1:], levels[0]).reshape(N, M * D, Q).transpose(1, 2)


def deform_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Any,
    shape: Sequence[Any],
) -> Tensor:
    """A DeformConv node (opset 22) with the result shape `shape`; offset_scale must be 1, and no softmax."""
    attributes: dict[str, Any] = {
        "group": input.shape[1] // weight.shape[1],
        "offset_group": options.groups,
        "kernel_shape": list(options.kernel_size),
        "pads": [*options.padding, *options.padding],
        "strides": list(options.stride),
        "dilations": list(options.dilation),
    }
    operands = (input, weight, offset, bias, mask)
    return torch.onnx.ops.symbolic("DeformConv", operands, attributes, dtype=input.dtype, shape=shape, version=22)
