"""SaFEM: attention with a receptive field that adapts to the scale of targets."""

import torch
from torch import Tensor, nn

from danet.models.blocks import FFN
from danet.ops import SDC, softmax_gate


class SaFEM(nn.Module):
    """Scale-adaptive Feature Enhancement Mechanism: weights every channel at every position.

    Section 3.1.1, eq. 2 of the DANet paper (https://doi.org/10.1145/3581783.3612146):
    ``F_e = C * Softmax(FFN(SDC(F))) * F`` with a softmax over the channels. No spatial compression takes place, and any
    resolution is possible. The factor C is our decision: it makes the mean weight one. Without it (``literal=True``,
    eq. 2 as printed) features shrink by C in every stage.

    Shapes: ``[N, C, H, W] -> [N, C, H, W]``.

    Args:
        channels: C.
        groups: groups of the separable deformable convolution (SDC).
        literal: without the factor C.

    Example:
        >>> x = torch.randn(1, 8, 6, 6)
        >>> torch.allclose(SaFEM(8)(x), x, atol=1e-5)  # all weights are one before training
        True
    """

    def __init__(self, channels: int, *, groups: int = 4, literal: bool = False) -> None:
        super().__init__()
        self.sdc = SDC(channels, groups=groups)
        self.ffn = FFN(channels)
        self.scale = 1.0 / channels if literal else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * softmax_gate(x, self.ffn(self.sdc(x)))

    def gate(self, x: Tensor) -> Tensor:
        """The weights ``[N, C, H, W]`` by which ``forward`` multiplies ``x``."""
        logits = self.ffn(self.sdc(x))
        return (self.scale * logits.shape[1]) * torch.softmax(logits, dim=1)
