import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.ops import prepare_rep_conv, rep_conv, rep_conv_reference


def rep_conv_loop(input, weight, bias=None, stride=1, relu=True):
    input, weight = input.detach().double().numpy(), weight.detach().double().numpy()
    N, _, H, W = input.shape
    C_out = weight.shape[0]
    out = np.zeros((N, C_out, -(-H // stride), -(-W // stride)))
    for n, o, y, x in np.ndindex(out.shape):
        total = 0.0 if bias is None else float(bias[o])
        for i, j in np.ndindex(3, 3):
            row, column = y * stride - 1 + i, x * stride - 1 + j
            if 0 <= row < H and 0 <= column < W:
                total += weight[o, :, i, j] @ input[n, :, row, column]
        out[n, o, y, x] = max(total, 0.0) if relu else total
    return torch.from_numpy(out)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    C_out=st.integers(1, 5),
    has_bias=st.booleans(),
    stride=st.sampled_from([1, 2]),
    relu=st.booleans(),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_rep_conv_matches_loop(shape, C_out, has_bias, stride, relu, memory_format):
    input = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(C_out, shape[1], 3, 3, dtype=torch.float64)
    bias = torch.randn(C_out, dtype=torch.float64) if has_bias else None
    expected = rep_conv_loop(input, weight, bias, stride, relu)
    for function in (rep_conv, rep_conv_reference):
        for given_weight in (weight, prepare_rep_conv(weight)):
            out = function(input, given_weight, bias, stride=stride, relu=relu)
            torch.testing.assert_close(out, expected)
            assert out.is_contiguous(memory_format=torch.channels_last)


def test_rep_conv_accepts_slices():
    input = torch.randn(2, 9, 8, 7, dtype=torch.float64)[:, 1::2, ::2, 1:]
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)[::2]
    torch.testing.assert_close(rep_conv(input, weight), rep_conv_loop(input, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_rep_conv_lower_precision(dtype, tolerance):
    input, weight, bias = torch.randn(2, 8, 5, 6).to(dtype), torch.randn(4, 8, 3, 3).to(dtype), torch.randn(4).to(dtype)
    out = rep_conv(input, prepare_rep_conv(weight), bias)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), rep_conv_loop(input, weight, bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("C_out", [4, 8])
@pytest.mark.parametrize("width", [1, 2])
def test_rep_conv_narrow_images_in_bfloat16_match_float64(width, C_out):
    """torch's own convolution, which computes some of these layers, is wrong here on processors with AMX."""
    input = torch.randn(1, 16, 13, width).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(C_out, 16, 3, 3).bfloat16()
    exact = rep_conv_reference(input.double(), weight.double(), None, stride=2)
    for each in (weight, prepare_rep_conv(weight, stride=2)):
        out = rep_conv(input, each, None, stride=2)
        assert (out.double() - exact).norm() / exact.norm() < 1e-2


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.sampled_from([8, 9, 30, 71]), st.integers(1, 14), st.integers(1, 14)),
    C_out=st.sampled_from([8, 16, 33, 64, 71]),
    has_bias=st.booleans(),
    options=st.fixed_dictionaries({"stride": st.sampled_from([1, 2]), "relu": st.booleans()}),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    sliced=st.booleans(),
    threads=st.integers(1, 5),
)
def test_rep_conv_many_channels_match_float64(shape, C_out, has_bias, options, dtype, sliced, threads):
    """The channel counts select Winograd's algorithm, or in bfloat16 the matrix unit if there is one."""
    generator = torch.Generator().manual_seed(sum(shape))
    N, C, H, W = shape
    input = torch.randn(N, C + 3, H, W, generator=generator).to(dtype, memory_format=torch.channels_last)[:, 3:]
    input = input if sliced else input.contiguous()
    weight = (torch.randn(C_out, C, 3, 3, generator=generator) / C**0.5).to(dtype)
    bias = torch.randn(C_out, generator=generator).to(dtype) if has_bias else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outs = [
            rep_conv(input, each, bias, **options)
            for each in (weight, prepare_rep_conv(weight), prepare_rep_conv(weight, stride=2))
        ]
    finally:
        torch.set_num_threads(before)
    exact = rep_conv_reference(input.double(), weight.double(), bias if bias is None else bias.double(), **options)
    for out in outs:
        assert out.is_contiguous(memory_format=torch.channels_last)
        error = (out.double() - exact).norm() / exact.norm().clamp(min=1e-9) if N else 0
        assert error < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "C_out"), [(2, 160, 41, 33, 40), (1, 300, 9, 9, 71), (1, 32, 3, 400, 33), (1, 64, 1, 1, 8)]
)
def test_rep_conv_in_bfloat16_matches_float64_in_every_element(N, C, H, W, C_out, stride, threads):
    """Shapes that need several blocks of rows, of pixels, of channels and of weights."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(N, C, H, W, generator=generator).bfloat16()
    weight = (torch.randn(C_out, C, 3, 3, generator=generator) / (9 * C) ** 0.5).bfloat16()
    bias = torch.randn(C_out, generator=generator).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = rep_conv(input, prepare_rep_conv(weight, stride=stride), bias, stride=stride, relu=False)
    finally:
        torch.set_num_threads(before)
    exact = rep_conv_reference(input.double(), weight.double(), bias.double(), stride=stride, relu=False)
    assert ((out.double() - exact).abs() <= exact.abs() / 256 + 1e-4).all()  # the rounding of the result


def test_rep_conv_in_bfloat16_keeps_nan_in_its_row():
    """The matrix unit reads the zeros between two rows as the right border of one and the left border of the next."""
    input, weight = torch.randn(1, 16, 24, 24).bfloat16(), torch.randn(16, 16, 3, 3).bfloat16()
    expected = rep_conv(input, weight)
    input[0, 3, 12, 23] = float("nan")
    out = rep_conv(input, weight)
    assert out[0, :, 11:14, 22:].isnan().all()
    assert torch.equal(out[..., :16], expected[..., :16])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("C", "C_out"), [(5, 3), (32, 64), (64, 33), (71, 130)])
def test_rep_conv_with_1x1_kernel_matches_float64(C, C_out, dtype):
    generator = torch.Generator().manual_seed(C)
    input = torch.randn(2, C + 3, 9, 11, generator=generator).to(dtype, memory_format=torch.channels_last)[:, 3:]
    weight = (torch.randn(C_out, C, 1, 1, generator=generator) / C**0.5).to(dtype)
    bias = torch.randn(C_out, generator=generator).to(dtype)
    exact = torch.nn.functional.conv2d(input.double(), weight.double(), bias.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for function in (rep_conv, rep_conv_reference):
        for given_weight in (weight, prepare_rep_conv(weight)):
            out = function(input, given_weight, bias, relu=False)
            assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
            assert (out.double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("input_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize(("C", "C_out"), [(64, 4), (40, 17), (3, 33)])
def test_rep_conv_with_float32_weight_for_half_input(C, C_out, kernel_size, stride, input_dtype):
    """The matrix unit multiplies such a weight as the sum of two bfloat16 values."""
    generator = torch.Generator().manual_seed(C)
    input = torch.randn(2, C, 13, 9, generator=generator).to(input_dtype)
    weight = torch.randn(C_out, C, kernel_size, kernel_size, generator=generator) / (C * kernel_size**2) ** 0.5
    bias = torch.randn(C_out, generator=generator)
    exact = rep_conv_reference(input.double(), weight.double(), bias.double(), stride=stride)
    prepared = prepare_rep_conv(weight, stride=stride, input_dtype=input_dtype)
    for given_weight in (weight, prepared, prepare_rep_conv(weight, stride=stride)):
        for function in (rep_conv, rep_conv_reference):
            out = function(input, given_weight, bias, stride=stride)
            assert out.dtype == torch.float32
            assert (out.double() - exact).norm() < 3e-5 * exact.norm()
    narrow = rep_conv(input, prepared, bias, stride=stride, out_dtype=input_dtype)
    assert_one_ulp_apart(narrow, rep_conv(input, prepared, bias, stride=stride).to(input_dtype))


def assert_one_ulp_apart(actual, expected):
    """Asserts that values of 16 bits are equal or neighbors, or both nearly zero, NaN or infinite."""
    ulp = torch.finfo(expected.dtype).eps * expected.float().abs()
    is_near = expected.isfinite() & ((actual.float() - expected.float()).abs() <= ulp + 1e-4)
    assert (is_near | (actual == expected) | (actual.isnan() & expected.isnan())).all()


def float32_prediction(shape, C_out, first=0, channels=None):
    """An input in bfloat16, a view of `channels` channels from `first` on, and a float32 weight and bias."""
    generator = torch.Generator().manual_seed(sum(shape) + C_out)
    input = torch.randn(shape, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    input = input[:, first:] if channels is None else input[:, first : first + channels]
    C = input.shape[1]
    weight = torch.randn(C_out, C, 3, 3, generator=generator) / (9 * C) ** 0.5
    return input, weight, torch.randn(C_out, generator=generator)


@pytest.mark.parametrize("C_out", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("N", "C", "H", "W"),
    [(1, 64, 1, 1), (2, 64, 7, 1), (2, 3, 1, 30), (3, 40, 6, 31), (1, 64, 2, 33), (1, 300, 5, 66), (1, 64, 50, 20)],
)
def test_rep_conv_with_float32_weight_and_few_outputs_matches_float64(N, C, H, W, C_out):
    """On the matrix unit, the taps of such a layer are columns of the product."""
    input, weight, bias = float32_prediction((N, C, H, W), C_out)
    prepared = prepare_rep_conv(weight, input_dtype=torch.bfloat16)
    for given_bias, relu in ((bias, False), (None, True)):
        exact = rep_conv_reference(
            input.double(), weight.double(), None if given_bias is None else bias.double(), relu=relu
        )
        out = rep_conv(input, prepared, given_bias, relu=relu)
        assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=5e-5)


@pytest.mark.parametrize("C_out", [1, 4])
@pytest.mark.parametrize("first", [0, 64])
def test_rep_conv_with_few_outputs_matches_for_views_and_any_number_of_threads(first, C_out):
    """The layers that predict scores and boxes read different channels of the same image."""
    input, weight, bias = float32_prediction((2, 128, 45, 70), C_out, first, 64)
    prepared = prepare_rep_conv(weight, input_dtype=torch.bfloat16)
    exact = rep_conv_reference(input.double(), weight.double(), bias.double(), relu=False)
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outs.append(rep_conv(input, prepared, bias, relu=False))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(outs[0].double(), exact, rtol=0, atol=5e-5)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("C_out", [1, 3, 4])
def test_rep_conv_with_few_outputs_in_bfloat16_keeps_nonfinite_values_in_their_windows(C_out, value):
    input, weight, bias = float32_prediction((2, 40, 19, 37), C_out)
    prepared = prepare_rep_conv(weight, input_dtype=torch.bfloat16)
    expected = rep_conv(input, prepared, bias, relu=False)
    for y, x in ((0, 0), (18, 36), (9, 0), (4, 36), (7, 20)):
        changed = input.clone()
        changed[0, 5, y, x] = value
        out = rep_conv(changed, prepared, bias, relu=False)
        window = torch.zeros(out.shape, dtype=torch.bool)
        window[0, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        assert not out[window].isfinite().any()
        assert torch.equal(out[~window], expected[~window])


def test_rep_conv_refuses_a_prepared_weight_of_another_layout():
    input, weight, bias = float32_prediction((1, 64, 9, 9), 4)
    taps_as_depth = torch.zeros(1, 9 * 64 * 16, dtype=torch.bfloat16)  # as the weight of a layer with 5 outputs
    with pytest.raises(RuntimeError, match="prepared does not match"):
        torch.ops.danet.rep_conv(input, weight, taps_as_depth, bias, 1, True, False, None)


@pytest.mark.parametrize("C", [1, 7, 16])
def test_rep_conv_converts_its_result(C):
    """With few input channels, a kernel on the matrix unit or for AVX512_BF16 reads float32 and writes bfloat16."""
    input, weight, bias = torch.randn(2, C, 21, 30), torch.randn(24, C, 3, 3), torch.randn(24)
    for dtype in (torch.bfloat16, torch.float16):
        prepared = prepare_rep_conv(weight, stride=2)
        out = rep_conv(input, prepared, bias, stride=2, out_dtype=dtype)
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        assert_one_ulp_apart(out, rep_conv(input, prepared, bias, stride=2).to(dtype))


@pytest.mark.parametrize("C", range(1, 8))
@pytest.mark.parametrize(
    ("N", "H", "W", "C_out", "sliced"),
    [
        (1, 1, 1, 16, False),
        (3, 2, 2, 32, True),
        (1, 5, 63, 33, False),
        (2, 9, 64, 32, True),
        (1, 4, 65, 16, True),
        (2, 3, 131, 70, False),
        (0, 3, 4, 8, False),
        (1, 40, 33, 7, False),
    ],
)
def test_rep_conv_from_float32_to_bfloat16_is_nearly_exact(N, C, H, W, C_out, sliced):
    """On the matrix unit, values are the sums of two bfloat16 values, whose products have 17 significant bits."""
    generator = torch.Generator().manual_seed(C)
    input = torch.randn(N, C + 2, H, W, generator=generator).contiguous(memory_format=torch.channels_last)[:, 2:] + 3
    input = input if sliced else input.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(C_out, C, 3, 3, generator=generator), torch.randn(C_out, generator=generator)
    for stride in (1, 2):
        for relu, b in ((True, bias), (False, bias), (False, None)):
            for each in (weight, prepare_rep_conv(weight, stride=stride)):
                out = rep_conv(input, each, b, stride=stride, relu=relu, out_dtype=torch.bfloat16)
                b64 = None if b is None else b.double()
                exact = rep_conv_reference(input.double(), weight.double(), b64, stride=stride, relu=relu)
                absolute = rep_conv_reference(input.double().abs(), weight.double().abs(), stride=stride)
                assert ((out.double() - exact).abs() <= exact.abs() / 256 + 2e-5 * absolute + 1e-6).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38, -1e30])
@pytest.mark.parametrize(("C", "C_out"), [(1, 32), (3, 16), (1, 7)])
def test_rep_conv_from_float32_to_bfloat16_with_large_values_matches_float32(C, C_out, value, stride):
    """A rounded value may be infinite, and infinity minus infinity is NaN: the kernel must not split such values."""
    generator = torch.Generator().manual_seed(0)
    # Small, so that 3.4e38 times a sum of them does not overflow: that would depend on the order of the sum.
    input, weight = torch.randn(1, C, 12, 70, generator=generator), torch.randn(C_out, C, 3, 3, generator=generator)
    input, weight, bias = input / 100, weight / 100, torch.randn(C_out, generator=generator)
    weight[0, 0] = 0
    for row, column in ((0, 0), (5, 33), (11, 69)):
        large = input.clone()
        large[0, -1, row, column] = value
        expected = rep_conv(large, weight, bias, stride=stride)
        out = rep_conv(large, weight, bias, stride=stride, out_dtype=torch.bfloat16)
        assert_one_ulp_apart(out, expected.bfloat16())
    for large_weight in (weight.clone().fill_(value), torch.cat([weight[:-1], weight[-1:] * value])):
        expected = rep_conv(input, large_weight, bias, stride=stride)
        out = rep_conv(input, large_weight, bias, stride=stride, out_dtype=torch.bfloat16)
        assert_one_ulp_apart(out, expected.bfloat16())
    large_bias = bias.clone()
    large_bias[1] = value
    out = rep_conv(input, weight, large_bias, stride=stride, out_dtype=torch.bfloat16)
    assert_one_ulp_apart(out, rep_conv(input, weight, large_bias, stride=stride).bfloat16())


def test_prepared_weight_for_another_input_dtype_is_prepared_again():
    weight, input = torch.randn(16, 32, 3, 3), torch.randn(1, 32, 8, 8)
    prepared = prepare_rep_conv(weight, input_dtype=torch.bfloat16)
    torch.testing.assert_close(rep_conv(input, prepared), rep_conv(input, weight), rtol=0, atol=0)


def test_rep_conv_nan_stays_within_its_tile():
    input, weight = torch.randn(1, 16, 24, 24), torch.randn(16, 16, 3, 3)
    expected = rep_conv(input, weight)
    input[0, 3, 1, 1] = float("nan")
    out = rep_conv(input, weight)
    assert out[0, :, :3, :3].isnan().all()
    torch.testing.assert_close(out[:, :, 8:], expected[:, :, 8:], rtol=0, atol=0)


def test_prepare_rep_conv_copies_weight():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    input = torch.randn(1, 3, 5, 5)
    prepared = prepare_rep_conv(weight)
    before = rep_conv(input, prepared)
    assert not before.requires_grad
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(rep_conv(input, prepared), before)


def test_rep_conv_backward_raises():
    input, weight = torch.randn(1, 3, 5, 5), torch.randn(4, 3, 3, 3, requires_grad=True)
    out = rep_conv(input, weight)
    with pytest.raises(RuntimeError) as caught:
        out.sum().backward()
    text = "rep_conv: forward only, no gradient is defined; train before fuse(), or use rep_conv_reference"
    assert str(caught.value) == text
    rep_conv_reference(input, weight).sum().backward()
    assert weight.grad.abs().sum() > 0


INPUT, WEIGHT = torch.zeros(2, 8, 4, 5), torch.zeros(6, 8, 3, 3)
WEIGHT_SHAPES = "rep_conv: weight must be [C_out, C, 3, 3] or [C_out, C, 1, 1]"
ERRORS = [
    ((None, WEIGHT), {}, TypeError, "rep_conv: input must be a tensor, got NoneType"),
    ((INPUT[0], WEIGHT), {}, ValueError, "rep_conv: input must be [N, C, H, W], got [8, 4, 5]"),
    ((INPUT, None), {}, TypeError, "rep_conv: weight must be a tensor, got NoneType"),
    ((INPUT, WEIGHT[..., 0]), {}, ValueError, f"{WEIGHT_SHAPES}, got [6, 8, 3]"),
    ((INPUT, WEIGHT[..., :2]), {}, ValueError, f"{WEIGHT_SHAPES}, got [6, 8, 3, 2]"),
    (
        (INPUT, WEIGHT[:, :4]),
        {},
        ValueError,
        "rep_conv: weight must be [C_out, C, 3, 3] = [6, 8, 3, 3], got [6, 4, 3, 3]",
    ),
    (
        (INPUT, prepare_rep_conv(WEIGHT[:, :4])),
        {},
        ValueError,
        "rep_conv: weight must be [C_out, C, 3, 3] = [6, 8, 3, 3], got [6, 4, 3, 3]",
    ),
    ((INPUT, WEIGHT.half()), {}, TypeError, "rep_conv: weight must have input's dtype float32, got float16"),
    ((INPUT, WEIGHT.to("meta")), {}, ValueError, "rep_conv: weight must be on input's device cpu, got meta"),
    ((INPUT, WEIGHT, torch.zeros(5)), {}, ValueError, "rep_conv: bias must be [C_out] = [6], got [5]"),
    (
        (INPUT, WEIGHT, torch.zeros(6).double()),
        {},
        TypeError,
        "rep_conv: bias must have input's dtype float32, got float64",
    ),
    ((INPUT, WEIGHT), {"stride": 3}, ValueError, "rep_conv: stride must be 1 or 2, got 3"),
    ((INPUT, WEIGHT), {"stride": (1, 1)}, TypeError, "rep_conv: stride must be an integer, got (1, 1)"),
    (
        (INPUT, WEIGHT[..., :1, :1]),
        {"stride": 2},
        ValueError,
        "rep_conv: stride must be 1 for a weight [C_out, C, 1, 1], got 2",
    ),
    (
        (INPUT.bfloat16(), WEIGHT.half()),
        {},
        TypeError,
        "rep_conv: weight must have input's dtype bfloat16 or float32, got float16",
    ),
    (
        (INPUT.bfloat16(), WEIGHT, torch.zeros(6).bfloat16()),
        {},
        TypeError,
        "rep_conv: bias must have weight's dtype float32, got bfloat16",
    ),
    (
        (INPUT, WEIGHT),
        {"out_dtype": torch.int8},
        TypeError,
        "rep_conv: out_dtype must be float64, float32, float16 or bfloat16, got torch.int8",
    ),
    ((INPUT, WEIGHT), {"relu": 0}, TypeError, "rep_conv: relu must be True or False, got 0"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "text"), ERRORS)
def test_rep_conv_error(arguments, options, error, text):
    for function in (rep_conv, rep_conv_reference):
        with pytest.raises(error) as caught:
            function(*arguments, **options)
        assert str(caught.value) == text


def test_prepare_rep_conv_error():
    with pytest.raises(ValueError) as caught:
        prepare_rep_conv(torch.zeros(3, 3))
    assert str(caught.value) == f"{WEIGHT_SHAPES}, got [3, 3]"


def test_autocast_does_not_use_a_weight_that_was_prepared_in_float32():
    input, weight = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = rep_conv(input, prepare_rep_conv(weight))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rep_conv(input.bfloat16(), weight.bfloat16()))
