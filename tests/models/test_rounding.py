import torch

from danet.models.rounding import round_with_error_diffusion


def test_round_with_error_diffusion_keeps_tap_sums():
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3)
    result = round_with_error_diffusion(weight, torch.bfloat16)
    assert torch.equal(result, result.bfloat16().float())
    assert (result - weight).abs().max() <= 2**-8 * weight.abs().max()
    plain = (weight.bfloat16().float() - weight).sum((2, 3)).abs().mean()
    assert (result - weight).sum((2, 3)).abs().mean() < plain / 8
