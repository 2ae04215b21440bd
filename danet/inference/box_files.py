"""Writes boxes as CSV and JSON while they are found, because a run may be longer than memory."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from danet.boxes import Detections
from danet.data.video import Frame
from danet.utils.errors import UserError
from danet.utils.growing_file import GrowingFile

COLUMNS = ("file", "frame", "class", "score", "x0", "y0", "x1", "y1", "time")


class BoxFiles:
    """Writes ``boxes.csv`` and ``boxes.json``: one row per box, corners in pixels of the source.

    ``time`` is in seconds from the start of the video; for an image it is empty in CSV and null in JSON.

    The files appear at the end of the ``with`` block. After Ctrl-C or an error, such as a full disk, they hold what was
    added before it.

    Attributes:
        paths: the files.
        frames, frames_with_boxes: number of frames that were added, and of those with at least one box.
        counts: number of boxes of each class.
        footer: values that the JSON file gets after the boxes.

    Args:
        csv, json: paths; None omits the file.
        header: values that the JSON file gets before the boxes.
        classes: names of the labels.

    Example:
        >>> import tempfile, torch
        >>> frame = Frame("a.png", 0, None)
        >>> detections = Detections(torch.tensor([[1.0, 2.0, 9.0, 8.0]]), torch.tensor([0.9]), torch.tensor([0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with BoxFiles(Path(folder) / "boxes.csv", None, {}, ["drone"]) as boxes:
        ...         boxes.add(frame, detections)
        ...     (Path(folder) / "boxes.csv").read_text().splitlines()[1]
        'a.png,0,drone,0.9,1.0,2.0,9.0,8.0,'
    """

    def __init__(self, csv: Path | None, json: Path | None, header: dict, classes: Sequence[str]) -> None:
        self.paths = [path for path in (csv, json) if path is not None]
        self.frames = self.frames_with_boxes = 0
        self.counts: Counter[str] = Counter()
        self.footer: dict = {}
        self._csv_path, self._json_path = csv, json
        self._header = header
        self._classes = classes
        self._stack = ExitStack()
        self._csv: GrowingFile | None = None
        self._json: GrowingFile | None = None

    def __enter__(self) -> "BoxFiles":
        with self._stack:  # if the second file cannot be opened, the first disappears
            self._csv = self._open(self._csv_path, _csv_lines([COLUMNS]))
            self._json = self._open(self._json_path, json.dumps(self._header, indent=2)[:-2] + ',\n  "boxes": [')
            self._stack = self._stack.pop_all()
        return self

    def add(self, frame: Frame, detections: Detections) -> None:
        """Adds the boxes of a frame to the files.

        Raises:
            UserError: the disk is full; the files keep the frames before this one.
        """
        seconds = None if frame.time is None else round(frame.time, 4)
        rows = [
            (frame.name, frame.index, self._classes[label], round(score, 4), *(round(x, 2) for x in box), seconds)
            for box, score, label in zip(
                detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
            )
        ]
        objects = (json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
        separators = [",\n    " if index or self.counts else "\n    " for index in range(len(rows))]
        if rows and self._csv is not None:
            self._csv.append(_csv_lines(rows))
        if rows and self._json is not None:
            try:
                self._json.append("".join(map("".join, zip(separators, objects, strict=True))))
            except UserError:
                if self._csv is not None:
                    self._csv.undo()
                raise
        self.counts.update(row[2] for row in rows)
        self.frames += 1
        self.frames_with_boxes += bool(rows)

    def __exit__(self, *_: object) -> None:
        if self._json is not None:
            footer = json.dumps({"frames": self.frames, **self.footer}, indent=2)[1:]
            self._json.tail = ("\n  ]," if self.counts else "],") + footer + "\n"
        self._stack.close()

    def _open(self, path: Path | None, head: str) -> GrowingFile | None:
        return None if path is None else self._stack.enter_context(GrowingFile(path, head))


def _csv_lines(rows: Sequence[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
