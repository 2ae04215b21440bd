import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scenes import write_scenes

import danet
from danet.checkpoint import load_weights, save_weights
from danet.config import ModelConfig
from danet.data.coco_dataset import load_coco
from danet.data.transforms import Augmentation
from danet.evaluation.metrics import quick_metrics
from danet.models import build_model
from danet.train import _expand_resume, main
from danet.training.options import PRESETS, AdcrOptions, TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError

# One thread, because test processes run in parallel.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["--no-plots", "--quiet", "true", "--model.name", "danet_nano", "--threads", "1"]
SMALL += ["--amp", "off"]  # auto chooses by measured times, so that two runs may differ
SMALL += ["--augmentation.crop", "[64, 64]"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(write_scenes(tmp_path_factory.mktemp("data") / "scenes", 8))


@pytest.fixture
def run(scenes, tmp_path):
    """Runs the command in this process and returns its exit code."""

    def run(*arguments: object) -> int:
        given = [str(argument) for argument in arguments]
        return main([*SMALL, "--data", scenes, "--out", str(tmp_path / "run"), *given])

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def only_error(capsys) -> str:
    """The single line that a failed command printed."""
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    return lines[0].removeprefix("danet train: error: ")


def test_train_overfits_two_images(tmp_path):
    data = str(write_scenes(tmp_path / "two", 2, seed=4))
    plain = Augmentation.off()
    config = tmp_path / "plain.yaml"
    config.write_text(cli.dump(TrainOptions(augmentation=plain)))
    source = json.dumps([{"path": data, "weight": 40}])  # 40 steps per epoch
    arguments = ["--epochs", "3", "--batch", "2", "--lr", "0.003", "--ema", "0.9", "--val_every", "3"]
    small = [*SMALL[:-2], "--data", source, "--val", data, "--out", str(tmp_path / "run"), *arguments]
    assert main(["--config", str(config), *small]) == 0

    detector = danet.load(tmp_path / "run" / "weights.safetensors")
    records = load_coco(data).records
    metrics = quick_metrics(records, [detector(record.path) for record in records], ["drone"])
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (1.0, 1.0, 1.0)
    assert detector.metadata["validation"]["f1"] == 1.0


def test_resume_after_kill_is_exact(scenes, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "danet.train", *SMALL, "--data", scenes, "--val", scenes]
    command += ["--epochs", "4", "--batch", "2", "--save_every_steps", "3", "--adcr.weight", "0.1", "--val_every", "2"]
    through, killed = tmp_path / "through", tmp_path / "killed"
    assert main([*command[command.index("danet.train") + 1 :], "--out", str(through)]) == 0
    assert len(losses(through)) == 16

    process = subprocess.Popen([*command, "--out", str(killed)], env=ENVIRONMENT)
    rows = killed / "metrics.csv"
    deadline = time.monotonic() + 180
    while not rows.exists() or rows.read_text().count("\n") < 12:  # header and eleven steps, in epoch 3
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert rows.read_text() != (through / "metrics.csv").read_text()

    assert main(["--resume", str(killed)]) == 0
    for name in ("metrics.csv", "validation.csv"):
        assert (killed / name).read_bytes() == (through / name).read_bytes(), name
    for name in ("best.safetensors", "weights.safetensors"):
        expected, found = load_file(through / name), load_file(killed / name)
        assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list(killed.glob(".*"))

    # The parameters of ADCR are in the state only.
    with safe_open(killed / "last.safetensors", framework="pt") as file:
        names = {name for name in file.keys() if "adcr" in name}  # noqa: SIM118
    assert {name.split(".")[0] for name in names} == {"extras", "optimizer"}
    state, other = load_file(through / "last.safetensors"), load_file(killed / "last.safetensors")
    assert all(torch.equal(state[name], other[name]) for name in names)

    # Resuming a finished run changes nothing.
    assert main(["--resume", str(killed)]) == 0
    assert (killed / "metrics.csv").read_bytes() == (through / "metrics.csv").read_bytes()


def test_sigterm_saves_state(scenes, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "danet.train", *SMALL, "--data", scenes]
    command += ["--out", str(tmp_path / "run"), "--epochs", "1000", "--batch", "4"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "run" / "metrics.csv"
    while not rows.exists() or rows.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    step = int(re.fullmatch(r"stopped after step (\d+); resume with: (.*)\n", error)[1])
    assert error.endswith(f"danet train --resume {tmp_path / 'run'}\n")
    with safe_open(tmp_path / "run" / "last.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["header"])["progress"]["step"] == step == len(losses(tmp_path / "run"))


@pytest.mark.long
@pytest.mark.parametrize(("head", "adcr"), [("default", "0.5"), ("paper", "0")])
def test_two_processes_match_one(scenes, tmp_path, head, adcr):
    options = [*SMALL, "--data", scenes, "--model.head", head, "--batch", "4", "--epochs", "2", "--freeze_norm", "true"]
    options += ["--adcr.weight", adcr]
    options += ["--optimizer", "sgd", "--lr", "0.01", "--warmup_steps", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, "-m", "danet.train", *options, "--out", str(two)], env=ENVIRONMENT, check=True, timeout=400
    )
    assert main([*options, "--out", str(one)]) == 0
    assert len(losses(one)) == 4
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    # Half a batch is added up in another order than a whole one; four steps amplify the rounding to about 1e-3.
    first, second = (load_file(folder / "last.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=2e-3, atol=1e-4)
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, two))
    torch.manual_seed(0)
    fresh = build_model(ModelConfig(name="danet_nano", head=head)).state_dict()
    assert max((first[name] - value).abs().max().item() for name, value in fresh.items()) > 0.01
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=2e-3, atol=1e-4)


def test_resume_without_average_and_validation(run, tmp_path):
    """SGD with momentum, no moving average, no validation, two loader processes, more epochs when resuming."""
    options = ["--optimizer", "sgd", "--lr", "0.01", "--ema", "0", "--batch", "4", "--schedule", "constant"]
    options += ["--warmup_steps", "0"]
    assert run(*options, "--epochs", "3") == 0
    whole = losses(tmp_path / "run")
    assert run(*options, "--epochs", "1", "--overwrite", "true", "--workers", "2") == 0
    assert losses(tmp_path / "run") == whole[:2]
    assert main(["--epochs", "3", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert losses(tmp_path / "run") == whole


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision(run, tmp_path, amp):
    # Not auto, which chooses bfloat16 on some processors.
    assert run("--epochs", "1", "--batch", "4", "--adcr.weight", "0.1", "--amp", "off") == 0
    plain = losses(tmp_path / "run")
    assert run("--epochs", "1", "--batch", "4", "--adcr.weight", "0.1", "--amp", amp, "--overwrite") == 0
    mixed = losses(tmp_path / "run")
    # float16 skips the first updates until the scaler has found its scale.
    assert mixed[0] != plain[0] and mixed[0] == pytest.approx(plain[0], rel=0.02)
    assert len(mixed) == len(plain) and all(map(math.isfinite, mixed))


def test_config_file_reproduces_run(run, scenes, tmp_path, capsys):
    assert run("--epochs", "1", "--batch", "8", "--model.classes", "drone", "bird", "--overwrite") == 0
    saved = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(saved.read_text())
    assert values["overwrite"] is False and values["resume"] is False
    assert values["model"]["classes"] == ["drone", "bird"] and values["data"] == [scenes]
    assert main(["--config", str(saved), "--out", str(tmp_path / "again")]) == 0
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert again == {**values, "out": str(tmp_path / "again")}
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    assert danet.load(tmp_path / "again" / "weights.safetensors").classes == ["drone", "bird"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "--out", "RUN"],
        ["--out=RUN", "--resume"],
        ["--resume", "RUN"],
        ["--resume=RUN"],
        ["--resume", "true", "--out", "RUN"],
        ["--resume=true", "--out=RUN"],
    ],
)
def test_resume_spellings(tmp_path, words):
    (tmp_path / "config.yaml").write_text(cli.dump(TrainOptions(data=["a"], epochs=7, out="moved")))
    found = []
    argv = _expand_resume(["--batch", "3", *(word.replace("RUN", str(tmp_path)) for word in words)])
    assert cli.run(found.append, TrainOptions, prog="danet train", argv=argv) == 0
    assert found == [TrainOptions(data=["a"], epochs=7, batch=3, out=str(tmp_path), resume=True)]


def test_resume_false():
    for words in (["--resume", "false"], ["--resume=false"]):
        assert _expand_resume([*words, "--epochs", "3"]) == ["--epochs", "3"]


def test_presets(capsys):
    def preset(name: str, *arguments: str) -> TrainOptions:
        found = []
        argv = ["--preset", name, *arguments]
        assert cli.run(found.append, TrainOptions, prog="danet train", presets=PRESETS, argv=argv) == 0
        return found[0]

    assert preset("default") == TrainOptions() and TrainOptions().adcr.weight == 0
    paper = preset("paper", "--batch", "4")
    assert (paper.optimizer, paper.lr, paper.momentum, paper.weight_decay) == ("sgd", 1e-3, 0.9, 1e-4)
    assert (paper.batch, paper.epochs, paper.model.head, paper.schedule, paper.ema) == (4, 476, "paper", "constant", 0)
    assert paper.augmentation == Augmentation.off()
    assert paper.adcr == AdcrOptions(weight=0.1, temperature=0.1, negatives=3)
    assert preset("demo").model.name == "danet_nano"


def test_start_from_weights(run, tmp_path, capsys):
    assert run("--epochs", "1", "--batch", "8") == 0
    weights = tmp_path / "run" / "weights.safetensors"
    assert run("--epochs", "1", "--batch", "8", "--out", tmp_path / "tuned", "--weights", weights) == 0
    assert losses(tmp_path / "tuned") != losses(tmp_path / "run")
    # Resuming does not need the weights that the run started from.
    moved = weights.rename(tmp_path / "moved.safetensors")
    assert main(["--resume", str(tmp_path / "tuned"), "--epochs", "2"]) == 0
    moved.rename(weights)
    # New classes are reported; compact weights are calibrated on training images.
    capsys.readouterr()
    compact = tmp_path / "compact.safetensors"
    save_weights(compact, load_weights(weights)[0], compact=True)
    words = [
        "--epochs",
        "1",
        "--batch",
        "8",
        "--weights",
        compact,
        "--model.classes",
        "bird",
        "drone",
        "--quiet",
        "false",
    ]
    assert run(*words, "--out", tmp_path / "two") == 0
    assert f"{compact} has no class bird: its scores start from random weights" in capsys.readouterr().out
    capsys.readouterr()
    assert run("--out", tmp_path / "other", "--weights", weights, "--model.safem", "false") == 2
    assert only_error(capsys) == f"{weights}: weights of another model: model.safem is True there and False here"
    assert not (tmp_path / "other").exists()


def test_resume_rejects_other_state(run, tmp_path, capsys):
    assert run("--epochs", "1", "--batch", "8") == 0
    state = tmp_path / "run" / "last.safetensors"
    before = state.read_bytes()
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    for change, words in (
        (("--lr", "0.5"), "this run has lr 0.002, got 0.5"),
        (("--model.groups", "2"), "this run has model.groups 4, got 2"),
        (("--augmentation.flip", "0"), "this run has augmentation.flip 0.5, got 0.0"),
    ):
        capsys.readouterr()
        assert main(["--resume", str(tmp_path / "run"), *change]) == 2
        assert words in (error := only_error(capsys)) and error.startswith(f"{state}: ")
        assert (tmp_path / "run" / "config.yaml").read_bytes() == config

    for content, words in (
        (b"These are not tensors.\n", "not a readable safetensors file"),
        ((tmp_path / "run" / "weights.safetensors").read_bytes(), "not of kind danet-training-state"),
        (before[: len(before) // 2], "not a readable safetensors file"),
    ):
        state.write_bytes(content)
        assert main(["--resume", str(tmp_path / "run")]) == 2
        assert words in (error := only_error(capsys)) and error.startswith(f"{state}: ")
        assert state.read_bytes() == content

    # Right kind and options, but a tensor is missing.
    state.write_bytes(before)
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["model.backbone.stem.conv3x3.weight"]
    save_file(tensors, state, metadata)
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert only_error(capsys).startswith(f"{state}: does not fit this model")


def test_resume_rejects_other_data(run, tmp_path, capsys):
    assert run("--epochs", "2", "--batch", "8") == 0
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "1"]) == 2
    assert "has 2 epochs already, got --epochs 1; give more" in only_error(capsys)
    other = str(write_scenes(tmp_path / "other", 5, seed=1))
    assert main(["--resume", str(tmp_path / "run"), "--data", other]) == 2
    assert "this run has data '8 images" in only_error(capsys)


def test_non_finite_loss_stops_training(run, tmp_path, capsys):
    options = ("--batch", "8", "--epochs", "20", "--warmup_steps", "0", "--clip", "0", "--optimizer", "sgd")
    assert run(*options, "--lr", "1e8") == 2
    error = only_error(capsys)
    match = re.match(r"step (\d+) \(epoch \d+\): (?:loss|cls|reg|the gradient norm) is \S*(?:nan|inf)", error)
    assert match and str(tmp_path / "run" / "last.safetensors") in error
    with safe_open(tmp_path / "run" / "last.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["header"])["progress"]["step"] < int(match[1])
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "missing.json"], "missing.json: no such file"),
        (["--val", "missing.json"], "missing.json: no such file"),
        (["--model.classes", "dron"], "the training data has no box named 'dron' (it has: bird, drone)"),
        (["--adcr.weight", "-1"], "adcr.weight must be 0 or more, got -1"),
        (["--adcr.levels", "5"], "adcr.levels must be 1 to 4, got 5"),
        (["--adcr.temperature", "0"], "adcr.temperature must be positive, got 0"),
        (["--target", "bird"], "target bird: not a class of the model (drone)"),
        (["--batch", "0"], "batch must be positive, got 0"),
        (["--epochs", "-1"], "epochs must be positive, got -1"),
        (["--save_every_steps", "-3"], "save_every_steps must be 0 or more, got -3"),
        (["--save_every_minutes", ".nan"], "--save_every_minutes: expected float, got '.nan'"),
        (["--seed", "-1"], "seed must lie between 0 and 2^63, got -1"),
        (["--out", __file__], "no folder for results"),
        (["--lr", ".nan"], "--lr: expected float, got '.nan'"),
        (["--learning_rate", "1"], "unknown option --learning_rate"),
        (["--device", "gpu"], "--device must be auto, cpu, cuda, cuda:N or N, got 'gpu'"),
        (["--weights", "missing.safetensors"], "missing.safetensors: no such file"),
        (["--preset", "papr"], "papr"),
    ],
)
def test_invalid_options(run, tmp_path, capsys, arguments, words):
    assert run(*arguments) == 2
    assert words in only_error(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lr", "lr must be positive, got nan"),
        ("save_every_minutes", "save_every_minutes must be 0 or more, got nan"),
    ],
)
def test_options_reject_nan(name, words):
    with pytest.raises(UserError, match=words):
        TrainOptions(**{name: math.nan})


