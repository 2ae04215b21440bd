"""Reads the size of an image, and the pages of a TIFF, without decoding them.

A few bytes can announce gigabytes of pixels, so that the size must be known before a decoder is started.
"""

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from danet.utils.errors import UserError

MINISWHITE = 0
"""Photometric interpretation of a TIFF in which the smallest value is white."""
SEPARATE_PLANES = 2
"""Planar configuration of a TIFF that stores its channels one after the other."""
_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType: a thumbnail or another version of the page before, and a transparency mask."""

MAX_JPEG_SEGMENTS = 10_000
"""Segments before the frame header that are skipped."""

_TAGS = {
    254: "subfile_type",
    256: "width",
    257: "height",
    258: "bits",
    262: "photometric",
    277: "channels",
    284: "planes",
}
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Codes of struct for the types of values in a TIFF."""


class TiffPage(NamedTuple):
    """What the directory of a page says; ``photometric`` and the rest have the values of the TIFF specification."""

    offset: int
    """Position of the directory in the file."""
    width: int
    height: int
    bits: int = 1
    photometric: int = 1
    channels: int = 1
    planes: int = 1


def image_size(data: np.ndarray) -> tuple[int, int] | None:
    """Width and height in pixels that the header of an encoded image states.

    Args:
        data: uint8 ``[N]``, the content of a PNG, JPEG, BMP, WebP, PNM, GIF, JPEG 2000 or TIFF file.

    Returns:
        (width, height), or None if the format is unknown or the header is damaged.

    Example:
        >>> import cv2
        >>> image_size(cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1])
        (64, 48)
    """
    head = data[:64].tobytes()
    reader = next((reader for pattern, reader in _READERS if re.match(pattern, head, re.DOTALL)), None)
    try:
        return reader(data) if reader is not None else None
    except (struct.error, IndexError, TypeError, OverflowError, UserError):
        return None


def is_tiff(data: np.ndarray) -> bool:
    """Whether uint8 data is that of a TIFF or BigTIFF file.

    Example:
        >>> is_tiff(np.frombuffer(b"II*\\0", np.uint8))
        True
    """
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_pages(data: np.ndarray) -> list[TiffPage]:
    """Reads the directories of a TIFF or BigTIFF file; thumbnails and masks are left out.

    Args:
        data: uint8 ``[N]``, the content of the file.

    Raises:
        UserError: the directories are damaged, or there is no page.

    Example:
        >>> import cv2
        >>> tiff_pages(cv2.imencode(".tif", np.zeros((48, 64), np.uint16))[1])[0].bits
        16
    """
    order = "<" if data[0] == ord("I") else ">"
    is_big = 43 in data[2:4]
    offset_code, count_code, entry_size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    pages: list[TiffPage] = []
    seen: set[int] = set()
    entries_left = len(data) // entry_size + 1  # directories that overlap would make this loop slow
    try:
        offset = _unpack(data, 8 if is_big else 4, order + offset_code)
        while offset and offset not in seen:
            seen.add(offset)
            count = _unpack(data, offset, order + count_code)
            entries_left -= count
            if entries_left < 0:
                raise UserError("its TIFF directories overlap")
            start = offset + struct.calcsize(count_code)
            values = {"subfile_type": 0}
            for position in range(start, start + count * entry_size, entry_size):
                tag, kind = _unpack(data, position, order + "HH", 2)
                if tag in _TAGS and kind in _INTEGER_TYPES:
                    values[_TAGS[tag]] = _first_value(data, position + 4, order, _INTEGER_TYPES[kind], offset_code)
            if not values.pop("subfile_type") & (_REDUCED | _MASK):
                pages.append(TiffPage(offset, **values))
            offset = _unpack(data, start + count * entry_size, order + offset_code)
    except (struct.error, TypeError, OverflowError) as error:
        raise UserError("its TIFF directories are damaged") from error
    if not pages:
        raise UserError("a TIFF without pages")
    return pages


def put_first(data: np.ndarray, page: TiffPage) -> None:
    """Changes the content of a TIFF file in place so that ``page`` comes first, because decoders read the first page.

    Example:
        >>> import cv2
        >>> data = cv2.imencodemulti(".tif", [np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)])[1]
        >>> put_first(data, tiff_pages(data)[1])
        >>> int(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[0, 0])
        1
    """
    code, position = ("Q", 8) if 43 in data[2:4] else ("I", 4)
    order = "<" if data[0] == ord("I") else ">"
    data[position : position + struct.calcsize(code)] = list(struct.pack(order + code, page.offset))


