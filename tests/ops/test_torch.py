"""PyTorch integration of all operators: dispatch, export, function transforms, threads, memory.

What `danet.testing.check_operator` checks is in test_operators.py.
"""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

import danet.ops
from danet.ops import (
    dcnv3,
    dcnv3_reference,
    dcnv4,
    dcnv4_reference,
    deform_conv2d,
    deform_conv2d_reference,
    lcdc,
    lcdc_reference,
    rep_conv,
    rep_conv_reference,
    sdc,
    sdc_reference,
    softmax_gate,
    softmax_gate_reference,
)
from danet.ops.library import CPU_LIBRARY


def tensors(op, N=2, dtype=torch.float32):
    """Small tensor arguments of the public function with this name."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    if op == "sdc":
        return draw(N, 8, 6, 7), draw(N, 36, 6, 7), draw(N, 18, 6, 7)
    if op in ("dcnv3", "dcnv4"):  # images [N, H, W, C]
        return draw(N, 6, 7, 8), *((draw(N, 6, 7, 36), draw(N, 6, 7, 18)) if op == "dcnv3" else (draw(N, 6, 7, 56),))
    if op == "lcdc":
        return draw(N, 9, 4, 5), draw(1, 3)
    if op == "softmax_gate":
        return draw(N, 9, 4, 5), draw(N, 9, 4, 5)
    if op == "deform_conv2d":
        weight = draw(4, 8, 3, 3)
        return draw(N, 8, 6, 7), draw(N, 36, 6, 7), weight, draw(4), draw(N, 18, 6, 7)
    return draw(N, 16, 9, 10), draw(24, 16, 3, 3, scale=0.1), draw(24)


WINDOWS = (3, 3, 1, 1, 1, 1, 1, 1)
CALLS = {
    "sdc": lambda *t: sdc(*t, groups=2),
    "dcnv3": lambda *t: dcnv3(*t, *WINDOWS, 2, 4, 1.0, softmax=True),
    "dcnv4": lambda *t: dcnv4(*t, *WINDOWS, 2, 4, 1.0, softmax=True),
    "lcdc": lambda *t: lcdc(*t, gate=True),
    "softmax_gate": softmax_gate,
    "deform_conv2d": lambda *t: deform_conv2d(*t[:4], padding=1, mask=t[4]),
    "rep_conv": rep_conv,
}
REFERENCES = {
    "sdc": lambda *t: sdc_reference(*t, groups=2),
    "dcnv3": lambda *t: dcnv3_reference(*t, *WINDOWS, 2, 4, 1.0, softmax=True),
    "dcnv4": lambda *t: dcnv4_reference(*t, *WINDOWS, 2, 4, 1.0, softmax=True),
    "lcdc": lambda *t: lcdc_reference(*t, gate=True),
    "softmax_gate": softmax_gate_reference,
    "deform_conv2d": lambda *t: deform_conv2d_reference(*t[:4], padding=1, mask=t[4]),
    "rep_conv": rep_conv_reference,
}
SCHEMAS = ["sdc", "dcnv3", "dcnv4", "lcdc", "softmax_gate"]  # operators with a schema of the same name and tensors
DIFFERENTIABLE = [*SCHEMAS, "deform_conv2d"]
OPTIONS = {
    **dict.fromkeys(("sdc", "dcnv3", "dcnv4"), (2, *WINDOWS, 1.0, True, False)),
    "lcdc": (True,),
    "softmax_gate": (),
}
BACKWARD_OPTIONS = dict.fromkeys(("sdc", "dcnv3", "dcnv4"), (False,))
"""Options that only the backward operators have."""


def images(op, tensors):
    """The tensors in the layout that torch.ops.danet.<op> takes."""
    return [t.permute(0, 3, 1, 2) for t in tensors] if op in ("dcnv3", "dcnv4") else list(tensors)


def test_ops_are_compiled():
    assert danet.ops.info()["operators"] == "compiled"


@pytest.mark.parametrize("op", SCHEMAS)
def test_opcheck_backward(op):
    arguments = [t.requires_grad_() for t in images(op, tensors(op))]
    grad_output = torch.randn_like(arguments[0]).requires_grad_()
    torch.library.opcheck(
        getattr(torch.ops.danet, f"{op}_backward").default,
        (grad_output, *arguments, *OPTIONS[op], *BACKWARD_OPTIONS.get(op, ())),
        # Second derivatives exist in eager mode only.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck_rep_conv(stride):
    input, weight, bias = tensors("rep_conv")
    torch.library.opcheck(torch.ops.danet.rep_conv.default, (input, weight, None, bias, stride, True, False))
    options = (None, bias, 1, False, False, torch.bfloat16)
    torch.library.opcheck(torch.ops.danet.rep_conv.default, (input, weight[..., :1, :1].contiguous(), *options))


def test_rep_conv_compiles_without_graph_break_for_any_batch():
    torch._dynamo.reset()
    compiled = torch.compile(rep_conv, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (2, 3, 5):
        arguments = tensors("rep_conv", N=N)
        assert_close(compiled(*arguments), rep_conv(*arguments), rtol=0, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("op", CALLS)
@torch.compiler.config.patch(force_disable_caches=True)  # cached graphs on the disk may come from older kernels
def test_inductor(op):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[op], fullgraph=True, dynamic=True)
    for N in (2, 3):
        arguments = [t.requires_grad_(op in DIFFERENTIABLE) for t in tensors(op, N=N)]
        actual, expected = compiled(*arguments), CALLS[op](*arguments)
        assert_close(actual, expected)
        if op in DIFFERENTIABLE:
            grads = [torch.autograd.grad(out.square().sum(), arguments) for out in (actual, expected)]
            for pair in zip(*grads, strict=True):
                assert_close(*pair)


@pytest.mark.parametrize("op", CALLS)
def test_export(op):
    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return CALLS[op](*arguments)

    arguments = tensors(op)
    program = torch.export.export(Module(), arguments)
    assert any(f"danet.{op}" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(*arguments), CALLS[op](*arguments), rtol=0, atol=0)


def test_rep_conv_vmap(op="rep_conv"):
    batches = [torch.stack(each) for each in zip(tensors(op), [2 * t for t in tensors(op)], strict=True)]
    for dims in ([0] * len(batches), [0] + [None] * (len(batches) - 1)):
        arguments = [t if dim == 0 else t[0] for t, dim in zip(batches, dims, strict=True)]
        actual = vmap(CALLS[op], in_dims=tuple(dims))(*arguments)
        for i in range(2):
            one = [t[i] if dim == 0 else t for t, dim in zip(arguments, dims, strict=True)]
            assert_close(actual[i], CALLS[op](*one))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_batched_gradients(op):
    """The vmap rules of the backward operators."""
    leaves = [t.requires_grad_() for t in tensors(op)]
    out = CALLS[op](*leaves)
    directions = torch.randn(3, *out.shape)
    batched = torch.autograd.grad(out, leaves, directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        for actual, expected in zip(
            batched, torch.autograd.grad(out, leaves, direction, retain_graph=True), strict=True
        ):
            assert_close(actual[i], expected)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_functorch_gradients_error(op):
    with pytest.raises(RuntimeError, match=f"^{op}: torch.func's grad and vjp are not supported"):
        grad(lambda *t: CALLS[op](*t).sum())(*tensors(op))


@pytest.mark.parametrize("op", CALLS)
def test_forward_mode_derivatives(op):
    arguments = [t.requires_grad_() for t in tensors(op, N=1, dtype=torch.float64)]
    torch.autograd.gradcheck(
        CALLS[op], arguments, check_forward_ad=True, check_backward_ad=op in DIFFERENTIABLE, fast_mode=True
    )
    tangents = [torch.randn_like(t) for t in arguments]
    out, tangent = jvp(CALLS[op], tuple(arguments), tuple(tangents))
    expected_out, expected = jvp(REFERENCES[op], tuple(arguments), tuple(tangents))
    assert_close(out, expected_out)
    assert_close(tangent, expected)
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_forward_over_reverse(op):
    """A tangent of grad_output alone also reaches the gradients."""
    leaves = [t.requires_grad_() for t in tensors(op, N=1, dtype=torch.float64)]
    out = CALLS[op](*leaves)
    direction, tangent = torch.randn_like(out), torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, tangent, retain_graph=True)  # gradients are linear in grad_output
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, leaves, forward_ad.make_dual(direction, tangent))
        for value, right in zip(grads, expected, strict=True):
            assert_close(forward_ad.unpack_dual(value).tangent, right)


@pytest.mark.parametrize("op", CALLS)
def test_exported_network_refuses_forward_mode(op):
    """Its operators have no forward-mode derivative; torch would take it as zero."""

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return CALLS[op](*arguments)

    arguments = tensors(op, N=1)
    exported = torch.export.export(Module(), arguments).module()
    expected = exported(*arguments)
    message = f"^torch.ops.danet.{op}: forward-mode derivatives are not supported"
    with pytest.raises(RuntimeError, match=message):
        jvp(exported, arguments, arguments)
    for requires_grad in (False, True):
        first = arguments[0].clone().requires_grad_(requires_grad)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
            exported(forward_ad.make_dual(first, torch.ones_like(first)), *arguments[1:])
    with forward_ad.dual_level():  # without a tangent the derivative is zero indeed
        assert_close(exported(*arguments), expected, rtol=0, atol=0)


@pytest.mark.parametrize("op", SCHEMAS)
def test_backward_operator_refuses_forward_mode(op):
    arguments = images(op, tensors(op, N=1))
    backward = getattr(torch.ops.danet, f"{op}_backward")
    call = lambda *t: backward(*t, *OPTIONS[op], *BACKWARD_OPTIONS.get(op, ()))[0]  # noqa: E731
    inputs = (torch.randn_like(arguments[0]), *arguments)
    with pytest.raises(RuntimeError, match=f"^torch.ops.danet.{op}_backward: forward-mode derivatives"):
        jvp(call, inputs, inputs)


def test_scripted_and_traced_modules_refuse_forward_mode():
    module = danet.ops.SDC(8, groups=2).eval().requires_grad_(False)
    input = torch.randn(1, 8, 6, 7)
    assert jvp(module, (input,), (input,))[1].abs().sum() > 0
    for converted in (torch.jit.script(module), torch.jit.trace(module, input)):
        with pytest.raises(RuntimeError, match="forward-mode derivatives are not supported"):
            jvp(converted, (input,), (input,))


@pytest.mark.parametrize("op", [*DIFFERENTIABLE, "rep_conv"])
def test_reference_function_transforms(op):
    """vmap, grad and jvp of references, and their compositions, equal loops over plain autograd."""
    draws = [[scale * t for t in tensors(op, N=1, dtype=torch.float64)] for scale in (1, 0.5)]
    pairs = [torch.stack(each) for each in zip(*draws, strict=True)]
    loss = lambda *t: REFERENCES[op](*t).square().sum()  # noqa: E731
    batched = vmap(grad(loss))(*pairs)
    for i in range(2):
        leaves = [t[i].clone().requires_grad_() for t in pairs]
        expected = torch.autograd.grad(loss(*leaves), leaves[:1])[0]
        assert_close(batched[i], expected)
    one = [t[0] for t in pairs]
    product = jvp(grad(loss), tuple(one), tuple(one))[1]  # Hessian times vector
    leaves = [t.clone().requires_grad_() for t in one]
    first = torch.autograd.grad(loss(*leaves), leaves[0], create_graph=True)[0]
    columns = torch.autograd.grad(first, leaves, product)
    # The Hessian is symmetric: <product, product> both ways.
    assert_close(sum((c * t).sum() for c, t in zip(columns, one, strict=True)), product.square().sum())


@pytest.mark.parametrize("op", ["sdc", "dcnv3", "dcnv4", "deform_conv2d"])
def test_fx_symbolic_trace(op):
    class Module(torch.nn.Module):
        def forward(self, a, b, c, d, e):
            return CALLS[op](*[t for t, _ in zip((a, b, c, d, e), arguments, strict=False)])

    arguments = tensors(op)
    traced = torch.fx.symbolic_trace(Module())
    assert any(getattr(node.target, "__name__", "") == op for node in traced.graph.nodes)
    padded = [*arguments, *[torch.zeros(1)] * (5 - len(arguments))]
    assert_close(traced(*padded), CALLS[op](*arguments), rtol=0, atol=0)


def test_sdc_module_script_and_symbolic_trace():
    module = danet.ops.SDC(8, groups=2, kernel_size=5)
    torch.nn.init.normal_(module.predictor.weight)
    input = torch.randn(2, 8, 6, 7)
    for converted in (torch.jit.script(module), torch.fx.symbolic_trace(module), torch.jit.trace(module, input)):
        module.zero_grad()
        out = converted(input)
        assert_close(out, module(input))
        out.sum().backward()
        assert module.predictor.weight.grad.abs().sum() > 0


def test_functional_call():
    module = danet.ops.SDC(8)
    input = torch.randn(2, 8, 5, 6)
    assert_close(functional_call(module, dict(module.named_parameters()), (input,)), module(input))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradient_penalty(op):
    """Second derivatives in which the gradient of the result depends on the same tensors, as in a gradient penalty."""
    results = []
    for function in (CALLS[op], REFERENCES[op]):
        leaves = [t.requires_grad_() for t in tensors(op, N=1, dtype=torch.float64)]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", [op for op in CALLS if op != "deform_conv2d"])  # it computes in float32, see its tests
def test_autocast(op, dtype):
    arguments = tensors(op)
    with torch.autocast("cpu", dtype=dtype):
        out = CALLS[op](*arguments)
    assert out.dtype == dtype
    assert_close(out, CALLS[op](*(t.to(dtype) for t in arguments)), rtol=0, atol=0)


def test_rep_conv_gradient_error():
    input, weight, bias = tensors("rep_conv")
    out = rep_conv(input.requires_grad_(), weight, bias)
    direct = torch.ops.danet.rep_conv(input, weight, None, bias, 1, True, False)  # as in exported networks
    for result in (out, direct):
        with pytest.raises(RuntimeError, match="rep_conv: forward only, no gradient is defined"):
            result.sum().backward()
    rep_conv_reference(input, weight, bias).sum().backward()
    assert input.grad is not None


@pytest.mark.parametrize("op", SCHEMAS)
def test_results_are_deterministic_in_threads(op):
    shapes = {"sdc": [(1, 64, 40, 33), (1, 72, 40, 33), (1, 36, 40, 33)], "lcdc": [(3, 33, 40, 33), (1, 5)]}
    shapes["softmax_gate"] = [(3, 33, 40, 33)] * 2
    shapes["dcnv3"] = [(2, 60, 50, 8), (2, 60, 50, 36), (2, 60, 50, 18)]
    shapes["dcnv4"] = [(2, 60, 50, 8), (2, 60, 50, 56)]
    generator = torch.Generator().manual_seed(1)
    leaves = [3 * torch.randn(shape, generator=generator) for shape in shapes[op]]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            inputs = [t.clone().requires_grad_() for t in leaves]
            call = (lambda *t: sdc(*t, groups=4)) if op == "sdc" else CALLS[op]
            out = call(*inputs)
            results.append([out.detach(), *torch.autograd.grad(out, inputs, out.detach().cos())])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_direct_calls_are_checked():
    """Calls through the dispatcher skip the Python checks; they must raise an error, not read foreign memory."""
    input, offset, mask = tensors("sdc")
    options = OPTIONS["sdc"]
    for arguments in (
        (input, offset[:, :20], mask, *options),
        (input, offset, mask[..., :3], *options),
        (input, offset.double(), mask, *options),
        (input, offset, mask, 3, *options[1:]),
        (input, offset, mask, 2, 3, 5, *options[3:]),
        (input, offset, mask, 2, 3, 3, 0, *options[4:]),
    ):
        with pytest.raises(RuntimeError, match="sdc: "):
            torch.ops.danet.sdc(*arguments)
    input, weight = tensors("lcdc")
    with pytest.raises(RuntimeError, match="lcdc: "):
        torch.ops.danet.lcdc(input, weight[:, :2], False)
    with pytest.raises(RuntimeError, match="softmax_gate: "):
        torch.ops.danet.softmax_gate(input, input[:1])
    input, weight, bias = tensors("rep_conv")
    for arguments in (
        (input, weight[:, :3], None, bias),
        (input, weight, torch.zeros(3), bias),
        (input, weight, None, bias[:2]),
    ):
        with pytest.raises(RuntimeError, match="rep_conv: "):
            torch.ops.danet.rep_conv(*arguments, 1, True, False)


def test_library_uses_only_the_stable_abi():
    symbols = subprocess.run(["nm", "-D", CPU_LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_get_dtype" in symbols
    for private in ("_ZN2at", "_ZN3c10", "_ZN5torch", " _Py", " Py"):
        assert private not in symbols


def test_library_has_no_weak_vector_symbols():
    """The linker could pick the AVX-512 instance of a weak symbol for all instruction sets, even old ones."""
    symbols = subprocess.run(["nm", "-C", CPU_LIBRARY], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if " W " in line or " V " in line]
    assert not [line for line in weak if "avx" in line or "Vec" in line or "__vector" in line]


MEMORY = """
import resource, sys, torch
from danet.ops import sdc, lcdc, softmax_gate
torch.set_num_threads(2)
op, backward = sys.argv[1], sys.argv[2] == "backward"
shapes = {"sdc": [(2, 64, 256, 320), (2, 72, 256, 320), (2, 36, 256, 320)],
          "lcdc": [(2, 128, 256, 320), (1, 5)], "softmax_gate": [(2, 128, 256, 320)] * 2}[op]
calls = {"sdc": lambda *t: sdc(*t, groups=4), "lcdc": lambda *t: lcdc(*t, gate=True), "softmax_gate": softmax_gate}
def run(shapes):
    leaves = [torch.randn(s).to(memory_format=torch.channels_last) if len(s) == 4 else torch.randn(s) for s in shapes]
    leaves = [t.requires_grad_(backward) for t in leaves]
    before = peak()
    out = calls[op](*leaves)
    if backward:
        outputs = out.nbytes + sum(t.nbytes for t in leaves)
        torch.autograd.grad(out, leaves, out.detach())
    else:
        outputs = out.nbytes
    return peak() - before - outputs
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
run([(s[0], s[1], 8, 8) if len(s) == 4 else s for s in shapes])  # a first call, in which torch loads its libraries
print(run(shapes))
"""


@pytest.mark.long
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", ["sdc", "lcdc", "softmax_gate"])
def test_peak_memory(op, direction):
    result = subprocess.run([sys.executable, "-c", MEMORY, op, direction], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2 * 2_000_000  # 2 MB per thread
