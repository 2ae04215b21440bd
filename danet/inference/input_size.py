"""Sizes in pixels that users give: the one that images are letterboxed to, and that of tiles."""

from collections.abc import Sequence
from typing import Any, Literal, overload

from danet.inference.export_description import MAX_INPUT_PIXELS
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError

InputSize = tuple[int, int] | Literal["native"] | None
"""(height, width); "native" keeps the size of each image; None fits images to the training images."""


def parse_input_size(value: Any) -> InputSize:
    """(height, width) of one number for a square or of two numbers; "native" and None stay.

    Raises:
        ValueError: ``value`` is anything else, or a number is less than MINIMUM_SIZE or more than MAX_INPUT_PIXELS.

    Example:
        >>> parse_input_size(64), parse_input_size([64, 96]), parse_input_size("native")
        ((64, 64), (64, 96), 'native')
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "native":
        return "native"
    return parse_sides("input_size", value, other="native, or ")


def parse_sides(name: str, value: Any, *, other: str = "") -> tuple[int, int]:
    """(height, width) of one number for a square or of two numbers.

    Raises:
        ValueError: ``value`` is anything else, or a number is less than MINIMUM_SIZE or more than MAX_INPUT_PIXELS; the
            message begins with ``name``, and ``other`` names further values that are allowed.

    Example:
        >>> parse_sides("tile", [320])
        (320, 320)
    """
    sides = value if isinstance(value, (tuple, list)) else (value,)
    if len(sides) not in (1, 2) or not all(map(_is_side, sides)):
        limits = f"integers from {MINIMUM_SIZE} to {MAX_INPUT_PIXELS} pixels"
        raise ValueError(f"{name} must be {other}one or two {limits} (height, width), got {value!r}")
    return int(sides[0]), int(sides[-1])


def parse_tile_option(words: Sequence[int] | None) -> tuple[int, int] | None:
    """Resolves the option ``--tile`` of a command.

    Raises:
        UserError: see ``parse_sides``.

    Example:
        >>> parse_tile_option([320]), parse_tile_option(None)
        ((320, 320), None)
    """
    try:
        return None if words is None else parse_sides("tile", words)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _is_side(value: Any) -> bool:
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)  # numpy's integers, too
    return is_integer and MINIMUM_SIZE <= value <= MAX_INPUT_PIXELS


@overload
def parse_size_option(words: Sequence[int] | None) -> tuple[int, int] | None: ...
@overload
def parse_size_option(words: Sequence[int | Literal["native"]] | None) -> InputSize: ...
def parse_size_option(words: Sequence[int | Literal["native"]] | None) -> InputSize:
    """Resolves the option ``--input_size`` of a command.

    Raises:
        UserError: see ``parse_input_size``.

    Example:
        >>> parse_size_option(["native"]), parse_size_option([256, 320]), parse_size_option(None)
        ('native', (256, 320), None)
    """
    try:
        return parse_input_size(words[0] if words is not None and len(words) == 1 else words)
    except ValueError as error:
        raise UserError(f"--{error}") from None