def _first_value(data: np.ndarray, position: int, order: str, code: str, offset_code: str) -> int:
    """The first value of a directory entry, which is stored in the entry itself if all its values fit there."""
    count = _unpack(data, position, order + offset_code)
    position += struct.calcsize(offset_code)
    if count * struct.calcsize(code) > struct.calcsize(offset_code):
        position = _unpack(data, position, order + offset_code)
    return _unpack(data, position, order + code)


def _unpack(data: np.ndarray, position: int, code: str, count: int = 1) -> Any:
    values = struct.unpack_from(code, data.data, position)
    return values[0] if count == 1 else values


def _png(data: np.ndarray) -> tuple[int, int]:
    return _unpack(data, 16, ">II", 2)


def _jpeg(data: np.ndarray) -> tuple[int, int] | None:
    """Looks for the frame header behind the other segments, such as EXIF."""
    position = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        if data[position] != 0xFF:
            break
        marker = int(data[position + 1])
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _unpack(data, position + 5, ">HH", 2)
            return width, height
        # Fill bytes and markers without a segment are followed by the next marker.
        has_segment = marker not in (0xFF, 0x01, *range(0xD0, 0xD9))
        position += 2 + _unpack(data, position + 2, ">H") if has_segment else 1 if marker == 0xFF else 2
    return None


def _bmp(data: np.ndarray) -> tuple[int, int]:
    is_old = _unpack(data, 14, "<I") == 12
    width, height = _unpack(data, 18, "<HH" if is_old else "<ii", 2)
    return width, abs(height)


def _webp(data: np.ndarray) -> tuple[int, int] | None:
    kind = data[12:16].tobytes()
    if kind == b"VP8X":
        low, middle, high, *rest = (int(value) for value in data[24:30])
        return 1 + low + (middle << 8) + (high << 16), 1 + rest[0] + (rest[1] << 8) + (rest[2] << 16)
    if kind == b"VP8L":
        bits = _unpack(data, 21, "<I")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = _unpack(data, 26, "<HH", 2)
    return width & 0x3FFF, height & 0x3FFF


def _pnm(data: np.ndarray) -> tuple[int, int]:
    """Reads the text header; a comment runs from # to the end of its line."""
    text = re.sub(rb"#[^\n]*", b" ", data[:4096].tobytes())
    if text.startswith(b"P7"):
        sizes = [re.search(rb"\b" + name + rb"\s+(\d{1,9})\b", text) for name in (b"WIDTH", b"HEIGHT")]
        return int(sizes[0][1]), int(sizes[1][1])  # type: ignore[index]
    found = re.match(rb"P[1-6]\s+(\d{1,9})\s+(\d{1,9})\b", text)
    return int(found[1]), int(found[2])  # type: ignore[index]


def _gif(data: np.ndarray) -> tuple[int, int]:
    return _unpack(data, 6, "<HH", 2)


def _jpeg_2000(data: np.ndarray) -> tuple[int, int]:
    head = data[:4096].tobytes()
    if (position := head.find(b"ihdr")) > 0:
        height, width = _unpack(data, position + 4, ">II", 2)
        return width, height
    right, bottom, left, top = _unpack(data, 8, ">IIII", 4)  # the first segment of a bare codestream
    return right - left, bottom - top


def _tiff(data: np.ndarray) -> tuple[int, int]:
    page = max(tiff_pages(data), key=lambda page: page.width * page.height)
    return page.width, page.height


_READERS: list[tuple[bytes, Callable[[np.ndarray], tuple[int, int] | None]]] = [
    (rb"\x89PNG\r\n\x1a\n....IHDR", _png),
    (rb"\xff\xd8", _jpeg),
    (rb"BM", _bmp),
    (rb"RIFF....WEBPVP8", _webp),
    (rb"P[1-7]\s", _pnm),
    (rb"GIF8[79]a", _gif),
    (rb"....jP  |\xff\x4f\xff\x51", _jpeg_2000),
    (rb"II[*+]\x00|MM\x00[*+]", _tiff),
]
