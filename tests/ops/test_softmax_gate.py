import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.ops import softmax_gate, softmax_gate_reference


def softmax_gate_loop(input, logits):
    input, logits = input.detach().double().numpy(), logits.detach().double().numpy()
    N, C, H, W = input.shape
    out = np.zeros(input.shape)
    for n, y, x in np.ndindex(N, H, W):
        e = np.exp(logits[n, :, y, x] - logits[n, :, y, x].max())
        out[n, :, y, x] = C * e / e.sum() * input[n, :, y, x]
    return torch.from_numpy(out)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    scale=st.sampled_from([0.0, 1.0, 1e3]),
)
def test_softmax_gate_matches_loop(shape, memory_format, scale):
    input = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    logits = scale * torch.randn(shape, dtype=torch.float64)
    for function in (softmax_gate, softmax_gate_reference):
        out = function(input, logits)
        torch.testing.assert_close(out, softmax_gate_loop(input, logits))
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_softmax_gate_gradcheck():
    input, logits = (torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(softmax_gate, (input, logits))
    torch.autograd.gradgradcheck(softmax_gate, (input, logits))


def test_softmax_gate_equal_logits_is_identity():
    input = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(softmax_gate(input, torch.full_like(input, 7.0)), input)


def test_softmax_gate_accepts_slices():
    both = torch.randn(2, 12, 4, 6, dtype=torch.float64)
    input, logits = both[:, :5, ::2], both[:, 6:11, 1::2]
    torch.testing.assert_close(softmax_gate(input, logits), softmax_gate_loop(input, logits))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_softmax_gate_lower_precision(dtype, tolerance):
    input, logits = torch.randn(2, 2, 33, 3, 4).to(dtype)
    out = softmax_gate(input, logits)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), softmax_gate_loop(input, logits), rtol=tolerance, atol=tolerance)


INPUT = torch.zeros(2, 8, 4, 5)
ERRORS = [
    (1, INPUT, TypeError, "softmax_gate: input must be a tensor, got int"),
    (INPUT, "x", TypeError, "softmax_gate: logits must be a tensor, got str"),
    (INPUT[0], INPUT, ValueError, "softmax_gate: input must be [N, C, H, W], got [8, 4, 5]"),
    (
        INPUT.bool(),
        INPUT,
        TypeError,
        "softmax_gate: input must be float64, float32, float16 or bfloat16, got bool",
    ),
    (INPUT, INPUT.double(), TypeError, "softmax_gate: logits must have input's dtype float32, got float64"),
    (INPUT, INPUT.to("meta"), ValueError, "softmax_gate: logits must be on input's device cpu, got meta"),
    (INPUT, INPUT[:1], ValueError, "softmax_gate: logits must be [N, C, H, W] = [2, 8, 4, 5], got [1, 8, 4, 5]"),
    (INPUT, INPUT.to_sparse(), TypeError, "softmax_gate: logits must be a strided (dense) tensor, got sparse_coo"),
]


@pytest.mark.parametrize(("input", "logits", "error", "text"), ERRORS, ids=[case[-1] for case in ERRORS])
def test_softmax_gate_error(input, logits, error, text):
    for function in (softmax_gate, softmax_gate_reference):
        with pytest.raises(error) as caught:
            function(input, logits)
        assert str(caught.value) == text
