"""Text files that grow record by record and can be completed at any moment, also when the disk is full."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from danet.utils.errors import UserError
from danet.utils.files import atomic_path, write_error

REMEMBERED_RECORDS = 1024
"""Records that can be removed again to make room for the end of the file."""


class GrowingFile:
    """A text file of a head, records and a tail; it appears under its name at the end of the ``with`` block.

    It also appears after an exception, unless it has no records. Every record is written at once and as a whole: if the
    disk is full, the file ends after the record before it. The tail then takes the place of the last records.

    Args:
        path: the file.
        head: text before the records.
        visible: let the file grow under its own name from the start, so that other programs can follow it and it
            remains when the process is killed; it replaces an older file at once.

    Raises:
        UserError: from all methods, if the file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "numbers.json"
        >>> with GrowingFile(path, "[0") as file:
        ...     file.append(", 1")
        ...     file.tail = "]"
        >>> path.read_text()
        '[0, 1]'
    """

    def __init__(self, path: str | os.PathLike, head: str, *, visible: bool = False) -> None:
        self.path = Path(path)
        self.head = head
        self.tail = ""
        """Text after the records, which the end of the block writes."""
        self._ends: deque[int] = deque(maxlen=REMEMBERED_RECORDS)
        self._place = _created(self.path) if visible else atomic_path(path)
        self._file: int | None = None

    def __enter__(self) -> "GrowingFile":
        self._file = os.open(self._place.__enter__(), os.O_WRONLY | os.O_TRUNC)
        self._ends.append(0)
        try:
            self.append(self.head)
        except BaseException as error:
            self._close(type(error), error, error.__traceback__)
            raise
        return self

    def append(self, record: str) -> None:
        """Writes a record; if it does not fit on the disk, the file keeps the records before it."""
        assert self._file is not None, "append is called in the with block"
        start = end = self._ends[-1]
        data = record.encode("utf-8", "backslashreplace")
        try:
            while end - start < len(data):  # a nearly full disk takes only a part
                end += os.pwrite(self._file, data[end - start :], end)
        except OSError as error:
            os.ftruncate(self._file, start)
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        if end > start:
            self._ends.append(end)

    def undo(self) -> None:
        """Removes the last record."""
        assert self._file is not None, "undo is called in the with block"
        self._ends.pop()
        os.ftruncate(self._file, self._ends[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and len(self._ends) <= 2:
            self._close(kind, error, trace)
            return
        try:
            self._append_tail()
        except UserError as failure:
            self._close(type(failure), failure, failure.__traceback__)
            raise
        self._close(None, None, None)

    def _append_tail(self) -> None:
        """Writes the tail, in the place of as many of the last records as is necessary."""
        while True:
            try:
                return self.append(self.tail)
            except UserError:
                if len(self._ends) <= 2:  # only the head is left
                    raise
                self.undo()

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._place.__exit__(kind, error, trace)


@contextlib.contextmanager
def _created(path: Path) -> Iterator[Path]:
    """Yields ``path``, which exists and is empty."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    except OSError as error:
        raise write_error(path, error) from error
    yield path
