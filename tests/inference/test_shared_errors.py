"""An error in one of two processes of danet evaluate or danet detect ends both, with one line."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prediction_files import write_dataset

from danet.checkpoint import SHIPPED
from danet.data.video_writer import VideoWriter
from danet.inference.video_format import choose_suffix

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90
"""The processes end within seconds; without the exchange of errors, some wait for two hours."""


def run_two(*words):
    """Starts two processes as torchrun does; returns the exit code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in "01":
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    deadline = time.monotonic() + TIMEOUT_S
    try:
        outputs = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def evaluate_words(data, out):
    words = ["-m", "danet.evaluate", str(SHIPPED), data, "--batch", "1", "--threads", "1", "--resamples", "10"]
    return [*words, "--dtype", "float32", "--input_size", "native", "--quiet", "--out", str(out)]


@pytest.mark.parametrize("broken", [0, 1], ids=["first process", "second process"])
def test_unreadable_image_ends_both_processes_of_evaluate(tmp_path, broken):
    data = write_dataset(tmp_path / "val", 0, count=6)
    (tmp_path / "val" / f"{broken}.png").write_bytes(b"broken")  # process i takes the images i, i + 2, ...
    results = run_two(*evaluate_words(data, tmp_path / "out"))
    assert [code for code, _, _ in results] == [2, 2]
    (line,) = lines(results[broken][2])
    assert line == f"danet evaluate: error: {tmp_path}/val/{broken}.png: not a readable image"
    assert lines(results[1 - broken][2]) == []


def test_failed_writing_ends_both_processes_of_evaluate(tmp_path):
    """Only the first process writes, while the second one waits for it."""
    data = write_dataset(tmp_path / "val", 0, count=6)
    (tmp_path / "out" / "predictions.json").mkdir(parents=True)
    results = run_two(*evaluate_words(data, tmp_path / "out"))
    assert [code for code, _, _ in results] == [2, 2]
    (line,) = lines(results[0][2])
    assert "predictions.json" in line and lines(results[1][2]) == []


def test_error_of_both_processes_is_one_line(tmp_path):
    data = write_dataset(tmp_path / "val", 0, count=6)
    results = run_two(*evaluate_words(data, tmp_path / "out"), "--class_map", "{plane: drone}")
    assert [code for code, _, _ in results] == [2, 2]
    (line,) = lines(results[0][2])
    assert "--class_map: 'plane' is not a category of the data" in line and lines(results[1][2]) == []


def test_failed_writing_ends_both_processes_of_detect(tmp_path):
    for name in "ab":
        with VideoWriter(tmp_path / "clips" / f"{name}.mp4", fps=10) as writer:
            for index in range(4):
                writer.write(np.full((96, 128), 90 + index, np.uint8))
    # The second process takes the first video, and cannot write it.
    (tmp_path / "out" / f"a{choose_suffix()}").mkdir(parents=True)
    words = ["-m", "danet.detect", str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--overwrite"]
    results = run_two(*words, "--threads", "1", "--dtype", "float32", "--quiet")
    assert [code for code, _, _ in results] == [1, 1]
    (line,) = lines(results[1][2])
    assert f"a{choose_suffix()}: cannot be written (Is a directory)" in line and lines(results[0][2]) == []
    rows = (tmp_path / "out" / "boxes.csv").read_text()
    assert rows.startswith("file,") and (tmp_path / "out" / f"b{choose_suffix()}").is_file()


PROGRAM = """
import os, signal, sys
from danet.utils import distributed
from danet.utils.errors import UserError
from danet.utils.guard import run_guarded

def work():
    with distributed.process_group("cpu"), distributed.shared_errors():
        assert distributed.gather_objects(distributed.rank()) == [0, 1]
        if distributed.rank() == 1 and sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if distributed.rank() == 1 and sys.argv[1] == "bug":
            [].pop()
        if sys.argv[1] == "both":
            raise UserError(f"a.png: rank {distributed.rank()}")
        distributed.gather_objects(distributed.rank())

raise SystemExit(run_guarded("danet test", work))
"""


def test_shared_errors_of_bugs_killed_processes_and_both(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = str(tmp_path / "program.py")
    first, second = run_two(program, "bug")
    assert first == (1, "", "") and second[0] == 1 and "IndexError" in second[2] and len(lines(second[2])) == 1
    first, second = run_two(program, "kill")
    assert second[0] == -9 and first[0] == 1
    assert lines(first[2]) == [
        "danet test: error: another process of this run has ended; it has printed why, unless it was killed"
    ]
    assert run_two(program, "both") == [(2, "", "danet test: error: a.png: rank 0\n"), (2, "", "")]
    assert run_two(program, "none") == [(0, "", "")] * 2
