"""run_program as a direct caller uses it: its results own their memory, and wrong programs are refused."""

import pytest
import torch
from ops.test_fused_safem import make_weights

from danet.models.program import ACFA_WEIGHT, CONVOLVE, DTYPES, FREE, NARROW, NONE, SAFEM
from danet.ops import acfa_weight, info, prepare_safem, rep_conv, safem

pytestmark = pytest.mark.skipif(info()["operators"] != "compiled", reason="the operators are not compiled")


def dtypes():
    return [torch.float32, torch.bfloat16] if torch.ops.danet.matrix_unit() else [torch.float32]


def convolve(out, input, weight, wants_border=False, out_dtype=NONE):
    """The instruction for a convolution of stride 1 whose weight is not prepared."""
    return [CONVOLVE, out, input, weight, NONE, NONE, 1, 1, out_dtype, int(wants_border), NONE]


def run(image, tensors, instructions, num_values, outputs, numbers=(), uses_torch=False):
    code = [number for instruction in instructions for number in instruction]
    return torch.ops.danet.run_program(image, tensors, code, list(numbers), num_values, outputs, uses_torch)


def random_image(*shape, dtype):
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("wants_border", [False, True])
@pytest.mark.parametrize("outputs", [[1], [2, 3], [3, 1, 3], [4], [0, 5], [6]])
def test_outputs_own_their_memory(outputs, wants_border):
    for dtype in dtypes():
        images = [random_image(2, 32, 9, 11, dtype=dtype) for _ in range(2)]
        weights = [torch.randn(64, 32, 3, 3, dtype=dtype), torch.randn(32, 32, 3, 3, dtype=dtype)]
        instructions = [
            convolve(1, 0, 0, wants_border),
            *[[NARROW, 2, 1, 32, 32], [NARROW, 3, 2, 7, 9], convolve(4, 2, 1), [NARROW, 5, 0, 3, 4]],
            *[[FREE, value] for value in (1, 2, 4) if value not in outputs],
            *[[NARROW, 6, 3, 9, 0]],
        ]
        results = [run(image, weights, instructions, 7, outputs) for image in images]
        for image, result in zip(images, results, strict=True):
            first = rep_conv(image, weights[0], relu=True)
            second = rep_conv(first[:, 32:], weights[1], relu=True)
            expected = [image, first, first[:, 32:], first[:, 39:48], second, image[:, 3:7], first[:, 48:48]]
            assert len(result) == len(outputs)
            assert all(torch.equal(one, expected[index]) for one, index in zip(result, outputs, strict=True))


@pytest.mark.parametrize("shape", [(1, 64, 12, 17), (2, 64, 7, 9), (0, 64, 4, 5), (3, 64, 1, 1)])
def test_attention_equals_the_operators(shape):
    for dtype in dtypes():
        _, C, H, W = shape
        x = random_image(*shape, dtype=dtype)
        prepared = prepare_safem(*(value.to(dtype) for value in make_weights(C, 4)), groups=4)
        up = torch.randn(4 * C, C, 1, 1, dtype=dtype)
        instructions = [
            [SAFEM, 1, 0, 0, NONE, NONE, 4, 0],
            [ACFA_WEIGHT, 2, 1, 0, 4],
            [NARROW, 3, 2, 0, C],
            convolve(4, 1, 1),
            # The deep level is twice as small: combine the levels only if the image has one pixel.
            *([[SAFEM, 5, 1, 0, 4, 3, 4, 1]] if H == W == 1 else [[NARROW, 5, 4, 0, C]]),
            *[[FREE, value] for value in (1, 3, 4)],
        ]
        first = safem(x, prepared, scale=0.5)
        weight = acfa_weight(first, prepared)
        deep = rep_conv(first, up, relu=True)
        last = safem(first, prepared, up=deep, weight=weight, scale=2.0) if H == W == 1 else deep[:, :C]
        uses_torch = dtype == torch.float32
        results = run(x, [prepared.packed, up], instructions, 6, [2, 5], [0.5, 2.0], uses_torch)
        assert all(map(torch.equal, results, (weight, last)))


