"""Training: options, training loop, optimizer, resumable state and log.

``train(TrainOptions(data=["train.json"], val="val.json", out="runs/mine"))`` does the same as
``danet train --data train.json --val val.json --out runs/mine``.
"""

from danet.training.options import AdcrOptions, DistillOptions, TrainOptions
from danet.training.run import TrainingResult, train

__all__ = ["AdcrOptions", "DistillOptions", "TrainOptions", "TrainingResult", "train"]
