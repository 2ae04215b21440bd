import numpy as np
import pytest
import torch

from danet.inference.image_arrays import to_image

GREY = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
BGR = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        GREY[..., None],
        GREY.astype(np.int64),
        GREY.astype(np.float32),
        GREY.astype(np.float64) / 255,
        (GREY / 255).astype(np.float16),
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
        torch.from_numpy(GREY)[None] / 255,
    ],
    ids=lambda image: f"{type(image).__name__} {image.dtype} {list(image.shape)}",
)
def test_to_image_gives_the_same_counts_for_all_types(image):
    found = to_image(image)
    assert found.dtype == np.uint8 and found.shape == (48, 64)
    assert np.abs(found.astype(int) - GREY).max() == 0


def test_to_image_keeps_16_bits():
    counts = GREY.astype(np.uint16) * 60 + 8000
    for image in (
        counts,
        counts.astype(np.int32),
        counts.astype(np.float32),
        torch.from_numpy(counts.astype(np.int32)),
    ):
        found = to_image(image)
        assert found.dtype == np.uint16 and np.array_equal(found, counts)


def test_to_image_reverses_the_channels_of_tensors():
    rgb = torch.from_numpy(BGR[..., ::-1].copy()).permute(2, 0, 1)
    assert np.array_equal(to_image(rgb), BGR) and np.array_equal(to_image(BGR), BGR)
    assert np.array_equal(to_image(rgb / 255), BGR)


def test_to_image_reads_pillow_images():
    pillow = pytest.importorskip("PIL.Image")
    assert np.array_equal(to_image(pillow.fromarray(GREY)), GREY)
    assert np.array_equal(to_image(pillow.fromarray(BGR[..., ::-1].copy())), BGR)
    assert np.array_equal(to_image(pillow.fromarray(GREY).convert("LA")), GREY)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8), 21.5, np.float32), "floats from 0 to 1, or whole numbers from 0 to 65535, got 21.5 to 21.5"),
        (np.full((8, 8), -1.0), "got -1 to -1"),
        (np.full((8, 8), np.nan), "got nan to nan"),
        (np.full((8, 8), 70000), "got 70000 to 70000"),
        (np.zeros((8, 8), bool), "must hold integers or floats, got bool"),
        (np.zeros((8, 8), complex), "must hold integers or floats, got complex128"),
        (np.zeros((3, 8, 9), np.uint8), r"\[3, 8, 9\]; move the channels to the end, as image.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), "give several images as a list"),
        (np.zeros((0, 8), np.uint8), r"got \[0, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"got \[8, 8, 4\]"),
        (7.5, "got float"),
        (None, "got NoneType"),
    ],
)
def test_to_image_rejects_values_of_unknown_scale(image, message):
    with pytest.raises((TypeError, ValueError), match=message):
        to_image(image)


def test_floats_finer_than_8_bits_keep_16_bits():
    """Counts of a 14-bit sensor that were divided by 65535 may have only three gray levels of 8 bits."""
    counts = (30000 + 120 * np.random.default_rng(0).normal(size=(48, 64))).astype(np.uint16)
    found = to_image(counts / 65535.0)
    assert found.dtype == np.uint16 and np.array_equal(found, counts)
    assert to_image(GREY / 255 * 0.5).dtype == np.uint16
