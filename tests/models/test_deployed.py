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
    """A random network in which every part changes the output, as after training."""
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
def test_deployed_network_equals_the_trained_one(config):
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
            # Rounding errors grow if sampling points are near pixel borders, also in the eager network.
            assert relative(result, exact) <= max(1e-5, 4 * relative(plain, exact))


def test_deploy_does_not_change_the_network():
    model = trained().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.deploy()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_deployed_network_in_other_dtypes(dtype):
    model = trained()
    deployed = model.deploy(dtype=dtype)
    image = torch.randn(1, 1, 64, 96)
    output, exact = deployed(image), copy.deepcopy(model).double()(image.double())
    assert output.features[0].dtype == dtype
    # The rounding errors of 20 layers; bfloat16 has a mantissa of 8 bits.
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    assert all(relative(a, b) < limit for a, b in zip(output.logits, exact.logits, strict=True))
    assert all(found.scores.dtype == torch.float32 for found in deployed.decode(output))


@torch.no_grad()
def test_deployed_network_can_be_converted():
    deployed = trained().deploy()
    image = torch.randn(1, 1, 64, 64)
    expected = deployed(image).logits[0]
    assert torch.equal(deployed.double().float()(image).logits[0], expected)


@torch.no_grad()
def test_deployed_detections_on_real_frames(real_data):
    model = trained(name="danet_s")
    # Norms get the statistics of these frames, so that no gate is saturated.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # running statistics become the mean over all frames
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
        assert abs(len(found[0].scores) - len(found[1].scores)) <= 2  # scores near the threshold


@torch.no_grad()
def test_deployed_network_does_not_leak_memory():
    deployed = trained(name="danet_s").deploy()
    image = torch.randn(1, 1, 256, 320)
    for _ in range(20):
        deployed(image)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        deployed(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


def test_deployed_copy_shares_nothing():
    deployed = trained().deploy()
    images = torch.randn(1, 1, 64, 80)
    with torch.no_grad():
        expected = deployed(images).logits
        twin = copy.deepcopy(deployed)
        for tensor in deployed.buffers():
            tensor.zero_()
        assert all(torch.equal(a, b) for a, b in zip(twin(images).logits, expected, strict=True))
    assert twin.graphs.function is twin.network
