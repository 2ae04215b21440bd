"""The confusion matrix: as which class annotated objects are detected."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danet.data.class_map import IGNORE
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, ClassData, flatten, match

BACKGROUND, NOTHING_DETECTED = "(background)", "(not detected)"
"""The last row: detections that are on no object. The last column: objects that no detection is on."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of objects and detections at one score threshold; fields are keys of ``metrics.json``."""

    threshold: float
    criterion: str
    annotated: list[str]
    """Rows: the model's classes, other classes of the data, and BACKGROUND."""
    detected: list[str]
    """Columns: the model's classes, and NOTHING_DETECTED."""
    counts: list[list[int]]
    """``counts[row][column]``: objects of class ``annotated[row]`` that were detected as ``detected[column]``."""


def confusion_matrix(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    criterion: str = "iou50",
) -> ConfusionMatrix:
    """Counts which classes are confused, among detections with a score of at least ``threshold``.

    Objects are matched with detections of their own class first, as for precision and recall, so that the diagonal
    holds the true positives of every class. The remaining objects and detections are matched across classes, highest
    score first. What is left is not detected, or a detection on the background. Ignore regions do not count.

    Args:
        records, predictions, classes: as ``danet.evaluation.matching.flatten`` takes them.
        threshold: minimum score.
        criterion: key of ``CRITERIA``.

    Example:
        >>> from types import SimpleNamespace
        >>> boxes = [[0, 0, 10, 10], [50, 0, 60, 10]]
        >>> image = SimpleNamespace(boxes=boxes, names=["drone", "bird"], ignore=[False, False])
        >>> detections = [[0, 0, 10, 9], [50, 0, 60, 10]], [0.8, 0.6], [0, 0]
        >>> confusion_matrix([image], [detections], ["drone", "bird"]).counts
        [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    """
    names = {name for record in records for name, skip in zip(record.names, record.ignore, strict=True) if not skip}
    annotated = [*classes, *sorted(names - {*classes, IGNORE}), BACKGROUND]
    counts = np.zeros((len(annotated), len(classes) + 1), np.int64)
    rule = CRITERIA[criterion]
    left = _LeftOver()
    # Classes without detections are those of the data that the model does not have: only their objects are left.
    for label, (name, data) in enumerate(flatten(records, predictions, annotated[:-1]).items()):
        kept = data.scores >= threshold
        data = data._replace(boxes=data.boxes[kept], scores=data.scores[kept], image=data.image[kept])
        matches = match(data, rule)
        hit = matches.outcome == HIT
        if name in classes:
            counts[label, label] = hit.sum()
        found = np.zeros(len(data.truths), bool)
        found[matches.truth[hit]] = True
        left.add(data, label, matches.outcome == FALSE_ALARM, matches.counted & ~found)

    data, detected, truths = left.together(len(records))
    matches = match(data, rule)
    hit = matches.outcome == HIT
    np.add.at(counts, (truths[matches.truth[hit]], detected[hit]), 1)
    counts[-1, : len(classes)] = np.bincount(detected[~hit], minlength=len(classes))
    missed = np.ones(len(truths), bool)
    missed[matches.truth[hit]] = False
    counts[:, -1] = np.bincount(truths[missed], minlength=len(annotated))
    return ConfusionMatrix(threshold, criterion, annotated, [*classes, NOTHING_DETECTED], counts.tolist())


class _LeftOver:
    """Detections and objects that are not matched within their class, of all classes together."""

    def __init__(self) -> None:
        self._detections: list[tuple[np.ndarray, ...]] = []
        self._truths: list[tuple[np.ndarray, ...]] = []

    def add(self, data: ClassData, label: int, detections: np.ndarray, truths: np.ndarray) -> None:
        """Adds the selected detections (mask ``[D]``) and objects (mask ``[T]``) of a class."""
        chosen = data.boxes[detections], data.scores[detections], data.image[detections]
        self._detections.append((*chosen, np.full(int(detections.sum()), label)))
        self._truths.append((data.truths[truths], data.truth_image[truths], np.full(int(truths.sum()), label)))

    def together(self, images: int) -> tuple[ClassData, np.ndarray, np.ndarray]:
        """All of them as if they were of one class, and the classes of the detections ``[D]`` and objects ``[T]``."""
        boxes, scores, image, detected = (np.concatenate(parts) for parts in zip(*self._detections, strict=True))
        truths, truth_image, annotated = (np.concatenate(parts) for parts in zip(*self._truths, strict=True))
        by_score = np.argsort(-scores, kind="stable")
        by_image = np.argsort(truth_image, kind="stable")
        data = ClassData(
            boxes[by_score],
            scores[by_score],
            image[by_score],
            truths[by_image],
            truth_image[by_image],
            np.zeros(len(truths), bool),
            images,
        )
        return data, detected[by_score], annotated[by_image]
