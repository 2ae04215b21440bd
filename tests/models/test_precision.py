import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch

from danet.checkpoint import SHIPPED, load_weights
from danet.config import ModelConfig
from danet.models import build_model
from danet.models.precision import Differences, candidate_dtype, compare, generated_frames


@pytest.fixture(scope="module")
def shipped():
    return load_weights(SHIPPED, "cpu")[0]


def test_generated_frames_show_targets_to_the_shipped_weights(shipped):
    """Otherwise the comparison would compare nothing."""
    frames = generated_frames(1)
    assert torch.equal(frames, generated_frames(1))
    assert generated_frames(3).shape == (4, 3, 256, 320)
    deployed = shipped.deploy()
    found = compare(deployed, deployed, frames)
    assert found.score == found.box == 0 and found.predictions > 20


def test_half_precision_on_the_cpu_keeps_faint_targets():
    """A step of 0.001 on a level of 0.899: bfloat16 images would not show it."""
    torch.manual_seed(0)
    deployed = build_model(ModelConfig(name="danet_nano", classes=["drone"])).eval().deploy(dtype=torch.bfloat16)
    assert (deployed.dtype, deployed.input_dtype) == (torch.bfloat16, torch.float32)
    image = torch.full((1, 1, 64, 96), 0.899)
    image[:, :, 32:36, 48:52] += 0.001
    assert torch.equal(image.bfloat16(), torch.full_like(image, 0.899).bfloat16())
    stem = deployed.network.backbone.stem
    with torch.no_grad():
        assert stem(image).dtype == torch.bfloat16
        stem.out_dtype = None
        assert (stem(image) - stem(torch.full_like(image, 0.899))).abs().max() > 1e-4


def test_compare_finds_each_kind_of_difference(shipped):
    frames = generated_frames(1)
    deployed = shipped.deploy()
    for change, expected in (
        (lambda tower: tower.classify.bias.add_(0.5), "score"),
        (lambda tower: tower.regress.bias.add_(0.2), "box"),
        (lambda tower: tower.classify.bias.fill_(math.nan), "nan"),
    ):
        other = shipped.deploy()
        for tower in other.network.head.towers:
            change(tower)
        found = compare(deployed, other, frames)
        assert not found.is_tolerable
        assert math.isnan(found.score) == (expected == "nan")
        if expected != "nan":
            assert (found.score > 0.03, found.box > 0.5) == (expected == "score", expected == "box")


def test_auto_is_float32_without_matrix_unit(shipped):
    if torch.ops.danet.matrix_unit() != 0:
        pytest.skip("this processor has a matrix unit")
    deployed = shipped.deploy(dtype="auto")
    assert deployed.dtype == torch.float32
    assert deployed.dtype_reason == "the processor has no matrix unit for bfloat16"
    assert shipped.deploy().dtype_reason == ""
    assert candidate_dtype(torch.device("cuda"))[0] is None


def test_auto_falls_back_where_detections_differ(monkeypatch):
    """As on a processor with a matrix unit; the network amplifies rounding errors of its features."""
    monkeypatch.setattr("danet.models.danet.candidate_dtype", lambda device: (torch.bfloat16, "matrix unit"))
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone"])).eval()
    for parameter in model.head.score_parameters():
        parameter.data.mul_(1000 if parameter.ndim > 1 else 0)
    deployed = model.deploy(dtype="auto")
    assert deployed.dtype == torch.float32
    assert deployed.dtype_reason.startswith("bfloat16 is faster, but scores differ from float32 by at most ")


@pytest.mark.long
def test_auto_is_bfloat16_on_a_matrix_unit():
    program = (
        "import danet, torch; detector = danet.load(); print(detector.dtype); print(detector.dtype_reason); "
        "print(danet.load(dtype=torch.float32).dtype, danet.load(deploy=False).dtype)"
    )
    environment = {**os.environ, "DANET_CPU_CAPABILITY": "amx-emulated"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    dtype, reason, others = result.stdout.splitlines()
    assert dtype == "torch.bfloat16" and others == "torch.float32 torch.float32"
    assert reason.startswith("matrix unit AMX, emulated; scores differ from float32 by at most 0.0")


def test_differences_at_the_tolerance():
    exact = Differences(0.03, 0.5, 1)
    assert exact.is_tolerable
    assert not dataclasses.replace(exact, score=0.031).is_tolerable
    assert not dataclasses.replace(exact, box=0.51).is_tolerable
    assert not dataclasses.replace(exact, box=math.nan).is_tolerable
