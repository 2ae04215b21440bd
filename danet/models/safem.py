"""SaFEM: attention whose receptive field follows the target's scale."""

import torch
from torch import Tensor, nn

from danet.models.blocks import FFN
from danet.ops import SDC, softmax_gate


class SaFEM(nn.Module):
    """Scale-adaptive Feature Enhancement Mechanism (section 3.1.1, eq. 2).

    ``F_e = C * Softmax(FFN(SDC(F))) * F``: the softmax runs over the channels at every position, so
    that nothing is compressed in space and the module does not depend on the resolution. The factor
    C makes the mean weight one; without it (``literal=True``, eq. 2 as printed) features shrink by C
    in every stage.

    Shapes: ``[N, C, H, W] -> [N, C, H, W]``.
    """

    def __init__(self, channels: int, *, groups: int = 4, literal: bool = False) -> None:
        super().__init__()
        self.sdc = SDC(channels, groups=groups)
        self.ffn = FFN(channels)
        self.scale = 1.0 / channels if literal else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * softmax_gate(x, self.ffn(self.sdc(x)))

    def gate(self, x: Tensor) -> Tensor:
        """The weights alone, ``[N, C, H, W]``: what ``forward`` multiplies ``x`` by."""
        logits = self.ffn(self.sdc(x))
        return (self.scale * logits.shape[1]) * torch.softmax(logits, dim=1)
