"""The shapes in which DCNv4 and ours are compared, and the call of ours."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

K, OFFSET_SCALE, MAX_OFFSET = 9, 2.0, 2.0


@dataclass(frozen=True)
class Shape:
    """A 3x3 window with stride 1 and padding 1 on [N, H, W, groups * channels] in float16, without softmax."""

    N: int
    H: int
    W: int
    groups: int
    channels: int  # of a group

    def __str__(self) -> str:
        return f"{self.N}x{self.H}x{self.W}x{self.groups}x{self.channels}"

    @property
    def offset_channels(self) -> int:
        """Channels of the tensor of offsets and mask: 27 for each group, rounded up to a multiple of 8."""
        return math.ceil(3 * K * self.groups / 8) * 8

    def bytes(self, direction: str) -> float:
        """The bytes that device memory must move at least: forward reads the input and the offsets and writes the
        output; backward also reads grad_output, and writes the gradients of the input and of the offsets."""
        forward = 2.0 * self.N * self.H * self.W * (2 * self.groups * self.channels + self.offset_channels)
        return forward if direction == "forward" else 2 * forward

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The input [N, H, W, C] and the offsets with the mask [N, H, W, P], as DCNv4's benchmarks make them: offsets
        between -MAX_OFFSET and MAX_OFFSET, mask values between 0 and 1."""
        torch.manual_seed(3)
        input = torch.rand(self.N, self.H, self.W, self.groups * self.channels, dtype=torch.float16)
        offset = (torch.rand(self.N, self.H, self.W, self.groups, 2 * K) * 2 - 1) * MAX_OFFSET
        mask = torch.rand(self.N, self.H, self.W, self.groups, K)
        packed = torch.zeros(self.N, self.H, self.W, self.offset_channels, dtype=torch.float16)
        packed[..., : 3 * K * self.groups] = torch.cat([offset, mask], -1).flatten(-2)
        return input, packed


# The first eight are the shapes of DCNv4's scripts test_dcnv4.py and test_dcnv4_bwd.py. The others are those of the
# tables of run times in the paper (https://arxiv.org/abs/2401.06197).
SHAPES = tuple(
    Shape(*sizes)
    for sizes in (
        (64, 56, 56, 4, 32),
        (64, 28, 28, 8, 32),
        (64, 14, 14, 16, 32),
        (64, 7, 7, 32, 32),
        (128, 8, 8, 4, 16),
        (64, 28, 28, 16, 16),
        (64, 14, 14, 32, 16),
        (64, 7, 7, 64, 16),
        (64, 14, 14, 24, 32),
        (1, 200, 320, 4, 32),
        (1, 100, 160, 8, 32),
        (1, 50, 80, 16, 32),
        (1, 25, 40, 32, 32),
        (1, 64, 64, 24, 32),
    )
)


def call_ours(shape: Shape, direction: str) -> None:
    """Call our operator in the emulator."""
    input, packed = (tensor.permute(0, 3, 1, 2) for tensor in shape.tensors())
    options = (shape.groups, 3, 3, 1, 1, 1, 1, 1, 1, OFFSET_SCALE, False, False)
    operators = torch.ops.danet_emulated
    if direction == "forward":
        operators.dcnv4(input, packed, *options)
    else:
        operators.dcnv4_backward(torch.randn_like(input), input, packed, *options, False)
