"""SDC, the separable deformable convolution of DANet (section 3.1.1, equation 1): the operator.

The module `SDC`, which predicts offsets and mask, is in danet/ops/sdc_module.py.

Paper: https://doi.org/10.1145/3581783.3612146. The operator is equation 1 without its point-wise projection w_g. For
output position (y, x) of channel c, in group g = c // (C / G),

    out[n, c, y, x] = sum_{k < K} m[n, g, k, y, x] * input[n, c, Y, X]

    Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, g, k, 0, y, x])
    X = x*s_x - p_x + h_x + scale * (k_x*d_x - h_x + offset[n, g, k, 1, y, x])

with stride s, padding p, dilation d and offset_scale `scale`. K is the number of taps, the sampling points of the
window; k = (k_y, k_x) is one of them, in row-major order. h = d * (kernel_size - 1) // 2 is the center of the window.
m is the softmax of `mask` over the K taps of a group, or `mask` itself.

input[Y, X] is interpolated bilinearly between the four pixels around (Y, X), and is zero outside the image. A sample
with a NaN coordinate is NaN in the forward pass; a sample with an infinite coordinate is zero. In the backward pass,
both count as zero, and the gradients of their offsets are zero.

Bilinear interpolation has a kink at each integer coordinate: the derivatives on its two sides differ. There, the
gradient of an offset uses the right-sided derivative of the interpolated input, such as input[Y + 1, X] - input[Y, X].
Offsets of zero give integer coordinates (if offset_scale is an integer). A layer whose predicted offsets start at zero
therefore starts with right-sided derivatives, as every deformable convolution does.

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
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from danet.ops import library, onnx_form
from danet.ops.common import (
    autocast,
    check_bool,
    check_image,
    check_like_input,
    check_shape,
    compute_dtype,
    integer,
    memoize_check,
    number,
    pair,
)
from danet.ops.sampling import weighted_gather

Pair = int | tuple[int, int]

MAX_TAPS = 256
"""Maximum number of taps of the compiled kernels. The reference implementation computes calls with more taps."""

MAX_ELEMENTS = 2**31
"""Limit of the kernels' 32-bit indices (of elements or pixels) within one image with a border of two pixels per side.

