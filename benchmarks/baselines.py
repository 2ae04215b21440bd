"""Baselines: the implementations that a user would otherwise write or install, measured beside our operators."""

import importlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sdc_grid_sample(input: Tensor, offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """SDC with a 3x3 kernel and padding 1: one ``F.grid_sample`` per tap, the usual eager implementation."""
    N, C, H, W = input.shape
    image = input.contiguous().view(N * groups, C // groups, H, W)
    offset = offset.reshape(N * groups, 9, 2, H, W)
    weight = mask.reshape(N * groups, 9, H, W).softmax(1)
    ys, xs = torch.meshgrid(torch.arange(H, dtype=input.dtype), torch.arange(W, dtype=input.dtype), indexing="ij")
    out = torch.zeros_like(image)
    for k in range(9):
        y, x = ys + (k // 3 - 1) + offset[:, k, 0], xs + (k % 3 - 1) + offset[:, k, 1]
        grid = torch.stack([(2 * x + 1) / W - 1, (2 * y + 1) / H - 1], dim=-1)
        out = out + weight[:, k : k + 1] * F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return out.view(N, C, H, W)


def ms_deform_attn_grid_sample(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Multi-scale deformable attention with one ``F.grid_sample`` per level, the usual eager implementation."""
    N, _, M, D = value.shape
    Q, L, P = weights.shape[1], weights.shape[3], weights.shape[4]
    samples = []
    for level, (pixels, (H, W)) in enumerate(zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)):
        image = pixels.permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).reshape(N * M, Q, P, 2) - 1
        samples.append(F.grid_sample(image, grid.to(value.dtype), padding_mode="zeros", align_corners=False))
    weighted = torch.cat(samples, -1) * weights.to(value.dtype).transpose(1, 2).reshape(N * M, 1, Q, L * P)
    return weighted.sum(-1).view(N, M * D, Q).transpose(1, 2).contiguous()


def lcdc_shifted(input: Tensor, weight: Tensor) -> Tensor:
    """sigmoid(lcdc(input)) * input computed with a padded copy and shifted multiply-adds along the innermost axis."""
    rows = input.permute(0, 2, 3, 1)
    C, k = rows.shape[-1], weight.shape[1]
    padded = F.pad(rows, (k // 2, k // 2))
    total = padded[..., :C] * weight[0, 0]
    for j in range(1, k):
        total = torch.addcmul(total, padded[..., j : j + C], weight[0, j])
    return (torch.sigmoid(total) * rows).permute(0, 3, 1, 2)


def lcdc_conv1d(input: Tensor, weight: Tensor) -> Tensor:
    """The same function computed with ``F.conv1d``, every position being one row."""
    N, C, H, W = input.shape
    rows = input.permute(0, 2, 3, 1).reshape(N * H * W, 1, C)
    total = F.conv1d(rows, weight.view(1, 1, -1), padding=weight.shape[1] // 2)
    return (torch.sigmoid(total) * rows).view(N, H, W, C).permute(0, 3, 1, 2)


def softmax_gate_eager(input: Tensor, logits: Tensor) -> Tensor:
    """``softmax_gate`` in three eager operations."""
    return torch.softmax(logits, dim=1) * input * input.shape[1]


def rep_conv_eager(input: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """``F.conv2d`` with bias (oneDNN or cuDNN), then ReLU in place."""
    return F.relu_(F.conv2d(input, weight, bias, stride=stride, padding=1))


def onnxruntime_deform_conv(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor | None = None
) -> Callable[[], Tensor] | None:
    """ONNX Runtime's DeformConv, 3x3 with padding 1 on the CPU.

    weight: [C_out, C / groups, 3, 3]; None: depth-wise with weights of one, which is SDC without the softmax, and so
    favors ONNX Runtime.

    Returns None if onnx or onnxruntime is not installed, or if the tensors are not on the CPU.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    if not input.is_cpu:
        return None
    weight = torch.ones(input.shape[1], 1, 3, 3) if weight is None else weight
    tensors = {"X": input, "W": weight, "offset": offset, "mask": mask}
    arrays = {name: value.contiguous().numpy() for name, value in tensors.items()}
    node = onnx.helper.make_node(
        "DeformConv",
        ["X", "W", "offset", "", "mask"],
        ["Y"],
        group=input.shape[1] // weight.shape[1],
        offset_group=offset.shape[1] // 18,
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in arrays.items()]
    shape = (input.shape[0], weight.shape[0], *input.shape[2:])
    result = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([node], "deform_conv", values, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow the other baselines.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, arrays)[0])


def torchvision_deform_conv(dtype: torch.dtype, groups: int) -> Callable[..., Tensor] | None:
    """torchvision's deform_conv2d, depth-wise with weights of one, after a separate softmax: the same function as SDC.

    Returns None if torchvision is not installed or does not support ``dtype``.
    """
    if (deform_conv2d := torchvision_deform_conv2d(dtype)) is None:
        return None

    def function(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        N, _, H, W = mask.shape
        m = mask.reshape(N, groups, -1, H, W).softmax(2).reshape(mask.shape)
        weight = torch.ones(input.shape[1], 1, 3, 3, dtype=dtype, device=input.device)
        return deform_conv2d(input, offset.contiguous(), m, weight)

    return function


def torchvision_deform_conv2d(dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """torchvision's deform_conv2d of input, offset, mask and weight, with padding 1.

    Returns None if torchvision is not installed or does not support ``dtype``.
    """
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        return None
    if dtype == torch.bfloat16:
        return None
    return lambda input, offset, mask, weight: deform_conv2d(input, offset, weight, padding=1, mask=mask)


def torchvision_dense(weight: Tensor, groups: int) -> Callable[..., Tensor] | None:
    """torchvision's modulated deform_conv2d with a dense weight [C_out, C, 3, 3].

    SDC followed by a 1x1 convolution replaces it in networks, but it is another function with more parameters.
    Returns None if torchvision is not installed.
    """
    if (deform_conv2d := torchvision_deform_conv2d(weight.dtype)) is None:
        return None

    def function(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(input, offset.contiguous(), mask.sigmoid(), weight)

    return function


def dcn_offset(offset: Tensor, groups: int) -> Tensor:
    """Reorders SDC's offsets for DCNv3 and DCNv4.

    From [N, G*9*2, H, W] with row-major taps and (y, x) pairs to [N, H, W, G, 9*2] with column-major taps and (x, y)
    pairs.
    """
    N, _, H, W = offset.shape
    return offset.view(N, groups, 3, 3, 2, H, W).transpose(2, 3).flip(4).permute(0, 5, 6, 1, 2, 3, 4).flatten(4)


def dcn_mask(mask: Tensor, groups: int) -> Tensor:
    """Reorders SDC's mask [N, G*9, H, W] for DCNv3 and DCNv4: [N, H, W, G, 9], column-major taps."""
    N, _, H, W = mask.shape
    return mask.view(N, groups, 3, 3, H, W).transpose(2, 3).permute(0, 4, 5, 1, 2, 3).flatten(4)


def dcnv4(module: str, leaves: list[Tensor], groups: int, offset_scale: float) -> tuple[Callable[..., Tensor], list]:
    """``DCNv4Function`` of an installed DCNv4 and its input tensors.

    Args:
        module: where the function is, such as ``DCNv4.functions``.
        leaves: input, offset and mask in SDC's layout.

    Raises:
        ImportError: the module is not installed.
        AttributeError: the module has no ``DCNv4Function``.
    """
    function = importlib.import_module(module).DCNv4Function.apply
    input, offset, mask = leaves
    packed = torch.cat([dcn_offset(offset, groups), dcn_mask(mask, groups)], -1).flatten(3)
    packed = F.pad(packed, (0, math.ceil(packed.shape[-1] / 8) * 8 - packed.shape[-1]))
    options = (3, 3, 1, 1, 1, 1, 1, 1, groups, input.shape[1] // groups, offset_scale, 256, False)
    return lambda *t: function(*t, *options), [input.permute(0, 2, 3, 1).contiguous(), packed]


def dcnv3(module: str, leaves: list[Tensor], groups: int, offset_scale: float) -> tuple[Callable[..., Tensor], list]:
    """``DCNv3Function`` of an installed DCNv3 (such as InternImage's ``ops_dcnv3.functions``); see ``dcnv4``."""
    function = importlib.import_module(module).DCNv3Function.apply
    input, offset, mask = leaves
    options = (3, 3, 1, 1, 1, 1, 1, 1, groups, input.shape[1] // groups, offset_scale, 256, False)
    tensors = [input.permute(0, 2, 3, 1), dcn_offset(offset, groups).flatten(3), dcn_mask(mask, groups).flatten(3)]
    return lambda *t: function(*t, *options), [value.contiguous() for value in tensors]


INSTALLED = {"dcnv3": dcnv3, "dcnv4": dcnv4}
"""Baselines that ``--baseline NAME=MODULE`` adds if the user has installed them."""
