import cv2
import numpy as np
import pytest

from danet.data.temporal import (
    DEVIATION_UNITS,
    align,
    background_shift,
    choose_frames,
    extra_channels,
    local_contrast,
    temporal_difference,
)


def make_background(rng, size=(160, 200)):
    """A cloudy background with fine structure, float32, and noise that is the same in every crop."""
    coarse = cv2.resize(rng.standard_normal((10, 12)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), 2.5)
    return 120 + 25 * coarse + 70 * fine


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (5.0, 0.0), (-7.0, 3.0), (2.5, -1.25)])
def test_align_removes_the_motion_of_the_camera(dtype, shift):
    rng = np.random.default_rng(1)
    scale = 1 if dtype == np.uint8 else 200
    background = make_background(rng, (200, 240))
    window = np.array([[1.0, 0.0, -20.0], [0.0, 1.0, -20.0]])
    image = cv2.warpAffine(background, window, (192, 160)) * scale
    window[:, 2] -= shift
    past = cv2.warpAffine(background, window, (192, 160)) * scale
    image, past = (np.clip(np.rint(each), 0, 255 * scale).astype(dtype) for each in (image, past))
    aligned = align(past, image, span=100.0 * scale)
    assert aligned.dtype == dtype
    inner = np.s_[10:-10, 10:-10]
    before, after = (np.abs(each[inner].astype(float) - image[inner]).mean() / scale for each in (past, aligned))
    assert after < 1.5
    assert after < 0.2 * before or before == 0
    # Places that the earlier frame does not show have the pixels of the image.
    x = round(shift[0])
    if x > 0:
        assert (aligned[:, : x - 1] == image[:, : x - 1]).all()


def test_align_ignores_a_large_moving_target():
    rng = np.random.default_rng(2)
    image = np.clip(make_background(rng), 0, 255).astype(np.uint8)
    past = image.copy()
    image[60:90, 60:100] = 255
    past[60:90, 30:70] = 255
    aligned = align(past, image, span=120.0)
    assert (aligned == past).all()


def test_background_shift_tells_no_shift_from_an_unknown_one():
    rng = np.random.default_rng(10)
    scene = np.clip(make_background(rng, (200, 240)), 0, 255).astype(np.uint8)
    image, moved = scene[20:180, 20:220], scene[20:180, 26:226]
    assert background_shift(image, image, 100.0).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(background_shift(moved, image, 100.0), [6.0, 0.0], atol=0.2)
    other = np.clip(make_background(np.random.default_rng(11)), 0, 255).astype(np.uint8)
    for unknown in (other, image[:-1]):
        assert background_shift(unknown, image, 100.0) is None


@pytest.mark.parametrize("other", ["another scene", "another size"])
def test_align_finds_cuts(other):
    image = np.clip(make_background(np.random.default_rng(3)), 0, 255).astype(np.uint8)
    past = image[:-1] if other == "another size" else make_background(np.random.default_rng(4)).clip(0, 255)
    assert align(past.astype(np.uint8), image, span=100.0) is None


def test_temporal_difference_shows_a_dim_target_that_the_image_hides():
    rng = np.random.default_rng(5)
    background = make_background(rng)
    past, image = (background + rng.normal(0, 1.5, background.shape) for _ in range(2))
    target = (np.s_[80:83], np.s_[100:103])
    image[target] += 6  # a few counts, in a background that varies by tens of counts
    image, past = (np.clip(np.rint(each), 0, 255).astype(np.uint8) for each in (image, past))
    difference = temporal_difference(image, align(past, image, 100.0), 100.0)
    assert 0.6 * DEVIATION_UNITS < difference.std() < DEVIATION_UNITS
    y, x = np.unravel_index(difference.argmax(), difference.shape)
    assert abs(y - 81) <= 1 and abs(x - 101) <= 1
    contrast = np.abs(image - background.mean())
    assert (contrast > contrast[81, 101]).sum() > 1000


