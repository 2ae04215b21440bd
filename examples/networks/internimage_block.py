"""A block of InternImage (https://arxiv.org/abs/2211.05778) with the DCNv3 module of danet.ops."""

import torch
from torch import Tensor, nn

from danet.ops import DCNv3


class InternImageBlock(nn.Module):
    """[N, H, W, C] -> [N, H, W, C]: deformable convolution and MLP, each with norm and shortcut."""

    def __init__(self, channels: int, group: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dcn = DCNv3(channels, group=group)
        hidden = mlp_ratio * channels
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dcn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def build() -> tuple[nn.Module, Tensor]:
    """A small network of these blocks, and an example input."""
    return nn.Sequential(InternImageBlock(32, group=4), InternImageBlock(32, group=4)), torch.randn(2, 14, 12, 32)
