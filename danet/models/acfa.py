"""ACFA, which fuses two neighbouring levels, and the neck that is made of ACFAs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.models.blocks import FFN
from danet.models.safem import SaFEM
from danet.ops import SDC


class ACFA(nn.Module):
    """Attention-guided Cross-weighting Feature Aggregator: fuses a shallow level with the next deeper one.

    Section 3.1.2, eqs. 3 to 5 of the DANet paper (https://doi.org/10.1145/3581783.3612146):
    ``F_o = w_s * DeConv(F_d) + w_d * F_s``, where F_s is the shallow and F_d the deep map. The spatial weights w_s come
    from the shallow map: the gate of a SaFEM (our decision), or with ``literal=True`` its gated features, as eq. 3 is
    printed. The channel weights ``w_d = Sigmoid(FFN(GAP(SDC(F_d))))`` come from the deep map.

    Shapes: shallow ``[N, C, H, W]``, deep ``[N, C, ceil(H / 2), ceil(W / 2)]`` -> ``[N, C, H, W]``.

    Example:
        >>> ACFA(8)(torch.zeros(1, 8, 9, 12), torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 9, 12])
    """

    def __init__(self, channels: int, *, groups: int = 4, literal: bool = False) -> None:
        super().__init__()
        self.literal = literal
        self.spatial = SaFEM(channels, groups=groups)
        self.sdc = SDC(channels, groups=groups)
        self.ffn = FFN(channels)
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        w_s = self.spatial(shallow) if self.literal else self.spatial.gate(shallow)
        w_d = torch.sigmoid(self.ffn(self.sdc(deep).mean(dim=(2, 3), keepdim=True)))
        return w_s * crop(self.deconv(deep), shallow) + w_d * shallow


class Addition(nn.Module):
    """Replaces ACFA if ``ModelConfig.acfa`` is off: upsampling by 2 and addition, as in FPN.

    FPN: https://arxiv.org/abs/1612.03144.
    """

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        return shallow + crop(F.interpolate(deep, scale_factor=2.0, mode="nearest"), shallow)


def crop(up: Tensor, shallow: Tensor) -> Tensor:
    """Crops ``up [N, C, H', W']`` to the size of ``shallow``, which is one smaller where that size is odd."""
    H, W = shallow.shape[2:]
    if torch.compiler.is_exporting():  # torch.export would fix for all sizes whether a slice removes anything
        rows, columns = (torch.arange(size, device=up.device) for size in (H, W))
        return up.index_select(2, rows).index_select(3, columns)
    return up[:, :, :H, :W]


class Neck(nn.Module):
    """Projects four stages to a common width by 1x1 convolutions and fuses them from the deepest to the shallowest.

    Shapes: four maps ``[N, widths[i], H_i, W_i]`` -> four maps ``[N, channels, H_i, W_i]``.

    Args:
        widths: channels of the four stages.
        channels: channels of the fused maps.
        acfa: fuse by ACFA, otherwise by ``Addition``.
        groups: groups of the SDCs.
        literal: see ``ACFA``.
    """

    def __init__(
        self, widths: list[int], channels: int, *, acfa: bool = True, groups: int = 4, literal: bool = False
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.fusions = nn.ModuleList(
            ACFA(channels, groups=groups, literal=literal) if acfa else Addition() for _ in widths[:-1]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fused = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in reversed(range(len(self.fusions))):
            fused[level] = self.fusions[level](fused[level], fused[level + 1])
        return fused
