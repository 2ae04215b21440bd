"""Signals that end a training after its current step."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Sets ``stop`` on Ctrl-C (SIGINT), SIGTERM and SIGHUP, so that the current step is finished first.

    A second Ctrl-C raises KeyboardInterrupt at once. Other signals may come in pairs: systemd sends SIGTERM and SIGHUP.
    A SIGHUP that is ignored, as after nohup, stays ignored. The previous handlers are restored at the end. Outside of
    the main thread this does nothing, because Python allows signal handlers only there.

    Example:
        >>> stop = threading.Event()
        >>> with stop_on_signals(stop):
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.is_set()
        True
    """

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
