"""Replacements for the multi-scale deformable attention of other libraries: transformers, mmcv, Deformable DETR.

They all compute `danet.ops.ms_deform_attn`. `replace_ms_deform_attn(model)` puts it into a model of transformers or
mmcv in one line. On the kernels hub, transformers finds the class `MultiScaleDeformableAttention` of this module by its
name.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from danet.ops.ms_deform_attn import ms_deform_attn


class MultiScaleDeformableAttention(nn.Module):
    """Replaces the layer of the same name in the models of transformers, such as Deformable DETR and RT-DETR.

    Arguments and result are those of `danet.ops.ms_deform_attn`. The layer has no parameters.

    Example:
        >>> import torch
        >>> from danet.ops import MultiScaleDeformableAttention
        >>> shapes = torch.tensor([[8, 10], [4, 5]])
        >>> value, locations = torch.randn(1, 100, 8, 4), torch.rand(1, 9, 8, 2, 4, 2)
        >>> weights = torch.rand(1, 9, 8, 2, 4)
        >>> layer = MultiScaleDeformableAttention()
        >>> layer(value, shapes, shapes.tolist(), torch.tensor([0, 80]), locations, weights, 64).shape
        torch.Size([1, 9, 32])
    """

    # The kernels hub asks for these.
    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Any,
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """[N, Q, M*D]; value_spatial_shapes_list repeats value_spatial_shapes, and is not used."""
        return ms_deform_attn(value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights)


class MultiScaleDeformableAttnFunction:
    """Drop-in replacement for mmcv's class of the same name, and for Deformable DETR's `MSDeformAttnFunction`.

    Example:
        >>> import torch
        >>> from danet.ops import MultiScaleDeformableAttnFunction
        >>> shapes, starts = torch.tensor([[8, 10], [4, 5]]), torch.tensor([0, 80])
        >>> value, locations = torch.randn(1, 100, 8, 4), torch.rand(1, 9, 8, 2, 4, 2)
        >>> weights = torch.rand(1, 9, 8, 2, 4)
        >>> MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64).shape
        torch.Size([1, 9, 32])
    """

    apply = staticmethod(ms_deform_attn)


MSDeformAttnFunction = MultiScaleDeformableAttnFunction


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Drop-in replacement for the function of the same name in transformers (Mask2Former, OneFormer).

    It also replaces mmcv's `multi_scale_deformable_attn_pytorch`. Arguments, result and errors are those of
    `danet.ops.ms_deform_attn`; the levels follow one another.

    Example:
        >>> import torch
        >>> from danet.ops import multi_scale_deformable_attention
        >>> value, locations = torch.randn(1, 100, 8, 4), torch.rand(1, 9, 8, 2, 4, 2)
        >>> weights = torch.rand(1, 9, 8, 2, 4)
        >>> multi_scale_deformable_attention(value, [(8, 10), (4, 5)], locations, weights).shape
        torch.Size([1, 9, 32])
    """
    return ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


REPLACED_FUNCTIONS = {
    "multi_scale_deformable_attention": multi_scale_deformable_attention,
    "multi_scale_deformable_attn_pytorch": multi_scale_deformable_attention,
    "MultiScaleDeformableAttnFunction": MultiScaleDeformableAttnFunction,
}
"""Names that modeling modules of transformers and mmcv call, with their replacements."""


def replace_ms_deform_attn(model: nn.Module) -> int:
    """Make a model of transformers or mmcv compute its multi-scale deformable attention with `danet.ops`.

    Layers named `MultiScaleDeformableAttention` (transformers: Deformable DETR, RT-DETR, Grounding DINO and others) are
    replaced in this model only. Models that call a function instead (transformers: Mask2Former, OneFormer; mmcv) have
    it replaced in the Python module that defines their layers, and so for all models of that module. Weights stay
    valid.

    Returns:
        The number of replaced layers and functions; 0 if the model has no such attention, or if it is replaced already.

    Example:
        >>> from torch import nn
        >>> from danet.ops import replace_ms_deform_attn
        >>> replace_ms_deform_attn(nn.Linear(2, 2))  # has no deformable attention
        0
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_replaceable(type(child)):
                setattr(parent, name, MultiScaleDeformableAttention().train(child.training))
                count += 1
        module_name = type(parent).__module__
        if module_name.partition(".")[0] not in ("transformers", "mmcv"):
            continue
        module = sys.modules[module_name]
        for name, replacement in REPLACED_FUNCTIONS.items():
            if getattr(module, name, replacement) is not replacement:
                setattr(module, name, replacement)
                count += 1
    return count


def _is_replaceable(layer: type[nn.Module]) -> bool:
    """Whether a class is the layer of transformers. mmcv has one of the same name, with parameters and a function."""
    return (
        layer.__name__ == "MultiScaleDeformableAttention"
        and layer is not MultiScaleDeformableAttention
        and "value_spatial_shapes_list" in inspect.signature(layer.forward).parameters
    )
