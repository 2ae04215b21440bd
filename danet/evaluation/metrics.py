"""Precision, recall, F1, average precision and false alarms of a detector's predictions.

The threshold "tuned" is never chosen on the reported images: ``choose_threshold`` runs on other images, and its result
is an argument of ``evaluate_predictions``. Only the thresholds that reach the recalls in RECALLS, and the
``best_threshold`` of ``quick_metrics``, are found on the evaluated images themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from danet.data.class_map import IGNORE
from danet.evaluation.bootstrap import Estimate, Resampling, resample, safe_divide
from danet.evaluation.confusion import ConfusionMatrix, confusion_matrix
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, IGNORED, ClassData, Matches, flatten, match

RECALLS = (0.90, 0.95)
"""False alarms are reported at the thresholds that reach these recalls."""

NOTHING, ALL = "(nothing)", "(all)"
"""Groups of images for which false alarms are reported, in addition to one group per distractor class.

NOTHING: images that show no object (boxes named "ignore" do not count). ALL: all images without the target.
"""


def recall_point(recall: float, criterion: str) -> str:
    """Key of the operating point that reaches a recall under a criterion, such as "recall 0.90 iou50"."""
    return f"recall {recall:.2f} {criterion}"


class Curve(NamedTuple):
    """Precision-recall curve: true and false positives at each of the K distinct scores.

    Example:
        >>> pr_curve = curve(np.array([0.9, 0.8, 0.3]), np.array([HIT, FALSE_ALARM, HIT]), objects=2)
        >>> pr_curve.precision.round(2).tolist(), pr_curve.recall.tolist()
        ([1.0, 0.5, 0.67], [0.5, 0.5, 1.0])
    """

    thresholds: np.ndarray  # [K], descending
    tp: np.ndarray  # [K], hits with a score of at least the threshold
    fp: np.ndarray  # [K], false alarms with a score of at least the threshold
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
        """COCO's AP: mean over 101 recalls of the best precision at that recall or beyond; NaN without objects."""
        if self.objects == 0:
            return math.nan
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        first = np.searchsorted(self.recall, np.linspace(0.0, 1.0, 101), side="left")
        return float(envelope[first[first < len(envelope)]].sum() / 101)

    def best_f1(self) -> tuple[float | None, float]:
        """The threshold with the highest F1 (None without hits), and that F1.

        The threshold lies halfway to the next lower score, so that rounding it changes no detection.
        """
        if not self.tp.any():
            return None, 0.0 if self.objects else math.nan
        best = int(np.argmax(self.f1))
        lower = np.append(self.thresholds, 0.0)[best + 1]
        return float(0.5 * (self.thresholds[best] + lower)), float(self.f1[best])

    def middle_of_best(self, tolerance: float = 0.01) -> tuple[float | None, float]:
        """The middle of the range of scores whose F1 is within ``tolerance`` of the best one, and the F1 there.

        A detector with few mistakes has nearly the same F1 at many thresholds, and a single detection decides which of
        them is the best. The middle of the range is robust against a shift of the scores on other images.
        """
        if not self.tp.any():
            return None, 0.0 if self.objects else math.nan
        best = int(np.argmax(self.f1))
        worse = np.flatnonzero(self.f1 < self.f1[best] - tolerance)
        first = max(worse[worse < best] + 1, default=0)
        end = min(worse[worse > best], default=len(self.f1))
        lower = np.append(self.thresholds, 0.0)[end]
        threshold = float(0.5 * (self.thresholds[first] + lower))
        return threshold, self.at(threshold)[2]

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the detections with a score of at least ``threshold``; NaN where undefined."""
        kept = int((self.thresholds >= threshold).sum())
        tp, fp = (int(self.tp[kept - 1]), int(self.fp[kept - 1])) if kept else (0, 0)
        pairs = ((tp, tp + fp), (tp, self.objects), (2 * tp, tp + fp + self.objects))
        precision, recall, f1 = (top / bottom if bottom else math.nan for top, bottom in pairs)
        return precision, recall, f1

    def threshold_for_recall(self, recall: float) -> float | None:
        """The highest threshold with at least this recall; None if no threshold reaches it."""
        reached = np.flatnonzero(self.recall >= recall)
        return float(self.thresholds[reached[0]]) if len(reached) else None


def curve(scores: np.ndarray, outcome: np.ndarray, objects: int) -> Curve:
    """The curve of D detections from their scores ``[D]``, descending, and outcomes ``[D]`` (see ``matching``)."""
    valid = outcome != IGNORED
    scores, hit = scores[valid], outcome[valid] == HIT
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    return Curve(scores[last], np.cumsum(hit)[last], np.cumsum(~hit)[last], objects)


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and metrics at one score threshold."""

    threshold: float
    tp: int
    fp: int
    fn: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class SubsetMetrics:
    """Metrics of one class under one criterion, for all sizes or for one size range.

    ``fixed`` and ``tuned`` are the operating points at the two thresholds; ``tuned`` is None if no threshold was
    chosen.
    """

    name: str
    title: str
    objects: int
    ap: Estimate
    fixed: OperatingPoint
    tuned: OperatingPoint | None
    curve: Curve = field(repr=False)  # not in metrics.json


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of the images of one video or recording."""

    name: str
    images: int
    objects: int
    fixed: OperatingPoint
    tuned: OperatingPoint | None


@dataclass(frozen=True)
class FalseAlarms:
    """False alarms per image, on images that show ``distractor`` but no object of the target class.

    ``distractor`` can also be the group NOTHING or ALL. ``rates`` has one entry per operating point. It is None where
    the point does not exist: for "tuned" if no threshold was chosen, and for a recall that is not reached.
    """

    distractor: str
    images: int
    rates: dict[str, Estimate | None]


@dataclass(frozen=True)
class Metrics:
    """The results of ``evaluate_predictions``; fields are keys of ``metrics.json``.

    ``resampled`` is the unit of the bootstrap ("videos" or "images"), and ``groups`` is the number of these units.
    """

    target: str
    images: int
    objects: int
    resampled: str
    groups: int
    criterion: str
    thresholds: dict[str, float | None]
    criteria: dict[str, SubsetMetrics]
    scales: list[SubsetMetrics]
    recordings: list[GroupMetrics]
    videos: list[GroupMetrics]
    false_alarms: list[FalseAlarms]
    other_classes: list[SubsetMetrics]
    confusion: ConfusionMatrix
    """At the tuned threshold if there is one, else at the fixed one."""

    def to_json(self) -> dict:
        return asdict(self, dict_factory=lambda items: {name: value for name, value in items if name != "curve"})


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
    """Compares predictions with ground truth.

    Args:
        records, predictions, classes: as ``danet.evaluation.matching.flatten`` takes them.
        target: the class to find; by default the first of ``classes``.
        threshold: a score threshold chosen on other images (``choose_threshold``), reported as "tuned".
        fixed: a score threshold that is always reported.
        criterion: key of ``CRITERIA`` for the metrics by size, recording and video, the false alarms and the other
            classes. Overall metrics and the thresholds that reach the recalls are given for every criterion.
        scale_edges: edges of the size ranges, in pixels of sqrt(box area), ascending.
        resamples, seed: of the bootstrap by video (by image if no videos are known).

    Example:
        >>> from types import SimpleNamespace
        >>> image = SimpleNamespace(boxes=[[0, 0, 10, 10]], names=["drone"], ignore=[False], video=None, recording=None)
        >>> detections = [[0, 0, 10, 9], [30, 30, 40, 40]], [0.8, 0.6], [0, 0]
        >>> metrics = evaluate_predictions([image], [detections], ["drone"])
        >>> metrics.criteria["iou50"].fixed.precision.value, metrics.criteria["iou50"].fixed.recall.value
        (0.5, 1.0)
    """
    target = classes[0] if target is None else target
    by_class = flatten(records, predictions, classes)
    # The bootstrap resamples, from which the intervals are estimated.
    draws = resample([record.video for record in records], resamples, seed)

    def result(name: str, title: str, data: ClassData, matches: Matches) -> SubsetMetrics:
        pr_curve = _curve(data, matches)
        at_fixed = _counts(data, matches, fixed)
        valid = matches.outcome != IGNORED
        ap = draws.average_precision(
            pr_curve.average_precision(), matches.outcome[valid] == HIT, data.image[valid], at_fixed.objects
        )
        tuned = None if threshold is None else _counts(data, matches, threshold).operating(draws)
        return SubsetMetrics(name, title, pr_curve.objects, ap, at_fixed.operating(draws), tuned, pr_curve)

    data, main = by_class[target], CRITERIA[criterion]
    matches = {key: match(data, each) for key, each in CRITERIA.items()}
    criteria = {key: result(key, CRITERIA[key].title, data, matches[key]) for key in CRITERIA}
    ranges = size_ranges(scale_edges)
    scales = [result(name, title, data, match(data, main, bounds)) for name, title, bounds in ranges]
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
        confusion=confusion_matrix(
            records,
            predictions,
            classes,
            threshold=fixed if threshold is None else threshold,
            criterion=criterion,
        ),
    )


def choose_threshold(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    target: str | None = None,
    criterion: str = "iou50",
) -> tuple[float | None, float]:
    """The middle of the score thresholds whose F1 is within 0.01 of the best one, and its F1.

    Without hits they are (None, 0), without objects (None, NaN). Use other images than those on which metrics are
    reported. Arguments as for ``evaluate_predictions``.

    Example:
        >>> from types import SimpleNamespace
        >>> image = SimpleNamespace(boxes=[[0, 0, 10, 10]], names=["drone"], ignore=[False])
        >>> choose_threshold([image], [([[0, 0, 10, 9]], [0.8], [0])], ["drone"])
        (0.4, 1.0)
    """
    target = classes[0] if target is None else target
    data = flatten(records, predictions, classes)[target]
    return _curve(data, match(data, CRITERIA[criterion])).middle_of_best()


def quick_metrics(records: Sequence, predictions: Sequence, classes: Sequence[str]) -> dict[str, float]:
    """Metrics for the validation during a training, without intervals; 0 where undefined.

    ``ap50`` is the mean over the classes that have objects. The other metrics pool all classes: ``precision``,
    ``recall`` and ``f1`` at score 0.5 and IoU 0.5, ``f1_iou30``, and ``best_f1`` at ``best_threshold``. The best
    threshold is chosen on the same images: use it to compare epochs, not to report results.
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
    """True positives, false positives and objects in each image, ``[N]``, at one score threshold."""

    threshold: float
    tp: np.ndarray
    fp: np.ndarray
    objects: np.ndarray

    def select(self, images: np.ndarray) -> "Counts":
        return Counts(self.threshold, self.tp[images], self.fp[images], self.objects[images])

    def operating(self, draws: Resampling | None) -> OperatingPoint:
        """The operating point over all images, with intervals if bootstrap resamples (``draws``) are given."""
        tp, fp, objects = (int(values.sum()) for values in self[1:])
        ratios = {
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.objects),
            "f1": (2 * self.tp, self.tp + self.fp + self.objects),
        }
        metrics = {
            name: draws.ratio(top, bottom)
            if draws
            else Estimate.without_interval(float(safe_divide(top.sum(), bottom.sum())))
            for name, (top, bottom) in ratios.items()
        }
        return OperatingPoint(self.threshold, tp, fp, objects - tp, **metrics)


