"""The boxes of a run as CSV and JSON, written while they are found: a run may be longer than memory."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from danet.utils.files import atomic_path

if TYPE_CHECKING:
    from danet.boxes import Detections
    from danet.data.video import Frame

COLUMNS = ("file", "frame", "class", "score", "x0", "y0", "x1", "y1")


class BoxTables:
    """``boxes.csv`` and ``boxes.json``; a row a box, corners in pixels of the source.

    The files appear whole at the end of the ``with`` block, also after Ctrl-C or an error: with what was added up to
    there.

    Args:
        csv, json: where to; None leaves the file out.
        head: what stands in the JSON before the boxes.
        classes: names of the labels.
    """

    def __init__(self, csv: Path | None, json: Path | None, head: dict, classes: Sequence[str]) -> None:
        self.paths = [path for path in (csv, json) if path is not None]
        self.frames = self.frames_with_boxes = 0
        self.counts: Counter[str] = Counter()
        self.tail: dict = {}
        """More for the end of the JSON."""
        self._places = {"csv": csv, "json": json}
        self._head = head
        self._classes = classes
        self._stack = ExitStack()
        self._csv: TextIO | None = None
        self._json: TextIO | None = None

    def __enter__(self) -> "BoxTables":
        self._csv, self._json = (self._open(self._places[kind]) for kind in ("csv", "json"))
        if self._csv is not None:
            csv.writer(self._csv, lineterminator="\n").writerow(COLUMNS)
        if self._json is not None:
            self._json.write(json.dumps(self._head, indent=2)[:-2] + ',\n  "boxes": [')
        return self

    def add(self, frame: "Frame", detections: "Detections") -> None:
        rows = [
            (frame.name, frame.index, self._classes[label], round(score, 4), *(round(value, 2) for value in box))
            for box, score, label in zip(
                detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
            )
        ]
        if self._csv is not None:
            csv.writer(self._csv, lineterminator="\n").writerows(rows)
        if self._json is not None:
            for n, row in enumerate(rows):
                self._json.write(",\n    " if n or self.counts else "\n    ")
                self._json.write(json.dumps(dict(zip(COLUMNS, row, strict=True))))
        self.counts.update(row[2] for row in rows)
        self.frames += 1
        self.frames_with_boxes += bool(rows)

    def __exit__(self, *_: object) -> None:
        if self._json is not None:
            tail = json.dumps({"frames": self.frames, **self.tail}, indent=2)[1:]
            self._json.write(("\n  ]," if self.counts else "],") + tail + "\n")
        self._stack.close()

    def _open(self, path: Path | None) -> TextIO | None:
        if path is None:
            return None
        temporary = self._stack.enter_context(atomic_path(path))
        return self._stack.enter_context(open(temporary, "w", encoding="utf-8", newline=""))
