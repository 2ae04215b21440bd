"""Tracks and alarms on all frames of the Svanstrom videos, beside public trackers that get the same detections.

    python experiments/tracking.py detect SVANSTROM DETECTIONS --split val      # once; the costly part
    python experiments/tracking.py detect SVANSTROM DETECTIONS --videos IR_DRONE_043 ...
    python experiments/tracking.py measure SVANSTROM DETECTIONS RESULT.json --split val

SVANSTROM is the folder of the videos with splits.json. ``detect`` stores the detections of ``danet_s`` down to score
0.1 in one .npz per video and skips videos that are stored already. ``measure`` uses the videos that are stored. The
options of all trackers are their defaults; those of ``danet`` were set by hand on three tuning videos. Identities of
the ground truth come from ``link_truth``. ByteTrack and OC-SORT are those of the package ``trackers`` (pip install
trackers); without it they are left out.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

import danet
from danet.boxes import iou
from danet.data.frame_sources import open_source
from danet.data.importers.svanstrom import find_videos
from danet.data.importers.svanstrom_labels import CLASSES, read_labels
from danet.data.video import Frame
from danet.detections import Detections
from danet.evaluation.alarm_metrics import AlarmedVideo, first_alarm_delays, summarize_alarms
from danet.evaluation.bootstrap import Estimate
from danet.evaluation.tracking_metrics import TrackedVideo, count_tracking, link_truth
from danet.inference.stream import DetectionStream
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.tracks import Track, Tracks
from danet.utils.files import write_json

MIN_SCORE = 0.1
IOU = 0.3
FPS = 30.0
SCORE = 0.5
"""Threshold of the single-frame detections, the default of ``danet detect``."""
PRECISIONS = (0.9, 0.95, 0.98, 0.99)
"""The recall per frame is measured at these precisions, where the threshold of the score gives them."""
CURVES = ("single frames", "tracks", "tracks with the frames before confirmation")
"""Boxes whose recall is measured at PRECISIONS: detections by their score, and boxes of the tracks of danet by the
score of their track."""


def detect(folder: Path, names: list[str], out: Path) -> None:
    """Stores the detections of every frame: rows of frame, x0, y0, x1, y1, score, label."""
    torch.set_num_threads(1)
    detector = danet.load(score_threshold=MIN_SCORE, classes=["all"], dtype=torch.float32, polarity="white")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (out / f"{name}.npz").exists():
            continue
        rows, frames = [], 0
        for frame, found in DetectionStream(detector).run(open_source(folder / f"{name}.mp4")):
            values = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
            rows += [(frame.index, *box, score, label) for box, score, label in zip(*values, strict=True)]
            frames += 1
        np.savez(out / f"{name}.npz", rows=np.array(rows, np.float64).reshape(-1, 7), frames=frames)
        print(f"{name}: {frames} frames", flush=True)


def stored(path: Path) -> list[Detections]:
    """The stored detections of each frame."""
    content = np.load(path)
    rows, result = content["rows"], []
    for frame in range(int(content["frames"])):
        mine = rows[rows[:, 0] == frame]
        values = torch.tensor(mine[:, 1:5]).float(), torch.tensor(mine[:, 5]).float(), torch.tensor(mine[:, 6]).long()
        result.append(Detections(*values, list(CLASSES)))
    return result


def frames_of(path: Path) -> Iterator[Frame]:
    yield from open_source(path)


class Single:
    """Detections of single frames as tracks without identity: every box is a target of its own."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.count, self.seconds = threshold, 0, 0.0

    def update(self, frame: Frame, found: Detections) -> Tracks:
        found = found[(found.scores > self.threshold) & (found.labels == 0)]
        tracks = []
        for one in found[:]:
            self.count += 1
            tracks.append(Track(self.count, one.box, one.score, one.label, one.name, (0.0, 0.0), True, 1, 0.0))
        return Tracks(tracks, CLASSES)


