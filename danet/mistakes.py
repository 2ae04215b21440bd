"""What goes wrong: misses and false alarms of one class with their causes, pictures of the worst, and of each size."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from danet.data.coco import ImageRecord
from danet.data.image import read_image, to_display
from danet.matching import CRITERIA, FALSE_ALARM, HIT, Criterion, flatten, iou, match
from danet.metrics import size_buckets
from danet.visual import PALETTE, contact_sheet, draw_boxes, enlarge

TILE = 224
COLUMNS = 6
# Mistakes shown of one video at most: neighbouring frames repeat them.
PER_VIDEO = 2
# Hits, misses and false alarms shown of each size.
EACH = 2
HIT_CAUSE = "hit"
TRUTH_COLOR, DETECTION_COLOR = PALETTE[1], PALETTE[2]


class Mistake(NamedTuple):
    """One miss (``score`` None) or false alarm, its box ``[4]`` in pixels of image ``image``; or a hit."""

    image: int
    box: np.ndarray
    score: float | None
    cause: str


class Mistakes(NamedTuple):
    """The worst first: misses far from any detection and large, false alarms of high score. And the hits."""

    misses: list[Mistake]
    false_alarms: list[Mistake]
    hits: list[Mistake]

    def causes(self) -> dict[str, dict[str, int]]:
        """How many mistakes have each cause."""
        wrong = {"misses": self.misses, "false_alarms": self.false_alarms}
        return {name: dict(Counter(m.cause for m in mistakes).most_common()) for name, mistakes in wrong.items()}


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

    Causes of a miss: "misplaced" (a detection overlaps it, not well enough), "low score" (a fitting
    detection scores less), "not found". Causes of a false alarm: "duplicate" (fits an object that a
    better one took), "misplaced" (overlaps an object), the name of a distractor that it overlaps, or
    "background". Arguments as ``danet.metrics.evaluate_predictions`` takes them.
    """
    data = flatten(records, predictions, classes)[target]
    rule = CRITERIA[criterion]
    matches = match(data, rule)
    kept = data.scores >= threshold
    right = np.flatnonzero(kept & (matches.outcome == HIT))
    found = np.zeros(len(data.truths), bool)
    found[matches.truth[right]] = True
    of_image = _members(data.image, data.images)
    truths_of_image = _members(data.truth_image, data.images)

    misses = []
    for index in np.flatnonzero(matches.counted & ~found):
        near = of_image[data.truth_image[index]]
        cause = _cause_of_miss(data.truths[index], data.boxes[near], kept[near], rule)
        misses.append(Mistake(int(data.truth_image[index]), data.truths[index], None, cause))
    far_first = ("not found", "low score", "misplaced")
    misses.sort(key=lambda m: (far_first.index(m.cause), -_size(m.box)))

    false_alarms = []
    for index in np.flatnonzero(kept & (matches.outcome == FALSE_ALARM)):
        image = int(data.image[index])
        truths = data.truths[truths_of_image[image]]
        cause = _cause_of_false_alarm(data.boxes[index], truths, records[image], target, rule)
        false_alarms.append(Mistake(image, data.boxes[index], float(data.scores[index]), cause))
    hits = [Mistake(int(data.image[i]), data.truths[matches.truth[i]], float(data.scores[i]), HIT_CAUSE) for i in right]
    return Mistakes(misses, false_alarms, hits)


def mistakes_sheet(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    mistakes: Mistakes,
    *,
    target: str,
    threshold: float,
    each: int = 18,
) -> np.ndarray | None:
    """Up to ``each`` misses, then as many false alarms, cropped and enlarged: uint8 BGR, None without any.

    Truths are blue (distractors grey), detections of ``target`` orange with their scores.
    """
    shown = [*_varied(mistakes.misses, records, each), *_varied(mistakes.false_alarms, records, each)]
    tiles = [_tile(mistake, records, predictions, classes.index(target), target, threshold) for mistake in shown]
    return contact_sheet(tiles, COLUMNS, [_title(mistake, records) for mistake in shown]) if tiles else None


def size_sheet(
    records: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    mistakes: Mistakes,
    *,
    target: str,
    threshold: float,
    edges: Sequence[float],
) -> np.ndarray | None:
    """A row for each size (of the truth, or of a false alarm's box): two hits, two misses, two false alarms.

    Hits are those of middling score, the others the worst, each two of different videos; what is lacking is said.
    Colours as in `mistakes_sheet`. uint8 BGR, None without any.
    """
    if not any(mistakes):
        return None
    tiles, titles = [], []
    for size, chosen in choose_by_size(records, mistakes, edges):
        for what, shown in chosen.items():
            tiles += [_tile(m, records, predictions, classes.index(target), target, threshold) for m in shown]
            titles += [f"{size}: {_title(m, records)}" for m in shown]
            lacking = EACH - len(shown)
            tiles += [np.full((TILE, TILE, 3), 40, np.uint8)] * lacking
            titles += [f"{size}: no {what}{' elsewhere' * bool(shown)}"] * lacking
    return contact_sheet(tiles, 3 * EACH, titles)


