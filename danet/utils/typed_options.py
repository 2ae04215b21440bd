"""The fields of an options dataclass by dotted name, and values of words and YAML files in their declared types."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from danet.utils.errors import UserError
from danet.utils.suggestions import find_spelling, suggestion

UNIONS = (typing.Union, types.UnionType)


class Option(NamedTuple):
    """One field of an options dataclass, or of a dataclass nested in it."""

    name: str
    """Dotted, such as ``model.name``."""
    hint: Any
    """Its type."""
    help: str
    """The docstring below the field."""
    default: Any = dataclasses.MISSING


def list_options(options: Any, prefix: str = "") -> Iterator[Option]:
    """All fields of a dataclass; those of a nested dataclass follow the field that holds it.

    Example:
        >>> from danet.config import ModelConfig
        >>> next(list_options(ModelConfig)).name
        'name'
    """
    hints, helps = typing.get_type_hints(options), _field_docstrings(options)
    for field in dataclasses.fields(options):
        hint, name = hints[field.name], prefix + field.name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield Option(name, hint, helps.get(field.name, ""), default)
        if nested := dataclass_type(hint):
            yield from list_options(nested, f"{name}.")


def _field_docstrings(options: type) -> dict[str, str]:
    """The string literals below the fields of a dataclass, which replace those of its base classes."""
    return {name: text for base in reversed(options.__mro__) for name, text in _own_docstrings(base).items()}


@functools.cache
def _own_docstrings(options: type) -> dict[str, str]:
    """The string literals below the fields that a class itself defines; none if its source is not available."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return {}
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


class OptionValues:
    """Values of a dataclass's options, collected from several sources; a later value replaces an earlier one.

    All methods raise UserError, whose text names the option.

    Example:
        >>> from danet.config import ModelConfig
        >>> values = OptionValues(ModelConfig)
        >>> values.update({"name": "danet", "groups": 2})
        >>> values.set("groups", "8")
        >>> values.build().groups
        8
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.known = {option.name: option for option in list_options(options)}
        self.values: dict[str, Any] = {}

    def update(self, content: dict, prefix: str = "") -> None:
        """Sets the options that a mapping, for example of a YAML file, names."""
        for key, value in content.items():
            self.set(f"{prefix}{key}", value)

    def set(self, name: str, value: object) -> None:
        """Sets one option to a word or a YAML value; a mapping sets only what it names of a nested dataclass."""
        name = find_spelling(name, self.known)
        if name not in self.known:
            raise UserError(f"unknown option {name}{suggestion(name, self.known)}")
        hint = self.known[name].hint
        if isinstance(value, dict) and dataclass_type(hint):
            self.values.pop(name, None)
            self.update(value, f"{name}.")
            return
        try:
            value = convert(value, hint)
        except ValueError as error:
            raise UserError(f"--{name}: {error}") from error
        for key in list(self.values):
            if key.startswith(f"{name}.") or name.startswith(f"{key}."):
                del self.values[key]
        self.values[name] = value

    def build(self, prefix: str = "", options: Any = None) -> Any:
        """The dataclass of the collected values, with its defaults for the others."""
        options = options or self.options
        arguments = {}
        for field in dataclasses.fields(options):
            option = self.known[prefix + field.name]
            if option.name in self.values:
                arguments[field.name] = self.values[option.name]
            elif any(key.startswith(f"{option.name}.") for key in self.values):
                arguments[field.name] = self.build(f"{option.name}.", dataclass_type(option.hint))
            elif option.default is dataclasses.MISSING:
                raise UserError(f"--{option.name}: a value is required")
        return options(**arguments)


def convert(value: object, hint: Any) -> Any:
    """Returns ``value``, a word or a YAML value, in the type ``hint``.

    ``hint`` is int, float, bool, str, Literal, Optional, Union, list, tuple, dict or a dataclass. The word ``null`` is
    None where the type allows it. Choices of a Literal may differ in case, hyphens and underscores.

    Raises:
        ValueError: ``value`` does not fit; the text says what is expected.

    Example:
        >>> convert("3", int), convert(["1", "2.5"], tuple[float, float]), convert("null", int | None)
        (3, (1.0, 2.5), None)
        >>> convert("x", int)
        Traceback (most recent call last):
        ValueError: expected int, got 'x'
    """
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in UNIONS:
        if type(None) in parts and (value is None or value == "null"):
            return None
        for part in parts:
            with contextlib.suppress(ValueError):
                return convert(value, part)
    elif kind is Literal:
        for allowed in parts:
            if value == allowed or _fold(value) == _fold(allowed):
                return allowed
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        item = OptionValues(kind)
        item.update(value)
        return item.build()
    elif kind is dict and isinstance(value, dict):
        return {convert(key, parts[0]): convert(each, parts[1]) for key, each in value.items()}
    elif kind is list and isinstance(value, list):
        return [convert(each, parts[0]) for each in value]
    elif kind is tuple and isinstance(value, (list, tuple)) and len(value) == len(parts):
        return tuple(map(convert, value, parts))
    elif kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float):
        is_numeral = isinstance(value, str) and any(map(str.isdigit, value))  # not "nan" or "inf"
        if is_numeral or type(value) in (int, kind):
            with contextlib.suppress(ValueError, OverflowError):
                return kind(value)
    raise ValueError(f"expected {type_name(hint)}, got {value!r}")


def paths_as_texts(options: Any) -> Any:
    """A copy of a dataclass, also of those inside it, whose paths are texts, as the command line gives them.

    Example:
        >>> from pathlib import Path
        >>> from danet.data.data_options import DataSource
        >>> paths_as_texts(DataSource(Path("data") / "train.json")).path
        'data/train.json'
    """
    changes = {item.name: _path_as_text(getattr(options, item.name)) for item in dataclasses.fields(options)}
    return dataclasses.replace(options, **changes)


def _path_as_text(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_path_as_text, value))
    return paths_as_texts(value) if dataclasses.is_dataclass(value) else value


def _fold(value: object) -> str:
    """A value without the differences that a choice ignores: case, hyphens and underscores; YAML reads off as False."""
    return "off" if value is False else str(value).lower().replace("-", "_")


def members(hint: Any) -> tuple:
    """The members of a union, or the type itself if it is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)


def dataclass_type(hint: Any) -> Any:
    """The dataclass that is ``hint`` or a member of the union ``hint``, else None."""
    return next(filter(dataclasses.is_dataclass, members(hint)), None)


def sequence_type(hint: Any) -> Any:
    """The list or tuple type that is ``hint`` or a member of the union ``hint``, else None."""
    return next((each for each in members(hint) if typing.get_origin(each) in (list, tuple)), None)


def type_name(hint: Any) -> str:
    """A type as messages and help texts show it.

    Example:
        >>> type_name(list[int] | None), type_name(Literal["a", "b"])
        ('list[int] or null', 'one of a, b')
    """
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in UNIONS:
        return " or ".join(map(type_name, parts))
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if parts:
        return f"{kind.__name__}[{', '.join(map(type_name, parts))}]"
    return "null" if hint is type(None) else hint.__name__
