import math

import pytest
import torch

from danet.distill.ekem import EKEM


@pytest.mark.parametrize("channels", [1, 6, 32, 600])
def test_ekem_matches_loop(channels):
    """sigmoid(LCDC(F)) * F by a loop, with k = floor_odd((log2(C) + 1) / 2)."""
    torch.manual_seed(channels)
    ekem = EKEM(channels).double()
    k = math.floor((math.log2(channels) + 1) / 2)
    k = max(k - (k % 2 == 0), 1)
    assert ekem.weight.shape == (1, k)
    torch.testing.assert_close(ekem.weight.sum().item(), 1.0)
    torch.nn.init.normal_(ekem.weight)
    x = torch.randn(2, channels, 3, 2, dtype=torch.float64)
    expected = torch.empty_like(x)
    for n in range(2):
        for y in range(3):
            for column in range(2):
                for c in range(channels):
                    total = 0.0
                    for j in range(k):
                        other = c + j - k // 2
                        if 0 <= other < channels:
                            total += ekem.weight[0, j].item() * x[n, other, y, column].item()
                    expected[n, c, y, column] = x[n, c, y, column] / (1 + math.exp(-total))
    torch.testing.assert_close(ekem(x), expected)


def test_ekem_initial_gate():
    x = torch.zeros(1, 16, 1, 2)
    x[..., 0], x[..., 1] = 20.0, 0.01
    gate = EKEM(16)(x) / x
    assert gate[0, 1:-1, 0, 0].min() > 0.999 and gate[..., 1].max() < 0.51
