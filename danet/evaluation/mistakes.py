"""Misses and false alarms of one class with their causes, and a selection of them for contact sheets."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from danet.boxes import iou, size
from danet.data.coco_dataset import ImageRecord
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, Criterion, flatten, match
from danet.evaluation.metrics import size_ranges

MAX_PER_VIDEO = 2
"""Mistakes shown per video; neighboring frames repeat them."""
SHOWN_PER_SIZE = 2
"""Hits, misses and false alarms shown per size range."""
HIT_CAUSE, MISPLACED = "hit", "misplaced"


class Mistake(NamedTuple):
    """A miss (``score`` is None), a false alarm or a hit, with its box ``[4]`` in pixels and the index of its image."""

    image: int
    box: np.ndarray
    score: float | None
    cause: str


class Mistakes(NamedTuple):
    """Mistakes, worst first, and hits.

    Misses without any detection and large misses come first; so do false alarms with a high score.
    """

    misses: list[Mistake]
    false_alarms: list[Mistake]
    hits: list[Mistake]

    def causes(self) -> dict[str, dict[str, int]]:
        """Number of mistakes by cause."""
        kinds = {"misses": self.misses, "false_alarms": self.false_alarms}
        return {name: dict(Counter(m.cause for m in mistakes).most_common()) for name, mistakes in kinds.items()}


def find_mistakes(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    *,
    target: str,
    threshold: float,
    criterion: str = "iou50",
) -> Mistakes:
    """Lists the misses and false alarms of ``target`` among detections with a score of at least ``threshold``.

    Causes of a miss: "misplaced" (a detection overlaps the object, but not enough), "low score" (a matching detection
    scores below the threshold), "not found". Causes of a false alarm: "duplicate" (it matches an object that has a
    better detection), "misplaced" (it overlaps an object), the name of a distractor that it overlaps, or "background".
    Arguments as for ``danet.evaluation.metrics.evaluate_predictions``.
    """
    data = flatten(records, predictions, classes)[target]
    rule = CRITERIA[criterion]
    matches = match(data, rule)
    kept = data.scores >= threshold
    hit_indices = np.flatnonzero(kept & (matches.outcome == HIT))
    found = np.zeros(len(data.truths), bool)
    found[matches.truth[hit_indices]] = True
    detections_of_image = _indices_by_image(data.image, data.images)
    truths_of_image = _indices_by_image(data.truth_image, data.images)

    misses = []
    for index in np.flatnonzero(matches.counted & ~found):
        near = detections_of_image[data.truth_image[index]]
        cause = _cause_of_miss(data.truths[index], data.boxes[near], kept[near], rule)
        misses.append(Mistake(int(data.truth_image[index]), data.truths[index], None, cause))
    far_first = ("not found", "low score", MISPLACED)
    misses.sort(key=lambda m: (far_first.index(m.cause), -size(m.box)))

    false_alarms = []
    for index in np.flatnonzero(kept & (matches.outcome == FALSE_ALARM)):
        image = int(data.image[index])
        truths = data.truths[truths_of_image[image]]
        cause = _cause_of_false_alarm(data.boxes[index], truths, records[image], target, rule)
        false_alarms.append(Mistake(image, data.boxes[index], float(data.scores[index]), cause))
    hits = []
    for index in hit_indices:
        truth, score = data.truths[matches.truth[index]], float(data.scores[index])
        hits.append(Mistake(int(data.image[index]), truth, score, HIT_CAUSE))
    return Mistakes(misses, false_alarms, hits)


def choose_by_size(
    records: Sequence, mistakes: Mistakes, edges: Sequence[float]
) -> list[tuple[str, dict[str, list[Mistake]]]]:
    """The name of each size range with up to SHOWN_PER_SIZE hits, misses and false alarms.

    The size is that of the object, or of a false alarm's box. Hits are those nearest to the median score; misses and
    false alarms are the worst ones. All of one kind are from different videos. A misplaced box is chosen once, as a
    miss.
    """
    kinds = {"hit": mistakes.hits, "miss": mistakes.misses, "false alarm": mistakes.false_alarms}
    sizes = []
    for _, title, (low, high) in size_ranges(edges):
        chosen = {what: [m for m in found if low <= size(m.box) < high] for what, found in kinds.items()}
        hits = chosen["hit"]
        middle = float(np.median([hit.score or 0.0 for hit in hits])) if hits else 0.0
        hits.sort(key=lambda hit: abs((hit.score or 0.0) - middle))
        name = title.replace("≥", "from")  # pictures are labeled in ASCII
        shown = {what: limit_per_video(found, records, SHOWN_PER_SIZE, per_video=1) for what, found in chosen.items()}
        false_alarms = without_second_tiles(chosen["false alarm"], shown["miss"])
        shown["false alarm"] = limit_per_video(false_alarms, records, SHOWN_PER_SIZE, per_video=1)
        sizes.append((name, shown))
    return sizes


def limit_per_video(
    mistakes: Sequence[Mistake], records: Sequence, count: int, per_video: int = MAX_PER_VIDEO
) -> list[Mistake]:
    """The first ``count`` mistakes, at most ``per_video`` from one video."""
    seen: Counter[str] = Counter()
    chosen = []
    for mistake in mistakes:
        video = records[mistake.image].video or str(records[mistake.image].path)
        seen[video] += 1
        if seen[video] <= per_video:
            chosen.append(mistake)
    return chosen[:count]


def without_second_tiles(false_alarms: Sequence[Mistake], misses: Sequence[Mistake]) -> list[Mistake]:
    """The false alarms without misplaced boxes on objects that are among ``misses``: both are one picture."""
    misplaced: dict[int, list[np.ndarray]] = {}
    for miss in misses:
        if miss.cause == MISPLACED:
            misplaced.setdefault(miss.image, []).append(miss.box)
    return [
        alarm
        for alarm in false_alarms
        if alarm.cause != MISPLACED
        or alarm.image not in misplaced
        or not (iou(np.stack(misplaced[alarm.image]), alarm.box) > 0).any()
    ]


def _cause_of_miss(truth: np.ndarray, boxes: np.ndarray, kept: np.ndarray, rule: Criterion) -> str:
    if (iou(boxes[kept], truth) > 0).any():
        return MISPLACED
    return "low score" if rule.accepts(rule.quality(boxes, truth)).any() else "not found"


def _cause_of_false_alarm(
    box: np.ndarray, truths: np.ndarray, record: ImageRecord, target: str, rule: Criterion
) -> str:
    if rule.accepts(rule.quality(box, truths)).any():
        return "duplicate"
    if (iou(box, truths) > 0).any():
        return MISPLACED
    others = np.array([name != target for name in record.names], bool)
    overlap = iou(box, record.boxes.astype(np.float64)) * others
    return record.names[int(overlap.argmax())] if (overlap > 0).any() else "background"


def _indices_by_image(image: np.ndarray, images: int) -> list[np.ndarray]:
    """Indices of the detections or truths of each image."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, images)))