def test_temporal_difference_shows_a_dim_target_beside_moving_leaves():
    rng = np.random.default_rng(14)
    image, past = (100 + rng.normal(0, 1, (128, 160)) for _ in range(2))
    image[80:] += rng.normal(0, 20, (48, 160))
    image[40:43, 60:63] += 6
    image, past = (np.clip(np.rint(each), 0, 255).astype(np.uint8) for each in (image, past))
    difference = temporal_difference(image, past, 100.0)
    assert np.unravel_index(difference.argmax(), difference.shape) == (41, 61)
    raw = np.abs(image - past.astype(np.float32))
    assert (raw > raw[41, 61]).sum() > 1000


def test_temporal_difference_ignores_a_change_of_the_offset():
    image = np.clip(make_background(np.random.default_rng(6)), 0, 200).astype(np.uint8)
    assert np.abs(temporal_difference(image + 20, image, 100.0)).max() < 1e-6


def test_temporal_difference_changes_sign_with_the_polarity():
    rng = np.random.default_rng(7)
    image, past = rng.integers(0, 255, (2, 64, 96)).astype(np.uint8)
    one, other = temporal_difference(image, past, 200.0), temporal_difference(255 - image, 255 - past, 200.0)
    np.testing.assert_allclose(one, -other, atol=1e-5)


def test_local_contrast_of_flat_areas_beside_structure_is_finite():
    rng = np.random.default_rng(0)
    for width in range(10, 150, 5):
        image = np.full((192, 192), 7, np.uint8)
        image[:, :width] = rng.integers(0, 255, (192, width))
        image[100:] = 0
        assert np.isfinite(local_contrast(image, span=200.0)).all()


def test_local_contrast_keeps_the_scale_of_a_dark_band():
    image = np.zeros((128, 160), np.uint8)
    image[:64] = 20
    image[64:] = np.random.default_rng(8).integers(100, 250, (64, 160))
    image[30:33, 80:83] = 26
    contrast = local_contrast(image, span=200.0)
    assert contrast[31, 81] > 1.0
    assert np.abs(contrast[:40, :60]).max() < 1e-3
    assert contrast[31, 81] > 0.9 * contrast[70:].max()


def test_extra_channels_has_zeros_for_missing_frames():
    image = np.random.default_rng(9).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    channels = extra_channels(image, [None, image[..., 0]], 200.0, with_local_contrast=False)
    assert channels.shape == (3, 64, 96) and channels.dtype == np.float32
    assert not channels[0].any() and channels[1].any()
    np.testing.assert_array_equal(channels[2], channels[1])  # the only known difference
    assert not extra_channels(image, [None, None], 200.0, with_local_contrast=False).any()
    assert extra_channels(image, [image[..., 0]], 200.0, with_local_contrast=True).shape == (2, 64, 96)
    assert extra_channels(image, [], 200.0, with_local_contrast=False).shape == (0, 64, 96)


def test_common_difference_leaves_out_the_places_that_a_target_has_left():
    image = np.full((64, 96), 100, np.uint8)
    frames = [image.copy() for _ in range(3)]
    for frame, column in zip(frames, (60, 50, 40), strict=True):
        frame[30:33, column : column + 3] = 110
    for sign in (1, -1):
        now, *past = frames if sign > 0 else [200 - frame for frame in frames]
        common = sign * extra_channels(now, past, 64.0, with_local_contrast=False)[-1]
        assert np.unravel_index(common.argmax(), common.shape) == (31, 61)
        assert common.max() > 1 and np.abs(common[:, :56]).max() < 0.2 * common.max()


@pytest.mark.parametrize(
    ("ages", "chosen"),
    [([], {}), ([0.5], {0.5: 0.5}), ([0.6], {0.5: 0.6}), ([0.63], {}), ([0.45, 0.52, 1.2], {0.5: 0.52, 1.0: 1.2})],
)
def test_choose_frames_takes_the_nearest_age_within_a_quarter(ages, chosen):
    assert choose_frames([(age, age) for age in ages], [0.1, 0.5, 1.0]) == chosen


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (2, 2)])
def test_images_too_small_for_an_alignment_stay_in_place(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    aligned = align(image, image, 64.0)
    assert aligned is not None and np.array_equal(aligned, image)
