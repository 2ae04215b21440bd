import math

import pytest
import torch
from helpers import randomise_norms
from torch import nn

from danet.config import ModelConfig
from danet.distill import EADM
from danet.distill.eadm import distance
from danet.models import build_model


def plain_distance(augmented, target):
    """``distance`` of one image by a plain loop in float64."""
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


def test_distance_by_a_plain_loop():
    torch.manual_seed(0)
    augmented, target = torch.rand(2, 3, 4, 5, 6)
    target *= torch.tensor([1.0, 3.0, 0.01, 2.0])[:, None, None]
    expected = [plain_distance(a, t) for a, t in zip(augmented, target, strict=True)]
    assert distance(augmented, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_distance_is_blind_to_scale_and_finite_for_constants():
    torch.manual_seed(0)
    a, t = torch.rand(2, 8, 6, 6), torch.rand(2, 8, 6, 6)
    plain = distance(a, t)
    torch.testing.assert_close(distance(3 * a + 1, 5 * t + 2), plain, rtol=1e-3, atol=0)
    torch.testing.assert_close(distance(t, t), torch.zeros(2), rtol=0, atol=1e-3)
    x = torch.zeros(2, 8, 6, 6, requires_grad=True)
    distance(x, t).sum().backward()
    assert x.grad.isfinite().all()
    assert distance(x, torch.zeros_like(t)).tolist() == [0, 0]
    # Shrinking to a constant is no better than being unrelated by more than its own variance, and far from a match.
    assert (distance(x, t) > 0.9).all()


def test_distance_is_float32_and_holds_the_target_still():
    a, t = (torch.rand(2, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        result = distance(a, t)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert a.grad is not None and t.grad is None


def test_composition_is_eq_8():
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
def test_what_learns(literal):
    torch.manual_seed(0)
    module = EADM(8, 16, literal=literal)
    student = torch.rand(2, 8, 6, 7, requires_grad=True)
    module(student, torch.rand(2, 16, 6, 7)).sum().backward()
    assert student.grad.ne(0).any()
    learned = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None and p.grad.ne(0).any()}
    both = {"adapter", "enhance_student", "project_student", "select", "integrate"}
    assert learned == (both | {"enhance_teacher", "project_teacher"} if literal else both)


def effective_rank(x: torch.Tensor) -> float:
    """exp(entropy) of the spectrum of the channels' covariance over images and positions."""
    x = x.permute(1, 0, 2, 3).flatten(1).double()
    x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)
    energy = torch.linalg.svdvals(x).square()
    p = energy / energy.sum()
    return torch.exp(-(p * (p + 1e-30).log()).sum()).item()


class Learning:
    """The second stage of a danet_nano learns that of a teacher from four images, by the distillation loss alone."""

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
        self.before = self.look()
        optimizer = torch.optim.AdamW([*self.student.parameters(), *self.eadm.parameters()], lr=4e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.eadm(self.features(), self.map).mean()
            loss.backward()
            optimizer.step()
        self.after = self.look()
        self.loss = loss.item()

    def features(self) -> torch.Tensor:
        features = self.student(self.images)
        return features.mean(dim=(0, 2, 3), keepdim=True).expand_as(features) if self.flat else features

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Effective rank and variance of the student's features and of both sides of the distance."""
        features = self.student(self.images)
        augmented, target = self.eadm.project(self.features(), self.map)
        named = {"features": features, "augmented": augmented, "target": target}
        return {
            **{f"rank of {name}": effective_rank(x) for name, x in named.items()},
            **{f"variance of {name}": x.var(dim=(0, 2, 3)).mean().item() for name, x in named.items()},
        }


def test_the_distance_is_not_won_by_shrinking_or_flattening():
    learning = Learning()
    before, after = learning.before, learning.after
    assert learning.loss < 0.4
    # The target is what it was; the student's side has come near its rank and has not shrunk.
    assert after["rank of target"] == before["rank of target"]
    assert after["variance of target"] == before["variance of target"]
    assert after["rank of augmented"] > 0.8 * after["rank of target"]
    assert after["rank of features"] > 0.8 * after["rank of target"]
    assert after["variance of augmented"] > 0.7 * before["variance of augmented"]
    assert after["variance of features"] > 0.7 * before["variance of features"]
    # What the teacher gives beforehand does not replace the student.
    assert Learning(flat=True).loss > 1.5 * learning.loss


def test_a_target_that_learns_loses_its_rank():
    """Why the teacher's side is held still, and that the test above would notice."""
    learning = Learning(literal=True)
    assert learning.after["rank of target"] < 0.5 * learning.before["rank of target"]
    assert learning.after["rank of augmented"] < 0.5 * learning.before["rank of augmented"]
