"""Commands answer before they load torch: their help, and errors of options and paths, appear without delay."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from danet.__main__ import COMMANDS

HEAVY = ("torch", "cv2", "numpy", "rich", "matplotlib")
LIMIT_CPU_S = 1.5
"""Generous: the commands need 0.3 s, and needed 3 to 9 s when they loaded torch. It is time of the processor, not of
the clock, so that a busy machine does not matter."""


def run(words: list[str]) -> tuple[str, str, float]:
    """Runs ``danet`` in a new process; returns the heavy packages that it loaded, its stderr and its CPU seconds."""
    script = f"""
import atexit, sys
from danet.__main__ import main
atexit.register(lambda: print("loaded:", *(m for m in {HEAVY} if m in sys.modules)))
sys.exit(main({words!r}))
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=os.sep)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.rpartition("loaded:")[2].strip(), done.stderr, seconds


@pytest.mark.parametrize("words", [[], ["version"], *([name, "--help"] for name in COMMANDS), ["train", "--help-all"]])
def test_help_loads_no_heavy_package(words):
    loaded, errors, seconds = run(words)
    assert (loaded, errors) == ("", "") and seconds < LIMIT_CPU_S


@pytest.mark.parametrize("name", ["inspect", "split", "synthesize", "import coco", "import svanstrom"])
def test_help_of_data_commands_does_not_load_torch(name):
    loaded, errors, _ = run(["data", *name.split(), "--help"])
    assert "torch" not in loaded and "matplotlib" not in loaded and errors == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detect", "missing.mp4"], "danet detect: error: missing.mp4: no such file or folder\n"),
        (["track", "missing.mp4"], "danet track: error: missing.mp4: no such file or folder\n"),
        (["detect", "/", "--weights", "missing.onnx"], "danet detect: error: missing.onnx: no such file or folder\n"),
        (["train", "missing.json"], "danet train: error: missing.json: no such file or folder\n"),
        (["train", "/", "--distill.small", "a.onnx"], "danet train: error: a.onnx: no such file or folder\n"),
        (["evaluate", "local_contrast", "no.json"], "danet evaluate: error: no.json: no such file or folder\n"),
        (["ablate", "no.json"], "danet ablate: error: no.json: no such file or folder\n"),
        (["export", "no.safetensors"], "danet export: error: no.safetensors: no such file or folder\n"),
        (["report", "nowhere"], "danet report: error: nowhere: no such file or folder\n"),
        (["detect", "--imgsz", "640"], "danet detect: error: unknown option --imgsz; did you mean --input_size?\n"),
        (["train", "--epochs", "x"], "danet train: error: --epochs: expected int, got 'x'\n"),
    ],
)  # fmt: skip
def test_errors_of_options_and_paths_load_no_heavy_package(words, message):
    assert run(words)[:2] == ("", message)


def test_missing_file_is_reported_at_once():
    assert min(run(["detect", "missing.mp4"])[2] for _ in range(2)) < LIMIT_CPU_S


def test_importing_ops_does_not_load_the_compiler():
    """``torch._dynamo`` takes longer to import than torch itself."""
    script = "import sys, torch; before = set(sys.modules); import danet.ops; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    added = done.stdout.split()
    assert "danet.ops.sdc" in added
    assert [name for name in added if name.startswith(("torch._dynamo", "torch._inductor", "sympy"))] == []


def test_constant_of_rep_conv_is_marked_as_torch_marks_it():
    """`rep_conv` marks it without torch.compiler, which would import the compiler."""
    from danet.ops.rep_conv import _allows_tf32

    marked = torch.compiler.assume_constant_result(lambda: False)
    assert vars(marked) == vars(_allows_tf32) and vars(marked)
