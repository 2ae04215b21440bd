"""DCNv3 and DCNv4 against an implementation by F.grid_sample, like the checks in InternImage's repository."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from danet.ops import (
    DCNv3,
    DCNv3Function,
    DCNv4,
    DCNv4Function,
    dcnv3,
    dcnv3_core_pytorch,
    dcnv3_reference,
    dcnv4,
    dcnv4_reference,
    sdc,
)


def dcnv3_by_grid_sample(input, offset, mask, kernel, stride, pad, dilation, group, scale, remove_center):
    """DCNv3 as its paper defines it, one tap after the other, in column-major order with (x, y) offsets."""
    (N, H, W, C), (kernel_h, kernel_w) = input.shape, kernel
    H_out, W_out = offset.shape[1:3]
    images = input.view(N, H, W, group, C // group).permute(0, 3, 4, 1, 2).flatten(0, 1)
    taps = [(x, y) for x in range(kernel_w) for y in range(kernel_h)]
    if remove_center:
        taps.remove((kernel_w // 2, kernel_h // 2))
    offset = offset.view(N, H_out, W_out, group, len(taps), 2).transpose(2, 3).transpose(1, 2)
    mask = mask.view(N, H_out, W_out, group, len(taps)).transpose(2, 3).transpose(1, 2)
    out = 0
    for k, tap in enumerate(taps):
        coordinates = []
        for axis, (sides, size) in enumerate(((W_out, W), (H_out, H))):
            middle = dilation[1 - axis] * (kernel[1 - axis] - 1) // 2
            start = torch.arange(sides, dtype=input.dtype) * stride[1 - axis] - pad[1 - axis] + middle
            start = start.view(-1, 1).T if axis == 0 else start.view(-1, 1)
            coordinate = start + scale * (tap[axis] * dilation[1 - axis] - middle + offset[..., k, axis])
            coordinates.append((2 * coordinate + 1) / size - 1)
        grid = torch.stack(coordinates, -1).flatten(0, 1)
        sampled = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        out = out + sampled * mask[..., k].flatten(0, 1).unsqueeze(1)
    return out.view(N, C, H_out, W_out).permute(0, 2, 3, 1)


def packed(offset, mask, group, width):
    """DCNv4's tensor of offset and mask, padded to `width` channels with NaN, which must not be read."""
    N, H_out, W_out, _ = offset.shape
    parts = [value.view(N, H_out, W_out, group, -1) for value in (offset, mask)]
    both = torch.cat(parts, -1).flatten(3)
    return torch.cat([both, both.new_full((N, H_out, W_out, width - both.shape[-1]), float("nan"))], -1)


def draw(N, H, W, group, channels, *, kernel=(3, 3), stride=(1, 1), pad=(1, 1), dilation=(1, 1), remove_center=False):
    """Random input, offset and mask, with the distributions of InternImage's check."""
    generator = torch.Generator().manual_seed(3)
    K = kernel[0] * kernel[1] - remove_center
    H_out, W_out = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((H, W), kernel, stride, pad, dilation, strict=True)
    )

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    mask = uniform(N, H_out, W_out, group, K) + 1e-5
    mask = (mask / mask.sum(-1, keepdim=True)).flatten(3)
    return uniform(N, H, W, group * channels) * 0.01, uniform(N, H_out, W_out, group * K * 2) * 10, mask


