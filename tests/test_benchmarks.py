"""The benchmark programs: they run, check results, write JSON files and charts, and reject wrong options."""

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


def test_ops_writes_json_and_plot(tmp_path):
    figures, chart = tmp_path / "ops.json", tmp_path / "ops.png"
    result = run("ops", "softmax_gate", "--json", figures, "--plot", chart)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("softmax_gate")]
    cases = json.loads(figures.read_text())["cases"]
    assert len(lines) == len(cases) == 6
    assert all(case["seconds"]["ours"] > 0 for case in cases)
    assert chart.stat().st_size > 1000


def test_step_writes_json(tmp_path):
    small = ("--model", "danet_nano", "--batch", 1, "--size", 64, 64, "--quiet")
    result = run("step", *small, "--json", tmp_path / "step.json")
    assert result.returncode == 0 and result.stdout == result.stderr == "", result.stderr
    assert json.loads((tmp_path / "step.json").read_text())["seconds"]["compiled"] > 0


def test_distill_writes_json(tmp_path):
    arguments = ("--model", "danet_nano", "--teachers", "teacher_small", "danet_nano", "danet_nano", "--size", 64, 64)
    result = run("distill", *arguments, "--steps", 1, "--json", tmp_path / "distill.json")
    assert result.returncode == 0, result.stderr
    seconds = json.loads((tmp_path / "distill.json").read_text())["seconds"]
    assert len(seconds) == 5 and all(value > 0 for values in seconds.values() for value in values)
    assert "each image one scale" in result.stdout


def test_tiles_and_long_run_write_json(tmp_path):
    tiles = ("--sizes", "96x128", "--tile", 64, "--every", 2, "--targets", 1, "--frames", 4)
    result = run("tiles", *tiles, "--json", tmp_path / "tiles.json")
    assert result.returncode == 0, result.stderr
    (case,) = json.loads((tmp_path / "tiles.json").read_text())["cases"]
    assert case["tiles"] == 6 and case["frames_per_s"] > 0
    result = run("long_run", "--frames", 1000, "--command_frames", 60, "--json", tmp_path / "long.json")
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "long.json").read_text())
    assert content["results"]["frames"] == 1000 and content["command"]["frames"] == 60


def test_quiet_prints_nothing(tmp_path):
    commands = (
        ("ops", "softmax_gate"),
        ("distill", "--model", "danet_nano", "--size", 64, 64, "--steps", 1),
        ("detector", "--models", "danet_nano", "--sizes", "64x96", "--calls", 1, "--frames", 2, "--baselines"),
    )
    for module, *words in commands:
        figures = tmp_path / f"{module}.json"
        result = run(module, *words, "--json", figures, "--quiet")
        assert result.returncode == 0 and result.stdout == "", result.stderr
        assert json.loads(figures.read_text())["machine"]["threads"] > 0


def test_detector_writes_json_and_plot(tmp_path):
    figures, chart = tmp_path / "detector.json", tmp_path / "detector.png"
    options = ("--models", "danet_nano", "--sizes", "64x96", "--calls", 5, "--frames", 20, "--baselines", "onnxruntime")
    result = run("detector", *options, "--layers", "--json", figures, "--plot", chart)
    assert result.returncode == 0, result.stderr
    (case,) = json.loads(figures.read_text())["cases"]
    assert set(case["milliseconds"]) == {"deployed", "eager", "onnxruntime"}
    assert all(0 < each["p50"] <= each["p95"] <= each["p99"] for each in case["milliseconds"].values())
    assert case["resident_MB"] > 0
    assert min(case["end_to_end"].values()) > 0
    assert sum(row["MFLOP"] for row in case["layers"]) == pytest.approx(1e3 * case["GFLOP"], rel=0.05)
    assert chart.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sizes", "12"), "'12' must be HEIGHTxWIDTH, at least 32x32"),
        (("--json", "/no/such/folder/x.json"), "/no/such/folder/x.json: no such folder"),
        (("--calls", "0"), "--threads, --calls and --batch must be at least 1"),
        (("--models", "yolo"), "invalid choice: 'yolo'"),
    ],
)
def test_detector_rejects_wrong_options(arguments, text):
    result = run("detector", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sdx",), "invalid choice: 'sdx' with --device cpu (choose from sdc, dcn, "),
        (("hot",), "invalid choice: 'hot' with --device cpu"),
        (("dcn", "--device", "cuda"), "invalid choice: 'dcn' with --device cuda (choose from hot, sdc, "),
        (("sdc", "--json", "/no/such/folder/x.json"), "/no/such/folder/x.json: no such folder"),
        (("sdc", "--baseline", "dcnv5=x", "--device", "cuda"), "--baseline dcnv5: must be one of dcnv3, dcnv4"),
        (("sdc", "--baseline", "dcnv4=x"), "--baseline needs --device cuda"),
        (
            ("sdc", "--baseline", "dcnv4=no_such", "--device", "cuda"),
            "--baseline dcnv4=no_such: No module named 'no_such'",
        ),
        (("sdc", "--repetitions", "3"), "--repetitions must be at least 30"),
    ],
)
def test_ops_rejects_wrong_options(arguments, text):
    result = run("ops", *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr
