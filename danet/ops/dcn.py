"""Drop-in replacements for the CUDA extensions of DCNv3 and DCNv4, with their signatures.

DCNv3 is the operator of InternImage (https://arxiv.org/abs/2211.05778), DCNv4 its successor
(https://arxiv.org/abs/2401.06197). Both compute SDC (danet/ops/sdc.py) without a softmax, on images [N, H, W, C] and
with other orders of elements: each pair of offsets is (x, y), and taps are in column-major order. DCNv4 has one tensor
with the offsets and then the mask of each group. The kernels of SDC read and write these orders directly; nothing is
copied. Unlike the originals, these operators take any number of channels and images, all floating dtypes and CPU
tensors, and support second derivatives and torch.compile.

As in the originals, a sample with a coordinate <= -1, or >= the size of the image, has the value zero and no gradients.
`sdc` differs at exactly -1: there its offsets have right-sided derivatives, as in torchvision.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from danet.ops.common import (
    autocast,
    check_image,
    check_like_input,
    check_shape,
    check_tensor,
    flag,
    memoize_check,
    number,
)
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
    *further: int | bool | None,
    softmax: bool = False,
) -> Tensor:
    """DCNv3's operator (https://arxiv.org/abs/2211.05778), with the arguments of its `DCNv3Function.apply`.

    Args:
        input: [N, H, W, C], C = group * group_channels; float64, float32, float16 or bfloat16.
        offset: [N, H_out, W_out, 2*G*K] of input's dtype, in pixels. Channels are ordered by group, then by tap
            (column-major), then (x, y).
        mask: [N, H_out, W_out, G*K] or [N, H_out, W_out, G, K] of input's dtype: the weights of the taps.
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w: as in a convolution.
        group, group_channels: G, and the number of channels of each group.
        offset_scale: scales the distance of every sampling point (tap position plus offset) from the center of the
            window.
        im2col_step: ignored; a batch of any size is one call.
        remove_center: leave out the middle tap, so that K is one less; needs an odd kernel size. A bool, 0 or 1.
        further: further positional arguments of some versions of the originals: up to two integers or None that choose
            the launch (DCNv4's `d_stride` and `block_thread`), which have no effect, and `softmax` as a bool.
        softmax: take mask as logits; the kernel normalizes them over the K taps of a group. It cannot be True if
            `further` says False.

    Returns:
        [N, H_out, W_out, C].

    Raises:
        TypeError: if a tensor argument is not a dense tensor of a supported dtype, if dtypes differ, or if an option
            has the wrong type or is given twice.
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
    if has_torch_function((input, offset, mask)):  # torch.fx, and subclasses of Tensor
        window: Any = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        more: Any = (group, group_channels, offset_scale, im2col_step, remove_center, *further)
        return handle_torch_function(dcnv3, (input, offset, mask), input, offset, mask, *window, *more, softmax=softmax)
    input, offset, mask = autocast(input, offset, mask)
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = _options("dcnv3", group, pairs, offset_scale, remove_center, further, softmax)
    return _dcnv3(_run_dcnv3, input, offset, mask, group_channels, options)


def dcnv3_reference(
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
    *further: int | bool | None,
    softmax: bool = False,
) -> Tensor:
    """`dcnv3` in plain PyTorch, for any device and any order of derivatives; half dtypes accumulate in float32.

    Arguments, result and errors are those of `dcnv3`, except that autocast does not cast the arguments.

    Example:
        >>> import torch
        >>> from danet.ops import dcnv3, dcnv3_reference
        >>> tensors = torch.randn(1, 6, 7, 8), torch.randn(1, 6, 7, 36), torch.rand(1, 6, 7, 18)
        >>> options = 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0
        >>> torch.allclose(dcnv3(*tensors, *options), dcnv3_reference(*tensors, *options), atol=1e-5)
        True
    """
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = _options("dcnv3", group, pairs, offset_scale, remove_center, further, softmax)
    return _dcnv3(_compute_dcnv3, input, offset, mask, group_channels, options)


def dcnv3_core_pytorch(
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
    remove_center: bool = False,
) -> Tensor:
    """Drop-in replacement for InternImage's function of this name: `dcnv3_reference` without `im2col_step`.

    Example:
        >>> import torch
        >>> from danet.ops import dcnv3_core_pytorch
        >>> tensors = torch.randn(1, 6, 7, 8), torch.randn(1, 6, 7, 36), torch.rand(1, 6, 7, 18)
        >>> dcnv3_core_pytorch(*tensors, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, False).shape
        torch.Size([1, 6, 7, 8])
    """
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = _options("dcnv3", group, pairs, offset_scale, remove_center, (), False)
    return _dcnv3(_compute_dcnv3, input, offset, mask, group_channels, options)


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
    *further: int | bool | None,
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
    if has_torch_function((input, offset_mask)):  # torch.fx, and subclasses of Tensor
        window: Any = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        more: Any = (group, group_channels, offset_scale, im2col_step, remove_center, *further)
        return handle_torch_function(dcnv4, (input, offset_mask), input, offset_mask, *window, *more, softmax=softmax)
    input, offset_mask = autocast(input, offset_mask)
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = _options("dcnv4", group, pairs, offset_scale, remove_center, further, softmax)
    return _dcnv4(_run_dcnv4, input, offset_mask, group_channels, options)


def dcnv4_reference(
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
    *further: int | bool | None,
    softmax: bool = False,
) -> Tensor:
    """`dcnv4` in plain PyTorch, for any device and any order of derivatives; half dtypes accumulate in float32.

    Arguments, result and errors are those of `dcnv4`, except that autocast does not cast the arguments.

    Example:
        >>> import torch
        >>> from danet.ops import dcnv4, dcnv4_reference
        >>> tensors, options = (torch.randn(1, 6, 7, 8), torch.rand(1, 6, 7, 56)), (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)
        >>> torch.allclose(dcnv4(*tensors, *options), dcnv4_reference(*tensors, *options), atol=1e-5)
        True
    """
    pairs = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = _options("dcnv4", group, pairs, offset_scale, remove_center, further, softmax)
    return _dcnv4(_compute_dcnv4, input, offset_mask, group_channels, options)


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


def _options(
    op: str, group: Any, pairs: tuple, offset_scale: Any, remove_center: Any, further: tuple, softmax: Any
) -> tuple:
    """The arguments of `SdcOptions.validate` after `op`."""
    # Originals with a `softmax` of their own pass it as the last positional argument.
    flags = further[-1:] if further and isinstance(further[-1], bool) else ()
    launch = further[: len(further) - len(flags)]
    if len(launch) > 2 or any(isinstance(value, bool) or not isinstance(value, (int, type(None))) for value in launch):
        raise TypeError(
            f"{op}: further arguments must be at most two integers and softmax as a bool, got {further!r}; "
            "pass softmax by name"
        )
    if flags and softmax is not False and softmax is not flags[0]:
        raise TypeError(
            f"{op}: softmax must be given once, got {flags[0]} by position and {softmax!r} by name; pass it by name"
        )
    return (
        group,
        *pairs,
        number(op, "offset_scale", offset_scale),
        *(flags or (softmax,)),
        flag(op, "remove_center", remove_center),
    )


def _dcnv3(
    compute: Callable[..., Tensor], input: Any, offset: Any, mask: Any, group_channels: Any, options: tuple
) -> Tensor:
    """`compute` on checked images [N, C, H, W]."""
    if isinstance(mask, Tensor) and mask.ndim == 5:
        mask = mask.flatten(3)
    sizes, validated = _check_dcnv3(input, offset, mask, group_channels, *options)
    return compute([value.permute(0, 3, 1, 2) for value in (input, offset, mask)], sizes, validated).permute(0, 2, 3, 1)


def _dcnv4(compute: Callable[..., Tensor], input: Any, offset_mask: Any, group_channels: Any, options: tuple) -> Tensor:
    sizes, validated = _check_dcnv4(input, offset_mask, group_channels, *options)
    return compute([value.permute(0, 3, 1, 2) for value in (input, offset_mask)], sizes, validated).permute(0, 2, 3, 1)


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
    return unchecked_reference(input, offset, mask, sizes, options, ignore_border=True)


def _dcnv4_reference(input: Tensor, offset_mask: Tensor, sizes: SdcSizes, options: SdcOptions) -> Tensor:
    groups = offset_mask[:, : 3 * sizes.G * sizes.K].unflatten(1, (sizes.G, 3 * sizes.K))
    offset, mask = groups[:, :, : 2 * sizes.K].flatten(1, 2), groups[:, :, 2 * sizes.K :].flatten(1, 2)
    return _dcnv3_reference(input, offset, mask, sizes, options)


def _check_dcnv4_images(op: str, input: Tensor, offset_mask: Tensor, options: SdcOptions) -> SdcSizes:
    check_image(op, "input", input)
    return options.sizes(op, input.shape)


def _run_dcnv3(images: list[Tensor], sizes: SdcSizes, options: SdcOptions) -> Tensor:
    return run("dcnv3", _dcnv3_reference, images, sizes, options)


def _compute_dcnv3(images: list[Tensor], sizes: SdcSizes, options: SdcOptions) -> Tensor:
    input, offset, mask = images
    return _dcnv3_reference(input, offset, mask, sizes, options)


def _run_dcnv4(images: list[Tensor], sizes: SdcSizes, options: SdcOptions) -> Tensor:
    return run("dcnv4", _dcnv4_reference, images, sizes, options)


def _compute_dcnv4(images: list[Tensor], sizes: SdcSizes, options: SdcOptions) -> Tensor:
    input, offset_mask = images
    return _dcnv4_reference(input, offset_mask, sizes, options)


register("dcnv3", 3, _dcnv3_reference, check_images)
register("dcnv4", 2, _dcnv4_reference, _check_dcnv4_images)
