import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from tiff_files import BLACK_IS_ZERO, DEFLATE, RGB, WHITE_IS_ZERO, encode_tiff

from danet.data.normalize import normalize
from danet.utils.errors import UserError
from danet.utils.image_io import count_pages, read_image, read_pages, to_counts, to_display, write_image


def scene(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 20, (60, 80)).clip(0, 255)
    image[20:24, 30:36] = 250
    return image.astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_read_image_returns_the_stored_values(tmp_path, dtype):
    image = scene().astype(dtype) * (1 if dtype == np.uint8 else 200)
    cv2.imwrite(str(tmp_path / "grey.png"), image)
    cv2.imwrite(str(tmp_path / "equal.png"), np.repeat(image[..., None], 3, axis=2))
    colour = np.stack([image, image, image[::-1]], axis=2)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    assert np.array_equal(read_image(tmp_path / "grey.png"), image)
    assert np.array_equal(read_image(tmp_path / "equal.png"), image)
    assert np.array_equal(read_image(tmp_path / "colour.png"), colour)


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_read_image_names_a_broken_or_missing_file(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "truncated":
        cv2.imwrite(str(path), scene())
        content = path.read_bytes()[:60]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(path)
    with pytest.raises(UserError, match=r"b\.png: no such image"):
        read_image(tmp_path / "b.png")


def test_to_display_stretches_16_bit_images():
    raw = scene().astype(np.uint16) * 10 + 8000
    shown = to_display(raw)
    assert shown.shape == (60, 80, 3) and shown.dtype == np.uint8
    assert shown.min() == 0 and shown.max() == 255
    assert np.array_equal(to_display(scene())[..., 0], scene())


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_read_image_refuses_a_size_beyond_the_limits_of_opencv(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(100_000, 100_000))
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png", max_pixels=1 << 40)


def test_read_image_refuses_a_large_image_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(
        UserError, match=r"a\.png: the image is too large, got 10000 x 10000 pixels, the limit is 67108864"
    ):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".pgm", ".tif"])
def test_read_image_applies_the_pixel_limit_to_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), scene())
    assert read_image(path, max_pixels=80 * 60).shape[:2] == (60, 80)
    with pytest.raises(UserError, match="got 80 x 60 pixels, the limit is 4799 pixels"):
        read_image(path, max_pixels=80 * 60 - 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix, dtype", [("jpg", "u1"), ("png", "u1"), ("png", "u2"), ("webp", "u1"), ("tif", "u2")])
def test_read_image_applies_the_exif_orientation(tmp_path, suffix, dtype, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(scene().astype(dtype)).save(path, exif=exif, **options)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))).astype(float)
    shown = shown[..., 0] if shown.ndim == 3 else shown
    image = read_image(path)
    assert image.dtype == dtype and image.shape == shown.shape
    assert np.abs(image - shown).max() <= 2  # the decoders of JPEG round differently


def counts(dtype: str, channels: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (60, 80) if channels is None else (60, 80, channels)
    return rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"order": ">"},
        {"big": True},
        {"big": True, "order": ">"},
        {"compression": DEFLATE},
        {"rows_per_strip": 7, "order": ">"},
        {"tile": 16},
        {"tile": 32, "compression": DEFLATE, "order": ">"},
        {"photometric": WHITE_IS_ZERO},
        {"photometric": WHITE_IS_ZERO, "order": ">", "compression": DEFLATE},
        {"photometric": WHITE_IS_ZERO, "tile": 16},
    ],
)
def test_read_image_reads_every_layout_of_tiff(tmp_path, dtype, layout):
    image = counts(dtype)
    (tmp_path / "a.tif").write_bytes(encode_tiff([image], **layout))
    white_is_zero = layout.get("photometric", BLACK_IS_ZERO) == WHITE_IS_ZERO
    expected = np.iinfo(dtype).max - image if white_is_zero else image
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_read_image_reads_every_lossless_compression_of_tiff(tmp_path, compression, dtype):
    image = counts("u1").astype(dtype)
    try:
        Image.fromarray(image).save(tmp_path / "a.tif", compression=compression)
    except (OSError, ValueError) as error:
        pytest.skip(f"this Pillow cannot write {compression}: {error}")
    assert np.array_equal(read_image(tmp_path / "a.tif"), to_counts(image))


def test_read_image_reads_colour_tiff_and_refuses_what_would_lose_bits(tmp_path):
    path = tmp_path / "a.tif"
    for dtype in ("u1", "u2"):
        path.write_bytes(encode_tiff([counts(dtype, 3)], photometric=RGB))
        assert np.array_equal(read_image(path), counts(dtype, 3)[..., ::-1])
    path.write_bytes(encode_tiff([counts("u1", 3)], photometric=RGB, separate_planes=True))
    assert np.array_equal(read_image(path), counts("u1", 3)[..., ::-1])
    path.write_bytes(encode_tiff([counts("u2", 3)], photometric=RGB, separate_planes=True))
    with pytest.raises(UserError, match=r"a\.tif: separate planes of 16 bits are not supported"):
        read_image(path)
    path.write_bytes(encode_tiff([counts("u2", 2)]))
    with pytest.raises(UserError, match=r"a\.tif: a TIFF with 2 channels of 16 bits is not supported"):
        read_image(path)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", [{}, {"order": ">"}, {"tile": 16}, {"compression": DEFLATE}])
def test_temperatures_are_normalized_like_the_counts_of_the_sensor(tmp_path, dtype, layout):
    image = scene().astype(np.uint16) * 30 + 5000
    celsius = (image * 0.04 - 273.15).astype(dtype)
    (tmp_path / "a.tif").write_bytes(encode_tiff([celsius], **layout))
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.uint16
    assert np.allclose(normalize(read), normalize(image), atol=1e-3)


