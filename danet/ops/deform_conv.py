"""Deformable convolution with any weight: torchvision's and mmcv's `deform_conv2d`, on the kernels of SDC.

Deformable ConvNets v1 https://arxiv.org/abs/1703.06211, and v2 with a mask https://arxiv.org/abs/1811.11168. With the
samples of equation 1 of `danet.ops.sdc` (offset_scale 1, no softmax), times the mask,

    sample[n, c, k, y, x] = mask[n, g, k, y, x] * input[n, c, Y, X],   offset group g = c // (C / G)
    out[n, o, y, x] = bias[o] + sum over c of the weight group of o, k < K of  weight[o, c, k] * sample[n, c, k, y, x]

On the CPU, one kernel computes all layers in float32: it multiplies the samples of a block of pixels while they are in
the cache. Elsewhere `deform_im2col` lays out the samples as [N, K*C, H_out, W_out], and torch multiplies them by the
weight. So does the backward pass, which computes the samples again.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from danet.ops import library, onnx_form
from danet.ops.common import (
    check_image,
    check_like_input,
    check_shape,
    compute_dtype,
    device_type,
    is_autocast,
    memoize_check,
    to_float32,
)
from danet.ops.sdc import (
    MAX_ELEMENTS,
    Pair,
    SdcOptions,
    SdcSizes,
    check_images,
    register,
    run,
    unchecked_reference,
)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution v1, or v2 with a mask: a drop-in replacement for `torchvision.ops.deform_conv2d`.

    The numbers of groups follow from the shapes, as in torchvision: C / weight.shape[1] weight groups, and
    G = offset.shape[1] / (2*K) offset groups, with K = kernel height * kernel width taps. The formula is in the
    docstring of this module.

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        offset: [N, 2*G*K, H_out, W_out] of input's dtype, in pixels of the input. Channels are ordered by group, then
            by tap in row-major order, then (y, x).
        weight: [C_out, C / groups, kernel height, kernel width] of input's dtype.
        bias: [C_out] of input's dtype, or None.
        stride, padding, dilation: an integer or a (y, x) pair, as in a convolution.
        mask: [N, G*K, H_out, W_out] of input's dtype, the weights of the taps; None: all are 1.

    Returns:
        [N, C_out, H_out, W_out] in the memory format channels-last. Under autocast the operator computes in float32 and
        returns input's dtype, as in torchvision; float16, bfloat16 and float32 arguments may then be mixed.

    Raises:
        TypeError: if a tensor argument is not a dense tensor of a supported dtype, if dtypes differ, or if an option
            has the wrong type.
        ValueError: if a shape or device does not match, if an option is out of range, or if the window is larger than
            the padded input.

    Example:
        >>> import torch
        >>> from danet.ops import deform_conv2d
        >>> input, offset, weight = torch.randn(4, 3, 10, 10), torch.randn(4, 18, 8, 8), torch.randn(5, 3, 3, 3)
        >>> deform_conv2d(input, offset, weight).shape
        torch.Size([4, 5, 8, 8])
    """
    tensors = input, offset, weight, bias, mask
    if has_torch_function(tensors):  # torch.fx, and subclasses of Tensor
        given: Any = {"stride": stride, "padding": padding, "dilation": dilation, "mask": mask}
        return handle_torch_function(deform_conv2d, tensors, input, offset, weight, bias, **given)
    if is_autocast(input):
        # As in torchvision: autocast's dtype has too few bits for a position in an image.
        with torch.autocast(device_type(input), enabled=False):
            widened = (to_float32(each) for each in tensors)
            wide_input, wide_offset, wide_weight, wide_bias, wide_mask = widened
            given = {"stride": stride, "padding": padding, "dilation": dilation, "mask": wide_mask}
            return deform_conv2d(wide_input, wide_offset, wide_weight, wide_bias, **given).to(input.dtype)
    sizes, options = check_deform_conv(input, offset, weight, bias, mask, stride, padding, dilation)
    if onnx_form.is_active() and onnx_form.uses_deform_conv():
        shape = (sizes.N, weight.shape[0], sizes.H_out, sizes.W_out)
        return onnx_form.deform_conv(input, offset, _mask(input, mask, sizes), weight, bias, options, shape)
    mask = _mask(input, mask, sizes)
    if not onnx_form.is_active() and _has_fused_kernel(input, sizes):
        return library.call("deform_conv2d", input, offset, mask, weight, bias, *options.to_schema())
    samples = run("deform_im2col", _im2col_reference, (input, offset, mask), sizes, options)
    return _multiply(samples, weight, bias, sizes)


