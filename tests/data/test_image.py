import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from danet.data.normalize import MINIMUM_RANGE, intensity_range, normalize
from danet.utils.errors import UserError
from danet.utils.image_io import read_image, to_display, write_image


def scene(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 20, (60, 80)).clip(0, 255)
    image[20:24, 30:36] = 250
    return image.astype(np.uint8)


def test_a_14_bit_sensor_looks_like_an_8_bit_video():
    image = scene()
    raw = image.astype(np.uint16) * 30 + 5000
    assert np.allclose(normalize(image), normalize(raw), atol=1e-5)
    assert normalize(image).shape == (1, 60, 80) and normalize(image).dtype == np.float32
    assert np.median(normalize(image)) == 0


def test_noise_on_an_empty_sky_is_not_amplified():
    sky = (100 + np.arange(80 * 60).reshape(60, 80) % 3).astype(np.uint8)
    assert np.abs(normalize(sky)).max() <= 2 * 2 / MINIMUM_RANGE


def test_a_crop_is_scaled_by_its_frame():
    image = scene()
    crop = image[10:40, 20:60]
    assert np.array_equal(normalize(crop, frame=intensity_range(image)), normalize(image)[:, 10:40, 20:60])
    assert not np.array_equal(normalize(crop), normalize(image)[:, 10:40, 20:60])


def test_channels_are_made_to_fit():
    image = scene()
    colour = np.repeat(image[..., None], 3, axis=2)
    assert np.allclose(normalize(colour, 1), normalize(image, 1), atol=1e-5)
    assert np.array_equal(normalize(image, 3), np.repeat(normalize(image, 1), 3, axis=0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_come_back_as_stored(tmp_path, dtype):
    image = scene().astype(dtype) * (1 if dtype == np.uint8 else 200)
    cv2.imwrite(str(tmp_path / "grey.png"), image)
    cv2.imwrite(str(tmp_path / "equal.png"), np.repeat(image[..., None], 3, axis=2))
    colour = np.stack([image, image, image[::-1]], axis=2)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    assert np.array_equal(read_image(tmp_path / "grey.png"), image)
    assert np.array_equal(read_image(tmp_path / "equal.png"), image)
    assert np.array_equal(read_image(tmp_path / "colour.png"), colour)


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_a_broken_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "truncated":
        cv2.imwrite(str(path), scene())
        content = path.read_bytes()[:60]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(path)
    with pytest.raises(UserError, match=r"b\.png: no such image"):
        read_image(tmp_path / "b.png")


def test_16_bit_images_are_shown_with_contrast():
    raw = scene().astype(np.uint16) * 10 + 8000
    shown = to_display(raw)
    assert shown.shape == (60, 80, 3) and shown.dtype == np.uint8
    assert shown.min() == 0 and shown.max() == 255
    assert np.array_equal(to_display(scene())[..., 0], scene())


def test_a_size_beyond_every_limit_is_a_broken_image(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


def test_opencv_adds_no_lines_of_its_own(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), scene())
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1500])
    script = """
import sys
from danet.utils.image_io import read_image
try:
    read_image(sys.argv[1])
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_written_images_come_back_and_a_name_that_is_none_is_named(tmp_path):
    write_image(tmp_path / "new" / "a.png", scene())
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), scene())
    for name in ("a", "a.unknown"):
        with pytest.raises(UserError, match=f"{name}: not a name for an image"):
            write_image(tmp_path / name, scene())
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
