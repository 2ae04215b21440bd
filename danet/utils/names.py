"""Names and values that come from files: checks them, turns names into paths, and shortens values for messages.

A class name of a dataset is printed, drawn on images and written into other files, and some names become file names.
Everything that reads names from a file calls ``check_name``, and everything that makes a path of one calls
``join_name``.
"""

import os
import unicodedata
from pathlib import Path

from danet.utils.errors import UserError

MAX_NAME_CHARACTERS = 200
"""Maximum length of the name of a class, video or recording."""
MAX_PATH_CHARACTERS = 4096
"""Maximum length of a path, as on Linux."""
MAX_FILE_NAME_BYTES = 255
"""Maximum length of one part of a path, as on Linux, macOS and Windows."""

UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that no name may contain: control characters, lone surrogates, line and paragraph separators."""


def quote(value: object, limit: int = 80) -> str:
    """Formats a value of a file for a message of one line: its ``repr`` in at most ``limit`` characters.

    Example:
        >>> quote("drone"), quote("x" * 1000, limit=12)
        ("'drone'", "'xxxxxxxx...")
    """
    if isinstance(value, str):
        text = repr(value[:limit])  # the repr of the whole text may be megabytes
    elif isinstance(value, int | float | bool | None):
        text = repr(value)
    else:
        text = _quote_container(value, limit)
    # A repr may contain characters that a terminal cannot show, such as lone surrogates.
    text = text.encode("utf-8", "backslashreplace").decode()
    is_cut = len(text) > limit or (isinstance(value, str) and len(value) > limit)
    return text[: limit - 3] + "..." if is_cut else text


def _quote_container(value: object, limit: int) -> str:
    """The beginning of the repr of a list or dictionary. It visits only the elements that are shown, because nested
    aliases of YAML can stand for more elements than fit into memory."""
    if isinstance(value, list | tuple):
        parts, length = [], 2
        for item in value:
            parts.append(_quote_nested(item, limit))
            length += len(parts[-1]) + 2
            if length > limit:
                break
        return f"[{', '.join(parts)}]"
    if isinstance(value, dict):
        parts, length = [], 2
        for key, item in value.items():
            parts.append(f"{_quote_nested(key, limit)}: {_quote_nested(item, limit)}")
            length += len(parts[-1]) + 2
            if length > limit:
                break
        return f"{{{', '.join(parts)}}}"
    return f"a value of type {type(value).__name__}"


def _quote_nested(value: object, limit: int) -> str:
    """The repr of an element; of a container inside a container only the kind."""
    if isinstance(value, list | tuple):
        return "[...]" if value else "[]"
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    return quote(value, limit)


def check_name(name: object, place: str, limit: int = MAX_NAME_CHARACTERS) -> str:
    """Checks a name that comes from a file, and returns it.

    Args:
        name: the value that the file contains.
        place: what the message starts with: the file and the entry.
        limit: maximum number of characters.

    Raises:
        UserError: if the value is not a text, is empty, is too long, or contains control characters or lone surrogates,
            which cannot be printed or written to a file.

    Example:
        >>> check_name("drone", "data.yaml: class 0")
        'drone'
        >>> check_name("a\\x1b[2J", "data.yaml: class 0")
        Traceback (most recent call last):
        danet.utils.errors.UserError: data.yaml: class 0: a name must not contain control characters, got 'a\\x1b[2J'
    """
    if not isinstance(name, str):
        raise UserError(f"{place}: a name must be a text, got {quote(name)}")
    if not name.strip():
        raise UserError(f"{place}: a name must not be empty, got {quote(name)}")
    if len(name) > limit:
        raise UserError(f"{place}: a name must have at most {limit} characters, got {len(name)}: {quote(name)}")
    # isprintable is fast and true for most names; it is false for some harmless characters, too.
    if not name.isprintable() and any(unicodedata.category(char) in UNSAFE_CATEGORIES for char in name):
        raise UserError(f"{place}: a name must not contain control characters, got {quote(name)}")
    return name


def join_name(folder: str | os.PathLike, name: object, place: str, *, inside: bool = True) -> Path:
    """Makes a path of a folder and a name that comes from a file.

    Args:
        folder: the folder that the name is relative to.
        name: a file name or a relative path with slashes.
        place: what the message starts with: the file and the entry.
        inside: refuse a name that leads out of the folder. Use False only for files that are read.

    Raises:
        UserError: if the name is invalid (see ``check_name``), a part of it is too long for a file name, or it leads
            out
            of the folder.

    Example:
        >>> join_name("out", "images/a.png", "train.json").as_posix()
        'out/images/a.png'
        >>> join_name("out", "../a.png", "train.json")
        Traceback (most recent call last):
        danet.utils.errors.UserError: train.json: a name must not lead out of its folder, got '../a.png'
    """
    name = check_name(name, place, MAX_PATH_CHARACTERS)
    parts = name.replace("\\", "/").split("/")
    if inside and (".." in parts or not parts[0] or parts[0].endswith(":")):
        raise UserError(f"{place}: a name must not lead out of its folder, got {quote(name)}")
    if any(len(os.fsencode(part)) > MAX_FILE_NAME_BYTES for part in parts):
        raise UserError(f"{place}: a file name must have at most {MAX_FILE_NAME_BYTES} bytes, got {quote(name)}")
    return Path(folder, name)
