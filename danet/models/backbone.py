"""The four-stage multi-branch backbone."""

from typing import Any

from torch import Tensor, nn

from danet.models.blocks import MBB
from danet.models.safem import SaFEM


class Backbone(nn.Module):
    """A stem and four stages of MBBs with a SaFEM at the end of each stage.

    Section 3.1 of the DANet paper (https://doi.org/10.1145/3581783.3612146). The stem and the first block of every
    stage halve the resolution, so that the stages have strides 4, 8, 16 and 32.

    Shapes: ``[N, in_channels, H, W]`` -> four maps ``[N, widths[i], ceil(H / stride_i), ceil(W / stride_i)]``, the
    outputs of the stages.

    Args:
        in_channels: channels of the images.
        widths: channels of the four stages.
        depths: MBBs of the four stages.
        safem: whether the stages have SaFEMs.
        groups: groups of the SDCs.
        literal_softmax: see ``SaFEM``.

    Example:
        >>> import torch
        >>> backbone = Backbone(1, widths=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        >>> [list(feature.shape) for feature in backbone(torch.zeros(2, 1, 64, 64))]
        [[2, 8, 16, 16], [2, 8, 8, 8], [2, 16, 4, 4], [2, 16, 2, 2]]
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
        stage: Any  # a Sequential, which the type of a ModuleList does not say
        for stage in self.stages:
            for block in stage:  # not stage(x), which would keep its input in memory until the end of the stage
                x = block(x)
            features.append(x)
        return features
