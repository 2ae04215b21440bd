"""The last handler of every command: it turns an exception into one line on stderr and an exit code."""

import contextlib
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from danet.utils.errors import PeerError, UserError, one_line
from danet.utils.files import DISK_FAULTS
from danet.utils.names import MAX_PATH_CHARACTERS

UNEXPECTED = 1
"""Exit code after a fault of the machine, such as a full disk, and after an error that is a bug of DANet."""
INVALID_INPUT = 2
INTERRUPTED = 130
"""Exit code after Ctrl-C; shells use it for SIGINT."""
BROKEN_PIPE = 141
"""Exit code if the reader of the output, such as ``head``, has ended; shells use it for SIGPIPE."""

OUT_OF_MEMORY = re.compile(r"out of memory|(can't|unable to|failed to) allocate|insufficient memory", re.IGNORECASE)
BUG_REPORT = "this is a bug of DANet"
"""Part of the message of an exception that no code expected."""
MAX_FRAMES = 100
"""Number of innermost stack frames that are searched for the file that an unexpected error is about."""


def run_guarded(prog: str, work: Callable[[], int | None], *, debug: bool = False) -> int:
    """Calls ``work`` and returns its exit code, or that of the exception that it raises.

    An exception prints one line that begins with ``prog``. For a UserError or OSError it is their message (exit code 2;
    1 for a FaultError and for a full or broken disk). If another package cannot be imported (2) or the memory is
    exhausted (1), the line says what to do. For any other exception it states the file or the operation that caused it,
    and asks for a report (1). Ctrl-C returns 130. If the reader of stdout or stderr has ended (BrokenPipeError),
    nothing is printed and the exit code is 141; nor is anything printed for a PeerError, whose process prints it.
    SystemExit is not caught.

    Args:
        prog: the command, such as ``danet train``.
        work: returns an exit code, or None for 0.
        debug: print the traceback as well.

    Example:
        >>> run_guarded("danet example", lambda: None)
        0
    """
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(prog, "interrupted", INTERRUPTED)
    except PeerError as error:
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _discard_unread_output():
            return BROKEN_PIPE
        if debug:
            traceback.print_exc()
        code, message = explain(error)
        return _fail(prog, f"error: {message}", code)


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the message for an exception that ends a command.

    Example:
        >>> explain(UserError("a.png: not a readable image"))
        (2, 'a.png: not a readable image')
    """
    text = str(error)
    if isinstance(error, UserError):
        return getattr(error, "exit_code", INVALID_INPUT), text
    if isinstance(error, OSError):  # for example a full disk; a traceback would not help
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
        return UNEXPECTED if error.errno in DISK_FAULTS else INVALID_INPUT, message
    if isinstance(error, ImportError) and not (error.name or "").startswith("danet"):
        return INVALID_INPUT, f"{error.name or 'a package'}: cannot be imported ({text}); install it again"
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        return UNEXPECTED, f"out of memory ({text or type(error).__name__}); use smaller images or a smaller batch"
    file, operation = _locate(error)
    subject = f"{file}: unexpected error" if file else "unexpected error"
    problem = f"{subject} in {operation} ({type(error).__name__}{': ' if text else ''}{_cut(text, 300)})"
    return UNEXPECTED, f"{problem}; {BUG_REPORT}, please report it with the output of --debug"


def _cut(text: str, limit: int) -> str:
    """Leaves out the middle of a text that is longer than ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-limit // 3 :]}"


def _fail(prog: str, message: str, code: int) -> int:
    for stream, text in ((sys.stderr, f"{prog}: {one_line(message)}\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # it is closed, or its disk is full
            _discard(stream)
    return code


def _discard_unread_output() -> bool:
    """Sends what is left of stdout and stderr to nowhere if their reader has ended; returns whether one has."""
    without_reader = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
    for stream in without_reader:  # otherwise Python prints an error when it flushes the stream on exit
        _discard(stream)
    return bool(without_reader)


def _has_no_reader(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:  # not a file
        return False


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # not a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _locate(error: Exception) -> tuple[Path | None, str]:
    """The file that DANet was reading or writing when the exception was raised, and DANet's function that raised it.

    The file is None if none is found.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in reversed(frames) if _module(frame).startswith("danet.")]
    inner = [frame for frame in ours if _module(frame) not in (__name__, "danet.utils.cli", "danet.utils.dispatch")]
    in_functions = [frame for frame in inner[:MAX_FRAMES] if frame.f_code.co_name != "<module>"]
    file = next((path for frame in in_functions for path in _files(frame)), None)
    place = (inner or frames[-1:])[0]
    return file, f"{_module(place)}.{getattr(place.f_code, 'co_qualname', place.f_code.co_name)}"


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")


def _files(frame: FrameType) -> Iterator[Path]:
    """Existing files that local variables, or their attribute ``path``, name."""
    for value in frame.f_locals.values():
        for candidate in (value, getattr(value, "__dict__", {}).get("path")):
            is_name = isinstance(candidate, str) and "." in candidate and len(candidate) < MAX_PATH_CHARACTERS
            if (is_name or isinstance(candidate, Path)) and os.path.isfile(str(candidate)):
                yield Path(str(candidate))
