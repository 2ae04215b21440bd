"""The command that reproduces a run, from the options that the run saved."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from danet.report.page import Block, Code, Fold, Paragraph
from danet.utils import cli
from danet.utils.files import read_text

# Values that need no JSON on the command line.
PLAIN = re.compile(r"[A-Za-z_./][\w./:+ -]*")


def saved_options(path: Path, options: type[cli.Options]) -> cli.Options:
    """Reads a run's config.yaml. Raises UserError if it is missing or invalid."""
    return cli.parse(options, ["--config", str(path)], prog="danet report")


def command_line(command: str, options: object, positionals: Sequence[str] = (), words: str | None = None) -> str:
    r"""The command with every option that differs from its default, one per line.

    ``positionals`` come first, without names. The values of the option ``words`` come last, after a separate --.

    Example:
        >>> from danet.evaluation.evaluate_options import EvaluateOptions
        >>> options = EvaluateOptions("weights.safetensors", "val.json", stride=2)
        >>> print(command_line("danet evaluate", options, ("weights", "data")))
        danet evaluate weights.safetensors val.json \
          --stride 2
    """
    first = [shlex.quote(str(getattr(options, name))) for name in positionals]
    left_out = {*positionals, words}
    lines = [" ".join([command, *first]), *(line for name, line in _changed(options) if name not in left_out)]
    if words is not None and getattr(options, words):
        lines.append(f"-- {shlex.join(getattr(options, words))}")
    return " \\\n  ".join(lines)


def configuration(command: str, path: Path, note: str) -> list[Block]:
    """The blocks of a section: the command, and all options with their values from the config.yaml at ``path``."""
    config = read_text(path).rstrip("\n")
    return [
        Paragraph(note),
        Code(command, "Command that reproduces the run"),
        Fold("All options, including those at their defaults", [Code(config, "config.yaml")]),
    ]


def _changed(options: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and command-line text of each option that differs from its default; nested names are dotted."""
    for item in fields(options):
        value, name = getattr(options, item.name), prefix + item.name
        if is_dataclass(value) and not prefix and is_dataclass(_default(item)):
            yield from _changed(value, f"{name}.")
        elif value != _default(item):
            yield name, _words(name, value)


def _default(item: Field) -> object:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _words(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, list | tuple) and value and all(_plain(each) for each in value):
        return " ".join([f"--{name}", *(shlex.quote(str(each)) for each in value)])
    if value is None or _plain(value):
        return f"--{name} {'null' if value is None else shlex.quote(str(value))}"
    if isinstance(value, str | int | float):  # may begin with a dash
        return shlex.quote(f"--{name}={value}")
    return shlex.quote(f"--{name}={json.dumps(value, default=vars)}")


def _plain(value: object) -> bool:
    if isinstance(value, str):
        return PLAIN.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
