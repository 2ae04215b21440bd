"""Commands of commands: the first word chooses the module whose ``main(argv)`` gets the rest."""

import importlib
import sys
from collections.abc import Sequence


def dispatch(prog: str, commands: dict[str, tuple[str, str]], argv: Sequence[str] | None = None) -> int:
    """Calls ``main`` of the module behind ``argv[0]``, which is loaded only then, and returns its exit code.

    ``commands`` maps each name to its module and one line of help. A missing or unknown name prints one
    line and gives 2. ``argv`` is the process's own by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-h", "--help"):
        width = max(map(len, commands)) + 2
        lines = "".join(f"  {name:<{width}}{text}\n" for name, (_, text) in commands.items())
        print(f"usage: {prog} NAME [options]\n\n{lines}\n`{prog} NAME --help` explains the options of one.")
        return 0
    if not argv or argv[0] not in commands:
        said = f"unknown name {argv[0]!r}" if argv else "a name is missing"
        print(f"{prog}: error: {said}; choose from {', '.join(commands)}", file=sys.stderr)
        return 2
    import danet.utils.cli  # noqa: F401  first, since it says in one line that OpenCV is missing

    return importlib.import_module(commands[argv[0]][0]).main(argv[1:])
