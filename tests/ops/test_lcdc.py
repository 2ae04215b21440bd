import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.ops import lcdc, lcdc_kernel_size, lcdc_reference


def lcdc_loop(input, weight, gate=False):
    input, weight = input.detach().double().numpy(), weight.detach().double().numpy()
    N, C, H, W = input.shape
    P, k = weight.shape
    out = np.zeros(input.shape)
    for n, c, y, x in np.ndindex(N, C, H, W):
        for j in range(k):
            channel = c + j - (k - 1) // 2
            if 0 <= channel < C:
                out[n, c, y, x] += weight[0 if P == 1 else y * W + x, j] * input[n, channel, y, x]
    return torch.from_numpy(input / (1 + np.exp(-out)) if gate else out)


CASES = [
    (2, 8, 3, 4, 1, 3),
    (2, 8, 3, 4, 12, 3),
    (0, 4, 2, 2, 1, 3),
    (3, 5, 1, 1, 1, 5),
    (1, 2, 3, 2, 6, 7),
    (1, 1, 2, 2, 1, 1),
]


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("N", "C", "H", "W", "P", "k"), CASES)
def test_lcdc_matches_loop_and_gradcheck(N, C, H, W, P, k, gate):
    input = torch.randn(N, C, H, W, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(P, k, dtype=torch.float64, requires_grad=True)
    for function in (lcdc, lcdc_reference):
        out = function(input, weight, gate=gate)
        torch.testing.assert_close(out, lcdc_loop(input, weight, gate))
        assert out.is_contiguous(memory_format=torch.channels_last)
    if N:
        torch.autograd.gradcheck(lambda i, w: lcdc(i, w, gate=gate), (input, weight), fast_mode=True)
        torch.autograd.gradgradcheck(lambda i, w: lcdc(i, w, gate=gate), (input, weight), fast_mode=True)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    half_k=st.integers(0, 5),
    shared=st.booleans(),
    gate=st.booleans(),
    channels_last=st.booleans(),
)
def test_lcdc_matches_loop_for_any_arguments(shape, half_k, shared, gate, channels_last):
    input = torch.randn(shape, dtype=torch.float64)
    if channels_last:
        input = input.to(memory_format=torch.channels_last)
    weight = torch.randn(1 if shared else shape[2] * shape[3], 2 * half_k + 1, dtype=torch.float64)
    torch.testing.assert_close(lcdc(input, weight, gate=gate), lcdc_loop(input, weight, gate))


def test_lcdc_accepts_slices():
    input, weight = torch.randn(2, 16, 5, 6, dtype=torch.float64)[:, 3:10, :, ::2], torch.randn(30, 5).double()[::2, :3]
    torch.testing.assert_close(lcdc(input, weight), lcdc_loop(input, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("gate", [False, True])
def test_lcdc_lower_precision(dtype, tolerance, gate):
    input, weight = torch.randn(2, 8, 3, 4).to(dtype), torch.randn(1, 5).to(dtype)
    out = lcdc(input, weight, gate=gate)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), lcdc_loop(input, weight, gate), rtol=tolerance, atol=tolerance)


def test_lcdc_kernel_size_is_odd_floor():
    sizes = {1: 1, 16: 1, 31: 1, 32: 3, 64: 3, 128: 3, 511: 3, 512: 5, 8191: 5, 8192: 7}
    assert {channels: lcdc_kernel_size(channels) for channels in sizes} == sizes
    assert lcdc_kernel_size(64, tau=1) == 7
    assert lcdc_kernel_size(128, tau=1) == 7


INPUT = torch.zeros(2, 8, 4, 5)
ERRORS = [
    ((None, torch.zeros(1, 3)), {}, TypeError, "lcdc: input must be a tensor, got NoneType"),
    ((INPUT[0], torch.zeros(1, 3)), {}, ValueError, "lcdc: input must be [N, C, H, W], got [8, 4, 5]"),
    ((INPUT, torch.zeros(3)), {}, ValueError, "lcdc: weight must be [P, k] with P = 1 or H*W = 20, got [3]"),
    ((INPUT, torch.zeros(5, 3)), {}, ValueError, "lcdc: weight must be [P, k] with P = 1 or H*W = 20, got [5, 3]"),
    ((INPUT, torch.zeros(1, 4)), {}, ValueError, "lcdc: weight must be [P, k] with k odd, got [1, 4]"),
    ((INPUT, torch.zeros(1, 3).half()), {}, TypeError, "lcdc: weight must have input's dtype float32, got float16"),
    ((INPUT, torch.zeros(1, 3, device="meta")), {}, ValueError, "lcdc: weight must be on input's device cpu, got meta"),
    (
        (INPUT, torch.zeros(1, 3).to_sparse()),
        {},
        TypeError,
        "lcdc: weight must be a strided (dense) tensor, got sparse_coo",
    ),
    ((INPUT, torch.zeros(1, 3)), {"gate": 1}, TypeError, "lcdc: gate must be True or False, got 1"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), ERRORS, ids=[case[-1] for case in ERRORS])
def test_lcdc_error(arguments, options, error, text):
    for function in (lcdc, lcdc_reference):
        with pytest.raises(error) as caught:
            function(*arguments, **options)
        assert str(caught.value) == text


def test_lcdc_kernel_size_error():
    with pytest.raises(ValueError) as caught:
        lcdc_kernel_size(0)
    assert str(caught.value) == "lcdc_kernel_size: channels must be >= 1, got 0"
    with pytest.raises(ValueError) as caught:
        lcdc_kernel_size(64, tau=0)
    assert str(caught.value) == "lcdc_kernel_size: tau must be > 0, got 0"
