"""Training of teachers and distillation with ``danet train``."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign import Foreign
from safetensors.torch import load_file
from scenes import write_scenes

from danet.checkpoint import load_weights, save_weights
from danet.config import ModelConfig
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import DetectionDataset, collate
from danet.data.transforms import Augmentation
from danet.distill import Distiller, Teacher, route
from danet.models import build_model
from danet.train import main
from danet.training.options import PRESETS, TrainOptions
from danet.training.trainer import Trainer
from danet.utils import cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STUDENT = ModelConfig(name="danet_nano", widths=[8, 16, 32, 64], depths=[1, 1, 1, 1], neck_width=16)
SHAPE = ["--model.widths", "[8, 16, 32, 64]", "--model.depths", "[1, 1, 1, 1]", "--model.neck_width", "16"]
COMMON = [*SHAPE, "--no-plots", "--threads", "1", "--quiet", "true", "--augmentation.crop", "[64, 64]"]
COMMON += ["--amp", "off"]  # auto chooses by measured times, so that two runs may differ
SMALL = ["--model.name", "danet_nano", *COMMON]
# Drones have 7 to 14 pixels, so that all three scales occur.
SCALES = ["--scale_edges", "9", "10.5", "--augmentation.scale", "[0.8, 1.2]"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(write_scenes(tmp_path_factory.mktemp("data") / "scenes", 12, seed=3))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Weights files of two teachers, as options; the teacher of medium targets is wider than the student."""
    folder = tmp_path_factory.mktemp("teachers")
    arguments = []
    for seed, (scale, widths) in enumerate({"small": [8, 16, 32, 64], "medium": [8, 24, 32, 64]}.items(), 1):
        torch.manual_seed(seed)
        model = build_model(dataclasses.replace(STUDENT, widths=widths))
        save_weights(folder / f"{scale}.safetensors", model)
        arguments += [f"--distill.{scale}", str(folder / f"{scale}.safetensors")]
    return arguments


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def only_error(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("danet train: error: ")


def test_resume_distilled_run(scenes, teachers, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*SMALL, *SCALES, *teachers, "--data", scenes, "--batch", "4", "--warmup_steps", "0"]
    assert main([*options, "--epochs", "3", "--schedule", "constant", "--out", str(whole)]) == 0
    assert main([*options, "--epochs", "1", "--schedule", "constant", "--out", str(parts)]) == 0
    assert main(["--resume", str(parts), "--epochs", "3"]) == 0
    assert (parts / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    for name in ("last.safetensors", "weights.safetensors"):
        expected, found = load_file(whole / name), load_file(parts / name)
        assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)

    terms = {name: rows(whole, name) for name in ("loss", "cls", "reg", "sskd")}
    assert all(0 <= value < 0.05 * 4 for value in terms["sskd"]) and sum(terms["sskd"]) > 0
    for total, *parts_of_it in zip(*terms.values(), strict=True):
        assert total == pytest.approx(sum(parts_of_it), rel=1e-5)

    state = load_file(whole / "last.safetensors")
    extras = [name for name in state if name.startswith("extras.")]
    assert extras and all(name.startswith("extras.sskd.eadms.") for name in extras)
    assert any(name.startswith("optimizer.exp_avg.extras.sskd.eadms.small.0.project_student") for name in state)
    student = build_model(STUDENT)
    assert load_file(whole / "weights.safetensors").keys() == student.state_dict().keys()

    # Teacher files may be moved, but their content must stay.
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(teachers[1]).read_bytes())
    assert main(["--resume", str(parts), "--distill.small", str(moved)]) == 0
    capsys.readouterr()
    assert main(["--resume", str(parts), "--distill.small", teachers[3]]) == 2
    assert "this run has distill.small with the content" in only_error(capsys)
    assert main(["--resume", str(parts), "--distill.weight", "0.1"]) == 2
    assert "this run has distill.weight 0.05, got 0.1" in only_error(capsys)


def test_distillation_changes_training(scenes, teachers, tmp_path):
    options = [*SMALL, *SCALES, "--data", scenes, "--batch", "4", "--epochs", "1"]
    plain, distilled, half = (tmp_path / name for name in ("plain", "distilled", "half"))
    assert main([*options, "--out", str(plain)]) == 0
    assert main([*options, *teachers, "--out", str(distilled), "--distill.weight", "1"]) == 0
    assert main([*options, *teachers, "--out", str(half), "--distill.weight", "1", "--amp", "bfloat16"]) == 0
    assert rows(plain, "cls")[0] == rows(distilled, "cls")[0] and rows(plain, "cls")[1] != rows(distilled, "cls")[1]
    assert rows(half, "sskd")[0] == pytest.approx(rows(distilled, "sskd")[0], rel=0.05)


