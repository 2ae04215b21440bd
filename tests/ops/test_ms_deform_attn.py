import importlib.util
import itertools
import sys
import types

import numpy as np
import pytest
import torch
from ms_deform_attn_cases import CASES, SHAPES, tensors
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.baselines import ms_deform_attn_grid_sample
from danet.ops import (
    MSDeformAttnFunction,
    MultiScaleDeformableAttention,
    ms_deform_attn,
    ms_deform_attn_reference,
    multi_scale_deformable_attention,
    replace_ms_deform_attn,
)
from danet.ops.ms_deform_attn import MAX_POINTS

DETR_SHAPES = [(100, 100), (50, 50), (25, 25), (13, 13)]
"""The feature maps of an image of 800 x 800 pixels in Deformable DETR: 13,294 pixels."""


def grid_sample_form(value, shapes, locations, weights, softmax=False):
    """The operator with one `F.grid_sample` per level, as networks compute it without a kernel."""
    weights = weights.flatten(3).softmax(-1).view(weights.shape) if softmax else weights
    return ms_deform_attn_grid_sample(value, locations, weights, shapes)


def loop(value, shapes, locations, weights):
    """The formula in plain loops."""
    value, locations, weights = (each.double().numpy() for each in (value, locations, weights))
    N, _, M, D = value.shape
    Q, L, P = weights.shape[1], weights.shape[3], weights.shape[4]
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    out = np.zeros((N, Q, M, D))
    for n, q, m, level, p in np.ndindex(N, Q, M, L, P):
        (H, W), start = shapes[level], starts[level]
        x, y = locations[n, q, m, level, p] * (W, H) - 0.5
        for row, column in itertools.product((np.floor(y), np.floor(y) + 1), (np.floor(x), np.floor(x) + 1)):
            if 0 <= row < H and 0 <= column < W:
                factor = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[n, q, m, level, p]
                out[n, q, m] += factor * value[n, start + int(row) * W + int(column), m]
    return torch.from_numpy(out).flatten(2)


def gradients(function, leaves, grad_output):
    leaves = [each.detach().requires_grad_() for each in leaves]
    return torch.autograd.grad(function(*leaves), leaves, grad_output)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_ms_deform_attn_matches_loop(case, softmax):
    shapes = CASES[case].get("shapes", SHAPES)
    value, locations, weights = tensors(**CASES[case])
    exact = weights.flatten(3).softmax(-1).view(weights.shape) if softmax and weights.numel() else weights
    expected = loop(value, shapes, locations, exact)
    for function in (ms_deform_attn, ms_deform_attn_reference):
        assert_close(function(value, shapes, None, locations, weights, softmax=softmax), expected)


class CopiesToCpu(TorchDispatchMode):
    """Records `non_blocking` of every copy whose result is on the CPU."""

    def __init__(self):
        super().__init__()
        self.non_blocking = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.is_cpu:
            self.non_blocking.append((kwargs or {}).get("non_blocking", False))
        return out


def test_ms_deform_attn_waits_for_copies_to_the_cpu():
    """The CPU reads the sizes of the levels at once. test_cuda.py has the same with a real copy from a GPU."""
    value, locations, weights = tensors()
    with CopiesToCpu() as copies:
        ms_deform_attn(value, torch.tensor(SHAPES, dtype=torch.int32), None, locations, weights)
    assert copies.non_blocking == [False]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("case", [name for name in CASES if name != "300 points"])
def test_ms_deform_attn_gradients_match_reference(case, softmax):
    shapes, leaves = CASES[case].get("shapes", SHAPES), tensors(**CASES[case])
    grad_output = torch.randn(leaves[1].shape[0], leaves[1].shape[1], leaves[0].shape[2:].numel(), dtype=torch.float64)
    results = [
        gradients(lambda v, x, w, f=function: f(v, shapes, None, x, w, softmax=softmax), leaves, grad_output)
        for function in (ms_deform_attn, ms_deform_attn_reference)
    ]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("Q", [13294, 300], ids=["encoder", "decoder"])
def test_ms_deform_attn_matches_grid_sample_at_the_size_of_deformable_detr(Q):
    leaves = tensors(DETR_SHAPES, N=1, M=8, D=32, Q=Q, P=4, dtype=torch.float32, spread=1.05)
    shapes, starts = torch.tensor(DETR_SHAPES), torch.tensor([0, 10000, 12500, 13125])
    grad_output = torch.randn(1, Q, 256)
    functions = (
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w, 64, softmax=True),
        lambda v, x, w: grid_sample_form(v, DETR_SHAPES, x, w, softmax=True),
    )
    assert_close(functions[0](*leaves), functions[1](*leaves), rtol=1e-4, atol=1e-4)
    if Q == 300:  # the gradients of grid_sample take long for all queries
        for actual, expected in zip(*(gradients(f, leaves, grad_output) for f in functions), strict=True):
            assert float((actual - expected).norm() / expected.norm()) < 1e-4


