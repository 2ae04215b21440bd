"""Evaluation: matching of detections to ground truth, metrics with confidence intervals, plots and comparisons.

``evaluate(EvaluateOptions("weights.safetensors", "val.json"))`` does the same as
``danet evaluate weights.safetensors val.json``. Importing this package does not load torch; its names do.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet.evaluation.evaluate_options import EvaluateOptions
    from danet.evaluation.evaluator import evaluate

__all__ = ["EvaluateOptions", "evaluate"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "evaluate_options" if name == "EvaluateOptions" else "evaluator"
    return getattr(importlib.import_module(f"danet.evaluation.{module}"), name)
