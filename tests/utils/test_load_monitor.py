import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danet.utils import load_monitor
from danet.utils.load_monitor import CPU_TIMES, OtherLoad
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

    class Ended(Exception):
        pass

    class Load:
        def share(self):
            try:
                events.append(next(shares))
            except StopIteration:
                raise Ended from None
            return events[-1]

    threads = load_monitor._Threads()

    class ShortWaits:
        def __enter__(self):
            events.append("enter")

        def __exit__(self, *_):
            events.append(f"leave with {threads.free_share:g} of the cores")

    monkeypatch.setattr(load_monitor, "OtherLoad", Load)
    monkeypatch.setattr(load_monitor, "_threads", threads)
    monkeypatch.setattr(load_monitor, "short_waits", ShortWaits)
    monkeypatch.setattr(load_monitor, "INTERVAL_S", 0)
    with pytest.raises(Ended):
        load_monitor._watch()
    quiet, busy = "leave with 1 of the cores", "leave with 0.1 of the cores"
    assert events == [0.05, 0.2, 0.5, "enter", 0.2, 0.11, 0.05, quiet, 0.0, 0.9, "enter", busy]


@pytest.fixture
def monitored(monkeypatch):
    """The thread numbers of a monitor that may change them; the monitor itself is not started."""
    threads = load_monitor._Threads()
    threads.is_adapted = True
    monkeypatch.setattr(load_monitor, "_threads", threads)
    return threads


@pytest.mark.parametrize(
    ("most", "others", "wanted"), [(2, 0.5, 1), (2, 0.15, 2), (8, 0.5, 4), (8, 0.3, 6), (3, 1.0, 1), (1, 0.6, 1)]
)
def test_threads_are_as_many_as_the_cores_that_others_leave(monitored, most, others, wanted):
    torch.set_num_threads(most)
    load_monitor.use_free_cores()
    assert torch.get_num_threads() == most
    monitored.free_share = 1 - others
    for _ in range(2):  # the second call compares with the number at the start, too
        load_monitor.use_free_cores()
        assert torch.get_num_threads() == wanted
    monitored.free_share = 1.0
    load_monitor.use_free_cores()
    assert torch.get_num_threads() == most


def test_threads_stay_as_they_are_without_a_monitor(monitored):
    monitored.is_adapted = False
    monitored.free_share = 0.5
    torch.set_num_threads(2)
    load_monitor.use_free_cores()
    assert torch.get_num_threads() == 2


BUSY_COMMAND = """
import subprocess, sys, time
from danet.utils import cli, load_monitor

def command(options):
    import torch
    before = torch.get_num_threads()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(before)]
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
