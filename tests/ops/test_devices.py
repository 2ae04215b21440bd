"""The same calls on every device: CPU kernels, CUDA kernels emulated on the CPU (tests/emulation), CUDA on a GPU.

The operators are called below autograd, forward and backward, and compared with their references in float64. The
environment variable DANET_EMULATION selects the build of the emulator; findings of its race checker fail the test.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulation.emulated import load, missing
from ms_deform_attn_cases import CASES as ATTENTION_CASES
from ms_deform_attn_cases import SHAPES
from ms_deform_attn_cases import tensors as attention_tensors
from sdc_cases import CASES, arguments

from danet.ops import (
    acfa_weight_reference,
    lcdc_reference,
    library,
    ms_deform_attn_reference,
    prepare_safem,
    rep_conv_reference,
    safem_reference,
    sdc_reference,
    softmax_gate_reference,
)
from danet.ops.fused_safem import pack_for_cuda
from danet.ops.rep_conv import split_weight
from danet.ops.sdc import SdcOptions, unchecked_reference

DTYPES = {
    "float64": (torch.float64, 1e-12),
    "float32": (torch.float32, 2e-6),
    "float16": (torch.float16, 2e-3),
    "bfloat16": (torch.bfloat16, 1.6e-2),
}
"""Dtypes, each with the largest allowed error relative to the norm of the result."""


class Device:
    """Calls operators on one device, and moves tensors there and back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.where = "cuda" if name == "cuda" else "cpu"
        self.emulation = load() if name == "emulated" else None
        self.operators = torch.ops.danet_emulated if self.emulation else torch.ops.danet

    def __call__(self, operator: str, *arguments, seed: int = 0) -> list[torch.Tensor]:
        """The results of an operator on this device, as float64 on the CPU."""
        moved = [value.to(self.where) if isinstance(value, torch.Tensor) else value for value in arguments]
        if self.emulation:
            self.emulation.settings.seed = seed
            self.emulation.settings.shared_limit = 99 * 1024  # the minimum of all architectures: sm_86, 89, 120
            self.emulation.clear()
        results = getattr(self.operators, operator).default(*moved)
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        if self.emulation:
            assert self.emulation.reports() == []
        for value in results:
            assert (
                value.ndim != 4
                or operator.startswith("ms_deform_attn")
                or value.is_contiguous(memory_format=torch.channels_last)
            )
        return [value.cpu().double() for value in results]


