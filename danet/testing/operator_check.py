"""Checks of an operator that is written by hand: values, derivatives, memory layouts, and how it works with PyTorch.

`check_operator` compares a function of tensors with a plain PyTorch reference of the same signature, and prints what
holds. It needs only torch, and takes any differentiable function, not only those of `danet.ops`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from danet.testing.derivatives import Function, leaves_of, run, second_derivatives, tangents

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""The largest error of each dtype, relative to the norm of the reference in float64. The inputs are rounded first."""

CHECKS = (
    "values",
    "dtypes",
    "gradients",
    "second derivatives",
    "forward mode",
    "memory layouts",
    "empty batch",
    "not-a-number and infinity",
    "threads",
    "uninitialized memory",
    "opcheck",
    "compile",
    "export",
    "autocast",
    "vmap",
)
"""The names of all checks, in the order in which they run."""


@dataclass
class Report:
    """The results of the checks: `rows` has one (check, "yes", "no" or "skipped", explanation) per check."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Lines of the checks that do not hold."""
        return [f"{name}: {explanation}" for name, holds, explanation in self.rows if holds == "no"]

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {holds:<7}  {text}".rstrip() for name, holds, text in self.rows)


def check_operator(
    operator: Function,
    reference: Function,
    cases: Mapping[str, Sequence[Tensor]],
    *,
    batched: Sequence[int] | None = None,
    overload: Any = None,
    options: Sequence[Any] = (),
    skip: Sequence[str] = (),
    quiet: bool = False,
) -> Report:
    """Check an operator against its reference, and print a table of what holds.

    Args:
        operator: takes the tensors of a case and returns one tensor. Bind further arguments with a lambda.
        reference: computes the same in plain PyTorch, in the dtype of its arguments.
        cases: by name, the floating-point tensors of a call. The values should be away from kinks and poles of the
            function, because derivatives are compared with finite differences. The first case should be small.
        batched: indices of the tensors whose first dimension is the batch; None: all.
        overload: the operator as torch.library knows it, such as torch.ops.mine.scale.default, for opcheck.
        options: the arguments of `overload` after its tensors.
        skip: names of checks to leave out, see `CHECKS`.
        quiet: print nothing.

    Returns:
        The report.

    Raises:
        ValueError: if `cases` is empty, or if `skip` names an unknown check.
        AssertionError: if a check does not hold; the message has one line for each of them. The table is printed
            before.

    Example:
        >>> import torch
        >>> from danet.testing import check_operator
        >>> cases = {"small": (torch.randn(2, 3, 4), torch.randn(2, 3, 4))}
        >>> report = check_operator(torch.mul, lambda a, b: a * b, cases, skip=["compile", "export"], quiet=True)
        >>> report.rows[0][:2]
        ('values', 'yes')
    """
    unknown = set(skip) - set(CHECKS)
    if unknown:
        raise ValueError(f"check_operator: skip must name checks of CHECKS, got {sorted(unknown)}")
    if not cases:
        raise ValueError("check_operator: cases must have at least one case, got none")
    subject = _Subject(operator, reference, cases, batched, overload, tuple(options))
    report = Report()
    for name in CHECKS:
        if name in skip:
            report.rows.append((name, "skipped", "on request"))
            continue
        method = getattr(subject, name.replace("-", "_").replace(" ", "_"))
        try:
            explanation = method()
            report.rows.append((name, "yes", explanation))
        except _Inapplicable as reason:
            report.rows.append((name, "skipped", str(reason)))
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            report.rows.append((name, "no", f"{type(error).__name__}: {first_line}"))
    if not quiet:
        print(report)
    if report.failures:
        raise AssertionError("\n".join(["check_operator: these checks do not hold:", *report.failures]))
    return report


class _Inapplicable(Exception):
    """A check cannot be made for this operator."""


