"""Reads text and JSON files; writes output files atomically."""

import contextlib
import errno
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from danet.utils.errors import FaultError, UserError

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Numbers of OSErrors that a full or broken disk causes: the same command succeeds once the disk is in order."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, which is renamed to ``path`` when the block succeeds.

    The temporary file has the suffix of ``path``, because image and video writers choose the format by it. After an
    exception it is removed, and an older file ``path`` is unchanged.

    Raises:
        UserError: the file cannot be written, for example because ``path`` is a folder; FaultError if the disk is full.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(f"{folder}/a.txt") as temporary:
        ...         _ = temporary.write_text("complete")
        ...     os.listdir(folder)
        ['a.txt']
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files that only their owner can read; apply the umask as for any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, name):  # an error of another file
            raise
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """The error to raise when a file cannot be written: FaultError for a full or broken disk, otherwise UserError.

    Example:
        >>> str(write_error("a.csv", OSError(errno.ENOSPC, "No space left on device")))
        'a.csv: cannot be written (No space left on device)'
    """
    kind = FaultError if error.errno in DISK_FAULTS else UserError
    return kind(f"{path}: cannot be written ({error.strerror or error})")


def remove_temporary_files(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Removes what ``atomic_path`` leaves in ``folder`` if its process is killed while it writes one of ``names``.

    Call it only when no other process writes these files.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, ".a-k3xb09_q.txt").write_text("incomplete")
        ...     remove_temporary_files(folder, ["a.txt"])
        ...     os.listdir(folder)
        []
    """
    for name in names:
        # mkstemp puts eight random characters between prefix and suffix.
        for leftover in Path(folder).glob(f".{glob.escape(Path(name).stem)}-{'?' * 8}{glob.escape(Path(name).suffix)}"):
            leftover.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike) -> None:
    """Raises UserError if no file can be written into the folder ``path``, which need not exist yet.

    Example:
        >>> check_folder(tempfile.gettempdir())
    """
    folder = Path(path).absolute()
    found = next(place for place in (folder, *folder.parents) if place.exists())
    if not found.is_dir():
        raise UserError(f"{path}: no folder for results ({found} is a file)")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission for {found})")


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 file. Raises UserError if it is missing, cannot be read or is not UTF-8 text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically, see ``atomic_path``."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object, *, indent: int | None = 2) -> None:
    """Writes ``value`` as JSON atomically, see ``atomic_path``. Raises ValueError for NaN, which is not JSON.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(f"{folder}/a.json", {"frames": 3})
        ...     read_json(f"{folder}/a.json")
        {'frames': 3}
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file. Raises UserError if it is missing or not valid JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except RecursionError:
        raise UserError(f"{path}: not usable JSON (nested too deeply)") from None
