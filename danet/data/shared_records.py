"""Image records of any number in a file that all processes of a machine read.

A list of a million Python objects costs gigabytes, and each loader process soon has it for itself: counting references
writes to them. In a file they cost a process nothing but the one that it looks at.
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
    """A sequence of `ImageRecord` that never changes; an element is made anew each time it is asked for.

    The file is a temporary one, gone with the last process that has it open; forked processes share it.

    Args:
        records: what it holds, gone through once.

    Raises:
        UserError: where the folder for temporary files is full.
    """

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        self._file = tempfile.TemporaryFile(prefix="danet-records-")  # noqa: SIM115 (open as long as this is)
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
        """For processes that are not forked."""
        return SharedRecords, (list(self),)
