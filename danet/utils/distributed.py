"""The few things a training needs to know of the other processes that ``torchrun`` started."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from danet.utils.errors import UserError


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Joins the processes of ``torchrun``, if it started this one, and yields the device of this process.

    gloo on the CPU, NCCL on CUDA devices, of which each process takes its own. ``device``: "auto" (CUDA
    where there is one), "cpu", "cuda" or "cuda:N".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: this torch ({torch.__version__}) finds no CUDA device")
    if "RANK" not in os.environ:
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # The others wait while rank 0 validates.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield chosen
        dist.barrier()  # a process that leaves early would cut the connections of those still at work
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    return dist.get_world_size() if _active() else 1


def mean(values: Tensor) -> Tensor:
    """Averages ``values`` over the processes, in place."""
    if _active():
        dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Averages gradients over the processes, in place, zero where only others have one.

    For parameters that not every process uses in every step; ``DistributedDataParallel`` would wait for all of them.
    """
    if not _active():
        return
    parameters = list(parameters)
    if not parameters:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    chosen = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
    if not chosen:
        return
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in chosen if parameter.grad is not None]  # all of them
    flat = mean(torch.cat([grad.flatten() for grad in grads]))
    for grad, values in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(values.view(grad.shape))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set in any process: all take the same turn."""
    if not _active():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def total(values: Tensor) -> Tensor:
    """Sums ``values`` over the processes, in place."""
    if _active():
        dist.all_reduce(values)
    return values


def gather(rows: Tensor) -> Tensor:
    """``rows [n, ...]`` of all processes, rank after rank; n may differ, the rest may not.

    For a loss that every process then computes as a whole: its gradient comes back to a process's own rows, times the
    number of processes, since gradients are averaged over the processes in the end.
    """
    return _Gather.apply(rows) if _active() else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
        counts[rank()] = len(rows)
        dist.all_reduce(counts)
        start = int(counts[: rank()].sum())
        ctx.own = slice(start, start + len(rows))
        # A sum with zeros: numbers of rows may differ, which `all_gather` does not allow.
        everything = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
        everything[ctx.own] = rows
        dist.all_reduce(everything)
        return everything

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[ctx.own] * world_size()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
