"""Commands with subcommands: the first word selects a module, whose ``main`` gets the other words."""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from danet.utils.cli import require_opencv
from danet.utils.guard import INVALID_INPUT, run_guarded

HELP = ("help", "-h", "--help", "--help-all")


def dispatch(
    prog: str,
    commands: dict[str, tuple[str, str]],
    argv: Sequence[str] | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    closing: str = "",
) -> int:
    """Imports the module that ``argv[0]`` names, calls its ``main(argv[1:])`` and returns the exit code.

    Args:
        prog: the name in messages, such as ``danet data``.
        commands: the module and one line of help for each name.
        argv: the words; by default those of the process. Without words, the names are listed as after ``help``. An
            unknown name prints one line and returns 2.
        aliases: other names of commands.
        synonyms: what to suggest for names that other tools use.
        closing: printed below the list of names.

    Example:
        >>> dispatch("danet", {"detect": ("danet.detect", "detect targets")}, ["--help"], aliases={"predict": "detect"})
        usage: danet NAME [options]
        <BLANKLINE>
          detect  detect targets (also: predict)
        <BLANKLINE>
        `danet NAME --help` lists the options of a command.
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    aliases = aliases or {}
    if argv and argv[0] in HELP and len(argv) > 1:  # danet help train
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in HELP:
        return run_guarded(prog, lambda: _print_names(prog, commands, aliases, closing))
    name = aliases.get(argv[0], argv[0])
    if name not in commands:
        hint = _suggestion(prog, argv, [*commands, *aliases], synonyms or {})
        print(f"{prog}: error: unknown name {argv[0]!r}; choose from {', '.join(commands)}{hint}", file=sys.stderr)
        return INVALID_INPUT
    require_opencv()  # most modules import OpenCV; if it is missing, this ends the process in one line

    def work() -> int:
        return importlib.import_module(commands[name][0]).main(argv[1:])

    return run_guarded(f"{prog} {name}", work, debug="--debug" in argv)


def _print_names(prog: str, commands: Mapping[str, tuple[str, str]], aliases: Mapping[str, str], closing: str) -> None:
    width = max(map(len, commands)) + 2
    lines = []
    for name, (_, text) in commands.items():
        others = ", ".join(alias for alias, meant in aliases.items() if meant == name)
        lines.append(f"  {name:<{width}}{text}{f' (also: {others})' if others else ''}\n")
    print(f"usage: {prog} NAME [options]\n\n{''.join(lines)}\n`{prog} NAME --help` lists the options of a command.")
    if closing:
        print(closing)


def _suggestion(prog: str, argv: Sequence[str], names: Sequence[str], synonyms: Mapping[str, str]) -> str:
    """The end of a message about an unknown name: what was probably meant, or nothing."""
    word = argv[0].lower().replace("_", "-")
    near = difflib.get_close_matches(word, names, n=1)
    meant = synonyms.get(word) or (near[0] if near else None)
    if meant is None and "detect" in names and (os.path.exists(argv[0]) or "://" in argv[0]):
        meant = f"detect {argv[0]}"
    return f"; did you mean {prog} {meant}?" if meant else ""
