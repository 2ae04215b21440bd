"""EKEM, Element-wise Knowledge Enhancement Module: gates every feature by its neighboring channels.

Section 3.2.2 of the DANet paper (https://doi.org/10.1145/3581783.3612146).
"""

import torch
from torch import Tensor, nn

from danet.ops import lcdc, lcdc_kernel_size


class EKEM(nn.Module):
    """Element-wise Knowledge Enhancement Module (section 3.2.2): ``F_e = sigmoid(LCDC(F)) * F``.

    LCDC (local cross-channel depth-wise convolution) uses one kernel of k weights for all positions, so images may have
    any size. The kernel starts as the mean of k neighboring channels (our decision): strong features then pass
    unchanged, and weak features are halved.

    Args:
        channels: C, channels of the map; they determine k, see ``danet.ops.lcdc_kernel_size``.

    Shapes:
        ``[N, C, H, W] -> [N, C, H, W]``.

    Example:
        >>> EKEM(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = lcdc_kernel_size(channels)
        self.weight = nn.Parameter(torch.full((1, k), 1.0 / k))

    def forward(self, x: Tensor) -> Tensor:
        return lcdc(x, self.weight, gate=True)
