"""95 % confidence intervals by bootstrap over groups of images (videos), vectorized over all resamples.

Frames of one video resemble each other: images are not independent samples, but videos nearly are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CURVE_BINS = 512
"""Points of a resampled precision-recall curve. The AP is exact if there are at most this many hits."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval.

    ``value`` is None if it is undefined (0 / 0). ``low`` and ``high`` are None if fewer than two groups contribute to
    it: an interval cannot be estimated from one video.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def without_interval(cls, value: float) -> "Estimate":
        return cls(value if math.isfinite(value) else None)


@dataclass(frozen=True)
class Resampling:
    """R bootstrap resamples of N images in V groups."""

    groups: np.ndarray  # int64 [N], group of each image
    weights: np.ndarray  # float32 [R, V], how often each resample drew each group
    unit: str  # "videos" or "images"

    def sums(self, per_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of ``per_image [N]`` in every group ``[V]`` and in every resample ``[R]``."""
        by_group = np.bincount(self.groups, per_image, self.weights.shape[1])
        return by_group, self.weights @ by_group.astype(np.float32)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
        """Ratio of the sums of two counts per image, ``[N]`` each: precision, recall, F1, or a rate per image."""
        _, top = self.sums(numerator)
        by_group, bottom = self.sums(denominator)
        value = float(safe_divide(numerator.sum(), denominator.sum()))
        return self.estimate(value, safe_divide(top, bottom), int((by_group > 0).sum()))

    def average_precision(self, value: float, hit: np.ndarray, image: np.ndarray, objects: np.ndarray) -> Estimate:
        """The interval of an AP of ``value``; other arguments as for ``average_precisions``."""
        contributing = np.unique(np.concatenate([self.groups[image], self.groups[objects > 0]]))
        return self.estimate(value, average_precisions(hit, image, objects, self), len(contributing))

    def estimate(self, value: float, samples: np.ndarray, contributing: int) -> Estimate:
        """The interval of a metric from its values in the resamples ``[R]``; NaN values are left out.

        ``contributing``: the number of groups that the metric depends on.
        """
        samples = samples[np.isfinite(samples)]
        if not math.isfinite(value) or contributing < 2 or not len(samples):
            return Estimate.without_interval(value)
        low, high = np.percentile(samples, [2.5, 97.5])
        return Estimate(value, float(low), float(high))


def resample(videos: Sequence[str | None], resamples: int = 1000, seed: int = 0) -> Resampling:
    """Draws bootstrap resamples of N images by group: a group is a video, or a single image without a video.

    Example:
        >>> draws = resample(["a", "a", "b"], resamples=100)
        >>> draws.ratio(np.array([1, 0, 1]), np.array([1, 1, 1])).value  # such as the recall, 2 of 3
        0.6666666666666666
    """
    names: dict[object, int] = {}
    keys = [index if video is None else video for index, video in enumerate(videos)]
    groups = np.array([names.setdefault(key, len(names)) for key in keys], np.int64)
    count = len(names)
    rng = np.random.default_rng(seed)
    draws = rng.integers(max(count, 1), size=(resamples, count)) + np.arange(resamples)[:, None] * count
    weights = np.bincount(draws.reshape(-1), minlength=resamples * count).reshape(resamples, count)
    unit = "images" if all(video is None for video in videos) else "videos"
    return Resampling(groups, weights.astype(np.float32), unit)


def safe_divide(numerator: np.ndarray | np.floating, denominator: np.ndarray | np.floating) -> np.ndarray:
    """Elementwise quotient; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, np.divide(numerator, denominator), np.nan)


def average_precisions(hit: np.ndarray, image: np.ndarray, objects: np.ndarray, resampling: Resampling) -> np.ndarray:
    """AP (101 recall points) of every resample: ``[R]``, NaN where no object was drawn.

    Args:
        hit: bool ``[D]``, whether each counted detection is a hit, by descending score.
        image: int ``[D]``, image index of each counted detection.
        objects: ``[N]``, number of objects in each image.

    The curve is stored as counts per group in bins that end at a hit. With more than CURVE_BINS hits, a bin holds
    several hits, which changes an AP by less than 1 / CURVE_BINS.
    """
    count = resampling.weights.shape[1]
    _, totals = resampling.sums(objects)
    hits = int(hit.sum())
    if hits == 0:
        return np.where(totals > 0, 0.0, np.nan)
    bins = min(hits, CURVE_BINS)
    # Assign false alarms to the bin of the next hit; those after the last hit do not affect the AP.
    next_hit = np.cumsum(hit) - hit
    keep = next_hit < hits
    cell = resampling.groups[image[keep]] * bins + next_hit[keep] * bins // hits
    tp, fp = (
        np.cumsum(resampling.weights @ _count_cells(cell[chosen], count, bins), axis=1, dtype=np.float64)
        for chosen in (hit[keep], ~hit[keep])
    )
    # Interpolate: the best precision at this recall or beyond.
    precision = np.nan_to_num(safe_divide(tp, tp + fp))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = safe_divide(tp, totals[:, None])
    points = np.linspace(0.0, 1.0, 101)
    result = np.full(len(tp), np.nan)
    for row in np.flatnonzero(totals > 0):
        first = np.searchsorted(recall[row], points, side="left")
        result[row] = envelope[row, first[first < bins]].sum() / len(points)
    return result


def _count_cells(cell: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
