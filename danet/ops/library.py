"""Loads the compiled libraries, and registers fake kernels, vmap rules and gradients of their operators.

libdanet.so beside this file has the schemas and the CPU kernels. Without it, as in a source checkout that was not
built, every operator runs as its reference in plain PyTorch, and importing danet.ops warns. libdanet_cuda.so has the
CUDA kernels and is loaded if torch has CUDA. Without it, operators on CUDA tensors run as their references, and the
first such call warns.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from danet.ops import onnx_form

CPU_LIBRARY = Path(os.environ.get("DANET_LIBRARY") or Path(__file__).with_name("libdanet.so"))
"""The environment variable DANET_LIBRARY selects another build, such as one with sanitizers."""

CAPABILITIES = ("baseline", "AVX2 and FMA", "AVX-512")
"""Names of the values that torch.ops.danet.cpu_capability() returns."""

MATRIX_UNITS = ("none", "AMX", "AMX, emulated", "AVX512_BF16")
"""Names of the values that torch.ops.danet.matrix_unit() returns."""


def _load() -> str | None:
    """Load the CPU library; returns the reason if that fails, else None."""
    if hasattr(torch.ops.danet, "cpu_capability"):  # torch aborts the process if operators are defined twice
        return "another danet in this process has compiled operators already; import only one of them"
    if not CPU_LIBRARY.exists():
        return "the kernels are not built; build them with: pip install -e . --no-build-isolation"
    try:
        torch.ops.load_library(CPU_LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{CPU_LIBRARY.name} cannot be loaded: {str(error).splitlines()[0]}"
    return None


WHY_NOT = _load()
"""The reason why all operators run as references; None if they are compiled."""

CUDA_LIBRARY = Path(__file__).with_name("libdanet_cuda.so")


def cuda_fact(name: str) -> str:
    """A build setting of libdanet_cuda.so: the CUDA "version" or the "architectures"."""
    function = getattr(ctypes.CDLL(str(CUDA_LIBRARY)), f"danet_cuda_{name}")
    function.restype = ctypes.c_char_p
    return function().decode()


def _driver_version() -> int:
    """The highest major version of CUDA that the driver supports; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value // 1000