@dataclass
class _Subject:
    """An operator with what is needed to check it. Each method is one check, and returns an explanation."""

    operator: Function
    reference: Function
    cases: Mapping[str, Sequence[Tensor]]
    batched: Sequence[int] | None
    overload: Any
    options: tuple

    def smallest(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """The tensors of the first case in this dtype, without their gradients."""
        return [t.detach().to(dtype) for t in next(iter(self.cases.values()))]

    def is_batched(self, index: int) -> bool:
        return self.batched is None or index in self.batched

    def values(self) -> str:
        error = max(self.error(name, torch.float32) for name in self.cases)
        return f"float32, largest relative error {error:.1e}"

    def dtypes(self) -> str:
        accepted, refused = [], []
        for dtype in TOLERANCES:
            name = str(dtype).removeprefix("torch.")
            if self.refuses(dtype):
                refused.append(name)
            else:
                accepted.append(f"{name} {max(self.error(case, dtype) for case in self.cases):.1e}")
        if not accepted:
            raise AssertionError("no dtype is accepted")
        return ", ".join([*accepted, *(f"{name} refused" for name in refused)])

    def refuses(self, dtype: torch.dtype) -> bool:
        """Whether the operator's forward pass refuses this dtype.

        It does so by a TypeError, or by NotImplementedError, which torch raises if an operation has no kernel for the
        dtype. Errors of the backward pass and of the reference are failures: an operator must support the backward pass
        for every dtype that its forward pass accepts.
        """
        try:
            self.operator(*self.smallest(dtype))
        except (TypeError, NotImplementedError):
            return True
        return False

    def error(self, case: str, dtype: torch.dtype) -> float:
        """The relative error of forward and gradients; AssertionError if it is too large."""
        tensors = [t.detach().to(dtype) for t in self.cases[case]]
        actual, actual_grads = run(self.operator, tensors)
        expected, expected_grads = run(self.reference, [t.double() for t in tensors])
        if actual.dtype != dtype:
            raise AssertionError(f"{case}: the result must have the dtype {dtype}, got {actual.dtype}")
        largest = 0.0
        for what, a, b in zip(itertools.count(-1), [actual, *actual_grads], [expected, *expected_grads], strict=False):
            name = f"{case}: " + ("the result" if what < 0 else f"the gradient of tensor {what}")
            if a.shape != b.shape:
                raise AssertionError(f"{name} must have the shape {list(b.shape)}, got {list(a.shape)}")
            error = _relative_error(a, b)
            if not error <= TOLERANCES[dtype] * (1 if what < 0 else 4):
                raise AssertionError(f"{name} has the relative error {error:.1e} in {dtype}")
            largest = max(largest, error)
        return largest

    def gradients(self) -> str:
        torch.autograd.gradcheck(self.operator, leaves_of(self.smallest()), fast_mode=True)
        return "finite differences in float64"

    def second_derivatives(self) -> str:
        torch.autograd.gradgradcheck(self.operator, leaves_of(self.smallest()), fast_mode=True)
        self.compare_float32(second_derivatives, "the second derivative of tensor")
        return "finite differences in float64, float32 equal to float64"

    def forward_mode(self) -> str:
        torch.autograd.gradcheck(
            self.operator, leaves_of(self.smallest()), fast_mode=True, check_forward_ad=True, check_backward_ad=False
        )
        self.compare_float32(tangents, "the tangent for a direction of tensor")
        return "finite differences in float64, float32 equal to float64"

    def compare_float32(self, derivatives: Callable[[Function, list[Tensor]], list[Tensor]], what: str) -> None:
        """AssertionError unless the derivatives in float32, which may have kernels of its own, are those in float64."""
        tensors = self.smallest(torch.float32)
        expected = derivatives(self.operator, [t.double() for t in tensors])
        for i, (a, b) in enumerate(zip(derivatives(self.operator, tensors), expected, strict=True)):
            error = _relative_error(a, b)
            if not error <= 10 * TOLERANCES[torch.float32]:
                raise AssertionError(f"{what} {i} has the relative error {error:.1e} in torch.float32")

    def memory_layouts(self) -> str:
        for name, case in self.cases.items():
            tensors = [t.detach().float() for t in case]
            expected, expected_grads = run(self.operator, tensors)
            for layout, change in _LAYOUTS.items():
                for i in range(len(tensors)):
                    changed = [change(t) if j == i else t for j, t in enumerate(tensors)]
                    plain = [t.contiguous() for t in changed] if layout == "stride 0" else tensors
                    right = run(self.operator, plain) if layout == "stride 0" else (expected, expected_grads)
                    actual = run(self.operator, changed)
                    for a, b in zip([actual[0], *actual[1]], [right[0], *right[1]], strict=True):
                        _assert_close(a, b, f"{name}: tensor {i} with {layout}")
        return ", ".join(_LAYOUTS)

    def empty_batch(self) -> str:
        for dtype in (torch.float64, torch.float32):
            tensors = [t[:0] if self.is_batched(i) else t for i, t in enumerate(self.smallest(dtype))]
            out, grads = run(self.operator, tensors)
            if out.numel() != 0:
                raise AssertionError(f"the result of an empty batch must be empty, got {list(out.shape)} in {dtype}")
            if any(grad.shape != t.shape or grad.any() for grad, t in zip(grads, tensors, strict=True)):
                raise AssertionError(
                    f"the gradients of an empty batch must be zero, with the shapes of the tensors, in {dtype}"
                )
        return "empty result, zero gradients"

    def not_a_number_and_infinity(self) -> str:
        values, dtypes = (math.nan, math.inf, -math.inf), (torch.float64, torch.float32)
        for dtype, i, value in itertools.product(dtypes, range(len(self.smallest())), values):
            tensors = self.smallest(dtype)
            tensors[i] = tensors[i].contiguous().clone()
            tensors[i].view(-1)[tensors[i].numel() // 2] = value
            with torch.no_grad():
                expected = self.reference(*(t.double() for t in tensors)).to(dtype)
                what = f"tensor {i} with a value of {value} in {dtype}"
                _assert_close(self.operator(*tensors), expected, what, rtol=1e-4, atol=1e-5)
        return "as the reference"

    def threads(self) -> str:
        before, results = torch.get_num_threads(), []
        tensors = [t.detach().float() for t in list(self.cases.values())[-1]]
        try:
            for count in (1, 2, 3, 5):
                torch.set_num_threads(count)
                results.append(run(self.operator, tensors))
        finally:
            torch.set_num_threads(before)
        for out, grads in results[1:]:
            if not all(map(torch.equal, (out, *grads), (results[0][0], *results[0][1]))):
                raise AssertionError("the bits depend on the number of threads")
        return "the same bits for 1, 2, 3 and 5 threads"

    def uninitialized_memory(self) -> str:
        for name, case in self.cases.items():
            tensors = [t.detach().float() for t in case]
            expected = run(self.operator, tensors)
            with _memory_full_of_nan():
                actual = run(self.operator, tensors)
            for a, b in zip([actual[0], *actual[1]], [expected[0], *expected[1]], strict=True):
                _assert_close(a, b, f"{name}: with results allocated full of NaN")
        return "results do not depend on it"

    def opcheck(self) -> str:
        if self.overload is None:
            raise _Inapplicable("no overload is given")
        for dtype in (torch.float64, torch.float32):
            torch.library.opcheck(self.overload, (*leaves_of(self.smallest(dtype)), *self.options))
        return "schema, fake kernel, autograd"

    def compile(self) -> str:
        torch._dynamo.reset()
        compiled = torch.compile(self.operator, fullgraph=True, dynamic=True, backend="aot_eager")
        for repeats in (1, 2, 3):
            tensors = self.repeated(repeats)
            for a, b in zip(*(_flat(run(f, tensors)) for f in (compiled, self.operator)), strict=True):
                _assert_close(a, b, f"batch times {repeats}")
        return "without graph breaks, for any batch size"

    def repeated(self, count: int) -> list[Tensor]:
        tensors = self.smallest(torch.float32)
        return [torch.cat([t] * count) if self.is_batched(i) else t for i, t in enumerate(tensors)]

    def export(self) -> str:
        operator = self.operator

        class Module(torch.nn.Module):
            def forward(self, *tensors: Tensor) -> Tensor:
                return operator(*tensors)

        tensors = self.repeated(2)
        program = torch.export.export(Module(), tuple(tensors))
        with torch.no_grad():
            _assert_close(program.module()(*tensors), operator(*tensors), "the exported program")
        return "torch.export"

    def autocast(self) -> str:
        tensors = self.smallest(torch.float32)
        with torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = self.operator(*tensors)
            expected = self.operator(*(t.bfloat16() if out.dtype == torch.bfloat16 else t for t in tensors))
        _assert_close(out, expected, "the result under autocast")
        return f"the result is {str(out.dtype).removeprefix('torch.')}"

    def vmap(self) -> str:
        for dtype in (torch.float64, torch.float32):
            tensors = self.smallest(dtype)
            pairs = [torch.stack([t, t * 0.5]) for t in tensors]
            with torch.no_grad():
                actual = torch.func.vmap(self.operator)(*pairs)
                for i in range(2):
                    _assert_close(actual[i], self.operator(*(t[i] for t in pairs)), f"slice {i} in {dtype}")
                # Only the first tensor has the dimension.
                one = torch.func.vmap(self.operator, in_dims=(0, *[None] * (len(pairs) - 1)))(pairs[0], *tensors[1:])
                right = self.operator(pairs[0][1], *tensors[1:])
                _assert_close(one[1], right, f"a dimension of the first tensor alone in {dtype}")
        return "equal to a loop"


def _flat(result: tuple[Tensor, tuple[Tensor, ...]]) -> list[Tensor]:
    return [result[0], *result[1]]


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    # Sums may cancel: an error is also small if it is small for a typical element.
    actual, expected = actual.detach().double(), expected.detach().double()
    norm = max(float(expected.norm()), 1e-2 * math.sqrt(max(expected.numel(), 1)))
    return float((actual - expected).norm()) / norm


def _assert_close(actual: Tensor, expected: Tensor, what: str, **tolerance: Any) -> None:
    try:
        torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)
    except AssertionError as error:
        raise AssertionError(f"{what}: {' '.join(str(error).split())}") from None


def _reversed_strides(tensor: Tensor) -> Tensor:
    """The same values with the first dimension contiguous instead of the last."""
    dims = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(dims).contiguous().permute(dims)


def _odd_offset(tensor: Tensor) -> Tensor:
    """The same values at an odd position in a larger storage, so that vectors are not aligned."""
    storage = tensor.new_full((tensor.numel() + 3,), math.nan)
    view = storage[1 : 1 + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return view


def _expanded(tensor: Tensor) -> Tensor:
    """One element along the last dimension, repeated with stride 0."""
    return tensor[..., :1].expand(tensor.shape) if tensor.ndim else tensor


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed strides": _reversed_strides,
    "odd storage offset": _odd_offset,
    "stride 0": _expanded,
}


@contextmanager
def _memory_full_of_nan() -> Iterator[None]:
    """Within this block torch.empty fills its result with NaN."""
    mode = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fills
