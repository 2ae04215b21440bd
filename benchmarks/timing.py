"""Times functions side by side, so that a noisy machine is equally noisy for all of them."""

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

WARM_UP = 5
"""Calls at the begin of a turn that are not timed: that many it takes until the caches, left full of other data,
hold the function's own. One of a network finds its input there too, written by the layer before."""

TURN = 10e-3
"""Seconds that the timed calls of a turn last at least."""


def track(items: Sequence, *, quiet: bool) -> Iterator:
    """Iterates with a bar on a terminal's stderr that is drawn between the items and by no thread beside them."""
    from rich.console import Console  # which an environment that measures operators alone need not have
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
    """Median seconds of a call of each function, of at least `repetitions` turns and `seconds`.

    The functions take turns. A turn is WARM_UP calls that are not timed and as many timed ones as last TURN; it counts
    once, with its mean. Of `turns` one is taken before each, such as those of `track`.
    """
    turns = iter(turns)
    calls = {}
    for name, function in functions.items():
        function()
        started = time.perf_counter()
        function()
        calls[name] = math.ceil(TURN / max(time.perf_counter() - started, 1e-6))
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < repetitions or time.perf_counter() - started < seconds:
        next(turns, None)
        for name, function in functions.items():
            for _ in range(WARM_UP):
                function()
            begin = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append((time.perf_counter() - begin) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def silent(*_: object, **__: object) -> None:
    """In the place of print where nothing is to be said."""


def ceilings() -> dict[str, float]:
    """What this machine reaches now: GB/s of a large copy (read and written), GFLOP/s of a large float32 product."""
    source = torch.ones(32 << 20)
    target = torch.empty_like(source)
    a = torch.ones(1536, 1536)
    times = alternate({"copy": lambda: target.copy_(source), "product": lambda: a @ a}, repetitions=20, seconds=0.5)
    return {"GB/s": 2 * source.nbytes / times["copy"] / 1e9, "GFLOP/s": 2 * 1536**3 / times["product"] / 1e9}


def origin() -> dict[str, str]:
    """When, and of which commit; the environment variable COMMIT says it where there is no repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        commit = ""
    return {"date": datetime.date.today().isoformat(), "commit": os.environ.get("COMMIT") or commit or "unknown"}


def header() -> dict[str, str | int]:
    """The machine and the software that were measured."""
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
