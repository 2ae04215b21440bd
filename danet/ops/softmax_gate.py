"""SaFEM's tail (paper equation 2, section 3.1.1): features weighted by a softmax over the channels.

    out[n, c, y, x] = C * softmax_c(logits[n, :, y, x])[c] * input[n, c, y, x]

The factor C is our decision: it makes the mean weight one, so that features keep their size through the stages.
"""

from typing import Any

import torch
from torch import Tensor

from danet.ops import library
from danet.ops.common import autocast, check_image, check_like_input, check_shape, check_tensor, compute_dtype


def softmax_gate(input: Tensor, logits: Tensor) -> Tensor:
    """C * softmax(logits, dim=1) * input, the softmax in float32 (float64 for float64).

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        logits: [N, C, H, W] of input's dtype.

    Returns:
        [N, C, H, W] in channels-last strides.

    Raises:
        TypeError, ValueError: one line that names the wrong argument.
    """
    input, logits = autocast(input, logits)
    check_softmax_gate(input, logits)
    if library.has_kernel(input):
        return library.call("softmax_gate", input, logits)
    return softmax_gate_reference(input, logits)


def softmax_gate_reference(input: Tensor, logits: Tensor) -> Tensor:
    """`softmax_gate` in plain PyTorch: any device, double backward."""
    check_softmax_gate(input, logits)
    C = input.shape[1]
    dtype = compute_dtype(input.dtype)
    # Channels innermost: torch's softmax over the middle axis of a channels-last tensor would copy it twice.
    weights = torch.softmax(logits.permute(0, 2, 3, 1), dim=-1, dtype=dtype)
    out = weights * (input.permute(0, 2, 3, 1).to(dtype) * C)
    return out.to(input.dtype).contiguous().permute(0, 3, 1, 2)


def check_softmax_gate(input: Any, logits: Any) -> None:
    check_tensor("softmax_gate", "input", input)
    check_image("softmax_gate", "input", input)
    check_like_input("softmax_gate", "logits", logits, input)
    check_shape("softmax_gate", "logits", logits, "[N, C, H, W]", tuple(input.shape))


def _fake(input: Tensor, logits: Tensor) -> Tensor:
    check_softmax_gate(input, logits)
    return torch.empty_like(input, memory_format=torch.channels_last)


def _fake_backward(grad_output: Tensor, input: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(value, memory_format=torch.channels_last) for value in (input, logits))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_output: Tensor):
    return torch.ops.danet.softmax_gate_backward(grad_output, *ctx.saved_tensors)


def _backward_of_backward(ctx, *grads):
    grad_output, *tensors = ctx.saved_tensors
    return library.double_backward(softmax_gate_reference, tensors, grad_output, grads)


def _vmap(info, in_dims, *tensors: Tensor):
    folded = [library.fold_batch(*pair, info.batch_size) for pair in zip(tensors, in_dims, strict=True)]
    return torch.ops.danet.softmax_gate(*folded).unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(info, in_dims, *tensors: Tensor):
    folded = [library.fold_batch(*pair, info.batch_size) for pair in zip(tensors, in_dims, strict=True)]
    grads = torch.ops.danet.softmax_gate_backward(*folded)
    return tuple(grad.unflatten(0, (info.batch_size, -1)) for grad in grads), (0, 0)


library.register("softmax_gate", fake=_fake, setup_context=_setup_context, backward=_backward, vmap=_vmap)
library.register(
    "softmax_gate_backward",
    fake=_fake_backward,
    setup_context=_setup_context,
    backward=_backward_of_backward,
    vmap=_vmap_backward,
)
