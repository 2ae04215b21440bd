"""Helpers for training with several processes that ``torchrun`` started; with one process they do nothing."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from danet.utils.devices import find_device
from danet.utils.errors import FaultError, PeerError
from danet.utils.guard import explain

T = TypeVar("T")

CLOSED_CONNECTION = re.compile(r"(closed|reset) by peer|remote process (exited|has terminated)", re.IGNORECASE)
"""Messages of gloo and NCCL if another process has ended."""


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Initializes the process group if ``torchrun`` started this process, and yields the device of this process.

    The backend is gloo on the CPU and NCCL on CUDA, where every process uses the device of its local rank.

    Args:
        device: as ``find_device`` takes it.

    Raises:
        UserError: the device is unknown or not available.
        FaultError: another process has ended, so that this one cannot continue.

    Example:
        >>> with process_group("cpu") as device:
        ...     print(device, rank(), world_size())
        cpu 0 1
    """
    chosen = find_device(device)
    if "RANK" not in os.environ:
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # Long timeout: the other processes wait while rank 0 validates.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield chosen
        dist.barrier()  # leaving early would close the connections of processes that still run
    except RuntimeError as error:
        if not CLOSED_CONNECTION.search(str(error)):
            raise
        raise FaultError("another process of this run has ended; it has printed why, unless it was killed") from error
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Ends the block in all processes if it raises an exception in one of them.

    The exception is raised in its own process (the first one, if it is raised in several), and PeerError in the others,
    when they reach ``gather_objects`` or the end of the block. ``gather_objects`` must be the only communication
    between the processes in the block.

    Example:
        >>> with shared_errors():
        ...     print(gather_objects("a"))
        ['a']
    """
    try:
        yield
    except PeerError:
        raise  # all processes know already
    except Exception as error:
        if not CLOSED_CONNECTION.search(str(error)):
            with contextlib.suppress(RuntimeError):  # the other processes have ended meanwhile
                _exchange("error", explain(error)[0])
        raise
    else:
        _exchange("end", None)


def _exchange(kind: Literal["value", "error", "end"], own: Any) -> list[Any]:
    """Sends a value or the exit code of an error to all processes, and returns the values of all.

    Raises:
        PeerError: another process has sent an error, and this one has not, or only after that process by rank.
    """
    if not _active():
        return [own]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, (kind, own))
    failed = [number for number, (sent, _) in enumerate(found) if sent == "error"]
    if failed:
        dist.barrier()  # all processes end now; see ``process_group``
    if failed and failed[0] != rank():
        raise PeerError(found[failed[0]][1])
    return [value for _, value in found]


def rank() -> int:
    """Rank of this process; only rank 0 writes files."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() else 1


def mean(values: Tensor) -> Tensor:
    """Averages ``values`` over the processes, in place."""
    return total(values).div_(world_size()) if _active() else values


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Averages gradients over the processes, in place; a missing gradient counts as zero if another process has one.

    For parameters that some processes do not use in some steps, which ``DistributedDataParallel`` does not support.
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
    grads = [parameter.grad for parameter in chosen if parameter.grad is not None]  # all; for the type
    flat = mean(torch.cat([grad.flatten() for grad in grads]))
    for grad, values in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(values.view(grad.shape))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in any process; all processes get the same answer."""
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
    """Concatenates ``rows [n, ...]`` of all processes in the order of their ranks; only n may differ between them.

    Differentiable, for a loss that every process computes over the rows of all: each process gets the gradient of its
    own rows, times the number of processes, because gradients are averaged over processes later.
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
        # Sum the rows padded with zeros: `all_gather` does not allow different numbers of rows.
        gathered = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
        gathered[ctx.own] = rows
        dist.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[ctx.own] * world_size()


def gather_objects(own: T) -> list[T]:
    """An object of each process, in the order of their ranks; all processes get the same list.

    Raises:
        PeerError: another process has failed, see ``shared_errors``.

    Example:
        >>> gather_objects("a")
        ['a']
    """
    return _exchange("value", own)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
