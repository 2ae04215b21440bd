"""UFP: the projection in front of the contrastive and the distillation loss."""

from torch import nn

from danet.models.blocks import MBB


class UFP(nn.Sequential):
    """Uncompressed Feature Projector (section 3.1.3): two MBBs, in which no position is pooled away.

    Only training needs it; it belongs to a loss, not to the network that is deployed.

    Shapes: ``[N, channels, H, W] -> [N, out_channels, H, W]``, out_channels by default those of the input.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        out_channels = channels if out_channels is None else out_channels
        super().__init__(MBB(channels, out_channels), MBB(out_channels, out_channels))