def deform_conv2d_reference(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """`deform_conv2d` in plain PyTorch, for any device and any order of derivatives; half dtypes compute in float32.

    Arguments, result and errors are those of `deform_conv2d`, except that autocast does not cast the arguments.

    Example:
        >>> import torch
        >>> from danet.ops import deform_conv2d, deform_conv2d_reference
        >>> tensors = torch.randn(1, 3, 10, 10), torch.randn(1, 18, 8, 8), torch.randn(5, 3, 3, 3)
        >>> torch.allclose(deform_conv2d(*tensors), deform_conv2d_reference(*tensors), atol=1e-4)
        True
    """
    sizes, options = check_deform_conv(input, offset, weight, bias, mask, stride, padding, dilation)
    dtype = compute_dtype(input.dtype)
    modulation = _mask(input, mask, sizes).to(dtype)
    samples = _im2col_reference(input.to(dtype), offset.to(dtype), modulation, sizes, options)
    return _multiply(samples, weight.to(dtype), None if bias is None else bias.to(dtype), sizes).to(input.dtype)


@memoize_check
def check_deform_conv(
    input: Any, offset: Any, weight: Any, bias: Any, mask: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[SdcSizes, SdcOptions]:
    """The sizes and options of the samples of a call; TypeError or ValueError if an argument is invalid."""
    op = "deform_conv2d"
    check_image(op, "input", input)
    for name, value in (("offset", offset), ("weight", weight)):
        check_like_input(op, name, value, input)
        if value.ndim != 4:
            raise ValueError(f"{op}: {name} must have four dimensions, got {list(value.shape)}")
    N, C = input.shape[:2]
    C_out, C_group, *kernel_size = weight.shape
    if 0 in weight.shape or C % C_group != 0 or C_out % (C // C_group) != 0:
        raise ValueError(
            f"{op}: weight must be [C_out, C / groups, kernel height, kernel width] with groups dividing C = {C} and "
            f"C_out, got {list(weight.shape)}"
        )
    K = math.prod(kernel_size)
    groups = offset.shape[1] // (2 * K)
    if groups < 1 or offset.shape[1] != 2 * groups * K or C % groups != 0:
        raise ValueError(
            f"{op}: offset must have 2 * G * {K} channels, with G dividing C = {C}, got {offset.shape[1]} channels"
        )
    options = SdcOptions.validate(op, groups, tuple(kernel_size), stride, padding, dilation, 1.0, False, False)
    sizes = options.sizes(op, input.shape)
    H_out, W_out = sizes.H_out, sizes.W_out
    check_shape(op, "offset", offset, "[N, 2*G*K, H_out, W_out]", (N, 2 * groups * K, H_out, W_out))
    if mask is not None:
        check_like_input(op, "mask", mask, input)
        check_shape(op, "mask", mask, "[N, G*K, H_out, W_out]", (N, groups * K, H_out, W_out))
    if bias is not None:
        check_like_input(op, "bias", bias, input)
        check_shape(op, "bias", bias, "[C_out]", (C_out,))
    return sizes, options


def _mask(input: Tensor, mask: Tensor | None, sizes: SdcSizes) -> Tensor:
    if mask is not None:
        return mask
    shape = (sizes.N, sizes.G * sizes.K, sizes.H_out, sizes.W_out)
    return torch.ones(shape, dtype=input.dtype, device=input.device).contiguous(memory_format=torch.channels_last)


def _has_fused_kernel(input: Tensor, sizes: SdcSizes) -> bool:
    """Whether one kernel computes this call: on the CPU, in float32."""
    fits = sizes.fit_kernels(is_cuda=False) and sizes.K * sizes.C < MAX_ELEMENTS
    return input.is_cpu and input.dtype == torch.float32 and fits and library.runs_compiled(input)


def _multiply(samples: Tensor, weight: Tensor, bias: Tensor | None, sizes: SdcSizes) -> Tensor:
    """The products of samples [N, K*C, H_out, W_out] and weight, plus bias."""
    C, K = sizes.C, sizes.K
    C_out, C_group = weight.shape[:2]
    groups, pixels = C // C_group, sizes.N * sizes.H_out * sizes.W_out
    rows = samples.permute(0, 2, 3, 1).reshape(pixels, K * C)
    if C_group == 1 and C_out == C:
        taps, factors = rows.view(pixels, K, C), weight.reshape(C, K).T
        if rows.dtype == compute_dtype(rows.dtype):
            out = (taps * factors).sum(1)
        else:
            # Half types would round every product before the sum. One tap after the other needs less memory.
            out = taps[:, 0].float() * factors[0].float()
            for k in range(1, K):
                out = out + taps[:, k].float() * factors[k].float()
        out = (out if bias is None else out + bias).to(rows.dtype)
    elif groups == 1:
        matrix = weight.permute(2, 3, 1, 0).reshape(K * C, C_out)
        out = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    else:
        columns = _by_weight_group(rows, K, groups)
        matrices = weight.reshape(groups, C_out // groups, C_group, K).permute(0, 3, 2, 1).flatten(1, 2)
        out = torch.bmm(columns, matrices).transpose(0, 1).reshape(pixels, C_out)
        out = out if bias is None else out + bias
    return out.view(sizes.N, sizes.H_out, sizes.W_out, C_out).permute(0, 3, 1, 2)


def _by_weight_group(rows: Tensor, K: int, groups: int) -> Tensor:
    """Rows [pixels, K*C] as [groups, pixels, K*C/groups]."""
    pixels, depth = rows.shape
    parts = rows.view(pixels, K, groups, depth // K // groups).permute(2, 0, 1, 3)
    return parts.reshape(groups, pixels, depth // groups)


def _im2col_reference(input: Tensor, offset: Tensor, mask: Tensor, sizes: SdcSizes, options: SdcOptions) -> Tensor:
    return unchecked_reference(input, offset, mask, sizes, options, sum_taps=False)


def _schema_reference(*arguments: Any) -> Tensor:
    input, offset, mask, weight, bias = arguments[:5]
    options = SdcOptions.from_schema("deform_conv2d", *arguments[5:])
    sizes = options.sizes("deform_conv2d", input.shape)
    return _multiply(_im2col_reference(input, offset, mask, sizes, options), weight, bias, sizes)


def _fake(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    validated = SdcOptions.from_schema("deform_conv2d", *options)
    sizes = check_images("deform_conv2d", input, offset, mask, validated)
    shape = (sizes.N, weight.shape[0], sizes.H_out, sizes.W_out)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple:
    # A backward pass within autocast would compute the matrix products in another dtype than the samples.
    with torch.autocast(grad_output.device.type, enabled=False):
        return _gradients(ctx, grad_output)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple:
    input, offset, mask, weight, bias = ctx.saved_tensors
    nones = (None,) * len(ctx.options)
    if library.in_forward_mode():
        tensors = [t for t in ctx.saved_tensors if t is not None]

        def reference(*t: Tensor) -> Tensor:
            return _schema_reference(*t[:4], t[4] if bias is not None else None, *ctx.options)

        return (*library.gradients(reference, tensors, (), grad_output), *(None,) * (5 - len(tensors)), *nones)
    needs_input, needs_offset, needs_mask, needs_weight, needs_bias = ctx.needs_input_grad[:5]
    C_out, C_group = weight.shape[:2]
    C, K = input.shape[1], weight.shape[2] * weight.shape[3]
    # Multiply the gradient by the transposed weight, and pass it through the samples.
    rows = grad_output.permute(0, 2, 3, 1).reshape(-1, C_out)
    is_depthwise = C_group == 1 and C_out == C
    groups = C // C_group
    grads: tuple = (None, None, None)
    if needs_input or needs_offset or needs_mask:
        if is_depthwise:
            grad_samples = rows.unsqueeze(1) * weight.reshape(C, K).T.contiguous()
        else:
            matrices = weight.permute(0, 2, 3, 1).reshape(groups, C_out // groups, K * C_group)
            grad_samples = torch.bmm(_by_weight_group(rows, 1, groups), matrices)
            grad_samples = grad_samples.view(groups, rows.shape[0], K, C_group).permute(1, 2, 0, 3)
        N, _, H_out, W_out = grad_output.shape
        grad_samples = grad_samples.reshape(N, H_out, W_out, K * C).permute(0, 3, 1, 2)
        deterministic = torch.are_deterministic_algorithms_enabled()
        grads = torch.ops.danet.deform_im2col_backward(grad_samples, input, offset, mask, *ctx.options, deterministic)
    # Compute the samples again, and multiply them by the gradient.
    grad_weight = None
    if needs_weight:
        samples = torch.ops.danet.deform_im2col(input, offset, mask, *ctx.options)
        samples = samples.permute(0, 2, 3, 1).reshape(-1, K * C)
        if is_depthwise:
            grad_weight = (samples.view(-1, K, C) * rows.unsqueeze(1)).sum(0).T.reshape(weight.shape)
        else:
            columns = _by_weight_group(samples, K, groups)
            products = torch.bmm(_by_weight_group(rows, 1, groups).transpose(1, 2), columns)
            grad_weight = products.view(C_out, *weight.shape[2:], C_group).permute(0, 3, 1, 2)
    return (*grads, grad_weight, rows.sum(0) if needs_bias else None, *nones)


register("deform_im2col", 3, _im2col_reference, check_images, sum_taps=False)
if library.WHY_NOT is None:
    library.register("deform_conv2d", 5, fake=_fake, batched=[0, 1, 2])
    library.register_autograd("deform_conv2d", _backward, _save)