def test_ms_deform_attn_forward_mode():
    leaves, tangents = tensors(), tensors(seed=1)
    step = 1e-6
    for function in (ms_deform_attn, ms_deform_attn_reference):
        call = lambda v, x, w, f=function: f(v, SHAPES, None, x, w, softmax=True)  # noqa: E731
        ends = [call(*(a + s * b for a, b in zip(leaves, tangents, strict=True))) for s in (step, -step)]
        expected = (ends[0] - ends[1]) / (2 * step)
        with forward_ad.dual_level():
            out = call(*map(forward_ad.make_dual, leaves, tangents))
            assert_close(forward_ad.unpack_dual(out).tangent, expected, rtol=1e-6, atol=1e-6)
        assert_close(torch.func.jvp(call, tuple(leaves), tuple(tangents))[1], expected, rtol=1e-6, atol=1e-6)


def test_ms_deform_attn_forward_over_reverse():
    """A tangent of grad_output alone also reaches the gradients."""
    leaves = [each.requires_grad_() for each in tensors()]
    out = ms_deform_attn(leaves[0], SHAPES, None, *leaves[1:])
    direction, tangent = torch.randn_like(out), torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, tangent, retain_graph=True)  # gradients are linear in grad_output
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, leaves, forward_ad.make_dual(direction, tangent))
        for value, right in zip(grads, expected, strict=True):
            assert_close(forward_ad.unpack_dual(value).tangent, right)


def test_ms_deform_attn_gradients_at_the_border_are_those_of_the_original():
    """Samples at exactly -1 or at the size contribute nothing, and have no gradient."""
    value, locations, weights = tensors([(4, 8)], N=1, M=1, D=3, Q=4, P=1)
    locations[:] = torch.tensor([[-1 / 16, 0.5], [0.5, -1 / 8], [1 + 1 / 16, 0.5], [0.5, 1 + 1 / 8]]).view(
        1, 4, 1, 1, 1, 2
    )
    grad_output = torch.ones(1, 4, 3, dtype=torch.float64)
    for function in (ms_deform_attn, ms_deform_attn_reference):
        for grad in gradients(
            lambda v, x, w, f=function: f(v, [(4, 8)], None, x, w), (value, locations, weights), grad_output
        ):
            assert not grad.any()


@pytest.mark.parametrize("softmax", [False, True])
def test_ms_deform_attn_nonfinite_values_stay_where_they_are_used(softmax):
    shapes = [(3, 3), (1, 4), (0, 2)]
    value, locations, weights = tensors(shapes, N=1, M=1, D=9, Q=60, P=2, dtype=torch.float32)
    value[0, 0], value[0, 5, 0, 3], value[0, 12] = float("inf"), float("nan"), -float("inf")
    locations[0, 7, 0, 0, 1, 0], locations[0, 9, 0, 1, 0, 1] = float("nan"), float("inf")
    locations[0, 11, 0, 2] = float("nan")  # an empty level
    weights[0, 13, 0, 0, 0] = float("nan")
    grad_output = torch.randn(1, 60, 9)
    grad_output[0, 3, 2], grad_output[0, 21] = float("inf"), float("nan")
    call = lambda f: lambda v, x, w: f(v, shapes, None, x, w, softmax=softmax)  # noqa: E731
    leaves = (value, locations, weights)
    actual, expected = call(ms_deform_attn)(*leaves), call(ms_deform_attn_reference)(*leaves)
    assert expected.isnan().any() and expected.isfinite().any()
    assert not expected[0, 11].isnan().all()
    assert_close(actual, expected, equal_nan=True)
    grads = [gradients(call(f), leaves, grad_output) for f in (ms_deform_attn, ms_deform_attn_reference)]
    assert_close(grads[0][0], grads[1][0], equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["plain", "32 channels", "one row, one column, one pixel"])
