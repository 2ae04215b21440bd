"""Precision, recall, F1, average precision and false alarms of a detector's predictions.

Thresholds are never chosen on the data that is reported: ``choose_threshold`` runs on other data, and
``evaluate_predictions`` takes the number.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from danet.data.class_map import IGNORE
from danet.evaluation.bootstrap import Estimate, Resampling, resample, safe_divide
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, IGNORED, ClassData, Matches, flatten, match

RECALLS = (0.90, 0.95)
"""Recalls at whose thresholds false alarms are reported."""

NOTHING, ALL = "(nothing)", "(all)"
"""Groups of false alarms beside the distractor classes: images without any object, and all together."""


def recall_point(recall: float, criterion: str) -> str:
    """Name of the operating point where a recall is reached under a criterion: "recall 0.90 iou50"."""
    return f"recall {recall:.2f} {criterion}"


class Curve(NamedTuple):
    """Counts at every threshold that changes them, K of them, descending; equal scores are one threshold."""

    thresholds: np.ndarray  # [K]
    tp: np.ndarray  # [K] hits with a score of at least the threshold
    fp: np.ndarray  # [K] false alarms, likewise
    objects: int

    @property
    def precision(self) -> np.ndarray:
        return safe_divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        return safe_divide(self.tp, np.full(len(self.tp), self.objects))

    @property
    def f1(self) -> np.ndarray:
        return safe_divide(2 * self.tp, self.tp + self.fp + self.objects)

    def average_precision(self) -> float:
        """COCO's: the mean over 101 recalls of the best precision at that recall or beyond; NaN without objects."""
        if self.objects == 0:
            return math.nan
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        first = np.searchsorted(self.recall, np.linspace(0.0, 1.0, 101), side="left")
        return float(envelope[first[first < len(envelope)]].sum() / 101)

    def best_f1(self) -> tuple[float | None, float]:
        """The threshold of the highest F1 (None where nothing was found), and that F1.

        It lies halfway to the next lower score, so that rounding it changes no decision.
        """
        if not self.tp.any():
            return None, 0.0 if self.objects else math.nan
        best = int(np.argmax(self.f1))
        lower = self.thresholds[best + 1] if best + 1 < len(self.thresholds) else 0.0
        return float(0.5 * (self.thresholds[best] + lower)), float(self.f1[best])

    def middle_of_best(self, tolerance: float = 0.01) -> tuple[float | None, float]:
        """The middle of the scores around the best whose F1 is within `tolerance` of it, and the F1 there.

        Where few mistakes are made many thresholds serve nearly equally well, and the best of them is an
        accident of a single detection; the middle stays right when other images shift the scores either way.
        """
        if not self.tp.any():
            return None, 0.0 if self.objects else math.nan
        best = int(np.argmax(self.f1))
        worse = np.flatnonzero(self.f1 < self.f1[best] - tolerance)
        position = int(np.searchsorted(worse, best))
        first = int(worse[position - 1]) + 1 if position > 0 else 0
        end = int(worse[position]) if position < len(worse) else len(self.f1)
        lower = self.thresholds[end] if end < len(self.f1) else 0.0
        threshold = float(0.5 * (self.thresholds[first] + lower))
        return threshold, self.at(threshold)[2]

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the detections with at least this score; NaN where undefined."""
        kept = int((self.thresholds >= threshold).sum())
        tp, fp = (int(self.tp[kept - 1]), int(self.fp[kept - 1])) if kept else (0, 0)
        pairs = ((tp, tp + fp), (tp, self.objects), (2 * tp, tp + fp + self.objects))
        precision, recall, f1 = (top / bottom if bottom else math.nan for top, bottom in pairs)
        return precision, recall, f1

    def threshold_for_recall(self, recall: float) -> float | None:
        """The highest threshold with at least this recall; None where it is not reached."""
        reached = np.flatnonzero(self.recall >= recall)
        return float(self.thresholds[reached[0]]) if len(reached) else None


def curve(scores: np.ndarray, outcome: np.ndarray, objects: int) -> Curve:
    """The curve of detections ``[D]`` by descending score and their outcomes (HIT, FALSE_ALARM, IGNORED)."""
    valid = outcome != IGNORED
    scores, hit = scores[valid], outcome[valid] == HIT
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    return Curve(scores[last], np.cumsum(hit)[last], np.cumsum(~hit)[last], objects)


@dataclass(frozen=True)
class Operating:
    """Counts and figures at one threshold."""

    threshold: float
    tp: int
    fp: int
    fn: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class Result:
    """One class, criterion and range of sizes: ``tuned`` is None without a threshold from elsewhere."""

    name: str
    title: str
    objects: int
    ap: Estimate
    fixed: Operating
    tuned: Operating | None
    curve: Curve = field(repr=False, metadata={"json": False})


@dataclass(frozen=True)
class Group:
    """The images of one video or recording."""

    name: str
    images: int
    objects: int
    fixed: Operating
    tuned: Operating | None


@dataclass(frozen=True)
class FalseAlarms:
    """False alarms an image on the images that show ``distractor`` and no object of the class to find.

    ``rates`` by operating point; None where that point does not exist (a recall that is not reached).
    """

    distractor: str
    images: int
    rates: dict[str, Estimate | None]


@dataclass(frozen=True)
class Metrics:
    """Everything that ``evaluate_predictions`` measures; ``to_json()`` gives plain values, NaN-free."""

    target: str
    images: int
    objects: int
    resampled: str
    groups: int
    criterion: str
    thresholds: dict[str, float | None]
    criteria: dict[str, Result]
    scales: list[Result]
    recordings: list[Group]
    videos: list[Group]
    false_alarms: list[FalseAlarms]
    other_classes: list[Result]

    def to_json(self) -> dict:
        return _plain(self)


def evaluate_predictions(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    target: str | None = None,
    threshold: float | None = None,
    fixed: float = 0.5,
    criterion: str = "iou50",
    scale_edges: Sequence[float] = (14.0, 18.0),
    resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Measures predictions against annotations.

    Args:
        records, predictions, classes: as ``danet.evaluation.matching.flatten`` takes them.
        target: the class to find; the first of ``classes`` by default.
        threshold: a score chosen on other data (``choose_threshold``), reported as "tuned".
        fixed: the score that is always reported.
        criterion: key of ``CRITERIA`` for the figures by scale, recording and video; the overall ones and
            the thresholds of the recalls come under every criterion.
        scale_edges: edges of the buckets of sqrt(box area) in pixels, ascending.
        resamples, seed: of the bootstrap by video (by image where no videos are known).
    """
    target = classes[0] if target is None else target
    by_class = flatten(records, predictions, classes)
    draws = resample([record.video for record in records], resamples, seed)

    def result(name: str, title: str, data: ClassData, matches: Matches) -> Result:
        return _result(name, title, data, matches, fixed, threshold, draws)

    data, main = by_class[target], CRITERIA[criterion]
    matches = {key: match(data, each) for key, each in CRITERIA.items()}
    criteria = {key: result(key, CRITERIA[key].title, data, matches[key]) for key in CRITERIA}
    buckets = size_buckets(scale_edges)
    scales = [result(name, title, data, match(data, main, bounds)) for name, title, bounds in buckets]
    others = [result(name, name, by_class[name], match(by_class[name], main)) for name in classes if name != target]
    thresholds: dict[str, float | None] = {"fixed": fixed, "tuned": threshold}
    for key, each in criteria.items():
        for recall in RECALLS:
            thresholds[recall_point(recall, key)] = each.curve.threshold_for_recall(recall)

    counts = {name: _counts(data, matches[criterion], value) for name, value in thresholds.items() if value is not None}
    return Metrics(
        target=target,
        images=len(records),
        objects=criteria[criterion].objects,
        resampled=draws.unit,
        groups=draws.weights.shape[1],
        criterion=criterion,
        thresholds=thresholds,
        criteria=criteria,
        scales=scales,
        recordings=_groups([record.recording for record in records], counts),
        videos=_groups([record.video for record in records], counts),
        false_alarms=_false_alarms(records, target, counts, thresholds, draws),
        other_classes=others,
    )


