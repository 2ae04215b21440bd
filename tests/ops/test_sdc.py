"""SDC: the operator and its reference against loops over the formula, gradients, edge cases, and the module."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sdc_cases import CASES, arguments, bilinear_loop

from danet.ops import SDC, sdc, sdc_reference
from danet.ops.sdc import SdcSizes


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
    """The formula of danet.ops.sdc as loops over output positions and taps."""
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
            position = []
            for axis, index in enumerate((y, x)):
                delta = offset[n, (g * len(taps) + k) * 2 + axis, y, x]
                center = index * stride[axis] - padding[axis] + h[axis]
                position.append(center + offset_scale * (tap[axis] * dilation[axis] - h[axis] + delta))
            out[n, channels, y, x] += m[k] * bilinear_loop(input[n, channels], *position)
    return torch.from_numpy(out)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    *shape, options = request.param
    return arguments(*shape, **options)


def gradients(function, tensors, grad_output):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*tensors), tensors, grad_output)


def test_sdc_forward_matches_formula(case):
    tensors, options = case
    for function in (sdc, sdc_reference):
        torch.testing.assert_close(function(*tensors, **options), sdc_loop(*tensors, **options), rtol=1e-12, atol=1e-12)


def test_sdc_gradcheck(case):
    tensors, options = case
    tensors = [t.requires_grad_() for t in tensors]
    torch.autograd.gradcheck(lambda *t: sdc(*t, **options), tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["groups", "stride", "offset_scale", "remove_center", "no softmax", "kernel 3x2"])
def test_sdc_gradgradcheck(name):
    *shape, options = CASES[name]
    tensors, options = arguments(*shape, **options)
    tensors = [t.requires_grad_() for t in tensors]
    torch.autograd.gradgradcheck(lambda *t: sdc(*t, **options), tensors, fast_mode=True)


def test_sdc_gradient_of_single_argument():
    tensors, options = arguments(2, 4, 4, 5, groups=2)
    together = gradients(lambda *t: sdc(*t, **options), tensors, torch.ones(2, 4, 4, 5, dtype=torch.float64))
    for i, expected in enumerate(together):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        sdc(*leaves, **options).sum().backward()
        torch.testing.assert_close(leaves[i].grad, expected)


def test_sdc_gradient_at_integer_coordinates():
    input = torch.tensor([[[[1.0, 4.0, 16.0]]]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    sdc(input, offset, mask, kernel_size=1, padding=0, softmax=False).sum().backward()
    assert offset.grad[0, 1, 0].tolist() == [3.0, 12.0, -16.0]  # towards the right neighbor, zero outside
    assert offset.grad[0, 0, 0].tolist() == [-1.0, -4.0, -16.0]  # and towards the lower one


def test_sdc_zero_offsets_give_mean_filter():
    input = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    zeros = input.new_zeros(2, 27, 5, 6)
    expected = torch.nn.functional.avg_pool2d(input, 3, stride=1, padding=1)
    torch.testing.assert_close(sdc(input, zeros[:, :18], zeros[:, 18:]), expected)


def test_sdc_offset_scale_scales_about_center():
    (input, offset, mask), _ = arguments(1, 2, 6, 6)
    torch.testing.assert_close(
        sdc(input, offset, mask, offset_scale=2.0),
        sdc(input, 2 * offset + torch.tensor(list(itertools.product((-1, 0, 1), repeat=2))).view(1, 18, 1, 1), mask),
    )


def test_sdc_empty_batch():
    tensors = [torch.randn(0, c, 4, 5, requires_grad=True) for c in (8, 36, 18)]
    out = sdc(*tensors, groups=2)
    assert out.shape == (0, 8, 4, 5)
    out.sum().backward()
    assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]


LAYOUTS = {
    "channels-last": lambda t: t.to(memory_format=torch.channels_last),
    "batch sliced": lambda t: t.repeat_interleave(2, 0)[::2],
    "image cropped": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda t: t[:, :, :1, :1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_sdc_accepts_any_strides(layout):
    tensors, options = arguments(2, 6, 4, 5, groups=2)
    strided = [layout(t) for t in tensors]
    out = sdc(*strided, **options)
    dense = [t.contiguous().clone() for t in strided]
    torch.testing.assert_close(out, sdc(*dense, **options), rtol=0, atol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad_output = torch.randn_like(out)
    for actual, expected in zip(
        gradients(lambda *t: sdc(*(layout(x) for x in t), **options), tensors, grad_output),
        gradients(lambda *t: sdc(*(layout(x).contiguous() for x in t), **options), tensors, grad_output),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sdc_offset_and_mask_slices(memory_format):
    predicted = torch.randn(2, 54, 4, 5, dtype=torch.float64).to(memory_format=memory_format)
    input = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    offset, mask = predicted[:, :36], predicted[:, 36:]
    expected = sdc_loop(input, offset, mask, groups=2)
    torch.testing.assert_close(sdc(input, offset, mask, groups=2), expected)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_sdc_nan_coordinate(softmax, axis):
    (input, offset, mask), options = arguments(2, 4, 4, 5, groups=2, softmax=softmax)
    clean = (input, offset, mask)
    offset = offset.clone()
    offset[1, (9 + 4) * 2 + axis, 2, 3] = math.nan  # group 1, tap 4
    used = torch.zeros(2, 4, 4, 5, dtype=torch.bool)
    used[1, 2:, 2, 3] = True
    out = sdc(input, offset, mask, **options)
    assert out[used].isnan().all()
    torch.testing.assert_close(out[~used], sdc(*clean, **options)[~used], rtol=0, atol=0)

    # Backward, that sample is a zero sample: as if its coordinate were infinite.
    infinite = offset.nan_to_num(math.inf)
    grad_output = torch.randn_like(out)
    actual = gradients(lambda *t: sdc(*t, **options), (input, offset, mask), grad_output)
    expected = gradients(lambda *t: sdc(*t, **options), (input, infinite, mask), grad_output)
    assert actual[1][1, 26:28, 2, 3].tolist() == [0, 0]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_sdc_infinite_coordinate_is_zero_sample(value):
    (input, offset, mask), options = arguments(2, 4, 4, 5, groups=2)
    offset[0, 0, 1, 1] = offset[1, 19, 2, 3] = value
    far = offset.clamp(-1e3, 1e3)
    torch.testing.assert_close(sdc(input, offset, mask, **options), sdc_loop(input, offset, mask, **options))
    grad_output = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    actual = gradients(lambda *t: sdc(*t, **options), (input, offset, mask), grad_output)
    expected = gradients(lambda *t: sdc(*t, **options), (input, far, mask), grad_output)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)
    assert actual[1][0, 0, 1, 1] == 0
    assert actual[1][1, 19, 2, 3] == 0


def test_sdc_all_coordinates_nonfinite():
    (input, offset, mask), options = arguments(1, 2, 3, 3)
    out = sdc(input, torch.full_like(offset, math.inf), mask, **options)
    assert torch.equal(out, torch.zeros_like(out))
    out = sdc(input, torch.full_like(offset, math.nan), mask, **options)
    assert out.isnan().all()


def test_sdc_nan_pixel_stays_local():
    (input, offset, mask), options = arguments(2, 2, 5, 5, spread=4.0)
    input[:, :, 0, 0] = math.nan
    out, expected = sdc(input, offset, mask, **options), sdc_loop(input, offset, mask, **options)
    assert out.isnan().any()
    assert not out.isnan().all()
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pixel", [(0, 0), (4, 2), (2, 2)])
def test_sdc_infinite_gradient_stays_local(dtype, pixel):
    tensors, options = arguments(2, 4, 5, 5, groups=2, spread=3.0, dtype=dtype)
    grad_output = torch.randn(2, 4, 5, 5, dtype=dtype)
    grad_output[0, 1, pixel[0], pixel[1]] = math.inf
    actual = gradients(lambda *t: sdc(*t, **options), tensors, grad_output)
    expected = gradients(lambda *t: sdc_reference(*t, **options), tensors, grad_output)
    assert not actual[0].isfinite().all()
    torch.testing.assert_close(actual[0], expected[0], equal_nan=True)
    for grad in actual[1:]:
        grad[0, :, pixel[0], pixel[1]] = 0
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 9)])
def test_sdc_single_row_or_column(dtype, size):
    tensors, options = arguments(2, 20, *size, groups=2, spread=2.0, dtype=dtype)
    grad_output = torch.randn(2, 20, *size, dtype=dtype)
    torch.testing.assert_close(sdc(*tensors, **options).double(), sdc_loop(*tensors, **options), rtol=1e-5, atol=1e-5)
    actual = gradients(lambda *t: sdc(*t, **options), tensors, grad_output)
    expected = gradients(lambda *t: sdc_reference(*t, **options), tensors, grad_output)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_sdc_lower_precision(dtype, tolerance):
    tensors, options = arguments(2, 8, 6, 7, groups=2, dtype=dtype)
    out = sdc(*tensors, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), sdc_loop(*tensors, **options), rtol=tolerance, atol=tolerance)
    grad_output = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    actual = gradients(lambda *t: sdc(*t, **options), tensors, grad_output)
    expected = gradients(lambda *t: sdc(*t, **options), [t.double() for t in tensors], grad_output.double())
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, rtol=4 * tolerance, atol=4 * tolerance)


def test_sdc_half_accumulates_in_float32():
    N_taps = 49 * 4
    input = torch.full((1, 1, 28, 28), 0.1, dtype=torch.bfloat16)
    offset = torch.zeros(1, 2 * N_taps, 1, 1, dtype=torch.bfloat16)
    mask = torch.ones(1, N_taps, 1, 1, dtype=torch.bfloat16)
    out = sdc(input, offset, mask, kernel_size=14, padding=0, stride=28, softmax=False)
    assert out.item() == torch.tensor(N_taps * input[0, 0, 0, 0].item()).bfloat16().item()


def test_sdc_large_logits_do_not_overflow():
    (input, offset, mask), options = arguments(1, 2, 3, 3, dtype=torch.float32)
    assert sdc(input, offset, mask * 1e4, **options).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("C", [16, 20])
@pytest.mark.parametrize("size", [(36, 28), (2, 300), (300, 1)])  # the last two: one row per thread, one column
def test_sdc_backward_is_deterministic_in_threads(size, C, dtype):
    tensors, options = arguments(3, C, *size, groups=4, dtype=dtype, spread=2.0)
    grad_output = torch.randn(3, C, *size, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(gradients(lambda *t: sdc(*t, **options), tensors, grad_output))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_sdc_autocast_dtype():
    tensors, options = arguments(1, 4, 4, 4, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sdc(leaves[0], leaves[1].bfloat16(), leaves[2], **options)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert leaves[0].grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), sdc(*tensors, **options), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
)
def test_sdc_devices_agree(device):
    """The embedding bags of the reference could differ between devices on repeated rows and short tables."""
    for C, H, W, kernel_size in ((16, 12, 9, 3), (2, 1, 1, 7)):
        p = kernel_size // 2
        tensors, options = arguments(2, C, H, W, groups=2, kernel_size=(kernel_size,) * 2, padding=(p, p))
        leaves = [t.to(device).requires_grad_() for t in tensors]
        torch.testing.assert_close(sdc(*leaves, **options).cpu(), sdc_loop(*tensors, **options))
        torch.autograd.gradcheck(lambda *t, o=options: sdc(*t, **o), leaves, fast_mode=True)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sdc_random_arguments_match_formula(data):
    check_any_arguments(data)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_sdc_random_arguments_match_formula_long(data):
    tensors, options = check_any_arguments(data)
    if tensors[0].numel() > 0:
        leaves = [t.requires_grad_() for t in tensors]
        torch.autograd.gradcheck(lambda *t: sdc(*t, **options), leaves, fast_mode=True)


def check_any_arguments(data):
    def draw_pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel_size, dilation, padding, stride = draw_pair(1, 4), draw_pair(1, 3), draw_pair(0, 3), draw_pair(1, 3)
    groups = data.draw(st.integers(1, 3))
    odd = kernel_size[0] * kernel_size[1] % 2 == 1 and kernel_size != (1, 1)
    smallest = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel_size, padding, strict=True)]
    H, W = (low + data.draw(st.integers(0, 4)) for low in smallest)
    tensors, options = arguments(
        data.draw(st.integers(0, 2)),
        groups * data.draw(st.integers(1, 3)),
        H,
        W,
        groups=groups,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        softmax=data.draw(st.booleans()),
        remove_center=odd and data.draw(st.booleans()),
        spread=data.draw(st.sampled_from([0.5, 2.0, 10.0])),
        seed=data.draw(st.integers(0, 1000)),
    )
    torch.testing.assert_close(sdc(*tensors, **options), sdc_loop(*tensors, **options), rtol=1e-10, atol=1e-10)
    return tensors, options


def test_sdc_module_starts_as_mean_filter():
    module = SDC(8, groups=2).eval()
    input = torch.randn(2, 8, 5, 6)
    expected = module.projection(torch.nn.functional.avg_pool2d(input, 3, stride=1, padding=1))
    torch.testing.assert_close(module(input), expected)


def test_sdc_module_trains_offsets_and_mask():
    module = SDC(8, groups=4, kernel_size=5)
    module(torch.randn(2, 8, 6, 7)).square().sum().backward()
    taps = 4 * 25
    assert module.predictor.weight.shape == (3 * taps, 8, 1, 1)
    assert module.predictor.weight.grad[: 2 * taps].abs().sum() > 0
    assert module.predictor.weight.grad[2 * taps :].abs().sum() > 0
    with torch.no_grad():
        module.predictor.weight.normal_()
    module.zero_grad()
    module(torch.randn(2, 8, 6, 7)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 6}, "SDC: groups must divide channels = 6, got 4"),
        ({"channels": 8, "kernel_size": 2}, "SDC: kernel_size must be odd, got 2"),
        ({"channels": 0}, "SDC: channels must be >= 1, got 0"),
    ],
)
def test_sdc_module_error(options, text):
    with pytest.raises(ValueError) as caught:
        SDC(**options)
    assert str(caught.value) == text


def test_sdc_limits_of_the_kernels():
    """Larger calls run as the reference: indices of 32 bits would overflow, without an error."""
    small = SdcSizes(N=1, C=1, H=1, W=1, G=1, K=9, H_out=46340, W_out=46340)
    huge = small._replace(H_out=46341, W_out=46341)  # 2^31 pixels or more
    assert small.fit_kernels(is_cuda=True) and small.fit_kernels(is_cuda=False)
    assert not huge.fit_kernels(is_cuda=True) and huge.fit_kernels(is_cuda=False)  # the CPU counts pixels with 64 bits
    for is_cuda in (False, True):
        assert not small._replace(H=46341, W=46341).fit_kernels(is_cuda)
        assert not small._replace(K=257).fit_kernels(is_cuda)
        assert small._replace(H=2**14, W=2**14, C=4).fit_kernels(is_cuda)
        assert small._replace(H=2**14, W=2**14, C=8).fit_kernels(is_cuda) == is_cuda
