"""SDC, the separable deformable convolution (paper section 3.1.1, equation 1): operator and module.

The operator is equation 1 without w_g. For output position (y, x) of channel c, in group g = c // (C / G),

    out[n, c, y, x] = sum_{k < K} m[n, g, k, y, x] * input[n, c, Y, X]

    Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, g, k, 0, y, x])
    X = x*s_x - p_x + h_x + scale * (k_x*d_x - h_x + offset[n, g, k, 1, y, x])

with stride s, padding p, dilation d, tap k = (k_y, k_x) in row-major order, h = d * (K_side - 1) // 2 the window's
centre and m the softmax of `mask` over the K taps of a group (or `mask` itself). input[Y, X] is bilinear between the
four pixels of the cell floor(Y), floor(X), and zero outside the image. A sample with a NaN coordinate is NaN, one
with an infinite coordinate zero; backward, both count as zero samples and the gradient of their offsets is zero.

Where a coordinate is a whole number the sample has a kink; the derivative there is that of the floor cell, the
right-sided one. A zero offset lies on it, so a layer that predicts offsets from zero weights starts with one-sided
gradients, as in every deformable convolution.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.ops import library
from danet.ops.common import (
    autocast,
    check_bool,
    check_image,
    check_like_input,
    check_shape,
    check_tensor,
    compute_dtype,
    integer,
    memoize_check,
    pair,
)
from danet.ops.sampling import gather

Pair = int | tuple[int, int]

MAX_TAPS, MAX_COUNT = 256, 2**31
"""The compiled kernels take windows of at most so many taps, and images of less elements each, on CUDA devices of less
pixels (batches may be larger); others run as the reference."""


class SdcSizes(NamedTuple):
    """The sizes of one call, as the formula names them."""

    N: int
    C: int
    H: int
    W: int
    G: int
    K: int
    H_out: int
    W_out: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    remove_center: bool

    @property
    def windows(self) -> tuple[int, ...]:
        """As the operator takes them: (y, x) of kernel_size, stride, padding and dilation."""
        return (*self.kernel_size, *self.stride, *self.padding, *self.dilation)


def sdc(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int = 1,
    kernel_size: Pair = 3,
    stride: Pair = 1,
    padding: Pair = 1,
    dilation: Pair = 1,
    offset_scale: float = 1.0,
    softmax: bool = True,
    remove_center: bool = False,
) -> Tensor:
    """Depth-wise deformable aggregation: every group samples its channels at its own K places.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        offset: [N, 2*G*K, H_out, W_out] of input's dtype, in pixels of input, (y, x) pairs, tap after tap, group
            after group. A NaN coordinate makes the outputs that use it NaN, and no others; an infinite one is a
            zero sample. The gradient of either is zero.
        mask: [N, G*K, H_out, W_out] of input's dtype, logits of the taps' weights.
        groups: G, must divide C.
        kernel_size, stride, padding, dilation: one integer or (y, x), as in a convolution.
        offset_scale: stretches taps and offsets about the window's centre (DCNv3); 1 changes nothing.
        softmax: normalize mask over the K taps of a group; False takes it as the weights.
        remove_center: leave the middle tap out, so that K is one less; needs an odd window.

    Returns:
        [N, C, H_out, W_out] in channels-last strides.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    input, offset, mask = autocast(input, offset, mask)
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center)
    sizes = check_sdc(input, offset, mask, *options)
    if runs_compiled(input, sizes):
        return library.call("sdc", input, offset, mask, sizes.G, *sizes.windows, offset_scale, softmax, remove_center)
    return sdc_by_gather(input, offset, mask, sizes, offset_scale, softmax)


def sdc_reference(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int = 1,
    kernel_size: Pair = 3,
    stride: Pair = 1,
    padding: Pair = 1,
    dilation: Pair = 1,
    offset_scale: float = 1.0,
    softmax: bool = True,
    remove_center: bool = False,
) -> Tensor:
    """`sdc` in plain PyTorch: any device, double backward; half types accumulate in float32."""
    options = (groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center)
    sizes = check_sdc(input, offset, mask, *options)
    return sdc_by_gather(input, offset, mask, sizes, offset_scale, softmax)


