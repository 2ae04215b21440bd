"""How many CPU cores a process may use, and the threads of a command.

Importing this module does not load torch, because torch reads OMP_NUM_THREADS when it is loaded.
"""

import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which Linux shows the control groups (cgroups)."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""File that names the control groups of this process."""


def available_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """CPU cores that this process may use at the same time, at least 1.

    This is the smaller of the cores of its CPU affinity (``taskset``, Slurm) and the CPU quota of its control group
    (``docker run --cpus``, Kubernetes). The quota is rounded down: with 1.5 cores, two threads would often wait for
    each other.

    Example:
        >>> 1 <= available_cores() <= os.cpu_count()
        True
    """
    quota = cpu_quota(cgroups, membership)
    return affinity_cores() if quota is None else max(1, min(affinity_cores(), int(quota)))


def affinity_cores() -> int:
    """CPU cores on which this process may run, by its CPU affinity; all cores where the system has none.

    Example:
        >>> affinity_cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The CPU quota of this process, in cores; None without one.

    This is the smallest quota of its control group and of all groups above it.
    Reads version 2 of control groups (``cpu.max``) and version 1 (``cpu.cfs_quota_us``).

    Example:
        >>> cpu_quota(getfixture("tmp_path")) is None
        True
    """
    quotas = []
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            quotas += [_quota_v2(folder) for folder in _with_parents(cgroups, group)]
        elif "cpu" in controllers.split(","):
            for name in {"cpu", controllers}:
                quotas += [_quota_v1(folder) for folder in _with_parents(cgroups / name, group)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _with_parents(root: Path, group: str) -> list[Path]:
    """The folders of a group and of all groups above it. In a container often only the root exists."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """Time per period; None if there is no limit, which is written as "max" or -1."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


SPIN_COUNT = 10_000
"""How many times a waiting OpenMP thread checks for new work before it sleeps: a few tenths of a millisecond.

With 1000, a network alone on the machine is a quarter slower; with 10,000 it is as fast as with the default."""


def prepare_threads(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> bool:
    """Sets environment variables so that the OpenMP threads of torch fit a CPU quota, and cores that others use too.

    - OMP_NUM_THREADS becomes the number of cores of the CPU quota, if that is smaller. torch and its libraries respect
      the number of cores and the CPU affinity, but not the quota of a container.
    - GOMP_SPINCOUNT becomes ``SPIN_COUNT``. By default a thread of libgomp that waits for the others spins for
      milliseconds. If another process, or the thread that the others wait for, needs that core, the command becomes
      many times slower (`python -m benchmarks.busy` measures it).

    Variables that the user has set stay as they are; so does GOMP_SPINCOUNT if OMP_WAIT_POLICY is set. This function
    has no effect if torch is loaded already. Only commands may call it, because it changes the environment of the
    process.

    Returns:
        Whether GOMP_SPINCOUNT was set: ``danet.utils.load_monitor`` may then shorten the waits further.
    """
    if "torch" in sys.modules:
        return False
    cores = available_cores(cgroups, membership)
    if cores < affinity_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    return True
