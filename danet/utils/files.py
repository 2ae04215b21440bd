"""Reads text, JSON, YAML and XML files; writes output files atomically."""

import contextlib
import errno
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from danet.utils.errors import FaultError, UserError

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Numbers of OSErrors that a full or broken disk causes: the same command succeeds once the disk is in order."""

MAX_NESTING = 100
"""Maximum depth of lists and mappings in a YAML file."""
MAX_YAML_VALUES = 1_000_000
"""Maximum number of values of a YAML file, counted as often as aliases repeat them."""
ENCODINGS_OF_PYTHON = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"})
"""Text encodings of Python that no XML file has; some of them take quadratic time."""


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


@contextlib.contextmanager
def encodable_path(path: str | os.PathLike) -> Iterator[str]:
    """Yields a name of a file for OpenCV and other libraries that take only UTF-8.

    If ``path`` is not UTF-8, this is the name of a link to it in a temporary folder: Python represents such a path with
    surrogates, at which OpenCV crashes. The link exists until the end of the block; it keeps the suffix.

    Example:
        >>> with encodable_path("clip.avi") as name:
        ...     name
        'clip.avi'
        >>> with encodable_path("t\\udce9l\\udce9.avi") as name:
        ...     os.path.basename(name)
        'link.avi'
    """
    name = os.fspath(path)
    if name.encode("utf-8", "ignore") == name.encode("utf-8", "surrogatepass"):
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="danet-") as folder:
        suffix = Path(name).suffix.encode("utf-8", "ignore").decode()
        link = os.path.join(folder, f"link{suffix}")
        os.symlink(os.path.abspath(name), link)
        yield link


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


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Raises UserError if ``path`` is a folder, or is a file that must not be replaced.

    Example:
        >>> path = getfixture("tmp_path") / "weights.onnx"
        >>> path.touch()
        >>> check_new_file(path, overwrite=True)
        >>> check_new_file(path.parent, overwrite=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        danet.utils.errors.UserError: ...: is a folder
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; --overwrite replaces it")


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
    """Reads a UTF-8 file, or a UTF-16 file with a byte order mark, as some editors of Windows write it.

    Raises:
        UserError: if the file is missing, cannot be read or is not such text.

    Example:
        >>> path = getfixture("tmp_path") / "classes.txt"
        >>> _ = path.write_bytes("drone".encode("utf-16"))
        >>> read_text(path)
        'drone'
    """
    content = _read_bytes(path)
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        # Universal newlines, as in text mode.
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # the path contains a NUL or a lone surrogate
        raise UserError(f"{str(path)!r}: not a valid path ({error})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically, see ``atomic_path``.

    Surrogates, which UTF-8 cannot represent, become escapes: they stand in names of files that are not UTF-8.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except ValueError:  # Python refuses to convert integers of more than 4300 digits
        raise UserError(f"{path}: not usable JSON (an integer has thousands of digits)") from None
    except RecursionError:
        raise UserError(f"{path}: not usable JSON (nested too deeply)") from None


def read_yaml(path: str | os.PathLike) -> Any:
    """Reads a YAML file. Raises UserError if it is missing or ``parse_yaml`` refuses its content."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, place: str) -> Any:
    """Parses YAML or JSON text.

    Args:
        text: one document.
        place: what the message starts with, such as the name of the file.

    Raises:
        UserError: if the text is not valid YAML, is nested deeper than MAX_NESTING, or has more than MAX_YAML_VALUES
            values. Aliases count as often as they are used: nested ones can stand for more values than fit into memory.

    Example:
        >>> parse_yaml("names: [drone, bird]", "data.yaml")
        {'names': ['drone', 'bird']}
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C, ten times as fast; not in every build
    try:
        _check_yaml_size(yaml.parse(text, Loader=loader), place)
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise UserError(f"{place}: not valid YAML ({' '.join(str(error).split())[:200]})") from error
    except UserError:
        raise
    except Exception as error:  # PyYAML raises many kinds of errors for invalid dates, numbers and tags
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{place}: not usable YAML ({problem})") from error


def _check_yaml_size(events: Iterator[yaml.Event], place: str) -> None:
    """Checks nesting and number of values from the events of the parser, before any object is built."""
    open_sizes = [0]  # values so far of each open list or mapping, the document first
    open_anchors: list[str | None] = [None]
    anchored: dict[str, int] = {}
    for event in events:
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_sizes.append(1)
            open_anchors.append(event.anchor)
            if len(open_sizes) > MAX_NESTING:
                raise UserError(f"{place}: not usable YAML (nested deeper than {MAX_NESTING} levels)")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size = open_sizes.pop()
            if anchor := open_anchors.pop():
                anchored[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise UserError(f"{place}: not usable YAML (an alias refers to itself or to nothing)")
            size = anchored[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor:
                anchored[event.anchor] = size
        open_sizes[-1] += size
        if open_sizes[-1] > MAX_YAML_VALUES:
            raise UserError(f"{place}: not usable YAML (more than {MAX_YAML_VALUES} values)")


def read_xml(path: str | os.PathLike) -> ElementTree.Element:
    """Reads an XML file in any encoding that Python knows, and returns its root element.

    Raises:
        UserError: if the file is missing, is not valid XML, has an unknown encoding, or declares entities, which can
            stand for more text than fits into memory.

    Example:
        >>> path = getfixture("tmp_path") / "a.xml"
        >>> _ = path.write_text("<annotation><filename>a.jpg</filename></annotation>")
        >>> read_xml(path).findtext("filename")
        'a.jpg'
    """
    content = _read_bytes(path)
    # The parser knows only few encodings, and GB2312 is none of them: decode here, and leave the declaration out.
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""", content)
    encoding = declared[1].decode() if declared else "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif encoding.lower() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    elif encoding.lower() in ("gb2312", "gbk"):
        encoding = "gb18030"  # contains both; tools declare gb2312 and write characters of the larger sets
    try:
        if encoding.lower().replace("-", "_") in ENCODINGS_OF_PYTHON:
            raise LookupError(f"unknown encoding: {encoding}")
        text = content.decode(encoding)
    except (LookupError, ValueError) as error:
        raise UserError(f"{path}: not readable as {encoding} ({str(error)[:100]})") from error
    if "<!ENTITY" in text:
        raise UserError(f"{path}: not usable XML (it declares entities)")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1))
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid XML ({str(error)[:200]})") from error
