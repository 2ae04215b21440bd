"""APGM: the student is given a part of the teacher's features before it is compared with the teacher."""

import torch
from torch import Tensor, nn

from danet.models.blocks import MBB


class TPKS(nn.Module):
    """Teacher Prior Knowledge Selection (section 3.2.2): the C/8 channels that an SE attention ranks highest.

    They are chosen for each image, keep their order, and are multiplied by their SE weights, so that the attention
    learns. SE (Hu et al., CVPR 2018): ``sigmoid(W_2 relu(W_1 GAP(F)))``, in float32, since ties would be broken by
    chance.

    Shapes: ``[N, C, H, W] -> [N, selected, H, W]`` with ``selected`` = C // 8, at least one.
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
    """Teacher Prior Knowledge Integration (section 3.2.2): concatenation with the student's features and an MBB.

    Shapes: student ``[N, C, H, W]``, prior ``[N, selected, H, W]`` -> ``[N, C, H, W]``.
    """

    def __init__(self, channels: int, selected: int) -> None:
        super().__init__()
        self.block = MBB(channels + selected, channels)

    def forward(self, student: Tensor, prior: Tensor) -> Tensor:
        return self.block(torch.cat([student, prior], dim=1))
