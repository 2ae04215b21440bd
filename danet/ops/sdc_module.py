"""The module SDC of DANet (section 3.1.1, equation 1), and the conversion of trained deformable layers.

The operator `sdc` is in danet/ops/sdc.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.ops.common import integer
from danet.ops.deform_conv import deform_conv2d
from danet.ops.sdc import sdc


class SDC(nn.Module):
    """Separable Deformable Convolution, which predicts its own offsets and mask (DANet, section 3.1.1, equation 1).

    A 3x3 depth-wise convolution, batch norm, ReLU and a 1x1 convolution predict 3*G*K channels: 2*G*K offsets, then
    G*K mask logits. The 1x1 convolution starts at zero (our decision, as in Deformable ConvNets), so that the untrained
    module takes the mean over an undeformed window before it applies `projection`.

    `projection` is a 1x1 convolution that computes sum_g w_g z_g of equation 1. z_g are the C / G channels that `sdc`
    returns for group g, and w_g is a C x (C / G) matrix. The matrices of all groups side by side are one C x C matrix,
    the weight of `projection`. It has no bias, because the equation has none.

    Args:
        channels: C, of input and output.
        groups: G, must divide C (4 in the paper).
        kernel_size: side of the square window, odd.

    Shape:
        [N, C, H, W] -> [N, C, H, W].

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if an argument is below 1, if groups does not divide channels, or if kernel_size is even.

    Example:
        >>> import torch
        >>> from danet.ops import SDC
        >>> SDC(8, groups=2)(torch.randn(1, 8, 32, 40)).shape
        torch.Size([1, 8, 32, 40])

    Migration from torchvision's `deform_conv2d`:
        `danet.ops.deform_conv2d` computes any of its layers with the same weights, and `SDC.from_deform_conv` converts
        a trained depth-wise layer together with the convolution that predicts its offsets. In a network that you train
        anew, the module SDC replaces three layers: that convolution, `DeformConv2d(channels, channels, kernel_size,
        padding=kernel_size // 2, groups=channels)`, and a 1x1 convolution after it.

        Let offset_groups be the number of offset groups of deform_conv2d, which it infers from the shape of `offset`.
        The operator `sdc(input, offset, m, groups=offset_groups, softmax=False)` equals `deform_conv2d(input, offset,
        torch.ones(C, 1, 3, 3), padding=1, mask=m)`: offset and mask have the same channels in the same order. In
        torchvision, m is usually a sigmoid; in SDC it is a softmax over the taps, which the operator computes. sdc has
        no weight tensor. To replace a depth-wise weight w that is equal for all channels of a group, pass m * w (w has
        one value per tap and group).
    """

    def __init__(self, channels: int, *, groups: int = 4, kernel_size: int = 3) -> None:
        super().__init__()
        if integer("SDC", "channels", channels, minimum=1) % integer("SDC", "groups", groups, minimum=1) != 0:
            raise ValueError(f"SDC: groups must divide channels = {channels}, got {groups}")
        if integer("SDC", "kernel_size", kernel_size, minimum=1) % 2 == 0:
            raise ValueError(f"SDC: kernel_size must be odd, got {kernel_size}")
        self.groups = groups
        self.kernel_size = kernel_size
        mask_channels = groups * kernel_size**2
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.predictor = nn.Conv2d(channels, 3 * mask_channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1, bias=False)
        for parameter in self.predictor.parameters():
            nn.init.zeros_(parameter)

    def forward(self, input: Tensor) -> Tensor:
        predicted = self.predictor(F.relu(self.norm(self.depthwise(input))))
        side, padding = self.kernel_size, self.kernel_size // 2
        mask_channels = self.groups * side * side
        offset, mask = predicted[:, : 2 * mask_channels], predicted[:, 2 * mask_channels :]
        if torch.jit.is_scripting():  # TorchScript cannot compile the checks of `sdc`
            sampled = torch.ops.danet.sdc(
                input, offset, mask, self.groups, side, side, 1, 1, padding, padding, 1, 1, 1.0, True, False
            )
        else:
            sampled = sdc(input, offset, mask, groups=self.groups, kernel_size=side, padding=padding)
        return self.projection(sampled)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, kernel_size={self.kernel_size}"

    @staticmethod
    def from_deform_conv(
        weight: Tensor, bias: Tensor | None, predictor: nn.Module, *, offset_groups: int = 1
    ) -> "DepthwiseDeformConv":
        """A trained depth-wise deformable layer, with the convolution that predicts its offsets, as one module.

        The result is exact: an SDC has one weight per tap and group, which its mask predicts, while a trained layer has
        one constant weight per tap and channel. The module that is returned therefore keeps these weights.

        Args:
            weight: [C, 1, k, k], k odd: that of `torchvision.ops.DeformConv2d(C, C, k, padding=k // 2, groups=C)` or of
                mmcv's `DeformConv2d` or `ModulatedDeformConv2d`.
            bias: [C], or None.
            predictor: a module from [N, C, H, W] to the 2*G*K offset channels, or to these and G*K channels whose
                sigmoid is the mask. If it has no `out_channels`, the first call checks the channels.
            offset_groups: G.

        Raises:
            ValueError: if weight is not depth-wise with an odd window, or if predictor has the wrong number of
                channels.

        Example:
            >>> import torch
            >>> from danet.ops import SDC
            >>> predictor = torch.nn.Conv2d(8, 27, 3, padding=1)  # 18 offsets and 9 mask channels
            >>> layer = SDC.from_deform_conv(torch.randn(8, 1, 3, 3), None, predictor)
            >>> layer(torch.randn(1, 8, 5, 6)).shape
            torch.Size([1, 8, 5, 6])
        """
        return DepthwiseDeformConv(weight, bias, predictor, offset_groups)


class DepthwiseDeformConv(nn.Module):
    """A depth-wise deformable convolution with its predictor of offsets and mask, from `SDC.from_deform_conv`.

    Shape:
        [N, C, H, W] -> [N, C, H, W].

    Example:
        >>> import torch
        >>> from danet.ops import SDC
        >>> predictor = torch.nn.Conv2d(8, 18, 3, padding=1)
        >>> type(SDC.from_deform_conv(torch.randn(8, 1, 3, 3), torch.zeros(8), predictor)).__name__
        'DepthwiseDeformConv'
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, predictor: nn.Module, offset_groups: int) -> None:
        super().__init__()
        op = "SDC.from_deform_conv"
        self.groups = integer(op, "offset_groups", offset_groups, minimum=1)
        if weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(f"{op}: weight must be depth-wise, [C, 1, k, k] with k odd, got {list(weight.shape)}")
        self.taps = self.groups * weight.shape[2] ** 2
        channels = getattr(predictor, "out_channels", None)
        self.has_mask = None if channels is None else self._has_mask(channels)  # None: unknown until the first call
        self.predictor = predictor
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        predicted = self.predictor(input)
        has_mask = self._has_mask(predicted.shape[1]) if self.has_mask is None else self.has_mask
        offset, mask = predicted[:, : 2 * self.taps], predicted[:, 2 * self.taps :]
        padding = self.weight.shape[2] // 2
        modulation = mask.sigmoid() if has_mask else None
        return deform_conv2d(input, offset, self.weight, self.bias, padding=padding, mask=modulation)

    def _has_mask(self, channels: int) -> bool:
        """Whether this number of predicted channels includes a mask."""
        if channels not in (2 * self.taps, 3 * self.taps):
            raise ValueError(
                f"SDC.from_deform_conv: predictor must have 2 or 3 times G * k * k = {self.taps} output channels, "
                f"got {channels}"
            )
        return channels == 3 * self.taps

    def extra_repr(self) -> str:
        return f"offset_groups={self.groups}, kernel_size={self.weight.shape[2]}"