CASES = {
    "InternImage's forward check": (2, 8, 8, 4, 16, {}, 2.0),
    **{f"{channels} channels per group": (2, 8, 8, 2, channels, {}, 2.0) for channels in (1, 16, 30, 32, 64, 71, 1025)},
    "5x3": (2, 9, 7, 2, 4, {"kernel": (5, 3), "pad": (2, 0)}, 1.0),
    "stride, dilation": (1, 9, 11, 3, 5, {"stride": (2, 1), "dilation": (1, 2), "pad": (0, 2)}, 0.7),
    "remove_center": (2, 6, 7, 4, 8, {"remove_center": True}, 1.0),
    "5x5, remove_center": (1, 6, 7, 2, 8, {"kernel": (5, 5), "pad": (2, 2), "remove_center": True}, 1.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_dcn_matches_grid_sample(case, dtype):
    N, H, W, group, channels, options, scale = CASES[case]
    images = draw(N, H, W, group, channels, **options)
    defaults = {"kernel": (3, 3), "stride": (1, 1), "pad": (1, 1), "dilation": (1, 1)}
    windows = [{**defaults, **options}[name] for name in defaults]
    remove_center = options.get("remove_center", False)
    positional = [side for window in windows for side in window]

    leaves = [value.clone().requires_grad_() for value in images]
    expected = dcnv3_by_grid_sample(*leaves, *windows, group, scale, remove_center)
    grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, leaves, grad_output)

    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-3}
    leaves = [value.to(dtype).requires_grad_() for value in images]
    out = DCNv3Function.apply(*leaves, *positional, group, channels, scale, 2, remove_center)
    assert out.is_contiguous()
    assert_close(out.double(), expected, **tolerance)
    for actual, right in zip(torch.autograd.grad(out, leaves, grad_output.to(dtype)), expected_grads, strict=True):
        assert_close(actual.double(), right, **tolerance)

    width = -(-3 * images[2].shape[-1] // 8) * 8
    both = packed(*images[1:], group, width).to(dtype).requires_grad_()
    out = DCNv4Function.apply(leaves[0], both, *positional, group, channels, scale, 2, remove_center)
    assert_close(out.double(), expected, **tolerance)
    grad_input, grad_both = torch.autograd.grad(out, (leaves[0], both), grad_output.to(dtype))
    assert_close(grad_input.double(), expected_grads[0], **tolerance)
    right = packed(*expected_grads[1:], group, width).nan_to_num()
    assert_close(grad_both.double(), right, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dcn_half_dtypes(dtype):
    images = [value.to(dtype) for value in draw(2, 8, 8, 4, 16)]
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 4, 16, 1.0)
    expected = dcnv3(*(value.double() for value in images), *arguments)
    assert_close(dcnv3(*images, *arguments).double(), expected, rtol=1e-2, atol=1e-4)
    assert_close(dcnv4(images[0], packed(*images[1:], 4, 112), *arguments).double(), expected, rtol=1e-2, atol=1e-4)


def test_dcn_softmax_option():
    input, offset, mask = draw(2, 8, 8, 4, 16)
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 4, 16, 1.0)
    weights = mask.view(2, 8, 8, 4, 9).softmax(-1).flatten(3)
    expected = dcnv3(input, offset, weights, *arguments)
    assert_close(dcnv3(input, offset, mask, *arguments, softmax=True), expected)
    assert_close(dcnv4(input, packed(offset, mask, 4, 108), *arguments, softmax=True), expected)


def test_dcn_copies_no_arguments():
    """Beyond its result, a call allocates less memory than the smallest argument."""
    images = [value.float() for value in draw(1, 160, 160, 4, 16)]
    both = packed(*images[1:], 4, 112)
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 4, 16, 1.0)
    for call in (lambda: dcnv3(*images, *arguments), lambda: dcnv4(images[0], both, *arguments)):
        with torch.profiler.profile(profile_memory=True) as profile:
            out = call()
        taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
        assert out.nbytes <= taken < 1.2 * out.nbytes


def test_dcn_large_window_runs_as_reference():
    input, offset, mask = draw(1, 20, 20, 1, 2, kernel=(17, 17), pad=(8, 8))
    arguments = (17, 17, 1, 1, 8, 8, 1, 1, 1, 2, 1.0)
    expected = dcnv3_by_grid_sample(input, offset, mask, (17, 17), (1, 1), (8, 8), (1, 1), 1, 1.0, False)
    assert_close(dcnv3(input, offset, mask, *arguments), expected)
    assert_close(dcnv4(input, packed(offset, mask, 1, 872), *arguments), expected)


def test_dcnv3_matches_transposed_sdc():
    """Transposing the images swaps x and y, and with them the orders of taps and offsets."""
    input, offset, mask = draw(2, 8, 6, 2, 4)
    expected = dcnv3(input, offset, mask, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)
    turned = [value.permute(0, 3, 2, 1) for value in (input, offset, mask)]
    assert_close(sdc(*turned, groups=2, softmax=False).permute(0, 3, 2, 1), expected)


