"""The softmax gate: weights the features of every pixel by a softmax over the channels.

It is the last step of the SaFEM (Scale-adaptive Feature Enhancement Mechanism) of DANet
(https://doi.org/10.1145/3581783.3612146), section 3.1.1, equation 2:

    out[n, c, y, x] = C * softmax_c(logits[n, :, y, x])[c] * input[n, c, y, x]

The factor C is our decision: the mean weight is then 1, so that the magnitude of the features is preserved from stage
to stage.
"""

from typing import Any

import torch
from torch import Tensor

from danet.ops import library
from danet.ops.common import autocast, check_image, check_like_input, check_shape, compute_dtype, memoize_check


def softmax_gate(input: Tensor, logits: Tensor) -> Tensor:
    """C * softmax(logits, dim=1) * input; the softmax is computed in float32 (float64 for float64).

    Args:
        input: [N, C, H, W], float64, float32, float16 or bfloat16.
        logits: [N, C, H, W] of input's dtype.

    Returns:
        [N, C, H, W] of input's dtype, in channels-last memory format.

    Raises:
        TypeError: If input or logits is not a dense tensor of a supported dtype, or if their dtypes differ.
        ValueError: If input is not [N, C, H, W] with C, H, W >= 1, if logits has another shape than input, or if the
            tensors are on different devices.

    Example:
        >>> import torch
        >>> from danet.ops import softmax_gate
        >>> input, logits = torch.randn(2, 8, 4, 5), torch.zeros(2, 8, 4, 5)
        >>> torch.allclose(softmax_gate(input, logits), input)  # equal logits: all weights are 1
        True
    """
    input, logits = autocast(input, logits)
    check_softmax_gate(input, logits)
    if library.runs_compiled(input):
        return library.call("softmax_gate", input, logits)
    return softmax_gate_reference(input, logits)


def softmax_gate_reference(input: Tensor, logits: Tensor) -> Tensor:
    """`softmax_gate` in plain PyTorch, for any device and with second-order gradients.

    Arguments, result and errors are those of `softmax_gate`.

    Example:
        >>> import torch
        >>> from danet.ops import softmax_gate, softmax_gate_reference
        >>> input, logits = torch.randn(2, 2, 8, 4, 5)
        >>> torch.allclose(softmax_gate(input, logits), softmax_gate_reference(input, logits), atol=1e-5)
        True
    """
    check_softmax_gate(input, logits)
    C = input.shape[1]
    dtype = compute_dtype(input.dtype)
    # Make the channels the last dimension: torch's softmax over dim 1 of a channels-last tensor copies it twice.
    weights = torch.softmax(logits.permute(0, 2, 3, 1), dim=-1, dtype=dtype)
    out = weights * (input.permute(0, 2, 3, 1).to(dtype) * C)
    return out.to(input.dtype).contiguous().permute(0, 3, 1, 2)


@memoize_check
def check_softmax_gate(input: Any, logits: Any) -> None:
    """Raises the errors that `softmax_gate` documents."""
    check_image("softmax_gate", "input", input)
    check_like_input("softmax_gate", "logits", logits, input)
    check_shape("softmax_gate", "logits", logits, "[N, C, H, W]", tuple(input.shape))


def _fake(input: Tensor, logits: Tensor) -> Tensor:
    check_softmax_gate(input, logits)
    return torch.empty_like(input, memory_format=torch.channels_last)


library.register("softmax_gate", 2, fake=_fake)
library.register_gradient("softmax_gate", 2, reference=softmax_gate_reference)
