import math

import pytest
import torch
from helpers import randomise_norms
from torch import nn

from danet.config import ModelConfig
from danet.distill import EADM
from danet.distill.eadm import distance
from danet.models import build_model


def loop_distance(augmented, target):
    """``distance`` of one image by a loop in float64."""
    C, H, W = augmented.shape

    def moments(channel):
        values = [v.item() for v in channel.double().flatten()]
        mean = sum(values) / len(values)
        return mean, sum((v - mean) ** 2 for v in values) / len(values)

    variances = [moments(target[c])[1] for c in range(C)]
    total = 0.0
    for c in range(C):
        mean_a, var_a = moments(augmented[c])
        mean_t, var_t = moments(target[c])
        for y in range(H):
            for x in range(W):
                a = (augmented[c, y, x].item() - mean_a) / math.sqrt(var_a + 1e-5)
                t = (target[c, y, x].item() - mean_t) / math.sqrt(var_t + 0.01 * sum(variances) / C + 1e-5)
                total += (a - t) ** 2
    return total / (C * H * W)


def test_distance_matches_loop():
    torch.manual_seed(0)
    augmented, target = torch.rand(2, 3, 4, 5, 6)
    target *= torch.tensor([1.0, 3.0, 0.01, 2.0])[:, None, None]
    expected = [loop_distance(a, t) for a, t in zip(augmented, target, strict=True)]
    assert distance(augmented, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_distance_scale_invariant_and_finite():
    torch.manual_seed(0)
    a, t = torch.rand(2, 8, 6, 6), torch.rand(2, 8, 6, 6)
    plain = distance(a, t)
    torch.testing.assert_close(distance(3 * a + 1, 5 * t + 2), plain, rtol=1e-3, atol=0)
    torch.testing.assert_close(distance(t, t), torch.zeros(2), rtol=0, atol=1e-3)
    x = torch.zeros(2, 8, 6, 6, requires_grad=True)
    distance(x, t).sum().backward()
    assert x.grad.isfinite().all()
    assert distance(x, torch.zeros_like(t)).tolist() == [0, 0]
    # Constant features are far from a match: the distance is about 1, the variance of the standardized target.
    assert (distance(x, t) > 0.9).all()


def test_distance_is_float32_and_detaches_target():
    a, t = (torch.rand(2, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        result = distance(a, t)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert a.grad is not None and t.grad is None


def test_eadm_is_eq_8():
    torch.manual_seed(0)
    module = EADM(8, 8)
    student, teacher = torch.rand(2, 8, 6, 7), torch.rand(2, 8, 6, 7)
    target = torch.sigmoid(teacher) * teacher  # k = 1 at 8 channels
    projected = module.project_student(torch.sigmoid(student) * student)
    augmented = module.integrate(projected, module.select(target))
    expected = distance(augmented, target)
    found_augmented, found_target = module.project(student, teacher)
    torch.testing.assert_close(found_target, target)
    torch.testing.assert_close(found_augmented, augmented)
    torch.testing.assert_close(module(student, teacher), expected)


@pytest.mark.parametrize("literal", [False, True])
def test_eadm_trained_parameters(literal):
    torch.manual_seed(0)
    module = EADM(8, 16, literal=literal)
    student = torch.rand(2, 8, 6, 7, requires_grad=True)
    module(student, torch.rand(2, 16, 6, 7)).sum().backward()
    assert student.grad.ne(0).any()
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None and p.grad.ne(0).any()}
    both = {"adapter", "enhance_student", "project_student", "select", "integrate"}
    assert trained == (both | {"enhance_teacher", "project_teacher"} if literal else both)


def effective_rank(x: torch.Tensor) -> float:
    """exp(entropy) of the normalized eigenvalues of the channels' covariance over images and positions."""
    x = x.permute(1, 0, 2, 3).flatten(1).double()
    x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)
    energy = torch.linalg.svdvals(x).square()
    p = energy / energy.sum()
    return torch.exp(-(p * (p + 1e-30).log()).sum()).item()


class DistilledStage:
    """Trains the second stage of a danet_nano on a teacher's second stage: four images, distillation loss only.

    ``flat``: the student's features are replaced by their means, constant over images and positions.
    """

    def __init__(self, *, literal: bool = False, flat: bool = False, steps: int = 60) -> None:
        torch.manual_seed(0)
        teacher, student = (build_model(ModelConfig(name="danet_nano")).backbone for _ in range(2))
        randomise_norms(teacher)
        self.flat = flat
        self.student = nn.Sequential(student.stem, *student.stages[:2]).train()
        self.eadm = EADM(32, 32, literal=literal)
        self.images = nn.functional.interpolate(torch.randn(4, 1, 16, 16), size=(64, 64), mode="bicubic")
        with torch.no_grad():
            self.map = nn.Sequential(teacher.stem, *teacher.stages[:2]).eval()(self.images)
        self.before = self.measure()
        optimizer = torch.optim.AdamW([*self.student.parameters(), *self.eadm.parameters()], lr=4e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.eadm(self.features(), self.map).mean()
            loss.backward()
            optimizer.step()
        self.after = self.measure()
        self.loss = loss.item()

    def features(self) -> torch.Tensor:
        features = self.student(self.images)
        return features.mean(dim=(0, 2, 3), keepdim=True).expand_as(features) if self.flat else features

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Effective rank and variance of the student's features and of both sides of the distance."""
        features = self.student(self.images)
        augmented, target = self.eadm.project(self.features(), self.map)
        named = {"features": features, "augmented": augmented, "target": target}
        return {
            **{f"rank of {name}": effective_rank(x) for name, x in named.items()},
            **{f"variance of {name}": x.var(dim=(0, 2, 3)).mean().item() for name, x in named.items()},
        }


def test_distillation_keeps_rank_and_variance():
    stage = DistilledStage()
    before, after = stage.before, stage.after
    assert stage.loss < 0.4
    # The target has not changed; the student approaches its rank and does not shrink.
    assert after["rank of target"] == before["rank of target"]
    assert after["variance of target"] == before["variance of target"]
    assert after["rank of augmented"] > 0.8 * after["rank of target"]
    assert after["rank of features"] > 0.8 * after["rank of target"]
    assert after["variance of augmented"] > 0.7 * before["variance of augmented"]
    assert after["variance of features"] > 0.7 * before["variance of features"]
    # The teacher's selected channels alone do not reach the loss.
    assert DistilledStage(flat=True).loss > 1.5 * stage.loss


def test_trained_target_loses_rank():
    """The reason why the teacher's branch is not trained, and a check that the test above detects a collapse."""
    stage = DistilledStage(literal=True)
    assert stage.after["rank of target"] < 0.5 * stage.before["rank of target"]
    assert stage.after["rank of augmented"] < 0.5 * stage.before["rank of augmented"]
