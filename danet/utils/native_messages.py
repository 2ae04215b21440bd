"""Hides what native libraries print to stderr themselves."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()


@contextlib.contextmanager
def hide_native_messages() -> Iterator[None]:
    """Discards what the process writes to file descriptor 2 in this block, as OpenCV does when it opens a video writer.

    OpenCV offers no switch for these lines. Blocks should be short: lines of other threads are lost as well.

    Example:
        >>> with hide_native_messages():
        ...     _ = os.write(2, b"a line of a native library")
    """
    with _LOCK, contextlib.ExitStack() as stack:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
            stack.callback(os.close, saved)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            stack.callback(os.dup2, saved, 2)
        except (OSError, ValueError, AttributeError):  # a process without stderr prints nothing
            pass
        yield
