"""SDC, the separable deformable convolution of DANet (section 3.1.1, equation 1): operator and module.

Paper: https://doi.org/10.1145/3581783.3612146. The operator is equation 1 without its point-wise projection w_g. For
output position (y, x) of channel c, in group g = c // (C / G),

    out[n, c, y, x] = sum_{k < K} m[n, g, k, y, x] * input[n, c, Y, X]

    Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, g, k, 0, y, x])
    X = x*s_x - p_x + h_x + scale * (k_x*d_x - h_x + offset[n, g, k, 1, y, x])

with stride s, padding p, dilation d, tap k = (k_y, k_x) in row-major order, h = d * (kernel_size - 1) // 2 the center
of the window, and m the softmax of `mask` over the K taps of a group (or `mask` itself). input[Y, X] is bilinear
between the four pixels of the cell (floor(Y), floor(X)), and zero outside the image. A sample with a NaN coordinate is
NaN in the forward pass and zero in the backward pass; a sample with an infinite coordinate is zero in both. The
gradient of their offsets is zero.

The derivative by an offset jumps where a coordinate is a whole number. There it is the derivative in the floor cell,
the right-sided one. Zero offsets are such coordinates: a layer whose predicted offsets start at zero has one-sided
gradients at first, as in every deformable convolution.

Deformable convolutions: v1 https://arxiv.org/abs/1703.06211, v2 (modulation by a mask)
https://arxiv.org/abs/1811.11168, v3 (InternImage: groups, softmax, `offset_scale`) https://arxiv.org/abs/2211.05778, v4
https://arxiv.org/abs/2401.06197.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    compute_dtype,
    integer,
    memoize_check,
    pair,
)
from danet.ops.sampling import gather

Pair = int | tuple[int, int]

MAX_TAPS = 256
"""Largest window of the compiled kernels; larger ones run as the reference."""

MAX_ELEMENTS = 2**31
"""An image, with a border of two pixels, must have fewer elements than this for the CPU kernels, and fewer pixels for
the CUDA kernels; larger ones run as the reference. The batch size has no limit."""


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


PAIRS = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class SdcOptions:
    """The options of a call of `sdc`, `dcnv3` or `dcnv4`, validated; PAIRS are (y, x).

    The fields are in the order of the operators' schemas (csrc/sdc/sdc_schema.h), in which a pair is two arguments.
    Functions that take `*options` take them in this order too.
    """

    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_scale: float
    softmax: bool
    remove_center: bool

    @classmethod
    def validate(cls, op: str, *options: Any) -> "SdcOptions":
        """The options from a user's arguments; TypeError or ValueError, naming the argument, if one is invalid."""
        groups, *pairs, offset_scale, softmax, remove_center = options
        groups = integer(op, "groups", groups, minimum=1)
        for i, name in enumerate(PAIRS):
            pairs[i] = pair(op, name, pairs[i], minimum=0 if name == "padding" else 1)
        self = cls(groups, *pairs, offset_scale, softmax, remove_center)  # type: ignore[call-arg]  # four pairs
        if isinstance(self.offset_scale, bool) or not isinstance(self.offset_scale, (int, float)):
            raise TypeError(f"{op}: offset_scale must be a number, got {self.offset_scale!r}")
        if not -math.inf < self.offset_scale < math.inf:
            raise ValueError(f"{op}: offset_scale must be finite, got {self.offset_scale!r}")
        check_bool(op, "softmax", self.softmax)
        check_bool(op, "remove_center", self.remove_center)
        taps = self.kernel_size[0] * self.kernel_size[1]
        if self.remove_center and (taps % 2 == 0 or taps == 1):
            raise ValueError(f"{op}: remove_center needs an odd kernel_size above 1, got {list(self.kernel_size)}")
        return self

    @classmethod
    def from_schema(cls, op: str, *arguments: Any) -> "SdcOptions":
        """The options from the arguments that torch.ops.danet.<op> takes after its tensors."""
        groups, *windows, offset_scale, softmax, remove_center = arguments
        pairs = zip(windows[0::2], windows[1::2], strict=True)
        return cls.validate(op, groups, *pairs, offset_scale, softmax, remove_center)

    def to_schema(self) -> tuple[int | float | bool, ...]:
        """The arguments that `from_schema` takes after `op`."""
        windows = (*self.kernel_size, *self.stride, *self.padding, *self.dilation)
        return (self.groups, *windows, self.offset_scale, self.softmax, self.remove_center)

    def sizes(self, op: str, shape: Sequence[int]) -> SdcSizes:
        """The sizes of a call with an input of this shape [N, C, H, W]; ValueError if the options do not fit it."""
        N, C, H, W = shape
        if C % self.groups != 0:
            raise ValueError(f"{op}: groups must divide C = {C}, got {self.groups}")
        K = self.kernel_size[0] * self.kernel_size[1] - int(self.remove_center)
        H_out, W_out = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip((H, W), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        if H_out < 1 or W_out < 1:
            raise ValueError(
                f"{op}: input must be at least as large as the window, got [H_out, W_out] = {[H_out, W_out]}"
            )
        return SdcSizes(N, C, H, W, self.groups, K, H_out, W_out)


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
    """Depth-wise deformable aggregation: each group of channels samples its own K positions per output pixel.

    The formula is in the docstring of this module.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        offset: [N, 2*G*K, H_out, W_out] of input's dtype, in pixels of the input. Channels are ordered by group, then
            by tap, then (y, x). A NaN coordinate makes only those outputs NaN that use it; an infinite coordinate is a
            zero sample. The gradient of both is zero.
        mask: [N, G*K, H_out, W_out] of input's dtype: logits of the taps' weights.
        groups: G, must divide C.
        kernel_size, stride, padding, dilation: an integer or a (y, x) pair, as in a convolution.
        offset_scale: factor of taps and offsets about the center of the window (from DCNv3).
        softmax: normalize mask over the K taps of a group; if False, mask holds the weights themselves.
        remove_center: leave out the middle tap, so that K is one less; needs an odd window.

    Returns:
        [N, C, H_out, W_out] in the memory format channels-last.

    Raises:
        TypeError: if a tensor argument is no dense tensor of a supported dtype, if offset or mask differ from input in
            dtype, or if an option has the wrong type.
        ValueError: if a shape or device does not match, if groups does not divide C, if an option is out of range, or
            if the window is larger than the padded input.

    Example:
        >>> import torch
        >>> from danet.ops import sdc
        >>> input = torch.randn(1, 8, 32, 40)
        >>> offset, mask = torch.randn(1, 2 * 2 * 9, 32, 40), torch.randn(1, 2 * 9, 32, 40)
        >>> sdc(input, offset, mask, groups=2).shape
        torch.Size([1, 8, 32, 40])
    """
    input, offset, mask = autocast(input, offset, mask)
    arguments = groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center
    sizes, options = check_sdc(input, offset, mask, *arguments)
    return run("sdc", gather_reference, (input, offset, mask), sizes, options)


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
    """`sdc` in plain PyTorch, for any device and any order of derivatives; half dtypes accumulate in float32.

    Arguments, result and errors are those of `sdc`.

    Example:
        >>> import torch
        >>> from danet.ops import sdc, sdc_reference
        >>> tensors = torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)
        >>> torch.allclose(sdc(*tensors), sdc_reference(*tensors), atol=1e-5)
        True
    """
    arguments = groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center
    sizes, options = check_sdc(input, offset, mask, *arguments)
    return gather_reference(input, offset, mask, sizes, options)


def gather_reference(input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, options: SdcOptions) -> Tensor:
    """The reference on checked arguments; every sample is a weighted sum of rows of a table (danet.ops.sampling)."""
    N, C, H, W, G, K, H_out, W_out = sizes
    dtype = compute_dtype(input.dtype)
    offset = offset.permute(0, 2, 3, 1).to(dtype).contiguous().view(N, H_out, W_out, G, K, 2)
    mask = mask.permute(0, 2, 3, 1).to(dtype).contiguous().view(N, H_out, W_out, G, K)
    if options.softmax:
        # Written out, because torch.softmax is several times slower over so short an axis.
        mask = (mask - mask.detach().amax(-1, keepdim=True)).exp()
        mask = mask / mask.sum(-1, keepdim=True)

    # Compute the coordinates. Clamp samples outside the image to its border of zeros, two pixels wide: their values and
    # derivatives are zero there. Samples with a NaN coordinate go there too and get their NaN from the mask.
    y_center, x_center = _tap_positions(sizes, options, dtype, input.device)
    dy, dx = offset.unbind(-1)
    y = torch.add(y_center, dy, alpha=options.offset_scale)
    x = torch.add(x_center, dx, alpha=options.offset_scale)
    nan = y.isnan() | x.isnan()
    mask = mask.masked_fill(nan, math.nan)
    y = y.masked_fill(nan, -2).clamp(-2, H)
    x = x.masked_fill(nan, -2).clamp(-2, W)

    # Compute the weights of the four corners.
    y_floor, x_floor = y.detach().floor(), x.detach().floor()
    bottom, right = y - y_floor, x - x_floor
    top, left = 1 - bottom, 1 - right
    top, bottom = mask * top, mask * bottom
    weight = torch.stack([top * left, top * right, bottom * left, bottom * right])

    # Lay out the padded images as one table, with a row for the channels of each group at each pixel.
    H_pad, W_pad = H + 4, W + 4
    table = F.pad(input.permute(0, 2, 3, 1).to(dtype), (0, 0, 2, 2, 2, 2)).view(N * H_pad * W_pad * G, C // G)
    index = torch.int32 if 4 * max(table.numel(), mask.numel()) < 2**31 else torch.int64
    image = torch.arange(N, dtype=index, device=input.device).view(N, 1, 1, 1, 1)
    group = torch.arange(G, dtype=index, device=input.device).view(G, 1)
    row = image * H_pad + 2 + y_floor.to(index)
    base = (row * W_pad + 2 + x_floor.to(index)) * G + group

    # Sum the four rows of every tap.
    out = gather(table, weight.view(4, -1, K), base.view(-1, K), (0, G, W_pad * G, (W_pad + 1) * G))
    return out.view(N, H_out, W_out, C).to(input.dtype).permute(0, 3, 1, 2)


def _tap_positions(
    sizes: SdcSizes, options: SdcOptions, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Y [H_out, 1, 1, K] and X [W_out, 1, K] of the formula for zero offsets."""
    taps = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in options.kernel_size)).view(-1, 2)
    if options.remove_center:
        taps = torch.cat([taps[: sizes.K // 2], taps[sizes.K // 2 + 1 :]])
    positions = []
    for axis, length in enumerate((sizes.H_out, sizes.W_out)):
        d = options.dilation[axis]
        h = d * (options.kernel_size[axis] - 1) // 2
        center = torch.arange(length) * options.stride[axis] - options.padding[axis] + h
        positions.append(center.unsqueeze(1) + options.offset_scale * (taps[:, axis] * d - h))
    y, x = (p.to(device, dtype) for p in positions)
    return y[:, None, None], x[:, None]


@memoize_check
def check_sdc(input: Any, offset: Any, mask: Any, *options: Any) -> tuple[SdcSizes, SdcOptions]:
    """The sizes and options of a call of `sdc`; TypeError or ValueError if an argument is invalid."""
    validated = SdcOptions.validate("sdc", *options)
    return check_images("sdc", input, offset, mask, validated), validated


def check_images(op: str, input: Any, offset: Any, mask: Any, options: SdcOptions) -> SdcSizes:
    """The sizes of a call with these images [N, C, H, W]; TypeError or ValueError if one is invalid."""
    check_image(op, "input", input)
    check_like_input(op, "offset", offset, input)
    check_like_input(op, "mask", mask, input)
    sizes = options.sizes(op, input.shape)
    N, G, K, H_out, W_out = sizes.N, sizes.G, sizes.K, sizes.H_out, sizes.W_out
    check_shape(op, "offset", offset, "[N, 2*G*K, H_out, W_out]", (N, 2 * G * K, H_out, W_out))
    check_shape(op, "mask", mask, "[N, G*K, H_out, W_out]", (N, G * K, H_out, W_out))
    return sizes


def run(
    op: str, reference: Callable[..., Tensor], images: Sequence[Tensor], sizes: SdcSizes, options: SdcOptions
) -> Tensor:
    """Run operator `op` on checked images [N, C, H, W]: compiled, if its kernels take this call, or as `reference`."""
    input = images[0]
    count = (sizes.H + 4) * (sizes.W + 4) * (1 if input.is_cuda else sizes.C)
    if library.has_kernel(input) and sizes.K <= MAX_TAPS and count < MAX_ELEMENTS:
        return library.call(op, *images, *options.to_schema())
    return reference(*images, sizes, options)


def register(op: str, tensors: int, reference: Callable[..., Tensor], check: Callable[..., SdcSizes]) -> None:
    """Register the Python side of an operator that takes `tensors` images [N, C, H, W] and then SDC's options.

    reference: takes the images, sizes and options.
    check: takes `op`, the images and the options; returns the sizes or raises.
    """

    def fake(*arguments: Any) -> Tensor:
        images, options = arguments[:tensors], SdcOptions.from_schema(op, *arguments[tensors:])
        sizes = check(op, *images, options)
        shape = (sizes.N, sizes.C, sizes.H_out, sizes.W_out)
        input = images[0]
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)

    def schema_reference(*arguments: Any) -> Tensor:
        images, options = arguments[:tensors], SdcOptions.from_schema(op, *arguments[tensors:])
        return reference(*images, options.sizes(op, images[0].shape), options)

    library.register(op, tensors, fake=fake)
    library.register_gradient(
        op,
        tensors,
        reference=schema_reference,
        backward_options=lambda: (torch.are_deterministic_algorithms_enabled(),),
    )


register("sdc", 3, gather_reference, check_images)


class SDC(nn.Module):
    """SDC, the Separable Deformable Convolution, with its own offsets and mask (DANet, section 3.1.1, equation 1).

    A 3x3 depth-wise convolution, batch norm, ReLU and a 1x1 convolution predict 3*G*K channels: 2*G*K offsets, then
    G*K mask logits. The 1x1 convolution starts at zero (our decision, as in Deformable ConvNets), so that the untrained
    module takes the mean over an undeformed window and then applies w_g. `projection` is w_g of equation 1 for all
    groups at once: sum_g w_g z_g is one C x C product of the groups' channels. It has no bias, because the equation has
    none.

    Args:
        channels: C, of input and output.
        groups: G, must divide C (4 in the paper).
        kernel_size: side of the square window, odd.

    Shape:
        [N, C, H, W] -> [N, C, H, W].

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if an argument is below 1, if groups does not divide channels, or if kernel_size is even.

    Example:
        >>> import torch
        >>> from danet.ops import SDC
        >>> SDC(8, groups=2)(torch.randn(1, 8, 32, 40)).shape
        torch.Size([1, 8, 32, 40])

    From torchvision's `deform_conv2d`:
        SDC replaces `DeformConv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)`, the
        convolution that predicts its offset and mask, and a 1x1 convolution after it. A dense deformable convolution
        (groups=1) is another function; the depth-wise sum and the 1x1 convolution are used in its place. For the
        operators, `deform_conv2d(input, offset, torch.ones(C, 1, k, k), mask=m)` equals `sdc(input, offset, m,
        groups=offset_groups, softmax=False)`: offset and mask have the same channels in the same order. In torchvision
        m is usually a sigmoid; in SDC it is a softmax over the taps, which the operator computes. sdc has no weights
        per tap: multiply them into m, if all channels of a group share them.
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
