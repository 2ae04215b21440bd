import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danet.utils import load_monitor
from danet.utils.load_monitor import CPU_TIMES, OtherLoad

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

    class ShortWaits:
        def __enter__(self):
            events.append("enter")

        def __exit__(self, *_):
            events.append("leave")

    monkeypatch.setattr(load_monitor, "OtherLoad", Load)
    monkeypatch.setattr(load_monitor, "short_waits", ShortWaits)
    monkeypatch.setattr(load_monitor, "INTERVAL_S", 0)
    with pytest.raises(Ended):
        load_monitor._watch()
    assert events == [0.05, 0.2, 0.5, "enter", 0.2, 0.11, 0.05, "leave", 0.0, 0.9, "enter", "leave"]
