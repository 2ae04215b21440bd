import pytest
import torch

from danet.models.ufp import UFP


def test_ufp_has_two_blocks_and_keeps_the_size():
    ufp = UFP(8)
    assert len(ufp) == 2 and ufp(torch.randn(2, 8, 5, 7)).shape == (2, 8, 5, 7)
    assert UFP(8, 12)(torch.randn(2, 8, 5, 7)).shape == (2, 12, 5, 7)


def test_identity_ufp_is_exact_and_trains():
    torch.manual_seed(0)
    ufp = UFP(8, identity=True).train()
    x = torch.rand(2, 8, 5, 7, requires_grad=True)
    assert torch.equal(ufp(x), x)
    ufp(x).square().sum().backward()
    assert all(block.norm3x3.weight.grad.ne(0).any() for block in ufp)
    assert torch.equal(ufp.eval()(x), x) and torch.equal(ufp.train()(x), x)
    assert all(norm.num_batches_tracked == 0 for norm in ufp.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_identity_ufp_rejects_another_width():
    with pytest.raises(ValueError, match="UFP: an identity needs out_channels = channels = 8, got 12"):
        UFP(8, 12, identity=True)
