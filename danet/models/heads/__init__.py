"""Detection heads. A new head needs a module in this folder, a row of ``HEADS`` and its name in ``danet.config``."""

from danet.models.heads.anchor_based import AnchorHead
from danet.models.heads.anchor_free import AnchorFreeHead
from danet.models.heads.head import Head, Output

__all__ = ["HEADS", "AnchorFreeHead", "AnchorHead", "Head", "Output"]

HEADS: dict[str, type[Head]] = {"default": AnchorFreeHead, "paper": AnchorHead}
"""Head classes by their names in ``ModelConfig.head``."""
