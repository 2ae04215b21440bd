"""Output files that appear whole or not at all."""

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
    """Yields a temporary path beside ``path``; it takes the name ``path`` when the block succeeds.

    The temporary file keeps ``path``'s suffix, since image and video writers choose the format by it.
    On any exception it is removed and an older ``path`` stays as it was; a full disk or a folder in the
    place of ``path`` is a UserError.
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
        # mkstemp makes files that only their owner can read; outputs follow the umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, name):  # another file's trouble
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike) -> None:
    """Raises UserError if no file can be written into the folder ``path``, which may be still to be made."""
    folder = Path(path).absolute()
    found = next(place for place in (folder, *folder.parents) if place.exists())
    if not found.is_dir():
        raise UserError(f"{path}: no folder for results ({found} is a file)")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission for {found})")


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 file; a missing one, or one that is no text, is a UserError that names it."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object, *, indent: int | None = 2) -> None:
    """Writes ``value`` as JSON atomically. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; a missing or broken one is a UserError that names it."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except RecursionError:
        raise UserError(f"{path}: not usable JSON (nested too deeply)") from None