def sdc_by_gather(
    input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, offset_scale: float, softmax: bool
) -> Tensor:
    """The reference of arguments that were checked."""
    N, C, H, W, G, K, H_out, W_out = sizes[:8]
    dtype = compute_dtype(input.dtype)
    offset = offset.permute(0, 2, 3, 1).to(dtype).contiguous().view(N, H_out, W_out, G, K, 2)
    mask = mask.permute(0, 2, 3, 1).to(dtype).contiguous().view(N, H_out, W_out, G, K)
    if softmax:
        # torch.softmax takes several times longer over so short an axis.
        mask = (mask - mask.detach().amax(-1, keepdim=True)).exp()
        mask = mask / mask.sum(-1, keepdim=True)

    # Samples beyond the image land in its border of zeros, two pixels wide: value and derivatives are zero there.
    # Those with a NaN coordinate land there too, and get their NaN from the mask.
    y_center, x_center = _tap_positions(sizes, offset_scale, dtype, input.device)
    dy, dx = offset.unbind(-1)
    y = torch.add(y_center, dy, alpha=offset_scale)
    x = torch.add(x_center, dx, alpha=offset_scale)
    nan = y.isnan() | x.isnan()
    mask = mask.masked_fill(nan, math.nan)
    y = y.masked_fill(nan, -2).clamp(-2, H)
    x = x.masked_fill(nan, -2).clamp(-2, W)
    y_floor, x_floor = y.detach().floor(), x.detach().floor()
    bottom, right = y - y_floor, x - x_floor
    top, left = 1 - bottom, 1 - right
    top, bottom = mask * top, mask * bottom
    weight = torch.stack([top * left, top * right, bottom * left, bottom * right])

    # The padded images as one table with a row for the channels of a group at a pixel.
    H_pad, W_pad = H + 4, W + 4
    table = F.pad(input.permute(0, 2, 3, 1).to(dtype), (0, 0, 2, 2, 2, 2)).view(N * H_pad * W_pad * G, C // G)
    index = torch.int32 if 4 * max(table.numel(), mask.numel()) < 2**31 else torch.int64
    image = torch.arange(N, dtype=index, device=input.device).view(N, 1, 1, 1, 1)
    group = torch.arange(G, dtype=index, device=input.device).view(G, 1)
    row = image * H_pad + 2 + y_floor.to(index)
    base = (row * W_pad + 2 + x_floor.to(index)) * G + group

    out = gather(table, weight.view(4, -1, K), base.view(-1, K), (0, G, W_pad * G, (W_pad + 1) * G))
    return out.view(N, H_out, W_out, C).to(input.dtype).permute(0, 3, 1, 2)


def _tap_positions(
    sizes: SdcSizes, offset_scale: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Y [H_out, 1, 1, K] and X [W_out, 1, K] of the formula for zero offsets."""
    taps = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in sizes.kernel_size)).view(-1, 2)
    if sizes.remove_center:
        taps = torch.cat([taps[: sizes.K // 2], taps[sizes.K // 2 + 1 :]])
    positions = []
    for axis, length in enumerate((sizes.H_out, sizes.W_out)):
        d = sizes.dilation[axis]
        h = d * (sizes.kernel_size[axis] - 1) // 2
        center = torch.arange(length) * sizes.stride[axis] - sizes.padding[axis] + h
        positions.append(center.unsqueeze(1) + offset_scale * (taps[:, axis] * d - h))
    y, x = (p.to(device, dtype) for p in positions)
    return y[:, None, None], x[:, None]


def sizes_of(
    op: str,
    shape: Sequence[int],
    groups: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    offset_scale: Any,
    softmax: Any,
    remove_center: Any,
) -> SdcSizes:
    """The sizes of a call on an input of this shape [N, C, H, W], or one line of TypeError or ValueError."""
    N, C, H, W = shape
    G = integer(op, "groups", groups, minimum=1)
    kernel_size = pair(op, "kernel_size", kernel_size, minimum=1)
    stride = pair(op, "stride", stride, minimum=1)
    padding = pair(op, "padding", padding, minimum=0)
    dilation = pair(op, "dilation", dilation, minimum=1)
    if isinstance(offset_scale, bool) or not isinstance(offset_scale, (int, float)):
        raise TypeError(f"{op}: offset_scale must be a number, got {offset_scale!r}")
    if not -math.inf < offset_scale < math.inf:
        raise ValueError(f"{op}: offset_scale must be finite, got {offset_scale!r}")
    check_bool(op, "softmax", softmax)
    check_bool(op, "remove_center", remove_center)
    if C % G != 0:
        raise ValueError(f"{op}: groups must divide C = {C}, got {G}")
    K = kernel_size[0] * kernel_size[1]
    if remove_center:
        if K % 2 == 0 or K == 1:
            raise ValueError(f"{op}: remove_center needs an odd kernel_size above 1, got {list(kernel_size)}")
        K -= 1
    H_out, W_out = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((H, W), kernel_size, stride, padding, dilation, strict=True)
    )
    if H_out < 1 or W_out < 1:
        raise ValueError(f"{op}: input must be at least as large as the window, got [H_out, W_out] = {[H_out, W_out]}")
    return SdcSizes(N, C, H, W, G, K, H_out, W_out, kernel_size, stride, padding, dilation, remove_center)


@memoize_check
def check_sdc(input: Any, offset: Any, mask: Any, *options: Any) -> SdcSizes:
    """The sizes of a call of `sdc` with its options, from groups on, or one line of TypeError or ValueError."""
    check_tensor("sdc", "input", input)
    check_image("sdc", "input", input)
    check_like_input("sdc", "offset", offset, input)
    check_like_input("sdc", "mask", mask, input)
    sizes = sizes_of("sdc", input.shape, *options)
    N, G, K, H_out, W_out = sizes.N, sizes.G, sizes.K, sizes.H_out, sizes.W_out
    check_shape("sdc", "offset", offset, "[N, 2*G*K, H_out, W_out]", (N, 2 * G * K, H_out, W_out))
    check_shape("sdc", "mask", mask, "[N, G*K, H_out, W_out]", (N, G * K, H_out, W_out))
    return sizes


def runs_compiled(input: Tensor, sizes: SdcSizes) -> bool:
    """Whether the compiled kernels take this call."""
    count = (sizes.H + 4) * (sizes.W + 4) * (1 if input.is_cuda else sizes.C)
    return library.has_kernel(input) and sizes.K <= MAX_TAPS and count < MAX_COUNT


def with_pairs(
    G: Any,
    kernel_h: Any,
    kernel_w: Any,
    stride_h: Any,
    stride_w: Any,
    padding_h: Any,
    padding_w: Any,
    dilation_h: Any,
    dilation_w: Any,
    *others: Any,
) -> tuple:
    """The operator's options as `sdc` takes them."""
    windows = (kernel_h, kernel_w), (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w)
    return (G, *windows, *others)


def _fake(input: Tensor, offset: Tensor, mask: Tensor, *options: Any) -> Tensor:
    sizes = check_sdc(input, offset, mask, *with_pairs(*options))
    shape = (sizes.N, sizes.C, sizes.H_out, sizes.W_out)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _reference_of(input: Tensor, offset: Tensor, mask: Tensor, *options: Any) -> Tensor:
    options = with_pairs(*options)
    return sdc_by_gather(input, offset, mask, check_sdc(input, offset, mask, *options), *options[5:7])


library.register("sdc", fake=_fake, vmap=library.folding("sdc", 3))
library.register_gradient(
    "sdc",
    3,
    reference=_reference_of,
    vmap=library.folding("sdc_backward", 4),
    switches=lambda: (torch.are_deterministic_algorithms_enabled(),),
)


class SDC(nn.Module):
    """Separable deformable convolution with its own offsets and mask (paper section 3.1.1, equation 1).

    A 3x3 depth-wise convolution, batch norm, ReLU and a 1x1 convolution predict 3*G*K channels: 2*G*K offsets, then
    G*K mask logits. The 1x1 convolution starts at zero (our decision, as in Deformable ConvNets), so that the module
    starts as the mean over an undeformed window, followed by w_g. `projection` is w_g of equation 1 for all groups at
    once: sum_g w_g z_g is one C x C product of the groups' channels, without a bias, which the equation has not.

    Args:
        channels: C, of input and output.
        groups: G, must divide C (4 in the paper).
        kernel_size: odd side of the window.

    Shape:
        [N, C, H, W] -> [N, C, H, W].

    From torchvision's `deform_conv2d`:
        It stands for `DeformConv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)` with
        the convolution that predicts offset and mask and a 1x1 convolution behind it; a dense one (groups=1) is
        another function, which the depth-wise sum and the 1x1 convolution take the place of. Of the operators,
        `deform_conv2d(input, offset, torch.ones(C, 1, k, k), mask=m)` is `sdc(input, offset, m, groups=offset_groups,
        softmax=False)`: offset and mask have the same channels in the same order, (y, x) pairs tap after tap.
        torchvision's m is usually a sigmoid, sdc's a softmax over the taps, which it computes itself. Weights of
        taps other than 1 have no counterpart: multiply them into m, where all channels of a group share them.
    """

    def __init__(self, channels: int, *, groups: int = 4, kernel_size: int = 3) -> None:
        super().__init__()
        if integer("SDC", "channels", channels, minimum=1) % integer("SDC", "groups", groups, minimum=1) != 0:
            raise ValueError(f"SDC: groups must divide channels = {channels}, got {groups}")
        if integer("SDC", "kernel_size", kernel_size, minimum=1) % 2 == 0:
            raise ValueError(f"SDC: kernel_size must be odd, got {kernel_size}")
        self.groups = groups
        self.kernel_size = kernel_size
        taps = groups * kernel_size**2
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.predictor = nn.Conv2d(channels, 3 * taps, 1)
        self.projection = nn.Conv2d(channels, channels, 1, bias=False)
        for parameter in self.predictor.parameters():
            nn.init.zeros_(parameter)

    def forward(self, input: Tensor) -> Tensor:
        predicted = self.predictor(F.relu(self.norm(self.depthwise(input))))
        taps = self.groups * self.kernel_size**2
        sampled = sdc(
            input,
            predicted[:, : 2 * taps],
            predicted[:, 2 * taps :],
            groups=self.groups,
            kernel_size=self.kernel_size,
            padding=self.kernel_size // 2,
        )
        return self.projection(sampled)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, kernel_size={self.kernel_size}"
