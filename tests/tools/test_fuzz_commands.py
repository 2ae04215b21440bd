import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_commands
import pytest
from fuzz_inputs import Kind

from danet.utils.guard import BUG_REPORT

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, ROOT / "tools/fuzz_commands.py"]


def run(*words):
    command = [*TOOL, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3000, cwd=ROOT)


@pytest.fixture
def case(tmp_path):
    """The folder of a command that has printed nothing and written two complete files."""
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "work/a.json").write_text("{}")
    (tmp_path / "out/b.json").write_text("{}")
    (tmp_path / "out/c.csv").write_text("x,y\n1,2\n")
    (tmp_path / "stdout").touch()
    (tmp_path / "stderr").touch()
    kind = Kind("COCO json", "coco", "a.json", [], ())
    files = fuzz_commands._snapshot(tmp_path, in_place=False)
    return fuzz_commands.Case(0, kind, tmp_path, [], files, 0.0)


def test_judge_accepts_a_good_command(case):
    assert fuzz_commands.judge(case, 0, 10**8) == ([], "")
    (case.folder / "stderr").write_text("danet detect: error: a.json: not valid JSON\n")
    assert fuzz_commands.judge(case, 2, 10**8)[0] == []


@pytest.mark.parametrize(
    ("files", "code", "problem"),
    [
        ({"stderr": "Traceback (most recent call last):\n"}, 1, "traceback"),
        ({"stdout": "Traceback (most recent call last):\n"}, 0, "traceback"),
        ({"stderr": f"danet detect: error: a; {BUG_REPORT}, please report it\n"}, 1, "unexpected"),
        ({}, fuzz_commands.BUG_EXIT_CODE, "unexpected"),
        ({}, -11, "signal: SIGSEGV"),
        ({}, -24, "hang"),
        ({"out/b.json": "{"}, 0, "unreadable output: b.json"),
        ({"out/c.csv": "x,y\n1,"}, 0, ""),  # a cut line that still has its commas
        ({"out/c.csv": "x,y\n1"}, 0, "unreadable output: c.csv"),
        ({"out/d.png": "x"}, 0, "unreadable output: d.png"),
        ({"out/.b-k3xb09_q.json": "{}"}, 0, "unreadable output: temporary file"),
        ({"work/a.json": "{ }"}, 0, "outside: work/a.json"),
        ({"escaped.json": "{}"}, 0, "outside: escaped.json"),
        ({"stderr": "error\n" * 9}, 2, "messages: 9 lines"),
        ({"stderr": "x" * 1501}, 2, "messages: 1 lines"),
        ({"stderr": "\x1b[31m"}, 2, "messages: 1 lines"),
        ({"stderr": ""}, 2, "messages: none"),
    ],
)
def test_judge_finds_a_problem(case, files, code, problem):
    for name, text in files.items():
        (case.folder / name).write_text(text)
    problems, _ = fuzz_commands.judge(case, code, 10**8)
    assert [found.startswith(problem) for found in problems] == ([True] if problem else [])


def test_judge_finds_excessive_memory_and_late_ends(case):
    assert fuzz_commands.judge(case, 0, 4 * 10**9)[0] == ["memory: 4.0 GB"]
    assert fuzz_commands.judge(case, -9, 10**8, late=True)[0] == ["hang"]


@pytest.mark.long
def test_commands_survive_damaged_files(tmp_path):
    words = ["--cases", "320", "--seed", "7", "--keep", tmp_path / "failed", "--json", tmp_path / "table.json"]
    recordings = Path(os.environ.get("DANET_TEST_DATA") or ROOT.parent / "shared/data") / "svanstrom-ir"
    done = run(*words, *(["--labels", recordings] if recordings.is_dir() else []))
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "table.json").read_text())["table"]
    assert sum(row["cases"] for row in table.values()) == 320
    assert len(table) >= 15 and sum(row["accepted"] for row in table.values()) > 30
