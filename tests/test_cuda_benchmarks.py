"""``benchmarks.ops`` for CUDA devices and ``make gpu``: everything that can be tested without a device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cuda, ops, targets

    monkeypatch.setattr(cuda, "INSTALLED", {})
    return {"cuda": cuda, "targets": targets, "ops": ops}


def test_cases_run_on_meta_tensors(benchmarks):
    cases = set()
    with torch.device("meta"):
        for generate in benchmarks["cuda"].CASES.values():
            for case in generate():
                with torch.set_grad_enabled(case.direction != "forward"):
                    case.ours()
                assert case.bytes > 0 and case.flops > 0
                cases.add((case.name, case.direction))
    assert {(target.case, target.direction) for target in benchmarks["targets"].TARGETS} <= cases


def test_make_gpu_measures_every_operator(benchmarks):
    """dcnv3 and dcnv4 have the kernels of sdc."""
    measured = set(benchmarks["cuda"].CASES)
    assert set(benchmarks["ops"].CASES) - {"dcn"} <= measured
    commands = re.findall(r'"\$\{ops\[@\]\}" ([a-z_ ]+)', (ROOT / "benchmarks/gpu.sh").read_text())
    assert measured == {name for command in commands for name in command.split()}


def case_of(ops, **changes):
    right = torch.ones(3)
    content = {
        "operator": "lcdc",
        "name": "32x64x128x160 k3 gate float32",
        "direction": "forward",
        "ours": lambda: right,
        "baselines": {"baseline": lambda: right, "absent": None},
        "flops": 1e6,
        "bytes": 9e6,
        "check": lambda: (right, right, 0.0),
    }
    return ops.Case(**{**content, **changes})


def fixed(functions, *, repetitions):
    return {name: 1e-3 if name == "ours" else 2e-3 for name in functions}


CEILING = {"GB/s": 10.0, "GFLOP/s": 10.0}


def test_measure_records_errors(benchmarks):
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
    case = case_of(ops, baselines={"baseline": broken, "other": lambda: None})
    ops.measure(case, 30, fixed)
    assert case.times == {"ours": 1e-3, "other": 2e-3}
    assert "2.00x other   no baseline (RuntimeError: no such kernel)" in ops.line(case, CEILING)


def test_targets(benchmarks):
    ops, targets = benchmarks["ops"], benchmarks["targets"]
    case = case_of(ops)
    ops.measure(case, 30, fixed)  # 9 GB/s of 10
    figures = {(each["case"], each["pass"]): each["measured"] for each in targets.to_json([case], CEILING)}
    assert figures.pop((case.name, "forward")) == pytest.approx(0.9)
    assert set(figures.values()) == {None}
    (line,) = [line for line in targets.table([case], CEILING).splitlines() if "0.90" in line]
    assert line.startswith(f"{case.name:<34}forward") and line.endswith("must reached")
    conv = case_of(ops, operator="rep_conv", name="1x256x16x20 to 256 bfloat16", baselines={"cuDNN": lambda: None})
    ops.measure(conv, 30, fixed)  # half of cuDNN's time
    assert [line for line in targets.lines([conv], CEILING) if line.endswith("0.50  aim reached")]
    (time,) = [line for line in targets.lines([conv], CEILING) if "microseconds" in line]
    assert time.endswith("1000.00  missed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_make_gpu_without_device_fails():
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(["bash", "benchmarks/gpu.sh"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (result.returncode, result.stdout) == (2, "make gpu: torch finds no CUDA device\n")


BLOCKED = ("jsonargparse", "faster_coco_eval", "matio", "av", "tensorboard")
"""Packages that a machine with a GPU may lack."""


@pytest.mark.parametrize("module", ["ops", "detector", "hot_calls"])
def test_stages_of_make_gpu_start_without_optional_packages(module):
    program = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({BLOCKED!r})); "
        f"sys.argv = ['{module}', '--help']; runpy.run_module('benchmarks.{module}', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"benchmarks.{module}" in result.stdout


def test_network_benchmark_needs_no_image_library():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['cv2', 'jsonargparse'])); "
        "from benchmarks.detector import network_only"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
