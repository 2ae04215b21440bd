import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danet.utils import load_monitor
from danet.utils.load_monitor import CPU_TIMES, FreeCores, OtherLoad
from danet.utils.threads import available_cores

pytestmark = pytest.mark.skipif(not CPU_TIMES.is_file(), reason="only Linux counts the load in /proc/stat")


def write_cpu_times(path, busy_ticks, idle_ticks):
    """Writes a file like /proc/stat in which the CPUs 0 and 1 were busy and idle as given, and CPU 2 always busy."""
    each = f"{busy_ticks} 0 0 {idle_ticks} 0 0 0 0 0 0"
    path.write_text(f"cpu 1 2 3\ncpu0 {each}\ncpu1 {each}\ncpu2 99999 0 0 0 0 0 0 0 0 0\nintr 5\n")
    return path


@pytest.mark.parametrize(
    ("busy_ticks", "own_s", "share"),
    # Two cores, each of them observed for 100 ticks, a second with the usual 100 ticks per second.
    [(0, 0, 0), (100, 0, 1), (50, 0, 0.5), (100, 1, 0.5), (50, 1, 0), (30, 5, 0)],
)
def test_other_load_is_what_other_processes_use_of_the_given_cores(tmp_path, monkeypatch, busy_ticks, own_s, share):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "times", lambda: (0, 0, 0, 0, 0))
    load = OtherLoad([0, 1], write_cpu_times(tmp_path / "stat", 1000, 1000))
    write_cpu_times(tmp_path / "stat", 1000 + busy_ticks, 1100 - busy_ticks)
    monkeypatch.setattr(os, "times", lambda: (own_s, 0, 0, 0, 0))
    assert load.share() == pytest.approx(share)
    assert load.share() == 0  # no time has passed


IDLE_CPU_TIME = """
import contextlib, sys, time
import torch
from danet.utils.load_monitor import short_waits
torch.ones(1 << 20).exp_()  # start the threads
with short_waits() if sys.argv[1] == "short" else contextlib.nullcontext():
    torch.ones(1 << 20).exp_()  # a thread that spins already continues until its next work
    before = time.process_time()
    time.sleep(0.5)
    print(time.process_time() - before)
"""


@pytest.mark.skipif("libgomp" not in Path("/proc/self/maps").read_text(), reason="torch does not use libgomp")
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread waits for no other")
@pytest.mark.parametrize(("waits", "spins"), [("default", True), ("short", False)])
def test_short_waits_lets_waiting_threads_sleep(waits, spins):
    environment = {**os.environ, "GOMP_SPINCOUNT": "infinite"}
    command = [sys.executable, "-c", IDLE_CPU_TIME, waits]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # A thread that spins uses half a second, or less if other programs use the cores.
    assert (float(done.stdout) > 0.02) == spins


def test_monitor_enters_short_waits_only_while_others_use_the_cores(monkeypatch):
    events = []
    shares = iter([0.05, 0.2, 0.5, 0.2, 0.11, 0.05, 0.0, 0.9])
    free_before = []  # the number of free cores before each measurement

    class Ended(Exception):
        pass

    class Load:
        def share(self):
            try:
                free_before.append(free.free)
                events.append(next(shares))
            except StopIteration:
                raise Ended from None
            return events[-1]

    free = FreeCores(20)

    class ShortWaits:
        def __enter__(self):
            events.append("enter")

        def __exit__(self, *_):
            events.append(f"leave with {free.free} free cores")

    monkeypatch.setattr(load_monitor, "OtherLoad", Load)
    monkeypatch.setattr(load_monitor, "_free_cores", free)
    monkeypatch.setattr(load_monitor, "short_waits", ShortWaits)
    monkeypatch.setattr(load_monitor, "INTERVAL_S", 0)
    with pytest.raises(Ended):
        load_monitor._watch()
    left = "leave with 20 free cores"
    assert events == [0.05, 0.2, 0.5, "enter", 0.2, 0.11, 0.05, left, 0.0, 0.9, "enter", left]
    assert free_before == [20, 20, 20, 10, 16, 18, 20, 20, 2]


