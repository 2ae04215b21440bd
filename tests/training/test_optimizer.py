import math

import pytest
import torch
from torch import nn

from danet.training.optimizer import average_weights, build_optimizer, freeze_norms, freeze_parts, learning_rate
from danet.training.options import TrainOptions


def test_learning_rate_warmup_and_cosine():
    options = TrainOptions(lr=1.0, warmup_steps=10, final_lr=0.01)
    rates = [learning_rate(step, 110, options) for step in range(110)]
    assert rates[:10] == pytest.approx([i / 11 for i in range(1, 11)])
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.505)  # halfway through the cosine
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.01, rel=0.05)


def test_learning_rate_limits_warmup():
    options = TrainOptions(lr=1.0, warmup_steps=1000, schedule="constant")
    assert [learning_rate(step, 20, options) for step in range(20)] == pytest.approx([1 / 3, 2 / 3] + [1.0] * 18)


@pytest.mark.parametrize("decay_norms", [False, True])
def test_optimizer_weight_decay_groups(decay_norms):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(model, TrainOptions(weight_decay=0.1, decay_norms=decay_norms))
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = [0.1] + [0.1 if decay_norms else 0.0] * 3
    assert [decay[p] for p in model.parameters()] == expected


def test_average_weights():
    model = nn.BatchNorm1d(1)
    average = average_weights(model, 0.5)
    expected = math.nan
    for n, value in enumerate([4.0, 8.0, 2.0, 6.0, 1.0, 3.0, 5.0, 7.0, 9.0, 2.0, 4.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_var.fill_(value)
            model.num_batches_tracked.fill_(n)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
        assert average.module.running_var.item() == pytest.approx(expected)
        assert average.module.num_batches_tracked.item() == n


def test_freeze_norms():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    freeze_norms(model)
    model(torch.randn(8, 2)).square().sum().backward()
    assert model[1].running_mean.eq(0).all() and model[1].num_batches_tracked == 0
    assert model[1].weight.grad.ne(0).all()


def test_freeze_parts_keeps_parameters_and_statistics():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Linear(3, 1)).train()
    freeze_parts(model, ["0"])
    optimizer = build_optimizer(model, TrainOptions(lr=0.1))
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {*model[1].parameters()}
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    model(torch.randn(8, 2)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
