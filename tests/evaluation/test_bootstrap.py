import numpy as np
import pytest

from danet.evaluation.bootstrap import CURVE_BINS, average_precisions, resample
from danet.evaluation.matching import FALSE_ALARM, HIT
from danet.evaluation.metrics import curve


def detections(rng, videos, per_video=20):
    """Images of videos of different difficulty, with one object each that is found or not, and with false alarms."""
    names = np.repeat([f"v{i}" for i in range(videos)], per_video)
    chance = np.repeat(rng.uniform(0.4, 1.0, videos), per_video)
    hits = (rng.random(len(names)) < chance).astype(int)
    false = rng.poisson(0.2, len(names))
    return names.tolist(), hits, false


def test_interval_contains_value_and_shrinks_with_videos():
    rng = np.random.default_rng(0)
    widths = []
    for videos in (8, 80, 800):
        names, hits, false = detections(rng, videos)
        estimate = resample(names).ratio(hits, hits + false)
        assert estimate.low < estimate.value < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]  # a factor of sqrt(10) each


def test_interval_coverage():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        names, hits, _ = detections(rng, 60)
        estimate = resample(names, 400, trial).ratio(hits, np.ones_like(hits))
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered >= 87  # 95 expected; 86 or fewer would be 4 sigma


def test_interval_by_video_is_wider_than_by_image():
    hits = np.repeat([1, 0, 1, 1, 0, 1, 0, 1], 50)
    by_video = resample(np.repeat(list("abcdefgh"), 50).tolist()).ratio(hits, np.ones_like(hits))
    by_image = resample([None] * 400).ratio(hits, np.ones_like(hits))
    assert by_video.high - by_video.low > 5 * (by_image.high - by_image.low)


def test_resample_units_and_groups():
    mixed = resample(["a", None, "a", None], 10)
    assert mixed.unit == "videos"
    assert mixed.groups.tolist() == [0, 1, 0, 2]
    assert (mixed.weights.sum(axis=1) == 3).all()
    assert resample([None, None], 10).unit == "images"


def test_one_video_gives_no_interval():
    draws = resample(["a"] * 10)
    estimate = draws.ratio(np.ones(10, int), np.full(10, 2))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)
    # nor does one contributing video among several
    draws = resample(["a", "b", "c"])
    assert draws.ratio(np.array([1, 0, 0]), np.array([2, 0, 0])).low is None
    assert draws.ratio(np.zeros(3, int), np.zeros(3, int)).value is None


def test_resample_is_deterministic():
    names = [f"v{i}" for i in range(30)]
    assert np.array_equal(resample(names, 50, 3).weights, resample(names, 50, 3).weights)
    assert not np.array_equal(resample(names, 50, 3).weights, resample(names, 50, 4).weights)


@pytest.mark.parametrize("count", [200, 8000])
def test_resampled_ap_equals_ap_of_resampled_detections(count):
    rng = np.random.default_rng(2)
    images = 100
    image = rng.integers(0, images, count)
    hit = rng.random(count) < np.linspace(0.95, 0.1, count)
    objects = np.bincount(image[hit], minlength=images) + 1
    draws = resample([f"v{i // 5}" for i in range(images)], 20)
    ours = average_precisions(hit, image, objects, draws)
    scores = np.linspace(1, 0, count)
    for row, weights in enumerate(draws.weights.astype(int)[:, draws.groups]):
        copies = np.repeat(np.arange(count), weights[image])
        outcome = np.where(hit[copies], HIT, FALSE_ALARM)
        expected = curve(scores[copies], outcome, int((weights * objects).sum())).average_precision()
        assert ours[row] == pytest.approx(expected, abs=1e-6 if hit.sum() <= CURVE_BINS else 1 / CURVE_BINS)


def test_ap_without_hits_or_objects():
    draws = resample(["a", "b"], 20)
    none = np.zeros(0, bool), np.zeros(0, int)
    assert (average_precisions(*none, np.array([1, 1]), draws) == 0).all()
    assert np.isnan(average_precisions(*none, np.array([0, 0]), draws)).all()