def choose_threshold(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    target: str | None = None,
    criterion: str = "iou50",
) -> tuple[float | None, float]:
    """The score in the middle of those whose F1 is within 0.01 of the best on these images, and its F1.

    (None, 0) where nothing is found. Use images apart from those whose figures are reported.
    """
    target = classes[0] if target is None else target
    data = flatten(records, predictions, classes)[target]
    return _curve(data, match(data, CRITERIA[criterion])).middle_of_best()


def quick_metrics(records: Sequence, predictions: Sequence, classes: Sequence[str]) -> dict[str, float]:
    """Figures for the validation in a training, without intervals: well under a second for 2,000 images.

    ``ap50`` is the mean over the classes that have objects; ``precision``, ``recall`` and ``f1`` (at
    score 0.5, IoU 0.5), ``f1_iou30``, and ``best_f1`` with its ``best_threshold`` (chosen on these very
    images: fit for comparing epochs, not for reporting) pool all classes. 0 where undefined.
    """
    by_class = flatten(records, predictions, classes).values()
    matches = {name: [match(data, CRITERIA[name]) for data in by_class] for name in ("iou50", "iou30")}
    curves = [_curve(data, each) for data, each in zip(by_class, matches["iou50"], strict=True)]
    ap50 = [each.average_precision() for each in curves if each.objects]

    scores = np.concatenate([data.scores for data in by_class])
    order = np.argsort(-scores, kind="stable")
    objects = sum(each.objects for each in curves)
    pooled = {
        name: curve(scores[order], np.concatenate([each.outcome for each in found])[order], objects)
        for name, found in matches.items()
    }
    threshold, best_f1 = pooled["iou50"].best_f1()
    precision, recall, f1 = pooled["iou50"].at(0.5)
    result = {
        "ap50": float(np.mean(ap50)) if ap50 else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_iou30": pooled["iou30"].at(0.5)[2],
        "best_f1": best_f1,
        "best_threshold": threshold or 0.0,
    }
    return {key: 0.0 if math.isnan(value) else value for key, value in result.items()}


