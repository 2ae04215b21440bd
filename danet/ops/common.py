"""Argument checks with one-line errors, compute dtypes and autocast, shared by all operators."""

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(op: str, name: str, value: Any) -> None:
    """TypeError unless `value` is a dense tensor of a supported floating-point dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a strided (dense) tensor, got {dtype_name(value.layout)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float64, float32, float16 or bfloat16, got {dtype_name(value.dtype)}")


Result = TypeVar("Result")


def memoize_check(check: Callable[..., Result]) -> Callable[..., Result]:
    """Cache the results of an argument check that looks only at shapes, dtypes, devices and layouts of tensors.

    Networks repeat the same calls, and checks in Python cost more than a small kernel. Errors are not cached.
    """

    # One list per combination of arguments, filled after the check has passed. Unless `typed`, True would equal 1.
    @functools.lru_cache(maxsize=4096, typed=True)
    def cache(*facts: Any) -> list[Result]:
        return []

    @functools.wraps(check)
    def memoized(*arguments: Any) -> Result:
        if torch.compiler.is_compiling():
            return check(*arguments)
        facts: list = []
        for value in arguments:
            if isinstance(value, Tensor):
                facts += (value.shape, value.dtype, value.device, value.layout)
            else:
                facts.append(value)
        try:
            passed = cache(*facts)
        except TypeError:  # not hashable: a list, or a symbolic size
            return check(*arguments)
        if not passed:
            passed.append(check(*arguments))
        return passed[0]

    return memoized


def check_like_input(op: str, name: str, value: Any, input: Tensor) -> None:
    """TypeError unless `value` is a tensor of input's dtype, ValueError unless it is on input's device."""
    check_tensor(op, name, value)
    if value.dtype != input.dtype:
        raise TypeError(
            f"{op}: {name} must have input's dtype {dtype_name(input.dtype)}, got {dtype_name(value.dtype)}"
        )
    if value.device != input.device:
        raise ValueError(f"{op}: {name} must be on input's device {input.device}, got {value.device}")


def check_image(op: str, name: str, value: Any) -> None:
    """TypeError unless `check_tensor` accepts `value`, ValueError unless it is [N, C, H, W]; only N may be 0."""
    check_tensor(op, name, value)
    if value.ndim != 4:
        raise ValueError(f"{op}: {name} must be [N, C, H, W], got {list(value.shape)}")
    if 0 in value.shape[1:]:
        raise ValueError(f"{op}: {name} must be [N, C, H, W] with C, H, W >= 1, got {list(value.shape)}")


def check_shape(op: str, name: str, value: Tensor, symbols: str, expected: tuple[int, ...]) -> None:
    """ValueError unless `value` has the shape `expected`, which `symbols` names, such as "[N, C]"."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{op}: {name} must be {symbols} = {list(expected)}, got {list(value.shape)}")


def check_bool(op: str, name: str, value: Any) -> None:
    """TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def flag(op: str, name: str, value: Any) -> bool:
    """`value` as a bool; TypeError unless it is True, False, 1 or 0, which callers of the original operators pass."""
    given = number(op, name, value)
    if not isinstance(given, int) or given not in (0, 1):
        raise TypeError(f"{op}: {name} must be True, False, 1 or 0, got {value!r}")
    return bool(given)


def integer(op: str, name: str, value: Any, minimum: int) -> int:
    """`value` as an int; TypeError unless it is an integer, ValueError if it is below `minimum`."""
    number = _index(value)
    if number is None:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}")
    if number < minimum:
        raise ValueError(f"{op}: {name} must be >= {minimum}, got {value!r}")
    return number


def number(op: str, name: str, value: Any) -> Any:
    """A NumPy scalar or a 0-d tensor as a Python number; every other value as it is.

    TypeError if the tensor requires a gradient, which would be lost.
    """
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{op}: {name} is a constant without a gradient, got a tensor that requires one; multiply the offset by "
            "the tensor instead, or pass value.detach()"
        )
    return value.item() if getattr(value, "ndim", None) == 0 else value


def pair(op: str, name: str, value: Any, minimum: int) -> tuple[int, int]:
    """(y, x) from an integer or a pair of integers; TypeError otherwise, ValueError if one is below `minimum`."""
    sides = value if isinstance(value, (tuple, list)) else (value, value)
    numbers = [number for number in map(_index, sides) if number is not None]
    if len(numbers) != 2 or len(sides) != 2:
        raise TypeError(f"{op}: {name} must be an integer or a pair of integers, got {value!r}")
    if min(numbers) < minimum:
        raise ValueError(f"{op}: {name} must be >= {minimum}, got {value!r}")
    return numbers[0], numbers[1]


def _index(value: Any) -> int | None:
    """`value` as an int, or None if it is not an integer. Booleans and tensors do not count as integers."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a reference computes: half dtypes accumulate in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def device_type(input: Any) -> str:
    """The type of the device of a tensor; "cpu" for other values, which a later check refuses."""
    return input.device.type if isinstance(input, Tensor) else "cpu"


def is_autocast(input: Any) -> bool:
    """Whether autocast is on for the device of `input`."""
    device = device_type(input)
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def to_float32(value: Any) -> Any:
    """A tensor of a half type as float32; every other value as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast the tensors to autocast's dtype if autocast is on, as for a convolution; float64 tensors stay."""
    if not is_autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(device_type(tensors[0]))
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.dtype in FLOATING[1:] else value for value in tensors
    )
