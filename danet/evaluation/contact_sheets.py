"""ContactSheets of pictures: what a detector finds and misses, each cropped and enlarged."""

from collections.abc import Sequence

import numpy as np

from danet.evaluation.mistakes import EACH, HIT_CAUSE, Mistake, Mistakes, choose_by_size, varied
from danet.utils.drawing import PALETTE, contact_sheet, draw_boxes, enlarge
from danet.utils.image_io import read_image, to_display

TILE = 224
COLUMNS = 6
TRUTH_COLOR, DETECTION_COLOR = PALETTE[1], PALETTE[2]


class ContactSheets:
    """Draws hits and mistakes of one evaluation: uint8 BGR ``[H, W, 3]``, None where there is nothing to show.

    Truths are blue (other classes than ``target`` grey), detections of ``target`` from ``threshold`` on are orange,
    with their scores. Arguments as ``danet.evaluation.mistakes.find_mistakes`` takes them.
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
        """Up to ``each`` misses, then as many false alarms."""
        shown = [m for found in (mistakes.misses, mistakes.false_alarms) for m in varied(found, self.records, each)]
        return contact_sheet([*map(self._tile, shown)], COLUMNS, [*map(self._title, shown)]) if shown else None

    def by_size(self, mistakes: Mistakes, edges: Sequence[float]) -> np.ndarray | None:
        """A row for each size: hits, misses and false alarms as ``choose_by_size`` takes them; what lacks is said."""
        if not any(mistakes):
            return None
        tiles, titles = [], []
        for size, chosen in choose_by_size(self.records, mistakes, edges):
            for what, shown in chosen.items():
                lacking = EACH - len(shown)
                tiles += [*map(self._tile, shown), *[np.full((TILE, TILE, 3), 40, np.uint8)] * lacking]
                titles += [f"{size}: {self._title(mistake)}" for mistake in shown]
                titles += [f"{size}: no {what}{' elsewhere' * bool(shown)}"] * lacking
        return contact_sheet(tiles, 3 * EACH, titles)

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
        """The surroundings of a mistake, enlarged, with truths and detections."""
        record, box = self.records[mistake.image], mistake.box
        found, scores, labels = (np.asarray(values) for values in self.predictions[mistake.image])
        shown = (labels == self.label) & (scores >= self.threshold)
        image = to_display(read_image(record.path))
        height, width = image.shape[:2]
        side = int(np.clip(4 * max(box[2:] - box[:2]), 40, max(height, width)))
        centre = 0.5 * (box[:2] + box[2:])
        x, y = (
            int(np.clip(c - side / 2, 0, max(limit - side, 0)))
            for c, limit in zip(centre, (width, height), strict=True)
        )
        crop = image[y : y + side, x : x + side]
        factor = TILE / side
        tile = enlarge(crop, factor)

        def placed(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            moved = corners - np.array([x, y, x, y])
            visible = (moved[:, 2:] > 0).all(1) & (moved[:, :2] < np.array(crop.shape[1::-1])).all(1)
            return moved[visible] * factor, visible

        truths, visible = placed(np.asarray(record.boxes))
        colours = [0 if name == self.target else -1 for name in np.array(record.names, object)[visible]]
        tile = draw_boxes(tile, truths, labels=colours, colors=[TRUTH_COLOR])
        detected, visible = placed(found[shown])
        return draw_boxes(tile, detected, scores[shown][visible], colors=[DETECTION_COLOR])
