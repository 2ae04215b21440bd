"""Times functions in alternation, so that noise of the machine affects all of them equally."""

import datetime
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from danet.ops import info

WARM_UP_CALLS = 5
"""Untimed calls at the beginning of a round. They load the function's own data into the caches, as it is in a network,
where the previous layer has just written the input."""

MIN_ROUND_S = 10e-3
"""Minimum duration in seconds of the timed calls of one round."""


def track(items: Sequence, *, quiet: bool) -> Iterator:
    """Iterates with a progress bar on stderr. No thread draws it: a refresh in the background would disturb the
    timing."""
    from rich.console import Console  # imported here: measuring operators alone needs only torch
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("measuring", total=len(items))
        for item in items:
            bar.refresh()
            yield item
            bar.advance(task)


def alternate(
    functions: dict[str, Callable[[], object]],
    *,
    repetitions: int = 30,
    seconds: float = 1.0,
    turns: Iterable = (),
) -> dict[str, float]:
    """Median seconds per call of each function.

    The functions alternate in rounds. A round of a function is WARM_UP_CALLS untimed calls followed by as many timed
    calls as last MIN_ROUND_S; their mean is one measurement.

    Args:
        functions: by name.
        repetitions, seconds: minimum number of rounds and minimum total duration.
        turns: an iterable from which one item is taken before each round, such as ``track``.
    """
    turns = iter(turns)
    calls = {}
    for name, function in functions.items():
        function()
        started = time.perf_counter()
        function()
        calls[name] = math.ceil(MIN_ROUND_S / max(time.perf_counter() - started, 1e-6))
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < repetitions or time.perf_counter() - started < seconds:
        next(turns, None)
        for name, function in functions.items():
            for _ in range(WARM_UP_CALLS):
                function()
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append((time.perf_counter() - begin) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def silent(*_: object, **__: object) -> None:
    """Replaces ``print`` with ``--quiet``."""


def ceilings() -> dict[str, float]:
    """Speed of this machine now: GB/s of a large copy (bytes read and written), GFLOP/s of a large float32 product."""
    source = torch.ones(32 << 20)
    target = torch.empty_like(source)
    a = torch.ones(1536, 1536)
    times = alternate({"copy": lambda: target.copy_(source), "product": lambda: a @ a}, repetitions=20, seconds=0.5)
    return {"GB/s": 2 * source.nbytes / times["copy"] / 1e9, "GFLOP/s": 2 * 1536**3 / times["product"] / 1e9}


def origin() -> dict[str, str]:
    """Date and commit of the measurement. Outside a git repository the environment variable COMMIT names the commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        commit = ""
    return {"date": datetime.date.today().isoformat(), "commit": os.environ.get("COMMIT") or commit or "unknown"}


def header() -> dict[str, str | int]:
    """Description of the machine and of the software versions."""
    facts = info()
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "instruction_set": facts["instruction_set"],
        "torch": facts["torch"],
        "python": facts["python"],
        "compiler": compiler or "unknown",
        **origin(),
    }
