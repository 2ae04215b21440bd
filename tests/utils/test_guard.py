import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from danet.utils import cli
from danet.utils.errors import MAX_MESSAGE_CHARACTERS, UserError, one_line
from danet.utils.guard import explain, run_guarded


@dataclass
class Options:
    out: str = "a"
    """A file."""


def run(command, *argv: str) -> int:
    return cli.run(command, Options, prog="danet test", argv=argv)


def test_unexpected_error_names_the_operation_and_asks_for_a_report(capsys):
    assert run(lambda options: {}["missing"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("danet test: error: unexpected error in ")
    assert "(KeyError: 'missing'); this is a bug of DANet, please report it with the output of --debug" in error


def test_unexpected_error_names_the_file_that_was_read(tmp_path, capsys, monkeypatch):
    """The reader of JSON files fails with an error that it does not expect, in the middle of a file."""
    from danet.utils import files

    (tmp_path / "data.json").write_text("{}")
    monkeypatch.setattr(files.json, "loads", lambda text: 1 / 0)
    assert run(lambda options: files.read_json(tmp_path / "data.json")) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"danet test: error: {tmp_path / 'data.json'}: unexpected error in danet.utils.files.read_json"
    )
    assert "(ZeroDivisionError: division by zero)" in error and error.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["--debug"]])
@pytest.mark.parametrize("error", [KeyError("x"), UserError("x: is wrong")])
def test_debug_shows_the_traceback(argv, error, capsys):
    def command(options: Options) -> None:
        raise error

    run(command, *argv)
    assert ("Traceback (most recent call last)" in capsys.readouterr().err) == bool(argv)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a: b"), 2, "a: b"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "a.txt: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 2, "onnx: cannot be imported (No module named"),
        (MemoryError(), 1, "out of memory (MemoryError); use smaller images or a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory ("),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected error in "),
    ],
)
def test_explain_gives_code_and_message(error, code, message):
    def fail() -> None:
        raise error

    try:
        fail()
    except Exception as caught:
        found = explain(caught)
    assert found[0] == code and found[1].startswith(message)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\n  lines\r\n", "two lines"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("lone \udcff surrogate", "lone \\udcff surrogate"),
        ("Größe  a", "Größe  a"),
    ],
)
def test_one_line_is_printable(message, line):
    assert one_line(message) == line


def test_one_line_cuts_the_middle_of_a_long_message():
    line = one_line(f"a.json: expected int, got {'9' * 100_000}; change it")
    assert len(line) <= MAX_MESSAGE_CHARACTERS
    assert line.startswith("a.json: expected int") and line.endswith("; change it")


def test_interrupt_returns_130(capsys):
    def command(options: Options) -> None:
        raise KeyboardInterrupt

    assert run(command) == 130
    assert capsys.readouterr().err == "danet test: interrupted\n"


@pytest.mark.parametrize("words", [["train", "--help-all"], ["train", "--print_config"], ["help"]])
def test_closed_pipe_is_quiet(words):
    """A reader that ends at once, such as ``head``, leads neither to an error line nor to a traceback."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, "-m", "danet", *words], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_for_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "danet", "help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (process.returncode, process.stderr) == (1, "danet: error: No space left on device\n")


def test_broken_pipe_of_another_file_is_an_error(capsys):
    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe", "worker")

    assert run_guarded("danet test", fail) == 2
    assert capsys.readouterr().err == "danet test: error: worker: Broken pipe\n"
