"""Operators of DANet (https://doi.org/10.1145/3581783.3612146), usable in any network. They need only torch.

Every operator has a public function, which runs compiled kernels, and a reference in plain PyTorch with the same
signature (`<name>_reference`), which runs anywhere and supports derivatives of any order.
`torch.func.hessian` works; `torch.autograd.functional.hessian` works only without `vectorize=True`.

Example:
    >>> import torch
    >>> from danet.ops import SDC
    >>> SDC(16)(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 16, 8, 8])
"""

from danet.ops.dcn import (
    DCNv3Function,
    DCNv4Function,
    dcnv3,
    dcnv3_core_pytorch,
    dcnv3_reference,
    dcnv4,
    dcnv4_reference,
)
from danet.ops.dcn_modules import DCNv3, DCNv4
from danet.ops.deform_conv import deform_conv2d, deform_conv2d_reference
from danet.ops.fused_safem import (
    PreparedSafem,
    acfa_weight,
    acfa_weight_reference,
    prepare_safem,
    safem,
    safem_reference,
)
from danet.ops.info import describe, info
from danet.ops.layers import (
    MSDeformAttnFunction,
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attention,
    replace_ms_deform_attn,
)
from danet.ops.lcdc import lcdc, lcdc_kernel_size, lcdc_reference
from danet.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference
from danet.ops.rep_conv import PreparedRepConv, prepare_rep_conv, rep_conv, rep_conv_reference
from danet.ops.sdc import sdc, sdc_reference
from danet.ops.sdc_module import SDC, DepthwiseDeformConv
from danet.ops.softmax_gate import softmax_gate, softmax_gate_reference

__all__ = [
    "SDC",
    "DCNv3",
    "DCNv3Function",
    "DCNv4",
    "DCNv4Function",
    "DepthwiseDeformConv",
    "MSDeformAttnFunction",
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "PreparedRepConv",
    "PreparedSafem",
    "acfa_weight",
    "acfa_weight_reference",
    "dcnv3",
    "dcnv3_core_pytorch",
    "dcnv3_reference",
    "dcnv4",
    "dcnv4_reference",
    "deform_conv2d",
    "deform_conv2d_reference",
    "describe",
    "info",
    "lcdc",
    "lcdc_kernel_size",
    "lcdc_reference",
    "ms_deform_attn",
    "ms_deform_attn_reference",
    "multi_scale_deformable_attention",
    "prepare_rep_conv",
    "prepare_safem",
    "rep_conv",
    "rep_conv_reference",
    "replace_ms_deform_attn",
    "safem",
    "safem_reference",
    "sdc",
    "sdc_reference",
    "softmax_gate",
    "softmax_gate_reference",
]
