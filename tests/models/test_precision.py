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
from danet.ops import info


@pytest.fixture(scope="module")
def shipped():
    return load_weights(SHIPPED, "cpu")[0]


def test_generated_frames_show_targets_to_the_shipped_weights(shipped):
    """The comparison of dtypes needs predictions: the shipped weights must find targets in the generated frames."""
    frames = generated_frames(1)
    assert torch.equal(frames, generated_frames(1))
    assert generated_frames(3).shape == (4, 3, 256, 320)
    deployed = shipped.deploy()
    found = compare(deployed, deployed, frames)
    assert found.score == found.box == 0 and found.predictions > 20


def test_half_precision_on_the_cpu_keeps_faint_targets():
    """A target 0.001 above a background of 0.899 is lost if the image is rounded to bfloat16."""
    torch.manual_seed(0)
    deployed = build_model(ModelConfig(name="danet_nano", classes=["drone"])).eval().deploy(dtype=torch.bfloat16)
    assert (deployed.dtype, deployed.input_dtype) == (torch.bfloat16, torch.float32)
    image = torch.full((1, 1, 64, 96), 0.899)
    image[:, :, 32:36, 48:52] += 0.001
    assert torch.equal(image.bfloat16(), torch.full_like(image, 0.899).bfloat16())
    with torch.no_grad():
        with_target, without = (deployed(x).logits[0] for x in (image, torch.full_like(image, 0.899)))
    assert not torch.equal(with_target, without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_the_cpu_rounds_only_the_result_of_the_first_layer(shipped, dtype):
    stem, exact = shipped.deploy(dtype=dtype).network.backbone.stem, shipped.deploy().network.backbone.stem
    image = torch.randn(1, 1, 64, 64)
    # Half a unit in the last place, and the error of the products on the matrix unit
    tolerance = {"rtol": 0.501 * torch.finfo(dtype).eps, "atol": 1e-4}
    with torch.no_grad():
        expected = exact(image)
        torch.testing.assert_close(stem(image).float(), expected, **tolerance)
        rounded = exact(image.to(dtype).float())
        assert not torch.allclose(rounded, expected, **tolerance)


@torch.no_grad()
def test_converted_half_precision_networks_run(shipped):
    image = torch.randn(1, 1, 64, 64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        converted = shipped.deploy(dtype=torch.bfloat16).to(dtype)
        half = dtype in (torch.float16, torch.bfloat16)
        assert (converted.dtype, converted.input_dtype) == (dtype, torch.float32 if half else dtype)
        assert converted(image).features[0].dtype == dtype


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
        assert not compare(other, deployed, frames).is_tolerable
        assert math.isnan(found.score) == (expected == "nan")
        if expected != "nan":
            assert (found.score > 0.03, found.box > 0.5) == (expected == "score", expected == "box")


def test_compare_sees_false_alarms_of_the_other_network(shipped):
    """Predictions whose score is high in only one of the networks."""
    silent, deployed = shipped.deploy(), shipped.deploy()
    for tower in silent.network.head.towers:
        tower.classify.bias.fill_(-20)
    for pair in ((silent, deployed), (deployed, silent)):
        assert compare(*pair, generated_frames(1)).score > 0.3


def test_comparison_with_too_few_predictions_is_not_tolerable():
    deployed = build_model(ModelConfig(name="danet_nano", classes=["drone"])).eval().deploy()
    found = compare(deployed, deployed, generated_frames(1))
    assert found.score == found.box == 0 and found.predictions < 10 and not found.is_tolerable
    assert "predictions on generated frames could be compared" in str(found)


def test_auto_is_float32_without_fast_bfloat16(shipped):
    if torch.ops.danet.is_bfloat16_fast():
        pytest.skip("this processor has fast instructions for bfloat16")
    deployed = shipped.deploy(dtype="auto")
    assert deployed.dtype == torch.float32
    unit = info()["matrix_unit"]
    expected = (
        "the kernels use no instructions for bfloat16 on this processor"
        if unit == "none"
        else f"this processor multiplies float32 faster than bfloat16, although it has {unit}"
    )
    assert deployed.dtype_reason == expected
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
    assert deployed.dtype_reason.startswith("matrix unit; bfloat16 was rejected: scores differ from float32 by up to ")


AUTO = """
import sys, torch, danet
import danet.models.precision
if sys.argv[1] == "fast":
    danet.models.precision.measure_speedup = lambda *arguments: 1.5
detector = danet.load()
print(detector.dtype)
print(detector.dtype_reason)
print(danet.load(dtype=torch.float32).dtype, danet.load(deploy=False).dtype)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("speed", "expected", "start"),
    [
        ("fast", "torch.bfloat16", "the processor has AMX, emulated; 1.50 times as fast as float32; scores differ "),
        ("emulated", "torch.float32", "the processor has AMX, emulated; bfloat16 was rejected: 0."),
    ],
)
def test_auto_on_a_matrix_unit(speed, expected, start):
    command = [sys.executable, "-c", AUTO, speed]
    environment = {**os.environ, "DANET_CPU_CAPABILITY": "amx-emulated"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    dtype, reason, others = result.stdout.splitlines()
    assert (dtype, others) == (expected, "torch.float32 torch.float32")
    assert reason.startswith(start)


def test_differences_at_the_tolerance():
    exact = Differences(0.03, 0.5, 10)
    assert exact.is_tolerable
    assert not dataclasses.replace(exact, score=0.031).is_tolerable
    assert not dataclasses.replace(exact, box=0.51).is_tolerable
    assert not dataclasses.replace(exact, box=math.nan).is_tolerable
    assert not dataclasses.replace(exact, predictions=9).is_tolerable
