import dataclasses

import pytest
import torch
import yaml
from safetensors.torch import load_file
from scenes import write_scenes

import danet.training.mixed_precision as mixed_precision
import danet.training.run as training_run
from danet.config import ModelConfig
from danet.models import build_model
from danet.train import main
from danet.training import TrainOptions, train
from danet.training.mixed_precision import MIN_SPEEDUP, choose_amp, may_be_faster, measure_speedup
from danet.training.run_folder import CONFIG, STATE, WEIGHTS


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(name="danet_nano"))


def test_measuring_leaves_the_network_unchanged(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure_speedup(model, torch.randn(2, 1, 64, 64)) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("speedup", "amp"), [(MIN_SPEEDUP - 0.01, "off"), (MIN_SPEEDUP, "bfloat16")])
def test_choice_by_speedup(monkeypatch, model, speedup, amp):
    monkeypatch.setattr(mixed_precision, "measure_speedup", lambda model, images: speedup)
    chosen, reason = choose_amp(model, torch.zeros(1, 1, 64, 64))
    assert chosen == amp and reason.startswith(f"a training step is {speedup:.3f} times as fast in bfloat16")


@pytest.mark.parametrize(
    ("matrix_unit", "instruction_set", "capabilities", "expected"),
    [
        ("AMX", "AVX-512", {}, True),
        ("none", "AVX-512", {"avx512_bf16": True}, True),
        ("none", "AVX-512", {"avx512_bf16": False}, False),
        ("none", "AVX2 and FMA", {"avx512_bf16": True}, False),  # DANET_CPU_CAPABILITY=avx2
        ("none", "none", {"avx512_bf16": True}, True),  # reference operators
        ("none", "AVX-512", None, False),  # a torch without this function
    ],
)
def test_which_processors_are_measured(monkeypatch, matrix_unit, instruction_set, capabilities, expected):
    facts = {"matrix_unit": matrix_unit, "instruction_set": instruction_set}
    monkeypatch.setattr(mixed_precision, "info", lambda: facts)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert may_be_faster() is expected


def test_run_stores_the_choice_and_keeps_it_on_resume(monkeypatch, tmp_path, capsys):
    """The run starts where a step in bfloat16 is measured as faster, and is resumed where it is measured as slower."""
    data = str(write_scenes(tmp_path / "scenes", 8))
    words = ["--model.name", "danet_nano", "--data", data, "--augmentation.crop", "64x64", "--batch", "4", "--no-plots"]
    monkeypatch.setattr(training_run, "may_be_faster", lambda: True)
    monkeypatch.setattr(mixed_precision, "measure_speedup", lambda model, images: 2.0)
    assert main([*words, "--out", str(tmp_path / "run"), "--epochs", "1", "--schedule", "constant"]) == 0
    assert "mixed precision bfloat16: a training step is 2.000 times as fast in bfloat16" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / CONFIG).read_text())["amp"] == "bfloat16"

    monkeypatch.setattr(mixed_precision, "measure_speedup", lambda model, images: 0.5)
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert "mixed precision" not in capsys.readouterr().out
    whole = [*words, "--out", str(tmp_path / "whole"), "--epochs", "2", "--schedule", "constant", "--amp", "bfloat16"]
    assert main([*whole, "--quiet"]) == 0
    resumed, expected = (load_file(tmp_path / name / WEIGHTS) for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_python_resumes_with_the_stored_choice(monkeypatch, tmp_path):
    """Options with resume=True take the stored amp, also "auto", which a run without a matrix unit stores."""
    data = [str(write_scenes(tmp_path / "scenes", 8))]
    monkeypatch.setattr(mixed_precision, "measure_speedup", lambda model, images: 2.0)
    for amp, candidate in (("bfloat16", True), ("auto", False)):
        out = str(tmp_path / amp)
        options = TrainOptions(data, out=out, epochs=1, batch=4, schedule="constant", quiet=True, plots=False)
        options.model = ModelConfig(name="danet_nano")
        options.augmentation = dataclasses.replace(options.augmentation, crop=(64, 64))
        monkeypatch.setattr(training_run, "may_be_faster", lambda candidate=candidate: candidate)
        assert train(options).steps == 2
        monkeypatch.setattr(training_run, "may_be_faster", lambda: True)
        if amp == "bfloat16":
            (tmp_path / amp / STATE).unlink()  # as if the run was interrupted before its first save
            monkeypatch.setattr(mixed_precision, "measure_speedup", lambda model, images: 0.5)
        assert train(dataclasses.replace(options, resume=True, epochs=2)).steps == 4
        assert yaml.safe_load((tmp_path / amp / CONFIG).read_text())["amp"] == amp
