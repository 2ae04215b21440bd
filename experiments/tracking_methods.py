"""The methods that experiments/tracking.py compares; all of them get the same detections."""

import time

import numpy as np

from danet.data.importers.svanstrom_labels import CLASSES
from danet.data.video import Frame
from danet.detections import Detections
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.tracks import Track, Tracks

TARGET = "drone"


class SingleFrames:
    """Detections of single frames as tracks without identity: every box is a target of its own.

    Attributes:
        seconds: CPU time of all updates.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self.count, self.seconds = threshold, 0, 0.0

    def update(self, frame: Frame, found: Detections) -> Tracks:
        found = found[(found.scores > self.threshold) & (found.labels == 0)]
        tracks = []
        for one in found[:]:
            self.count += 1
            tracks.append(Track(self.count, one.box, one.score, one.label, one.name, (0.0, 0.0), True, 1, 0.0))
        return Tracks(tracks, CLASSES)


class Danet:
    """The tracker of ``danet track``, with the motion of the camera."""

    def __init__(self, options: TrackerOptions) -> None:
        self.tracker, self.seconds = Tracker(options, classes=[TARGET]), 0.0

    def update(self, frame: Frame, found: Detections) -> Tracks:
        started = time.process_time()
        tracks = self.tracker.update_frame(frame, found)
        self.seconds += time.process_time() - started
        return tracks


class Public:
    """A tracker of the package ``trackers``; it gets the detections of drones only, since it knows no classes."""

    def __init__(self, kind: str) -> None:
        import trackers

        self.tracker, self.seconds = getattr(trackers, kind)(), 0.0

    def update(self, frame: Frame, found: Detections) -> Tracks:
        import supervision

        found = found[found.labels == 0]
        boxes = supervision.Detections(
            found.boxes.numpy().reshape(-1, 4), confidence=found.scores.numpy(), class_id=found.labels.numpy()
        )
        started = time.process_time()
        result = self.tracker.update(boxes)
        self.seconds += time.process_time() - started
        tracks = [
            Track(int(number), tuple(map(float, box)), float(score), 0, TARGET, (0.0, 0.0), True, 1, 0.0)
            for box, score, number in zip(result.xyxy, result.confidence, result.tracker_id, strict=True)
            if number is not None and number >= 0
        ]
        return Tracks(tracks, CLASSES)


def with_earlier(frames: list[Tracks]) -> list[Tracks]:
    """The tracks of each frame, with those of the frames before a target was confirmed, as in the MOT text.

    The score of such a box is the first score of its track, because the track is reported with it.
    """
    items = [list(tracks) for tracks in frames]
    for index, tracks in enumerate(frames):
        for track in tracks:
            for earlier in track.earlier:
                box = Track(track.id, earlier.box, track.score, track.label, track.name, (0.0, 0.0), True, 1, 0.0)
                items[index - earlier.frames_ago].append(box)
    return [Tracks(each, tracks.classes) for each, tracks in zip(items, frames, strict=True)]


def boxes_of(tracks: Tracks) -> np.ndarray:
    """float64 ``[K, 4]``."""
    return np.array([track.box for track in tracks], np.float64).reshape(-1, 4)


def scores_of(tracks: Tracks) -> np.ndarray:
    """float64 ``[K]``."""
    return np.array([track.score for track in tracks], np.float64)
