"""deform_conv2d against a loop over its formula, against sdc and F.conv2d, and in the cases that torchvision tests."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sdc_cases import bilinear_loop
from torch.autograd import forward_ad
from torch.testing import assert_close

from danet.ops import SDC, deform_conv2d, deform_conv2d_reference


def deform_conv_loop(input, offset, weight, bias, stride, padding, dilation, mask):
    """The formula as loops over output positions, output channels' groups and taps."""
    input, offset, weight, mask = (t.detach().double().numpy() for t in (input, offset, weight, mask))
    N, C = input.shape[:2]
    C_out, C_group, k_y, k_x = weight.shape
    H_out, W_out = offset.shape[2:]
    K, groups = k_y * k_x, C // C_group
    G = offset.shape[1] // (2 * K)
    samples = np.zeros((N, C, K, H_out, W_out))
    for n, g, k, y, x in itertools.product(range(N), range(G), range(K), range(H_out), range(W_out)):
        channels = slice(g * C // G, (g + 1) * C // G)
        dy, dx = offset[n, (g * K + k) * 2 : (g * K + k) * 2 + 2, y, x]
        Y = y * stride[0] - padding[0] + k // k_x * dilation[0] + dy
        X = x * stride[1] - padding[1] + k % k_x * dilation[1] + dx
        samples[n, channels, k, y, x] = mask[n, g * K + k, y, x] * bilinear_loop(input[n, channels], Y, X)
    out = np.zeros((N, C_out, H_out, W_out))
    for o in range(C_out):
        first = o // (C_out // groups) * C_group
        part = samples[:, first : first + C_group]
        out[:, o] = np.einsum("ckn,bcknyx->byx", weight[o].reshape(C_group, K, 1), part[:, :, :, None])
    return torch.from_numpy(out) + bias.double()[:, None, None]


def draw(N, C, C_out, H, W, *, groups=1, G=1, kernel_size=(3, 3), stride=1, padding=0, dilation=1, seed=0):
    """The tensors (input, offset, weight, bias, mask) of a call, in float64."""
    generator = torch.Generator().manual_seed(seed)
    stride, padding, dilation = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation))
    K = math.prod(kernel_size)
    H_out, W_out = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((H, W), kernel_size, stride, padding, dilation, strict=True)
    )

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    offset = 1.5 * randn(N, 2 * G * K, H_out, W_out)
    tensors = [randn(N, C, H, W), offset, randn(C_out, C // groups, *kernel_size), randn(C_out)]
    return [*tensors, randn(N, G * K, H_out, W_out)], {"stride": stride, "padding": padding, "dilation": dilation}


CASES = {
    "torchvision's layer": (
        1,
        6,
        2,
        5,
        4,
        {"groups": 2, "G": 3, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)},
    ),
    "dense": (2, 4, 6, 5, 6, {"padding": 1}),
    "dense, two offset groups": (2, 6, 5, 5, 4, {"G": 2, "padding": 1}),
    "dense, 40 to 37 channels": (1, 40, 37, 6, 7, {"padding": 1}),
    "dense, 5x5": (1, 3, 20, 8, 7, {"kernel_size": (5, 5), "padding": 2, "stride": 2}),
    "dense, few pixels for 90 channels": (1, 24, 90, 5, 8, {"padding": 1}),
    "dense, few pixels of two images": (2, 5, 130, 4, 6, {"padding": 1}),
    "one channel": (2, 1, 3, 5, 6, {"padding": 1}),
    "depth-wise": (2, 8, 8, 5, 6, {"groups": 8, "padding": 1}),
    "depth-wise, offset groups": (2, 40, 40, 5, 6, {"groups": 40, "G": 4, "padding": 1}),
    "depth-wise, every offset": (1, 60, 60, 4, 3, {"groups": 60, "G": 60, "padding": 1}),
    "depth-wise, two outputs per channel": (2, 4, 8, 5, 6, {"groups": 4, "G": 2, "padding": 1}),
    "depth-wise, 71 channels": (1, 71, 71, 3, 4, {"groups": 71, "padding": 1, "dilation": 2}),
    "grouped": (1, 12, 8, 5, 4, {"groups": 4, "G": 3, "padding": (1, 2)}),
    "grouped, wide offset groups": (1, 12, 6, 4, 5, {"groups": 6, "G": 2}),
    "grouped, several parts and panels": (1, 96, 80, 5, 6, {"groups": 2, "G": 4, "padding": 1}),
    "1x1 image": (1, 4, 4, 1, 1, {"padding": 1}),
    "no image": (0, 4, 6, 5, 6, {"padding": 1}),
}


@pytest.mark.parametrize("has_mask", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("case", CASES)
def test_deform_conv2d_matches_formula(case, has_mask):
    *sizes, options = CASES[case]
    tensors, options = draw(*sizes, **options)
    if not has_mask:
        tensors[4] = torch.ones_like(tensors[4])
    expected = deform_conv_loop(*tensors[:4], *options.values(), tensors[4])
    *four, mask = tensors
    for function in (deform_conv2d, deform_conv2d_reference):
        assert_close(function(*four, **options, mask=mask if has_mask else None), expected)
    single = [t.float() for t in tensors]
    out = deform_conv2d(*single[:4], **options, mask=single[4] if has_mask else None)
    assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    without = deform_conv2d(*single[:3], None, **options, mask=single[4] if has_mask else None)
    assert_close(without + single[3][:, None, None], out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [name for name in CASES if name != "no image"])
def test_deform_conv2d_gradients(case):
    *sizes, options = CASES[case]
    tensors, options = draw(*sizes, **options)

    def run(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = function(*leaves[:4], **options, mask=leaves[4])
        return torch.autograd.grad(out.square().sum(), leaves)

    expected = run(deform_conv2d_reference, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        for actual, right in zip(run(deform_conv2d, dtype), expected, strict=True):
            assert_close(actual.double(), right, rtol=tolerance, atol=tolerance * float(right.abs().max() + 1))


def test_deform_conv2d_second_derivatives_of_the_fused_kernel():
    """The kernel of float32 has a gradient of its own, whose derivatives equal those of the reference."""
    for case in ("dense", "grouped", "depth-wise"):
        *sizes, options = CASES[case]
        tensors, options = draw(*sizes, **options)
        results = []
        for function, dtype in ((deform_conv2d, torch.float32), (deform_conv2d_reference, torch.float64)):
            leaves = [t.to(dtype).requires_grad_() for t in tensors]
            out = function(*leaves[:4], **options, mask=leaves[4])
            first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first) * 1e-6, leaves))
        for actual, right in zip(*results, strict=True):
            assert_close(actual.double(), right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("case", ["dense", "grouped", "depth-wise", "depth-wise, offset groups"])
def test_deform_conv2d_forward_over_reverse_of_the_fused_kernel(case, has_bias):
    """A tangent of grad_output reaches the gradients of float32, which are linear in grad_output."""
    *sizes, options = CASES[case]
    tensors, options = draw(*sizes, **options)
    tensors = [t for i, t in enumerate(tensors) if has_bias or i != 3]

    def call(function, leaves):
        bias = leaves[3] if has_bias else None
        return function(*leaves[:3], bias, **options, mask=leaves[-1])

    wide = [t.clone().requires_grad_() for t in tensors]
    expected = call(deform_conv2d_reference, wide)
    direction, tangent = torch.randn_like(expected), torch.randn_like(expected)
    primals = torch.autograd.grad(expected, wide, direction, retain_graph=True)
    tangents = torch.autograd.grad(expected, wide, tangent)
    leaves = [t.float().requires_grad_() for t in tensors]
    out = call(deform_conv2d, leaves)
    assert "danet_deform_conv2d" in out.grad_fn.name()
    with forward_ad.dual_level():
        grads = torch.autograd.grad(out, leaves, forward_ad.make_dual(direction.float(), tangent.float()))
        for grad, *right in zip(grads, primals, tangents, strict=True):
            for actual, each in zip(forward_ad.unpack_dual(grad), right, strict=True):
                assert_close(actual.double(), each, rtol=1e-4, atol=1e-4 * float(each.abs().max()))


@pytest.mark.parametrize("case", ["dense", "grouped", "depth-wise"])
def test_deform_conv2d_forward_mode_in_float32(case):
    """In forward mode the fused kernel, which has no tangents, does not run."""
    *sizes, options = CASES[case]
    tensors, options = draw(*sizes, **options)
    directions = [torch.randn_like(t) for t in tensors]

    def call(*t):
        return deform_conv2d(*t[:4], **options, mask=t[4])

    step = 1e-6
    ends = [call(*(t + s * d for t, d in zip(tensors, directions, strict=True))) for s in (step, -step)]
    expected = (ends[0] - ends[1]) / (2 * step)
    single, single_directions = (tuple(t.float() for t in each) for each in (tensors, directions))
    tangent = torch.func.jvp(call, single, single_directions)[1]
    assert_close(tangent.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_deform_conv2d_opcheck():
    for groups in (1, 2, 8):
        tensors, _ = draw(2, 8, 8, 5, 6, groups=groups, padding=1)
        input, offset, weight, bias, mask = (t.float().requires_grad_() for t in tensors)
        arguments = (1, 3, 3, 1, 1, 1, 1, 1, 1, 1.0, False, False)
        torch.library.opcheck(torch.ops.danet.deform_conv2d.default, (input, offset, mask, weight, bias, *arguments))
        torch.library.opcheck(torch.ops.danet.deform_im2col.default, (input, offset, mask, *arguments))


def test_deform_conv2d_zero_offsets_equal_convolution():
    for groups in (1, 4, 16):
        input, weight = torch.randn(2, 16, 9, 8), torch.randn(16, 16 // groups, 3, 3)
        out = deform_conv2d(input, torch.zeros(2, 18, 9, 8), weight, padding=1)
        assert_close(out, F.conv2d(input, weight, padding=1, groups=groups), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4, 8], ids=["dense", "grouped", "depth-wise"])
def test_deform_conv2d_nonfinite_values(groups):
    """A pixel that is not finite reaches only the samples that use it, as in the reference."""
    tensors, options = draw(1, 8, 8, 6, 7, groups=groups, padding=1)
    tensors = [t.float() for t in tensors]
    tensors[0][0, 3, 0, 0], tensors[0][0, 2, 5, 6], tensors[1][0, 4, 3, 3] = math.inf, math.nan, math.nan
    call = lambda f, t: f(*t[:4], **options, mask=t[4])  # noqa: E731
    expected = call(deform_conv2d_reference, [t.double() for t in tensors])
    actual = call(deform_conv2d, tensors).double()
    assert 0 < int(expected.isfinite().sum()) < expected.numel()
    assert torch.equal(actual.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    assert_close(actual[finite], expected[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_deform_conv2d_half_dtypes_and_autocast(groups, dtype):
    tensors, options = draw(2, 8, 8, 6, 7, groups=groups, padding=1)
    rounded = [t.to(dtype) for t in tensors]
    expected = deform_conv2d_reference(*(t.double() for t in rounded[:4]), **options, mask=rounded[4].double())
    out = deform_conv2d(*rounded[:4], **options, mask=rounded[4])
    assert out.dtype == dtype
    assert_close(out.double(), expected, rtol=3e-2, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deform_conv2d_under_autocast_computes_in_float32(dtype):
    tensors, options = draw(2, 8, 8, 6, 7, groups=2, padding=1)
    rounded = [t.to(dtype) for t in tensors]
    wide = [t.float() for t in rounded]
    expected = deform_conv2d(*wide[:4], **options, mask=wide[4]).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # The offset may have another dtype than the input, as a layer outside of autocast predicts it.
        out = deform_conv2d(rounded[0], wide[1], *rounded[2:4], **options, mask=rounded[4])
        with pytest.raises(TypeError, match="deform_conv2d: input must be a tensor, got list"):
            deform_conv2d([1], wide[1], *rounded[2:4], **options)
        leaf = wide[1].clone().requires_grad_()
        deform_conv2d(rounded[0], leaf, *rounded[2:4], **options, mask=rounded[4]).sum().backward()
    assert out.dtype == dtype and leaf.grad.dtype == torch.float32 and leaf.grad.any()
    assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deform_conv2d_depth_wise_sums_half_dtypes_in_float32(dtype):
    """The products of a Laplace filter and a bright image nearly cancel each other."""
    input = (100 + torch.randn(1, 4, 16, 16)).to(dtype).requires_grad_()
    weight = torch.tensor([[1.1, 1.1, 1.1], [1.1, -8.8, 1.1], [1.1, 1.1, 1.1]]).expand(4, 1, 3, 3).to(dtype)
    weight = weight.clone().requires_grad_()
    offset = torch.zeros(1, 18, 14, 14, dtype=dtype)
    out = deform_conv2d(input, offset, weight)
    wide = [t.detach().double().requires_grad_() for t in (input, weight)]
    expected = torch.nn.functional.conv2d(*wide, groups=4)
    assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert_close(input.grad.double(), wide[0].grad, rtol=2e-2, atol=5e-2)
    assert_close(weight.grad.double(), wide[1].grad, rtol=1e-2, atol=1.0)  # sums of 196 products of about 100
    # Products beyond the range of float16 that cancel each other
    large = torch.full((1, 4, 16, 16), 300.0, dtype=dtype)
    taps = torch.tensor([[300.0, -300, 0], [0, 0, 0], [0, 0, 0]]).expand(4, 1, 3, 3).to(dtype)
    assert not deform_conv2d(large, offset, taps).any()


@pytest.mark.parametrize("groups", [1, 4, 32], ids=["dense", "grouped", "depth-wise"])
def test_deform_conv2d_keeps_no_samples_for_the_backward_pass(groups):
    """Between forward and backward, memory holds the arguments and the result, not the K * C samples per pixel."""
    tensors, options = draw(1, 32, 32, 40, 40, groups=groups, padding=1)
    leaves = [t.float().requires_grad_() for t in tensors]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        deform_conv2d(*leaves[:4], **options, mask=leaves[4])
    assert 0 < sum(saved) < 9 * leaves[0].nbytes


def test_sdc_from_deform_conv_equals_the_layer():
    """A trained depth-wise layer, with the convolution that predicts its offsets, as an SDC with the same result."""
    torch.manual_seed(0)
    for has_mask, has_bias in itertools.product((False, True), repeat=2):
        predictor = torch.nn.Conv2d(8, 2 * 27 if has_mask else 2 * 18, 3, padding=1)
        weight, bias = torch.randn(8, 1, 3, 3), torch.randn(8) if has_bias else None
        module = SDC.from_deform_conv(weight, bias, predictor, offset_groups=2)
        input = torch.randn(2, 8, 6, 7)
        predicted = predictor(input)
        mask = predicted[:, 36:].sigmoid() if has_mask else None
        expected = deform_conv2d(input, predicted[:, :36], weight, bias, padding=1, mask=mask)
        for converted in (module, torch.fx.symbolic_trace(module)):
            assert_close(converted(input), expected, rtol=1e-4, atol=1e-4)
        # A predictor of several layers
        sequence = SDC.from_deform_conv(weight, bias, torch.nn.Sequential(predictor), offset_groups=2)
        assert_close(sequence(input), expected, rtol=1e-4, atol=1e-4)
        module(input).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_sdc_from_deform_conv_errors():
    predictor = torch.nn.Conv2d(8, 36, 3, padding=1)
    with pytest.raises(ValueError, match=r"SDC.from_deform_conv: weight must be depth-wise, \[C, 1, k, k\]"):
        SDC.from_deform_conv(torch.randn(8, 8, 3, 3), None, predictor, offset_groups=2)
    with pytest.raises(ValueError, match=r"SDC.from_deform_conv: predictor must have 2 or 3 times G"):
        SDC.from_deform_conv(torch.randn(8, 1, 3, 3), None, predictor, offset_groups=4)


GOOD, OPTIONS = draw(2, 6, 4, 6, 7, groups=2, G=3)
ERRORS = [
    ({"input": GOOD[0][0]}, ValueError, "deform_conv2d: input must be [N, C, H, W], got [6, 6, 7]"),
    ({"offset": GOOD[1].float()}, TypeError, "deform_conv2d: offset must have input's dtype float64, got float32"),
    (
        {"offset": GOOD[1][:, 1:]},
        ValueError,
        "deform_conv2d: offset must have 2 * G * 9 channels, with G dividing C = 6, got 53 channels",
    ),
    (
        {"offset": GOOD[1][..., 1:]},
        ValueError,
        "deform_conv2d: offset must be [N, 2*G*K, H_out, W_out] = [2, 54, 4, 5], got [2, 54, 4, 4]",
    ),
    (
        {"mask": GOOD[4][:, 1:]},
        ValueError,
        "deform_conv2d: mask must be [N, G*K, H_out, W_out] = [2, 27, 4, 5], got [2, 26, 4, 5]",
    ),
    ({"bias": GOOD[3][1:]}, ValueError, "deform_conv2d: bias must be [C_out] = [4], got [3]"),
    (
        {"weight": GOOD[2][:3]},
        ValueError,
        "deform_conv2d: weight must be [C_out, C / groups, kernel height, "
        "kernel width] with groups dividing C = 6 and C_out, got [3, 3, 3, 3]",
    ),
    ({"stride": 0}, ValueError, "deform_conv2d: stride must be >= 1, got 0"),
]


@pytest.mark.parametrize("wrong, error, text", ERRORS)
def test_deform_conv2d_error(wrong, error, text):
    good = dict(zip(("input", "offset", "weight", "bias", "mask"), GOOD, strict=True))
    with pytest.raises(error) as raised:
        deform_conv2d(**{**good, **wrong})
    assert str(raised.value) == text
