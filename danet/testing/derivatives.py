"""Results and derivatives of a function of tensors, for fixed random directions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = Callable[..., Tensor]


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def directions_like(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Random tensors of these shapes, with the same values for every dtype except for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in tensors]


def run(function: Function, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result, and the gradients of the tensors for a fixed gradient of the result."""
    leaves = leaves_of(tensors)
    out = function(*leaves)
    (direction,) = directions_like([out], seed=0)
    grads = torch.autograd.grad(out, leaves, direction, allow_unused=True, materialize_grads=True)
    return out.detach(), grads


def second_derivatives(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor, the gradient of the sum of all first gradients times fixed directions."""
    leaves = leaves_of(tensors)
    out = function(*leaves)
    unused: Any = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(out, leaves, directions_like([out], seed=0), create_graph=True, **unused)
    pairs = [(g, d) for g, d in zip(first, directions_like(first, seed=1), strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in tensors]
    return list(torch.autograd.grad([g for g, _ in pairs], leaves, [d for _, d in pairs], **unused))


def tangents(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor, the tangent of the result if this tensor alone has a fixed tangent."""
    results = []
    for i, direction in enumerate(directions_like(tensors, seed=0)):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, direction) if j == i else t for j, t in enumerate(tensors)]
            out, tangent = forward_ad.unpack_dual(function(*duals))
            results.append(torch.zeros_like(out) if tangent is None else tangent)
    return results
