"""One progress bar for everything that runs longer than two seconds."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Sequence[T], description: str, *, quiet: bool = False) -> Iterable[T]:
    """Iterates over ``items`` with a bar on stderr, or silently if ``quiet`` or stderr is no terminal."""
    disable = quiet or not sys.stderr.isatty()
    return rich_track(items, description, console=Console(stderr=True), disable=disable, transient=True)


@contextlib.contextmanager
def working(description: str, *, quiet: bool = False) -> Iterator[None]:
    """A bar and the time on stderr while something is done whose length nobody knows; silent where ``track`` is."""
    disable = quiet or not sys.stderr.isatty()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=disable, transient=True) as bar:
        bar.add_task(description, total=None)
        yield
