"""Weighted sums of table rows, four neighbors at a time: a bilinear operator in torch's own primitives.

An image in channels-last memory is a table with one row per pixel. A bilinear sample reads the rows of four neighboring
pixels: row `base`, and `base` plus three constant steps. A weighted sum of many samples is then an embedding bag, for
which torch has a fused loop on every device, so that the samples themselves are never stored.

    gather:   out[b]           = sum_{i < 4, j} weight[i, b, j] * table[base[b, j] + steps[i]]
    project:  weight[i, b, j]  = sum_d out[b, d] * table[base[b, j] + steps[i], d]
    scatter:  table[r]         = sum_{i, b, j: base[b, j] + steps[i] = r} weight[i, b, j] * out[b]

These are the three contractions of one trilinear form: the derivatives of each are the other two, to any order. In
forward mode, the tangent of a contraction is the sum of two calls, each with the tangent in place of one operand.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Steps = tuple[int, int, int, int]

PROJECT_CHUNK_BAGS = 8192  # number of bags whose rows `project` copies at once


def weighted_gather(table: Tensor, weight: Tensor, base: Tensor, steps: Steps) -> Tensor:
    """The contraction `gather`: table [R, D], weight [4, B, J], base [B, J] (int32 or int64) -> [B, D].

    The steps are in ascending order, and the first one is 0.
    """
    return _Gather.apply(table, weight, base, steps)


def _vmap_by_loop(function: Any, info: Any, in_dims: tuple, arguments: tuple) -> tuple[Tensor, int]:
    """The vmap rule of a contraction: one call per element of the vmap dimension."""
    results = [
        function.apply(
            *(
                value.select(dim, i) if isinstance(value, Tensor) and dim is not None else value
                for value, dim in zip(arguments, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    return torch.stack(results), 0


def _tangent(function: Any, operands: tuple, tangents: tuple, rest: tuple) -> Tensor | None:
    """The tangent of a contraction, which is linear in each of its two operands; None if both tangents are."""
    terms = [
        function.apply(*operands[:i], tangent, *operands[i + 1 :], *rest)
        for i, tangent in enumerate(tangents)
        if tangent is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(table: Tensor, weight: Tensor, base: Tensor, steps: Steps) -> Tensor:
        out = F.embedding_bag(base, table, mode="sum", per_sample_weights=weight[0])
        for i in (1, 2, 3):
            out += F.embedding_bag(base + steps[i], table, mode="sum", per_sample_weights=weight[i])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        table, weight, base, ctx.steps = inputs
        ctx.save_for_backward(table, weight, base)
        ctx.save_for_forward(table, weight, base)

    @staticmethod
    def jvp(ctx: Any, table_tangent: Tensor | None, weight_tangent: Tensor | None, *_: Any) -> Tensor | None:
        table, weight, base = ctx.saved_tensors
        return _tangent(_Gather, (table, weight), (table_tangent, weight_tangent), (base, ctx.steps))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap_by_loop(_Gather, info, in_dims, arguments)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        table, weight, base = ctx.saved_tensors
        grad_table = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_table = _Scatter.apply(grad_out, weight, base, ctx.steps, table.shape[0])
        if ctx.needs_input_grad[1]:
            grad_weight = _Project.apply(grad_out, table, base, ctx.steps)
        return grad_table, grad_weight, None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(out: Tensor, table: Tensor, base: Tensor, steps: Steps) -> Tensor:
        B, J = base.shape
        weight = out.new_empty(4, B, J)
        for start in range(0, B, PROJECT_CHUNK_BAGS):
            part = slice(start, start + PROJECT_CHUNK_BAGS)
            for i, step in enumerate(steps):
                rows = table.index_select(0, (base[part] + step).flatten()).view(*base[part].shape, -1)
                torch.bmm(rows, out[part].unsqueeze(2), out=weight[i, part].unsqueeze(2))
        return weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        out, table, base, ctx.steps = inputs
        ctx.save_for_backward(out, table, base)
        ctx.save_for_forward(out, table, base)

    @staticmethod
    def jvp(ctx: Any, out_tangent: Tensor | None, table_tangent: Tensor | None, *_: Any) -> Tensor | None:
        out, table, base = ctx.saved_tensors
        return _tangent(_Project, (out, table), (out_tangent, table_tangent), (base, ctx.steps))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap_by_loop(_Project, info, in_dims, arguments)

    @staticmethod
    def backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        out, table, base = ctx.saved_tensors
        grad_out = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_out = _Gather.apply(table, grad_weight, base, ctx.steps)
        if ctx.needs_input_grad[1]:
            grad_table = _Scatter.apply(out, grad_weight, base, ctx.steps, table.shape[0])
        return grad_out, grad_table, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(out: Tensor, weight: Tensor, base: Tensor, steps: Steps, R: int) -> Tensor:
        J = base.shape[1]
        # Sort the samples by their target row, so that they are bags again. Each row then has one writer, which makes
        # the result independent of the number of threads.
        order = torch.sort(base.flatten(), stable=True)[1].to(base.dtype)
        counts = torch.bincount(base.flatten(), minlength=R)
        starts = (counts.cumsum(0) - counts).to(base.dtype)
        source = order // J
        table = out.new_zeros(R, out.shape[1])
        for i, step in enumerate(steps):
            weights = weight[i].flatten().index_select(0, order)
            rows = F.embedding_bag(source, out, starts, mode="sum", per_sample_weights=weights)
            table[step:] += rows[: R - step]
        return table

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        out, weight, base, ctx.steps, ctx.rows = inputs
        ctx.save_for_backward(out, weight, base)
        ctx.save_for_forward(out, weight, base)

    @staticmethod
    def jvp(ctx: Any, out_tangent: Tensor | None, weight_tangent: Tensor | None, *_: Any) -> Tensor | None:
        out, weight, base = ctx.saved_tensors
        return _tangent(_Scatter, (out, weight), (out_tangent, weight_tangent), (base, ctx.steps, ctx.rows))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmap_by_loop(_Scatter, info, in_dims, arguments)

    @staticmethod
    def backward(ctx: Any, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        out, weight, base = ctx.saved_tensors
        grad_out = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_out = _Gather.apply(grad_table, weight, base, ctx.steps)
        if ctx.needs_input_grad[1]:
            grad_weight = _Project.apply(out, grad_table, base, ctx.steps)
        return grad_out, grad_weight, None, None, None