class Ours:
    def __init__(self, options: TrackerOptions) -> None:
        self.tracker, self.seconds = Tracker(options, classes=["drone"]), 0.0

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
            Track(int(number), tuple(map(float, box)), float(score), 0, "drone", (0.0, 0.0), True, 1, 0.0)
            for box, score, number in zip(result.xyxy, result.confidence, result.tracker_id, strict=True)
            if number is not None and number >= 0
        ]
        return Tracks(tracks, CLASSES)


Scored = list[tuple[np.ndarray, np.ndarray]]
"""Boxes ``[K, 4]`` and scores ``[K]`` of each frame of a video."""


class RecallCurve:
    """Precision and recall per frame of boxes with scores, at each of 900 thresholds."""

    def __init__(self) -> None:
        self.thresholds = np.linspace(0.1, 0.999, 900)
        self.hits, self.reported, self.objects = np.zeros(900), np.zeros(900), 0

    def add(self, frames: Scored, truth: list[np.ndarray]) -> None:
        """Adds a video; its boxes are matched to the ground truth by descending score."""
        for (boxes, scores), truths in zip(frames, truth, strict=True):
            self.objects += len(truths)
            overlap = iou(boxes.reshape(-1, 1, 4), truths.reshape(1, -1, 4))
            free = np.ones(len(truths), bool)
            for index in np.argsort(-scores, kind="stable"):
                is_above = scores[index] > self.thresholds
                self.reported += is_above
                best = np.where(free, overlap[index], -1) if len(truths) else np.zeros(0)
                if len(best) and best.max() >= IOU:
                    free[best.argmax()] = False
                    self.hits += is_above

    def recall_at(self, precision: float) -> dict[str, float] | None:
        """The largest recall with at least this precision, and its threshold; None if no threshold reaches it."""
        reaches = self.hits >= precision * np.maximum(self.reported, 1)
        if not reaches.any():
            return None
        best = np.where(reaches, self.hits, -1).argmax()
        return {
            "recall": float(self.hits[best] / max(self.objects, 1)),
            "precision": float(self.hits[best] / max(self.reported[best], 1)),
            "threshold": float(self.thresholds[best]),
        }


def drones_of(found: list[Detections]) -> Scored:
    """The detections of drones in single frames."""
    return [(each.boxes.numpy(), each.scores.numpy()) for each in (one[one.labels == 0] for one in found)]


def with_earlier(tracks: list[Tracks]) -> Scored:
    """The boxes of tracks, with those of the frames before a target was confirmed, which get its first score."""
    rows: list[list[tuple]] = [[(track.box, track.score) for track in each] for each in tracks]
    for index, each in enumerate(tracks):
        for track in each:
            for earlier in track.earlier:
                rows[index - earlier.frames_ago].append((earlier.box, track.score))
    return [scored(each) for each in rows]


