"""Operators on a real CUDA device: streams, devices, graphs, autocast, compilation and determinism.

test_devices.py tests the results of the kernels.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from danet.ops import (
    lcdc,
    lcdc_reference,
    library,
    ms_deform_attn,
    prepare_rep_conv,
    rep_conv,
    rep_conv_reference,
    sdc,
    sdc_reference,
    softmax_gate,
    softmax_gate_reference,
)

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and library.WHY_NOT_CUDA is None), reason="no CUDA device, or no CUDA kernels"
)

CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "sdc": (lambda *t: sdc(*t, groups=2), lambda *t: sdc_reference(*t, groups=2)),
    "lcdc": (lambda *t: lcdc(*t, gate=True), lambda *t: lcdc_reference(*t, gate=True)),
    "softmax_gate": (softmax_gate, softmax_gate_reference),
    "rep_conv": (rep_conv, rep_conv_reference),
}
"""Each operator with its reference."""
DIFFERENTIABLE = ["sdc", "lcdc", "softmax_gate"]


def tensors(op: str, *, dtype: torch.dtype = torch.float32, device: str = DEVICE, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "sdc": [(2, 32, 12, 9), (2, 36, 12, 9), (2, 18, 12, 9)],
        "lcdc": [(2, 64, 12, 9), (1, 3)],
        "softmax_gate": [(2, 64, 12, 9), (2, 64, 12, 9)],
        "rep_conv": [(2, 64, 12, 9), (48, 64, 3, 3), (48,)],
    }
    drawn = [torch.randn(shape, generator=generator) for shape in shapes[op]]
    if op == "rep_conv":
        drawn[1] *= 0.05
    return [value.to(device, dtype) for value in drawn]


def gradients(function: Callable[..., Tensor], values: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [value.detach().requires_grad_() for value in values]
    out = function(*leaves)
    grad_output = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return torch.autograd.grad(out, leaves, grad_output)


@pytest.mark.parametrize("op", CALLS)
def test_operator_uses_current_stream(op):
    """Side streams do not wait for each other, so a kernel on the wrong stream would read the old values."""
    function, _ = CALLS[op]
    values = tensors(op)
    expected = function(*values)
    stream = torch.cuda.Stream()
    delayed = [torch.zeros_like(value) for value in values]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        for to, value in zip(delayed, values, strict=True):
            to.copy_(value)
        out = function(*delayed)
    stream.synchronize()
    assert_close(out, expected)


def test_ms_deform_attn_on_the_cpu_waits_for_levels_from_the_gpu():
    value, locations, weights = torch.randn(1, 42, 2, 8), torch.rand(1, 7, 2, 2, 4, 2), torch.rand(1, 7, 2, 2, 4)
    shapes = torch.tensor([[6, 5], [3, 4]])
    expected = ms_deform_attn(value, shapes, None, locations, weights)
    delayed = torch.zeros_like(shapes, device=DEVICE)
    source = shapes.to(DEVICE)
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
    delayed.copy_(source)
    assert_close(ms_deform_attn(value, delayed, None, locations, weights), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("op", CALLS)
def test_operator_on_non_current_device(op):
    function, reference = CALLS[op]
    values = tensors(op, device="cuda:1")
    with torch.cuda.device(0):
        out = function(*values)
        assert out.device == values[0].device and torch.cuda.current_device() == 0
        assert_close(out, reference(*values), rtol=1e-3, atol=1e-3)
        if op in DIFFERENTIABLE:
            for grad, value in zip(gradients(function, values), values, strict=True):
                assert grad.device == value.device


def capture(call: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize("op", CALLS)
def test_forward_in_cuda_graph(op):
    function, _ = CALLS[op]
    values = tensors(op)
    graph, (out,) = capture(lambda: (function(*values),))
    for seed in (1, 2):
        for value, new in zip(values, tensors(op, seed=seed), strict=True):
            value.copy_(new)
        graph.replay()
        assert_close(out, function(*tensors(op, seed=seed)))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_backward_in_cuda_graph(op, deterministic):
    function, _ = CALLS[op]
    values = tensors(op)
    torch.use_deterministic_algorithms(deterministic)
    try:
        graph, grads = capture(lambda: gradients(function, values))
        for seed in (1, 2):
            for value, new in zip(values, tensors(op, seed=seed), strict=True):
                value.copy_(new)
            graph.replay()
            for grad, expected in zip(grads, gradients(function, tensors(op, seed=seed)), strict=True):
                assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_with_deterministic_algorithms(op):
    values = tensors(op)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (gradients(CALLS[op][0], values) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_match_reference(op):
    function, reference = CALLS[op]
    for grad, expected in zip(
        gradients(function, tensors(op)), gradients(reference, tensors(op, dtype=torch.float64)), strict=True
    ):
        assert_close(grad.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op", CALLS)
def test_operator_under_autocast(op):
    function, reference = CALLS[op]
    values = tensors(op)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = function(*values)
        if op in DIFFERENTIABLE:
            assert all(grad.dtype == torch.float32 for grad in gradients(function, values))
    assert out.dtype == torch.bfloat16
    exact = reference(*(value.bfloat16().double() for value in values))
    assert (out.double() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("op", CALLS)
def test_operator_compiles_without_graph_break(op):
    torch._dynamo.reset()
    function, _ = CALLS[op]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    values = tensors(op)
    assert_close(compiled(*values), function(*values))
    if op in DIFFERENTIABLE:
        for grad, expected in zip(gradients(compiled, values), gradients(function, values), strict=True):
            assert_close(grad, expected, rtol=1e-4, atol=1e-4)


REP_CONVS = {
    # N, C, C_out, side; selects these tiles on a device with up to 160 multiprocessors
    "64x64 tiles": (1, 64, 64, 40),
    "128x64 tiles": (1, 64, 64, 208),
    "128x128 tiles": (1, 64, 160, 208),
    "torch convolution": (16, 256, 256, 40),
}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("float16", 2e-3), ("bfloat16", 1e-2)])  # tf32
@pytest.mark.parametrize("case", REP_CONVS)
def test_rep_conv_every_tile_size(case, dtype, tolerance):
    N, C, C_out, side = REP_CONVS[case]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(DEVICE, getattr(torch, dtype))  # noqa: E731
    input, weight, bias = draw(N, C, side, side), draw(C_out, C, 3, 3) * 0.02, draw(C_out)
    exact = rep_conv_reference(input.double(), weight.double(), bias.double())
    for given_weight in (weight, prepare_rep_conv(weight)):
        result = rep_conv(input, given_weight, bias)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert (result.double() - exact).norm() < tolerance * exact.norm()


def test_rep_conv_float32_without_tf32_is_exact():
    values = tensors("rep_conv")
    exact = rep_conv_reference(*(value.double() for value in values))
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert (rep_conv(*values).double() - exact).norm() < 1e-5 * exact.norm()  # tf32 gives 3e-4
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_operators_free_their_memory():
    values = {op: tensors(op) for op in CALLS}

    def work() -> int:
        for op, (function, _) in CALLS.items():
            function(*values[op])
            if op in DIFFERENTIABLE:
                gradients(function, values[op])
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    work()
    assert len({work() for _ in range(20)}) == 1
