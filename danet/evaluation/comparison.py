"""Compares two variants of a detector on the same images by a paired bootstrap.

Both variants are evaluated on the same resampled videos, so that the difficulty of a video, which both share, cancels
out. The metrics of a variant are means over its runs (seeds); the run-to-run variation is not part of the interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danet.evaluation.bootstrap import Estimate, Resampling, average_precisions, safe_divide
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, flatten, match
from danet.evaluation.metrics import Counts, curve

_CHUNK = 64
"""Resamples processed at once; limits the memory for their hits."""


@dataclass(frozen=True)
class Outcome:
    """Hits and false alarms of one run on N images, for one class and criterion."""

    hit_scores: np.ndarray  # [H], descending
    hit_image: np.ndarray  # [H], index of the image
    false_scores: np.ndarray  # [F], descending
    false_image: np.ndarray  # [F], index of the image
    objects: np.ndarray  # [N], objects per image
    threshold: float  # score threshold of F1

    @property
    def highest_recall(self) -> float:
        """The recall if all detections are kept; NaN without objects."""
        total = self.objects.sum()
        return len(self.hit_scores) / total if total else math.nan

    def counts(self) -> Counts:
        """The counts at ``threshold``."""
        hits, false = (
            np.bincount(image[scores >= self.threshold], minlength=len(self.objects))
            for scores, image in ((self.hit_scores, self.hit_image), (self.false_scores, self.false_image))
        )
        return Counts(self.threshold, hits, false, self.objects)

    def f1(self, draws: Resampling) -> tuple[float, np.ndarray]:
        """F1 at ``threshold`` on all images, and in every resample ``[R]``."""
        _, hits, false, _ = self.counts()
        (_, top), (_, bottom) = draws.sums(2 * hits), draws.sums(hits + false + self.objects)
        return float(safe_divide(2 * hits.sum(), (hits + false + self.objects).sum())), safe_divide(top, bottom)

    def average_precision(self, draws: Resampling) -> tuple[float, np.ndarray]:
        """AP on all images, and in every resample ``[R]``."""
        scores = np.concatenate([self.hit_scores, self.false_scores])
        hit = np.arange(len(scores)) < len(self.hit_scores)
        image = np.concatenate([self.hit_image, self.false_image])
        order = np.argsort(-scores, kind="stable")
        outcome = np.where(hit[order], HIT, FALSE_ALARM)
        value = curve(scores[order], outcome, int(self.objects.sum())).average_precision()
        return value, average_precisions(hit[order], image[order], self.objects, draws)

    def false_alarms(self, recall: float, images: np.ndarray) -> float | None:
        """False alarms per image on ``images`` (mask ``[N]``) at the highest threshold with at least this recall.

        None if the recall is not reached or if there are no images.
        """
        needed = np.flatnonzero(safe_divide(np.arange(1, len(self.hit_scores) + 1), self.objects.sum()) >= recall)
        if not len(needed) or not images.any():
            return None
        alarms = images[self.false_image] & (self.false_scores >= self.hit_scores[needed[0]])
        return float(alarms.sum() / images.sum())

    def resampled_false_alarms(self, recall: float, images: np.ndarray, draws: Resampling) -> np.ndarray:
        """``false_alarms`` in every resample ``[R]``, each with its own threshold; NaN where no image is drawn.

        All detections count in a resample that does not reach the recall.
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
    records: Sequence, predictions: Sequence, classes: Sequence[str], *, target: str, criterion: str, threshold: float
) -> Outcome:
    """Matches predictions and keeps what comparisons need; arguments as for ``evaluate_predictions``."""
    data = flatten(records, predictions, classes)[target]
    matches = match(data, CRITERIA[criterion])
    hit, false = matches.outcome == HIT, matches.outcome == FALSE_ALARM
    objects = np.bincount(data.truth_image[matches.counted], minlength=data.images)
    return Outcome(data.scores[hit], data.image[hit], data.scores[false], data.image[false], objects, threshold)


@dataclass(frozen=True)
class Comparison:
    """Variant ``a`` minus variant ``b``; fields are keys of ``ablation.json``."""

    f1: Estimate
    recall: float
    """Recall of the false alarms: the requested one, or the highest that all runs of both variants reach."""
    false_alarms: Estimate
    """False alarms per image."""
    false_alarms_change: Estimate
    """Relative to b: -0.4 means 40 % fewer false alarms. Undefined if b has none."""


def common_recall(runs: Sequence[Outcome], recall: float) -> float:
    """``recall``, or the highest recall that all ``runs`` reach if that is lower."""
    return min(recall, *(run.highest_recall for run in runs))


def compare(
    a: Sequence[Outcome], b: Sequence[Outcome], draws: Resampling, *, recall: float, images: np.ndarray
) -> Comparison:
    """Compares two variants, each given as its runs.

    Args:
        draws: resamples of the images, the same for both variants.
        recall: recall at which false alarms are compared.
        images: mask ``[N]`` of the images on which false alarms are counted, those without a target.
    """
    recall = common_recall([*a, *b], recall)
    f1_a, f1_b = (_mean([run.f1(draws) for run in runs]) for runs in (a, b))
    values, samples = [], []
    for runs in (a, b):
        rates = [run.false_alarms(recall, images) for run in runs]
        reached = [rate for rate in rates if rate is not None]
        values.append(float(np.mean(reached)) if len(reached) == len(rates) else math.nan)
        samples.append(np.mean([run.resampled_false_alarms(recall, images, draws) for run in runs], axis=0))
    groups, contributing = len(np.unique(draws.groups)), len(np.unique(draws.groups[images]))
    fewer = samples[0] - samples[1]
    change = safe_divide(np.float64(values[0] - values[1]), np.float64(values[1]))
    return Comparison(
        f1=draws.estimate(f1_a[0] - f1_b[0], f1_a[1] - f1_b[1], groups),
        recall=recall,
        false_alarms=draws.estimate(values[0] - values[1], fewer, contributing),
        false_alarms_change=draws.estimate(float(change), safe_divide(fewer, samples[1]), contributing),
    )


def _mean(estimates: list[tuple[float, np.ndarray]]) -> tuple[float, np.ndarray]:
    values, samples = zip(*estimates, strict=True)
    return float(np.mean(values)), np.mean(samples, axis=0)