GOOD = draw(2, 6, 7, 2, 4)
ERRORS = [
    ({"input": GOOD[0][0]}, ValueError, "dcnv3: input must be [N, H, W, C] with H, W, C >= 1, got [6, 7, 8]"),
    ({"offset": GOOD[1].float()}, TypeError, "dcnv3: offset must have input's dtype float64, got float32"),
    (
        {"offset": GOOD[1][..., 1:]},
        ValueError,
        "dcnv3: offset must be [N, H_out, W_out, 2*G*K] = [2, 6, 7, 36], got [2, 6, 7, 35]",
    ),
    (
        {"mask": GOOD[2][:, 1:]},
        ValueError,
        "dcnv3: mask must be [N, H_out, W_out, G*K] = [2, 6, 7, 18], got [2, 5, 7, 18]",
    ),
    ({"group_channels": 3}, ValueError, "dcnv3: group * group_channels must be C = 8, got 2 * 3"),
    ({"group": 3}, ValueError, "dcnv3: groups must divide C = 8, got 3"),
    ({"offset_scale": "1"}, TypeError, "dcnv3: offset_scale must be a number, got '1'"),
]


@pytest.mark.parametrize("wrong, error, text", ERRORS)
def test_dcnv3_error(wrong, error, text):
    good = dict(zip(("input", "offset", "mask"), GOOD, strict=True), group=2, group_channels=4, offset_scale=1.0)
    windows = dict.fromkeys(("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"), 1)
    with pytest.raises(error) as raised:
        dcnv3(**{**good, **windows, "kernel_h": 3, "kernel_w": 3, **wrong})
    assert str(raised.value) == text


def test_dcnv4_narrow_offset_mask_error():
    both = packed(*GOOD[1:], 2, 54)[..., :53]
    with pytest.raises(ValueError) as raised:
        dcnv4(GOOD[0], both, 3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0)
    assert str(raised.value) == (
        "dcnv4: offset_mask must be [N, H_out, W_out, P] = [2, 6, 7, 54] with P = 3*G*K or more, got [2, 6, 7, 53]"
    )


def at_border(op, extra=()):
    """The result and the gradients of a 1x1 window, of which one sample is at (y, x) = (-1, 0.5), one at (0.5, -1)."""
    input = torch.rand(1, 3, 4, 2, dtype=torch.float64) + 1
    offset = torch.zeros(1, 3, 4, 2, dtype=torch.float64)
    offset[0, 0, 0] = torch.tensor([0.5, -1.0])
    offset[0, 1, 0] = torch.tensor([-1.0, -0.5])
    mask = torch.ones(1, 3, 4, 1, dtype=torch.float64)
    arguments = (1, 1, 1, 1, 0, 0, 1, 1, 1, 2, 1.0)
    leaves = (input, offset, mask) if op in (dcnv3, dcnv3_reference) else (input, torch.cat([offset, mask], 3))
    leaves = [t.requires_grad_() for t in leaves]
    out = op(*leaves, *arguments, *extra)
    return out, torch.autograd.grad(out.sum(), leaves)


@pytest.mark.parametrize("op", [dcnv3, dcnv3_reference, dcnv4, dcnv4_reference])
def test_dcn_ignores_samples_at_minus_one(op):
    """The originals skip samples with a coordinate <= -1, so that no gradient is left; sdc has a right-sided one."""
    out, grads = at_border(op)
    assert out[0, :2, 0].abs().sum() == 0
    for grad in grads[1:]:
        assert grad[0, :2, 0].abs().sum() == 0
        assert grad[0, 0, 1].abs().sum() > 0
    input, offset, mask = (
        t.permute(0, 3, 1, 2) for t in (torch.ones(1, 3, 4, 2), torch.zeros(1, 3, 4, 2), torch.ones(1, 3, 4, 1))
    )
    offset = offset.clone()
    offset[0, 0, 0, 0] = -1
    offset.requires_grad_()
    options = {"kernel_size": 1, "padding": 0, "softmax": False}
    assert torch.autograd.grad(sdc(input, offset, mask, **options).sum(), offset)[0][0, 0, 0, 0] == 2


def test_dcn_accepts_calls_of_other_versions():
    input, offset, mask = draw(2, 6, 7, 2, 4)
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4)
    expected = dcnv3(input, offset, mask, *arguments, 2.0)
    softmaxed = dcnv3(input, offset, mask, *arguments, 2.0, softmax=True)
    both = packed(offset, mask, 2, 56)
    for scale in (np.float32(2), np.float64(2), torch.tensor(2.0), 2):
        assert_close(dcnv3(input, offset, mask.unflatten(3, (2, 9)), *arguments, scale), expected, rtol=0, atol=0)
        assert_close(dcnv4(input, both, *arguments, scale, 256, 0, 64, 256), expected)
        assert_close(dcnv4(input, both, *arguments, scale, 256, 0, 64, 256, True), softmaxed)
    assert_close(dcnv3(input, offset, mask, *arguments, 2.0, 256, False, True), softmaxed, rtol=0, atol=0)
    assert_close(dcnv3_core_pytorch(input, offset, mask, *arguments, 2.0, False), expected)
    with pytest.raises(TypeError, match="dcnv4: further arguments must be at most two integers and softmax as a bool"):
        dcnv4(input, both, *arguments, 2.0, 256, 0, "64")


