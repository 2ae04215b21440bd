"""Training: options, training loop, optimizer, resumable state and log.

``train(TrainOptions(data=["train.json"], val="val.json", out="runs/mine"))`` does the same as
``danet train --data train.json --val val.json --out runs/mine``. Importing this package does not load torch; ``train``
and ``TrainingResult`` do.
"""

import importlib
from typing import TYPE_CHECKING

from danet.training.options import AdcrOptions, DistillOptions, TrainOptions

if TYPE_CHECKING:
    from danet.training.run import TrainingResult, train

__all__ = ["AdcrOptions", "DistillOptions", "TrainOptions", "TrainingResult", "train"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("danet.training.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
