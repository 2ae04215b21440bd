"""What benchmarks.ops does on a CUDA device, as far as it can be told without one; and that `make gpu` says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cuda, goals, ops

    monkeypatch.setattr(cuda, "INSTALLED", {})
    return {"cuda": cuda, "goals": goals, "ops": ops}


def test_every_case_runs_on_tensors_without_data(benchmarks):
    cases = set()
    with torch.device("meta"):
        for generate in benchmarks["cuda"].CASES.values():
            for case in generate():
                with torch.set_grad_enabled(case.direction != "forward"):
                    case.ours()
                assert case.bytes > 0 and case.flops > 0
                cases.add((case.name, case.direction))
    assert {(goal.case, goal.direction) for goal in benchmarks["goals"].GOALS} <= cases


def case_of(ops, **changes):
    right = torch.ones(3)
    content = {
        "operator": "lcdc",
        "name": "32x64x128x160 k3 gate float32",
        "direction": "forward",
        "ours": lambda: right,
        "rivals": {"rival": lambda: right, "absent": None},
        "flops": 1e6,
        "bytes": 9e6,
        "check": lambda: (right, right, 0.0),
    }
    return ops.Case(**{**content, **changes})


def fixed(functions, *, repetitions):
    return {name: 1e-3 if name == "ours" else 2e-3 for name in functions}


CEILING = {"GB/s": 10.0, "GFLOP/s": 10.0}


def test_a_wrong_result_and_a_broken_rival_are_noted(benchmarks):
    ops = benchmarks["ops"]

    def broken():
        raise RuntimeError("no such kernel\nbacktrace")

    case = case_of(ops, check=lambda: (torch.ones(3), torch.zeros(3), 0.5))
    ops.measure(case, 30, fixed)
    assert case.times == {} and "FAILED: ValueError: error 1.00e+00 is above 5e-01" in ops.line(case, CEILING)
    case = case_of(ops, ours=broken, check=broken)
    ops.measure(case, 30, fixed)
    assert "FAILED: RuntimeError: no such kernel" in ops.line(case, CEILING)
    assert ops.row(case)["errors"]["ours"] and ops.geometric_means([case]) == {}
    case = case_of(ops, rivals={"rival": broken, "other": lambda: None})
    ops.measure(case, 30, fixed)
    assert case.times == {"ours": 1e-3, "other": 2e-3}
    assert "2.00x other   no rival (RuntimeError: no such kernel)" in ops.line(case, CEILING)


def test_goals(benchmarks):
    ops, goals = benchmarks["ops"], benchmarks["goals"]
    case = case_of(ops)
    ops.measure(case, 30, fixed)  # 9 GB/s of 10
    figures = {(each["case"], each["pass"]): each["measured"] for each in goals.figures([case], CEILING)}
    assert figures.pop((case.name, "forward")) == pytest.approx(0.9)
    assert set(figures.values()) == {None}
    (line,) = [line for line in goals.table([case], CEILING).splitlines() if "0.90" in line]
    assert line.startswith(f"{case.name:<34}forward") and line.endswith("must reached")
    conv = case_of(ops, operator="rep_conv", name="1x256x16x20 to 256 bfloat16", rivals={"cuDNN": lambda: None})
    ops.measure(conv, 30, fixed)  # half of cuDNN's time
    assert [line for line in goals.lines([conv], CEILING) if line.endswith("0.50  aim reached")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_make_gpu_without_a_device_says_so():
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(["bash", "benchmarks/gpu.sh"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (result.returncode, result.stdout) == (2, "make gpu: torch finds no CUDA device\n")
