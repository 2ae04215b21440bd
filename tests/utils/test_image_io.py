import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from danet.utils.errors import UserError
from danet.utils.image_io import read_image, to_display, write_image


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


def test_read_image_refuses_a_size_beyond_the_limits_of_opencv(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


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


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_opencv_silences_opencv_and_the_import_does_not(tmp_path, quiet):
    cv2.imwrite(str(tmp_path / "a.png"), scene())
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1500])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.png"), *["quiet"] * quiet]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == f"{tmp_path / 'a.png'}: not a readable image\n"
    assert (result.stderr == "") == quiet


def test_write_image_round_trip_and_unknown_suffix(tmp_path):
    write_image(tmp_path / "new" / "a.png", scene())
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), scene())
    for name in ("a", "a.unknown"):
        with pytest.raises(UserError, match=f"{name}: not a name for an image"):
            write_image(tmp_path / name, scene())
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
