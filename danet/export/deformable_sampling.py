"""Implementations of ``danet.ops.sdc`` by operators of other runtimes: stride 1, "same" padding, softmax of the mask.

Each function takes float32 tensors: input ``[N, C, H, W]``, offset ``[N, 2*G*K, H, W]`` and mask logits
``[N, G*K, H, W]``, for ``groups`` G and K = ``kernel_size``^2 taps, and returns ``[N, C, H, W]``. No branch depends on
a size, so that N, H and W stay dynamic under torch.export.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_grid(input: Tensor, offset: Tensor, mask: Tensor, groups: int, kernel_size: int) -> Tensor:
    """Computes ``sdc`` with ``grid_sample`` (ONNX's GridSample): bilinear, with zeros outside the image."""
    N, C, H, W = input.shape
    K, device = kernel_size**2, input.device
    offset = offset.reshape(N * groups, K, 2, H, W)
    weights = mask.reshape(N * groups, 1, K, H, W).softmax(2)
    tap = torch.arange(K, device=device)[:, None, None]
    y = offset[:, :, 0] + (tap // kernel_size - kernel_size // 2) + torch.arange(H, device=device)[:, None]
    x = offset[:, :, 1] + (tap % kernel_size - kernel_size // 2) + torch.arange(W, device=device)
    # Convert pixels to the coordinates of grid_sample: the borders are -1 and 1, a pixel's value is at its centre.
    grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], dim=-1).reshape(N * groups, K * H, W, 2)
    features = input.reshape(N * groups, C // groups, H, W)
    sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (sampled.reshape(N * groups, C // groups, K, H, W) * weights).sum(2).reshape(N, C, H, W)


def sample_corners(input: Tensor, offset: Tensor, mask: Tensor, groups: int, kernel_size: int) -> Tensor:
    """Computes ``sdc`` by indexing the four pixels around each sampling point, for compilers that fuse the operations.

    No two dimensions are flattened into one: with ``grid_sample``, which needs flattened dimensions, AOTInductor takes
    ten times as long to compile, and its code ten times as long to run.
    """
    N, C, H, W = input.shape
    K, device = kernel_size**2, input.device
    offset = offset.unflatten(1, (groups, K, 2))
    weights = mask.unflatten(1, (groups, K)).softmax(2)
    tap = torch.arange(K, device=device)[:, None, None]
    y = offset[:, :, :, 0] + (tap // kernel_size - kernel_size // 2) + torch.arange(H, device=device)[:, None]
    x = offset[:, :, :, 1] + (tap % kernel_size - kernel_size // 2) + torch.arange(W, device=device)
    top, left = y.floor(), x.floor()
    bottom_weight, right_weight = y - top, x - left
    features = input.unflatten(1, (groups, C // groups)).permute(0, 1, 3, 4, 2)  # [N, G, H, W, C / G]
    image = torch.arange(N, device=device)[:, None, None, None, None]
    group = torch.arange(groups, device=device)[:, None, None, None]
    out = torch.zeros((), device=device)
    for row, row_weight in ((top, 1 - bottom_weight), (top + 1, bottom_weight)):
        for column, column_weight in ((left, 1 - right_weight), (left + 1, right_weight)):
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            corner_weight = torch.where(inside, row_weight * column_weight * weights, 0.0)
            rows, columns = row.clamp(0, H - 1).long(), column.clamp(0, W - 1).long()
            out = out + (features[image, group, rows, columns] * corner_weight[..., None]).sum(2)
    return out.permute(0, 1, 4, 2, 3).flatten(1, 2)


def deform_conv(input: Tensor, offset: Tensor, mask: Tensor, groups: int, kernel_size: int) -> Tensor:
    """Computes ``sdc`` with ONNX's DeformConv (opset 22), depthwise with weights 1; in eager mode ``sample_grid``."""
    if not torch.compiler.is_exporting():
        return sample_grid(input, offset, mask, groups, kernel_size)
    C, K = input.shape[1], kernel_size**2
    weights = mask.unflatten(1, (groups, K)).softmax(2).flatten(1, 2)
    options: dict[str, Any] = {
        "group": C,
        "offset_group": groups,
        "kernel_shape": [kernel_size] * 2,
        "pads": [kernel_size // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
    }
    ones = torch.ones(C, 1, kernel_size, kernel_size)
    operands = (input, ones, offset, None, weights)
    return torch.onnx.ops.symbolic(
        "DeformConv", operands, options, dtype=input.dtype, shape=tuple(input.shape), version=22
    )
