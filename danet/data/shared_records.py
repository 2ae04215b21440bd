"""Image records in a temporary file that all processes of a machine share.

A list of a million Python objects takes gigabytes, and every loader worker soon has its own copy, because Python's
reference counts are written into the objects. With records in a file, a process holds only the one that it uses.
"""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.utils.errors import UserError


class SharedRecords(Sequence[ImageRecord]):
    """A read-only sequence of ``ImageRecord`` in a temporary file; every access creates a new object.

    Forked processes share the file, which disappears with the last process that has it open.

    Args:
        records: the elements; iterated once.

    Raises:
        UserError: if the folder for temporary files is full.

    Example:
        >>> from pathlib import Path
        >>> record = ImageRecord(Path("a.png"), 64, 48, np.zeros((0, 4)), [], np.zeros(0, bool))
        >>> len(SharedRecords([record, record]))
        2
    """

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        self._file = tempfile.TemporaryFile(prefix="danet-records-")  # noqa: SIM115 (stays open with this object)
        ends = array("q", [0])
        try:
            for record in records:
                ends.append(ends[-1] + self._file.write(pickle.dumps(record)))
            self._file.flush()
        except OSError as error:
            raise UserError(f"{tempfile.gettempdir()}: cannot hold the list of images ({error})") from error
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        begin, end = self._ends[index % len(self) :][:2].tolist()
        return pickle.loads(os.pread(self._file.fileno(), end - begin, begin))

    def __reduce__(self) -> tuple:
        """Pickles all records, for processes that are not forked."""
        return SharedRecords, (list(self),)
