"""The networks in examples/networks train, and their deformable layers take part in it."""

import importlib.util
from pathlib import Path

import pytest
import torch

NETWORKS = sorted((Path(__file__).parents[1] / "examples/networks").glob("*.py"))


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_example_network_trains(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    network, input = module.build()
    target = torch.randn_like(network(input))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = (network(input) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    deformable = [p for name, p in network.named_parameters() if "predictor" in name or "dcn.offset" in name]
    assert deformable and all(p.grad is not None and p.grad.abs().sum() > 0 for p in deformable)
