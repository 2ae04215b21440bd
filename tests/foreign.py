"""A teacher network that is not a DANet."""

from torch import nn


class Foreign(nn.Module):
    """Four strided convolutions with normalization and dropout; features have both signs, widths are free."""

    def __init__(self, widths=(6, 10, 12, 20), strides=(4, 2, 2, 2)) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 5, stride=s, padding=2), nn.BatchNorm2d(o), nn.Dropout(0.5))
            for i, o, s in zip(inputs, widths, strides, strict=True)
        )

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return tuple(maps)