def test_results_of_other_dtypes_and_operators_of_torch():
    image, weight = torch.randn(1, 16, 6, 7), torch.randn(8, 16, 1, 1)
    double = DTYPES.index(torch.float64)
    instructions = [convolve(1, 0, 0), convolve(2, 0, 0, out_dtype=double), [NARROW, 3, 1, 2, 3]]
    first, second, third = run(image, [weight], instructions, 4, [1, 2, 3], uses_torch=True)
    assert torch.equal(first, rep_conv(image, weight, relu=True))
    assert second.dtype == torch.float64 and torch.equal(second, first.double()) and torch.equal(third, first[:, 2:5])


@pytest.mark.parametrize("stride", [(40, 1), (1, 3)])
def test_weight_of_any_strides(stride):
    for dtype in dtypes():
        x, C = random_image(2, 16, 1, 1, dtype=dtype), 16
        prepared = prepare_safem(*(value.to(dtype) for value in make_weights(C, 4)), groups=4)
        up, weight = random_image(2, 4 * C, 1, 1, dtype=dtype), torch.randn(100, dtype=dtype).as_strided((2, C), stride)
        out, expected = (
            torch.ops.danet.safem(x, prepared.packed, up, w, 4, 1.0) for w in (weight, weight.contiguous())
        )
        assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ([0], "the program ends within an instruction"),
        ([7, 1], "7 is not an instruction"),
        ([0, 1, 0, 5, -1, -1, 1, 1, -1, 0, -1], "the index 5 is out of range"),
        ([0, 9, 0, 0, -1, -1, 1, 1, -1, 0, -1], "the index 9 is out of range"),
        ([1, 1, 2, 0, 1], "an instruction reads a value that does not exist"),
        ([0, 1, 0, 0, -1, -1, 3, 1, -1, 0, -1], "rep_conv: stride must be 1 or 2"),
        ([1, 1, 0, 0, 2], "a value does not have 2 channels from channel 0 on"),
        ([1, 1, 0, -1, 1], "a value does not have 1 channels from channel -1 on"),
        ([1, 1, 0, 1, 2**62], "channels from channel 1 on"),
        ([4, 0, 1, 1, 0, 0, 1], "an instruction reads a value that does not exist"),
        ([3, 1, 0, 0, 1, 0, 2, 1, 0, -1, -1, 1, 1, -1, 0, -1], "acfa_weight: prepared must be"),
    ],
)
@pytest.mark.parametrize("outputs", [[0], [1]])
def test_malformed_programs_are_refused(code, text, outputs):
    image, weight = torch.zeros(1, 1, 8, 8), torch.zeros(4, 1, 3, 3)
    with pytest.raises(RuntimeError, match=text):
        torch.ops.danet.run_program(image, [weight], code, [], 3, outputs, False)


@pytest.mark.parametrize("shape", [(), (8,), (1, 8), (1, 1, 8, 8, 8), (1, 1, 1, 1, 1, 8)])
def test_images_need_four_dimensions(shape):
    with pytest.raises(RuntimeError, match=r"rep_conv: input must be \[N, C, H, W\]"):
        run(torch.zeros(shape), [torch.zeros(4, 1, 3, 3)], [convolve(1, 0, 0)], 2, [1])


@pytest.mark.parametrize(("height", "text"), [(2**31, "is too large"), (2**20, "which is too much")])
def test_images_that_are_too_large_are_refused(height, text):
    image = torch.zeros(1, 1, 1, 1).expand(1, 1, height, 2**30)
    with pytest.raises(RuntimeError, match=text):
        run(image, [torch.zeros(64, 1, 3, 3)], [convolve(1, 0, 0)], 2, [])


@pytest.mark.parametrize("outputs", [[2], [-1]])
def test_outputs_must_exist(outputs):
    with pytest.raises(RuntimeError, match="out of range"):
        run(torch.zeros(1, 1, 8, 8), [], [], 2, outputs)
    with pytest.raises(RuntimeError, match="a value that does not exist"):
        run(torch.zeros(1, 1, 8, 8), [], [], 2, [1])