The CPU kernels index elements and need C * (H + 4) * (W + 4) < MAX_ELEMENTS; the CUDA kernels index pixels and need
(H + 4) * (W + 4) < MAX_ELEMENTS and H_out * W_out < MAX_ELEMENTS. The reference implementation computes calls with
larger images. The batch size has no limit.
"""

MAX_SIDE = 2**24
"""Limit of height and width, for all dtypes: float32 coordinates have 24 bits, and would select wrong pixels of a
longer side."""


class SdcSizes(NamedTuple):
    """The sizes of one call: input [N, C, H, W], G groups of channels, K taps, output [N, C, H_out, W_out]."""

    N: int
    C: int
    H: int
    W: int
    G: int
    K: int
    H_out: int
    W_out: int

    def fit_kernels(self, is_cuda: bool) -> bool:
        """Whether the compiled kernels can compute the call, see MAX_TAPS and MAX_ELEMENTS."""
        pixels = (self.H + 4) * (self.W + 4)
        if is_cuda:
            fits = pixels < MAX_ELEMENTS and self.H_out * self.W_out < MAX_ELEMENTS
        else:
            fits = pixels * self.C < MAX_ELEMENTS
        return fits and self.K <= MAX_TAPS


PAIR_OPTIONS = ("kernel_size", "stride", "padding", "dilation")
"""The options that are (y, x) pairs of integers; a user may pass one integer for both."""


@dataclass(frozen=True)
class SdcOptions:
    """The validated options of a call of `sdc`, `dcnv3` or `dcnv4`; the options in PAIR_OPTIONS are (y, x) pairs.

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
        for i, name in enumerate(PAIR_OPTIONS):
            pairs[i] = pair(op, name, pairs[i], minimum=0 if name == "padding" else 1)
        # mypy cannot know that `pairs` has four elements.
        validated = cls(groups, *pairs, offset_scale, softmax, remove_center)  # type: ignore[call-arg]
        if isinstance(validated.offset_scale, bool) or not isinstance(validated.offset_scale, (int, float)):
            raise TypeError(f"{op}: offset_scale must be a number, got {validated.offset_scale!r}")
        if not -math.inf < validated.offset_scale < math.inf:
            raise ValueError(f"{op}: offset_scale must be finite, got {validated.offset_scale!r}")
        check_bool(op, "softmax", validated.softmax)
        check_bool(op, "remove_center", validated.remove_center)
        height, width = validated.kernel_size
        if validated.remove_center and (height * width % 2 == 0 or height * width == 1):
            raise ValueError(f"{op}: remove_center needs an odd number of taps above 1, got {height} * {width} taps")
        return validated

    @classmethod
    def from_schema(cls, op: str, *arguments: Any) -> "SdcOptions":
        """The options from the arguments that torch.ops.danet.<op> takes after its tensors."""
        groups, *flat_pairs, offset_scale, softmax, remove_center = arguments
        pairs = zip(flat_pairs[0::2], flat_pairs[1::2], strict=True)
        return cls.validate(op, groups, *pairs, offset_scale, softmax, remove_center)

    def to_schema(self) -> tuple[int | float | bool, ...]:
        """The arguments that `from_schema` takes after `op`."""
        flat_pairs = (*self.kernel_size, *self.stride, *self.padding, *self.dilation)
        return (self.groups, *flat_pairs, self.offset_scale, self.softmax, self.remove_center)

    def sizes(self, op: str, shape: Sequence[int]) -> SdcSizes:
        """The sizes of a call with an input of this shape [N, C, H, W]; ValueError if the options do not fit it."""
        N, C, H, W = shape
        if max(H, W) > MAX_SIDE:
            raise ValueError(f"{op}: input must have at most 2^24 rows and columns, got {H} x {W}")
        if C % self.groups != 0:
            raise ValueError(f"{op}: groups must divide C = {C}, got {self.groups}")
        K = self.kernel_size[0] * self.kernel_size[1] - int(self.remove_center)
        H_out, W_out = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip((H, W), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        if H_out < 1 or W_out < 1:
            raise ValueError(
                f"{op}: the dilated window must fit into the padded input; "
                f"the output would have the size [H_out, W_out] = {[H_out, W_out]}"
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
            by tap, then (y, x). An offset of NaN makes the outputs that use it NaN; an infinite offset gives a sample
            of zero (a NaN if offset_scale is 0). The gradients of such offsets are zero.
        mask: [N, G*K, H_out, W_out] of input's dtype: logits of the taps' weights, or the weights themselves if
            softmax is False.
        groups: G, must divide C.
        kernel_size, stride, padding, dilation: an integer or a (y, x) pair, as in a convolution.
        offset_scale: scales the distance of every sampling point (tap position plus offset) from the center of the
            window (from DCNv3).
        softmax: normalize mask over the K taps of a group; if False, mask holds the weights themselves.
        remove_center: leave out the middle tap, which makes K one less; the number of taps, kernel height * kernel
            width, must be odd and above 1.

    Returns:
        [N, C, H_out, W_out] in the memory format channels-last.

    Raises:
        TypeError: if a tensor argument is not a dense tensor of a supported dtype, if offset or mask does not have
            input's dtype, or if an option has the wrong type.
        ValueError: if a shape or device does not match, if groups does not divide C, if an option is out of range, or
            if the window, with its dilation, is larger than the padded input.
        RuntimeError: from the compiled kernels, if a stride, padding or dilation is 2**24 or more, or if torch.func's
            grad or vjp is active. In forward mode (torch.func.jvp) the reference runs instead.

    Example:
        >>> import torch
        >>> from danet.ops import sdc
        >>> input = torch.randn(1, 8, 32, 40)
        >>> offset, mask = torch.randn(1, 2 * 2 * 9, 32, 40), torch.randn(1, 2 * 9, 32, 40)
        >>> sdc(input, offset, mask, groups=2).shape
        torch.Size([1, 8, 32, 40])
    """
    if has_torch_function((input, offset, mask)):  # torch.fx, and subclasses of Tensor
        given: Any = {"groups": groups, "kernel_size": kernel_size, "stride": stride, "padding": padding}
        more: Any = {
            "dilation": dilation,
            "offset_scale": offset_scale,
            "softmax": softmax,
            "remove_center": remove_center,
        }
        return handle_torch_function(sdc, (input, offset, mask), input, offset, mask, **given, **more)
    input, offset, mask = autocast(input, offset, mask)
    arguments = (
        groups,
        kernel_size,
        stride,
        padding,
        dilation,
        number("sdc", "offset_scale", offset_scale),
        softmax,
        remove_center,
    )
    sizes, options = check_sdc(input, offset, mask, *arguments)
    return run("sdc", unchecked_reference, (input, offset, mask), sizes, options)


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

    Arguments, result and errors are those of `sdc`, except that autocast does not cast the arguments: they must have
    one dtype, which is the dtype of the result.

    Example:
        >>> import torch
        >>> from danet.ops import sdc, sdc_reference
        >>> tensors = torch.randn(1, 8, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(1, 9, 5, 6)
        >>> torch.allclose(sdc(*tensors), sdc_reference(*tensors), atol=1e-5)
        True
    """
    arguments = (
        groups,
        kernel_size,
        stride,
        padding,
        dilation,
        number("sdc", "offset_scale", offset_scale),
        softmax,
        remove_center,
    )
    sizes, options = check_sdc(input, offset, mask, *arguments)
    return unchecked_reference(input, offset, mask, sizes, options)


def unchecked_reference(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    sizes: SdcSizes,
    options: SdcOptions,
    *,
    ignore_border: bool = False,
    sum_taps: bool = True,
) -> Tensor:
    """`sdc_reference` on validated arguments.

    ignore_border: samples with a coordinate <= -1 have neither values nor gradients, as in DCNv3 and DCNv4.
    sum_taps: if False, the result is [N, K*C, H_out, W_out], the samples times the mask (`deform_im2col`).

    It lays out the padded images as a table with one row per pixel and group. Every sample is a weighted sum of four
    rows, those of the pixels around it (see `danet.ops.sampling`).
    """
    N, C, H, W, G, K, H_out, W_out = sizes
    dtype = compute_dtype(input.dtype)
    if onnx_form.is_active():
        return _onnx_form(input, offset, mask, sizes, options, sum_taps=sum_taps)
    offset = offset.permute(0, 2, 3, 1).to(dtype).contiguous().reshape(N, H_out, W_out, G, K, 2)
    mask = mask.permute(0, 2, 3, 1).to(dtype).contiguous().reshape(N, H_out, W_out, G, K)
    if options.softmax:
        # Written out, because torch.softmax is several times slower over so short an axis.
        mask = (mask - mask.detach().amax(-1, keepdim=True)).exp()
        mask = mask / mask.sum(-1, keepdim=True)

    # Compute the coordinates. Clamp those outside the image to its border of zeros, which is two pixels wide, so that
    # values and derivatives are zero. Move NaN coordinates there, too, and let the mask make their samples NaN.
    tap_y, tap_x = _tap_positions(sizes, options, dtype, input.device)
    dy, dx = offset.unbind(-1)
    y = torch.add(tap_y, dy, alpha=options.offset_scale)
    x = torch.add(tap_x, dx, alpha=options.offset_scale)
    nan = y.isnan() | x.isnan()
    mask = mask.masked_fill(nan, math.nan)
    outside = nan | (y <= -1) | (x <= -1) if ignore_border else nan
    y = y.masked_fill(outside, -2).clamp(-2, H)
    x = x.masked_fill(outside, -2).clamp(-2, W)

    # Compute the weights of the four corners.
    y_floor, x_floor = y.detach().floor(), x.detach().floor()
    weight_bottom, weight_right = y - y_floor, x - x_floor
    weight_top, weight_left = 1 - weight_bottom, 1 - weight_right
    weight_top, weight_bottom = mask * weight_top, mask * weight_bottom
    vertical, horizontal = (weight_top, weight_bottom), (weight_left, weight_right)
    weight = torch.stack([v * h for v in vertical for h in horizontal])

    # Lay out the padded images as one table, with a row for the channels of each group at each pixel.
    H_pad, W_pad = H + 4, W + 4
    table = F.pad(input.permute(0, 2, 3, 1).to(dtype), (0, 0, 2, 2, 2, 2)).reshape(N * H_pad * W_pad * G, C // G)
    index_dtype = torch.int32 if 4 * max(table.numel(), mask.numel()) < 2**31 else torch.int64
    image_index = torch.arange(N, dtype=index_dtype, device=input.device).view(N, 1, 1, 1, 1)
    group = torch.arange(G, dtype=index_dtype, device=input.device).view(G, 1)
    padded_row = image_index * H_pad + 2 + y_floor.to(index_dtype)
    top_left = (padded_row * W_pad + 2 + x_floor.to(index_dtype)) * G + group

    # Sum the table rows of the four corners over all taps of a group.
    bag = K if sum_taps else 1
    steps = (0, G, W_pad * G, (W_pad + 1) * G)
    out = weighted_gather(table, weight.reshape(4, -1, bag), top_left.reshape(-1, bag), steps)
    if not sum_taps:
        samples = out.view(N, H_out, W_out, G, K, C // G).transpose(3, 4)
        return samples.reshape(N, H_out, W_out, K * C).to(input.dtype).permute(0, 3, 1, 2)
    return out.view(N, H_out, W_out, C).to(input.dtype).permute(0, 3, 1, 2)


def _onnx_form(
    input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, options: SdcOptions, *, sum_taps: bool
) -> Tensor:
    """The same by standard operators of ONNX."""
    N, C, _, _, G, K, H_out, W_out = sizes
    if sum_taps and not options.remove_center and options.offset_scale == 1 and onnx_form.uses_deform_conv():
        weights = mask.unflatten(1, (G, K)).softmax(2).flatten(1, 2) if options.softmax else mask
        ones = torch.ones(C, 1, *options.kernel_size, dtype=input.dtype, device=input.device)
        return onnx_form.deform_conv(input, offset, weights, ones, None, options, (N, C, H_out, W_out))
    taps = _tap_positions(sizes, options, input.dtype, input.device)
    return onnx_form.sample_grid(input, offset, mask, sizes, options, taps, sum_taps=sum_taps)


def _tap_positions(
    sizes: SdcSizes, options: SdcOptions, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The coordinates Y [H_out, 1, 1, K] and X [W_out, 1, K] of all taps for offsets of zero."""
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
    """The sizes of a call with the tensors input, offset and mask; TypeError or ValueError if one is invalid."""
    check_image(op, "input", input)
    check_like_input(op, "offset", offset, input)
    check_like_input(op, "mask", mask, input)
    sizes = options.sizes(op, input.shape)
    N, G, K, H_out, W_out = sizes.N, sizes.G, sizes.K, sizes.H_out, sizes.W_out
    check_shape(op, "offset", offset, "[N, 2*G*K, H_out, W_out]", (N, 2 * G * K, H_out, W_out))
    check_shape(op, "mask", mask, "[N, G*K, H_out, W_out]", (N, G * K, H_out, W_out))
    return sizes


def run(
    op: str, reference: Callable[..., Tensor], tensors: Sequence[Tensor], sizes: SdcSizes, options: SdcOptions
) -> Tensor:
    """Run operator `op` on validated arguments: its compiled kernel if that supports this call, otherwise `reference`.

    tensors: the tensor arguments, [N, channels, height, width] each.
    """
    input = tensors[0]
    if onnx_form.is_active():
        return reference(*tensors, sizes, options)
    if library.runs_compiled(input) and sizes.fit_kernels(input.is_cuda):
        return library.call(op, *tensors, *options.to_schema())
    return reference(*tensors, sizes, options)


def register(
    op: str,
    num_tensors: int,
    reference: Callable[..., Tensor],
    check: Callable[..., SdcSizes],
    *,
    sum_taps: bool = True,
) -> None:
    """Register the Python side of an operator: its fake kernel, its vmap rule and its gradient.

    The fake kernel infers the shape of the result.

    num_tensors: number of its tensor arguments, [N, channels, height, width] each; SDC's options come after them.
    reference: takes the tensors, the sizes and the options.
    check: takes `op`, the tensors and the options, and returns the sizes; TypeError or ValueError if one is invalid.
    sum_taps: whether the result has C channels, or K*C.
    """

    def fake(*arguments: Any) -> Tensor:
        tensors, options = arguments[:num_tensors], SdcOptions.from_schema(op, *arguments[num_tensors:])
        sizes = check(op, *tensors, options)
        shape = (sizes.N, sizes.C if sum_taps else sizes.K * sizes.C, sizes.H_out, sizes.W_out)
        input = tensors[0]
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)

    def schema_reference(*arguments: Any) -> Tensor:
        tensors, options = arguments[:num_tensors], SdcOptions.from_schema(op, *arguments[num_tensors:])
        return reference(*tensors, options.sizes(op, tensors[0].shape), options)

    library.register(op, num_tensors, fake=fake)
    library.register_gradient(
        op,
        num_tensors,
        reference=schema_reference,
        backward_options=lambda: (torch.are_deterministic_algorithms_enabled(),),
    )


register("sdc", 3, unchecked_reference, check_images)
