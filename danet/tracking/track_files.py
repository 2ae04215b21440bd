"""Writes tracks while they are found: MOT Challenge text, JSON Lines and CSV, each frame as soon as it is done.

All files grow under their own names, so that another program can follow them, and stay readable when the process is
killed.
"""

import csv
import io
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from danet.data.video import Frame
from danet.tracking.tracker import TRAIL_POINTS
from danet.tracking.tracks import Track, Tracks
from danet.utils.growing_file import GrowingFile

COLUMNS = ("file", "frame", "time", "id", "class", "score", "x0", "y0", "x1", "y1", "vx", "vy", "detected")


class TrackFiles:
    """Writes ``tracks.jsonl``, ``tracks.csv``, and one MOT Challenge text for each source.

    - JSON Lines: one object per frame, also for frames without tracks, with ``file``, ``frame``, ``time`` and
      ``tracks``.
    - CSV: one row per track and frame. ``time`` is in seconds from the start of the video and empty for an image;
      ``vx`` and ``vy`` are in pixels per second; ``detected`` is 1, or 0 for a predicted box.
    - MOT Challenge: ``frame,id,left,top,width,height,score,-1,-1,-1`` with frames counted from 1. When a target is
      confirmed, its detections in the frames before are added, so that frames do not always ascend.

    Attributes:
        paths: the files.
        frames: number of frames that were added.
        ids: number of targets of each class.
        boxes: number of boxes.

    Args:
        csv, jsonl: paths; None omits the file.

    Example:
        >>> from danet.tracking.tracks import Track
        >>> path = getfixture("tmp_path") / "tracks.jsonl"
        >>> with TrackFiles(None, path) as files, files.source(None):
        ...     files.add(Frame("a.mp4", 7, None, 0.28), Tracks())
        ...     path.read_text()  # it can be read while it grows
        '{"file": "a.mp4", "frame": 7, "time": 0.28, "tracks": []}\\n'
    """

    def __init__(self, csv: Path | None, jsonl: Path | None) -> None:
        self.paths = [path for path in (csv, jsonl) if path is not None]
        self.frames = self.boxes = 0
        self.ids: Counter[str] = Counter()
        self._newest_id = 0
        self._csv_path, self._jsonl_path = csv, jsonl
        self._stack = ExitStack()
        self._csv: GrowingFile | None = None
        self._jsonl: GrowingFile | None = None
        self._mot: GrowingFile | None = None
        self._numbers: deque[int] = deque(maxlen=TRAIL_POINTS + 1)  # of the last frames, from 1

    def __enter__(self) -> "TrackFiles":
        with self._stack:
            self._csv = self._open(self._csv_path, _csv_lines([COLUMNS]))
            self._jsonl = self._open(self._jsonl_path, "")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def source(self, mot: Path | None) -> "_SourceFile":
        """A context in which the frames of one source are added; ``mot`` is its MOT Challenge text, None for none."""
        return _SourceFile(self, mot)

    def add(self, frame: Frame, tracks: Tracks, distances: Sequence[tuple[float, float]] = ()) -> None:
        """Adds the tracks of a frame.

        Args:
            frame: of the source.
            tracks: of the frame.
            distances: for the JSON Lines, distance and its standard deviation of each track in metres, if known.

        Raises:
            UserError: the disk is full; the files keep the frames before this one.
        """
        seconds = None if frame.time is None else round(frame.time, 4)
        if self._jsonl is not None:
            items = tracks.to_dict()
            for item, (distance, error) in zip(items, distances, strict=False):
                item |= {"distance": round(distance, 2), "distance_error": round(error, 2)}
            record = {"file": frame.name, "frame": frame.index, "time": seconds, "tracks": items}
            self._jsonl.append(json.dumps(record) + "\n")
        if self._csv is not None and len(tracks):
            rows = [
                (
                    *(frame.name, frame.index, seconds, track.id, track.name, round(track.score, 4)),
                    *(round(side, 2) for side in track.box),
                    *(round(speed, 2) for speed in track.velocity),
                    int(track.is_detected),
                )
                for track in tracks
            ]
            self._csv.append(_csv_lines(rows))
        self._numbers.append(frame.index + 1)
        if self._mot is not None and len(tracks):
            self._mot.append("".join(line for track in tracks for line in self._mot_lines(track)))
        self.frames += 1
        self.boxes += len(tracks)
        for track in tracks:
            if track.id > self._newest_id:
                self._newest_id = track.id
                self.ids[track.name] += 1

    def _mot_lines(self, track: Track) -> Iterator[str]:
        """The line of a track in the newest frame, after those of the frames before it was confirmed."""
        for earlier in track.earlier:
            if earlier.frames_ago < len(self._numbers):
                yield _mot_line(self._numbers[-1 - earlier.frames_ago], track.id, earlier.box, earlier.score)
        yield _mot_line(self._numbers[-1], track.id, track.box, track.score)

    def _open(self, path: Path | None, head: str) -> GrowingFile | None:
        return None if path is None else self._stack.enter_context(GrowingFile(path, head, visible=True))


class _SourceFile:
    """The MOT Challenge text of one source."""

    def __init__(self, files: TrackFiles, path: Path | None) -> None:
        self._files = files
        self._file = None if path is None else GrowingFile(path, "", visible=True)

    def __enter__(self) -> "_SourceFile":
        if self._file is not None:
            self._file.__enter__()
            self._files.paths.append(self._file.path)
        self._files._mot = self._file
        self._files._numbers.clear()
        return self

    def __exit__(self, *error: Any) -> None:
        self._files._mot = None
        if self._file is not None:
            self._file.__exit__(*error)


def _mot_line(number: int, track: int, box: tuple[float, float, float, float], score: float) -> str:
    x0, y0, x1, y1 = box
    return f"{number},{track},{x0:.2f},{y0:.2f},{x1 - x0:.2f},{y1 - y0:.2f},{score:.4f},-1,-1,-1\n"


def _csv_lines(rows: Sequence[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
