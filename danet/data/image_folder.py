"""Finds the images of a folder, and reads the size of an image from the header of its file."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.names import MAX_PATH_CHARACTERS, check_name

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"})
JPEG_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG file that are followed by the image size (start of frame)."""
HEADER_BYTES = 1 << 16
"""How much of a file is read to find its size."""


def walk_files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Yields the files with one of ``suffixes`` in a folder and its subfolders, sorted within each folder.

    Links to files and folders are followed; a link to a folder that contains it is left out. So are the files that
    macOS adds to archives (``._a.png``, ``__MACOSX``).

    Raises:
        UserError: the folder is the root of the file system, or contains a link to it.

    Example:
        >>> path = getfixture("tmp_path") / "a.xml"
        >>> path.touch()
        >>> [found.name for found in walk_files(path.parent, frozenset({".xml"}))]
        ['a.xml']
    """
    parents: dict[str, tuple[str, ...]] = {}  # real paths of the folders above, to notice loops of links
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if os.path.dirname(real) == real:
            raise UserError(f"{name}: is the root of the file system; name the folder of the dataset")
        above = parents.pop(name, ())
        if real in above:
            folders.clear()
            continue
        folders[:] = sorted(each for each in folders if each != "__MACOSX")
        parents.update({os.path.join(name, each): (*above, real) for each in folders})
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in suffixes and not file.startswith("._"):
                yield Path(name, file)


def find_images(folder: Path) -> dict[str, Path]:
    """Finds all images in ``folder`` and its subfolders, see ``walk_files``: relative path without suffix -> path.

    Raises:
        UserError: if there is no such folder, it is the root of the file system, it contains no image, two images
            differ only in their suffix, or a file name cannot be printed.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> path.touch()
        >>> list(find_images(path.parent))
        ['a']
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images: dict[str, Path] = {}
    for path in walk_files(folder, IMAGE_SUFFIXES):
        check_name(path.name, f"{folder}: image", MAX_PATH_CHARACTERS)
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in images:
            raise UserError(f"{path}: another image has this name ({images[name].name})")
        images[name] = path
    if not images:
        raise UserError(f"{folder}: no images in this folder")
    return dict(sorted(images.items()))


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of an image as ``read_image`` decodes it.

    The size is read from the header of PNG and JPEG files. Other formats, and files with EXIF data, which may state a
    rotation, are decoded.

    Raises:
        UserError: if the image is missing or cannot be read.

    Example:
        >>> from danet.utils.image_io import write_image
        >>> import numpy as np
        >>> path = getfixture("tmp_path") / "a.png"
        >>> write_image(path, np.zeros((48, 64), np.uint8))
        >>> image_size(path)
        (64, 48)
    """
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    size = _size_of_png(header) or _size_of_jpeg(header)
    if size is None or min(size) < 1:
        height, width = read_image(path).shape[:2]
        return width, height
    return size


def _size_of_png(header: bytes) -> tuple[int, int] | None:
    if not header.startswith(b"\x89PNG\r\n\x1a\n") or len(header) < 24 or b"eXIf" in header:
        return None
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _size_of_jpeg(header: bytes) -> tuple[int, int] | None:
    if not header.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(header) and header[position] == 0xFF:
        marker, length = header[position + 1], int.from_bytes(header[position + 2 : position + 4], "big")
        if header[position + 4 : position + 8] == b"Exif":
            return None
        if marker in JPEG_SIZE_MARKERS:
            height, width = struct.unpack(">HH", header[position + 5 : position + 9])
            return width, height
        position += 2 + length
    return None
