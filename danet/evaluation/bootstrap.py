"""95 % intervals by resampling groups of images (videos), vectorised over all resamples.

Frames of one video resemble each other, so images are not independent draws but videos nearly are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Steps of a resampled P-R curve; exact while there are fewer hits than this.
CURVE_BINS = 512


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    ``value`` is None where it is undefined (0/0); ``low`` and ``high`` are None where fewer than two
    groups bear on it, since resampling one video says nothing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def without_interval(cls, value: float) -> "Estimate":
        return cls(value if math.isfinite(value) else None)


@dataclass(frozen=True)
class Resampling:
    """R resamples of N images in V groups."""

    groups: np.ndarray  # int64 [N], each image's group
    weights: np.ndarray  # float32 [R, V], how often a resample drew a group
    unit: str  # "videos" or "images"

    def sums(self, per_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Totals of ``per_image [N]`` by group ``[V]`` and in every resample ``[R]``."""
        by_group = np.bincount(self.groups, per_image, self.weights.shape[1])
        return by_group, self.weights @ by_group.astype(np.float32)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
        """Sum over sum of two counts an image, ``[N]`` each: precision, recall, F1, a rate an image."""
        _, top = self.sums(numerator)
        by_group, bottom = self.sums(denominator)
        value = float(safe_divide(numerator.sum(), denominator.sum()))
        return self.estimate(value, safe_divide(top, bottom), int((by_group > 0).sum()))

    def average_precision(self, value: float, hit: np.ndarray, image: np.ndarray, objects: np.ndarray) -> Estimate:
        """An AP of ``value`` with its interval; the other arguments as ``average_precisions`` takes them."""
        bearing = np.unique(np.concatenate([self.groups[image], self.groups[objects > 0]]))
        return self.estimate(value, average_precisions(hit, image, objects, self), len(bearing))

    def estimate(self, value: float, samples: np.ndarray, bearing: int) -> Estimate:
        """A figure with the interval of its values in the resamples ``[R]``, of which those that are NaN are left out.

        ``bearing``: how many groups bear on it.
        """
        samples = samples[np.isfinite(samples)]
        if not math.isfinite(value) or bearing < 2 or not len(samples):
            return Estimate.without_interval(value)
        low, high = np.percentile(samples, [2.5, 97.5])
        return Estimate(value, float(low), float(high))


def resample(videos: Sequence[str | None], resamples: int = 1000, seed: int = 0) -> Resampling:
    """Draws resamples of the groups of N images: a group is a video, or an image of no known video."""
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
    """Element-wise quotient, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, np.divide(numerator, denominator), np.nan)


def average_precisions(hit: np.ndarray, image: np.ndarray, objects: np.ndarray, resampling: Resampling) -> np.ndarray:
    """AP (101 points) of every resample: ``[R]``, NaN where no object was drawn.

    Args:
        hit: bool ``[D]``, the counted detections by descending score.
        image: int ``[D]``, their images.
        objects: ``[N]``, how many objects each image has.

    The curve is kept as counts by group in bins that each end at a hit. Above CURVE_BINS hits a bin
    holds several, which moves an AP by less than 1 / CURVE_BINS.
    """
    count = resampling.weights.shape[1]
    _, totals = resampling.sums(objects)
    hits = int(hit.sum())
    if hits == 0:
        return np.where(totals > 0, 0.0, np.nan)
    bins = min(hits, CURVE_BINS)
    # A false alarm belongs to the next hit; those after the last hit change no precision that counts.
    next_hit = np.cumsum(hit) - hit
    keep = next_hit < hits
    cell = resampling.groups[image[keep]] * bins + next_hit[keep] * bins // hits
    tp, fp = (
        np.cumsum(resampling.weights @ _table(cell[chosen], count, bins), axis=1, dtype=np.float64)
        for chosen in (hit[keep], ~hit[keep])
    )
    precision = np.nan_to_num(safe_divide(tp, tp + fp))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = safe_divide(tp, totals[:, None])
    points = np.linspace(0.0, 1.0, 101)
    result = np.full(len(tp), np.nan)
    for row in np.flatnonzero(totals > 0):
        first = np.searchsorted(recall[row], points, side="left")
        result[row] = envelope[row, first[first < bins]].sum() / len(points)
    return result


def _table(cell: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
