"""A deployed network on a CUDA device. These tests need only torch, as `make gpu` does."""

import copy

import pytest
import torch
from helpers import randomise_norms

from danet.config import ModelConfig
from danet.models import build_model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graphs_equal_the_network():
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano")).eval()
    randomise_norms(model)
    deployed = model.deploy(device="cuda")
    deployed.graphs.limit = 2
    for mode in (torch.no_grad, torch.inference_mode):
        for height in (64, 96, 75, 64, 96):
            images = torch.randn(1, 1, height, 80, device="cuda")
            with mode():
                expected = deployed.network(images)
                for result, plain in zip(deployed(images).logits, expected.logits, strict=True):
                    torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-4)
            assert len(deployed.graphs.graphs) <= 2
    twin = copy.deepcopy(deployed)
    assert not twin.graphs.graphs and twin.graphs.function is twin.network
    assert not deployed.to(torch.float16).graphs.graphs  # the old graphs read the old weights