class Counts(NamedTuple):
    """Counts in each image, ``[N]``, at one threshold."""

    threshold: float
    tp: np.ndarray
    fp: np.ndarray
    objects: np.ndarray

    def only(self, images: np.ndarray) -> "Counts":
        return Counts(self.threshold, self.tp[images], self.fp[images], self.objects[images])

    def operating(self, draws: Resampling | None) -> Operating:
        """The figures over all images, with intervals if ``draws`` are given."""
        tp, fp, objects = (int(values.sum()) for values in self[1:])
        ratios = {
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.objects),
            "f1": (2 * self.tp, self.tp + self.fp + self.objects),
        }
        figures = {
            name: draws.ratio(top, bottom)
            if draws
            else Estimate.without_interval(float(safe_divide(top.sum(), bottom.sum())))
            for name, (top, bottom) in ratios.items()
        }
        return Operating(self.threshold, tp, fp, objects - tp, **figures)


def _counts(data: ClassData, matches: Matches, threshold: float) -> Counts:
    kept = data.scores >= threshold
    tp, fp = (
        np.bincount(data.image[kept & (matches.outcome == kind)], minlength=data.images) for kind in (HIT, FALSE_ALARM)
    )
    return Counts(threshold, tp, fp, np.bincount(data.truth_image[matches.counted], minlength=data.images))


def _curve(data: ClassData, matches: Matches) -> Curve:
    return curve(data.scores, matches.outcome, int(matches.counted.sum()))


def _result(
    name: str,
    title: str,
    data: ClassData,
    matches: Matches,
    fixed: float,
    threshold: float | None,
    draws: Resampling,
) -> Result:
    line = _curve(data, matches)
    at_fixed = _counts(data, matches, fixed)
    valid = matches.outcome != IGNORED
    ap = draws.average_precision(
        line.average_precision(), matches.outcome[valid] == HIT, data.image[valid], at_fixed.objects
    )
    tuned = None if threshold is None else _counts(data, matches, threshold).operating(draws)
    return Result(name, title, line.objects, ap, at_fixed.operating(draws), tuned, line)


def size_buckets(edges: Sequence[float]) -> list[tuple[str, str, tuple[float, float]]]:
    """Name, title and range of each bucket."""
    bounds = [0.0, *edges, math.inf]
    names = ["small", "medium", "large"] if len(edges) == 2 else [f"scale {i}" for i in range(len(bounds) - 1)]
    scales = []
    for name, low, high in zip(names, bounds, bounds[1:], strict=False):
        words = f"{low:g} to {high:g} px" if low and high < math.inf else (f"≥ {low:g} px" if low else f"< {high:g} px")
        scales.append((name, "all sizes" if not edges else words, (low, high)))
    return scales


def _groups(names: Sequence[str | None], counts: dict[str, Counts]) -> list[Group]:
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            members.setdefault(name, []).append(index)
    groups = []
    for name in sorted(members):
        mine = {key: counts[key].only(np.array(members[name])) for key in ("fixed", "tuned") if key in counts}
        at = {key: each.operating(None) for key, each in mine.items()}
        objects = int(mine["fixed"].objects.sum())
        groups.append(Group(name, len(members[name]), objects, at["fixed"], at.get("tuned")))
    return groups


def images_by_distractor(records: Sequence, target: str) -> dict[str, np.ndarray]:
    """Which images show each distractor but no ``target``: bool ``[N]`` by name, then NOTHING, then ALL of them.

    ALL is left out where it would repeat the only other.
    """
    shown: dict[str, np.ndarray] = {}
    for index, record in enumerate(records):
        if target not in record.names:
            for name in {*record.names} - {IGNORE} or {NOTHING}:
                shown.setdefault(name, np.zeros(len(records), bool))[index] = True
    if len(shown) > 1:
        shown[ALL] = np.any(list(shown.values()), axis=0)
    return {name: shown[name] for name in sorted(shown, key=lambda name: (name in (NOTHING, ALL), name == ALL, name))}


def _false_alarms(
    records: Sequence, target: str, counts: dict[str, Counts], thresholds: dict, draws: Resampling
) -> list[FalseAlarms]:
    result = []
    for name, images in images_by_distractor(records, target).items():
        inside = images.astype(np.int64)
        rates = {key: draws.ratio(counts[key].fp * inside, inside) if key in counts else None for key in thresholds}
        result.append(FalseAlarms(name, int(inside.sum()), rates))
    return result


def _plain(value: Any) -> Any:
    """Dataclasses to what json writes, leaving out fields marked as no JSON."""
    if dataclasses.is_dataclass(value):
        fields = [item for item in dataclasses.fields(value) if item.metadata.get("json", True)]
        return {item.name: _plain(getattr(value, item.name)) for item in fields}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
