"""The four-stage multi-branch backbone."""

from typing import Any

from torch import Tensor, nn

from danet.models.blocks import MBB
from danet.models.safem import SaFEM


class Backbone(nn.Module):
    """A stem and four stages of MBBs, each stage ending in a SaFEM (section 3.1).

    The stem and the first block of every stage halve the resolution: strides 4, 8, 16 and 32.

    Shapes: ``[N, in_channels, H, W]`` -> four maps ``[N, widths[i], ceil(H / stride_i), ceil(W / stride_i)]``,
    the outputs of SaFEM (of the last MBB without it).
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        in_channels: int,
        widths: list[int],
        depths: list[int],
        *,
        safem: bool = True,
        groups: int = 4,
        literal_softmax: bool = False,
    ) -> None:
        super().__init__()
        self.stem = MBB(in_channels, widths[0], stride=2)
        self.stages = nn.ModuleList()
        previous = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            blocks: list[nn.Module] = [MBB(previous, width, stride=2)]
            blocks += [MBB(width, width) for _ in range(depth - 1)]
            if safem:
                blocks.append(SaFEM(width, groups=groups, literal=literal_softmax))
            self.stages.append(nn.Sequential(*blocks))
            previous = width

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        stage: Any  # a Sequential, which a ModuleList does not say
        for stage in self.stages:
            for block in stage:  # one by one, so that in inference what a block has read is given back
                x = block(x)
            features.append(x)
        return features