def _load_cuda() -> str | None:
    """Load the CUDA library; returns the reason if that fails, else None."""
    if WHY_NOT is not None:
        return WHY_NOT
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if not CUDA_LIBRARY.exists():
        return "the CUDA kernels are not built"
    try:
        built, driver = cuda_fact("version"), _driver_version()
        if driver and driver < int(built.partition(".")[0]):
            return f"the driver supports CUDA {driver}, but the kernels are built for CUDA {built}; update the driver"
        torch.ops.load_library(CUDA_LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{CUDA_LIBRARY.name} cannot be loaded: {str(error).splitlines()[0]}"
    return None


WHY_NOT_CUDA = _load_cuda()
"""The reason why operators on CUDA tensors run as references; None if they are compiled."""

if WHY_NOT is not None:
    warnings.warn(f"danet.ops: slow reference operators, {WHY_NOT}", RuntimeWarning, stacklevel=2)


def has_kernel(tensor: Tensor) -> bool:
    """Whether operators on this tensor's device are compiled. True for meta tensors, which stand for any device."""
    kind = tensor.device.type
    if kind == "cuda" and WHY_NOT_CUDA is not None and WHY_NOT is None and not torch.compiler.is_compiling():
        _warn_of_cuda()
    return WHY_NOT is None and (kind in ("cpu", "meta") or (kind == "cuda" and WHY_NOT_CUDA is None))


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active (torch.func.jvp, jacfwd, forward_ad.dual_level).

    The kernels have no forward-mode derivative, and torch would silently take it as zero. Public functions therefore
    run as their references then.
    """
    return forward_ad._current_level >= 0  # the public API does not tell it


def runs_compiled(tensor: Tensor) -> bool:
    """Whether a public function runs its compiled operator on this tensor's device now.

    It runs as its reference in forward mode, and while it is traced for an ONNX file of standard operators.
    """
    return has_kernel(tensor) and not in_forward_mode() and not onnx_form.is_active()


@functools.cache  # once
def _warn_of_cuda() -> None:
    warnings.warn(f"danet.ops: slow reference operators on CUDA tensors, {WHY_NOT_CUDA}", RuntimeWarning, stacklevel=4)


_forward_only: set[str] = set()
"""Operators without a gradient. Their public functions call them only if no gradient is needed."""

# Without grad mode, and for operators without a gradient, `call` dispatches below autograd. That skips torch.library's
# autograd wrapper, which is written in Python and costs about 10 us per call. The guard is private API: without it,
# calls go through the wrapper.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)


def call(name: str, *arguments: Any) -> Any:
    """Call torch.ops.danet.<name>(*arguments) for the public function.

    Raises RuntimeError if torch.func's grad or vjp is active, which the operators do not support.
    """
    operator = getattr(torch.ops.danet, name).default
    needs_autograd = torch.is_grad_enabled() and name not in _forward_only
    try:
        if _below_autograd is None or needs_autograd or torch.compiler.is_compiling():
            return operator(*arguments)
        with _below_autograd():
            return operator(*arguments)
    except RuntimeError as error:
        if "functorch" in str(error):
            name = {"deform_im2col": "deform_conv2d"}.get(name, name)  # the public function
            raise RuntimeError(
                f"{name}: torch.func's grad and vjp are not supported (jvp and vmap are); use torch.autograd, or "
                f"{name}_reference"
            ) from error
        raise


def register(
    name: str, tensors: int, *, fake: Callable, batched: Sequence[int] | None = None, flops: Callable | None = None
) -> None:
    """Register fake kernel, vmap rule and FLOP formula of torch.ops.danet.<name>, if it is compiled.

    tensors: number of tensor arguments, which come before all others.
    batched: indices of the tensor arguments that have a batch dimension N; None: all.
    """
    if WHY_NOT is not None:
        return
    torch.library.register_fake(f"danet::{name}", fake)
    torch.library.register_vmap(f"danet::{name}", _vmap_rule(name, tensors, batched))
    if flops is not None:
        register_flop_formula(getattr(torch.ops.danet, name))(flops)


_fragments: list[torch.library.Library] = []  # registrations end with the life of their library


class _NoForwardMode(torch.library.Library):
    """A part of the library danet, in which operators refuse arguments with a tangent, see `register_autograd`."""

    def __init__(self) -> None:
        super().__init__("danet", "FRAGMENT")

    def impl(self, op_name: Any, fn: Callable, dispatch_key: str = "", **options: Any) -> None:
        def kernel(keyset: Any, *arguments: Any) -> Any:
            if in_forward_mode() and any(_has_tangent(value) for value in arguments):
                raise RuntimeError(
                    f"torch.ops.danet.{op_name}: forward-mode derivatives are not supported by exported, traced and "
                    "scripted networks; use the network before that step"
                )
            return fn(keyset, *arguments)

        super().impl(op_name, kernel if dispatch_key == "Autograd" else fn, dispatch_key, **options)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def register_autograd(name: str, backward: Callable, setup_context: Callable | None = None) -> None:
    """Register the gradient of torch.ops.danet.<name>, and an error instead of a forward-mode derivative.

    Public functions compute that derivative by their references. Networks that were exported, traced or scripted call
    the operator itself, and torch would silently take the derivative as zero.
    """
    fragment = _NoForwardMode()
    _fragments.append(fragment)
    torch.library.register_autograd(f"danet::{name}", backward, setup_context=setup_context, lib=fragment)


def register_forward_only(name: str) -> None:
    """Let torch.ops.danet.<name>, without a gradient, raise an error in backward and for arguments with a tangent."""
    if WHY_NOT is not None:
        return

    def backward(*_: Any) -> None:
        raise RuntimeError(f"{name}: forward only, no gradient is defined; use {name}_reference")

    _forward_only.add(name)
    register_autograd(name, backward)


def register_gradient(
    name: str,
    tensors: int,
    *,
    reference: Callable,
    batched: Sequence[int] | None = None,
    backward_options: Callable[[], tuple] = tuple,
    constants: int = 0,
    memory_format: Callable[[Tensor], torch.memory_format] | None = None,
) -> None:
    """Register <name>_backward as the gradient of <name>, whose first `tensors` arguments are tensors.

    reference: takes the arguments of <name>; serves second derivatives.
    batched: indices of the tensor arguments of <name>_backward that have a batch dimension N; None: all.
    backward_options: returns the current values of the options that only <name>_backward has, after all others.
    constants: number of tensor arguments, the last ones, that have no gradient, such as tensors of integers.
    memory_format: returns the memory format of an argument's gradient; None: channels-last for images.
    """
    if WHY_NOT is not None:
        return
    format_of, leaf_count = memory_format or _memory_format, tensors - constants

    def save(ctx: Any, inputs: tuple, count: int) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    def backward(ctx: Any, grad_output: Tensor) -> tuple:
        if in_forward_mode():
            rest = (*ctx.saved_tensors[leaf_count:], *ctx.options)
            return (*gradients(reference, ctx.saved_tensors[:leaf_count], rest, grad_output), *(None for _ in rest))
        operator = getattr(torch.ops.danet, f"{name}_backward")
        grads = operator(grad_output, *ctx.saved_tensors, *ctx.options, *backward_options())
        return (*grads, *(None for _ in range(constants + len(ctx.options))))

    def backward_of_backward(ctx: Any, *grads: Tensor) -> tuple:
        grad_output, *inputs = ctx.saved_tensors
        rest = (*inputs[leaf_count:], *ctx.options[: len(ctx.options) - len(backward_options())])
        results = _double_backward(lambda *t: reference(*t, *rest), inputs[:leaf_count], grad_output, grads)
        return (*results, *(None for _ in range(constants + len(ctx.options))))

    def fake(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(value, memory_format=format_of(value)) for value in arguments[:leaf_count])

    register(f"{name}_backward", tensors + 1, fake=fake, batched=batched)
    for operator, rule, count in ((name, backward, tensors), (f"{name}_backward", backward_of_backward, tensors + 1)):
        register_autograd(operator, rule, lambda ctx, inputs, output, n=count: save(ctx, inputs, n))


def _memory_format(value: Tensor) -> torch.memory_format:
    """The memory format of a gradient: channels-last for images, contiguous for weights."""
    return torch.channels_last if value.ndim == 4 else torch.contiguous_format


def _vmap_rule(name: str, tensors: int, batched: Sequence[int] | None) -> Callable:
    """The vmap rule of an operator, see `register`.

    The vmap dimension B becomes part of the batch, in one call with B*N. If a tensor without a batch dimension, such as
    a weight, has a vmap dimension, the rule makes B calls.
    """
    batch_indices = range(tensors) if batched is None else batched

    def rule(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        size, pairs = info.batch_size, list(zip(arguments[:tensors], in_dims[:tensors], strict=True))

        def call(values: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
            results = getattr(torch.ops.danet, name)(*values, *arguments[tensors:])
            return (results,) if isinstance(results, Tensor) else results

        if all(dim is None for i, dim in enumerate(in_dims[:tensors]) if i not in batch_indices):
            merged = [_merge_into_batch(*pair, size) if i in batch_indices else pair[0] for i, pair in enumerate(pairs)]
            results = [value.unflatten(0, (size, -1)) for value in call(merged)]
        else:
            calls = [call([v if dim is None else v.select(dim, i) for v, dim in pairs]) for i in range(size)]
            results = [torch.stack(values) for values in zip(*calls, strict=True)]
        return (results[0], 0) if len(results) == 1 else (tuple(results), (0,) * len(results))

    return rule


def _merge_into_batch(value: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Merge the vmap dimension `dim`, of size B, into the batch dimension N: the result is [B*N, ...].

    If dim is None, the value has no vmap dimension and is repeated B times.
    """
    if value is None:
        return None
    value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.flatten(0, 1)


def _own_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Aliases of the tensors that require gradients.

    Derivatives with respect to an alias are partial: they do not include paths through other arguments that were
    computed from the same tensor, such as a gradient of the result.
    """
    return [value.view_as(value) if value.requires_grad else value.detach().requires_grad_() for value in tensors]


def gradients(reference: Callable, tensors: Sequence[Tensor], options: tuple, grad_output: Tensor) -> tuple:
    """The gradients of `tensors` through the reference, with their own tangents."""
    with torch.enable_grad():
        leaves = _own_leaves(tensors)
        out = reference(*leaves, *options)
        return torch.autograd.grad(out, leaves, grad_output, create_graph=True, materialize_grads=True)


def _double_backward(reference: Callable, tensors: list[Tensor], grad_output: Tensor, grads: tuple) -> tuple:
    """The gradients of `grad_output` and `tensors`, from `grads`, those of a backward operator's results.

    The backward operator computes d<reference(*tensors), grad_output> / dtensors, so that autograd through the
    reference gives its derivative. The result is differentiable again.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("danet: second derivatives are not supported under torch.compile; use eager mode")
    with torch.enable_grad():
        leaves = _own_leaves(tensors)
        (grad_leaf,) = _own_leaves([grad_output])
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
