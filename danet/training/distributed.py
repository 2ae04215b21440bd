"""The few things a training needs to know of the other processes that ``torchrun`` started."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danet.errors import UserError


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


def total(values: Tensor) -> Tensor:
    """Sums ``values`` over the processes, in place."""
    if _active():
        dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """Averages ``values`` over the processes, in place."""
    return total(values).div_(world_size()) if _active() else values


def gather(rows: Tensor) -> Tensor:
    """``rows [n, ...]`` of all processes, rank after rank; n may differ, the rest may not.

    For a loss that every process then computes as a whole: its gradient comes back to a process's own rows, times the
    number of processes, since gradients are averaged over the processes in the end.
    """
    return _Gather.apply(rows) if _active() else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
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
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[ctx.own] * world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over the processes, in place, for parameters outside of DistributedDataParallel."""
    parameters = list(parameters)
    if not _active() or not parameters:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = mean(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set in any process: all take the same turn."""
    if not _active():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
