"""model.deploy(): the same detections as the trained network gives, in one fused form."""

import copy
import gc
import resource

import pytest
import torch
from helpers import randomise_norms

from danet.config import ModelConfig
from danet.data.coco_dataset import load_coco
from danet.data.normalize import normalize
from danet.models import DANet, build_model
from danet.models.acfa import ACFA
from danet.models.blocks import MBB
from danet.models.safem import SaFEM
from danet.utils.image_io import read_image


def trained(**options) -> DANet:
    """A network whose every part says something, as after training; float64 is its own judge."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{"name": "danet_nano", **options})).eval()
    randomise_norms(model)
    for name, parameter in model.named_parameters():
        if "predictor" in name or "ffn.2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


CONFIGS = {
    "default": {},
    "danet_s": {"name": "danet_s"},
    "anchors": {"head": "paper", "classes": ["drone", "bird"]},
    "no SaFEM": {"safem": False},
    "no ACFA": {"acfa": False},
    "literal": {"literal_softmax": True, "literal_acfa": True},
    "colour": {"input_channels": 3},
}


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_computes_what_the_trained_network_does(config):
    model = trained(**CONFIGS[config])
    images = torch.randn(2, model.config.input_channels, 75, 106)
    expected = copy.deepcopy(model).double()(images.double())
    deployed = model.deploy()
    assert not any(isinstance(module, (MBB, SaFEM)) for module in deployed.modules())
    assert not any(isinstance(module, ACFA) for module in deployed.modules()) or config == "literal"
    output, eager = deployed(images), model(images)
    for kind in ("features", "logits", "deltas"):
        for result, plain, exact in zip(*(getattr(o, kind) for o in (output, eager, expected)), strict=True):
            assert result.shape == exact.shape
            # Rounding grows where sampling points sit near pixel borders: for the eager network as well.
            assert relative(result, exact) <= max(1e-5, 4 * relative(plain, exact))


def test_leaves_the_trained_network_as_it_was():
    model = trained().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.deploy()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_other_types(dtype):
    model = trained()
    deployed = model.deploy(dtype=dtype)
    image = torch.randn(1, 1, 64, 96)
    output, exact = deployed(image), copy.deepcopy(model).double()(image.double())
    assert output.features[0].dtype == dtype
    # bfloat16 has 8 bits: what it adds up to over 20 layers; the boxes on real frames are the measure that counts.
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    assert all(relative(a, b) < limit for a, b in zip(output.logits, exact.logits, strict=True))
    assert all(found.scores.dtype == torch.float32 for found in deployed.decode(output))


@torch.no_grad()
def test_moves_and_converts_like_any_module():
    deployed = trained().deploy()
    image = torch.randn(1, 1, 64, 64)
    expected = deployed(image).logits[0]
    assert torch.equal(deployed.double().float()(image).logits[0], expected)


@torch.no_grad()
def test_the_same_detections_on_real_frames(real_data):
    """Scores within 1e-3, boxes within 0.05 pixel; norms as these frames leave them, so that nothing is saturated."""
    model = trained(name="danet_s")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all frames
    for tower in model.head.classify:
        torch.nn.init.normal_(tower[1].weight, std=0.1)
    records = load_coco(real_data / "svanstrom-ir-frames" / "val.json").records[::97][:12]
    images = torch.stack([torch.from_numpy(normalize(read_image(record.path), 1)) for record in records])
    model.train()(images)
    model.eval()
    deployed = model.deploy()
    for image in images.split(1):
        plain, fused = model(image), deployed(image)
        scores, fused_scores = model.head.scores(plain.logits), model.head.scores(fused.logits)
        assert scores.max() > 0.05 and 0.001 < scores.mean() < 0.5
        assert (scores - fused_scores).abs().max() < 1e-3
        assert (model.head.boxes(plain.deltas) - model.head.boxes(fused.deltas)).abs().max() < 0.05
        found = [network.decode(output)[0] for network, output in ((model, plain), (deployed, fused))]
        assert abs(len(found[0].scores) - len(found[1].scores)) <= 2  # a score that lies on the threshold


@torch.no_grad()
def test_memory_stays_flat():
    deployed = trained(name="danet_s").deploy()
    image = torch.randn(1, 1, 256, 320)
    for _ in range(20):
        deployed(image)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        deployed(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


def test_a_copy_shares_nothing_with_the_network_it_was_made_of():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 80)
    with torch.no_grad():
        expected = deployed(images).logits
        twin = copy.deepcopy(deployed)
        for tensor in deployed.buffers():
            tensor.zero_()
        assert all(torch.equal(a, b) for a, b in zip(twin(images).logits, expected, strict=True))
    assert twin.graphs.function is twin.network
