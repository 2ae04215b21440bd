import numpy as np
import pytest

from danet.data.normalize import MIN_RANGE_COUNTS, intensity_range, normalize


@pytest.fixture
def image() -> np.ndarray:
    """8-bit noise with a bright target."""
    image = np.random.default_rng(0).normal(90, 20, (60, 80)).clip(0, 255)
    image[20:24, 30:36] = 250
    return image.astype(np.uint8)


def test_normalize_gives_14_bit_and_8_bit_images_the_same_range(image):
    raw = image.astype(np.uint16) * 30 + 5000
    assert np.allclose(normalize(image), normalize(raw), atol=1e-5)
    assert normalize(image).shape == (1, 60, 80) and normalize(image).dtype == np.float32
    assert np.median(normalize(image)) == 0


def test_normalize_does_not_amplify_the_noise_of_an_empty_sky():
    sky = (100 + np.arange(80 * 60).reshape(60, 80) % 3).astype(np.uint8)
    assert np.abs(normalize(sky)).max() <= 2 * 2 / MIN_RANGE_COUNTS


def test_normalize_scales_a_crop_by_its_frame(image):
    crop = image[10:40, 20:60]
    assert np.array_equal(normalize(crop, intensities=intensity_range(image)), normalize(image)[:, 10:40, 20:60])
    assert not np.array_equal(normalize(crop), normalize(image)[:, 10:40, 20:60])


def test_normalize_converts_the_number_of_channels(image):
    colour = np.repeat(image[..., None], 3, axis=2)
    assert np.allclose(normalize(colour, 1), normalize(image, 1), atol=1e-5)
    assert np.array_equal(normalize(image, 3), np.repeat(normalize(image, 1), 3, axis=0))
