import os
import shutil
import signal
import subprocess
import sys

import pytest

from danet.training.options import DistillOptions, TrainOptions
from danet.training.run_folder import (
    BEST,
    CONFIG,
    LABELS,
    LOCK,
    SAMPLES,
    STATE,
    STEPS,
    WEIGHTS,
    check_run_folder,
    lock_run_folder,
    prepare_run_folder,
)
from danet.utils.errors import FaultError, UserError

HOLD_LOCK = (
    "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(file, fcntl.LOCK_EX); "
    "os.write(file, f'{os.getpid()}\\n'.encode()); print('locked', flush=True); sys.stdin.read()"
)


def test_lock_refuses_a_second_process_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / LOCK)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        words = rf"another training writes into this folder \(process {other.pid}\); wait for its end, or give another"
        with pytest.raises(UserError, match=words), lock_run_folder(tmp_path):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert (tmp_path / LOCK).exists()  # a killed process leaves the file, but not the lock
    with lock_run_folder(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / LOCK).exists()


def test_lock_creates_the_folder_and_allows_the_next_run(tmp_path):
    for _ in range(2):
        with lock_run_folder(tmp_path / "new" / "run") as lock:
            lock.check()
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["run"]


@pytest.mark.parametrize("again", [False, True])
def test_lock_check_finds_a_removed_folder(tmp_path, again):
    folder = tmp_path / "run"
    with lock_run_folder(folder) as lock:
        shutil.rmtree(folder)
        if again:  # another training has started in a new folder of the same name
            folder.mkdir()
            (folder / LOCK).write_text("1\n")
        with pytest.raises(FaultError, match="was removed or replaced during the training"):
            lock.check()
    assert folder.exists() == again == (folder / LOCK).exists()  # the file of the other training stays


def test_lock_is_not_held_by_forked_processes(tmp_path):
    with lock_run_folder(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.close_in_child()
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        lock.close_in_child()  # does nothing in the process that locked the folder
        lock.check()
    try:
        with lock_run_folder(tmp_path):  # although the child lives
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_prepare_removes_temporary_files_of_a_killed_process(tmp_path):
    left = [
        ".last-a1b2c3d4.safetensors",
        ".best-________.safetensors",
        ".metrics-12345678.csv",
        ".train_samples-x_y_z0_1.jpg",
    ]
    kept = [STATE, BEST, STEPS, SAMPLES, "notes.txt", ".last-notes.safetensors.txt", ".hidden"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    prepare_run_folder(TrainOptions(out=str(tmp_path), resume=True))
    assert {path.name for path in tmp_path.iterdir()} == {*kept, CONFIG}


def test_prepare_removes_the_files_of_a_replaced_run(tmp_path):
    for name in (STATE, BEST, STEPS, SAMPLES, "notes.txt"):
        (tmp_path / name).write_text("x")
    prepare_run_folder(TrainOptions(out=str(tmp_path), overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, "notes.txt"}


@pytest.mark.parametrize("name", [WEIGHTS, STEPS, LABELS])
def test_check_refuses_a_folder_with_files_that_a_run_would_remove(tmp_path, name):
    options = TrainOptions(["train.json"], out=str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    check_run_folder(options)
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=rf"holds {name}, which a run replaces; give --overwrite, or another --out"):
        check_run_folder(options)
    check_run_folder(TrainOptions(["train.json"], out=str(tmp_path), overwrite=True))


def test_check_refuses_teachers_that_the_run_would_remove(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / BEST).write_text("x")
    (tmp_path / "link.safetensors").symlink_to(f"run/{BEST}")
    common = {"data": ["train.json"], "out": str(tmp_path / "run"), "overwrite": True}
    for path in (tmp_path / "run" / BEST, tmp_path / "link.safetensors"):
        with pytest.raises(UserError, match=f"{BEST}: is an input of this command and would be replaced"):
            check_run_folder(TrainOptions(**common, distill=DistillOptions(medium=str(path))))
        # A run reads the weights from which it starts only once, before it replaces them.
        check_run_folder(TrainOptions(**common, weights=str(path)))
    check_run_folder(TrainOptions(**common, weights=str(tmp_path / "other.safetensors")))
