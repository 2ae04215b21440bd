import time

import cv2
import numpy as np
import pytest

from danet.tracking.camera_motion import STILL, CameraMotion


def scene(seed=0, size=(400, 500)):
    rng = np.random.default_rng(seed)
    large, small = (cv2.GaussianBlur(rng.normal(0, 1, size), (0, 0), width) for width in (40, 2.5))
    return np.clip(110 + 35 * large / large.std() + 12 * small / small.std(), 0, 255).astype(np.uint8)


def moved(picture, matrix, size=(256, 320)):
    """The upper left part of the picture after the motion ``[2, 3]``."""
    edge = cv2.BORDER_REFLECT
    return cv2.warpAffine(picture, matrix, picture.shape[::-1], borderMode=edge)[: size[0], : size[1]]


@pytest.mark.parametrize("shift", [(5, -3), (0.5, 0.25), (-30, 12)])
def test_shift(shift):
    picture, camera = scene(), CameraMotion()
    matrix = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]])
    camera.estimate(picture[:256, :320])
    motion = camera.estimate(moved(picture, matrix))
    assert not motion.is_cut
    np.testing.assert_allclose(motion.matrix, matrix, atol=0.3)


def test_rotation_and_zoom():
    picture, camera = scene(), CameraMotion()
    matrix = cv2.getRotationMatrix2D((160, 128), 3.0, 1.04)
    camera.estimate(picture[:256, :320])
    motion = camera.estimate(moved(picture, matrix))
    corners = np.array([[0, 0, 1], [320, 0, 1], [0, 256, 1], [320, 256, 1]])
    np.testing.assert_allclose(corners @ motion.matrix.T, corners @ matrix.T, atol=1.0)


def test_still_camera_with_noise_gives_no_motion():
    picture, camera, rng = scene(), CameraMotion(), np.random.default_rng(0)
    for _ in range(5):
        image = np.clip(picture[:256, :320] + rng.normal(0, 1.5, (256, 320)), 0, 255).astype(np.uint8)
        assert np.array_equal(camera.estimate(image).matrix, STILL)


def test_moving_targets_do_not_move_the_picture():
    picture, camera = scene(), CameraMotion()
    for index in range(6):
        image = picture[:256, :320].copy()
        for x in range(6):
            cv2.circle(image, (30 + 40 * x + 4 * index, 60 + 20 * x), 5, 255, -1)
        assert np.abs(camera.estimate(image).matrix - STILL).max() < 0.2


def test_large_frames_are_measured_in_their_own_pixels():
    picture = cv2.resize(scene(), (2000, 1600), interpolation=cv2.INTER_CUBIC)
    camera = CameraMotion()
    camera.estimate(picture[:1080, :1920])
    np.testing.assert_allclose(camera.estimate(picture[12:1092, 40:1960]).matrix[:, 2], [-40, -12], atol=1.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cut(dtype):
    camera = CameraMotion()
    scale = 1 if dtype == np.uint8 else 40
    cuts = []
    for index in range(12):
        picture = scene(0 if index < 6 else 7)
        cuts.append(camera.estimate(picture[:256, 2 * index : 320 + 2 * index].astype(dtype) * scale).is_cut)
    assert np.flatnonzero(cuts).tolist() == [6]


def test_change_of_gain_is_no_cut():
    picture, camera = scene()[:256, :320].astype(float), CameraMotion()
    camera.estimate(picture.astype(np.uint8))
    assert not camera.estimate(np.clip(picture * 0.6 + 70, 0, 255).astype(np.uint8)).is_cut


def test_clear_sky_is_no_cut_and_no_motion():
    rng, camera = np.random.default_rng(0), CameraMotion()
    for level in (100, 102, 105):
        motion = camera.estimate(np.clip(rng.normal(level, 1, (256, 320)), 0, 255).astype(np.uint8))
        assert not motion.is_cut and np.abs(motion.matrix - STILL).max() < 0.5


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (3, 5)])
def test_tiny_frames(size):
    camera = CameraMotion()
    assert not any(camera.estimate(np.full(size, level, np.uint8)).is_cut for level in (3, 4))


def test_another_size_is_a_cut():
    camera = CameraMotion()
    camera.estimate(np.zeros((256, 320), np.uint8))
    assert camera.estimate(np.zeros((240, 320), np.uint8)).is_cut


@pytest.mark.long
def test_cost_is_at_most_three_milliseconds():
    """The best of many frames, so that a busy machine does not matter."""
    picture, camera, seconds = scene(), CameraMotion(), []
    for index in range(60):
        image = np.ascontiguousarray(picture[:256, index : 320 + index])
        started = time.perf_counter()
        camera.estimate(image)
        seconds.append(time.perf_counter() - started)
    assert min(seconds[1:]) < 3e-3


def test_known_cuts_of_a_real_video(real_data):
    from danet.data.frame_sources import open_source

    camera = CameraMotion()
    video = open_source(real_data / "svanstrom-ir" / "IR_AIRPLANE_018.mp4")
    assert [frame.index for frame in video if camera.estimate(frame.image).is_cut] == [187, 248]
