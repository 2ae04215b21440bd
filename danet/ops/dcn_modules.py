"""The modules DCNv3 of InternImage and DCNv4, with the parameter names of the originals, so that checkpoints load.

DCNv3: https://arxiv.org/abs/2211.05778, DCNv4: https://arxiv.org/abs/2401.06197. The operators are in danet/ops/dcn.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.ops.common import flag, integer
from danet.ops.dcn import dcnv3, dcnv4

ACTIVATIONS = {"ReLU": nn.ReLU, "SiLU": nn.SiLU, "GELU": nn.GELU}


class _Permute(nn.Module):
    """[N, C, H, W] -> [N, H, W, C]. As a layer of its own, it keeps the numbering of the layers in checkpoints."""

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(0, 2, 3, 1)


class _Deformable(nn.Module):
    """What both modules have: the options, the window, and the optional scale between input and output features."""

    def __init__(
        self,
        name: str,
        channels: int,
        kernel_size: int,
        stride: int,
        pad: int,
        dilation: int,
        group: int,
        offset_scale: float,
        center_feature_scale: bool,
        remove_center: bool,
        dw_kernel_size: int | None,
    ) -> None:
        super().__init__()
        if integer(name, "channels", channels, minimum=1) % integer(name, "group", group, minimum=1) != 0:
            raise ValueError(f"{name}: group must divide channels = {channels}, got {group}")
        kernel_size, stride = (
            integer(name, "kernel_size", kernel_size, minimum=1),
            integer(name, "stride", stride, minimum=1),
        )
        pad, dilation = integer(name, "pad", pad, minimum=0), integer(name, "dilation", dilation, minimum=1)
        remove_center = flag(name, "remove_center", remove_center)
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"{name}: remove_center needs an odd kernel_size, got {kernel_size}")
        if stride != 1 or 2 * pad != dilation * (kernel_size - 1):
            raise ValueError(
                f"{name}: the result must have the size of the input: stride must be 1 and 2 * pad must equal "
                f"dilation * (kernel_size - 1) = {dilation * (kernel_size - 1)}, got stride {stride} and pad {pad}"
            )
        if dw_kernel_size is not None and integer(name, "dw_kernel_size", dw_kernel_size, minimum=1) % 2 == 0:
            raise ValueError(f"{name}: dw_kernel_size must be odd, got {dw_kernel_size}")
        # The originals have these attributes, too.
        self.channels, self.group, self.group_channels = channels, group, channels // group
        self.kernel_size, self.stride, self.pad, self.dilation = kernel_size, stride, pad, dilation
        self.offset_scale, self.remove_center, self.dw_kernel_size = offset_scale, remove_center, dw_kernel_size
        self.center_feature_scale = center_feature_scale
        self.taps = group * (kernel_size**2 - self.remove_center)
        sides = (kernel_size, kernel_size, stride, stride, pad, pad, dilation, dilation)
        self.options = (*sides, group, channels // group, offset_scale, 256, self.remove_center)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))

    def mix(self, query: Tensor, projected: Tensor, sampled: Tensor) -> Tensor:
        """Mixes the samples with the projected input, by one predicted weight per pixel and group."""
        if not self.center_feature_scale:
            return sampled
        logits = F.linear(query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
        scale = logits.sigmoid().repeat_interleave(self.channels // self.group, dim=-1)
        return torch.lerp(sampled, projected, scale)


class DCNv3(_Deformable):
    """InternImage's module DCNv3, with its arguments, parameter names and initial values.

    The softmax over the taps runs inside the operator.

    Args:
        channels: C, of input and output.
        kernel_size, stride, pad, dilation: of the square window. The result must have the size of the input: stride is
            1, and 2 * pad = dilation * (kernel_size - 1).
        dw_kernel_size: side of the depth-wise convolution that predicts offsets and mask; None: kernel_size.
        group: number of groups of channels, must divide channels.
        offset_scale: see `dcnv3`.
        act_layer: "GELU", "ReLU" or "SiLU".
        norm_layer: "LN" or "BN".
        center_feature_scale: mix the result with the projected input, by a predicted weight.
        remove_center: leave out the middle tap.

    Shape:
        [N, H, W, C] -> [N, H, W, C].

    Raises:
        TypeError, ValueError: if an argument is not of its kind or out of range.

    Example:
        >>> import torch
        >>> from danet.ops import DCNv3
        >>> DCNv3(64, group=4)(torch.randn(1, 14, 14, 64)).shape
        torch.Size([1, 14, 14, 64])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        window = (kernel_size, stride, pad, dilation)
        side = kernel_size if dw_kernel_size is None else dw_kernel_size
        super().__init__("DCNv3", channels, *window, group, offset_scale, center_feature_scale, remove_center, side)
        if act_layer not in ACTIVATIONS:
            raise ValueError(f"DCNv3: act_layer must be one of {', '.join(ACTIVATIONS)}, got {act_layer!r}")
        if norm_layer not in ("LN", "BN"):
            raise ValueError(f"DCNv3: norm_layer must be LN or BN, got {norm_layer!r}")
        norm = (
            nn.Sequential(_Permute(), nn.LayerNorm(channels, eps=1e-6))
            if norm_layer == "LN"
            else nn.Sequential(nn.BatchNorm2d(channels), _Permute())
        )
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, side, padding=(side - 1) // 2, groups=channels),
            norm,
            ACTIVATIONS[act_layer](),
        )
        self.offset = nn.Linear(channels, 2 * self.taps)
        self.mask = nn.Linear(channels, self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Sets the initial values again, as InternImage does after it has initialized all layers of a network."""
        _initialize([self.offset, self.mask], [self.input_proj, self.output_proj])

    def forward(self, input: Tensor) -> Tensor:
        projected = self.input_proj(input)
        query = self.dw_conv(input.permute(0, 3, 1, 2))
        sampled = dcnv3(projected, self.offset(query), self.mask(query), *self.options, softmax=True)
        return self.output_proj(self.mix(query, projected, sampled))


class DCNv4(_Deformable):
    """DCNv4's module, with its arguments, parameter names and initial values.

    Args:
        channels: C, of input and output.
        kernel_size, stride, pad, dilation: of the square window. The result must have the size of the input: stride is
            1, and 2 * pad = dilation * (kernel_size - 1).
        group: number of groups of channels, must divide channels.
        offset_scale: see `dcnv3`.
        dw_kernel_size: side of a depth-wise convolution before offsets and mask are predicted; None: no such layer.
        center_feature_scale: mix the result with the projected input, by a predicted weight.
        remove_center: leave out the middle tap.
        output_bias: whether `output_proj` has a bias.
        without_pointwise: leave out `value_proj` and `output_proj`.
        further: other arguments of the original, which have no effect.

    Shape:
        input [N, H*W, C] and shape (H, W) -> [N, H*W, C]. Without shape, H = W.

    Raises:
        TypeError, ValueError: if an argument is not of its kind or out of range.

    Example:
        >>> import torch
        >>> from danet.ops import DCNv4
        >>> DCNv4(64, group=4)(torch.randn(1, 14 * 20, 64), shape=(14, 20)).shape
        torch.Size([1, 280, 64])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        **further: Any,
    ) -> None:
        window = (kernel_size, stride, pad, dilation)
        scales = (offset_scale, center_feature_scale)
        super().__init__("DCNv4", channels, *window, group, *scales, remove_center, dw_kernel_size)
        self.without_pointwise = without_pointwise
        self.offset_mask_dw = (
            None
            if dw_kernel_size is None
            else nn.Conv2d(channels, channels, dw_kernel_size, padding=(dw_kernel_size - 1) // 2, groups=channels)
        )
        # The original pads the channels of offsets and mask to a multiple of 8.
        self.offset_mask = nn.Linear(channels, -(-3 * self.taps // 8) * 8)
        self.value_proj = None if without_pointwise else nn.Linear(channels, channels)
        self.output_proj = None if without_pointwise else nn.Linear(channels, channels, bias=output_bias)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Sets the initial values again."""
        _initialize([self.offset_mask], [m for m in (self.value_proj, self.output_proj) if m is not None])

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        N, L, C = input.shape
        H, W = shape if shape is not None else (int(L**0.5), int(L**0.5))
        if H * W != L:
            raise ValueError(f"DCNv4: input must have H * W = {H} * {W} pixels, got {L}; pass shape=(H, W)")
        query = input.view(N, H, W, C)
        projected = query if self.value_proj is None else self.value_proj(query)
        predictor_input = query
        if self.offset_mask_dw is not None:
            predictor_input = self.offset_mask_dw(query.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        sampled = dcnv4(projected, self.offset_mask(predictor_input), *self.options)
        mixed = self.mix(sampled, projected, sampled).flatten(1, 2)
        return mixed if self.output_proj is None else self.output_proj(mixed)


def _initialize(predictors: list[nn.Linear], projections: list[nn.Linear]) -> None:
    """Offsets and masks start at zero, projections as Xavier et al. propose."""
    for layer in predictors:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in projections:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
