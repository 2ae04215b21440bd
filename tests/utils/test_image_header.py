import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from tiff_files import encode_tiff

from danet.utils.errors import UserError
from danet.utils.image_header import image_size, put_first, tiff_pages

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 61, 3), np.uint8)


def as_bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def encode(form: str, mode: str = "RGB", **options) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, form, **options)
    return as_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        *(encode("png", mode) for mode in ("L", "RGB", "P", "1")),
        encode("jpeg", "L"),
        encode("jpeg", progressive=True, exif=b"Exif\0\0" + bytes(3000)),
        *(encode("bmp", mode) for mode in ("L", "RGB", "1")),
        *(encode("webp", lossless=lossless) for lossless in (False, True)),
        encode("webp", "RGBA"),
        *(encode("ppm", mode) for mode in ("L", "RGB", "1")),
        encode("gif", "L"),
        encode("jpeg2000"),
        encode("tiff"),
        encode("tiff", compression="tiff_lzw"),
        as_bytes(b"P5\n# a comment\n61 # and another\n40\n255\n" + bytes(2440)),
        cv2.imencode(".pam", PICTURE)[1],
    ],
)
def test_image_size_equals_the_decoded_size(data):
    assert image_size(data) == (61, 40)
    # No cut or changed byte of the header may end in an exception.
    for end in range(min(len(data), 64)):
        image_size(data[:end])
        changed = data.copy()
        changed[end] ^= 0xFF
        image_size(changed)


def test_image_size_of_unknown_content_is_none():
    assert image_size(as_bytes(b"no image")) is None
    assert image_size(as_bytes(b"")) is None
    assert image_size(as_bytes(b"\xff\xd8" + b"\xff" * 1_000_000)) is None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_tiff_pages_leave_out_thumbnails_and_masks(order, big):
    pages = [np.full((20, 30), value, np.uint16) for value in (1, 2, 3, 4)]
    data = as_bytes(encode_tiff(pages, order=order, big=big, subfile_types=[0, 1, 4, 2])).copy()
    first, second = tiff_pages(data)
    assert (first.width, first.height, first.bits, first.photometric, first.channels) == (30, 20, 16, 1, 1)
    put_first(data, second)
    assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[0, 0] == 4


def test_tiff_pages_refuse_damaged_directories():
    content = bytearray(encode_tiff([np.zeros((20, 30), np.uint8)] * 2))
    (first,) = struct.unpack_from("<I", content, 4)
    with pytest.raises(UserError, match="damaged"):
        tiff_pages(as_bytes(bytes(content[: first + 20])))
    with pytest.raises(UserError, match="without pages"):
        tiff_pages(as_bytes(b"II*\0" + bytes(4)))
    # A directory that names itself as the next one ends the list.
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    assert len(tiff_pages(as_bytes(bytes(content)))) == 1


def test_tiff_pages_refuse_overlapping_directories():
    """20,000 directories of 60,000 entries in one small file would be read for hours."""
    content = bytearray(1 << 20)
    content[:8] = struct.pack("<2sHI", b"II", 42, 8)
    for position in range(8, 40_008, 2):
        struct.pack_into("<H", content, position, 60_000)
    with pytest.raises(UserError):
        tiff_pages(as_bytes(bytes(content)))
