"""DANet in other runtimes: as ONNX, its operators as standard nodes."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danet.models import DANet

OPSET = 22
"""The first whose DeformConv takes what SDC needs in the types that it needs."""


class Predictions(nn.Module):
    """A fused network with plain tensors as results: the logits of the four levels, then their deltas."""

    def __init__(self, model: DANet) -> None:
        super().__init__()
        self.network = model.fused()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return (*output.logits, *output.deltas)


def export_onnx(network: nn.Module, images: Tensor, path: str | os.PathLike, *, names: Sequence[str]) -> None:
    """Writes ``network(images)`` as an ONNX file with results called ``names``; any batch and image size.

    Raises:
        ImportError: where onnx and onnxscript are not installed.
    """
    from onnxscript import opset22 as op

    def sdc(input: Any, offset: Any, mask: Any, groups: int, *options: Any) -> Any:
        *windows, offset_scale, softmax, remove_center = options
        kernel_size, stride, padding, dilation = windows[:2], windows[2:4], windows[4:6], windows[6:]
        if offset_scale != 1 or remove_center:
            raise ValueError("sdc: ONNX has no offset_scale and remove_center")
        C, K = input.shape[1], kernel_size[0] * kernel_size[1]
        if softmax:
            taps = op.Reshape(mask, op.Constant(value_ints=[0, groups, K, -1]))
            mask = op.Reshape(op.Softmax(taps, axis=2), op.Shape(mask))
        ones = op.Expand(op.Constant(value_float=1.0), op.Constant(value_ints=[C, 1, *kernel_size]))
        return op.DeformConv(
            input,
            ones,
            offset,
            None,
            mask,
            group=C,
            offset_group=groups,
            kernel_shape=kernel_size,
            strides=stride,
            pads=[*padding, *padding],
            dilations=dilation,
        )

    def softmax_gate(input: Any, logits: Any) -> Any:
        scale = op.Constant(value_float=float(input.shape[1]))
        return op.Mul(op.Mul(op.Softmax(logits, axis=1), input), scale)

    def rep_conv(input: Any, weight: Any, prepared: Any, bias: Any, stride: int, relu: bool, tf32: bool) -> Any:
        out = op.Conv(input, weight, bias, pads=[1, 1, 1, 1], strides=[stride, stride])
        return op.Relu(out) if relu else out

    operators = torch.ops.danet
    torch.onnx.export(
        network,
        (images,),
        os.fspath(path),
        input_names=["images"],
        output_names=list(names),
        dynamic_shapes=({0: torch.export.Dim("N"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},),
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        external_data=False,
        verbose=False,
        custom_translation_table={
            operators.sdc.default: sdc,
            operators.softmax_gate.default: softmax_gate,
            operators.rep_conv.default: rep_conv,
        },
    )
