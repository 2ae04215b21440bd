"""Stop signals of a command: it ends between two steps, and finishes its files first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; the end of a service or a container; the end of a terminal. Some systems lack the last."""


class StopSignals:
    """Context manager that turns stop signals into KeyboardInterrupt, but only while ``interrupt`` iterates.

    Work between two items, and everything at the end of a command, is not interrupted, so that files stay whole. A
    signal that the process ignores, as SIGHUP under ``nohup``, stays ignored. The previous handlers are restored at the
    end. Outside of the main thread, where Python allows no handlers, nothing happens.

    Attributes:
        received: the first stop signal; None if there was none.

    Example:
        >>> with StopSignals() as stop:
        ...     list(stop.interrupt([1, 2, 3]))
        [1, 2, 3]
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_interruptible = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal has ended, as shells define it: 128 and its number; 0 without."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def interrupt(self, items: Iterable[T]) -> Iterator[T]:
        """Iterates over ``items``. A signal that arrives before or while an item is taken raises KeyboardInterrupt."""
        iterator = iter(items)
        while True:
            with self._interruptible():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._is_interruptible = True
        try:
            if self.received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_interruptible = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            if self._is_interruptible:
                raise KeyboardInterrupt
