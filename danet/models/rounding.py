"""Rounding of weights to 16 bits."""

import torch
from torch import Tensor


def round_with_error_diffusion(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds a weight ``[C_out, C, 3, 3]`` to values of ``dtype`` (kept in the weight's own) so that tap sums persist.

    In every 3x3 kernel, the rounding error of a tap is added to the tap with the next smaller magnitude. Features are
    smooth, so that the errors of neighbouring taps cancel. Taps rounded one by one to bfloat16 would shift the boxes
    and scores of all images in the same direction.
    """
    taps = weight.flatten(2)
    order = taps.abs().argsort(dim=2, descending=True)
    result, error = torch.empty_like(taps), torch.zeros_like(taps[:, :, :1])
    for tap in order.split(1, dim=2):
        wanted = taps.gather(2, tap) + error
        value = wanted.to(dtype).to(weight.dtype)
        result.scatter_(2, tap, value)
        error = wanted - value
    return result.view(weight.shape)