@pytest.mark.parametrize("points", ["same", "float32"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
def test_ms_deform_attn_lower_precision(case, points, dtype, tolerance):
    shapes, leaves = CASES[case].get("shapes", SHAPES), tensors(**CASES[case])
    leaves = [leaves[0].to(dtype), *(each.to(dtype if points == "same" else torch.float32) for each in leaves[1:])]
    out = ms_deform_attn(leaves[0], shapes, None, *leaves[1:], softmax=True)
    call = lambda v, x, w: ms_deform_attn(v, shapes, None, x, w, softmax=True)  # noqa: E731
    grads = gradients(call, leaves, torch.ones_like(out))
    exact = [each.double() for each in leaves]
    expected = [call(*exact), *gradients(call, exact, torch.ones_like(out).double())]
    assert [each.dtype for each in (out, *grads)] == [dtype, dtype, leaves[1].dtype, leaves[1].dtype]
    for actual, right in zip((out, *grads), expected, strict=True):
        assert (actual.double() - right).norm() <= tolerance * right.norm()


def test_ms_deform_attn_accumulates_in_float32():
    value = torch.ones(1, 4096, 1, 8, dtype=torch.bfloat16)
    weights = torch.full((1, 1, 1, 1, 200), 1.0, dtype=torch.bfloat16)
    weights[..., 0] = 1024  # a sum in bfloat16 would lose all other terms
    out = ms_deform_attn(value, [(64, 64)], None, torch.full((1, 1, 1, 1, 200, 2), 0.5, dtype=torch.bfloat16), weights)
    assert_close(out, torch.full_like(out, 1024 + 199))


def test_ms_deform_attn_reads_any_strides():
    value, locations, weights = tensors(D=8)
    expected = ms_deform_attn(value, SHAPES, None, locations, weights)
    heads_first = value.transpose(1, 2).contiguous().transpose(1, 2)
    channels_apart = value.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.randn(2, 5, 100, dtype=torch.float64)
    wide[:, :, 3:27], wide[:, :, 30:42] = locations.flatten(2), weights.flatten(2)
    slices = wide[:, :, 3:27].view(2, 5, 2, 2, 3, 2), wide[:, :, 30:42].view(2, 5, 2, 2, 3)
    for given in ((heads_first, locations, weights), (channels_apart, locations, weights), (value, *slices)):
        assert torch.equal(ms_deform_attn(given[0], SHAPES, None, *given[1:]), expected)
    one = locations[:, :1].expand(-1, 5, -1, -1, -1, -1)
    assert_close(
        ms_deform_attn(value, SHAPES, None, one, weights), ms_deform_attn(value, SHAPES, None, one.clone(), weights)
    )


def test_ms_deform_attn_reads_levels_of_one_column_from_feature_maps():
    """The usual layout of value: the maps [N, M*D, H, W] of the levels, one after the other, with channels first."""
    shapes = [(8, 2), (4, 1)]
    _, locations, weights = tensors(shapes, D=3)
    maps = [torch.randn(2, 2 * 3, h, w, dtype=torch.float64) for h, w in shapes]
    value = torch.cat([each.flatten(2) for each in maps], 2).transpose(1, 2).unflatten(2, (2, 3))
    expected = loop(value, shapes, locations, weights)
    for function in (ms_deform_attn, ms_deform_attn_reference):
        assert_close(function(value, shapes, None, locations, weights), expected)
    call = lambda v: ms_deform_attn(v, shapes, None, locations, weights)  # noqa: E731
    tangent = torch.func.jvp(call, (value,), (value,))[1]  # by the reference
    assert_close(tangent, expected)


def test_ms_deform_attn_levels_in_any_order():
    value, locations, weights = tensors()
    turned = torch.cat([value[:, 30:], value[:, :1], value[:, :30]], 1)  # the second level, an unused pixel, the first
    out = ms_deform_attn(turned, torch.tensor(SHAPES, dtype=torch.int32), [13, 0], locations, weights)
    assert_close(out, ms_deform_attn(value, torch.tensor(SHAPES), None, locations, weights))


@pytest.mark.parametrize("dims", [{"N": 1, "M": 1}, {"N": 1, "M": 3}, {"N": 2, "M": 4}])
def test_ms_deform_attn_is_deterministic_in_threads(dims):
    """One head on several threads is divided into bands of rows."""
    shapes = [(20, 15), (1, 9), (7, 1), (5, 6)]
    leaves = tensors(shapes, D=24, Q=200, P=4, dtype=torch.float32, **dims)
    grad_output = torch.randn(dims["N"], 200, 24 * dims["M"])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            call = lambda v, x, w: ms_deform_attn(v, shapes, None, x, w, softmax=True)  # noqa: E731
            results.append((call(*leaves), *gradients(call, leaves, grad_output)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def schema_arguments(dtype=torch.float32):
    """The arguments of torch.ops.danet.ms_deform_attn."""
    return (*tensors(dtype=dtype), torch.tensor(SHAPES), torch.tensor([0, 30]), True)


def test_ms_deform_attn_opcheck_of_the_gradient():
    arguments = schema_arguments(torch.float32)
    arguments = (*(each.requires_grad_() for each in arguments[:3]), *arguments[3:])
    torch.library.opcheck(
        torch.ops.danet.ms_deform_attn_backward.default,
        (torch.randn(2, 5, 8).requires_grad_(), *arguments, False),
        # Second derivatives exist in eager mode only.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_ms_deform_attn_exports():
    class Module(torch.nn.Module):
        def forward(self, value, locations, weights):
            return ms_deform_attn(value, SHAPES, None, locations, weights)

    leaves = tuple(tensors(dtype=torch.float32))
    program = torch.export.export(Module(), leaves)
    assert any("danet.ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(*leaves), Module()(*leaves), rtol=0, atol=0)


def test_ms_deform_attn_batched_gradients():
    """The vmap rule of the backward operator."""
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 30])
    call = lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w, softmax=True)  # noqa: E731
    leaves = [each.requires_grad_() for each in tensors()]
    out, directions = call(*leaves), torch.randn(3, 2, 5, 8, dtype=torch.float64)
    batched = torch.autograd.grad(out, leaves, directions, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        for actual, expected in zip(
            batched, torch.autograd.grad(out, leaves, directions[i], retain_graph=True), strict=True
        ):
            assert_close(actual[i], expected)


def test_ms_deform_attn_functorch_gradients_error():
    with pytest.raises(RuntimeError, match=r"^ms_deform_attn: torch.func's grad and vjp are not supported"):
        torch.func.grad(lambda *t: ms_deform_attn(t[0], SHAPES, None, *t[1:]).sum())(*tensors())


def test_ms_deform_attn_autocast_keeps_precise_locations():
    value, locations, weights = tensors(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ms_deform_attn(value, SHAPES, None, locations, weights)
        mixed = ms_deform_attn(value, SHAPES, None, locations, weights.bfloat16())
    assert out.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(out, ms_deform_attn(value.bfloat16(), SHAPES, None, locations, weights))


VALUE, LOCATIONS, WEIGHTS = tensors(dtype=torch.float32)
ERRORS = [
    ({0: 1}, TypeError, "ms_deform_attn: value must be a tensor, got int"),
    ({0: VALUE[0]}, ValueError, "ms_deform_attn: value must be [N, S, M, D] with M, D >= 1, got [42, 2, 4]"),
    (
        {0: VALUE.int()},
        TypeError,
        "ms_deform_attn: value must be float64, float32, float16 or bfloat16, got int32",
    ),
    (
        {3: LOCATIONS[..., 0]},
        ValueError,
        "ms_deform_attn: sampling_locations must be [N, Q, M, L, P, 2] with 6 dimensions, got [2, 5, 2, 2, 3]",
    ),
    (
        {4: WEIGHTS[:1]},
        ValueError,
        "ms_deform_attn: attention_weights must be [N, Q, M, L, P] = [2, 5, 2, 2, 3], got [1, 5, 2, 2, 3]",
    ),
    (
        {3: LOCATIONS.double()},
        TypeError,
        "ms_deform_attn: sampling_locations must be float32 for this value, got float64",
    ),
    ({4: WEIGHTS.to("meta")}, ValueError, "ms_deform_attn: attention_weights must be on value's device cpu, got meta"),
    ({1: torch.tensor(SHAPES[:1])}, ValueError, "ms_deform_attn: spatial_shapes must be [L, 2] = [2, 2], got [1, 2]"),
    ({1: torch.rand(2, 2)}, TypeError, "ms_deform_attn: spatial_shapes must be int64 or int32, got float32"),
    ({1: "ab"}, TypeError, "ms_deform_attn: spatial_shapes must be a tensor of integers, got 'ab'"),
    ({2: [0]}, ValueError, "ms_deform_attn: level_start_index must be [L] = [2], got [1]"),
    (
        {2: [0, 31]},
        RuntimeError,
        "ms_deform_attn: level 1 must lie within the S = 42 pixels of value, got 3 * 4 pixels from 31",
    ),
]


@pytest.mark.parametrize(("changes", "error", "text"), ERRORS, ids=[case[-1] for case in ERRORS])
def test_ms_deform_attn_error(changes, error, text):
    arguments = [VALUE, torch.tensor(SHAPES), torch.tensor([0, 30]), LOCATIONS, WEIGHTS]
    for index, value in changes.items():
        arguments[index] = value
    for function in (ms_deform_attn, ms_deform_attn_reference):
        with pytest.raises(error) as caught:
            function(*arguments)
        assert str(caught.value) == text


def test_ms_deform_attn_direct_calls_are_checked():
    value, locations, weights, shapes, starts, softmax = schema_arguments()
    for arguments in (
        (value, locations[:, :, :, :1], weights, shapes, starts),
        (value, locations, weights.double(), shapes, starts),
        (value, locations, weights, shapes.int(), starts),
        (value, locations, weights, shapes, starts + 1),
        (value, locations, weights, shapes, starts - 1),
        (value, locations, weights, shapes - 7, starts),
        (value, locations, weights, shapes[:1], starts),
        (value[:, :0], locations, weights, shapes, starts),
    ):
        with pytest.raises(RuntimeError, match="ms_deform_attn: "):
            torch.ops.danet.ms_deform_attn(*arguments, softmax)
    points = MAX_POINTS + 1
    with pytest.raises(RuntimeError, match="L \\* P must be at most 256"):
        torch.ops.danet.ms_deform_attn(
            value, torch.rand(2, 1, 2, 1, points, 2), torch.rand(2, 1, 2, 1, points), shapes[:1], starts[:1], softmax
        )


def test_ms_deform_attn_signatures_of_other_libraries():
    value, locations, weights = tensors(dtype=torch.float32)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 30])
    expected = grid_sample_form(value, SHAPES, locations, weights)
    assert_close(MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, 64), expected)
    assert_close(multi_scale_deformable_attention(value, SHAPES, locations, weights), expected)
    layer = MultiScaleDeformableAttention()
    assert_close(layer(value, shapes, SHAPES, starts, locations, weights, 64), expected)


def foreign_model(monkeypatch):
    """A model like those of transformers: one layer of the replaced class, and one that calls the replaced function."""

    def multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights):
        return grid_sample_form(value, value_spatial_shapes, sampling_locations, attention_weights)

    class MultiScaleDeformableAttention(torch.nn.Module):
        def forward(self, value, shapes, value_spatial_shapes_list, start, locations, weights, im2col_step):
            return grid_sample_form(value, value_spatial_shapes_list, locations, weights)

    module = types.ModuleType("transformers.models.of_a_test")
    module.multi_scale_deformable_attention = multi_scale_deformable_attention

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = MultiScaleDeformableAttention()

        def forward(self, value, locations, weights):
            first = self.attn(value, torch.tensor(SHAPES), SHAPES, torch.tensor([0, 30]), locations, weights, 64)
            return first + module.multi_scale_deformable_attention(value, SHAPES, locations, weights)

    Model.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Model().eval()


def test_replace_ms_deform_attn_in_one_line(monkeypatch):
    model, arguments = foreign_model(monkeypatch), tensors(dtype=torch.float32)
    expected = model(*arguments)
    assert replace_ms_deform_attn(model) == 2
    assert isinstance(model.attn, MultiScaleDeformableAttention) and not model.attn.training
    assert (
        sys.modules["transformers.models.of_a_test"].multi_scale_deformable_attention
        is multi_scale_deformable_attention
    )
    assert_close(model(*arguments), expected)
    assert replace_ms_deform_attn(model) == 0


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr", "mask2former"])
def test_replace_ms_deform_attn_in_transformers(name):
    """The attention layer of a model with random weights, before and after the replacement."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    torch.manual_seed(0)
    if name == "mask2former":
        layer = module.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(64, 8, len(SHAPES), 4)
    else:
        prefix = {"deformable_detr": "DeformableDetr", "rt_detr": "RTDetr"}[name]
        config = getattr(module, f"{prefix}Config")(d_model=64, num_feature_levels=len(SHAPES))
        layer = getattr(module, f"{prefix}MultiscaleDeformableAttention")(config, num_heads=8, n_points=4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    call = {
        "hidden_states": torch.randn(2, 9, 64),
        "encoder_hidden_states": torch.randn(2, 42, 64),
        "reference_points": torch.rand(2, 9, len(SHAPES), 2),
        "spatial_shapes": torch.tensor(SHAPES),
        "spatial_shapes_list": SHAPES,
        "level_start_index": torch.tensor([0, 30]),
    }
    if name == "mask2former":
        call.pop("spatial_shapes")
    original = getattr(module, "multi_scale_deformable_attention", None)
    try:
        expected = layer(**call)[0]
        assert replace_ms_deform_attn(layer) == 1
        assert_close(layer(**call)[0], expected, rtol=1e-4, atol=1e-4)
        layer(**call)[0].sum().backward()
    finally:
        if original is not None:
            module.multi_scale_deformable_attention = original