def test_monitor_leaves_torch_alone_until_its_import_has_finished(tmp_path):
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(0.3)\nraise KeyboardInterrupt\n")
    script = """
import contextlib, os, threading
from danet.utils import load_monitor
load_monitor.INTERVAL_S = 0.01
load_monitor.OtherLoad = lambda: type("Load", (), {"share": lambda self: 1.0})()
load_monitor.short_waits = lambda: os._exit(3)
threading.Thread(target=load_monitor._watch, daemon=True).start()
with contextlib.suppress(KeyboardInterrupt):
    import torch
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def free_cores(monkeypatch):
    """Returns a function that sets up the free cores of a process that may use `cores` cores; no monitor is started."""

    def set_up(cores: int, may_change: bool = True) -> FreeCores:
        free = FreeCores(cores)
        free.may_change = may_change
        monkeypatch.setattr(load_monitor, "_free_cores", free)
        return free

    return set_up


@pytest.mark.parametrize(
    ("cores", "threads", "shares", "expected"),
    [
        # The load is measured again and again; the number of threads after each measurement.
        (2, 2, [0.5, 0.67, 0.67, 0.0], [1, 1, 1, 2]),
        (2, 2, [0.15, 0.3, 0.05], [2, 1, 2]),
        # Eight busy programs on eight cores: fewer threads get a smaller share, but there are not fewer cores for them.
        (8, 8, [0.5, 0.67, 0.67], [4, 4, 4]),
        # Programs end: their cores are used at once. Others start while all threads are used: the number falls again.
        (8, 8, [0.5, 0.3, 0.0, 0.5], [4, 6, 8, 4]),
        # More cores than threads, as with a CPU quota: cores without load are enough.
        (64, 2, [0.5, 0.9, 0.99], [2, 2, 1]),
        (4, 4, [1.0], [1]),
        (1, 1, [0.6], [1]),
    ],
)
def test_threads_are_as_many_as_the_cores_that_others_leave(free_cores, cores, threads, shares, expected):
    free = free_cores(cores)
    torch.set_num_threads(threads)
    used = []
    for share in shares:
        free.update(share)
        load_monitor.use_free_cores()
        used.append(torch.get_num_threads())
    assert used == expected
    load_monitor.use_all_threads()
    assert torch.get_num_threads() == threads


def test_threads_stay_as_they_are_if_the_user_has_chosen_them(free_cores):
    free = free_cores(2, may_change=False)
    free.update(0.5)
    torch.set_num_threads(2)
    load_monitor.use_free_cores()
    assert torch.get_num_threads() == 2


BUSY_COMMAND = """
import os, subprocess, sys, time
from danet.utils import cli, load_monitor

def command(options):
    import torch
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        for _ in range(100):
            load_monitor.use_free_cores()
            torch.ones(1 << 20).exp_()
            if torch.get_num_threads() < before:
                break
            time.sleep(0.1)
    finally:
        for process in busy:
            process.kill()
    print(before, torch.get_num_threads())

from danet.config import ModelConfig
raise SystemExit(cli.run(command, ModelConfig, prog="test", argv=[]))
"""


@pytest.mark.skipif(available_cores() < 2, reason="one thread cannot become fewer")
@pytest.mark.parametrize("chosen", [False, True])
def test_command_uses_fewer_threads_beside_busy_programs_unless_the_user_chose_the_number(chosen):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    if chosen:
        environment["OMP_NUM_THREADS"] = "2"
    done = subprocess.run(
        [sys.executable, "-c", BUSY_COMMAND], capture_output=True, text=True, check=True, env=environment
    )
    before, after = map(int, done.stdout.split())
    assert (after < before) == (not chosen)
