"""The one style of every command: dataclass options, presets, YAML files, one-line errors."""

import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jsonargparse
from jsonargparse import ArgumentError, ArgumentParser

from danet.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

PRESETS = Path(__file__).parent / "presets"


def run(
    command: Callable,
    options: type,
    *,
    prog: str,
    positionals: Sequence[str] = (),
    presets: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Parses ``argv`` into an ``options`` dataclass, calls ``command(options)``, returns its exit code.

    Args:
        command: takes the dataclass, returns ``None`` or an exit code.
        options: a dataclass whose attribute docstrings become the help; nested dataclasses give
            dotted options (``--model.name``); list fields take several words (``--data A B``).
        prog: name in messages, such as ``danet train``.
        positionals: names of fields that may also be given as leading words, in this order; a list
            field may only be the last and takes all remaining leading words.
        presets: names of YAML files in ``danet/presets`` offered as ``--preset NAME``.

    Values are taken from the defaults, then ``--preset``, then ``--config FILE``, then the command
    line. A misspelt option, an impossible value or a UserError prints one line and returns 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser(prog=prog, description=_summary(command), exit_on_error=False, allow_abbrev=False)
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a recipe shipped with danet")
    parser.add_argument("--config", action="config", help="YAML file of options; later ones override it")
    parser.add_class_arguments(options, None, as_group=False)
    try:
        parsed = parser.parse_args(_expand(argv, options, positionals, presets))
        values = parser.instantiate(parsed)
        names = [f.name for f in dataclasses.fields(options)]
        return command(options(**{name: values[name] for name in names})) or 0
    except UserError as error:
        message = str(error)
    except ArgumentError as error:
        message = _one_line(error.message or str(error), options)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def dump(options: object) -> str:
    """The resolved options as YAML that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)


def _summary(command: Callable) -> str:
    return (command.__doc__ or "").strip().split("\n\n")[0]


def _expand(argv: list[str], options: type, positionals: Sequence[str], presets: Sequence[str]) -> list[str]:
    """Rewrites what a person types into what jsonargparse parses.

    Leading words become the positional fields, words after a list option become one JSON list, a bare
    ``--switch`` means true, and ``--preset NAME`` puts the preset's file first, so that everything
    typed overrides it.
    """
    lists = {f"--{name}" for name in _list_fields(options)}
    switches = {f"--{name}" for name, hint in _fields(options) if hint is bool}
    words: list[str] = []
    while argv and not argv[0].startswith("-"):
        words.append(argv[0])
        argv = argv[1:]
    expanded: list[str] = []
    for index, name in enumerate(positionals):
        if not words:
            break
        take = len(words) if f"--{name}" in lists and index == len(positionals) - 1 else 1
        taken, words = words[:take], words[take:]
        expanded.append(_assign(f"--{name}", taken, lists))
    if words:
        raise UserError(f"unexpected argument {words[0]!r}")

    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if token == "--preset" and position < len(argv) and argv[position] in presets:
            expanded[:0] = ["--config", str(PRESETS / f"{argv[position]}.yaml")]
            position += 1
        elif token in lists and position < len(argv) and not argv[position].startswith(("[", "-")):
            end = position
            while end < len(argv) and not argv[end].startswith("-"):
                end += 1
            expanded.append(_assign(token, argv[position:end], lists))
            position = end
        elif token in switches and (position == len(argv) or argv[position].lower() not in ("true", "false")):
            expanded.append(f"{token}=true")
        else:
            expanded.append(token)
    return expanded


def _assign(option: str, words: list[str], lists: set[str]) -> str:
    return f"{option}={json.dumps(words) if option in lists else words[0]}"


def _fields(options: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and types of all options, nested dataclasses included."""
    hints = typing.get_type_hints(options)
    for item in dataclasses.fields(options):
        hint = hints[item.name]
        yield prefix + item.name, hint
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner) and typing.get_origin(hint) is not list:
                yield from _fields(inner, f"{prefix}{item.name}.")


def _list_fields(options: type) -> list[str]:
    return [
        name
        for name, hint in _fields(options)
        if any(typing.get_origin(part) is list for part in (hint, *typing.get_args(hint)))
    ]


def _one_line(message: str, options: type) -> str:
    """jsonargparse's message as one line in our words, with the nearest name for a misspelt option."""
    message = " ".join(message.split())
    match = re.match(r"(?:Unrecognized arguments|unrecognized arguments): (\S+)", message)
    if match:
        wrong = match[1].split("=")[0]
        near = difflib.get_close_matches(wrong, [f"--{name}" for name, _ in _fields(options)], n=1)
        return f"unknown option {wrong}" + (f"; did you mean {near[0]}?" if near else "")
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    return message.replace("typing.", "").replace("Literal", "one of ")
