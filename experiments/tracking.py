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


def precision_recall(per_video: dict, boxes_of: dict) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of single-frame detections at each of 90 thresholds."""
    thresholds = np.linspace(0.1, 0.99, 90)
    hits, reported, objects = np.zeros(90), np.zeros(90), 0
    for name, found in per_video.items():
        for detections, truths in zip(found, boxes_of[name], strict=True):
            objects += len(truths)
            mine = detections[detections.labels == 0].numpy()
            overlap = iou(mine.boxes.reshape(-1, 1, 4), truths.reshape(1, -1, 4))
            free = np.ones(len(truths), bool)
            for index, score in enumerate(mine.scores):  # by descending score
                reported += score > thresholds
                best = np.where(free, overlap[index], -1) if len(truths) else np.zeros(0)
                if len(best) and best.max() >= IOU:
                    free[best.argmax()] = False
                    hits += score > thresholds
    return hits / np.maximum(reported, 1), hits / max(objects, 1)


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
    precisions, recalls = precision_recall(found, truth)
    result: dict = {"videos": sorted(videos), "frames": sum(map(len, found.values())), "iou": IOU, "methods": {}}
    for method, make in makers.items():
        on_drones, everything, alarmed, seconds = None, None, [], 0.0
        for name, video in videos.items():
            method_object, alarms = make(), Alarms(alarm)
            ids, boxes, starts = [], [], []
            for frame, detected in zip(frames_of(folder / f"{name}.mp4"), found[name], strict=True):
                tracks = method_object.update(frame, detected)
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
            if is_drone:
                on_drones = counts if on_drones is None else on_drones + counts
            alarmed.append(AlarmedVideo(name, video.category, len(ids) / FPS, tuple(starts), is_drone))
            seconds += method_object.seconds
        content = {"all_videos": everything.to_json(), "drone_videos": on_drones.to_json() if on_drones else None}
        reaches = precisions >= everything.precision
        content["single_frame_recall_at_this_precision"] = float(recalls[reaches].max()) if reaches.any() else None
        content["milliseconds_per_frame"] = 1e3 * seconds / result["frames"]
        content["first_alarms"] = first_alarm_delays(alarmed)
        content["alarms"] = summarize_alarms(alarmed)
        result["methods"][method] = content
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
    if arguments.out is not None:
        write_json(arguments.out, plain(result))


if __name__ == "__main__":
    main()