def choose_by_size(
    records: Sequence, mistakes: Mistakes, edges: Sequence[float]
) -> list[tuple[str, dict[str, list[Mistake]]]]:
    """What `size_sheet` shows of each size: its name, and up to two hits, misses and false alarms."""
    sizes = []
    for _, title, (low, high) in size_buckets(edges):
        hits, misses, false = (
            [m for m in found if low <= _size(m.box) < high]
            for found in (mistakes.hits, mistakes.misses, mistakes.false_alarms)
        )
        middle = float(np.median([hit.score or 0.0 for hit in hits])) if hits else 0.0
        hits = sorted(hits, key=lambda hit: abs((hit.score or 0.0) - middle))
        chosen = {"hit": hits, "miss": misses, "false alarm": false}
        name = title.replace("≥", "from")  # OpenCV writes ASCII
        sizes.append((name, {what: _varied(found, records, EACH, per_video=1) for what, found in chosen.items()}))
    return sizes


def _cause_of_miss(truth: np.ndarray, boxes: np.ndarray, kept: np.ndarray, rule: Criterion) -> str:
    repeated = np.broadcast_to(truth, boxes.shape)
    if (iou(boxes, repeated)[kept] > 0).any():
        return "misplaced"
    return "low score" if rule.accepts(rule.quality(boxes, repeated)).any() else "not found"


def _cause_of_false_alarm(
    box: np.ndarray, truths: np.ndarray, record: ImageRecord, target: str, rule: Criterion
) -> str:
    repeated = np.broadcast_to(box, truths.shape)
    if rule.accepts(rule.quality(repeated, truths)).any():
        return "duplicate"
    if (iou(repeated, truths) > 0).any():
        return "misplaced"
    others = np.array([name != target for name in record.names], bool)
    overlap = iou(np.broadcast_to(box, record.boxes.shape), record.boxes.astype(np.float64)) * others
    return record.names[int(overlap.argmax())] if (overlap > 0).any() else "background"


def _varied(mistakes: Sequence[Mistake], records: Sequence, count: int, per_video: int = PER_VIDEO) -> list[Mistake]:
    """The first ``count``, at most ``per_video`` of a video."""
    seen: Counter[str] = Counter()
    chosen = []
    for mistake in mistakes:
        video = records[mistake.image].video or str(records[mistake.image].path)
        seen[video] += 1
        if seen[video] <= per_video:
            chosen.append(mistake)
    return chosen[:count]


def _title(mistake: Mistake, records: Sequence) -> str:
    if mistake.cause == HIT_CAUSE:
        what = f"hit {mistake.score:.2f}"
    elif mistake.score is None:
        what = f"miss {mistake.cause}"
    else:
        what = f"false {mistake.score:.2f} {mistake.cause}"
    record = records[mistake.image]
    place = record.path.stem if record.video is None else f"{record.video} {record.path.stem}"
    return f"{what} {place}"


def _tile(
    mistake: Mistake, records: Sequence, predictions: Sequence, label: int, target: str, threshold: float
) -> np.ndarray:
    """The surroundings of a mistake, enlarged, with truths and with detections of class ``label``."""
    record, box = records[mistake.image], mistake.box
    found, scores, labels = (np.asarray(values) for values in predictions[mistake.image])
    shown = (labels == label) & (scores >= threshold)
    image = to_display(read_image(record.path))
    height, width = image.shape[:2]
    side = int(np.clip(4 * max(box[2:] - box[:2]), 40, max(height, width)))
    centre = 0.5 * (box[:2] + box[2:])
    x, y = (
        int(np.clip(c - side / 2, 0, max(limit - side, 0))) for c, limit in zip(centre, (width, height), strict=True)
    )
    crop = image[y : y + side, x : x + side]
    factor = TILE / side
    tile = enlarge(crop, factor)

    def placed(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = corners - np.array([x, y, x, y])
        visible = (moved[:, 2:] > 0).all(1) & (moved[:, :2] < np.array(crop.shape[1::-1])).all(1)
        return moved[visible] * factor, visible

    truths, visible = placed(np.asarray(record.boxes))
    colours = [0 if name == target else -1 for name in np.array(record.names, object)[visible]]
    tile = draw_boxes(tile, truths, labels=colours, colors=[TRUTH_COLOR])
    detected, visible = placed(found[shown])
    return draw_boxes(tile, detected, scores[shown][visible], colors=[DETECTION_COLOR])


def _members(image: np.ndarray, images: int) -> list[np.ndarray]:
    """Indices of the items of each image."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, images)))


def _size(box: np.ndarray) -> float:
    return float(np.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0.0)))
