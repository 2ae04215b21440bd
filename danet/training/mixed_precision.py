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
from danet.utils.memory_format import channels_last

MIN_SPEEDUP = 1.2
"""Mixed precision is used if it makes a step at least this many times as fast."""

TIMED_STEPS = 3
"""Number of timed training steps without and with mixed precision. They alternate, after one warm-up step of each."""


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype for ``torch.autocast`` that ``TrainOptions.amp`` selects; None for no autocast.

    "auto" is bfloat16 on CUDA devices that have it, otherwise float16, and None on the CPU, see ``choose_amp``.

    Example:
        >>> autocast_dtype("bfloat16", torch.device("cpu")), autocast_dtype("auto", torch.device("cpu"))
        (torch.bfloat16, None)
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[amp]


def may_be_faster() -> bool:
    """Whether mixed precision may be faster on this processor: it needs instructions that multiply bfloat16 values.

    These are a matrix unit (Intel AMX), or AVX512_BF16 (AMD EPYC since Zen 4, Intel Xeon since Cooper Lake). Other
    processors convert all values to float32 and back.

    Example:
        >>> may_be_faster() in (True, False)
        True
    """
    facts = info()
    if facts["matrix_unit"] != "none":
        return True
    # Older versions of torch do not have this function.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return facts["instruction_set"] in ("AVX-512", "none") and bool(capabilities.get("avx512_bf16"))


def choose_amp(model: DANet, images: Tensor) -> tuple[Literal["off", "bfloat16"], str]:
    """The value of ``TrainOptions.amp`` for a training on the CPU, and the reason.

    All processes of a training choose the same.

    Args:
        model: the network that is trained; it does not change.
        images: a batch ``[N, network_channels, H, W]`` of the size that is trained with.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> choose_amp(build_model(ModelConfig(name="danet_nano")), torch.zeros(1, 1, 64, 64))[0] in ("off", "bfloat16")
        True
    """
    speedups = distributed.gather(torch.tensor([measure_speedup(model, images)]))
    speedup = float(speedups.min())  # of the slowest process
    reason = f"a training step is {speedup:.3f} times as fast in bfloat16 as in float32, {MIN_SPEEDUP:g} are needed"
    return ("bfloat16" if speedup >= MIN_SPEEDUP else "off"), reason


def measure_speedup(model: DANet, images: Tensor) -> float:
    """How many times as fast a training step is in mixed precision: the ratio of the medians of ``TIMED_STEPS`` steps.

    Args:
        model: the network; it does not change.
        images: a batch ``[N, network_channels, H, W]``, float32, on the CPU.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> measure_speedup(build_model(ModelConfig(name="danet_nano")), torch.zeros(1, 1, 64, 64)) > 0
        True
    """
    copied = channels_last(copy.deepcopy(model)).train()  # a copy, because a step changes the statistics of norms
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + TIMED_STEPS):
        for is_mixed, times in seconds.items():
            started = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=is_mixed):
                output = copied(images)
            loss = sum(map_.float().square().mean() for map_ in (*output.logits, *output.deltas))
            torch.autograd.backward(loss)
            copied.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[False][1:]) / statistics.median(seconds[True][1:])
