"""Shortens the waits of OpenMP threads, and reduces their number, while other programs use the cores. Linux only."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from danet.utils.threads import affinity_cores

CPU_TIMES = Path("/proc/stat")
"""File in which Linux reports the busy and idle time of each CPU."""
INTERVAL_S = 1.0
"""Time between two measurements of the load."""
BUSY_SHARE = 0.25
"""Waits become short if other programs use at least this fraction of the time of this process's cores."""
QUIET_SHARE = 0.1
"""Waits become normal again, and all threads work, if other programs use less than this fraction."""
PARALLEL_ELEMENTS = 1 << 20
"""Number of elements of a tensor that is large enough for torch to use all of its threads."""


class OtherLoad:
    """Measures how much of some CPU cores other processes use.

    Args:
        cores: numbers of the cores; by default those that this process may use.
        cpu_times: for tests, another file than /proc/stat.

    Example:
        >>> load = OtherLoad()
        >>> 0 <= load.share() <= 1
        True
    """

    def __init__(self, cores: Iterable[int] | None = None, cpu_times: Path = CPU_TIMES) -> None:
        self._cores = {f"cpu{core}" for core in (os.sched_getaffinity(0) if cores is None else cores)}
        self._cpu_times = cpu_times
        self._last = self._read()

    def share(self) -> float:
        """The fraction of the cores' time that other processes have used since the last call, from 0 to 1."""
        last, self._last = self._last, self._read()
        elapsed, used, own = (now - before for now, before in zip(self._last, last, strict=True))
        return min(max((used - own) / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Three sums in seconds: all time of the cores, their busy time, and the CPU time of this process.

        The CPU time of this process includes its ended children.
        """
        ticks_per_second = os.sysconf("SC_CLK_TCK")
        total = used = 0.0
        for line in self._cpu_times.read_text().splitlines():
            name, *fields = line.split()
            if name in self._cores:
                ticks = [int(value) for value in fields[:8]]  # user nice system idle iowait irq softirq steal
                total += sum(ticks) / ticks_per_second
                used += (sum(ticks) - ticks[3] - ticks[4]) / ticks_per_second
        return total, used, sum(os.times()[:4])


@contextmanager
def short_waits() -> Iterator[None]:
    """Context manager: inside, the waiting OpenMP threads of torch sleep almost at once instead of spinning.

    While libgomp manages more threads than there are cores, a waiting thread spins only a hundred times before it
    sleeps, whatever the value of GOMP_SPINCOUNT. This function therefore starts a second pool of OpenMP threads from a
    Python thread that does nothing else. The second pool sleeps. With another OpenMP library it has no effect.

    Example:
        >>> import torch
        >>> with short_waits():
        ...     torch.ones(2) + 1
        tensor([2., 2.])
    """
    import torch

    ends = threading.Event()
    started = threading.Event()

    def run() -> None:
        try:
            torch.ones(PARALLEL_ELEMENTS).exp_()
        finally:
            started.set()
        ends.wait()

    thread = threading.Thread(target=run, name="danet second OpenMP pool", daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        ends.set()
        thread.join()


class FreeCores:
    """How many of torch's threads to use beside other programs: as many as the cores that these leave.

    Args:
        cores: number of cores that this process may use.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.may_change = False
        """Whether ``use_free_cores`` may change the number of threads."""
        self.free = cores
        """Number of cores that other programs leave."""
        self.initial = 0
        """Number of torch's threads before the first change; 0 if there was none."""

    def update(self, share: float) -> None:
        """Sets ``free`` from the fraction of the cores' time that other programs use.

        While this process uses fewer threads, the share of the others grows even if no program was started. Therefore
        ``free`` can fall only while all threads are used.
        """
        free = round(self.cores * (1 - share))
        uses_all = self.initial == 0 or self.free >= self.initial
        self.free = free if uses_all else max(self.free, free)

    def threads(self, now: int) -> int:
        """The number of threads to use, if torch uses ``now`` threads."""
        self.initial = self.initial or now
        return min(self.initial, max(1, self.free))


_free_cores = FreeCores(affinity_cores())


def use_free_cores() -> None:
    """Sets the number of torch's threads to the number of cores that other programs leave to this process.

    All threads of an operator wait for the slowest one, which shares its core with another program. Fewer threads
    therefore compute faster. The thread that computes calls this function between two steps. It has no effect unless
    ``start_load_monitor(adapt_threads=True)`` was called and others use the cores.

    Example:
        >>> use_free_cores()
    """
    _set_threads(_free_cores.threads)


def use_all_threads() -> None:
    """Undoes ``use_free_cores``, at the end of a computation that has called it."""
    _set_threads(lambda now: _free_cores.initial or now)


def _set_threads(number: Callable[[int], int]) -> None:
    if not _free_cores.may_change:
        return
    import torch

    now = torch.get_num_threads()
    if (wanted := number(now)) != now:
        torch.set_num_threads(wanted)


def start_load_monitor(*, adapt_threads: bool = False) -> None:
    """Starts a thread that enters ``short_waits`` while other programs use the cores of this process.

    Only commands may call it, and only if ``prepare_threads`` has set GOMP_SPINCOUNT: otherwise the user has chosen how
    threads wait. It does nothing before torch is loaded, nor where /proc/stat is missing. Data loader processes count
    as other programs, because they compete for the same cores.

    Args:
        adapt_threads: whether ``use_free_cores`` may change the number of threads. False if the user has chosen it.
    """
    if CPU_TIMES.is_file():
        _free_cores.may_change = adapt_threads
        threading.Thread(target=_watch, name="danet load monitor", daemon=True).start()


def _is_torch_loaded() -> bool:
    """Whether the import of torch has finished: Ctrl-C may end it halfway, and no other thread may then use torch."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _watch() -> None:
    pause = threading.Event()
    load = OtherLoad()
    while True:
        pause.wait(INTERVAL_S)
        share = load.share()
        if share < BUSY_SHARE or not _is_torch_loaded():
            continue
        with short_waits():
            try:
                while share >= QUIET_SHARE:
                    _free_cores.update(share)
                    pause.wait(INTERVAL_S)
                    share = load.share()
            finally:
                _free_cores.update(0)
