"""EKEM: features are weighted, element by element, by what their neighbouring channels say at the same place."""

import torch
from torch import Tensor, nn

from danet.ops import lcdc, lcdc_kernel_size


class EKEM(nn.Module):
    """Element-wise Knowledge Enhancement Module (section 3.2.2): ``F_e = sigmoid(LCDC(F)) * F``.

    LCDC has one kernel for all positions, so that the size of the images is free. It starts as the mean of the k
    neighbouring channels (our decision): strong features are kept whole, weak ones halved.

    Shapes: ``[N, C, H, W] -> [N, C, H, W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = lcdc_kernel_size(channels)
        self.weight = nn.Parameter(torch.full((1, k), 1.0 / k))

    def forward(self, x: Tensor) -> Tensor:
        return lcdc(x, self.weight, gate=True)
