"""Chooses whether a training on the CPU uses mixed precision, by measuring training steps."""

import copy
import statistics
import time
from typing import Literal

import torch
from torch import Tensor

from danet.models import DANet
from danet.ops import info
from danet.utils import distributed

MIN_SPEEDUP = 1.2
"""Mixed precision is used if a step becomes at least this many times as fast."""

TURNS = 3
"""Timed steps of each kind, which alternate; one untimed step of each kind precedes them."""


def has_candidate() -> bool:
    """Whether mixed precision may be faster on this processor: it needs a matrix unit for bfloat16.

    Example:
        >>> has_candidate() in (True, False)
        True
    """
    return info()["matrix_unit"] != "none"


def choose_amp(model: DANet, images: Tensor) -> tuple[Literal["off", "bfloat16"], str]:
    """The value of ``TrainOptions.amp`` for a training on the CPU, and the reason.

    All processes of a training choose the same.

    Args:
        model: the network that is trained; it does not change.
        images: a batch ``[N, input_channels, H, W]`` of the size that is trained with.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> choose_amp(build_model(ModelConfig(name="danet_nano")), torch.zeros(1, 1, 64, 64))[0] in ("off", "bfloat16")
        True
    """
    speedup = measure_speedup(model, images)
    is_slow = distributed.any_process(speedup < MIN_SPEEDUP, images.device)
    reason = f"a step is {speedup:.2f} times as fast with bfloat16; {MIN_SPEEDUP:g} are needed"
    return "off" if is_slow else "bfloat16", reason


def measure_speedup(model: DANet, images: Tensor) -> float:
    """How many times as fast a training step is in mixed precision: the ratio of the medians of ``TURNS`` steps.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> measure_speedup(build_model(ModelConfig(name="danet_nano")), torch.zeros(1, 1, 64, 64)) > 0
        True
    """
    copied = copy.deepcopy(model).train()  # a step changes the statistics of batch norms
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + TURNS):
        for is_mixed, times in seconds.items():
            started = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=is_mixed):
                output = copied(images)
            loss = sum(map_.float().square().mean() for map_ in (*output.logits, *output.deltas))
            torch.autograd.backward(loss)
            copied.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[False][1:]) / statistics.median(seconds[True][1:])
