"""The help of a command: the options that most users set, grouped, with examples; or all options."""

import argparse
import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from danet.utils.typed_options import Option, sequence_type, type_name


@dataclass(frozen=True)
class HelpPage:
    """What ``--help`` shows of a command with many options; ``--help-all`` shows all of them.

    Example:
        >>> HelpPage({"network": ["model.name"]}, {"danet train --data train.json": "train on one dataset"}).groups
        {'network': ['model.name']}
    """

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of options by the title of their group; without groups, ``--help`` shows all options."""

    examples: Mapping[str, str] = field(default_factory=dict)
    """Commands, and what they do."""


def format_help(
    options: Iterable[Option], page: HelpPage, *, prog: str, about: str, positionals: Sequence[str], everything: bool
) -> str:
    """The help of a command.

    Args:
        options: all options of the command.
        page: the groups of the short help, and examples.
        prog: the command, such as ``danet train``.
        about: what it does.
        positionals: options whose name may be omitted.
        everything: all options with their complete texts and types, instead of the groups of ``page``.
    """
    known = {option.name: option for option in options if page.groups or option.name != "help_all"}
    shown = (f"[{name.upper()}{' ...' if _is_list(known[name]) else ''}]" for name in positionals)
    usage = " ".join([prog, *shown, "[--OPTION VALUE ...]"])
    parser = argparse.ArgumentParser(
        prog=prog, usage=usage, description=about, add_help=False, formatter_class=_formatter
    )
    closing = ""
    if everything or not page.groups:
        _add_all(parser, known.values())
    else:
        for title, names in page.groups.items():
            group = parser.add_argument_group(title)
            for name in names:
                _add(group, known[name], _short_text(known[name]))
        count = sum(not dataclasses.is_dataclass(option.hint) for option in known.values())
        closing = f"\n`{prog} --help-all` explains all {count} options.\n"
    return parser.format_help() + _format_examples(page.examples) + closing


def _is_list(option: Option) -> bool:
    return typing.get_origin(sequence_type(option.hint)) is list


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30)


def _add_all(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Adds all options, those of each nested dataclass in a group."""
    groups: dict[str, Any] = {"": parser}
    for option in options:
        if dataclasses.is_dataclass(option.hint):
            groups[option.name] = parser.add_argument_group(f"--{option.name}", option.help)
        elif (parent := option.name.rpartition(".")[0]) in groups:
            is_required = option.default is dataclasses.MISSING
            default = "required" if is_required else f"default: {_shown(option.default)}"
            _add(groups[parent], option, f"{option.help} (type: {type_name(option.hint)}, {default})")


def _add(group: Any, option: Option, text: str) -> None:
    value = "VALUE ..." if sequence_type(option.hint) else {bool: "[true|false]"}.get(option.hint, "VALUE")
    names = ["-h", "--help"] if option.name == "help" else [f"--{option.name.replace('help_all', 'help-all')}"]
    if option.name in ("help", "help_all"):
        group.add_argument(*names, action="store_true", help=text.partition(" (type:")[0])
    else:
        group.add_argument(*names, help=text.replace("%", "%%"), metavar=value)


def _short_text(option: Option) -> str:
    """The first sentence of an option's help, its choices, and its default if the sentence does not tell it."""
    sentence = re.split(r"(?<=\.) ", option.help, maxsplit=1)[0]
    facts = []
    choices = typing.get_args(option.hint) if typing.get_origin(option.hint) is Literal else ()
    if not all(re.search(rf"\b{re.escape(str(choice))}\b", sentence) for choice in choices):
        facts.append(type_name(option.hint))
    if option.default is dataclasses.MISSING:
        facts.append("required")
    elif option.default not in (None, "", [], {}) and option.default is not False and "efault" not in sentence:
        facts.append(f"default: {_shown(option.default)}")
    return f"{sentence} ({'; '.join(facts)})" if facts else sentence


def _shown(default: object) -> str:
    return json.dumps(default).replace('"', "")


def _format_examples(examples: Mapping[str, str]) -> str:
    lines = [f"  {command}\n      {purpose}\n" for command, purpose in examples.items()]
    return "".join(["\nexamples:\n", *lines]) if lines else ""