def scored(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    return boxes, np.array([score for _, score in rows], np.float64)


def measure(folder: Path, names: list[str], detections: Path, options: TrackerOptions, alarm: AlarmOptions) -> dict:
    """Metrics of all methods on the videos whose detections are stored."""
    videos = {video.name: video for video in find_videos(folder, "all", quiet=True) if video.name in names}
    found = {name: stored(detections / f"{name}.npz") for name in videos}
    truth = {
        name: [frame.get("drone", np.zeros((0, 4))) for frame in read_labels(folder / f"{name}_LABELS.mat")]
        for name in videos
    }
    makers = {"single frames": lambda: Single(SCORE), "danet": lambda: Ours(options)}
    try:
        import trackers  # noqa: F401

        makers |= {"ByteTrack": lambda: Public("ByteTrackTracker"), "OC-SORT": lambda: Public("OCSORTTracker")}
    except ImportError:
        print("the package trackers is not installed: ByteTrack and OC-SORT are left out")
    curves = {kind: {group: RecallCurve() for group in ("all_videos", "drone_videos")} for kind in CURVES}
    result: dict = {"videos": sorted(videos), "frames": sum(map(len, found.values())), "iou": IOU, "methods": {}}
    for method, make in makers.items():
        on_drones, everything, alarmed, seconds = None, None, [], 0.0
        for name, video in videos.items():
            method_object, alarms = make(), Alarms(alarm)
            ids, boxes, starts, reported = [], [], [], []
            for frame, detected in zip(frames_of(folder / f"{name}.mp4"), found[name], strict=True):
                tracks = method_object.update(frame, detected)
                reported.append(tracks)
                ids.append(np.array(tracks.ids, np.int64))
                boxes.append(np.array([track.box for track in tracks]).reshape(-1, 4))
                if method == "single frames":  # an operator without tracks is alarmed by every frame with a detection
                    starts += [frame.index / FPS] * bool(len(tracks))
                else:
                    events = alarms.update(tracks, seconds=frame.index / FPS)
                    starts += [event.time for event in events if event.kind == "start"]
            counts = count_tracking(TrackedVideo(link_truth(truth[name]), truth[name], ids, boxes, name), threshold=IOU)
            everything = counts if everything is None else everything + counts
            is_drone = video.category == "drone"
            if method == "danet":
                plain_rows = [scored([(track.box, track.score) for track in each]) for each in reported]
                kinds = zip(CURVES, (drones_of(found[name]), plain_rows, with_earlier(reported)), strict=True)
                for kind, rows in kinds:
                    for group in ("all_videos", "drone_videos") if is_drone else ("all_videos",):
                        curves[kind][group].add(rows, truth[name])
            if is_drone:
                on_drones = counts if on_drones is None else on_drones + counts
            alarmed.append(AlarmedVideo(name, video.category, len(ids) / FPS, tuple(starts), is_drone))
            seconds += method_object.seconds
        content = {"all_videos": everything.to_json(), "drone_videos": on_drones.to_json() if on_drones else None}
        content["milliseconds_per_frame"] = 1e3 * seconds / result["frames"]
        content["first_alarms"] = first_alarm_delays(alarmed)
        content["alarms"] = summarize_alarms(alarmed)
        result["methods"][method] = content
    result["recall_at_precision"] = {
        kind: {
            group: {f"{precision:g}": curve.recall_at(precision) for precision in PRECISIONS}
            for group, curve in groups.items()
        }
        for kind, groups in curves.items()
    }
    return result


def plain(value: object) -> object:
    """Replaces estimates by dicts, for JSON."""
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["detect", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("detections", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--videos", nargs="*")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    names = arguments.videos or [video.name for video in find_videos(arguments.folder, arguments.split, quiet=True)]
    if arguments.step == "detect":
        detect(arguments.folder, names, arguments.detections)
        return
    names = [name for name in names if (arguments.detections / f"{name}.npz").exists()]
    result = measure(arguments.folder, names, arguments.detections, TrackerOptions(), AlarmOptions())
    for method, content in result["methods"].items():
        scores = content["drone_videos"] or content["all_videos"]
        alarms = content["alarms"]
        false = alarms["false_alarms"].get("any", {"videos_with_alarm": 0, "videos": 0})
        print(
            f"{method:14} HOTA {scores['hota']:.3f}  IDF1 {scores['idf1']:.3f}  MOTA {scores['mota']:.3f}  "
            f"switches {scores['identity_switches']}  recall {content['all_videos']['recall']:.3f}  "
            f"precision {content['all_videos']['precision']:.3f}  "
            f"alarm within 1 s {alarms['detected']}/{alarms['videos']}  "
            f"distractor videos with alarm {false['videos_with_alarm']}/{false['videos']}  "
            f"{content['milliseconds_per_frame']:.2f} ms"
        )
    for kind, groups in result["recall_at_precision"].items():
        for group, points in groups.items():
            shown = (f"{p}: {'-' if point is None else format(point['recall'], '.4f')}" for p, point in points.items())
            print(f"recall at precision, {kind}, {group.replace('_', ' ')}: {', '.join(shown)}")
    if arguments.out is not None:
        write_json(arguments.out, plain(result))


if __name__ == "__main__":
    main()
