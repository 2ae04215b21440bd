import re

import pytest
import torch
from foreign import Foreign
from helpers import randomise_norms
from torch import nn

from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.distill import Teacher, load_teacher
from danet.models import build_model
from danet.models.blocks import MBB
from danet.models.summary import count_flops
from danet.utils.errors import UserError


@pytest.mark.parametrize("size", [(64, 96), (70, 97)])
def test_teacher_returns_danet_features(size):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano"))
    randomise_norms(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 1, *size)
    with torch.no_grad():
        expected = model.eval()(images).features
    model.train()
    teacher = Teacher(model)
    assert teacher.widths == [16, 32, 64, 128]
    for found, wanted in zip(teacher(images), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert not found.requires_grad
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_teacher_from_other_network():
    network = Foreign().train()
    teacher = Teacher(network)
    assert teacher.widths == [6, 10, 12, 20]
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    images = torch.randn(2, 1, 64, 64)
    assert [list(m.shape[1:]) for m in teacher(images)] == [[6, 16, 16], [10, 8, 8], [12, 4, 4], [20, 2, 2]]
    assert torch.equal(teacher(images)[3], teacher(images)[3])  # no dropout


@pytest.mark.parametrize(
    ("network", "given"),
    [
        (Foreign(widths=(4, 4, 4), strides=(4, 2, 2)), r"\[\[2, 4, 16, 16\], \[2, 4, 8, 8\], \[2, 4, 4, 4\]\]"),
        (Foreign(strides=(2, 2, 2, 2)), r"\[\[2, 6, 32, 32\], .*"),
        (nn.Flatten(), r"\['?.*"),
    ],
)
def test_teacher_rejects_wrong_maps(network, given):
    with pytest.raises(ValueError, match=r"strides 4, 8, 16 and 32; of \[2, 1, 64, 64\] it gives " + given):
        Teacher(network)


def test_teacher_fingerprint_covers_buffers():
    torch.manual_seed(0)
    teacher = Teacher(Foreign())
    before = teacher.fingerprint()
    assert teacher.fingerprint() == before
    teacher.network.convs[0][1].running_mean[0] = 1.0
    assert teacher.fingerprint() != before


def test_load_teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano")))
    teacher = load_teacher(str(path), student=ModelConfig(), device=torch.device("cpu"))
    assert teacher.widths == [16, 32, 64, 128]
    with pytest.raises(UserError, match=r"missing\.safetensors: no such file"):
        load_teacher(str(tmp_path / "missing.safetensors"), student=ModelConfig(), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({}, {"input_channels": 3}, "model.input_channels 1, but the student has 3"),
        ({"local_contrast": True}, {"lags": [0.5]}, "model.local_contrast True, but the student has False"),
        ({"lags": [0.1]}, {"lags": [0.5]}, "model.lags [0.1], but the student has [0.5]"),
        ({"lags": [0.1, 0.5]}, {"lags": [0.5, 0.1]}, "model.lags [0.1, 0.5], but the student has [0.5, 0.1]"),
    ],
)
def test_load_teacher_refuses_another_input(tmp_path, teacher, student, message):
    """Also if the number of input channels agrees."""
    path = tmp_path / "teacher.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano", **teacher)))
    with pytest.raises(UserError, match=re.escape(f"teacher.safetensors: a teacher with {message}")):
        load_teacher(str(path), student=ModelConfig(**student), device=torch.device("cpu"))


def receptive_field(depths):
    """Receptive field of the deepest map in pixels; every block adds one position on both sides."""
    field, step = 3, 2
    for depth in depths:
        field += 2 * step
        step *= 2
        field += 2 * step * (depth - 1)
    return field


def test_teacher_capacity_matches_scale():
    """Compared with the student, the teachers spend more operations at strides 4 and 8, 8 and 16, or 16 and 32."""

    def blocks(name):
        model = build_model(ModelConfig(name=name))
        depths = [sum(isinstance(block, MBB) for block in stage) for stage in model.backbone.stages]
        cost = [
            depth * width**2 / 4**stage for stage, (depth, width) in enumerate(zip(depths, model.widths, strict=True))
        ]
        return model, depths, cost

    student, depths, cost = blocks("danet_s")
    flops = count_flops(student, (64, 64))
    for name, stages in (("teacher_small", (0, 1)), ("teacher_medium", (1, 2)), ("teacher_large", (2, 3))):
        teacher, its_depths, its_cost = blocks(name)
        assert 1.2 < count_flops(teacher, (64, 64)) / flops < 1.4
        assert sum(its_cost[i] for i in stages) > 1.3 * sum(cost[i] for i in stages)
        wide = receptive_field(its_depths) / receptive_field(depths)
        assert wide > 1.25 if name == "teacher_large" else wide < 1
