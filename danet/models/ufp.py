"""UFP: projection of features before they are compared, without pooling."""

from torch import nn

from danet.models.blocks import MBB


class UFP(nn.Sequential):
    """Uncompressed Feature Projector: two MBBs, used in training only.

    Sections 3.1.3 and 3.2.2 of the DANet paper (https://doi.org/10.1145/3581783.3612146).

    Shapes: ``[N, channels, H, W] -> [N, out_channels, H, W]``.

    Args:
        channels: channels of the input.
        out_channels: channels of the output; by default ``channels``.
        identity: start as the identity on non-negative features, such as those of a DANet (our decision). The
            convolution branches start with scales of zero, and the norms always use mean 0 and variance 1 instead of
            batch statistics.

    Raises:
        ValueError: ``identity`` with ``out_channels`` other than ``channels``.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 4, 6, 6)
        >>> torch.equal(UFP(4, identity=True)(x), x)
        True
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