def test_existing_run_is_not_overwritten(run, tmp_path, capsys):
    assert run("--epochs", "1", "--batch", "8") == 0
    capsys.readouterr()
    assert run("--epochs", "1", "--batch", "8") == 2
    assert only_error(capsys) == f"{tmp_path / 'run'}: holds a run; give --resume, --overwrite, or another --out"
    assert main(["--resume", str(tmp_path / "nothing")]) == 2
    assert "no run to resume" in only_error(capsys)


def test_run_replaces_none_of_its_inputs(run, tmp_path, capsys):
    json = write_scenes(tmp_path / "own", 2)
    before = json.read_bytes()
    for data in (json, json.parent):
        assert run("--data", data, "--json", json) == 2
        assert only_error(capsys).startswith(f"{json}: is an input of this command")
        assert run("--val", data, "--json", json) == 2
        assert only_error(capsys).startswith(f"{json}: is an input of this command")
    assert run("--json", tmp_path / "run/config.yaml") == 2
    assert "config.yaml: would be written twice" in only_error(capsys)
    assert json.read_bytes() == before and not (tmp_path / "run").exists()


def test_weights_file_is_text(run, tmp_path, capsys):
    fake = tmp_path / "fake.safetensors"
    fake.write_text("hello")
    assert run("--weights", fake) == 2
    assert only_error(capsys).startswith(f"{fake}: not a readable safetensors file")


def test_output_and_tensorboard(scenes, tmp_path, capsys):
    small = [*SMALL, "--quiet", "false", "--data", scenes, "--val", scenes, "--out", str(tmp_path), "--epochs", "2"]
    assert main([*small, "--tensorboard", "true", "--json", str(tmp_path / "result.json")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"epoch 2/2  loss \d\.\d+  cls \d\.\d+  reg \d\.\d+  lr \S+  \S+ images/s  val P \d", output)
    assert "reference operators" in output or "compiled operators" in output
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 2