@contextmanager
def emulated_settings(device: Device, **settings) -> Iterator[None]:
    """Inside the block, change settings of the emulator; no effect on other devices."""
    if device.emulation is None:
        yield
        return
    before = {name: getattr(device.emulation.settings, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(device.emulation.settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(device.emulation.settings, name, value)


# Compiling the emulated CUDA kernels takes half a minute, so only "make emulation" and "make test-all" run them.
@pytest.fixture(params=["cpu", pytest.param("emulated", marks=pytest.mark.long), "cuda"])
def device(request) -> Device:
    if request.param == "emulated" and missing():
        pytest.skip(missing())
    if request.param == "cuda" and not (
        torch.cuda.is_available() and library.has_kernel(torch.empty(0, device="cuda"))
    ):
        pytest.skip("no CUDA device, or no CUDA kernels")
    return Device(request.param)


def assert_near(
    results: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float, *, terms: float = 1e-3
) -> None:
    """`terms`: the magnitude of the summed terms, a lower bound of the reference norm for sums that may cancel."""
    for result, right in zip(results, expected, strict=True):
        assert result.shape == right.shape
        assert torch.equal(result.isnan(), right.isnan())
        error = (result - right).nan_to_num().norm()
        assert error <= tolerance * max(terms, float(right.nan_to_num().norm())), float(error)


def gradients(function, tensors: list[torch.Tensor], grad_output: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of a float64 reference, at the rounded values that the kernels get."""
    leaves = [value.double().requires_grad_() for value in tensors]
    return list(torch.autograd.grad(function(*leaves), leaves, grad_output.double()))


def sdc_options(options: dict) -> tuple:
    options = {"offset_scale": 1.0, "softmax": True, "remove_center": False, **options}
    windows = [side for name in ("kernel_size", "stride", "padding", "dilation") for side in options[name]]
    return options["groups"], *windows, options["offset_scale"], options["softmax"], options["remove_center"]


SDC_CASES = {
    **{name: case for name, case in CASES.items() if name != "kernel 17"},  # more taps than the kernels support
    "no image": (0, 4, 5, 6, {"groups": 2}),
    "packets": (2, 32, 9, 7, {"groups": 2}),
    "packets, 5x5": (1, 32, 6, 5, {"groups": 2, "kernel_size": (5, 5), "padding": (2, 2)}),
    "14x14, 32 channels per group": (8, 128, 14, 14, {"groups": 4}),
    "more packets than lanes": (1, 288, 3, 4, {"groups": 1}),
    "12 channels per group": (2, 24, 5, 6, {"groups": 2}),
    "kernel 11": (1, 8, 12, 13, {"kernel_size": (11, 11), "padding": (5, 5)}),
}
SMALL = ("plain", "groups", "packets", "12 channels per group", "offset_scale", "remove_center", "offsets far outside")


def sdc_dtypes():
    for case in SDC_CASES:
        yield pytest.param(case, "float32", id=f"{case}-float32")
    for case in SMALL:
        for dtype in ("float64", "float16", "bfloat16"):
            yield pytest.param(case, dtype, id=f"{case}-{dtype}")


@pytest.mark.parametrize("case, dtype", list(sdc_dtypes()))
def test_sdc_forward_and_backward(device, case, dtype):
    *sizes, options = SDC_CASES[case]
    dtype, tolerance = DTYPES[dtype]
    tensors, options = arguments(*sizes, dtype=dtype, **options)

    def reference(*t):
        return sdc_reference(*t, **options)

    expected = reference(*(value.double() for value in tensors))
    for seed in (0, 1, 7):
        assert_near(device("sdc", *tensors, *sdc_options(options), seed=seed), [expected], tolerance)
        if not device.emulation:
            break
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    grads = gradients(reference, tensors, grad_output)
    for deterministic in (False, True):
        results = device("sdc_backward", grad_output, *tensors, *sdc_options(options), deterministic, seed=5)
        assert_near(results, grads, 2 * tolerance, terms=1)


IM2COL_CASES = [
    "groups",
    "packets",
    "12 channels per group",
    "kernel 3x2",
    "stride",
    "offsets far outside",
    "one pixel",
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("case", IM2COL_CASES)
def test_deform_im2col_forward_and_backward(device, case, dtype):
    *sizes, options = SDC_CASES[case]
    dtype, tolerance = DTYPES[dtype]
    tensors, options = arguments(*sizes, dtype=dtype, **{**options, "softmax": False})
    more = sdc_options(options)
    validated = SdcOptions.from_schema("deform_im2col", *more)
    call_sizes = validated.sizes("deform_im2col", tensors[0].shape)

    def reference(*t):
        return unchecked_reference(*t, call_sizes, validated, sum_taps=False)

    expected = reference(*(value.double() for value in tensors))
    assert_near(device("deform_im2col", *tensors, *more), [expected], tolerance)
    # The sum over the taps is sdc.
    summed = expected.unflatten(1, (call_sizes.K, call_sizes.C)).sum(1)
    assert_near([summed], [sdc_reference(*(value.double() for value in tensors), **options)], 1e-12)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    grads = gradients(reference, tensors, grad_output)
    for deterministic in (False, True):
        results = device("deform_im2col_backward", grad_output, *tensors, *more, deterministic, seed=5)
        assert_near(results, grads, 2 * tolerance, terms=1)


@pytest.mark.parametrize("operator", ["dcnv3", "sdc"])
def test_samples_at_minus_one(device, operator):
    """DCNv3 ignores samples at exactly -1; sdc gives their offsets right-sided derivatives."""
    input = torch.rand(1, 4, 3, 4) + 1
    offset, mask = torch.zeros(1, 2, 3, 4), torch.ones(1, 1, 3, 4)
    offset[0, :, 0, 0] = -1  # the sample lies at (-1, -1)
    offset[0, 1 if operator == "dcnv3" else 0, 0, 2] = -1  # at (-1, 2): y is the second of DCNv3's pair
    more = (1, 1, 1, 1, 1, 0, 0, 1, 1, 1.0, False, False)
    out = device(operator, input, offset, mask, *more)[0]
    assert out[0, :, 0, 0].abs().sum() == 0 and out[0, :, 0, 2].abs().sum() == 0
    for deterministic in (False, True):
        grads = device(f"{operator}_backward", torch.ones(1, 4, 3, 4), input, offset, mask, *more, deterministic)
        assert (grads[1][0, :, 0, 2].abs().sum() > 0) == (operator == "sdc")
        assert grads[1][0, :, 0, 1].abs().sum() > 0


def to_dcn_layout(offset, mask, groups, kernel_size, remove_center):
    """Offset and mask in DCNv3's order, and DCNv4's joint tensor of both with five unused channels."""
    k_y, k_x = kernel_size
    taps = [y * k_x + x for x in range(k_x) for y in range(k_y)]
    if remove_center:
        middle = k_y * k_x // 2
        taps = [tap - (tap > middle) for tap in taps if tap != middle]
    offset = offset.unflatten(1, (groups, len(taps), 2))[:, :, taps].flip(3)
    mask = mask.unflatten(1, (groups, len(taps)))[:, :, taps]
    packed = F.pad(torch.cat([offset.flatten(2, 3), mask], 2).flatten(1, 2), (0, 0, 0, 0, 0, 5))
    return offset.flatten(1, 3), mask.flatten(1, 2), packed.contiguous(memory_format=torch.channels_last)


DCN_CASES = [
    ("groups", "float32"),
    ("kernel 3x2", "float32"),
    ("packets", "bfloat16"),
    ("remove_center", "float32"),
    ("stride", "float32"),
]


@pytest.mark.parametrize("case, dtype", DCN_CASES)
def test_dcnv3_and_dcnv4_match_sdc(device, case, dtype):
    *sizes, options = SDC_CASES[case]
    dtype, tolerance = DTYPES[dtype]
    (input, offset, mask), options = arguments(*sizes, dtype=dtype, **options)
    remove_center = options.get("remove_center", False)
    groups, kernel_size, more = options["groups"], options["kernel_size"], sdc_options(options)
    dcn_offset, dcn_mask, packed = to_dcn_layout(offset, mask, groups, kernel_size, remove_center)

    expected = sdc_reference(input.double(), offset.double(), mask.double(), **options)
    assert_near(device("dcnv3", input, dcn_offset, dcn_mask, *more), [expected], tolerance)
    assert_near(device("dcnv4", input, packed, *more), [expected], tolerance)

    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    grad_input, *grads = gradients(lambda *t: sdc_reference(*t, **options), [input, offset, mask], grad_output)
    *grads, grad_packed = to_dcn_layout(*grads, groups, kernel_size, remove_center)
    for deterministic in (False, True):
        results = device("dcnv3_backward", grad_output, input, dcn_offset, dcn_mask, *more, deterministic)
        assert_near(results, [grad_input, *grads], 2 * tolerance, terms=1)
        results = device("dcnv4_backward", grad_output, input, packed, *more, deterministic)
        assert_near(results, [grad_input, grad_packed], 2 * tolerance, terms=1)


def test_sdc_deterministic_backward_is_reproducible(device):
    tensors, options = arguments(2, 16, 6, 7, groups=2, dtype=torch.float32)
    grad_output = torch.randn(2, 16, 6, 7)
    results = [
        device("sdc_backward", grad_output, *tensors, *sdc_options(options), True, seed=seed) for seed in (0, 1, 9, 10)
    ]
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_sdc_channel_slices(device):
    (input, offset, mask), options = arguments(2, 32, 6, 7, groups=2, dtype=torch.float32)
    wide = torch.randn(2, 48, 6, 7).contiguous(memory_format=torch.channels_last)
    wide[:, 8:40] = input
    fused = torch.cat([offset, mask], 1).contiguous(memory_format=torch.channels_last)
    slices = wide[:, 8:40], fused[:, :36], fused[:, 36:]
    expected = device("sdc", input, offset, mask, *sdc_options(options))
    assert_near(device("sdc", *slices, *sdc_options(options)), expected, 1e-7)
    unaligned = wide[:, 7:39], offset, mask
    expected = device("sdc", wide[:, 7:39].contiguous(), offset, mask, *sdc_options(options))
    assert_near(device("sdc", *unaligned, *sdc_options(options)), expected, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sdc_unaligned_offsets(device, dtype):
    dtype, tolerance = DTYPES[dtype]
    (input, offset, mask), options = arguments(2, 32, 6, 7, groups=2, dtype=dtype)
    for channels in (55, 56):  # all pairs of offsets are unaligned, or those of every second pixel
        fused = torch.randn(2, channels, 6, 7).to(dtype).contiguous(memory_format=torch.channels_last)
        fused[:, 1:37], fused[:, 37:55] = offset, mask
        slices = input, fused[:, 1:37], fused[:, 37:55]
        grad_output = torch.randn(2, 32, 6, 7).to(dtype)
        for operator, more, grad in (("sdc", (), ()), ("sdc_backward", (False,), (grad_output,))):
            expected = device(operator, *grad, input, offset, mask, *sdc_options(options), *more)
            results = device(operator, *grad, *slices, *sdc_options(options), *more)
            assert_near(results, expected, tolerance)


# H, W, groups, channels of the tensor that contains offset and mask, and whether a warp copies both to shared memory. A
# tile of the CUDA kernel has 8 x 4 pixels; if they do not fit the image, it has 32 pixels in the order of memory.
STAGED_CASES = {
    "tiles": (24, 16, 4, 108, True),
    "tiles beyond the image": (24, 60, 4, 108, True),  # the last warp of a row reads offset and mask itself
    "in the order of memory": (21, 16, 4, 108, True),
    "2 groups": (21, 16, 2, 54, True),
    "rows between two pieces of 16 bytes": (24, 15, 4, 108, False),
    "more pixels per warp than in a row of the tile": (24, 16, 2, 54, False),
    "unused channels": (24, 16, 4, 112, False),  # the last piece of a run exceeds offset and mask
    "8 groups": (24, 16, 8, 216, False),  # a block has four of them
}


def is_read_in_pieces_of_16_bytes(device: Device, tensor: torch.Tensor, *call) -> bool:
    """Whether an emulated call reads a part of the tensor so."""
    with device.emulation.traced() as traces:
        device(*call)
    places = traces[0]["address"].astype(np.int64) - tensor.data_ptr()
    return bool((traces[0]["bytes"][(places >= 0) & (places < tensor.nbytes)] == 16).any())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", STAGED_CASES)
def test_sdc_offset_and_mask_in_one_tensor(device, case, dtype):
    H, W, groups, channels, is_staged = STAGED_CASES[case]
    N = 10 if device.name == "cuda" else 2  # enough for blocks of 128 items
    dtype, tolerance = DTYPES[dtype]
    (input, offset, mask), options = arguments(N, 8 * groups, H, W, groups=groups, dtype=dtype)
    fused = torch.zeros(N, channels, H, W, dtype=dtype, device=device.where)
    fused = fused.contiguous(memory_format=torch.channels_last)
    fused[:, : 27 * groups] = torch.cat([offset, mask], 1)
    slices = fused[:, : 18 * groups], fused[:, 18 * groups : 27 * groups]
    with emulated_settings(device, multiprocessors=1):
        expected = device("sdc", input, offset, mask, *sdc_options(options))
        call = "sdc", input, *slices, *sdc_options(options)
        assert_near(device(*call), expected, tolerance)
        if device.emulation and device.emulation.mode == "check":
            assert is_read_in_pieces_of_16_bytes(device, fused, *call) == is_staged


@pytest.mark.parametrize("groups, channels, W", [(4, 108, 16), (1, 32, 16)])
def test_dcnv4_offset_and_mask_without_padding(device, groups, channels, W):
    dtype, tolerance = DTYPES["bfloat16"]
    N = 10 if device.name == "cuda" else 2
    (input, offset, mask), options = arguments(N, 8 * groups, 24, W, groups=groups, dtype=dtype)
    packed = to_dcn_layout(offset, mask, groups, (3, 3), False)[2][:, : 27 * groups]
    packed = F.pad(packed, (0, 0, 0, 0, 0, channels - 27 * groups)).contiguous(memory_format=torch.channels_last)
    expected = sdc_reference(input.double(), offset.double(), mask.double(), **options)
    with emulated_settings(device, multiprocessors=1):
        call = "dcnv4", input, packed, *sdc_options(options)
        assert_near(device(*call), [expected], tolerance)
        if device.emulation and device.emulation.mode == "check":
            assert is_read_in_pieces_of_16_bytes(device, packed, *call) == (channels == 108)


@pytest.mark.parametrize("C", [16, 6], ids=["packets", "scalars"])
def test_sdc_64_bit_pixel_strides(device, C):
    (input, offset, mask), options = arguments(1, C, 3, 4, groups=2, dtype=torch.float16)
    stride = 2**28 + 8  # the last pixel starts at element 2.95e9; memory between pixels stays unused
    memory = torch.empty(12 * stride, dtype=torch.float16, device=device.where)
    far = memory.as_strided(input.shape, (1, 1, 4 * stride, stride))
    far.copy_(input)
    calls = [("sdc", ()), ("sdc_backward", (False,)), ("sdc_backward", (True,))]
    for operator, more in calls:
        grad = [torch.randn(1, C, 3, 4, dtype=torch.float16)] if more else []
        expected = device(operator, *grad, input, offset, mask, *sdc_options(options), *more)
        results = device(operator, *grad, far, offset, mask, *sdc_options(options), *more)
        assert_near(results, expected, 2e-3)


def test_sdc_pixels_4_gib_apart(device):
    """The CUDA kernel multiplies by the bytes of a pixel with 32 bits, so that such an image is copied first."""
    (input, offset, mask), options = arguments(1, 8, 1, 2, groups=2, dtype=torch.float64)
    stride = 2**29 + 8  # memory between the two pixels stays unused
    memory = torch.empty(stride + 8, dtype=torch.float64, device=device.where)
    far = memory.as_strided(input.shape, (1, 1, 2 * stride, stride))
    far.copy_(input)
    expected = device("sdc", input, offset, mask, *sdc_options(options))
    assert_near(device("sdc", far, offset, mask, *sdc_options(options)), expected, 1e-12)


def test_sdc_nonfinite_coordinates(device):
    tensors, options = arguments(2, 16, 5, 6, groups=2, dtype=torch.float32)
    tensors[1][0, 3, 2, 2] = float("nan")
    tensors[1][1, 20, 1, 4] = float("inf")
    tensors[1][1, 1, 0, 0] = -float("inf")
    tensors[1][0, 5, 3, 3], tensors[1][0, 8, 4, 4] = 1e30, -3e9  # exceed an int
    expected = sdc_reference(*(value.double() for value in tensors), **options)
    assert expected.isnan().any()
    assert_near(device("sdc", *tensors, *sdc_options(options)), [expected], 2e-6)
    grad_output = torch.randn(2, 16, 5, 6)
    cpu = torch.ops.danet.sdc_backward(grad_output, *tensors, *sdc_options(options), False)
    for deterministic in (False, True):
        results = device("sdc_backward", grad_output, *tensors, *sdc_options(options), deterministic)
        assert_near(results, [value.double() for value in cpu], 4e-6)


def test_sdc_nonfinite_logits(device):
    tensors, options = arguments(2, 16, 5, 6, groups=2, dtype=torch.float32)
    tensors[2][0, 0, 2, 2] = tensors[2][0, 12, 3, 1] = float("nan")
    tensors[2][1, 4, 1, 1], tensors[2][1, 17, 0, 5] = float("inf"), -float("inf")
    expected = sdc_reference(*(value.double() for value in tensors), **options)
    assert expected.isnan().any()
    assert_near(device("sdc", *tensors, *sdc_options(options)), [expected], 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_of_the_largest_logits(device, dtype):
    tensors, options = arguments(1, 16, 5, 6, groups=2, softmax=True, dtype=dtype)
    tensors[2][:, ::3], tensors[2][:, 1::3] = 3e38, -3e38
    tensors[2][:, 9:, 2:] = torch.finfo(dtype).min  # all logits of the second group
    expected = sdc_reference(*(value.double() for value in tensors), **options)
    assert expected.isfinite().all()
    assert_near(device("sdc", *tensors, *sdc_options(options)), [expected], 2e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("C", [16, 14])
@pytest.mark.parametrize("spread", [4.0, 0.0])
def test_nonfinite_pixels_at_the_border(device, C, spread, dtype):
    """Corners outside the image count as zero; corners inside count, also if their weight is zero (0 * inf is NaN)."""
    dtype, tolerance = DTYPES[dtype]
    tensors, options = arguments(2, C, 5, 6, groups=2, spread=spread, softmax=False, dtype=dtype)
    tensors[0][0, :, 0, 3], tensors[0][1, 1, 4, 5], tensors[0][1, 9, 2, 0] = float("inf"), float("nan"), -float("inf")
    expected = sdc_reference(*(value.double() for value in tensors), **options)
    (out,) = device("sdc", *tensors, *sdc_options(options))
    assert expected.isfinite().any() and not expected.isfinite().all()
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_near([out[finite]], [expected[finite]], tolerance)


def test_sdc_overflow(device):
    """A sum beyond the largest float16 becomes infinite, and the other results of the thread stay as they are."""
    tensors, options = arguments(2, 16, 5, 6, groups=2, softmax=False, dtype=torch.float16)
    tensors[0][0, 3], tensors[2][0] = 6e4, 1.0
    expected = sdc_reference(*(value.double() for value in tensors), **options)
    (out,) = device("sdc", *tensors, *sdc_options(options))
    overflows = expected.abs() > 65519
    assert overflows.any() and not overflows.all() and torch.equal(out.isinf(), overflows)
    assert_near([out[~overflows]], [expected[~overflows]], DTYPES["float16"][1])


@pytest.mark.parametrize("operator", ["sdc", "deform_im2col"])
def test_nonfinite_grad_output_of_corners_outside(device, operator):
    """Corners outside the image count as zero, so that zero times infinity does not make a gradient NaN."""
    tensors, options = arguments(2, 16, 5, 6, groups=2, spread=4.0, softmax=False, dtype=torch.float32)
    tensors[1][0, 0, 2, 2] = -100.0  # the first tap of group 0 lies far outside the image
    K, C = 9, 16
    columns = K if operator == "deform_im2col" else 1
    grad_output = torch.randn(2, columns * C, 5, 6)
    images = grad_output.unflatten(1, (columns, C))
    images[0, :, 3, 2, 2], images[1, :, 9, 4, 5], images[1, :, 1, 0, 1] = float("inf"), float("nan"), -float("inf")
    cpu = getattr(torch.ops.danet, f"{operator}_backward")(grad_output, *tensors, *sdc_options(options), False)
    assert not any(grad.isfinite().all() for grad in cpu)
    for deterministic in (False, True):
        grads = device(f"{operator}_backward", grad_output, *tensors, *sdc_options(options), deterministic)
        assert grads[1][0, :2, 2, 2].abs().sum() == 0 and grads[2][0, 0, 2, 2] == 0
        for grad, expected in zip(grads, cpu, strict=True):
            assert torch.equal(grad.isnan(), expected.isnan())
            assert torch.equal(grad.isinf(), expected.isinf())
            finite = grad.isfinite()
            assert_near([grad[finite]], [expected[finite].double()], 4e-6)


LCDC_CASES = {
    # N, C, H, W, k, whether all positions share one kernel
    "k3": (2, 64, 4, 5, 3, True),
    "k5": (1, 256, 3, 3, 5, True),
    "positions": (3, 64, 4, 5, 3, False),
    "odd C": (2, 71, 3, 4, 3, True),
    "1 channel": (2, 1, 3, 2, 3, True),
    "1025 channels": (1, 1025, 2, 2, 7, True),
    "3000 channels": (1, 3000, 2, 1, 5, False),
    "k larger than C": (2, 8, 3, 3, 31, True),
    "one pixel": (1, 16, 1, 1, 3, True),
    "k1": (2, 16, 3, 3, 1, True),
    "400 channels": (2, 400, 2, 3, 5, True),  # one pixel takes two or four rows of a warp
    "1000 channels": (1, 1000, 1, 2, 3, True),
    "400 channels, positions": (3, 400, 1, 2, 5, False),
    "batch 33": (33, 8, 2, 3, 3, False),
    "no image": (0, 8, 3, 3, 3, True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [True, False], ids=["gate", "plain"])
@pytest.mark.parametrize("case", LCDC_CASES)
def test_lcdc_forward_and_backward(device, case, gate, dtype):
    N, C, H, W, k, shared = LCDC_CASES[case]
    dtype, tolerance = DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    tensors = [draw(N, C, H, W), draw(1 if shared else H * W, k)]

    def reference(*t):
        return lcdc_reference(*t, gate=gate)

    expected = reference(*(value.double() for value in tensors))
    assert_near(device("lcdc", *tensors, gate, seed=7), [expected], tolerance)
    grad_output = draw(N, C, H, W)
    results = device("lcdc_backward", grad_output, *tensors, gate, seed=5)
    assert_near(results, gradients(reference, tensors, grad_output), 3 * tolerance, terms=(N * C * H * W) ** 0.5)


GATE_CASES = {
    "64": (2, 64, 4, 5),
    "odd C": (2, 71, 3, 4),
    "1 channel": (2, 1, 3, 2),
    "30 channels": (1, 30, 2, 3),
    "256": (1, 256, 3, 3),
    "400 channels": (1, 400, 2, 3),  # two or four groups per thread
    "1000 channels": (1, 1000, 1, 2),
    "1025 channels": (1, 1025, 2, 2),
    "3000 channels": (1, 3000, 1, 2),
    "batch 33": (33, 8, 2, 3),
    "no image": (0, 8, 3, 3),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GATE_CASES)
def test_softmax_gate_forward_and_backward(device, case, dtype):
    dtype, tolerance = DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(GATE_CASES[case], generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [draw().to(dtype), (30 * draw()).to(dtype)]
    expected = softmax_gate_reference(*(value.double() for value in tensors))
    assert_near(device("softmax_gate", *tensors, seed=7), [expected], tolerance)
    grad_output = draw().to(dtype)
    results = device("softmax_gate_backward", grad_output, *tensors, seed=5)
    expected = gradients(softmax_gate_reference, tensors, grad_output)
    assert_near(results, expected, 3 * tolerance, terms=GATE_CASES[case][1])


REP_CONV_CASES = {
    # N, C, C_out, H, W, stride, kernel size (default 3)
    "stage 1": (1, 64, 64, 8, 10, 1),
    "few tiles": (1, 64, 64, 4, 5, 1),
    "stride 2": (2, 32, 48, 7, 9, 2),
    "odd channels": (3, 30, 71, 5, 6, 1),
    "one of each": (1, 1, 1, 1, 1, 1),
    "8 channels": (1, 8, 8, 3, 3, 1),
    "128x64 tiles": (1, 16, 512, 5, 6, 1),
    "128x128 tiles": (1, 16, 512, 10, 13, 1),
    "40 channels": (2, 72, 40, 9, 11, 2),
    "few outputs": (2, 30, 5, 6, 7, 1),
    "few outputs, one": (1, 64, 1, 3, 9, 1),
    "few inputs": (2, 3, 40, 5, 27, 1),
    "few inputs, stride 2": (2, 1, 70, 9, 31, 2),
    "no image": (0, 16, 16, 4, 4, 1),
    "1x1": (2, 64, 108, 5, 6, 1, 1),
    "1x1, odd channels": (1, 30, 7, 3, 5, 1, 1),
    "1x1, one pixel": (2, 512, 64, 1, 1, 1, 1),
}


@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", REP_CONV_CASES)
def test_rep_conv_forward(device, case, dtype, tf32):
    if tf32 and dtype != "float32":
        pytest.skip("tf32 applies to float32 only")
    N, C, C_out, H, W, stride, k = (*REP_CONV_CASES[case], 3)[:7]
    dtype, tolerance = DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    input, weight, bias = draw(N, C, H, W), draw(C_out, C, k, k), draw(C_out)
    for b, relu in ((bias, True), (None, False)):
        wide = [None if value is None else value.double() for value in (input, weight, b)]
        expected = rep_conv_reference(*wide, stride=stride, relu=relu)
        results = device("rep_conv", input, weight, None, b, stride, relu, tf32, seed=5)
        assert_near(results, [expected], 1e-3 if tf32 and device.name != "cpu" else 2 * tolerance)


SPLIT_WEIGHT_CASES = {
    # N, C, C_out, H, W, multiprocessors: with 132, K is split
    "few outputs": (2, 64, 6, 6, 7, 4),
    "few outputs, odd channels": (2, 30, 5, 6, 7, 4),
    "many outputs": (1, 32, 71, 5, 6, 4),
    "split K": (1, 128, 9, 5, 7, 132),
    "split K, many outputs": (1, 64, 40, 5, 7, 132),
    "no image": (0, 16, 3, 4, 4, 4),
}


@pytest.mark.parametrize("has_clusters", [True, False], ids=["clusters", "no clusters"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", SPLIT_WEIGHT_CASES)
def test_rep_conv_float32_weight(device, case, dtype, has_clusters):
    """With a weight as the sum of two values of a half type, the result is almost as exact as in float32."""
    N, C, C_out, H, W, multiprocessors = SPLIT_WEIGHT_CASES[case]
    if device.name == "cpu":
        pytest.skip("the CPU prepares its weights otherwise: test_rep_conv.py")
    if device.name == "cuda" and not has_clusters:
        pytest.skip("the device decides")
    dtype, _ = DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    input, weight, bias = (
        torch.randn(size, generator=generator) for size in ((N, C, H, W), (C_out, C, 3, 3), (C_out,))
    )
    input = input.to(dtype)
    for b, relu in ((bias, True), (None, False)):
        wide = [None if value is None else value.double() for value in (input, weight, b)]
        expected = rep_conv_reference(*wide, relu=relu)
        with emulated_settings(device, multiprocessors=multiprocessors, has_clusters=has_clusters):
            results = device("rep_conv", input, weight, split_weight(weight, dtype), b, 1, relu, False, seed=5)
        assert_near(results, [expected], 3e-5)


def test_split_weight_of_a_large_value():
    assert split_weight(torch.full((1, 1, 1, 1), 1e5), torch.float16) is None
    weight = torch.tensor([1.001, -3e-3]).reshape(1, 2, 1, 1)
    high, low = split_weight(weight, torch.bfloat16).unbind(0)
    torch.testing.assert_close(high.float() + low.float(), weight[0], rtol=2**-16, atol=0)


SAFEM_CASES = {
    # N, C, H, W, G, multiprocessors: clusters share the tiles if these are few
    "16 channels": (1, 16, 5, 7, 2, 4),
    "32 channels, odd sizes": (2, 32, 7, 9, 4, 4),
    "48 channels": (3, 48, 5, 6, 2, 132),
    "64 channels, large tiles": (1, 64, 12, 17, 4, 4),
    "128 channels, 2 blocks share a tile": (2, 128, 6, 7, 4, 132),
    "160 channels": (1, 160, 3, 5, 4, 132),
    "256 channels, 4 blocks share a tile": (1, 256, 4, 9, 4, 132),
    "512 channels, 8 blocks share a tile": (1, 512, 3, 5, 8, 132),
    "512 channels, no cluster": (1, 512, 3, 3, 4, 1),
    "one pixel": (33, 16, 1, 1, 1, 132),
    "one row": (1, 64, 1, 41, 4, 132),
    "no image": (0, 16, 4, 5, 2, 4),
}


def safem_tensors(case: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights of a SaFEM; input, up and weight. Offsets cross the borders, and no softmax is uniform or one-hot."""
    N, C, H, W, G, _ = SAFEM_CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = [(C, 1, 3, 3), (C,), (27 * G, C, 1, 1), (27 * G,), (2 * C, C, 1, 1), (2 * C,), (C, 2 * C, 1, 1), (C,)]
    shapes += [(N, C, H, W), (N, 4 * C, (H + 1) // 2, (W + 1) // 2), (N, C)]
    scales = [0.5, 0.5, 2 / C**0.5, 1, 1 / C**0.5, 0.5, 2 / C**0.5, 1, 1, 1, 1]
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors = [(draw * scale).to(dtype) for draw, scale in zip(draws, scales, strict=True)]
    return tensors[:8], tensors[8:]


def safem_calls():
    """Cases with a dtype, and whether two levels are combined; fewer of them for many channels, which take long."""
    for case, (_, C, *_) in SAFEM_CASES.items():
        for dtype in ("float16", "bfloat16"):
            for combines in (False, True):
                if C < 256 or combines == (dtype == "float16"):
                    yield pytest.param(case, dtype, combines, id=f"{case}-{dtype}-{'levels' if combines else 'alone'}")


@pytest.mark.parametrize("case, dtype, combines", list(safem_calls()))
def test_safem_forward(device, case, dtype, combines):
    *_, G, multiprocessors = SAFEM_CASES[case]
    if device.name == "cpu":
        pytest.skip("the CPU packs its weights otherwise: test_fused_safem.py")
    dtype, tolerance = DTYPES[dtype]
    weights, (input, up, weight) = safem_tensors(case, dtype)
    more = (up, weight) if combines else (None, None)
    wide = [None if value is None else value.double() for value in more]
    exact = prepare_safem(*(value.double() for value in weights), groups=G)
    expected = safem_reference(input.double(), exact, up=wide[0], weight=wide[1], scale=0.5)
    with emulated_settings(device, multiprocessors=multiprocessors):
        for seed in (0, 7) if input.shape[1] < 256 else (7,):
            results = device("safem", input, pack_for_cuda(weights), *more, G, 0.5, seed=seed)
            assert_near(results, [expected], 2 * tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", SAFEM_CASES)
def test_acfa_weight_forward(device, case, dtype):
    *_, G, multiprocessors = SAFEM_CASES[case]
    if device.name == "cpu":
        pytest.skip("the CPU packs its weights otherwise: test_fused_safem.py")
    dtype, tolerance = DTYPES[dtype]
    weights, (input, _, _) = safem_tensors(case, dtype)
    exact = prepare_safem(*(value.double() for value in weights), groups=G)
    expected = acfa_weight_reference(input.double(), exact)
    with emulated_settings(device, multiprocessors=multiprocessors):
        results = device("acfa_weight", input, pack_for_cuda(weights), G, seed=7)
    assert_near(results, [expected], tolerance)


def test_safem_of_slices(device):
    """Images that are slices of others: copied if their packets are not aligned."""
    if device.name == "cpu":
        pytest.skip("the CPU packs its weights otherwise: test_fused_safem.py")
    weights, (input, up, weight) = safem_tensors("32 channels, odd sizes", torch.float16)
    packed = pack_for_cuda(weights)
    expected = device("safem", input, packed, up, weight, 4, 1.0)
    for start in (8, 3):
        wide = [torch.randn(2, C + 16, *size.shape[2:]).half() for C, size in ((32, input), (128, up))]
        wide = [image.contiguous(memory_format=torch.channels_last) for image in wide]
        slices = [image[:, start : start + C] for image, C in zip(wide, (32, 128), strict=True)]
        for image, value in zip(slices, (input, up), strict=True):
            image.copy_(value)
        wider = torch.zeros(2 * 32 + 1, dtype=torch.float16)
        wider[1:] = weight.flatten()
        results = device("safem", slices[0], packed, slices[1], wider[1:].unflatten(0, (2, 32)), 4, 1.0)
        assert torch.equal(results[0], expected[0])


def test_safem_nan_pixel_stays_local(device):
    if device.name == "cpu":
        pytest.skip("the CPU packs its weights otherwise: test_fused_safem.py")
    weights, (input, _, _) = safem_tensors("64 channels, large tiles", torch.bfloat16)
    weights[2], weights[3] = torch.zeros_like(weights[2]), torch.full_like(weights[3], 0.3)  # all offsets are 0.3
    packed = pack_for_cuda(weights)
    clean = device("safem", input, packed, None, None, 4, 1.0)[0]
    input[0, 5, 4, 6] = torch.nan
    out = device("safem", input, packed, None, None, 4, 1.0)[0]
    is_nan = out.isnan().any(1)[0]
    assert is_nan[4, 6] and not is_nan[:, :4].any() and not is_nan[:, 9:].any()
    assert torch.equal(out[:, :, ~is_nan], clean[:, :, ~is_nan])


SAFEM_ERRORS = {
    "size of prepared": ({1: torch.zeros(100).half()}, "safem: prepared has the wrong shape"),
    "dtype of prepared": ({1: torch.zeros(100)}, "safem: prepared must have input's dtype"),
    "stride of prepared": ({1: torch.zeros(8208, 2).half()[:, 0]}, "safem: prepared must be contiguous"),
    "up without weight": ({2: torch.zeros(2, 128, 3, 3).half()}, "safem: up and weight must be given together"),
    "groups": ({4: 8}, "safem: on CUDA devices, C must be a multiple of 16 and of 8 [*] groups and at most 512"),
    "channels": ({0: torch.zeros(2, 40, 5, 6).half(), 4: 1}, "safem: on CUDA devices, C must be a multiple of 16"),
    "dtype": ({0: torch.zeros(2, 32, 5, 6)}, "safem: dtype must be float16 or bfloat16 on CUDA devices"),
}


@pytest.mark.parametrize("case", SAFEM_ERRORS)
def test_safem_direct_call_error(device, case):
    if device.name == "cpu":
        pytest.skip("the CPU packs its weights otherwise: test_fused_safem.py")
    changes, message = SAFEM_ERRORS[case]
    weights, (input, _, _) = safem_tensors("32 channels, odd sizes", torch.float16)
    arguments = [input, pack_for_cuda(weights), None, None, 4, 1.0]
    assert len(arguments[1]) == 8208
    for index, value in changes.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        device("safem", *arguments)


def attention_dtypes():
    """Cases with a dtype of value, and one of locations and weights."""
    for case in ATTENTION_CASES:
        if case != "300 points":  # more points than the kernels support
            yield pytest.param(case, "float32", "float32", id=f"{case}-float32")
    for case in ("plain", "32 channels", "71 channels"):
        for dtype, points in (("float64",) * 2, ("float16",) * 2, ("bfloat16",) * 2, ("bfloat16", "float32")):
            yield pytest.param(case, dtype, points, id=f"{case}-{dtype}-{points}")


def level_tensors(shapes):
    """spatial_shapes and level_start_index."""
    count = torch.tensor(shapes).prod(1)
    return torch.tensor(shapes), count.cumsum(0) - count


@pytest.mark.parametrize("softmax", [False, True], ids=["weights", "softmax"])
@pytest.mark.parametrize("case, dtype, points", list(attention_dtypes()))
def test_ms_deform_attn_forward_and_backward(device, case, dtype, points, softmax):
    dtype, tolerance = DTYPES[dtype]
    value, *others = attention_tensors(**ATTENTION_CASES[case])
    tensors = [value.to(dtype), *(each.to(DTYPES[points][0]) for each in others)]
    shapes = ATTENTION_CASES[case].get("shapes", SHAPES)

    def reference(*t):
        return ms_deform_attn_reference(t[0], shapes, None, *t[1:], softmax=softmax)

    expected = reference(*(each.double() for each in tensors))
    rest = (*level_tensors(shapes), softmax)
    assert_near(device("ms_deform_attn", *tensors, *rest, seed=7), [expected], 2 * tolerance)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    grads = gradients(reference, tensors, grad_output)
    for deterministic in (False, True):
        results = device("ms_deform_attn_backward", grad_output, *tensors, *rest, deterministic, seed=5)
        assert_near(results, grads, 3 * tolerance, terms=1)
    again = device("ms_deform_attn_backward", grad_output, *tensors, *rest, True, seed=11)
    assert all(map(torch.equal, results, again))


def test_ms_deform_attn_nonfinite_locations(device):
    shapes = [(6, 5), (0, 3), (3, 4)]
    value, locations, weights = attention_tensors(shapes, D=8, Q=20, dtype=torch.float32)
    locations[0, 3, 0, 0, 1, 0], locations[0, 5, 1, 1, 0, 1] = float("nan"), float("nan")  # the latter: an empty level
    locations[1, 2, 0, 2, 2], locations[1, 4, 0, 0, 0, 1] = float("inf"), -1e30
    expected = ms_deform_attn_reference(value.double(), shapes, None, locations.double(), weights.double())
    assert expected.isnan().sum() == 8
    rest = (*level_tensors(shapes), False)
    assert_near(device("ms_deform_attn", value, locations, weights, *rest), [expected], 4e-6)
    grad_output = torch.randn(2, 20, 16)
    cpu = torch.ops.danet.ms_deform_attn_backward(grad_output, value, locations, weights, *rest, False)
    for deterministic in (False, True):
        results = device("ms_deform_attn_backward", grad_output, value, locations, weights, *rest, deterministic)
        assert_near(results, [each.double() for each in cpu], 4e-6)


def test_ms_deform_attn_level_outside_value(device):
    """An error on the CPU. A CUDA device would have to be waited for, so the kernels give NaN."""
    tensors = attention_tensors(D=8, dtype=torch.float32)
    for shapes, starts in (([[6, 5], [3, 5]], [0, 30]), ([[6, 5], [3, 4]], [0, -1]), ([[6, 5], [-1, 4]], [0, 30])):
        call = "ms_deform_attn", *tensors, torch.tensor(shapes), torch.tensor(starts), False
        if device.name == "cpu":
            with pytest.raises(RuntimeError, match=r"ms_deform_attn: "):
                device(*call)
        else:
            assert device(*call)[0].isnan().all()


DIRECT_ERRORS = {
    "sdc offset": ("sdc", "sdc: offset has the wrong shape", {1: (2, 18, 5, 6)}),
    "sdc mask": ("sdc", "sdc: mask must have input's dtype", {2: torch.float64}),
    "sdc groups": ("sdc", "sdc: groups must divide C", {3: 3}),
    "sdc kernel_size": ("sdc", "sdc: the dilated window must fit into the padded input", {4: 9}),
    "sdc dtype": ("sdc", "danet: dtype must be float64, float32, float16 or bfloat16", {0: torch.int32}),
    "lcdc weight": ("lcdc", "lcdc: weight must be", {1: (2, 3)}),
    "softmax_gate logits": ("softmax_gate", "softmax_gate: logits has the wrong shape", {1: (2, 8, 5, 7)}),
    "ms_deform_attn weights": ("ms_deform_attn", "ms_deform_attn: attention_weights has the wrong shape", {2: (2, 5)}),
    "ms_deform_attn shapes": ("ms_deform_attn", "ms_deform_attn: spatial_shapes and level_s", {3: torch.int32}),
    "rep_conv weight": ("rep_conv", "rep_conv: weight has the wrong shape", {1: (4, 9, 3, 3)}),
    "rep_conv bias": ("rep_conv", "rep_conv: bias has the wrong shape", {3: (5,)}),
    "rep_conv stride": ("rep_conv", "rep_conv: stride must be 1 or 2", {4: 3}),
}
"""Operator, its error, and the changed arguments by index: a shape, a dtype or a value."""


@pytest.mark.parametrize("case", DIRECT_ERRORS)
def test_direct_call_error(device, case):
    operator, message, changes = DIRECT_ERRORS[case]
    windows = [3, 3, 1, 1, 1, 1, 1, 1]
    calls = {
        "sdc": [*map(torch.zeros, ((2, 8, 5, 6), (2, 36, 5, 6), (2, 18, 5, 6))), 2, *windows, 1.0, True, False],
        "lcdc": [torch.zeros(2, 8, 5, 6), torch.zeros(1, 3), True],
        "softmax_gate": [torch.zeros(2, 8, 5, 6), torch.zeros(2, 8, 5, 6)],
        "ms_deform_attn": [*attention_tensors(dtype=torch.float32), *level_tensors(SHAPES), False],
        "rep_conv": [torch.zeros(2, 8, 5, 6), torch.zeros(4, 8, 3, 3), None, None, 1, True, False],
    }
    arguments = calls[operator]
    for index, change in changes.items():
        if isinstance(change, torch.dtype):
            arguments[index] = arguments[index].to(change)
        else:
            arguments[index] = torch.zeros(change) if isinstance(change, tuple) else change
    with pytest.raises(RuntimeError, match=message):
        device(operator, *arguments)


@pytest.mark.parametrize("operator", ["sdc", "dcnv3", "deform_im2col"])
def test_huge_output_error(device, operator):
    """The CUDA kernels index output pixels with 32 bits. The images here take no memory: all pixels are one."""
    if device.name == "cpu":
        pytest.skip("the CPU kernels index with 64 bits")
    side, half = 46341, 23170  # 46341^2 is the first square of at least 2^31
    input, offset, mask = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 2).permute(0, 3, 1, 2), torch.zeros(1, 1, 1, 1)
    offset, mask = (value.to(device.where).expand(1, -1, side, side) for value in (offset, mask))
    options = (1, 1, 1, 1, 1, half, half, 1, 1, 1.0, False, False)
    with pytest.raises(RuntimeError, match=r"sdc: the output must have H_out \* W_out < 2\^31, got H_out = 46341"):
        device(operator, input, offset, mask, *options)


LAUNCHES = {"sdc": 1, "lcdc": 1, "softmax_gate": 1, "sdc_backward": 1, "lcdc_backward": 2, "softmax_gate_backward": 1}
"""Kernel launches per call. lcdc_backward needs a second one, to add up the blocks' sums for the shared weight."""


@pytest.fixture
def emulated():
    if missing():
        pytest.skip(missing())
    return Device("emulated")


def small_calls(N: int) -> dict[str, tuple]:
    x = torch.randn(N, 8, 3, 4)
    (input, offset, mask), options = arguments(N, 8, 3, 4, groups=2, dtype=torch.float32)
    sdc = (input, offset, mask, *sdc_options(options))
    return {
        "sdc": sdc,
        "lcdc": (x, torch.randn(1, 3), True),
        "softmax_gate": (x, x),
        "sdc_backward": (x, *sdc, False),
        "lcdc_backward": (x, x, torch.randn(1, 3), True),
        "softmax_gate_backward": (x, x, x),
    }


@pytest.mark.long
@pytest.mark.parametrize("operator", LAUNCHES)
def test_emulated_launch_count(emulated, operator):
    for N, expected in ((2, LAUNCHES[operator]), (0, 0)):
        before = emulated.emulation.launches()
        emulated(operator, *small_calls(N)[operator])
        assert emulated.emulation.launches() - before == expected


@pytest.mark.long
def test_emulated_launch_failure_is_recoverable(emulated):
    call = small_calls(1)["sdc"]
    expected = emulated("sdc", *call)
    emulated.emulation.settings.shared_limit = 1024
    with pytest.raises(RuntimeError, match="sdc: too much shared memory"):
        emulated.operators.sdc(*call)
    assert torch.equal(emulated("sdc", *call)[0], expected[0])


def test_emulated_rep_conv_refuses_offsets_beyond_its_integers(emulated):
    """A float32 weight, for which there is no convolution of torch; the memory is never touched."""
    image_stride = 1 << 29
    memory = torch.empty(image_stride + 128, dtype=torch.float16)
    input = memory.as_strided((2, 8, 4, 4), (image_stride, 1, 32, 8))
    weight = torch.ones(4, 8, 3, 3)
    arguments = weight, split_weight(weight, torch.float16), None, 1, True, False
    with pytest.raises(RuntimeError, match="rep_conv: the tensors are too large"):
        emulated.operators.rep_conv(input, *arguments)
    one_image = input[:1]  # the stride of a dimension of size 1 does not count
    assert emulated.operators.rep_conv(one_image.zero_(), *arguments).shape == (1, 4, 4, 4)


# C_out, H, W: one tile, and two tiles of which the second is not full. Tiles of float64 have half as many channels.
SPLIT_CASES = {"one tile": (40, 3, 5), "two tiles": (71, 6, 10)}


@pytest.mark.long
@pytest.mark.parametrize("multiprocessors", [4, 78, 132, 160])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPLIT_CASES)
def test_emulated_rep_conv_splits(emulated, case, dtype, multiprocessors):
    """A cluster adds up the splits of K in the same order as the kernel that does so without clusters."""
    C_out, H, W = SPLIT_CASES[case]
    dtype, tolerance = DTYPES[dtype]
    C_out = C_out // 2 if dtype == torch.float64 else C_out
    shapes, generator = ((1, 56, H, W), (C_out, 56, 3, 3), (C_out,)), torch.Generator().manual_seed(0)
    input, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    settings, results, launches = emulated.emulation.settings, [], []
    try:
        for has_clusters, seed in ((True, 0), (True, 7), (False, 0)):
            # With clusters, there are up to three blocks for two multiprocessors: give the others as many.
            settings.multiprocessors = multiprocessors if has_clusters else multiprocessors * 3 // 2
            settings.has_clusters = has_clusters
            with emulated.emulation.observed(launches.append):
                results += emulated("rep_conv", input, weight, None, bias, 1, True, False, seed=seed)
    finally:
        settings.has_clusters, settings.multiprocessors = True, 4
    assert [launch.cluster > 1 for launch in launches] == [True, True, False, False]
    assert launches[0].grid == launches[2].grid
    expected = rep_conv_reference(input.double(), weight.double(), bias.double())
    assert_near(results[:1], [expected], 2 * tolerance)
    assert all(torch.equal(result, results[0]) for result in results)
