"""Faults, signals, early stopping, time limits and frozen parts of real trainings in this process."""

import csv
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file
from scenes import write_scenes

from danet.checkpoint import load_tensors, save_tensors
from danet.train import main
from danet.training import TrainOptions, train, trainer, validation
from danet.training import state as state_module
from danet.training.options import MAY_CHANGE_ON_RESUME
from danet.training.run_folder import (
    BEST,
    LABELS,
    LOSS_CURVES,
    SAMPLES,
    STATE,
    STEPS,
    VALIDATION_CURVES,
    VALIDATIONS,
    WEIGHTS,
)
from danet.utils import cli
from danet.utils.errors import FaultError, UserError

SMALL = ["--model.name", "danet_nano", "--threads", "1", "--quiet", "--augmentation.crop", "64x64", "--batch", "4"]
SMALL += ["--amp", "off"]  # auto chooses by measured times, so that two runs may differ


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(write_scenes(tmp_path_factory.mktemp("data") / "scenes", 8))


@pytest.fixture
def run(scenes, tmp_path):
    """Runs the command in this process, two steps per epoch, into the folder run; returns its exit code."""

    def run(*arguments: object, out="run") -> int:
        given = [str(argument) for argument in arguments]
        return main([*SMALL, "--data", scenes, "--out", str(tmp_path / out), "--no-plots", *given])

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def rows(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def only_error(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("danet train: error: ")


class AfterSteps(threading.Thread):
    """Calls a function as soon as the log of a run has ``steps`` rows."""

    def __init__(self, folder: Path, steps: int, action) -> None:
        super().__init__(daemon=True)
        self.path, self.lines, self.action = folder / STEPS, steps + 1, action
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            if self.path.is_file() and self.path.read_text().count("\n") >= self.lines:
                self.action()
                return
            time.sleep(0.005)


@pytest.mark.parametrize(("threads", "calls"), [([], 2), (["--threads", "1"], 0)])
def test_number_of_threads_follows_the_load_unless_it_is_given(scenes, tmp_path, monkeypatch, threads, calls):
    made = []
    monkeypatch.setattr(trainer, "use_free_cores", lambda: made.append(None))
    words = [word for word in SMALL if word not in ("--threads", "1")]
    words += ["--data", scenes, "--out", str(tmp_path / "run"), "--no-plots", "--epochs", "1", *threads]
    assert main(words) == 0
    assert len(made) == calls


def test_interrupted_before_the_first_validation_keeps_the_header(run, scenes, tmp_path):
    options = ["--val", scenes, "--val_every", "2", "--schedule", "constant"]
    AfterSteps(tmp_path / "run", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(*options, "--epochs", "400") == 130
    assert run(*options, "--epochs", "400", "--max_minutes", "0.001", "--resume") == 0
    head, *lines = (tmp_path / "run" / VALIDATIONS).read_text().splitlines()
    assert head.startswith("step,epoch,ap50,") and lines
    assert all(line.count(",") == head.count(",") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_save_the_state(run, tmp_path, capsys, number):
    def twice():
        os.kill(os.getpid(), number)
        if number != signal.SIGINT:  # systemd sends SIGHUP right after SIGTERM
            os.kill(os.getpid(), signal.SIGHUP)

    AfterSteps(tmp_path / "run", 3, twice)
    before = signal.getsignal(signal.SIGHUP)
    assert run("--epochs", "1000") == 130
    assert "stopped after step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGHUP) == before
    assert not list((tmp_path / "run").glob(".*")) and (tmp_path / "run" / STATE).is_file()


def test_ignored_hangup_stays_ignored(run, tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        AfterSteps(tmp_path / "run", 1, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run("--epochs", "3") == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_full_disk_ends_in_one_line_and_keeps_the_state(run, tmp_path, capsys):
    assert run("--epochs", "1") == 0
    state = tmp_path / "run" / STATE
    before = state.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 100, limits[1]))
    try:
        assert main(["--resume", str(tmp_path / "run"), "--epochs", "3"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = only_error(capsys)
    assert error.startswith(f"{state}: cannot be written (") and "the state of step 2 is saved" in error
    assert state.read_bytes() == before and not list((tmp_path / "run").glob(".*"))
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    assert len(rows(tmp_path / "run" / STEPS)) == 6


def test_removed_run_folder_is_an_error(run, tmp_path, capsys):
    folder = tmp_path / "run"
    AfterSteps(folder, 3, lambda: shutil.rmtree(folder, ignore_errors=True))
    assert run("--epochs", "1000") == 1
    error = only_error(capsys)
    assert error.startswith(f"{folder}: the run folder, or its file .lock, was removed or replaced during the training")
    assert error.endswith("no state is saved") and not folder.exists()


def test_second_run_in_a_folder_is_refused(run, tmp_path, capsys, scenes):
    codes = []
    folder = tmp_path / "run"

    def second():
        codes.append(main([*SMALL, "--data", scenes, "--out", str(folder), "--overwrite"]))
        codes.append(main(["--resume", str(folder)]))
        os.kill(os.getpid(), signal.SIGTERM)

    AfterSteps(folder, 2, second)
    assert run("--epochs", "1000") == 130
    assert codes == [2, 2]
    *errors, last = capsys.readouterr().err.strip().splitlines()
    assert "stopped after step" in last and len(errors) == 2
    assert all(f"{folder}: another training writes into this folder (process {os.getpid()})" in line for line in errors)


def test_killed_loader_process_saves_the_state(run, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ("--schedule", "constant", "--warmup_steps", "0")
    AfterSteps(folder, 2, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))
    assert run(*options, "--epochs", "1000", "--workers", "2") == 1
    error = only_error(capsys)
    done = len(rows(folder / STEPS))
    assert error.startswith("DataLoader worker") and f"the state of step {done} is saved" in error
    epochs = done // 2 + 2
    assert main(["--resume", str(folder), "--workers", "0", "--epochs", str(epochs)]) == 0
    assert run(*options, "--epochs", epochs, out="whole") == 0
    assert (folder / STEPS).read_bytes() == (tmp_path / "whole" / STEPS).read_bytes()
    assert same_tensors(folder / WEIGHTS, tmp_path / "whole" / WEIGHTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_one_line_and_saves_the_state(tmp_path, capsys, workers):
    data = write_scenes(tmp_path / "data", 8)
    (tmp_path / "data" / "003.png").write_bytes(b"not a picture\nTraceback (most recent call last):")
    words = [
        *SMALL,
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--augmentation.copy_paste",
        "0",
        "--no-plots",
    ]
    assert main([*words, "--workers", str(workers)]) == 2
    assert only_error(capsys) == f"{tmp_path / 'data' / '003.png'}: not a readable image"
    assert (tmp_path / "run" / STATE).is_file()


def test_patience_ends_a_run_that_does_not_improve(run, scenes, tmp_path, capsys):
    options = ["--val", scenes, "--lr", "1e-12", "--schedule", "constant", "--ema", "0", "--warmup_steps", "0"]
    options += ["--freeze_norm"]
    assert run(*options, "--epochs", "9", "--patience", "2", "--quiet", "false") == 0
    assert [row["epoch"] for row in rows(tmp_path / "run" / VALIDATIONS)] == ["1", "2", "3"]
    output = capsys.readouterr()
    assert "ended after step 6: AP50 did not rise for 2 epochs (patience)" in output.out
    assert "warning: the model has learned nothing: its best AP50 is 0.000 after 6 steps" in output.err
    before = (tmp_path / "run" / VALIDATIONS).read_bytes()
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0  # changes nothing
    assert (tmp_path / "run" / VALIDATIONS).read_bytes() == before and len(rows(tmp_path / "run" / STEPS)) == 6
    assert main(["--resume", str(tmp_path / "run"), "--patience", "0", "--epochs", "5"]) == 0
    assert run(*options, "--epochs", "5", out="whole") == 0
    for name in (STEPS, VALIDATIONS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_patience_needs_validation_images():
    with pytest.raises(UserError, match="patience 3: needs validation images; give --val"):
        TrainOptions(patience=3)


def test_time_limit_ends_a_run_with_validated_weights(run, scenes, tmp_path, capsys):
    options = ["--val", scenes, "--schedule", "constant", "--warmup_steps", "0", "--val_every", "2", "--epochs", "4"]
    assert run(*options, "--max_minutes", "1e-6", "--quiet", "false") == 0
    assert "ended after step 1: the time limit of 1e-06 minutes is reached (max_minutes)" in capsys.readouterr().out
    assert [row["epoch"] for row in rows(tmp_path / "run" / VALIDATIONS)] == ["0.5"]
    assert same_tensors(tmp_path / "run" / BEST, tmp_path / "run" / WEIGHTS)
    before = (tmp_path / "run" / VALIDATIONS).read_bytes()
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / VALIDATIONS).read_bytes() == before
    assert main(["--resume", str(tmp_path / "run"), "--max_minutes", "null", "--quiet"]) == 0
    assert run(*options, out="whole") == 0
    for name in (STEPS, VALIDATIONS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_frozen_parts_do_not_change(run, tmp_path):
    assert run("--epochs", "1", "--lr", "1e-12", out="start") == 0
    frozen = ("--weights", tmp_path / "start" / WEIGHTS, "--freeze", "backbone", "neck", "--ema", "0.5")
    assert run(*frozen, "--epochs", "2") == 0
    start, end = load_file(tmp_path / "start" / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"head"}
    assert "freeze" not in MAY_CHANGE_ON_RESUME

    # A resumed run continues exactly.
    assert run(*frozen, "--epochs", "2", "--schedule", "constant", out="whole") == 0
    AfterSteps(tmp_path / "part", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(*frozen, "--epochs", "2", "--schedule", "constant", out="part")
    assert main(["--resume", str(tmp_path / "part")]) == 0
    assert (tmp_path / "part" / STEPS).read_bytes() == (tmp_path / "whole" / STEPS).read_bytes()
    assert same_tensors(tmp_path / "part" / WEIGHTS, tmp_path / "whole" / WEIGHTS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["backbon"],
            "freeze: the network has no part 'backbon'; it has backbone, backbone.stem, backbone.stages, neck",
        ),
        ([""], "freeze: the network has no part ''"),
        (["backbone", "neck", "head"], "freeze: no part of the network is left to train, got backbone, neck, head"),
    ],
)
def test_freeze_names_the_parts(run, tmp_path, capsys, names, message):
    assert run("--freeze", *names) == 2
    assert only_error(capsys).startswith(message)
    assert not (tmp_path / "run").exists()


def test_plots_are_written_by_default_and_again_only_if_missing(scenes, tmp_path):
    words = ["--data", scenes, "--val", scenes, "--out", str(tmp_path / "run"), "--epochs", "1", "--quiet"]
    options = cli.parse(TrainOptions, ["--model.name", "danet_nano", "--augmentation.crop", "64x64", *words])
    train(options)
    names = [SAMPLES, LABELS, LOSS_CURVES, VALIDATION_CURVES]
    pictures = {name: cv2.imread(str(tmp_path / "run" / name)) for name in names}
    assert all(picture is not None and picture.std() > 5 for picture in pictures.values())
    (tmp_path / "run" / LABELS).unlink()
    times = (tmp_path / "run" / SAMPLES).stat().st_mtime_ns
    options.resume = True
    train(options)
    assert (tmp_path / "run" / LABELS).is_file() and (tmp_path / "run" / SAMPLES).stat().st_mtime_ns == times


def test_train_raises_fault_errors(scenes, tmp_path):
    """A library user can tell faults of the machine from wrong options."""
    folder = tmp_path / "run"
    AfterSteps(folder, 2, lambda: shutil.rmtree(folder, ignore_errors=True))
    words = [*SMALL, "--data", scenes, "--out", str(folder), "--epochs", "1000", "--no-plots"]
    with pytest.raises(FaultError, match="training stopped after step"):
        train(cli.parse(TrainOptions, words))


def test_patience_waits_for_the_next_validation(run, scenes, tmp_path, capsys):
    options = ["--val", scenes, "--lr", "1e-12", "--schedule", "constant", "--ema", "0", "--warmup_steps", "0"]
    assert run(*options, "--freeze_norm", "--epochs", "9", "--val_every", "3", "--patience", "1") == 0
    assert [row["epoch"] for row in rows(tmp_path / "run" / VALIDATIONS)] == ["3", "6"]


def test_validation_scales_images_as_the_detector_does(run, scenes, monkeypatch):
    domains = []

    class Recorded(validation.Detector):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            domains.append(self.domain)

    monkeypatch.setattr(validation, "Detector", Recorded)
    assert run("--val", scenes, "--epochs", "1", "--augmentation.scale", "2", "3") == 0
    assert domains[0].pixel_scale[0] > 2


def test_resuming_with_other_validation_images_forgets_the_best_of_the_old_ones(run, scenes, tmp_path):
    other = str(write_scenes(tmp_path / "other", 4, seed=5))
    assert run("--val", scenes, "--epochs", "1", "--schedule", "constant") == 0
    folder = tmp_path / "run"
    state = folder / "last.safetensors"
    _, header = load_tensors(state, state_module.FORMAT)
    header["progress"]["best"]["ap50"] = 0.99  # as if the old images were easy
    save_tensors(state, state_module.FORMAT, load_tensors(state, state_module.FORMAT)[0], header)
    before = (folder / "best.safetensors").read_bytes()
    assert main(["--resume", str(folder), "--val", other, "--epochs", "2", "--quiet"]) == 0
    assert (folder / "best.safetensors").read_bytes() != before
    assert same_tensors(folder / WEIGHTS, folder / "best.safetensors")
    # Without validation images, the last weights are the result.
    assert main(["--resume", str(folder), "--val", "null", "--epochs", "3", "--quiet"]) == 0
    assert not same_tensors(folder / WEIGHTS, folder / "best.safetensors")


def test_a_finished_run_is_validated_on_other_images(run, scenes, tmp_path, capsys):
    other = str(write_scenes(tmp_path / "other", 4, seed=5))
    assert run("--val", scenes, "--epochs", "1") == 0
    folder = tmp_path / "run"
    assert main(["--resume", str(folder), "--val", other, "--quiet"]) == 0
    assert "the best AP50 so far is of other validation images" in capsys.readouterr().err
    assert same_tensors(folder / WEIGHTS, folder / "best.safetensors")
    assert main(["--resume", str(folder), "--val", other, "--quiet"]) == 0  # changes nothing
    assert "validation images" not in capsys.readouterr().err


def test_removed_best_weights_do_not_end_a_run(run, scenes, tmp_path, capsys):
    assert run("--val", scenes, "--epochs", "1", "--schedule", "constant") == 0
    (tmp_path / "run" / "best.safetensors").unlink()
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert "best.safetensors was removed; weights.safetensors are the last weights" in capsys.readouterr().err
