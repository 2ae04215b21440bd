"""An encoder layer of Deformable DETR (https://arxiv.org/abs/2010.04159) with ms_deform_attn, on two feature maps."""

import math

import torch
from torch import Tensor, nn

from danet.ops import ms_deform_attn


class DeformableAttention(nn.Module):
    """Queries [N, Q, C] that sample P points of every level of the value [N, S, C], around reference points (x, y)."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offset_predictor = nn.Linear(channels, heads * levels * points * 2)
        self.weight_predictor = nn.Linear(channels, heads * levels * points)
        self.value_projection, self.output_projection = nn.Linear(channels, channels), nn.Linear(channels, channels)
        # The points of a head start at increasing distances in its own direction, as in the paper.
        angle = torch.arange(heads) * 2 * math.pi / heads
        direction = torch.stack([angle.cos(), angle.sin()], -1).view(heads, 1, 1, 2)
        distance = torch.arange(1, points + 1).view(points, 1)
        nn.init.zeros_(self.offset_predictor.weight)
        with torch.no_grad():
            self.offset_predictor.bias.copy_((direction * distance).expand(heads, levels, points, 2).flatten())

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
        N, Q, _ = query.shape
        points = (N, Q, self.heads, self.levels, self.points)
        offset = self.offset_predictor(query).view(*points, 2) / shapes.flip(1).view(self.levels, 1, 2)  # in pixels
        logits = self.weight_predictor(query).view(points)
        value = self.value_projection(value).unflatten(2, (self.heads, -1))
        locations = reference.view(1, Q, 1, 1, 1, 2) + offset
        return self.output_projection(ms_deform_attn(value, shapes, starts, locations, logits, softmax=True))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each with norm and shortcut."""

    def __init__(self, channels: int, heads: int, levels: int, points: int = 4) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x + position, x, reference, shapes, starts))
        return self.norm2(x + self.mlp(x))


class Encoder(nn.Module):
    """Feature maps [N, C, H, W] of several resolutions -> their pixels [N, S, C], one level after another."""

    def __init__(self, channels: int = 32, heads: int = 4, levels: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, levels) for _ in range(layers))

    def forward(self, maps: list[Tensor]) -> Tensor:
        shapes = torch.tensor([features.shape[2:] for features in maps], device=maps[0].device)
        counts = shapes.prod(1)
        starts = counts.cumsum(0) - counts
        x = torch.cat([features.flatten(2).transpose(1, 2) for features in maps], 1)
        # Every pixel attends around its own center.
        centers = [
            torch.cartesian_prod(*((torch.arange(n, device=x.device) + 0.5) / n for n in features.shape[2:])).flip(1)
            for features in maps
        ]
        position = self.level_embedding.repeat_interleave(counts, 0)
        for layer in self.layers:
            x = layer(x, position, torch.cat(centers), shapes, starts)
        return x


def build() -> tuple[nn.Module, list[Tensor]]:
    """A small encoder, and an example input."""
    return Encoder(), [torch.randn(2, 32, 16, 20), torch.randn(2, 32, 8, 10)]
