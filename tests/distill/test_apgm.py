import math

import pytest
import torch
import torch.nn.functional as F

from danet.distill.apgm import TPKI, TPKS


def linear(weight, bias, x):
    return [b + sum(w * value for w, value in zip(row, x, strict=True)) for row, b in zip(weight, bias, strict=True)]


@pytest.mark.parametrize("channels", [5, 16, 48])
def test_tpks_matches_loop(channels):
    """SE weights; the C/8 largest of each image in the order of their index; each channel times its weight."""
    torch.manual_seed(channels)
    select = TPKS(channels)
    x = torch.rand(3, channels, 4, 5)
    result = select(x)
    assert result.shape == (3, max(channels // 8, 1), 4, 5)
    w1, b1, w2, b2 = (t.double().tolist() for t in select.parameters())
    for n in range(3):
        mean = [x[n, c].double().mean().item() for c in range(channels)]
        hidden = [max(0.0, value) for value in linear(w1, b1, mean)]
        weights = [1 / (1 + math.exp(-value)) for value in linear(w2, b2, hidden)]
        best = sorted(range(channels), key=lambda c: -weights[c])[: result.shape[1]]
        for position, c in enumerate(sorted(best)):
            torch.testing.assert_close(result[n, position], weights[c] * x[n, c])
    assert len({tuple(select(x)[n].flatten().tolist()) for n in range(3)}) == 3


def test_tpks_selects_per_image():
    select = TPKS(16)
    with torch.no_grad():
        # The attention increases with the mean of the channel.
        select.squeeze.weight.copy_(torch.eye(4, 16) * 4)
        select.squeeze.bias.zero_()
        select.excite.weight.copy_(torch.eye(16, 4))
        select.excite.bias.zero_()
    x = torch.zeros(2, 16, 2, 2)
    x[0, 3], x[0, 1], x[1, 0], x[1, 2] = 2.0, 1.0, 5.0, 4.0
    result = select(x)
    # Channels 1 and 3 of the first image, 0 and 2 of the second one, times sigmoid(4 x).
    assert result[0, :, 0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-4)), 2 / (1 + math.exp(-8))])
    assert result[1, :, 0, 0].tolist() == pytest.approx([5, 4], rel=1e-4)


def test_tpks_gradient_and_autocast():
    torch.manual_seed(0)
    select = TPKS(32)
    x = torch.rand(2, 32, 4, 4)
    select(x).sum().backward()
    assert all(p.grad.ne(0).any() for p in select.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = select(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), select(x.bfloat16().float()), rtol=0.02, atol=0)


def test_tpki_is_concat_and_mbb():
    torch.manual_seed(0)
    integrate = TPKI(8, 2).eval()
    student, prior = torch.randn(2, 8, 5, 4), torch.randn(2, 2, 5, 4)
    block = integrate.block
    x = torch.cat([student, prior], dim=1)
    expected = block.norm3x3(F.conv2d(x, block.conv3x3.weight, padding=1)) + block.norm1x1(
        F.conv2d(x, block.conv1x1.weight)
    )
    torch.testing.assert_close(integrate(student, prior), F.relu(expected))
    assert integrate(student, prior).shape == (2, 8, 5, 4)
    assert not torch.equal(integrate(student, prior), integrate(student, prior * 2))