def test_dcn_contradicting_softmax_error():
    """A call with remove_center twice, for example, must not lose the softmax that it asks for by name."""
    input, offset, mask = draw(2, 6, 7, 2, 4)
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, False)
    text = "softmax must be given once, got False by position and True by name; pass it by name"
    for op, tensors in ((dcnv3, (input, offset, mask)), (dcnv4, (input, packed(offset, mask, 2, 56)))):
        with pytest.raises(TypeError, match=f"{op.__name__}: {text}"):
            op(*tensors, *arguments, False, softmax=True)
        assert_close(op(*tensors, *arguments, True, softmax=True), op(*tensors, *arguments, softmax=True))


def test_dcn_remove_center_types():
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256)
    for remove_center, values in ((False, (0, np.bool_(False), np.int64(0))), (True, (1, np.bool_(True)))):
        input, offset, mask = draw(2, 6, 7, 2, 4, remove_center=remove_center)
        both = packed(offset, mask, 2, 56)
        expected = dcnv3(input, offset, mask, *arguments, remove_center)
        for value in values:
            assert_close(dcnv3(input, offset, mask, *arguments, value), expected, rtol=0, atol=0)
            assert_close(dcnv4(input, both, *arguments, value), expected)
    for wrong in ("False", 2, 0.0, None, [0]):
        with pytest.raises(TypeError) as raised:
            dcnv4(input, both, *arguments, wrong)
        assert str(raised.value) == f"dcnv4: remove_center must be True, False, 1 or 0, got {wrong!r}"
        with pytest.raises(TypeError, match="DCNv3: remove_center must be True, False, 1 or 0, got"):
            DCNv3(8, group=2, remove_center=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dcn_large_finite_inputs_stay_finite(dtype):
    input, offset, mask = (t.to(dtype) for t in draw(1, 8, 9, 2, 8))
    input = torch.full_like(input, 2e38)
    arguments = (3, 3, 1, 1, 0, 0, 1, 1, 2, 8, 1.0)
    inside = offset.unflatten(3, (2, 9, 2))[:, :6, :7].remainder(0.9).flatten(3)
    logits = (mask[:, :6, :7] * 20).contiguous()
    expected = dcnv3_reference(input.double(), inside.double(), logits.double(), *arguments, softmax=True)
    for out in (
        dcnv3(input, inside, logits, *arguments, softmax=True),
        dcnv4(input, packed(inside, logits, 2, 56), *arguments, softmax=True),
    ):
        assert_close(out.double(), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_dcn_module_state_matches_the_originals():
    """Names and shapes of the parameters in checkpoints of InternImage (LN, center_feature_scale) and DCNv4."""
    v3 = {name: tuple(p.shape) for name, p in DCNv3(8, group=2, center_feature_scale=True).state_dict().items()}
    assert v3 == {
        "center_feature_scale_proj_weight": (2, 8),
        "center_feature_scale_proj_bias": (2,),
        "dw_conv.0.weight": (8, 1, 3, 3),
        "dw_conv.0.bias": (8,),
        "dw_conv.1.1.weight": (8,),
        "dw_conv.1.1.bias": (8,),
        "offset.weight": (36, 8),
        "offset.bias": (36,),
        "mask.weight": (18, 8),
        "mask.bias": (18,),
        "input_proj.weight": (8, 8),
        "input_proj.bias": (8,),
        "output_proj.weight": (8, 8),
        "output_proj.bias": (8,),
    }
    assert "dw_conv.1.0.running_mean" in DCNv3(8, norm_layer="BN").state_dict()
    v4 = {
        name: tuple(p.shape) for name, p in DCNv4(8, group=2, dw_kernel_size=3, output_bias=False).state_dict().items()
    }
    assert v4 == {
        "offset_mask_dw.weight": (8, 1, 3, 3),
        "offset_mask_dw.bias": (8,),
        "offset_mask.weight": (56, 8),
        "offset_mask.bias": (56,),
        "value_proj.weight": (8, 8),
        "value_proj.bias": (8,),
        "output_proj.weight": (8, 8),
    }
    assert set(DCNv4(8, without_pointwise=True).state_dict()) == {"offset_mask.weight", "offset_mask.bias"}


@pytest.mark.parametrize("remove_center", [False, True])
def test_dcn_modules_compute_the_formula(remove_center):
    torch.manual_seed(0)
    input = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    options = {"group": 2, "center_feature_scale": True, "remove_center": remove_center}
    v3, v4 = DCNv3(8, **options).double(), DCNv4(8, dw_kernel_size=3, **options).double()
    for parameter in (*v3.parameters(), *v4.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    arguments = ((3, 3), (1, 1), (1, 1), (1, 1), 2, 1.0, remove_center)

    query = v3.dw_conv(input.permute(0, 3, 1, 2))
    projected, K = v3.input_proj(input), 9 - remove_center
    mask = v3.mask(query).unflatten(3, (2, K)).softmax(4).flatten(3)
    sampled = dcnv3_by_grid_sample(projected, v3.offset(query), mask, *arguments)
    scale = (query @ v3.center_feature_scale_proj_weight.T + v3.center_feature_scale_proj_bias).sigmoid()
    scale = torch.cat([scale[..., :1].expand(2, 6, 7, 4), scale[..., 1:].expand(2, 6, 7, 4)], 3)
    assert_close(v3(input), v3.output_proj(sampled * (1 - scale) + projected * scale))

    predictor = v4.offset_mask_dw(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    groups = v4.offset_mask(predictor)[..., : 6 * K].unflatten(3, (2, 3 * K))
    projected = v4.value_proj(input)
    offset, mask = groups[..., : 2 * K].flatten(3), groups[..., 2 * K :].flatten(3)
    sampled = dcnv3_by_grid_sample(projected, offset, mask, *arguments)
    scale = (sampled @ v4.center_feature_scale_proj_weight.T + v4.center_feature_scale_proj_bias).sigmoid()
    scale = torch.cat([scale[..., :1].expand(2, 6, 7, 4), scale[..., 1:].expand(2, 6, 7, 4)], 3)
    expected = v4.output_proj(sampled * (1 - scale) + projected * scale)
    assert_close(v4(input.flatten(1, 2), shape=(6, 7)).unflatten(1, (6, 7)), expected)
    with pytest.raises(ValueError, match=r"DCNv4: input must have H \* W = 6 \* 6 pixels, got 42; pass shape"):
        v4(input.flatten(1, 2))


@pytest.mark.parametrize("module", [DCNv3, DCNv4])
def test_modules_have_the_attributes_and_the_reset_of_the_originals(module):
    """InternImage initializes all Linear layers of a network, and then calls _reset_parameters of every DCNv3."""
    layer = module(32, kernel_size=5, pad=2, group=4, offset_scale=2.0)
    assert (layer.kernel_size, layer.stride, layer.pad, layer.dilation) == (5, 1, 2, 1)
    assert (layer.channels, layer.group, layer.group_channels, layer.offset_scale) == (32, 4, 8, 2.0)
    predictor = layer.offset if module is DCNv3 else layer.offset_mask
    torch.nn.init.ones_(predictor.weight)
    layer._reset_parameters()
    assert not predictor.weight.any()


@pytest.mark.parametrize("module", [DCNv3, DCNv4])
@pytest.mark.parametrize("window", [{"stride": 2}, {"pad": 0}, {"kernel_size": 5}, {"kernel_size": 2}])
def test_modules_refuse_windows_whose_result_has_another_size(module, window):
    with pytest.raises(ValueError, match="the result must have the size of the input: stride must be 1 and 2"):
        module(16, group=4, **window)


@pytest.mark.parametrize("module", [DCNv3, DCNv4])
def test_modules_check_their_window(module):
    name = module.__name__
    with pytest.raises(TypeError, match=f"{name}: kernel_size must be an integer, got"):
        module(16, kernel_size=(3, 3), group=4)
    with pytest.raises(ValueError, match=f"{name}: dilation must be >= 1, got 0"):
        module(16, dilation=0, pad=0, group=4)
    with pytest.raises(ValueError, match=f"{name}: dw_kernel_size must be odd, got 4"):
        module(16, dw_kernel_size=4, group=4)
