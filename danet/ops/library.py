"""The compiled libraries: loads them beside this file, says why one is missing, and joins what is common to their
operators' Python sides.

The schemas and CPU kernels are in libdanet.so. Without it, in a source checkout that was not built, every operator is
its plain-PyTorch reference. The CUDA kernels are in libdanet_cuda.so, loaded where torch has CUDA; without it the
operators are their references on CUDA tensors, of which the first call warns.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

CPU_LIBRARY = Path(os.environ.get("DANET_LIBRARY") or Path(__file__).with_name("libdanet.so"))
"""DANET_LIBRARY takes another build, such as one with sanitizers."""

CAPABILITIES = ("baseline", "AVX2 and FMA", "AVX-512")
"""Names of what torch.ops.danet.cpu_capability() returns."""


def _load() -> str | None:
    """Loads the CPU library; returns why it could not be."""
    if hasattr(torch.ops.danet, "cpu_capability"):  # torch would end the process
        return "another danet in this process, of another path, has them compiled; import one of them alone"
    if not CPU_LIBRARY.exists():
        return "the kernels are not built; build them with: pip install -e . --no-build-isolation"
    try:
        torch.ops.load_library(CPU_LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{CPU_LIBRARY.name} cannot be loaded: {str(error).splitlines()[0]}"
    return None


WHY_NOT = _load()
"""Why the operators are their references; None where they are compiled."""

CUDA_LIBRARY = Path(__file__).with_name("libdanet_cuda.so")


def cuda_fact(name: str) -> str:
    """What libdanet_cuda.so was built with: its "version" of CUDA, its "architectures"."""
    function = getattr(ctypes.CDLL(str(CUDA_LIBRARY)), f"danet_cuda_{name}")
    function.restype = ctypes.c_char_p
    return function().decode()


def _driver_version() -> int:
    """The major version of CUDA that the driver knows; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value // 1000


