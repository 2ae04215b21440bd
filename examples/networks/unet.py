"""A U-Net (https://arxiv.org/abs/1505.04597) with SDC at its lowest level, where features see the most context."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.ops import SDC


def double_conv(channels: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """[N, 1, H, W] -> [N, classes, H, W]; H and W are multiples of 4."""

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        self.top, self.middle = double_conv(1, width), double_conv(width, 2 * width)
        self.bottom = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), SDC(4 * width), nn.ReLU())
        self.up_middle, self.up_top = double_conv(6 * width, 2 * width), double_conv(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        top = self.top(images)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, F.interpolate(bottom, scale_factor=2.0)], 1))
        return self.head(self.up_top(torch.cat([top, F.interpolate(middle, scale_factor=2.0)], 1)))


def build() -> tuple[nn.Module, Tensor]:
    """A small network, and an example input."""
    return UNet(), torch.randn(2, 1, 32, 40)
