"""The benchmarks run, check their results, and write what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[1]


def run(module, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)


def test_operators(tmp_path):
    figures, chart = tmp_path / "ops.json", tmp_path / "ops.png"
    result = run("ops", "softmax_gate", "--json", figures, "--plot", chart)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("softmax_gate")]
    cases = json.loads(figures.read_text())["cases"]
    assert len(lines) == len(cases) == 6
    assert all(case["seconds"]["ours"] > 0 for case in cases)
    assert chart.stat().st_size > 1000


def test_training_step(tmp_path):
    result = run("step", "--model", "danet_nano", "--batch", 1, "--size", 64, 64, "--json", tmp_path / "step.json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "step.json").read_text())["seconds"]["compiled"] > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sdx",), "invalid choice: 'sdx'"),
        (("sdc", "--json", "/no/such/folder/x.json"), "/no/such/folder/x.json: no such folder"),
        (("sdc", "--rival", "dcnv5=x", "--device", "cuda"), "--rival dcnv5: must be one of dcnv3, dcnv4"),
        (("sdc", "--rival", "dcnv4=x"), "--rival: these need --device cuda"),
        (("sdc", "--rival", "dcnv4=no_such", "--device", "cuda"), "--rival dcnv4=no_such: No module named 'no_such'"),
        (("sdc", "--repetitions", "3"), "--repetitions must be at least 30"),
    ],
)
def test_bad_options(arguments, text):
    result = run("ops", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr
