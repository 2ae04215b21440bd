"""Reads text and JSON files; writes output files atomically."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danet.utils.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, which is renamed to ``path`` when the block succeeds.

    The temporary file has the suffix of ``path``, because image and video writers choose the format by it. After an
    exception it is removed, and an older file ``path`` is unchanged.

    Raises:
        UserError: the file cannot be written, for example because the disk is full or ``path`` is a folder.

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
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
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
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


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
