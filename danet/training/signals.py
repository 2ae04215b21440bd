"""Stopping a training between two steps when a signal asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Sets ``stop`` on Ctrl-C (SIGINT) and on SIGTERM, so that the current step is finished first.

    A second signal raises KeyboardInterrupt at once. Outside of the main thread, where Python allows no signal
    handlers, nothing is installed. The previous handlers are restored at the end.
    """

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
