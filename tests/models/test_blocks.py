import pytest
import torch
from helpers import randomise_norms

from danet.models.blocks import FFN, MBB


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("channels", "out", "stride"), [(8, 8, 1), (8, 12, 1), (8, 8, 2), (3, 5, 2)])
@pytest.mark.parametrize("size", [(9, 14), (1, 1)])
def test_fused_mbb_equals_mbb(dtype, tolerance, channels, out, stride, size):
    torch.manual_seed(0)
    block = MBB(channels, out, stride=stride).to(dtype).eval()
    randomise_norms(block)
    x = torch.randn(2, channels, *size, dtype=dtype)
    with torch.no_grad():
        expected, got = block(x), block.fuse()(x)
    assert got.shape == (2, out, -(-size[0] // stride), -(-size[1] // stride))
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= tolerance
    assert expected.abs().max() > 0.1


def test_mbb_has_a_shortcut_if_shapes_agree():
    assert MBB(4, 4).shortcut is not None
    assert MBB(4, 4, stride=2).shortcut is None
    assert MBB(4, 8).shortcut is None


def test_ffn_starts_at_zero_and_trains():
    ffn = FFN(6)
    x = torch.randn(2, 6, 3, 3)
    assert ffn(x).abs().max() == 0
    ffn(x).sum().backward()
    assert ffn[2].weight.grad.abs().max() > 0