def _load_cuda() -> str | None:
    """Loads the CUDA library; returns why it could not be."""
    if WHY_NOT is not None:
        return WHY_NOT
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not CUDA_LIBRARY.exists():
        return "the CUDA kernels are not built"
    try:
        built, driver = cuda_fact("version"), _driver_version()
        if driver and driver < int(built.partition(".")[0]):
            return f"the driver knows CUDA {driver}, the kernels are built for CUDA {built}"
        torch.ops.load_library(CUDA_LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{CUDA_LIBRARY.name} cannot be loaded: {str(error).splitlines()[0]}"
    return None


WHY_NOT_CUDA = _load_cuda()
"""Why the operators are their references on CUDA tensors; None where they are compiled."""

if WHY_NOT is not None:
    warnings.warn(f"danet.ops: slow reference operators, {WHY_NOT}", RuntimeWarning, stacklevel=2)


def has_kernel(tensor: Tensor) -> bool:
    """Whether operators on this tensor's device are compiled; meta tensors stand for those."""
    kind = tensor.device.type
    if kind == "cuda" and WHY_NOT_CUDA is not None and WHY_NOT is None and not torch.compiler.is_compiling():
        _warn_of_cuda()
    return WHY_NOT is None and (kind in ("cpu", "meta") or (kind == "cuda" and WHY_NOT_CUDA is None))


@functools.cache  # once
def _warn_of_cuda() -> None:
    warnings.warn(f"danet.ops: slow reference operators on CUDA tensors, {WHY_NOT_CUDA}", RuntimeWarning, stacklevel=4)


# What torch's own layer of a custom operator enters once it has found that no gradient is wanted. That layer is written
# in Python and costs a call 10 us; where this guard is not to be had, it is gone through.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)


def call(name: str, *arguments: Any) -> Tensor:
    """torch.ops.danet.<name>(*arguments), for the public function."""
    operator = getattr(torch.ops.danet, name).default
    try:
        if _below_autograd is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return operator(*arguments)
        with _below_autograd():
            return operator(*arguments)
    except RuntimeError as error:
        if "functorch" in str(error):
            raise RuntimeError(
                f"{name}: torch.func's grad, vjp and jvp are not supported (vmap is); use torch.autograd, or "
                f"{name}_reference"
            ) from error
        raise


def register(name: str, *, fake: Callable, vmap: Callable, flops: Callable | None = None) -> None:
    """Joins the Python side of torch.ops.danet.<name>, where it is compiled, to its kernels."""
    if WHY_NOT is not None:
        return
    torch.library.register_fake(f"danet::{name}", fake)
    torch.library.register_vmap(f"danet::{name}", vmap)
    if flops is not None:
        register_flop_formula(getattr(torch.ops.danet, name))(flops)


def register_gradient(
    name: str, tensors: int, *, reference: Callable, vmap: Callable, switches: Callable[[], tuple] = tuple
) -> None:
    """Joins <name>_backward to <name>, whose first `tensors` arguments have gradients and whose others are options.

    `reference` takes the same arguments as <name> and serves second derivatives; `vmap` is <name>_backward's rule.
    `switches` are further options that <name>_backward alone has, as they stand when it is called.
    """
    if WHY_NOT is not None:
        return

    def save(ctx: Any, inputs: tuple, count: int) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    def backward(ctx: Any, grad_output: Tensor) -> tuple:
        operator = getattr(torch.ops.danet, f"{name}_backward")
        grads = operator(grad_output, *ctx.saved_tensors, *ctx.options, *switches())
        return (*grads, *(None for _ in ctx.options))

    def backward_of_backward(ctx: Any, *grads: Tensor) -> tuple:
        grad_output, *leaves = ctx.saved_tensors
        options = ctx.options[: len(ctx.options) - len(switches())]
        results = _double_backward(lambda *t: reference(*t, *options), leaves, grad_output, grads)
        return (*results, *(None for _ in ctx.options))

    def fake(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(value, memory_format=_memory_format(value)) for value in arguments[:tensors])

    register(f"{name}_backward", fake=fake, vmap=vmap)
    for operator, rule, count in ((name, backward, tensors), (f"{name}_backward", backward_of_backward, tensors + 1)):
        torch.library.register_autograd(
            f"danet::{operator}", rule, setup_context=lambda ctx, inputs, output, n=count: save(ctx, inputs, n)
        )


def _memory_format(value: Tensor) -> torch.memory_format:
    """Of the gradients: channels-last images, and contiguous weights."""
    return torch.channels_last if value.ndim == 4 else torch.contiguous_format


def fold_batch(value: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, N, ...] with B at `dim` (or repeated B times) as [B*N, ...]: what is independent of N is so of B*N."""
    value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.flatten(0, 1)


def folding(name: str, tensors: int) -> Callable:
    """The vmap rule of an operator whose first `tensors` arguments all begin with N: one call for the whole batch."""

    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        pairs = zip(arguments[:tensors], in_dims, strict=False)
        folded = [fold_batch(value, dim, info.batch_size) for value, dim in pairs]
        results = getattr(torch.ops.danet, name)(*folded, *arguments[tensors:])
        if isinstance(results, Tensor):
            return results.unflatten(0, (info.batch_size, -1)), 0
        return tuple(value.unflatten(0, (info.batch_size, -1)) for value in results), (0,) * len(results)

    return vmap


def each_of_batch(size: int, dims: Sequence[int | None], *values: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The arguments of each of `size` calls, of values batched at `dims` (None: the same for all)."""
    for i in range(size):
        yield [
            value if value is None or dim is None else value.select(dim, i)
            for value, dim in zip(values, dims, strict=False)
        ]


def _double_backward(reference: Callable, tensors: list[Tensor], grad_output: Tensor, grads: tuple) -> tuple:
    """Gradients of a backward operator by the reference: of `grad_output` and `tensors`, given those of its results.

    The backward operator gives d<reference(*tensors), grad_output>/dtensors; the result is differentiable again.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("danet: second derivatives work in eager mode only, not under torch.compile")
    with torch.enable_grad():
        leaves = [value if value.requires_grad else value.detach().requires_grad_() for value in tensors]
        grad_leaf = grad_output if grad_output.requires_grad else grad_output.detach().requires_grad_()
        first = torch.autograd.grad(reference(*leaves), leaves, grad_leaf, create_graph=True, allow_unused=True)
        used = [
            (value, grad) for value, grad in zip(first, grads, strict=True) if value is not None and grad is not None
        ]
        return torch.autograd.grad(
            [value for value, _ in used],
            [grad_leaf, *leaves],
            [grad for _, grad in used],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )
