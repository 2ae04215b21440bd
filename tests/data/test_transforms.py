import time

import cv2
import numpy as np
import pytest

from danet.data.transforms import AnnotatedImage, Augmentation, augment, letterbox, undo_letterbox
from danet.utils.errors import UserError


def scene(boxes, size=(256, 320), dtype=np.uint8, channels=None, labels=None, ignore=None):
    """A flat image with a bright rectangle in every box."""
    level, bright = (80, 200) if dtype == np.uint8 else (8000, 20000)
    image = np.full(size if channels is None else (*size, channels), level, dtype)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    for x0, y0, x1, y1 in boxes.astype(int):
        image[y0:y1, x0:x1] = bright
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return AnnotatedImage(image, boxes, labels, ignore)


def extent(image):
    """Box of the bright pixels, float [4], with subpixel accuracy from the brightness of the edge pixels."""
    above = image.astype(np.float64) - np.median(image)
    above /= above.max()
    columns, rows = above.max(axis=0), above.max(axis=1)

    def ends(profile):
        lit = np.flatnonzero(profile > 0.05)
        first, last = lit[0], lit[-1]
        return first + 1 - min(profile[first], 1), last + min(profile[last], 1)

    (x0, x1), (y0, y1) = ends(columns), ends(rows)
    return np.array([x0, y0, x1, y1])


def assert_same(a, b):
    for x, y in zip(a[:4], b[:4], strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("seed", range(12))
def test_augment_moves_boxes_with_the_pixels(seed, dtype):
    options = Augmentation.off(crop=(256, 320), scale=(0.6, 1.6), flip=0.5, around_target=1.0)
    result = augment(scene([[140, 100, 170, 118]], dtype=dtype), np.random.default_rng(seed), options)
    assert result.image.shape == (256, 320) and result.image.dtype == dtype
    assert result.boxes.shape == (1, 4) and result.boxes.dtype == np.float32
    np.testing.assert_allclose(extent(result.image), result.boxes[0], atol=0.8)


def test_augment_without_scaling_is_exact():
    options = Augmentation.off(crop=(128, 160), flip=0.5, around_target=1.0)
    for seed in range(20):
        image, boxes, *_ = augment(scene([[140, 100, 170, 118]]), np.random.default_rng(seed), options)
        if len(boxes):
            x0, y0, x1, y1 = boxes[0].astype(int)
            expected = np.full((128, 160), 80, np.uint8)
            expected[y0:y1, x0:x1] = 200
            np.testing.assert_array_equal(image, expected)


def test_augment_rotated_box_contains_the_object():
    options = Augmentation.off(rotation=20.0)
    for seed in range(10):
        image, boxes, *_ = augment(scene([[140, 100, 190, 118]]), np.random.default_rng(seed), options)
        x0, y0, x1, y1 = extent(image)
        assert x0 >= boxes[0, 0] - 0.8 and y0 >= boxes[0, 1] - 0.8
        assert x1 <= boxes[0, 2] + 0.8 and y1 <= boxes[0, 3] + 0.8
        assert x1 - x0 > boxes[0, 2] - boxes[0, 0] - 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [None, 3])
def test_augment_keeps_dtype_and_boxes_inside_the_image(dtype, channels):
    sample = scene([[20, 20, 24, 23], [140, 100, 170, 118], [300, 200, 320, 230]], (240, 330), dtype, channels)
    sample = sample._replace(labels=np.array([0, -1, 0]), ignore=np.array([False, False, True]))
    before = [part.copy() for part in sample[:4]]
    for seed in range(40):
        image, boxes, labels, ignore, *_ = augment(sample, np.random.default_rng(seed), Augmentation())
        assert image.dtype == dtype and image.shape == (256, 320, *image.shape[2:]) and image.ndim == (channels or 2)
        assert len(boxes) == len(labels) == len(ignore) and ignore.dtype == bool and labels.dtype == np.int64
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [320, 256]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert_same(sample, before)  # the inputs are untouched


def test_augment_depends_only_on_the_generator():
    rng = np.random.default_rng(5)
    sample = scene([[140, 100, 170, 118], [20, 30, 26, 34]])._replace(image=rng.integers(0, 255, (256, 320), np.uint8))
    first = augment(sample, np.random.default_rng([1, 2, 3]), Augmentation(copy_paste=1.0))
    again = augment(sample, np.random.default_rng([1, 2, 3]), Augmentation(copy_paste=1.0))
    other = augment(sample, np.random.default_rng([1, 2, 4]), Augmentation(copy_paste=1.0))
    assert_same(first, again)
    assert not np.array_equal(first.image, other.image)


def test_augment_around_target_is_a_probability():
    sample = scene([[10, 10, 20, 16]], (256, 320))

    def share(around_target):
        options = Augmentation.off(crop=(96, 96), around_target=around_target)
        return np.mean([len(augment(sample, np.random.default_rng(i), options).boxes) for i in range(200)])

    assert share(1.0) == 1.0
    assert share(0.0) < 0.35
    assert share(0.0) < share(0.5) < 0.9


def test_augment_drops_or_clips_boxes_at_the_border():
    sample = scene(
        [[60, 20, 130, 40], [90, 50, 130, 70], [96, 80, 106, 90], [40, 100, 140, 140]],
        labels=[0, 0, -1, 0],
        ignore=[False, False, False, True],
    )
    sample.image[:] = np.minimum(np.arange(320), 255)  # the first pixel states the position of the crop
    options = Augmentation.off(crop=(256, 160), around_target=0.0, min_visible=0.0)
    lefts = set()
    for seed in range(150):
        image, boxes, labels, ignore, *_ = augment(sample, np.random.default_rng(seed), options)
        left = int(image[0, 0])
        lefts.add(left)
        keep = [left <= 95, left <= 110, left <= 101, left < 140]  # the centres, and the ignore region's far edge
        expected = sample.boxes[keep] - [left, 0, left, 0]
        np.testing.assert_array_equal(boxes, np.clip(expected, 0, [160, 256, 160, 256]))
        assert labels.tolist() == sample.labels[keep].tolist()
        assert ignore.tolist() == sample.ignore[keep].tolist()
    assert min(lefts) < 60 and max(lefts) > 140 and lefts & set(range(96, 110))


def test_augment_ignores_boxes_that_lose_their_area():
    sample = scene([[100, 100, 140, 140]], size=(160, 200))
    options = Augmentation.off(crop=(64, 64), min_visible=0.61, around_target=0.0)
    flags = []
    for seed in range(300):
        _, boxes, _, ignore, *_ = augment(sample, np.random.default_rng(seed), options)
        for (x0, y0, x1, y1), ignored in zip(boxes, ignore, strict=True):
            assert ignored == ((x1 - x0) * (y1 - y0) < 0.61 * 1600)
            flags.append(bool(ignored))
    assert True in flags and False in flags


def test_augment_ignores_targets_that_become_too_small():
    _, _, _, ignore, *_ = augment(
        scene([[100, 100, 103, 103], [140, 100, 170, 118]]),
        np.random.default_rng(0),
        Augmentation.off(scale=(0.5, 0.5), min_size=2.0),
    )
    assert ignore.tolist() == [True, False]


def test_augment_pads_with_the_median():
    sample = scene([[2, 2, 30, 20]], (128, 160))
    image, *_ = augment(sample, np.random.default_rng(0), Augmentation.off(crop=(256, 320)))
    assert (image == 80).sum() == 256 * 320 - 28 * 18
    assert (image == 200).sum() == 28 * 18


def test_copy_paste_adds_boxes_and_labels():
    donor = scene([[140, 100, 164, 116]], labels=[-1])
    empty = scene([])
    pasted = 0
    for seed in range(20):
        image, boxes, labels, ignore, *_ = augment(
            empty, np.random.default_rng(seed), Augmentation.off(copy_paste=1.0), donor=donor
        )
        assert (labels == -1).all() and not ignore.any()
        if len(boxes) == 1:
            pasted += 1
            np.testing.assert_allclose(extent(image), boxes[0], atol=1.0)
    assert pasted
    image, boxes, *_ = augment(empty, np.random.default_rng(0), Augmentation.off(copy_paste=1.0))
    assert len(boxes) == 0 and (image == 80).all()


def test_copy_paste_does_not_cover_other_objects():
    sample = scene([[140, 100, 164, 116], [10, 10, 30, 24]])
    for seed in range(30):
        boxes = augment(sample, np.random.default_rng(seed), Augmentation.off(copy_paste=1.0)).boxes
        for i in range(len(boxes)):
            for j in range(i):
                overlap = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                assert overlap.min() <= 0


def test_target_contrast_changes_only_the_target():
    sample = scene([[140, 100, 164, 116]])
    image, boxes, *_ = augment(sample, np.random.default_rng(3), Augmentation.off(target_contrast=1.0))
    assert abs(int(image[108, 152]) - 200) > 3
    np.testing.assert_array_equal(boxes, sample.boxes)
    image[90:126, 130:174] = sample.image[90:126, 130:174]
    np.testing.assert_array_equal(image, sample.image)


def test_polarity_inverts_the_image():
    image, *_ = augment(scene([[140, 100, 164, 116]]), np.random.default_rng(0), Augmentation.off(polarity=1.0))
    assert image[108, 152] < image[0, 0]


def test_noise_has_the_given_strength():
    sigmas = []
    for seed in range(60):
        image, *_ = augment(scene([], dtype=np.uint16), np.random.default_rng(seed), Augmentation.off(noise=0.5))
        sigmas.append(image.std())
    # A flat image has the minimum span, 64 counts; column noise adds at most a factor of 1.3.
    assert 20 < max(sigmas) < 64 * 0.5 * 1.35
    assert np.mean(np.array(sigmas) == 0) == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("size", [(256, 320), (97, 411), (64, 64), (320, 256)])
def test_letterbox_round_trip_of_boxes(size):
    sample = scene([[140, 100, 190, 130]])
    image, boxes, (scale, offset) = letterbox(sample.image, sample.boxes, size)
    assert image.shape == size
    np.testing.assert_allclose(extent(image), boxes[0], atol=0.8)
    np.testing.assert_allclose(undo_letterbox(boxes, scale, offset), sample.boxes, atol=1e-3)
    assert boxes.dtype == np.float32


def test_letterbox_at_native_size_copies_the_image():
    sample = scene([[140, 100, 190, 130]])
    sample.image[:] = np.random.default_rng(0).integers(0, 255, sample.image.shape)
    image, _, (scale, offset) = letterbox(sample.image, sample.boxes, (256, 330))
    assert scale == 1.0 and offset == (5.0, 0.0)
    np.testing.assert_array_equal(image[:, 5:325], sample.image)
    assert (image[:, :5] == np.median(sample.image[::3, ::3])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 320)}, "crop"),
        ({"scale": (1.5, 0.5)}, "scale"),
        ({"scale": (float("nan"), 1.0)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"noise": -1.0}, "noise"),
        ({"rotation": 90.0}, "rotation"),
    ],
)
def test_augmentation_names_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**options)


def test_augment_speed():
    cv2.setNumThreads(1)
    sample = scene([[140, 100, 170, 118], [20, 30, 26, 34]])
    sample.image[:] = np.random.default_rng(0).integers(0, 255, sample.image.shape)
    start = time.process_time()
    for seed in range(100):
        augment(sample, np.random.default_rng(seed), Augmentation())
    # Measured: 1.7 ms per frame. The limit allows for slow machines.
    assert (time.process_time() - start) / 100 < 0.02


def test_pasted_objects_may_be_enlarged_beyond_the_image():
    boxes = np.array([[20, 20, 36, 36]], np.float32)
    frame = AnnotatedImage(np.zeros((64, 80), np.uint8), boxes, np.array([0]), np.array([False]))
    options = Augmentation.off(copy_paste=1.0, paste_scale=(1.0, 3.0), paste_visibility=0.0)
    for seed in range(100):
        boxes = augment(frame, np.random.default_rng(seed), options).boxes
        assert (boxes >= 0).all() and (boxes <= [80, 64, 80, 64]).all()
