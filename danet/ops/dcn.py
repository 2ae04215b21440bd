"""DCNv3 (InternImage, arXiv 2211.05778) and DCNv4 (arXiv 2401.06197), called as their own extensions are.

Both are SDC without its softmax, on images [N, H, W, C], in another order: of two offsets that of x comes first, and
taps go column by column; DCNv4 keeps the offsets and then the mask of each group in one tensor. The kernels are SDC's
own, which read and write that order where it is: nothing is copied. What the originals refuse is welcome: any number of
channels and images, all floating types, CPU tensors, second derivatives, torch.compile.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from danet.ops import library
from danet.ops.common import autocast, check_image, check_like_input, check_shape, check_tensor, memoize_check
from danet.ops.sdc import SdcSizes, runs_compiled, sdc_by_gather, sizes_of, with_pairs


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
    """DCNv3's operator, with the arguments of its `DCNv3Function.apply`.

    Args:
        input: [N, H, W, C], C = group * group_channels; float64, float32, float16 or bfloat16.
        offset: [N, H_out, W_out, 2*G*K] of input's dtype, in pixels, (x, y) pairs, tap after tap, column by column.
        mask: [N, H_out, W_out, G*K] of input's dtype, the taps' weights.
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w: as in a convolution.
        group, group_channels: G, and the channels of each.
        offset_scale: stretches taps and offsets about the window's centre.
        im2col_step: not used, any batch is one call.
        remove_center: leave the middle tap out, so that K is one less; needs an odd window.
        softmax: take `mask` as logits, normalised over the K taps of a group by the kernel.

    Returns:
        [N, H_out, W_out, C].

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    input, offset, mask = autocast(input, offset, mask)
    windows = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = (*windows, offset_scale, softmax, bool(remove_center))
    sizes = _check_dcnv3(input, offset, mask, group, group_channels, *options)
    images = [value.permute(0, 3, 1, 2) for value in (input, offset, mask)]
    if runs_compiled(input, sizes):
        out = library.call("dcnv3", *images, sizes.G, *sizes.windows, *options[4:])
    else:
        out = _dcnv3_by_gather(images[0], images[1], images[2], sizes, offset_scale, softmax)
    return out.permute(0, 2, 3, 1)


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
    """DCNv4's operator, with the arguments of its `DCNv4Function.apply`: `dcnv3` but for `offset_mask`.

    Args:
        offset_mask: [N, H_out, W_out, P] of input's dtype; group after group the 2*K numbers of its offsets and the K
            of its mask. P is 3*G*K or more (DCNv4's module fills up to a multiple of 8); the rest has zero gradients.

    Returns:
        [N, H_out, W_out, C].

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    input, offset_mask = autocast(input, offset_mask)
    windows = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    options = (*windows, offset_scale, softmax, bool(remove_center))
    sizes = _check_dcnv4(input, offset_mask, group, group_channels, *options)
    images = [value.permute(0, 3, 1, 2) for value in (input, offset_mask)]
    if runs_compiled(input, sizes):
        out = library.call("dcnv4", *images, sizes.G, *sizes.windows, *options[4:])
    else:
        out = _dcnv4_by_gather(images[0], images[1], sizes, offset_scale, softmax)
    return out.permute(0, 2, 3, 1)


class DCNv3Function:
    """In the place of InternImage's `functions.DCNv3Function`."""

    apply = staticmethod(dcnv3)


class DCNv4Function:
    """In the place of DCNv4's `DCNv4Function`."""

    apply = staticmethod(dcnv4)


def _check_image(op: str, input: Any, group: Any, group_channels: Any, options: tuple) -> SdcSizes:
    check_tensor(op, "input", input)
    if input.ndim != 4 or 0 in input.shape[1:]:
        raise ValueError(f"{op}: input must be [N, H, W, C] with H, W, C >= 1, got {list(input.shape)}")
    N, H, W, C = input.shape
    sizes = sizes_of(op, (N, C, H, W), group, *options)
    if group_channels * sizes.G != C:
        raise ValueError(f"{op}: group * group_channels must be C = {C}, got {sizes.G} * {group_channels}")
    return sizes


