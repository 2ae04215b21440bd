"""Calls of ms_deform_attn, with edge cases, for the tests of every device."""

import torch

SHAPES = [(6, 5), (3, 4)]


def tensors(shapes=SHAPES, N=2, M=2, D=4, Q=5, P=3, dtype=torch.float64, seed=0, spread=1.6):
    """Random value, locations (some outside the levels) and weights."""
    generator = torch.Generator().manual_seed(seed)
    S, L = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(N, S, M, D, generator=generator, dtype=torch.float64)
    locations = torch.rand(N, Q, M, L, P, 2, generator=generator, dtype=torch.float64) * spread + (1 - spread) / 2
    weights = torch.randn(N, Q, M, L, P, generator=generator, dtype=torch.float64)
    return [each.to(dtype) for each in (value, locations, weights)]


CASES = {
    "plain": {},
    "one level, one point": {"shapes": [(8, 9)], "P": 1},
    "one row, one column, one pixel": {"shapes": [(1, 7), (5, 1), (1, 1), (2, 2)], "P": 4},
    "empty levels": {"shapes": [(0, 3), (4, 5), (3, 0), (0, 0)]},
    "only empty levels": {"shapes": [(0, 3), (0, 0)]},
    "no query": {"Q": 0},
    "no image": {"N": 0},
    "32 channels": {"D": 32, "M": 8, "P": 4, "shapes": [(9, 10), (5, 5), (3, 3), (2, 2)]},
    "71 channels": {"D": 71, "Q": 3},
    "1 channel": {"D": 1, "M": 3},
    "300 points": {"P": 150, "Q": 2},
    "240 points": {"P": 120, "Q": 2},
    "far outside": {"spread": 4.0, "Q": 20},
    "many queries": {"Q": 150},
}
