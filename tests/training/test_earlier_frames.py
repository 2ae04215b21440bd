"""Trainings with ``model.lags`` on data in which some or all earlier frames are missing."""

from dataclasses import replace

import pytest
import torch
from scenes import write_scenes

from danet.data.coco_dataset import load_coco, write_coco
from danet.train import main
from danet.training import state


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6)


def with_past(scenes, name, ages):
    """The json of the scenes, in which image i has the first image as an earlier frame of age ``ages[i]``."""
    records = load_coco(scenes).records
    for index, age in ages.items():
        records[index] = replace(records[index], past=((age, records[0].path),))
    path = scenes.with_name(f"{name}.json")
    write_coco(path, records, ["drone", "bird"])
    return str(path)


def train(data, out, *words):
    threads = torch.get_num_threads()
    model = ["--model.name", "danet_nano", "--model.lags", "[0.1, 0.5]", "--augmentation.crop", "[64, 64]"]
    try:
        return main(["--data", data, "--out", str(out), *model, "--epochs", "1", "--threads", "1", *words])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("ages", "lag"), [({}, "0.1"), ({1: 0.1, 2: 0.11}, "0.5"), ({1: 0.2, 2: 0.5}, "0.1"), ({1: 0.5, 2: 0.55}, "0.1")]
)
def test_training_stops_if_no_image_has_the_earlier_frame_of_a_lag(scenes, tmp_path, capsys, ages, lag):
    assert train(with_past(scenes, "without", ages), tmp_path / "run", "--no-plots") == 2
    error = capsys.readouterr().err
    assert f"model.lags: no training image has an earlier frame for lag {lag} s" in error and f"--lags {lag}," in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_training_warns_with_the_number_of_images_without_earlier_frames(scenes, tmp_path, capsys):
    data = with_past(scenes, "some", {1: 0.1, 2: 0.11, 3: 0.5})
    val = with_past(scenes, "val", {1: 0.5})
    assert train(data, tmp_path / "run", "--val", val, "--no-plots") == 0
    captured = capsys.readouterr()
    channels = "; their input channels are zero"
    expected = [
        f"model.lags: of 6 training images, 4 lack the earlier frame for lag 0.1 s and 5 for lag 0.5 s{channels}",
        f"model.lags: of 6 validation images, 6 lack the earlier frame for lag 0.1 s and 5 for lag 0.5 s{channels}",
    ]
    for line in expected:
        assert f"warning: {line}\n" in captured.out  # before the first step
        assert f"danet train: warning: {line}\n" in captured.err  # after the last one


def test_training_does_not_warn_if_every_image_has_earlier_frames(scenes, tmp_path, capsys):
    data = with_past(scenes, "every", dict.fromkeys(range(6), 0.1))
    assert train(data, tmp_path / "run", "--model.lags", "[0.1]", "--no-plots") == 0
    captured = capsys.readouterr()
    assert "lags" not in captured.out + captured.err


def test_resume_refuses_another_definition_of_the_further_channels(scenes, tmp_path, monkeypatch, capsys):
    data, out = with_past(scenes, "resumed", {1: 0.1, 2: 0.5}), tmp_path / "run"
    monkeypatch.setattr(state, "EXTRA_CHANNELS_VERSION", 1)
    assert train(data, out, "--no-plots") == 0
    monkeypatch.undo()
    assert main(["--resume", str(out), "--epochs", "2"]) == 2
    assert "another definition of the input channels" in capsys.readouterr().err
