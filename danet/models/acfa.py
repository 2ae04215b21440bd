"""ACFA: neighbouring levels exchange structure and semantics while they are fused."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.models.blocks import FFN
from danet.models.safem import SaFEM
from danet.ops import SDC


class ACFA(nn.Module):
    """Attention-guided Cross-weighting Feature Aggregator (section 3.1.2, eqs. 3-5) of two levels.

    ``F_o = w_s * DeConv(F_d) + w_d * F_s`` with spatial weights ``w_s`` from the shallow map (SaFEM's
    gate; with ``literal=True`` its gated features, as eq. 3 is printed) and channel weights
    ``w_d = Sigmoid(FFN(GAP(SDC(F_d))))`` from the deep one.

    Shapes: shallow ``[N, C, H, W]``, deep ``[N, C, ceil(H / 2), ceil(W / 2)]`` -> ``[N, C, H, W]``.
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
    """What stands in ACFA's place when it is switched off: 2x upsampling and addition, as in FPN."""

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        return shallow + crop(F.interpolate(deep, scale_factor=2.0, mode="nearest"), shallow)


def crop(up: Tensor, shallow: Tensor) -> Tensor:
    """``up [N, C, H', W']`` in the height and width of ``shallow``: an odd one is smaller than twice the deep map."""
    H, W = shallow.shape[2:]
    if torch.compiler.is_exporting():  # a slice would tune_malloc for all sizes whether there is something to cut
        rows, columns = (torch.arange(size, device=up.device) for size in (H, W))
        return up.index_select(2, rows).index_select(3, columns)
    return up[:, :, :H, :W]


class Neck(nn.Module):
    """Brings four stages to a common width by 1x1 convolutions and fuses them from the deepest upwards.

    Shapes: four maps ``[N, widths[i], H_i, W_i]`` -> four maps ``[N, channels, H_i, W_i]``.
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
