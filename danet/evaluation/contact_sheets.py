"""Contact sheets: cropped and enlarged pictures of hits, misses and false alarms."""

from collections.abc import Sequence

import numpy as np

from danet.boxes import centres, overlaps
from danet.evaluation.mistakes import HIT_CAUSE, SHOWN_PER_SIZE, Mistake, Mistakes, choose_by_size, limit_per_video
from danet.utils.drawing import PALETTE, contact_sheet, draw_boxes, enlarge
from danet.utils.image_io import read_image, to_display

TILE_PIXELS = 224
COLUMNS = 6
MIN_CROP_PIXELS = 40
TRUTH_COLOR, DETECTION_COLOR = PALETTE[1], PALETTE[2]


class ContactSheets:
    """Draws hits and mistakes of one evaluation as uint8 BGR images ``[H, W, 3]``; None if there is nothing to show.

    Ground truth is blue (classes other than ``target`` are grey); detections of ``target`` with a score of at least
    ``threshold`` are orange. Arguments as for ``danet.evaluation.mistakes.find_mistakes``.
    """

    def __init__(
        self, records: Sequence, predictions: Sequence, classes: Sequence[str], *, target: str, threshold: float
    ) -> None:
        self.records = records
        self.predictions = predictions
        self.target = target
        self.label = classes.index(target)
        self.threshold = threshold

    def worst(self, mistakes: Mistakes, each: int = 18) -> np.ndarray | None:
        """Up to ``each`` misses, then up to ``each`` false alarms."""
        shown = [
            m for found in (mistakes.misses, mistakes.false_alarms) for m in limit_per_video(found, self.records, each)
        ]
        return contact_sheet([*map(self._tile, shown)], COLUMNS, [*map(self._title, shown)]) if shown else None

    def by_size(self, mistakes: Mistakes, edges: Sequence[float]) -> np.ndarray | None:
        """A row per size range: hits, misses and false alarms of ``choose_by_size``; missing ones are labeled so."""
        if not any(mistakes):
            return None
        tiles, titles = [], []
        for size, chosen in choose_by_size(self.records, mistakes, edges):
            for what, shown in chosen.items():
                missing = SHOWN_PER_SIZE - len(shown)
                tiles += [*map(self._tile, shown), *[np.full((TILE_PIXELS, TILE_PIXELS, 3), 40, np.uint8)] * missing]
                titles += [f"{size}: {self._title(mistake)}" for mistake in shown]
                titles += [f"{size}: no {what}{' elsewhere' * bool(shown)}"] * missing
        return contact_sheet(tiles, 3 * SHOWN_PER_SIZE, titles)

    def _title(self, mistake: Mistake) -> str:
        if mistake.cause == HIT_CAUSE:
            what = f"hit {mistake.score:.2f}"
        elif mistake.score is None:
            what = f"miss {mistake.cause}"
        else:
            what = f"false {mistake.score:.2f} {mistake.cause}"
        record = self.records[mistake.image]
        place = record.path.stem if record.video is None else f"{record.video} {record.path.stem}"
        return f"{what} {place}"

    def _tile(self, mistake: Mistake) -> np.ndarray:
        """The surroundings of a mistake, enlarged, with ground truth and detections."""
        record, box = self.records[mistake.image], mistake.box
        boxes, confidences, classes = self.predictions[mistake.image]
        found, scores, labels = np.asarray(boxes), np.asarray(confidences), np.asarray(classes)
        shown = (labels == self.label) & (scores >= self.threshold)
        image = to_display(read_image(record.path))
        height, width = image.shape[:2]
        side = int(np.clip(4 * max(box[2:] - box[:2]), MIN_CROP_PIXELS, max(height, width)))
        corner = np.clip(centres(box) - side / 2, 0, np.maximum(np.array([width, height]) - side, 0))
        x, y = corner.astype(int).tolist()
        crop = image[y : y + side, x : x + side]
        factor = TILE_PIXELS / side
        tile = enlarge(crop, factor)

        def visible_boxes(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            moved = corners - np.array([x, y, x, y])
            visible = overlaps(moved, np.array([0, 0, *crop.shape[1::-1]]))
            return moved[visible] * factor, visible

        truths, visible = visible_boxes(np.asarray(record.boxes))
        colours = [0 if name == self.target else -1 for name in np.array(record.names, object)[visible]]
        tile = draw_boxes(tile, truths, labels=colours, colors=[TRUTH_COLOR])
        detected, visible = visible_boxes(found[shown])
        return draw_boxes(tile, detected, scores[shown][visible], colors=[DETECTION_COLOR])
