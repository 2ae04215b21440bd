import os
import subprocess
import sys

import pytest

from danet.utils.threads import available_cores, cpu_quota


def write(folder, files):
    """Writes the files that describe the control groups; returns the arguments of cpu_quota."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cgroup", folder / "membership"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"membership": "0::/\n"}, None),
        ({"membership": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, None),
        ({"membership": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # The quota of a group above counts, and the smallest one decides.
        ({"membership": "0::/a/b\n", "cgroup/a/cpu.max": "50000 100000", "cgroup/a/b/cpu.max": "max 100000"}, 0.5),
        ({"membership": "0::/a/b\n", "cgroup/a/cpu.max": "300000 100000", "cgroup/a/b/cpu.max": "200000 100000"}, 2),
        # A container sees the group of its host, but only the root of its own.
        ({"membership": "0::/docker/4711\n", "cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"membership": "0::/../../x\n", "cgroup/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "membership": "3:cpuset:/\n2:cpu,cpuacct:/docker/4711\n1:name=systemd:/\n",
                "cgroup/cpu,cpuacct/docker/4711/cpu.cfs_quota_us": "250000\n",
                "cgroup/cpu,cpuacct/docker/4711/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "membership": "1:cpu:/\n0::/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"membership": "nonsense\n\n0::/\n", "cgroup/cpu.max": "\n"}, None),
    ],
)
def test_cpu_quota(tmp_path, files, quota):
    assert cpu_quota(*write(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [("max", 4), ("800000", 4), ("300000", 3), ("150000", 1), ("50000", 1)])
def test_available_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5}, raising=False)
    arguments = write(tmp_path, {"membership": "0::/\n", "cgroup/cpu.max": f"{quota} 100000\n"})
    assert available_cores(*arguments) == cores


def test_affinity_limits_the_cores():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from danet.utils.threads import available_cores; print(available_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


SHOW = """
import os, sys
from pathlib import Path
os.sched_getaffinity = lambda process: set(range(4))
from danet.utils.threads import prepare_threads
prepare_threads(*map(Path, sys.argv[1:]))
print(os.environ.get("OMP_NUM_THREADS"))
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("quota", "given", "printed"),
    [
        ("150000", {}, ["1", "1"]),
        pytest.param("150000", {"OMP_NUM_THREADS": "2"}, ["2"], marks=pytest.mark.long),
        ("max", {}, ["None"]),
        pytest.param("400000", {}, ["None"], marks=pytest.mark.long),
    ],
)
def test_torch_uses_the_cores_of_the_quota(tmp_path, quota, given, printed):
    arguments = write(tmp_path, {"membership": "0::/\n", "cgroup/cpu.max": f"{quota} 100000\n"})
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", SHOW, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | given)
    assert done.stdout.split()[: len(printed)] == printed


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_commands_limit_active_waiting_unless_the_user_chose(given, expected):
    code = "import os; from danet.utils.threads import prepare_threads; prepare_threads(); "
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [expected]


def test_importing_danet_leaves_the_environment_unchanged():
    code = "import os; before = dict(os.environ); import danet, danet.ops, danet.utils.threads; "
    code += "assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
