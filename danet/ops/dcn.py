"""Drop-in replacements for the CUDA extensions of DCNv3 and DCNv4, with their signatures.

DCNv3 is the operator of InternImage (https://arxiv.org/abs/2211.05778), DCNv4 its successor
(https://arxiv.org/abs/2401.06197). Both compute SDC (danet/ops/sdc.py) without a softmax, on images [N, H, W, C] and
with other orders of elements: each pair of offsets is (x, y), and taps are in column-major order. DCNv4 has one tensor
with the offsets and then the mask of each group. The kernels of SDC read and write these orders directly; nothing is
copied. Unlike the originals, these operators take any number of channels and images, all floating dtypes and CPU
tensors, and support second derivatives and torch.compile.
"""

from typing import Any

from torch import Tensor

from danet.ops.common import autocast, check_image, check_like_input, check_shape, check_tensor, memoize_check
from danet.ops.sdc import SdcOptions, SdcSizes, check_images, register, run, unchecked_reference


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int = 256,
    remove_center: bool = False,
    *,
    softmax: bool = False,
) -> Tensor:
    """DCNv3's operator (https://arxiv.org/abs/2211.05778), with the arguments of its `DCNv3Function.apply`.

    Args:
        input: [N, H, W, C], C = group * group_channels; float64, float32, float16 or bfloat16.
        offset: [N, H_out, W_out, 2*G*K] of input's dtype, in pixels. Channels are ordered by group, then by tap
            (column-major), then (x, y).
        mask: [N, H_out, W_out, G*K] of input's dtype: the weights of the taps.
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w: as in a convolution.
        group, group_channels: G, and the number of channels of each group.
        offset_scale: scales the distance of every sampling point (tap position plus offset) from the center of the
            window.
        im2col_step: ignored; a batch of any size is one call.
        remove_center: leave out the middle tap, so that K is one less; needs an odd kernel size.
        softmax: take mask as logits; the kernel normalizes them over the K taps of a group.

    Returns:
        [N, H_out, W_out, C].

    Raises:
        TypeError: if a tensor argument is not a dense tensor of a supported dtype, if dtypes differ, or if an option
            has the wrong type.
        ValueError: if a shape or device does not match, if group * group_channels is not C, if an option is out of
            range, or if the window is larger than the padded input.

    Example:
        >>> import torch
        >>> from danet.ops import dcnv3
        >>> input = torch.randn(1, 6, 7, 8)
        >>> offset, mask = torch.randn(1, 6, 7, 36), torch.rand(1, 6, 7, 18)
        >>> dcnv3(input, offset, mask, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0).shape
        torch.Size([1, 6, 7, 8])
    """
    input, offset, mask = autocast(input, offset, mask)
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    arguments = group, *pairs, offset_scale, softmax, bool(remove_center)
    sizes, options = _check_dcnv3(input, offset, mask, group_channels, *arguments)
    images = [value.permute(0, 3, 1, 2) for value in (input, offset, mask)]
    return run("dcnv3", _dcnv3_reference, images, sizes, options).permute(0, 2, 3, 1)


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    im2col_step: int = 256,
    remove_center: bool = False,
    *,
    softmax: bool = False,
) -> Tensor:
    """DCNv4's operator (https://arxiv.org/abs/2401.06197), with the arguments of its `DCNv4Function.apply`.

    `offset_mask` replaces offset and mask. All other arguments, the result and the errors are those of `dcnv3`.

    Args:
        offset_mask: [N, H_out, W_out, P] of input's dtype. For each group, 2*K channels of offsets and then K channels
            of the mask. P is at least 3*G*K (DCNv4's module pads it to a multiple of 8); further channels are ignored
            and have zero gradients.

    Example:
        >>> import torch
        >>> from danet.ops import dcnv4
        >>> input = torch.randn(1, 6, 7, 8)
        >>> dcnv4(input, torch.rand(1, 6, 7, 56), 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0).shape
        torch.Size([1, 6, 7, 8])
    """
    input, offset_mask = autocast(input, offset_mask)
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    arguments = group, *pairs, offset_scale, softmax, bool(remove_center)
    sizes, options = _check_dcnv4(input, offset_mask, group_channels, *arguments)
    images = [value.permute(0, 3, 1, 2) for value in (input, offset_mask)]
    return run("dcnv4", _dcnv4_reference, images, sizes, options).permute(0, 2, 3, 1)


class DCNv3Function:
    """Drop-in replacement for InternImage's `functions.DCNv3Function`.

    Example:
        >>> import torch
        >>> from danet.ops import DCNv3Function
        >>> tensors = torch.randn(1, 6, 7, 8), torch.randn(1, 6, 7, 36), torch.rand(1, 6, 7, 18)
        >>> DCNv3Function.apply(*tensors, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, False).shape
        torch.Size([1, 6, 7, 8])
    """

    apply = staticmethod(dcnv3)