def test_temperatures_with_white_as_zero_are_inverted(tmp_path):
    celsius = scene().astype(np.float32) * 0.1 - 20
    (tmp_path / "a.tif").write_bytes(encode_tiff([celsius], photometric=WHITE_IS_ZERO))
    assert np.array_equal(read_image(tmp_path / "a.tif"), to_counts(-celsius))


def test_to_counts_ignores_missing_and_infinite_values():
    celsius = scene().astype(np.float32) * 0.1 - 20
    holes = celsius.copy()
    holes[:5, :5] = np.nan
    holes[50, 50:53] = np.inf, -np.inf, 3e38
    converted = to_counts(holes)
    assert np.all(converted[:5, :5] == 1 << 15) and converted[50, 50:53].tolist() == [65535, 0, 65535]
    rest = np.ones(holes.shape, bool)
    rest[:5, :5] = rest[50] = False
    assert np.abs(converted[rest].astype(int) - to_counts(celsius)[rest]).max() < 200
    assert np.unique(to_counts(np.full((4, 4), np.nan))).tolist() == [1 << 15]
    assert np.unique(to_counts(np.full((4, 4), 21.5, np.float32))).tolist() == [1 << 15]


def test_to_counts_keeps_the_differences_of_signed_counts(tmp_path):
    image = (scene().astype(np.int16) - 120) * 100
    (tmp_path / "a.tif").write_bytes(encode_tiff([image], order=">"))
    assert np.array_equal(read_image(tmp_path / "a.tif"), (image.astype(int) + 32768).astype(np.uint16))
    assert to_counts(np.array([[-128, 0, 127]], np.int8)).tolist() == [[0, 128, 255]]
    wide = scene().astype(np.uint32) * 1000
    assert np.allclose(normalize(to_counts(wide)), normalize(scene()), atol=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("layout", [{}, {"order": ">", "big": True}, {"tile": 16, "compression": DEFLATE}])
def test_read_pages_reads_every_page_of_a_stack(tmp_path, dtype, layout):
    stack = [scene(seed).astype(dtype) for seed in range(3)]
    (tmp_path / "a.tif").write_bytes(encode_tiff([*stack, stack[0][::4, ::4]], subfile_types=[2, 2, 2, 1], **layout))
    before = (tmp_path / "a.tif").read_bytes()
    pages = list(read_pages(tmp_path / "a.tif"))
    assert count_pages(tmp_path / "a.tif") == len(pages) == 3, "the thumbnail is no page"
    assert all(np.array_equal(page, to_counts(image)) for page, image in zip(pages, stack, strict=True))
    assert (tmp_path / "a.tif").read_bytes() == before
    with pytest.raises(UserError, match=r"a\.tif: a TIFF with 3 pages where one image is needed"):
        read_image(tmp_path / "a.tif")


def test_count_pages_of_other_images_is_one(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), scene())
    assert count_pages(tmp_path / "a.png") == 1
    assert np.array_equal(next(read_pages(tmp_path / "a.png")), scene())


SCRIPT = """
import os, sys
import cv2
before = dict(os.environ), cv2.utils.logging.getLogLevel()
from danet.utils.image_io import quiet_opencv, read_image
assert before == (dict(os.environ), cv2.utils.logging.getLogLevel()), "the import changed the process"
if "quiet" in sys.argv:
    quiet_opencv()
    quiet_opencv()
try:
    read_image(sys.argv[1])
except ValueError as error:
    print(error)
"""


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_opencv_silences_opencv_and_the_import_does_not(tmp_path, quiet):
    cv2.imwrite(str(tmp_path / "a.png"), scene())
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1500])
    result = run_script(SCRIPT, str(tmp_path / "a.png"), *["quiet"] * quiet)
    assert result.stdout == f"{tmp_path / 'a.png'}: not a readable image\n"
    assert (result.stderr == "") == quiet


THREADS = """
import sys, threading
from danet.utils.image_io import quiet_opencv, read_image
quiet_opencv()
def read():
    for _ in range(40):
        for path in sys.argv[1:]:
            try:
                read_image(path)
            except ValueError:
                pass
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(200):
    print(number, file=sys.stderr, flush=True)
for thread in threads:
    thread.join()
"""


def test_quiet_opencv_loses_no_line_of_python_while_threads_decode_damaged_images(tmp_path):
    """Damaged PNG and JPEG make libpng and libjpeg print lines of their own, which have no log level."""
    paths = []
    for suffix in (".png", ".jpg"):
        content = bytearray(cv2.imencode(suffix, np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8))[1])
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(range(40))
        paths.append(tmp_path / f"a{suffix}")
        paths[-1].write_bytes(content)
    assert run_script(THREADS, *map(str, paths)).stderr.split() == [str(number) for number in range(200)]


def test_write_image_round_trip_and_unknown_suffix(tmp_path):
    write_image(tmp_path / "new" / "a.png", scene())
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), scene())
    for name in ("a", "a.unknown"):
        with pytest.raises(UserError, match=f"{name}: not a name for an image"):
            write_image(tmp_path / name, scene())
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_write_image_takes_names_that_are_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"t\xe9l\xe9.png")
    write_image(path, scene())
    assert np.array_equal(read_image(path), scene()) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="not a name for an image"):
        write_image(tmp_path / os.fsdecode(b"a.\xe9"), scene())


def test_write_image_names_an_image_that_is_too_large_for_its_format(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg: cannot be written; the format \.jpg does not allow 70000 x 2 pixels"):
        write_image(tmp_path / "a.jpg", np.zeros((2, 70_000), np.uint8))
    assert list(tmp_path.iterdir()) == []
