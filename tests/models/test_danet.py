import pytest
import torch
from helpers import randomise_norms

from danet.config import ModelConfig
from danet.data.loader import Batch
from danet.losses import DetectionLoss
from danet.models import build_model
from danet.models.acfa import ACFA
from danet.models.blocks import MBB
from danet.models.safem import SaFEM
from danet.models.summary import count_flops, count_parameters
from danet.utils.errors import UserError


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (75, 101)])
@pytest.mark.parametrize("head", ["default", "paper"])
def test_danet_detects_in_images_of_any_size(size, head):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"], head=head)).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 1, *size))
        detections = model.decode(output, score_threshold=0.0, max_detections=50)
    for feature, stride, width in zip(output.features, (4, 8, 16, 32), (16, 32, 64, 128), strict=True):
        assert feature.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
    assert len(detections) == 2
    for boxes, scores, labels in detections:
        assert 0 < len(boxes) <= 50
        assert boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (centres > -32).all() and (centres < torch.tensor([size[1], size[0]]) + 32).all()
        assert (scores.diff() <= 0).all()
        assert set(labels.tolist()) <= {0, 1}


def test_danet_rejects_wrong_images():
    model = build_model(ModelConfig(name="danet_nano"))
    with pytest.raises(ValueError, match=r"images must be \[N, 1, H, W\] with H, W >= 32, got \[1, 3, 64, 64\]"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"got \[1, 1, 31, 64\]"):
        model(torch.zeros(1, 1, 31, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "model.classes"),
        ({"classes": ["a", "a"]}, "model.classes"),
        ({"input_channels": 2}, "model.input_channels must be 1 or 3, got 2"),
        ({"widths": [8, 8, 8]}, "model.widths must be four positive numbers"),
        ({"depths": [1, 1, 0, 1]}, "model.depths must be four positive numbers"),
        ({"groups": 3}, "model.groups must divide every width, got 3"),
    ],
)
def test_build_model_rejects_impossible_configurations(change, message):
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(name="danet_nano", **change))


@pytest.mark.parametrize(("safem", "acfa"), [(True, True), (True, False), (False, True), (False, False)])
def test_safem_and_acfa_can_be_switched_off(safem, acfa):
    model = build_model(ModelConfig(name="danet_nano", safem=safem, acfa=acfa))
    backbone_safems = [m for m in model.backbone.modules() if isinstance(m, SaFEM)]
    acfas = [m for m in model.modules() if isinstance(m, ACFA)]
    assert len(backbone_safems) == (4 if safem else 0)
    assert len(acfas) == (3 if acfa else 0)
    batch = Batch(
        torch.randn(2, 1, 64, 64),
        [torch.tensor([[8.0, 8.0, 20.0, 18.0]]), torch.zeros(0, 4)],
        [torch.tensor([0]), torch.zeros(0, dtype=torch.long)],
        [torch.tensor([False]), torch.zeros(0, dtype=torch.bool)],
    )
    losses = DetectionLoss(model)(model(batch.images), batch)
    assert set(losses) == {"cls", "reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_fused_copy_equals_the_original(dtype, tolerance):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano")).to(dtype).eval()
    # Activations as in training, without saturated gates.
    randomise_norms(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = model.fused()
    assert not any(isinstance(m, MBB) for m in fused.modules())
    assert any(isinstance(m, MBB) for m in model.modules())
    image = torch.randn(1, 1, 64, 96, dtype=dtype)
    with torch.no_grad():
        expected, got = model(image), fused(image)
    for a, b in zip(expected.features + expected.logits, got.features + got.logits, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, a.abs().max().item())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_safem_starts_as_the_identity():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 7)
    assert torch.allclose(SaFEM(8)(x), x, atol=1e-6)
    assert torch.allclose(SaFEM(8, literal=True)(x), x / 8, atol=1e-6)


def test_safem_forward_is_gate_times_input():
    torch.manual_seed(0)
    for literal in (False, True):
        safem = SaFEM(8, literal=literal).eval()
        torch.nn.init.normal_(safem.ffn[2].weight)
        x = torch.randn(2, 8, 6, 7)
        gate = safem.gate(x)
        assert torch.allclose(safem(x), gate * x, atol=1e-6)
        assert torch.allclose(gate.sum(1), torch.full((2, 6, 7), 1.0 if literal else 8.0), atol=1e-5)


def test_acfa_equals_equation_5():
    torch.manual_seed(0)
    acfa = ACFA(8).eval()
    shallow, deep = torch.randn(1, 8, 9, 11), torch.randn(1, 8, 5, 6)
    # At the start w_s = 1 and w_d = sigmoid(0).
    expected = acfa.deconv(deep)[:, :, :9, :11] + 0.5 * shallow
    assert torch.allclose(acfa(shallow, deep), expected, atol=1e-5)
    literal = ACFA(8, literal=True).eval()
    literal.load_state_dict(acfa.state_dict())
    expected = shallow * acfa.deconv(deep)[:, :, :9, :11] + 0.5 * shallow
    assert torch.allclose(literal(shallow, deep), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "gflop"), [("danet", 13.5), ("danet_s", 4.0)])
def test_flops_of_the_deployed_network(name, gflop):
    model = build_model(ModelConfig(name=name))
    assert count_flops(model) / 1e9 == pytest.approx(gflop, rel=0.15)
    assert count_parameters(model) < sum(p.numel() for p in model.parameters())
