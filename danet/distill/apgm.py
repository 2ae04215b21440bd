"""APGM, Attentional Prior-Knowledge Guidance Module: adds selected teacher channels to the student's features.

Section 3.2.2 and eq. 8 of the DANet paper (https://doi.org/10.1145/3581783.3612146).
"""

import torch
from torch import Tensor, nn

from danet.models.blocks import MBB


class TPKS(nn.Module):
    """Teacher Prior Knowledge Selection (section 3.2.2): the C/8 channels with the highest SE attention.

    The channels are selected for each image, keep their order, and are multiplied by their attention weights, through
    which the attention receives gradients. SE is Squeeze-and-Excitation (https://arxiv.org/abs/1709.01507),
    ``sigmoid(W_2 relu(W_1 GAP(F)))``, computed in float32: in half precision, equal weights would make the selection
    arbitrary.

    Args:
        channels: C, channels of the teacher's map.
        reduction: ratio of C to the hidden channels of SE, which are at least 4.

    Shapes:
        ``[N, C, H, W] -> [N, selected, H, W]`` with ``selected = max(C // 8, 1)``.

    Example:
        >>> TPKS(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.selected = max(channels // 8, 1)
        hidden = max(channels // reduction, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            mean = x.float().mean(dim=(2, 3))
            attention = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        index = attention.topk(self.selected, dim=1).indices.sort(dim=1).values
        weights = attention.gather(1, index).to(x.dtype)
        channels = x.gather(1, index[:, :, None, None].expand(-1, -1, *x.shape[2:]))
        return channels * weights[:, :, None, None]


class TPKI(nn.Module):
    """Teacher Prior Knowledge Integration (section 3.2.2): concatenation with the student's features, then an MBB.

    Args:
        channels: C, channels of the student's map and of the result.
        selected: channels of the teacher that ``TPKS`` selects.

    Shapes:
        student ``[N, C, H, W]`` and prior ``[N, selected, H, W]`` -> ``[N, C, H, W]``.

    Example:
        >>> TPKI(32, 4)(torch.rand(2, 32, 8, 8), torch.rand(2, 4, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, channels: int, selected: int) -> None:
        super().__init__()
        self.block = MBB(channels + selected, channels)

    def forward(self, student: Tensor, prior: Tensor) -> Tensor:
        return self.block(torch.cat([student, prior], dim=1))
