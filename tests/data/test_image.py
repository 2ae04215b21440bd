import cv2
import numpy as np
import pytest

from danet.data.image import MINIMUM_RANGE, levels, normalise, read_image, to_display
from danet.errors import UserError


def scene(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 20, (60, 80)).clip(0, 255)
    image[20:24, 30:36] = 250
    return image.astype(np.uint8)


def test_a_14_bit_sensor_looks_like_an_8_bit_video():
    image = scene()
    raw = image.astype(np.uint16) * 30 + 5000
    assert np.allclose(normalise(image), normalise(raw), atol=1e-5)
    assert normalise(image).shape == (1, 60, 80) and normalise(image).dtype == np.float32
    assert np.median(normalise(image)) == 0


def test_noise_on_an_empty_sky_is_not_amplified():
    sky = (100 + np.arange(80 * 60).reshape(60, 80) % 3).astype(np.uint8)
    assert np.abs(normalise(sky)).max() <= 2 * 2 / MINIMUM_RANGE


def test_a_crop_is_scaled_by_its_frame():
    image = scene()
    crop = image[10:40, 20:60]
    assert np.array_equal(normalise(crop, frame=levels(image)), normalise(image)[:, 10:40, 20:60])
    assert not np.array_equal(normalise(crop), normalise(image)[:, 10:40, 20:60])


def test_channels_are_made_to_fit():
    image = scene()
    colour = np.repeat(image[..., None], 3, axis=2)
    assert np.allclose(normalise(colour, 1), normalise(image, 1), atol=1e-5)
    assert np.array_equal(normalise(image, 3), np.repeat(normalise(image, 1), 3, axis=0))


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
