"""The protocol of loss terms."""

from typing import Protocol

from torch import Tensor

from danet.data.loader import Batch
from danet.models import Output


class LossTerm(Protocol):
    """One or more terms of the overall loss (eq. 10), as an ``nn.Module`` with this call.

    Example:
        >>> from torch import nn
        >>> class FeatureNorm(nn.Module):
        ...     def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        ...         return {"norm": 0.01 * output.features[0].square().mean()}
        >>> term: LossTerm = FeatureNorm()
    """

    def __call__(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted terms, each a scalar; the training loss is their sum.

        Args:
            output: of the network in training mode.
            batch: the batch that the network saw, with its ground truth, on the same device.
        """
        ...
