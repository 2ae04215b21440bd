"""Stop signals: a command ends between two items, a training after a step, and both finish their files first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any] | int | None

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
        self._previous: dict[int, Handler] = {}

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal has ended, as shells define it: 128 plus the number of the signal.

        0 if there was none.
        """
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> "StopSignals":
        self._previous = _set_handlers(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        _restore_handlers(self._previous)

    def interrupt(self, items: Iterable[T]) -> Iterator[T]:
        """Iterates over ``items``, so that a stop signal can interrupt the iteration.

        A signal that arrives before or while an item is taken raises KeyboardInterrupt.
        """
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


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Sets ``stop`` on a stop signal, so that the current step of a training is finished first.

    A Ctrl-C after any stop signal raises KeyboardInterrupt at once. Other signals do not, because they may come in
    pairs: systemd sends SIGTERM and SIGHUP. Ignored signals, previous handlers and other threads are treated as by
    ``StopSignals``.

    Example:
        >>> stop = threading.Event()
        >>> with stop_on_signals(stop):
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.is_set()
        True
    """

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = _set_handlers(handle)
    try:
        yield
    finally:
        _restore_handlers(previous)


def _set_handlers(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Handler]:
    """Handles the stop signals that are not ignored, in the main thread; returns the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    return {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}


def _restore_handlers(previous: dict[int, Handler]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