class DCNv4Function:
    """Drop-in replacement for DCNv4's `DCNv4Function`.

    Example:
        >>> import torch
        >>> from danet.ops import DCNv4Function
        >>> tensors = torch.randn(1, 6, 7, 8), torch.rand(1, 6, 7, 56)
        >>> DCNv4Function.apply(*tensors, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, False).shape
        torch.Size([1, 6, 7, 8])
    """

    apply = staticmethod(dcnv4)


def _check_input(op: str, input: Any, group_channels: Any, *options: Any) -> tuple[SdcSizes, SdcOptions]:
    validated = SdcOptions.validate(op, *options)
    check_tensor(op, "input", input)
    if input.ndim != 4 or 0 in input.shape[1:]:
        raise ValueError(f"{op}: input must be [N, H, W, C] with H, W, C >= 1, got {list(input.shape)}")
    N, H, W, C = input.shape
    sizes = validated.sizes(op, (N, C, H, W))
    if group_channels * sizes.G != C:
        raise ValueError(f"{op}: group * group_channels must be C = {C}, got {sizes.G} * {group_channels}")
    return sizes, validated


@memoize_check
def _check_dcnv3(input: Any, offset: Any, mask: Any, group_channels: Any, *options: Any) -> tuple[SdcSizes, SdcOptions]:
    sizes, validated = _check_input("dcnv3", input, group_channels, *options)
    check_like_input("dcnv3", "offset", offset, input)
    check_like_input("dcnv3", "mask", mask, input)
    N, G, K, H_out, W_out = sizes.N, sizes.G, sizes.K, sizes.H_out, sizes.W_out
    check_shape("dcnv3", "offset", offset, "[N, H_out, W_out, 2*G*K]", (N, H_out, W_out, 2 * G * K))
    check_shape("dcnv3", "mask", mask, "[N, H_out, W_out, G*K]", (N, H_out, W_out, G * K))
    return sizes, validated


@memoize_check
def _check_dcnv4(input: Any, offset_mask: Any, group_channels: Any, *options: Any) -> tuple[SdcSizes, SdcOptions]:
    sizes, validated = _check_input("dcnv4", input, group_channels, *options)
    check_like_input("dcnv4", "offset_mask", offset_mask, input)
    expected = [sizes.N, sizes.H_out, sizes.W_out, 3 * sizes.G * sizes.K]
    shape = list(offset_mask.shape)
    if len(shape) != 4 or shape[:3] != expected[:3] or shape[3] < expected[3]:
        raise ValueError(
            f"dcnv4: offset_mask must be [N, H_out, W_out, P] = {expected} with P = 3*G*K or more, got {shape}"
        )
    return sizes, validated


def _row_major_taps(options: SdcOptions) -> list[int]:
    """For every tap in SDC's row-major order, its index in DCNv3's column-major order."""
    k_y, k_x = options.kernel_size
    taps = [x * k_y + y for y in range(k_y) for x in range(k_x)]
    if options.remove_center:
        middle = k_y * k_x // 2
        taps = [tap - (tap > middle) for tap in taps if tap != middle]
    return taps


def _dcnv3_reference(input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, options: SdcOptions) -> Tensor:
    """The reference, on images [N, C, H, W]."""
    taps = _row_major_taps(options)
    offset = offset.unflatten(1, (sizes.G, sizes.K, 2))[:, :, taps].flip(3).flatten(1, 3)
    mask = mask.unflatten(1, (sizes.G, sizes.K))[:, :, taps].flatten(1, 2)
    return unchecked_reference(input, offset, mask, sizes, options)


def _dcnv4_reference(input: Tensor, offset_mask: Tensor, sizes: SdcSizes, options: SdcOptions) -> Tensor:
    groups = offset_mask[:, : 3 * sizes.G * sizes.K].unflatten(1, (sizes.G, 3 * sizes.K))
    offset, mask = groups[:, :, : 2 * sizes.K].flatten(1, 2), groups[:, :, 2 * sizes.K :].flatten(1, 2)
    return _dcnv3_reference(input, offset, mask, sizes, options)


def _check_dcnv4_images(op: str, input: Tensor, offset_mask: Tensor, options: SdcOptions) -> SdcSizes:
    check_image(op, "input", input)
    return options.sizes(op, input.shape)


register("dcnv3", 3, _dcnv3_reference, check_images)
register("dcnv4", 2, _dcnv4_reference, _check_dcnv4_images)
