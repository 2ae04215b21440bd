"""Training: options, the loop, the optimizer, the state that resumes a run, and the log.

>>> from danet.training import TrainOptions, train
>>> result = train(TrainOptions(data=["train.json"], val="val.json", out="runs/mine"))  # doctest: +SKIP
"""

from danet.training.options import AdcrOptions, DistillOptions, TrainOptions
from danet.training.run import TrainingResult, train

__all__ = ["AdcrOptions", "DistillOptions", "TrainOptions", "TrainingResult", "train"]
