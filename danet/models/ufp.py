"""UFP: features are compared after a projection that keeps their place and number."""

from torch import nn

from danet.models.blocks import MBB


class UFP(nn.Sequential):
    """Uncompressed Feature Projector (sections 3.1.3 and 3.2.2): two MBBs. Only training needs it.

    With ``identity=True`` it starts as the identity on features that are not negative, which those of a DANet are (our
    decision): the scales of the convolution branches start at zero, and the norms never use the statistics of the
    batch, but those they start with, mean 0 and variance 1.

    Shapes: ``[N, channels, H, W] -> [N, out_channels, H, W]``; ``out_channels`` is ``channels`` by default.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, identity: bool = False) -> None:
        out_channels = out_channels or channels
        if identity and out_channels != channels:
            raise ValueError(f"UFP: an identity needs out_channels = channels = {channels}, got {out_channels}")
        blocks = MBB(channels, out_channels), MBB(out_channels, out_channels)
        super().__init__(*blocks)
        self.identity = identity
        if identity:
            for block in blocks:
                nn.init.zeros_(block.norm3x3.weight)
                nn.init.zeros_(block.norm1x1.weight)
                for norm in block.modules():
                    if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
                        norm.running_var.fill_(1.0 - norm.eps)
            self.train()

    def train(self, mode: bool = True) -> "UFP":
        super().train(mode)
        if self.identity:
            for norm in self.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eval()
        return self
