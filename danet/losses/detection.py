"""Detection loss (eq. 10): classification and box regression, as the network's head defines them."""

from torch import Tensor, nn

from danet.config import Assignment
from danet.data.loader import Batch
from danet.models import DANet, Output
from danet.models.heads.assignment import Targets


class DetectionLoss(nn.Module):
    """The terms ``cls`` and ``reg`` of the overall loss, see ``danet.models.heads``.

    Args:
        model: the network to train.
        assignment: label assignment; only the default head has a choice.

    Example:
        >>> import torch
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> model = build_model(ModelConfig(name="danet_nano"))
        >>> box, label, ignore = torch.tensor([[8.0, 8, 20, 18]]), torch.tensor([0]), torch.tensor([False])
        >>> batch = Batch(torch.zeros(1, 1, 64, 64), [box], [label], [ignore])
        >>> sorted(DetectionLoss(model)(model(batch.images), batch))
        ['cls', 'reg']
    """

    def __init__(self, model: DANet, assignment: Assignment = "centre") -> None:
        super().__init__()
        self.head = model.head
        self.assignment: Assignment = assignment

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms for a batch, see ``danet.losses.LossTerm``."""
        return self.head.loss(output, Targets(batch.boxes, batch.labels, batch.ignore), self.assignment)
