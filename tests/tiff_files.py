"""Writes TIFF files of every layout, as cameras and measuring programs do; OpenCV and Pillow write only some."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
NO_COMPRESSION, DEFLATE = 1, 8
CODES = {"H": 3, "I": 4, "Q": 16}
FORMATS = {"u": 1, "i": 2, "f": 3}


def encode_tiff(
    pages: Sequence[np.ndarray],
    *,
    order: str = "<",
    big: bool = False,
    photometric: int = BLACK_IS_ZERO,
    compression: int = NO_COMPRESSION,
    tile: int | None = None,
    rows_per_strip: int | None = None,
    separate_planes: bool = False,
    subfile_types: Sequence[int] | None = None,
) -> bytes:
    """Encodes pages ``[H, W]`` or ``[H, W, C]`` of any type.

    Args:
        order: byte order, < or >.
        big: BigTIFF, whose offsets have 64 bits.
        tile: side of square tiles in pixels; None stores strips of ``rows_per_strip`` rows.
        subfile_types: NewSubfileType of each page: 1 marks a thumbnail.
    """
    offset_code, count_code, entry = ("Q", "Q", 8) if big else ("I", "H", 4)
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    link = len(content) - entry
    for number, page in enumerate(pages):
        height, width, *rest = page.shape
        channels = rest[0] if rest else 1
        stored = page.astype(page.dtype.newbyteorder(order))
        chunks = _chunks(stored, tile, rows_per_strip or height, separate_planes)
        offsets = []
        encoded = [zlib.compress(chunk) if compression == DEFLATE else chunk for chunk in chunks]
        for chunk in encoded:
            offsets.append(len(content))
            content += chunk + bytes(-len(chunk) % 8)
        tags = {
            254: ("I", [subfile_types[number] if subfile_types else 0]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [8 * page.dtype.itemsize] * channels),
            259: ("H", [compression]),
            262: ("H", [photometric]),
            277: ("H", [channels]),
            284: ("H", [1 + separate_planes]),
            339: ("H", [FORMATS[page.dtype.kind]] * channels),
            324 if tile else 273: (offset_code, offsets),
            325 if tile else 279: ("I", [len(chunk) for chunk in encoded]),
        }
        tags |= {322: ("I", [tile]), 323: ("I", [tile])} if tile else {278: ("I", [rows_per_strip or height])}
        entries = b""
        for tag, (code, values) in sorted(tags.items()):
            value = struct.pack(order + code * len(values), *values)
            if len(value) > entry:
                position = len(content)
                content += value + bytes(-len(value) % 8)
                value = struct.pack(order + offset_code, position)
            entries += struct.pack(f"{order}HH{offset_code}", tag, CODES[code], len(values)) + value.ljust(entry, b"\0")
        content[link : link + entry] = struct.pack(order + offset_code, len(content))
        content += struct.pack(order + count_code, len(tags)) + entries
        link = len(content)
        content += bytes(8)
    return bytes(content)


def _chunks(page: np.ndarray, tile: int | None, rows: int, separate_planes: bool) -> list[bytes]:
    """The strips or tiles of a page; tiles beyond its edges are filled with zeros."""
    if separate_planes:
        return [page[..., channel].tobytes() for channel in range(page.shape[2])]
    if tile is None:
        return [page[top : top + rows].tobytes() for top in range(0, page.shape[0], rows)]
    padding = [(0, -size % tile) for size in page.shape[:2]] + [(0, 0)] * (page.ndim - 2)
    padded = np.pad(page, padding)
    corners = ((y, x) for y in range(0, page.shape[0], tile) for x in range(0, page.shape[1], tile))
    return [padded[y : y + tile, x : x + tile].tobytes() for y, x in corners]