def _counts(data: ClassData, matches: Matches, threshold: float) -> Counts:
    kept = data.scores >= threshold
    tp, fp = (
        np.bincount(data.image[kept & (matches.outcome == kind)], minlength=data.images) for kind in (HIT, FALSE_ALARM)
    )
    return Counts(threshold, tp, fp, np.bincount(data.truth_image[matches.counted], minlength=data.images))


def _curve(data: ClassData, matches: Matches) -> Curve:
    return curve(data.scores, matches.outcome, int(matches.counted.sum()))


def size_ranges(edges: Sequence[float]) -> list[tuple[str, str, tuple[float, float]]]:
    """Name, title and range ``(low, high)`` in pixels of each size range.

    Example:
        >>> size_ranges([14.0])[0]
        ('scale 0', '< 14 px', (0.0, 14.0))
    """
    bounds = [0.0, *edges, math.inf]
    names = ["small", "medium", "large"] if len(edges) == 2 else [f"scale {i}" for i in range(len(bounds) - 1)]
    scales = []
    for name, low, high in zip(names, bounds, bounds[1:], strict=False):
        words = f"{low:g} to {high:g} px" if low and high < math.inf else (f"≥ {low:g} px" if low else f"< {high:g} px")
        scales.append((name, "all sizes" if not edges else words, (low, high)))
    return scales


def _groups(names: Sequence[str | None], counts: dict[str, Counts]) -> list[GroupMetrics]:
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            members.setdefault(name, []).append(index)
    groups = []
    for name in sorted(members):
        mine = {key: counts[key].select(np.array(members[name])) for key in ("fixed", "tuned") if key in counts}
        at = {key: each.operating(None) for key, each in mine.items()}
        objects = int(mine["fixed"].objects.sum())
        groups.append(GroupMetrics(name, len(members[name]), objects, at["fixed"], at.get("tuned")))
    return groups


def images_by_distractor(records: Sequence, target: str) -> dict[str, np.ndarray]:
    """Masks ``[N]`` of the images that show each distractor but no ``target``, then those of NOTHING and of ALL.

    ALL is left out if there is only one other group.
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
        in_group = images.astype(np.int64)
        rates = {key: draws.ratio(counts[key].fp * in_group, in_group) if key in counts else None for key in thresholds}
        result.append(FalseAlarms(name, int(in_group.sum()), rates))
    return result
