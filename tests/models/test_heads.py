import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise_norms

from danet.models.blocks import MBB
from danet.models.heads import HEADS
from danet.models.heads.anchor_free import focal_loss

STRIDES = (4, 8)


def make_head(name, classes=2):
    torch.manual_seed(0)
    return HEADS[name](8, STRIDES, classes).eval()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_fused_head_predicts_the_same(name):
    head = make_head(name)
    randomise_norms(head)
    features = [torch.randn(2, 8, 9, 7), torch.randn(2, 8, 5, 4)]
    expected = head(features)
    fused = copy.deepcopy(head).fuse()
    assert isinstance(fused, type(head)) and not any(isinstance(module, MBB) for module in fused.modules())
    logits, deltas = fused(features)
    for found, wanted in zip((*logits, *deltas), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.boxes(deltas), head.boxes(deltas))
    assert torch.equal(fused.scores(logits), head.scores(logits))


@torch.no_grad()
def test_joint_convolution_predicts_scores_and_boxes():
    """CUDA devices use it in place of two convolutions."""
    head = make_head("paper")
    randomise_norms(head)
    towers, x = head.fuse().towers[0], torch.randn(2, 8, 9, 7)
    for dtype in (torch.float32, torch.float64):
        towers.to(dtype)  # the joint convolution must follow a conversion
        logits, deltas = towers(x.to(dtype))
        prepared, bias = towers.joint_convolution()
        weight = prepared.weight
        assert weight.dtype == bias.dtype == dtype and weight.is_contiguous(memory_format=torch.channels_last)
        both = F.conv2d(towers.blocks(x.to(dtype)), weight, bias, padding=1)
        torch.testing.assert_close(both, torch.cat([logits, deltas], 1))
        for parameter in towers.state_dict().values():
            parameter.mul_(1.5)
        towers.load_state_dict(towers.state_dict())
        assert torch.equal(towers.joint_convolution()[1], torch.cat([towers.classify.bias, towers.regress.bias]))


@pytest.mark.parametrize("name", HEADS)
def test_fused_head_predicts_in_float32_from_half_features(name):
    head = make_head(name).requires_grad_(False).fuse().bfloat16()
    head.predict_in_float32()
    logits, deltas = head([torch.randn(1, 8, 8, 8).bfloat16() for _ in STRIDES])
    assert all(each.dtype == torch.float32 for each in (*logits, *deltas))


@pytest.mark.parametrize("name", HEADS)
def test_score_parameters_decide_the_scores_alone(name):
    head = make_head(name, classes=3)
    features = [torch.randn(1, 8, 8, 8) for _ in STRIDES]
    _, deltas = head(features)
    with torch.no_grad():
        for parameter in head.score_parameters():
            # All outputs of class 1, of every prediction at a position.
            parameter.unflatten(0, (-1, head.score_channels))[:, head.background_channels + 1].fill_(5.0)
    logits, same_deltas = head(features)
    for level, changed in enumerate(logits):
        expected = make_head(name, classes=3)(features)[0][level]
        differs = (changed != expected).unflatten(1, (-1, head.score_channels)).amax((0, 1, 3, 4))
        assert differs.tolist() == [index == head.background_channels + 1 for index in range(head.score_channels)]
    assert all(torch.equal(a, b) for a, b in zip(deltas, same_deltas, strict=True))


def test_focal_loss_equals_its_definition():
    p, t = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([1.0, 0.0, 1.0])
    expected = torch.tensor(
        [-0.25 * 0.1**2 * math.log(0.9), -0.75 * 0.9**2 * math.log(0.1), -0.25 * 0.8**2 * math.log(0.2)]
    )
    assert torch.allclose(focal_loss(p.logit(), t, 0.25, 2.0), expected, atol=1e-6)
