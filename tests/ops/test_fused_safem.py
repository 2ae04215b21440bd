"""The fused SaFEM kernels against their steps in float64; dtypes, layouts, threads, gradients, compilation, errors."""

import pytest
import torch
from torch.func import vmap

from danet.ops import (
    acfa_weight,
    acfa_weight_reference,
    prepare_safem,
    safem,
    safem_reference,
)
from danet.ops.fused_safem import _has_fused_kernel


def make_weights(C, G, dtype=torch.float64, seed=0):
    """Random weights: offsets cross the borders of the image, and the softmax is neither uniform nor one-hot."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(C, 1, 3, 3), (C,), (27 * G, C, 1, 1), (27 * G,), (2 * C, C, 1, 1), (2 * C,), (C, 2 * C, 1, 1), (C,)]
    scales = [0.5, 0.5, 2 / C**0.5, 1.0, 1 / C**0.5, 0.5, 2 / C**0.5, 1.0]
    draws = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [(draw * scale).to(dtype) for draw, scale in zip(draws, scales, strict=True)]


def make_inputs(N, C, H, W, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, C, H, W), (N, 4 * C, (H + 1) // 2, (W + 1) // 2), (N, C)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


CASES = {
    "C 64": (1, 64, 12, 17, 4),
    "C 32, odd sizes": (2, 32, 7, 9, 4),
    "C 20": (2, 20, 5, 6, 4),
    "C 3, one group": (1, 3, 6, 5, 1),
    "C 128": (1, 128, 8, 10, 4),
    "C 512": (1, 512, 3, 4, 4),
    "C 60, 30 groups": (1, 60, 4, 5, 30),
    "one pixel": (3, 16, 1, 1, 4),
    "one row": (1, 16, 1, 9, 2),
    "no image": (0, 16, 4, 5, 4),
}


def needs_matrix_unit():
    if torch.ops.danet.matrix_unit() == 0:
        pytest.skip("no matrix unit; test_instruction_sets.py runs this test with an emulated one")


def relative_error(out, expected):
    return ((out.double() - expected).norm() / expected.norm().clamp(min=1e-9)).item() if out.numel() else 0.0


@pytest.mark.parametrize("combines", [False, True], ids=["alone", "two levels"])
@pytest.mark.parametrize("case", CASES)
def test_safem_in_bfloat16_matches_float64_steps(case, combines):
    needs_matrix_unit()
    N, C, H, W, G = CASES[case]
    tensors = [value.bfloat16() for value in make_inputs(N, C, H, W)]
    weights = [value.bfloat16() for value in make_weights(C, G)]
    results = []
    for dtype, function in ((torch.bfloat16, safem), (torch.float64, safem_reference)):
        input, up, weight = (value.to(dtype) for value in tensors)
        more = {"up": up, "weight": weight} if combines else {}
        prepared = prepare_safem(*(value.to(dtype) for value in weights), groups=G)
        assert (prepared.packed is not None) == (dtype == torch.bfloat16)
        results.append(function(input, prepared, scale=0.5, **more))
    out, expected = results
    assert out.dtype == torch.bfloat16 and out.shape == (N, C, H, W)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, expected) < 0.01


@pytest.mark.parametrize("combines", [False, True], ids=["alone", "two levels"])
@pytest.mark.parametrize("case", CASES)
def test_safem_matches_float64_steps(case, combines):
    N, C, H, W, G = CASES[case]
    input, up, weight = make_inputs(N, C, H, W)
    more = {"up": up, "weight": weight} if combines else {}
    expected = safem_reference(input, prepare_safem(*make_weights(C, G), groups=G), scale=0.5, **more)
    weights = prepare_safem(*make_weights(C, G, torch.float32), groups=G)
    assert weights.packed is not None
    arguments = {name: value.float() for name, value in more.items()}
    out = safem(input.float(), weights, scale=0.5, **arguments)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5 * C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [name for name in CASES if name != "no image"])
def test_acfa_weight_matches_float64_steps(case, dtype):
    if dtype == torch.bfloat16:
        needs_matrix_unit()
    N, C, H, W, G = CASES[case]
    input, weights = make_inputs(N, C, H, W)[0].to(dtype), make_weights(C, G, dtype)
    exact = acfa_weight_reference(input.double(), prepare_safem(*(value.double() for value in weights), groups=G))
    prepared = prepare_safem(*weights, groups=G)
    assert prepared.packed is not None
    out = acfa_weight(input, prepared)
    assert out.dtype == dtype and out.shape == (N, C)
    assert (out.double() - exact).abs().max() < (2e-5 if dtype == torch.float32 else 2e-2)


def test_safem_matches_the_training_module():
    from danet.models.safem import SaFEM  # the module that training uses

    module = SaFEM(16).double().eval()
    torch.nn.init.normal_(module.sdc.predictor.weight)
    torch.nn.init.normal_(module.ffn[2].weight)
    input = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    norm = module.sdc.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expand = module.ffn[0].weight[:, :, 0, 0] @ module.sdc.projection.weight[:, :, 0, 0]
    weights = prepare_safem(
        module.sdc.depthwise.weight * scale[:, None, None, None],
        norm.bias - norm.running_mean * scale,
        module.sdc.predictor.weight,
        module.sdc.predictor.bias,
        expand[:, :, None, None],
        module.ffn[0].bias,
        module.ffn[2].weight,
        module.ffn[2].bias,
        groups=4,
    )
    with torch.no_grad():
        torch.testing.assert_close(safem(input, weights), module(input))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_safem_in_other_dtypes(dtype):
    weights = prepare_safem(*make_weights(16, 4, dtype), groups=4)
    if dtype != torch.bfloat16 or torch.ops.danet.matrix_unit() == 0:
        assert weights.packed is None
    input = torch.randn(1, 16, 4, 5, dtype=dtype)
    out = safem(input, weights)
    assert out.dtype == dtype
    expected = safem_reference(
        input.double(), prepare_safem(*(t.double() for t in make_weights(16, 4, dtype)), groups=4)
    )
    torch.testing.assert_close(out.double(), expected, rtol=0.1, atol=0.1)


def test_safem_runs_too_large_images_in_steps():
    """The kernels count the elements of an image in 32 bits."""
    weights = prepare_safem(*make_weights(16, 4, torch.float32), groups=4)
    shape = (1, 16, 2**14, 2**13)
    assert not _has_fused_kernel(torch.empty(1).expand(shape), weights)
    with pytest.raises(RuntimeError, match="safem: an image must have"):
        torch.ops.danet.safem(torch.empty(1).expand(shape), weights.packed, None, None, 4, 1.0)


def test_safem_large_logits_stay_finite():
    parts = make_weights(16, 4)
    parts[6] *= 300
    input = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    expected = safem_reference(input, prepare_safem(*parts, groups=4))
    out = safem(input.float(), prepare_safem(*(t.float() for t in parts), groups=4))
    assert out.isfinite().all()
    assert ((out.double() - expected).abs() < 0.05 * (1 + expected.abs())).float().mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safem_nan_pixel_stays_local(dtype):
    weights = prepare_safem(*make_weights(16, 4, dtype), groups=4)
    input = torch.randn(2, 16, 9, 9).to(dtype)
    clean = safem(input, weights)
    input[0, 3, 4, 4] = float("nan")
    out = safem(input, weights)
    assert out[0, :, 4, 4].isnan().all()
    torch.testing.assert_close(out[1], clean[1], rtol=0, atol=0)


def test_safem_in_bfloat16_spreads_nan_as_in_float32():
    input = torch.randn(1, 16, 9, 9).bfloat16()
    input[0, :, 4, 4] = torch.nan
    masks = []
    for dtype in (torch.float32, torch.bfloat16):
        tensors = make_weights(16, 4, dtype)
        tensors[2] = torch.zeros_like(tensors[2])  # the predictor: all offsets are -0.3
        tensors[3] = torch.full_like(tensors[3], -0.3)
        masks.append(safem(input.to(dtype), prepare_safem(*tensors, groups=4)).isnan())
    assert masks[0].any() and torch.equal(*masks)


@pytest.mark.parametrize(
    ("place", "exponent"),
    [(place, exponent) for place in ("input", "depthwise") for exponent in (-100, -20, -9, -8, -7, 6, 20, 100)]
    + [("both", exponent) for exponent in (-20, -9, -8, -7, 6, 20)],
)
def test_safem_in_bfloat16_beyond_the_range_of_float16(place, exponent):
    # The values of one of three images, or only those after the depth-wise convolution, are multiplied by a power of
    # two, and the weights that follow are divided by it. Then only the range of intermediate values differs. Small
    # values would lose precision without a scale. Large ones would become infinite and be computed in float32.
    needs_matrix_unit()
    factor = 2.0**exponent
    input, weights = make_inputs(3, 32, 12, 17)[0].bfloat16(), [value.bfloat16() for value in make_weights(32, 4)]
    expected = safem(input, prepare_safem(*weights, groups=4))[1]
    after = factor**2 if place == "both" else factor
    weights[1] *= after  # the bias of the depth-wise convolution
    weights[2] /= after  # the predictor
    if place != "input":
        weights[0] *= factor
    if place != "depthwise":
        weights[4] /= factor  # the first layer of the FFN
        input[1] *= factor
    out = safem(input, prepare_safem(*weights, groups=4))[1]
    out = out if place == "depthwise" else out / factor
    assert out.isfinite().all()
    assert relative_error(out, expected.double()) < 0.01


@pytest.mark.parametrize("value", [3e3, 1e5, 1e9, 1e30])
def test_safem_in_bfloat16_large_pixel_stays_local(value):
    needs_matrix_unit()
    weights = [each.bfloat16() for each in make_weights(32, 4)]
    input = make_inputs(1, 32, 24, 34)[0].bfloat16()
    input[0, 3, 2, 2] = value
    exact = safem(input.float(), prepare_safem(*(each.float() for each in weights), groups=4))[..., 14:, 14:]
    out = safem(input, prepare_safem(*weights, groups=4))[..., 14:, 14:]
    assert relative_error(out, exact.double()) < 0.01


def test_safem_in_bfloat16_computes_overflowing_sums_in_float32():
    # All values and weights fit float16, but not the sums of the depth-wise convolution.
    needs_matrix_unit()
    weights = [each.bfloat16() for each in make_weights(32, 4)]
    input = make_inputs(1, 32, 12, 17)[0].bfloat16().clamp(-7, 7) * 2**8
    weights[0], weights[1], weights[2] = weights[0] * 2**9, weights[1] * 2**17, weights[2] / 2**17
    weights[4] /= 2**8
    exact = safem(input.float(), prepare_safem(*(each.float() for each in weights), groups=4))
    out = safem(input, prepare_safem(*weights, groups=4))
    assert relative_error(out, exact.double()) < 0.01


def test_safem_in_bfloat16_with_nan_logits():
    needs_matrix_unit()
    input = torch.randn(1, 16, 9, 9).bfloat16()
    tensors = [each.bfloat16() for each in make_weights(16, 4)]
    tensors[3][2 * 9 * 4 + 4] = torch.nan  # the bias of one logit of the first group
    assert safem(input, prepare_safem(*tensors, groups=4)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepare_safem_copies_the_weights(dtype):
    tensors = [value.to(dtype) for value in make_weights(8, 2)]
    weights, input = prepare_safem(*tensors, groups=2), torch.randn(1, 8, 6, 7, dtype=dtype)
    expected = safem(input, weights)
    for value in tensors:
        value.mul_(-2)
    torch.testing.assert_close(safem(input, weights), expected, rtol=0, atol=0)
    with_gradient = safem(input.clone().requires_grad_(), weights)  # in steps, from the unpacked tensors
    torch.testing.assert_close(with_gradient, expected, rtol=1e-4, atol=1e-4)


def test_safem_accepts_channel_slices():
    weights = prepare_safem(*make_weights(16, 4, torch.float32), groups=4)
    wide = torch.randn(2, 40, 6, 7).contiguous(memory_format=torch.channels_last)
    expected = safem(wide[:, 8:24].contiguous(), weights)
    torch.testing.assert_close(safem(wide[:, 8:24], weights), expected, rtol=0, atol=0)


@pytest.mark.parametrize("function", [safem, acfa_weight])
def test_results_do_not_depend_on_the_threads(function):
    weights = prepare_safem(*make_weights(32, 4, torch.float32), groups=4)
    input = torch.randn(1, 32, 40, 41)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(function(input, weights))
        torch.testing.assert_close(*results, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


def test_safem_gradients_match_reference():
    weights = prepare_safem(*make_weights(8, 4, torch.float32), groups=4)
    input = torch.randn(1, 8, 4, 5, requires_grad=True)
    grads = [torch.autograd.grad(f(input, weights).square().sum(), input)[0] for f in (safem, safem_reference)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_safem_opcheck_and_compile():
    weights = prepare_safem(*make_weights(16, 4, torch.float32), groups=4)
    input, up, weight = (t.float() for t in make_inputs(2, 16, 5, 6))
    torch.library.opcheck(torch.ops.danet.safem.default, (input, weights.packed, None, None, 4, 1.0))
    torch.library.opcheck(torch.ops.danet.safem.default, (input, weights.packed, up, weight, 4, 1.0))
    torch.library.opcheck(torch.ops.danet.acfa_weight.default, (input, weights.packed, 4))
    compiled = torch.compile(lambda x: safem(x, weights, up=up, weight=weight), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), safem(input, weights, up=up, weight=weight), rtol=0, atol=0)


def test_safem_vmap():
    weights = prepare_safem(*make_weights(16, 4, torch.float32), groups=4)
    batches = torch.randn(3, 2, 16, 5, 6)
    for function in (safem, acfa_weight):
        expected = torch.stack([function(input, weights) for input in batches])
        torch.testing.assert_close(vmap(lambda x, f=function: f(x, weights))(batches), expected, rtol=0, atol=1e-6)


WEIGHTS = prepare_safem(*make_weights(8, 4, torch.float32), groups=4)
INPUT, UP, WEIGHT = (t.float() for t in make_inputs(2, 8, 5, 6))
ERRORS = [
    ((None, WEIGHTS), {}, TypeError, "safem: input must be a tensor, got NoneType"),
    ((INPUT[0], WEIGHTS), {}, ValueError, "safem: input must be [N, C, H, W], got [8, 5, 6]"),
    ((INPUT, None), {}, TypeError, "safem: weights must be what prepare_safem returns, got NoneType"),
    ((INPUT.double(), WEIGHTS), {}, TypeError, "safem: weights must have input's dtype float64, got float32"),
    ((INPUT[:, :4], WEIGHTS), {}, ValueError, "safem: input must have C = 8 like weights, got 4"),
    ((INPUT, WEIGHTS), {"up": UP}, ValueError, "safem: up and weight must be given together, got up without weight"),
    (
        (INPUT, WEIGHTS),
        {"up": UP[:, :, :2], "weight": WEIGHT},
        ValueError,
        "safem: up must be [N, 4*C, ceil(H / 2), ceil(W / 2)] = [2, 32, 3, 3], got [2, 32, 2, 3]",
    ),
    (
        (INPUT, WEIGHTS),
        {"up": UP, "weight": WEIGHT[0]},
        ValueError,
        "safem: weight must be [N, C] = [2, 8], got [8]",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), ERRORS)
def test_safem_error(arguments, options, error, text):
    for function in (safem, safem_reference):
        with pytest.raises(error) as caught:
            function(*arguments, **options)
        assert str(caught.value) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"groups": 3}, "safem: groups must divide C = 8, got 3"),
        ({"predictor_bias": torch.zeros(5)}, "safem: predictor_bias must be [27*G] = [108], got [5]"),
        (
            {"expand": torch.zeros(16, 4, 1, 1)},
            "safem: expand must be [2*C, C, 1, 1] = [16, 8, 1, 1], got [16, 4, 1, 1]",
        ),
    ],
)
def test_prepare_safem_error(change, text):
    names = ("depthwise", "depthwise_bias", "predictor", "predictor_bias", "expand", "expand_bias", "reduce")
    values = dict(zip((*names, "reduce_bias"), make_weights(8, 4, torch.float32), strict=True))
    with pytest.raises(ValueError) as caught:
        prepare_safem(**{**values, "groups": 4, **change})
    assert str(caught.value) == text
