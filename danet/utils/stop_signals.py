"""Stop signals (Ctrl-C, SIGTERM, SIGHUP): work ends at a safe point and completes its files first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; the end of a service or a container; the end of a terminal. Some systems lack the last."""


class StopSignals:
    """Context manager that turns stop signals into KeyboardInterrupt, but only while ``interrupt`` fetches an item.

    The body of a loop over ``interrupt``, and what follows it, is not interrupted, so that files stay whole. See
    ``signal_handlers`` for signals that are ignored and for other threads.

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
        self._handlers = signal_handlers(self._handle, STOP_SIGNALS)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal has ended, as shells define it: 128 plus the number of the signal.

        0 if there was none.
        """
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> "StopSignals":
        self._handlers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.__exit__(None, None, None)

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
    pairs: systemd sends SIGTERM and SIGHUP. See ``signal_handlers`` for signals that are ignored and for other threads.

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

    with signal_handlers(handle, STOP_SIGNALS):
        yield


@contextlib.contextmanager
def signal_handlers(handler: Callable[[int, FrameType | None], Any] | int, names: Sequence[str]) -> Iterator[None]:
    """Handles signals inside of the block, and restores the previous handlers at its end.

    A signal that the process ignores, as SIGHUP under ``nohup``, stays ignored. In other threads than the main one,
    where Python allows no signal handlers, this has no effect.

    Args:
        handler: a function of the signal's number and the stack frame, or ``signal.SIG_DFL``.
        names: names of the signals; those that the system does not have are left out.

    Example:
        >>> with signal_handlers(lambda number, _: print(signal.Signals(number).name), ["SIGTERM"]):
        ...     signal.raise_signal(signal.SIGTERM)
        SIGTERM
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        previous = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old or signal.SIG_DFL)
