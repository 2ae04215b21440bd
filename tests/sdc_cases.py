"""Calls of sdc, with edge cases, for the tests of every device, and one sample as a loop."""

import itertools
import math

import numpy as np
import torch


def bilinear_loop(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """One sample of [C, H, W] at (y, x), zero outside."""
    C, H, W = image.shape
    if math.isnan(y) or math.isnan(x):
        return np.full(C, np.nan)
    sample = np.zeros(C)
    if math.isinf(y) or math.isinf(x):
        return sample
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= row < H and 0 <= column < W:
            sample += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return sample


def arguments(N, C, H, W, *, groups=1, spread=1.5, dtype=torch.float64, seed=0, **options):
    """Random input, offset and mask; `options` has (y, x) pairs. Coordinates stay away from whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    options = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), **options}
    K = math.prod(options["kernel_size"]) - options.get("remove_center", False)
    H_out, W_out = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            (H, W), *(options[name] for name in ("kernel_size", "stride", "padding", "dilation")), strict=True
        )
    )
    input = torch.randn(N, C, H, W, generator=generator, dtype=torch.float64)
    whole = (torch.randn(N, 2 * groups * K, H_out, W_out, generator=generator, dtype=torch.float64) * spread).floor()
    fraction = torch.rand(whole.shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    offset = (whole + fraction) / options.get("offset_scale", 1)
    mask = torch.randn(N, groups * K, H_out, W_out, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (input, offset, mask)], {"groups": groups, **options}


CASES = {
    "plain": (2, 4, 5, 6, {}),
    "groups": (2, 8, 5, 4, {"groups": 4}),
    "batch 3": (3, 6, 3, 5, {"groups": 2}),
    "one pixel": (1, 2, 1, 1, {}),
    "one column": (1, 4, 6, 1, {"spread": 2.0}),
    "one row": (2, 4, 1, 7, {"spread": 2.0}),
    "kernel 1": (2, 3, 4, 3, {"kernel_size": (1, 1), "padding": (0, 0)}),
    "kernel 3x2": (2, 4, 5, 5, {"kernel_size": (3, 2), "padding": (1, 0), "groups": 2}),
    "kernel 2, dilation 3": (1, 2, 7, 6, {"kernel_size": (2, 2), "dilation": (3, 3), "offset_scale": 0.5}),
    "kernel 5": (1, 4, 6, 5, {"kernel_size": (5, 5), "padding": (2, 2), "groups": 2}),
    "stride": (2, 4, 7, 5, {"stride": (2, 1)}),
    "padding": (2, 4, 5, 5, {"padding": (1, 0)}),
    "padding larger than the window": (1, 2, 3, 4, {"padding": (4, 3)}),
    "dilation": (2, 4, 6, 5, {"dilation": (2, 1), "padding": (2, 1)}),
    "30 channels per group": (1, 60, 3, 4, {"groups": 2}),
    "5 channels per group": (2, 15, 4, 3, {"groups": 3}),
    "71 channels per group": (1, 142, 3, 4, {"groups": 2}),
    "1025 channels per group": (1, 1025, 2, 3, {}),
    "batch 33": (33, 4, 3, 2, {"groups": 2}),
    "300 groups": (1, 300, 2, 3, {"groups": 300}),
    "kernel 17": (1, 3, 5, 6, {"kernel_size": (17, 17), "padding": (8, 8)}),
    "1 channel per group": (2, 5, 4, 3, {"groups": 5}),
    "offset_scale": (2, 4, 5, 6, {"offset_scale": 2.0, "dilation": (2, 1), "stride": (1, 2)}),
    "remove_center": (2, 4, 4, 5, {"remove_center": True, "groups": 2}),
    "remove_center of 3x1": (1, 2, 4, 5, {"remove_center": True, "kernel_size": (3, 1), "padding": (1, 0)}),
    "no softmax": (2, 4, 4, 5, {"softmax": False, "groups": 2}),
    "offsets far outside": (2, 4, 4, 5, {"spread": 30.0}),
    "wide image": (1, 2, 2, 40, {"spread": 8.0}),
}
