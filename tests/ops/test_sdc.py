import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.ops import SDC, sdc, sdc_reference


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


def sdc_loop(
    input,
    offset,
    mask,
    *,
    groups=1,
    kernel_size=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    offset_scale=1.0,
    softmax=True,
    remove_center=False,
):
    """The formula of danet.ops.sdc, one output position and tap at a time."""
    input, offset, mask = (t.detach().double().numpy() for t in (input, offset, mask))
    N, C = input.shape[:2]
    H_out, W_out = offset.shape[2:]
    taps = list(itertools.product(range(kernel_size[0]), range(kernel_size[1])))
    if remove_center:
        del taps[len(taps) // 2]
    h = [d * (k - 1) // 2 for d, k in zip(dilation, kernel_size, strict=True)]
    out = np.zeros((N, C, H_out, W_out))
    for n, g, y, x in itertools.product(range(N), range(groups), range(H_out), range(W_out)):
        channels = slice(g * C // groups, (g + 1) * C // groups)
        m = mask[n, g * len(taps) : (g + 1) * len(taps), y, x]
        if softmax:
            m = np.exp(m - m.max()) / np.exp(m - m.max()).sum()
        for k, tap in enumerate(taps):
            place = []
            for axis, position in enumerate((y, x)):
                delta = offset[n, (g * len(taps) + k) * 2 + axis, y, x]
                center = position * stride[axis] - padding[axis] + h[axis]
                place.append(center + offset_scale * (tap[axis] * dilation[axis] - h[axis] + delta))
            out[n, channels, y, x] += m[k] * bilinear_loop(input[n, channels], *place)
    return torch.from_numpy(out)


def arguments(N, C, H, W, *, groups=1, spread=1.5, dtype=torch.float64, seed=0, **options):
    """Random input, offset and mask for `options`, whose sizes are pairs; offsets stay off whole coordinates."""
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
    "kernel 1": (2, 3, 4, 3, {"kernel_size": (1, 1), "padding": (0, 0)}),
    "kernel 3x2": (2, 4, 5, 5, {"kernel_size": (3, 2), "padding": (1, 0), "groups": 2}),
    "kernel 2, dilation 3": (1, 2, 7, 6, {"kernel_size": (2, 2), "dilation": (3, 3), "offset_scale": 0.5}),
    "kernel 5": (1, 4, 6, 5, {"kernel_size": (5, 5), "padding": (2, 2), "groups": 2}),
    "stride": (2, 4, 7, 5, {"stride": (2, 1)}),
    "padding": (2, 4, 5, 5, {"padding": (1, 0)}),
    "padding beyond the window": (1, 2, 3, 4, {"padding": (4, 3)}),
    "dilation": (2, 4, 6, 5, {"dilation": (2, 1), "padding": (2, 1)}),
    "30 channels a group": (1, 60, 3, 4, {"groups": 2}),
    "5 channels a group": (2, 15, 4, 3, {"groups": 3}),
    "1 channel a group": (2, 5, 4, 3, {"groups": 5}),
    "offset_scale": (2, 4, 5, 6, {"offset_scale": 2.0, "dilation": (2, 1), "stride": (1, 2)}),
    "remove_center": (2, 4, 4, 5, {"remove_center": True, "groups": 2}),
    "remove_center of 3x1": (1, 2, 4, 5, {"remove_center": True, "kernel_size": (3, 1), "padding": (1, 0)}),
    "no softmax": (2, 4, 4, 5, {"softmax": False, "groups": 2}),
    "offsets far outside": (2, 4, 4, 5, {"spread": 30.0}),
    "wide image": (1, 2, 2, 40, {"spread": 8.0}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    *shape, options = request.param
    return arguments(*shape, **options)


def gradients(function, tensors, grad_output):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*tensors), tensors, grad_output)


def test_forward_equals_the_formula(case):
    tensors, options = case
    for function in (sdc, sdc_reference):
        torch.testing.assert_close(function(*tensors, **options), sdc_loop(*tensors, **options), rtol=1e-12, atol=1e-12)


def test_gradcheck(case):
    tensors, options = case
    tensors = [t.requires_grad_() for t in tensors]
    torch.autograd.gradcheck(lambda *t: sdc(*t, **options), tensors, fast_mode=True)
