"""Measures the recall at calibrated thresholds on annotated images with targets."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from danet.boxes import Detections
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.evaluation.alarm_assignment import first_target_frame
from danet.evaluation.alarm_metrics import AlarmedVideo, summarize_alarms
from danet.evaluation.bootstrap import resample
from danet.evaluation.formatting import estimate
from danet.evaluation.matching import CRITERIA, HIT, flatten, match
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.inference.detector import Detector
from danet.inference.predict import predict
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.tracker import Tracker
from danet.utils.errors import UserError
from danet.utils.image_io import read_image

CRITERION = "iou30"


def read_positives(path: str, classes: Sequence[str]) -> list[ImageRecord]:
    """Reads the images of a dataset.

    Raises:
        UserError: the dataset cannot be read, or shows no object of ``classes``.
    """
    records = load_coco(path, split="val").records
    shown = {
        name for record in records for name, ignored in zip(record.names, record.ignore, strict=True) if not ignored
    }
    if shown.isdisjoint(classes):
        found = ", ".join(sorted(shown)) or "nothing"
        raise UserError(f"--positives {path}: must show {' or '.join(classes)}, got {found}")
    return records


def measure(
    detector: Detector,
    records: Sequence[ImageRecord],
    thresholds: CalibratedThresholds,
    *,
    fps: float,
    batch: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measures the recall of single frames, and the alarms if the images state their video and frame.

    Args:
        detector: its score threshold is that of the tracker.
        records: images with targets.
        thresholds: at which the recall is measured.
        fps: frames per second of the videos.
        batch: images that go through the network at once.
        quiet: show no progress.

    Returns:
        ``recall`` by class, with the share of objects that single frames find at ``detection_score`` (IoU 0.3);
        ``alarms`` as of ``summarize_alarms``, or None; and ``lines`` to print.
    """
    videos: dict[str | None, list[ImageRecord]] = {}
    for record in records:
        videos.setdefault(record.video, []).append(record)
    every_class = detector.with_thresholds(score=detector.score_threshold)
    predictions: dict[int, Detections] = {}
    for group in videos.values():
        every_class.begin_source()  # the polarity is chosen for each video
        group.sort(key=lambda record: record.frame or 0)
        found, _ = predict(every_class, group, batch, quiet=quiet)
        predictions |= {id(record): each for record, each in zip(group, found, strict=True)}
    ordered = [predictions[id(record)] for record in records]
    recall = {name: _recall(records, ordered, detector.classes, name, thresholds) for name in thresholds.classes}
    lines = [
        f"positives, single frames: recall {estimate(value)} of {name} at score {thresholds.detection_score:g}, IoU 0.3"
        for name, value in recall.items()
        if value["value"] is not None
    ]
    alarms = None
    if all(record.video is not None and record.frame is not None for record in records):
        alarmed = [
            _alarmed(str(name), group, predictions, thresholds, detector.classes, fps) for name, group in videos.items()
        ]
        alarms = summarize_alarms([video for video in alarmed if video.has_target])
        delay = "-" if alarms["median_delay"] is None else f"{alarms['median_delay']:.2f} s"
        lines.append(
            f"positives, alarms: {sum(bool(video.alarms) for video in alarmed if video.has_target)} of "
            f"{alarms['videos']} videos with a target, {alarms['detected']} within 1 s of its start, median {delay}"
        )
        steps = [
            (other.frame or 0) - (one.frame or 0)
            for group in videos.values()
            for one, other in itertools.pairwise(group)
        ]
        if max(steps, default=1) > 1:
            lines.append(
                f"  up to {max(steps)} frames lie between two images of a video, so that alarms come later than in the "
                "whole video, or never"
            )
    else:
        lines.append("positives, alarms: not measured, because the images do not state video and frame")
    return {"recall": recall, "alarms": alarms and _plain(alarms), "lines": lines}


def _plain(alarms: dict[str, Any]) -> dict[str, Any]:
    """The values of ``summarize_alarms`` for JSON; false alarms are left out, because every video has a target."""
    return {**alarms, "probability": asdict(alarms["probability"]), "false_alarms": None}


def _recall(
    records: Sequence[ImageRecord],
    predictions: Sequence[Detections],
    classes: Sequence[str],
    name: str,
    thresholds: CalibratedThresholds,
) -> dict[str, float | None]:
    data = flatten(records, [found.numpy() for found in predictions], classes)[name]
    matches = match(data, CRITERIA[CRITERION])
    is_hit = (matches.outcome == HIT) & (data.scores > thresholds.detection_score)
    hits = np.bincount(data.image[is_hit], minlength=len(records))
    objects = np.bincount(data.truth_image[matches.counted], minlength=len(records))
    return asdict(resample([record.video for record in records]).ratio(hits, objects))


def _alarmed(
    name: str,
    records: Sequence[ImageRecord],
    predictions: dict[int, Detections],
    thresholds: CalibratedThresholds,
    classes: Sequence[str],
    fps: float,
) -> AlarmedVideo:
    """The times of the alarms of a video, from the first image with a target on."""
    tracker = Tracker(classes=[each for each in classes if each in thresholds.classes])
    alarms, times = Alarms(AlarmOptions().complete(thresholds, thresholds.classes)), []
    for record in records:
        seconds = (record.frame or 0) / fps
        tracks = tracker.update(predictions[id(record)], seconds=seconds, image=read_image(record.path))
        times += [event.time for event in alarms.update(tracks, seconds=seconds) if event.kind == "start"]
    first = first_target_frame(records, thresholds.classes)
    begin = (first or 0) / fps
    after = tuple(time - begin for time in times if time >= begin)
    return AlarmedVideo(name, "target", len(records) / fps, after, first is not None)
