"""Commands with subcommands: the first word selects a module, whose ``main`` gets the other words."""

import importlib
import sys
from collections.abc import Sequence

from danet.utils.cli import prepare_opencv


def dispatch(prog: str, commands: dict[str, tuple[str, str]], argv: Sequence[str] | None = None) -> int:
    """Imports the module that ``argv[0]`` names, calls its ``main(argv[1:])`` and returns the exit code.

    Args:
        prog: the name in messages, such as ``danet data``.
        commands: the module and one line of help for each name.
        argv: the words; by default those of the process. A missing or unknown name prints one line and returns 2.

    Example:
        >>> dispatch("danet", {"detect": ("danet.detect", "detect targets")}, ["--help"])
        usage: danet NAME [options]
        <BLANKLINE>
          detect  detect targets
        <BLANKLINE>
        `danet NAME --help` lists the options of a command.
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-h", "--help"):
        width = max(map(len, commands)) + 2
        lines = "".join(f"  {name:<{width}}{text}\n" for name, (_, text) in commands.items())
        print(f"usage: {prog} NAME [options]\n\n{lines}\n`{prog} NAME --help` lists the options of a command.")
        return 0
    if not argv or argv[0] not in commands:
        problem = f"unknown name {argv[0]!r}" if argv else "a name is missing"
        print(f"{prog}: error: {problem}; choose from {', '.join(commands)}", file=sys.stderr)
        return 2
    prepare_opencv()  # most modules import OpenCV; if it is missing, this ends the process in one line
    return importlib.import_module(commands[argv[0]][0]).main(argv[1:])