@pytest.mark.long
def test_distillation_two_processes_match_one(scenes, teachers, tmp_path):
    options = [*SMALL, *SCALES, *teachers, "--data", scenes, "--batch", "4", "--epochs", "1", "--freeze_norm", "true"]
    options += ["--optimizer", "sgd", "--lr", "0.005", "--warmup_steps", "0", "--distill.weight", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, "-m", "danet.train", *options, "--out", str(two)], env=ENVIRONMENT, check=True, timeout=400
    )
    assert main([*options, "--out", str(one)]) == 0
    for name, tolerance in (("loss", 2e-5), ("sskd", 2e-5), ("grad_norm", 3e-4)):
        assert rows(two, name) == pytest.approx(rows(one, name), rel=tolerance)
    first, second = (load_file(folder / "last.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.startswith(("model.", "extras.")):
            torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5, msg=name)
    trained = first["extras.sskd.eadms.small.2.enhance_student.weight"]  # initially 1/k
    assert (trained - 1 / trained.shape[1]).abs().max() > 1e-5

    # All cases occurred: images for a teacher in both processes, in one, and in none.
    saved = preset("--config", str(one / "config.yaml"))
    dataset = DetectionDataset(saved.data, ["drone"], augmentation=saved.augmentation, seed=saved.seed)
    counts = set()
    for step in EpochSampler(dataset.sizes, dataset.weights, batch=4, epochs=1):
        parts = [collate([dataset[key] for key in step[rank::2]]) for rank in (0, 1)]
        found = [route(part.boxes, part.labels, part.ignore, edges=saved.scale_edges, target=0)[:2] for part in parts]
        counts |= set(zip(*(each.any(1).tolist() for each in found), strict=True))
    assert {(True, True), (True, False)} & counts and {(True, False), (False, True)} & counts


def test_trainer_with_other_teacher_network(scenes, tmp_path):
    options = TrainOptions(data=[scenes], out=str(tmp_path), epochs=1, batch=6, quiet=True, workers=0, ema=0.0)
    dataset = DetectionDataset(options.data, ["drone"], augmentation=Augmentation(crop=(64, 64)))
    model = build_model(STUDENT)
    network = Foreign()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    distiller = Distiller(model.widths, {"small": Teacher(network)}, edges=(100.0, 200.0))
    assert Trainer(options, model, dataset, [], torch.device("cpu"), {"sskd": distiller}).run()
    assert min(rows(tmp_path, "sskd")) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert load_file(tmp_path / "weights.safetensors").keys() == model.state_dict().keys()


def preset(*arguments: str) -> TrainOptions:
    found = []
    assert cli.run(found.append, TrainOptions, prog="danet train", presets=PRESETS, argv=arguments) == 0
    return found[0]


def test_teacher_presets():
    for scale in ("small", "medium", "large"):
        options = preset("--preset", "svanstrom", "--preset", f"teacher_{scale}", "--scale", scale)
        assert (options.model.name, options.scale, options.batch) == (f"teacher_{scale}", scale, 16)
        assert options.model.classes == ["drone", "bird", "airplane", "helicopter"]
        assert preset("--preset", f"teacher_{scale}").scale == scale
    assert preset("--preset", "teacher_small", "--scale", "null").scale is None
    assert (preset("--preset", "paper").batch, preset("--preset", "paper").distill.batch) == (8, 4)


def test_train_teacher_then_student(scenes, tmp_path, capsys):
    """The batch size of 4 (section 4.2) applies only while distilling."""
    small = [*COMMON, *SCALES, "--data", scenes, "--val", scenes, "--epochs", "1"]
    teacher = tmp_path / "teacher"
    assert main(["--preset", "teacher_small", "--scale", "small", *small, "--batch", "4", "--out", str(teacher)]) == 0
    found, _ = load_weights(teacher / "weights.safetensors")
    assert found.config.name == "teacher_small" and not (teacher / "metrics.csv").read_text().count("sskd")
    student = ["--preset", "paper", *SMALL, "--augmentation.crop", "[64, 64]", "--data", scenes, "--epochs", "1"]
    student += ["--scale_edges", "9", "10.5"]
    assert main([*student, "--out", str(tmp_path / "plain")]) == 0
    weights = str(teacher / "weights.safetensors")
    assert main([*student, "--distill.small", weights, "--out", str(tmp_path / "student")]) == 0
    assert (len(rows(tmp_path / "plain", "loss")), len(rows(tmp_path / "student", "loss"))) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--distill.small", "missing.safetensors"], "missing.safetensors: no such file"),
        (["--distill.weight", "-1"], "distill.weight must be 0 or more, got -1"),
        (["--distill.batch", "0"], "distill.batch must be positive, got 0"),
        (["--distill.tiny", "a"], "unknown option --distill.tiny"),
        (["--scale", "tiny"], "--scale: expected one of small, medium, large or null, got 'tiny'"),
        (["--scale_edges", "9", "3"], "scale_edges must be two positive numbers of pixels, the smaller first"),
        (["--target", "bird"], "target bird: not a class of the model (drone)"),
        (["--scale", "large", "--scale_edges", "9", "300"], "no image has a drone of scale large (from 300 pixels)"),
        (
            ["--scale", "large", "--scale_edges", "9", "20"],
            "--val: no image has a drone of scale large (from 20",
        ),
    ],
)
def test_invalid_options(scenes, tmp_path, capsys, arguments, words):
    options = [*SMALL, "--data", scenes, "--val", scenes, "--augmentation.scale", "[1.0, 3.0]"]
    assert main([*options, "--out", str(tmp_path / "run"), *arguments]) == 2
    assert words in only_error(capsys)
    assert not (tmp_path / "run").exists()
