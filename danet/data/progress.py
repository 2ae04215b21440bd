"""One progress bar for everything that runs longer than two seconds."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Sequence[T], description: str, *, quiet: bool = False) -> Iterable[T]:
    """Iterates over ``items`` with a bar on stderr, or silently if ``quiet`` or stderr is no terminal."""
    disable = quiet or not sys.stderr.isatty()
    return rich_track(items, description, console=Console(stderr=True), disable=disable, transient=True)
