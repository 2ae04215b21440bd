"""Contact sheets: cropped and enlarged pictures of hits, misses and false alarms."""

from collections.abc import Sequence

import cv2
import numpy as np

from danet.boxes import centres, overlaps
from danet.evaluation.mistakes import (
    HIT_CAUSE,
    SHOWN_PER_SIZE,
    Mistake,
    Mistakes,
    choose_by_size,
    limit_per_video,
    without_second_tiles,
)
from danet.utils.drawing import FONT, PALETTE, UNLABELLED_COLOR, add_legend, contact_sheet, draw_boxes, enlarge
from danet.utils.image_io import read_image, to_display

TILE_PIXELS = 288
COLUMNS = 4
MIN_CROP_PIXELS = 40
TRUTH_COLOR, DETECTION_COLOR = PALETTE[1], PALETTE[2]
CAPTION_SCALE, CAPTION_LINE_PIXELS = 0.45, 17


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
        """Up to ``each`` misses, then up to ``each`` false alarms; a misplaced box is shown once, as a miss."""
        misses = limit_per_video(mistakes.misses, self.records, each)
        false_alarms = without_second_tiles(mistakes.false_alarms, misses)
        shown = [*misses, *limit_per_video(false_alarms, self.records, each)]
        return self._sheet([self._tile(mistake) for mistake in shown], COLUMNS) if shown else None

    def by_size(self, mistakes: Mistakes, edges: Sequence[float]) -> np.ndarray | None:
        """A row per size range: hits, misses and false alarms of ``choose_by_size``; missing ones are labeled so."""
        if not any(mistakes):
            return None
        tiles = []
        for size, chosen in choose_by_size(self.records, mistakes, edges):
            for what, shown in chosen.items():
                missing = f"{size}: no {what}{' elsewhere' * bool(shown)}"
                empty = np.full((TILE_PIXELS, TILE_PIXELS, 3), 40, np.uint8)
                tiles += [self._tile(mistake, f"{size}: ") for mistake in shown]
                tiles += [_caption(empty, [missing, ""])] * (SHOWN_PER_SIZE - len(shown))
        return self._sheet(tiles, 3 * SHOWN_PER_SIZE)

    def _sheet(self, tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
        """The tiles in a grid below a legend."""
        legend = [
            (TRUTH_COLOR, f"annotated {self.target}"),
            (UNLABELLED_COLOR, "other annotated objects"),
            (DETECTION_COLOR, f"detected {self.target} with score"),
        ]
        return add_legend(contact_sheet(tiles, columns), legend)

    def _lines(self, mistake: Mistake, prefix: str) -> list[str]:
        """The caption of a tile: what it shows, and where that is."""
        if mistake.cause == HIT_CAUSE:
            what = f"hit, score {mistake.score:.2f}"
        elif mistake.score is None:
            what = f"miss: {mistake.cause}"
        else:
            what = f"false alarm {mistake.score:.2f}: {mistake.cause}"
        record = self.records[mistake.image]
        if record.video is None:
            place = record.path.name
        else:
            place = f"{record.video} {record.path.stem if record.frame is None else f'frame {record.frame}'}"
        return [prefix + what, place]

    def _tile(self, mistake: Mistake, prefix: str = "") -> np.ndarray:
        """The surroundings of a mistake, enlarged, with ground truth, detections and a caption."""
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
        tile = draw_boxes(tile, detected, scores[shown][visible], colors=[DETECTION_COLOR])
        return _caption(tile, self._lines(mistake, prefix))


def _caption(tile: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Puts lines of text above a tile; the middle of a line that is too long is left out, for names end in numbers."""
    bar = np.full((CAPTION_LINE_PIXELS * len(lines) + 4, tile.shape[1], 3), 40, np.uint8)
    for index, line in enumerate(lines):
        text, kept = line, len(line)
        while kept > 4 and cv2.getTextSize(text, FONT, CAPTION_SCALE, 1)[0][0] > tile.shape[1]:
            kept -= 1
            text = f"{line[: kept // 2]}..{line[len(line) - (kept - kept // 2) :]}"
        origin = 0, CAPTION_LINE_PIXELS * (index + 1) - 4
        cv2.putText(bar, text, origin, FONT, CAPTION_SCALE, (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack([bar, tile])