@memoize_check
def _check_dcnv3(input: Any, offset: Any, mask: Any, group: Any, group_channels: Any, *options: Any) -> SdcSizes:
    sizes = _check_image("dcnv3", input, group, group_channels, options)
    check_like_input("dcnv3", "offset", offset, input)
    check_like_input("dcnv3", "mask", mask, input)
    N, G, K, H_out, W_out = sizes.N, sizes.G, sizes.K, sizes.H_out, sizes.W_out
    check_shape("dcnv3", "offset", offset, "[N, H_out, W_out, 2*G*K]", (N, H_out, W_out, 2 * G * K))
    check_shape("dcnv3", "mask", mask, "[N, H_out, W_out, G*K]", (N, H_out, W_out, G * K))
    return sizes


@memoize_check
def _check_dcnv4(input: Any, offset_mask: Any, group: Any, group_channels: Any, *options: Any) -> SdcSizes:
    sizes = _check_image("dcnv4", input, group, group_channels, options)
    check_like_input("dcnv4", "offset_mask", offset_mask, input)
    expected = [sizes.N, sizes.H_out, sizes.W_out, 3 * sizes.G * sizes.K]
    shape = list(offset_mask.shape)
    if len(shape) != 4 or shape[:3] != expected[:3] or shape[3] < expected[3]:
        raise ValueError(
            f"dcnv4: offset_mask must be [N, H_out, W_out, P] = {expected} with P = 3*G*K or more, got {shape}"
        )
    return sizes


def _row_by_row(sizes: SdcSizes) -> list[int]:
    """For every tap of SDC its place in DCNv3's order."""
    k_y, k_x = sizes.kernel_size
    taps = [x * k_y + y for y in range(k_y) for x in range(k_x)]
    if sizes.remove_center:
        middle = k_y * k_x // 2
        taps = [tap - (tap > middle) for tap in taps if tap != middle]
    return taps


def _dcnv3_by_gather(
    input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, offset_scale: float, softmax: bool
) -> Tensor:
    """The reference, of images [N, C, H, W]."""
    taps = _row_by_row(sizes)
    offset = offset.unflatten(1, (sizes.G, sizes.K, 2))[:, :, taps].flip(3).flatten(1, 3)
    mask = mask.unflatten(1, (sizes.G, sizes.K))[:, :, taps].flatten(1, 2)
    return sdc_by_gather(input, offset, mask, sizes, offset_scale, softmax)


def _dcnv4_by_gather(input: Tensor, offset_mask: Tensor, sizes: SdcSizes, offset_scale: float, softmax: bool) -> Tensor:
    groups = offset_mask[:, : 3 * sizes.G * sizes.K].unflatten(1, (sizes.G, 3 * sizes.K))
    offset, mask = groups[:, :, : 2 * sizes.K].flatten(1, 2), groups[:, :, 2 * sizes.K :].flatten(1, 2)
    return _dcnv3_by_gather(input, offset, mask, sizes, offset_scale, softmax)


def _register(op: str, tensors: int, by_gather: Callable[..., Tensor]) -> None:
    """Joins the Python side of an operator that takes `tensors` images [N, C, H, W] and then SDC's options."""

    def fake(input: Tensor, *arguments: Any) -> Tensor:
        check_image(op, "input", input)
        sizes = sizes_of(op, input.shape, *with_pairs(*arguments[tensors - 1 :]))
        shape = (sizes.N, sizes.C, sizes.H_out, sizes.W_out)
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)

    def reference(*arguments: Any) -> Tensor:
        images, options = arguments[:tensors], with_pairs(*arguments[tensors:])
        return by_gather(*images, sizes_of(op, images[0].shape, *options), *options[5:7])

    library.register(op, fake=fake, vmap=library.folding(op, tensors))
    library.register_gradient(
        op,
        tensors,
        reference=reference,
        vmap=library.folding(f"{op}_backward", tensors + 1),
        switches=lambda: (torch.are_deterministic_algorithms_enabled(),),
    )


_register("dcnv3", 3, _dcnv3_by_gather)
_register("dcnv4", 2, _dcnv4_by_gather)
