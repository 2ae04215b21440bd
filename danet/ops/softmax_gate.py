"""SaFEM's tail (paper equation 2, section 3.1.1): features weighted by a softmax over the channels.

    out[n, c, y, x] = C * softmax_c(logits[n, :, y, x])[c] * input[n, c, y, x]

The factor C is our decision: it makes the mean weight one, so that features keep their size through the stages.
"""

from typing import Any

import torch
from torch import Tensor

from danet.ops import library
from danet.ops.common import (
    autocast,
    check_image,
    check_like_input,
    check_shape,
    check_tensor,
    compute_dtype,
    memoize_check,
)


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


@memoize_check
def check_softmax_gate(input: Any, logits: Any) -> None:
    check_tensor("softmax_gate", "input", input)
    check_image("softmax_gate", "input", input)
    check_like_input("softmax_gate", "logits", logits, input)
    check_shape("softmax_gate", "logits", logits, "[N, C, H, W]", tuple(input.shape))


def _fake(input: Tensor, logits: Tensor) -> Tensor:
    check_softmax_gate(input, logits)
    return torch.empty_like(input, memory_format=torch.channels_last)


library.register("softmax_gate", fake=_fake, vmap=library.folding("softmax_gate", 2))
library.register_gradient(
    "softmax_gate", 2, reference=softmax_gate_reference, vmap=library.folding("softmax_gate_backward", 3)
)
