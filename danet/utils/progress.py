"""Progress bars on stderr; they appear only in a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # rich is imported when the first bar is shown: importing it takes longer than checking the options
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


def track(items: Sequence[T], description: str, *, quiet: bool = False) -> Iterable[T]:
    """Iterates over ``items`` with a progress bar, unless ``quiet`` is set or stderr is not a terminal.

    Example:
        >>> list(track([1, 2, 3], "counting"))
        [1, 2, 3]
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    return rich_track(items, escape(description), console=console, disable=_is_disabled(quiet), transient=True)


@contextlib.contextmanager
def working(description: str, *, quiet: bool = False) -> Iterator[None]:
    """Shows the elapsed time during work of unknown length, under the conditions of ``track``.

    Example:
        >>> with working("compiling"):
        ...     pass
    """
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    with _bar(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), quiet=quiet) as bar:
        bar.add_task(escape(description), total=None)
        yield


@contextlib.contextmanager
def count_items(
    description: str, total: int | None, unit: str, *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many of ``total`` items are done, with their rate and the remaining time.

    ``total`` None is an unknown number. The bar appears under the conditions of ``track``.

    Example:
        >>> with count_items("detect", 100, "frames") as show_count:
        ...     show_count(1)
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:.1f} " + f"{unit}/s")
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with _bar(*columns, quiet=quiet) as bar:
        task = bar.add_task(escape(description), total=total, rate=0.0)
        yield lambda done: bar.update(task, completed=done, rate=done / (time.perf_counter() - started))


def _bar(*columns: "ProgressColumn", quiet: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), disable=_is_disabled(quiet), transient=True)


def _is_disabled(quiet: bool) -> bool:
    return quiet or not sys.stderr.isatty()
