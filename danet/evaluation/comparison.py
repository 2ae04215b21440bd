"""Two variants of a detector on the same images: how sure is it that one is better?

A paired bootstrap: both are measured on the same resampled videos, so that what makes a video hard for both cancels
out. A variant is what several trainings (seeds) of it give on average; how these differ from each other is not in
the interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danet.evaluation.bootstrap import Estimate, Resampling, safe_divide
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, flatten, match
from danet.evaluation.metrics import Counts

# Resamples taken at once: the hits of all of them are in memory.
_CHUNK = 64


@dataclass(frozen=True)
class Outcome:
    """What one detector did on N images, for one class and criterion; scores descending, images their indices."""

    hit_scores: np.ndarray  # [H]
    hit_image: np.ndarray  # [H]
    false_scores: np.ndarray  # [F]
    false_image: np.ndarray  # [F]
    objects: np.ndarray  # [N]
    threshold: float  # at which F1 is taken

    @property
    def highest_recall(self) -> float:
        """The recall of all detections; NaN without objects."""
        total = self.objects.sum()
        return len(self.hit_scores) / total if total else math.nan

    def counts(self) -> Counts:
        """At the threshold."""
        hits, false = (
            np.bincount(image[scores >= self.threshold], minlength=len(self.objects))
            for scores, image in ((self.hit_scores, self.hit_image), (self.false_scores, self.false_image))
        )
        return Counts(self.threshold, hits, false, self.objects)

    def f1(self, draws: Resampling) -> tuple[float, np.ndarray]:
        """F1 at the threshold, and in every resample ``[R]``."""
        _, hits, false, _ = self.counts()
        (_, top), (_, bottom) = draws.sums(2 * hits), draws.sums(hits + false + self.objects)
        return float(safe_divide(2 * hits.sum(), (hits + false + self.objects).sum())), safe_divide(top, bottom)

    def false_alarms(self, recall: float, images: np.ndarray) -> float | None:
        """False alarms an image on ``images`` (bool ``[N]``) at the highest threshold with at least this recall.

        None where the recall is not reached, or there are no images.
        """
        needed = np.flatnonzero(safe_divide(np.arange(1, len(self.hit_scores) + 1), self.objects.sum()) >= recall)
        if not len(needed) or not images.any():
            return None
        alarms = images[self.false_image] & (self.false_scores >= self.hit_scores[needed[0]])
        return float(alarms.sum() / images.sum())

    def resampled_false_alarms(self, recall: float, images: np.ndarray, draws: Resampling) -> np.ndarray:
        """The same in every resample ``[R]``, each with a threshold of its own; NaN where none of the images is drawn.

        Where the recall is not reached in a resample, all detections count: as far as it goes.
        """
        alarms = images[self.false_image]
        scores, groups = self.false_scores[alarms], draws.groups[self.false_image[alarms]]
        by_group = [np.sort(scores[groups == group]) for group in range(draws.weights.shape[1])]
        _, objects = draws.sums(self.objects)
        _, shown = draws.sums(images)
        result = []
        for start in range(0, len(draws.weights), _CHUNK):
            weights = draws.weights[start : start + _CHUNK].astype(np.float64)
            hits = np.cumsum(weights[:, draws.groups[self.hit_image]], axis=1)
            reached = safe_divide(hits, objects[start : start + _CHUNK, None]) >= recall
            thresholds = np.full(len(weights), -np.inf)
            if len(self.hit_scores):
                thresholds = np.where(reached.any(axis=1), self.hit_scores[reached.argmax(axis=1)], -np.inf)
            counts = [len(each) - np.searchsorted(each, thresholds, side="left") for each in by_group]
            result.append((weights * np.stack(counts, axis=1)).sum(axis=1))
        return safe_divide(np.concatenate(result), shown)


def detection_outcome(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    target: str,
    criterion: str,
    threshold: float,
) -> Outcome:
    """Reduces predictions to what comparisons need; arguments as ``evaluate_predictions`` takes them."""
    data = flatten(records, predictions, classes)[target]
    matches = match(data, CRITERIA[criterion])
    hit, false = matches.outcome == HIT, matches.outcome == FALSE_ALARM
    objects = np.bincount(data.truth_image[matches.counted], minlength=data.images)
    return Outcome(data.scores[hit], data.image[hit], data.scores[false], data.image[false], objects, threshold)


@dataclass(frozen=True)
class Comparison:
    """What variant ``a`` has over variant ``b``."""

    f1: Estimate
    """F1 of a minus F1 of b."""
    recall: float
    """At which false alarms are compared: the wanted one, or the highest that all runs of both reach."""
    false_alarms: Estimate
    """False alarms an image of a minus those of b."""
    false_alarms_change: Estimate
    """The same in parts of those of b: -0.4 are 40 % fewer. Undefined where b has none."""


def common_recall(runs: Sequence[Outcome], recall: float) -> float:
    """``recall``, or the highest that all ``runs`` reach if one of them does not reach it."""
    return min(recall, *(run.highest_recall for run in runs))


def compare(
    a: Sequence[Outcome], b: Sequence[Outcome], draws: Resampling, *, recall: float, images: np.ndarray
) -> Comparison:
    """Compares two variants, each given as its runs.

    Args:
        draws: resamples of the images, the same for both.
        recall: at which false alarms are to be compared, on ``images`` (bool ``[N]``), those without an object.
    """
    recall = common_recall([*a, *b], recall)
    f1_a, f1_b = (_mean([run.f1(draws) for run in runs]) for runs in (a, b))
    values, samples = [], []
    for runs in (a, b):
        rates = [run.false_alarms(recall, images) for run in runs]
        reached = [rate for rate in rates if rate is not None]
        values.append(float(np.mean(reached)) if len(reached) == len(rates) else math.nan)
        samples.append(np.mean([run.resampled_false_alarms(recall, images, draws) for run in runs], axis=0))
    groups = len(np.unique(draws.groups))
    bearing = len(np.unique(draws.groups[images]))
    change = safe_divide(np.float64(values[0] - values[1]), np.float64(values[1]))
    return Comparison(
        f1=draws.estimate(f1_a[0] - f1_b[0], f1_a[1] - f1_b[1], groups),
        recall=recall,
        false_alarms=draws.estimate(values[0] - values[1], samples[0] - samples[1], bearing),
        false_alarms_change=draws.estimate(float(change), safe_divide(samples[0] - samples[1], samples[1]), bearing),
    )


def _mean(figures: list[tuple[float, np.ndarray]]) -> tuple[float, np.ndarray]:
    values, samples = zip(*figures, strict=True)
    return float(np.mean(values)), np.mean(samples, axis=0)
