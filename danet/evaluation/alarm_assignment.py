"""Assigns the alarms of ``danet track`` to annotated videos, and decides which of them count."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from danet.boxes import iop, iou
from danet.data.class_map import IGNORE
from danet.data.image_folder import IMAGE_SUFFIXES
from danet.data.image_record import ImageRecord
from danet.evaluation.alarm_metrics import AlarmedVideo
from danet.utils.errors import UserError
from danet.utils.files import read_text

LEFT_OUT = {
    "other_sources": "not from a video of the data",
    "other_classes": "not of the class --target",
    "ignore_regions": "in an ignore region",
    "before_target": "before the first annotated target of the video",
}
"""Why alarms are left out: the kinds of ``assign_alarms``, and their meaning."""

MAX_RATE_DIFFERENCE = 0.05
"""Largest relative difference between the stated frame rate and that of the alarms."""


class StartedAlarm(NamedTuple):
    """The start of an alarm."""

    source: str
    """Name of its video."""
    name: str | None
    """Class of its track; None if it is not stated."""
    seconds: float
    """Since the start of the video."""
    frame: int | None = None
    """None if it is not stated."""
    box: tuple[float, float, float, float] | None = None
    """(x0, y0, x1, y1) in pixels; None if it is not stated."""
    is_image: bool = False
    """Whether it is in a folder of images, so that ``seconds`` follows from the frame."""


def read_alarms(path: Path, *, fps: float) -> list[StartedAlarm]:
    """The start of each alarm in a file of ``danet track``.

    Args:
        path: of alarms.jsonl.
        fps: frames per second in folders of images, which have no times of their own.

    Raises:
        UserError: the file cannot be read, or a line is no event.

    Example:
        >>> path = getfixture("tmp_path") / "alarms.jsonl"
        >>> _ = path.write_text('{"event": "start", "file": "clips/a.mp4", "class": "drone", "time": 0.5}')
        >>> read_alarms(path, fps=30)[0][:3]
        ('a', 'drone', 0.5)
    """
    alarms = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            event = json.loads(line)
            if event["event"] == "start":
                alarms.append(_read_event(event, fps))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(f"{path}: line {number} must be an event of danet track, got {line[:80]!r}") from None
    return alarms


def _read_event(event: Mapping[str, Any], fps: float) -> StartedAlarm:
    """Raises ValueError, KeyError, TypeError, AttributeError or OverflowError if a value is missing or not valid."""
    file = Path(event["file"])
    frame = None if event.get("frame") is None else int(event["frame"])
    # Images have no times of their own: those in the event assume another frame rate.
    is_image = file.suffix.lower() in IMAGE_SUFFIXES and frame is not None
    seconds = (frame or 0) / fps if is_image else float(event["time"])
    box = None
    if event.get("box") is not None:
        x0, y0, x1, y1 = map(float, event["box"])
        box = (x0, y0, x1, y1)
    alarm = StartedAlarm(event.get("source") or file.stem, event.get("class"), seconds, frame, box, is_image)
    if not isinstance(alarm.source, str) or not isinstance(alarm.name, str | None):
        raise TypeError
    if not all(map(math.isfinite, (seconds, *(box or ())))):
        raise ValueError
    return alarm


def stated_rate(alarms: Sequence[StartedAlarm]) -> float | None:
    """Frames per second of the videos, from the frames and times of their alarms; None if no alarm states both.

    It is the median, because the rate of a video may vary.

    Example:
        >>> stated_rate([StartedAlarm("a", "drone", 2.0, 50), StartedAlarm("b", "drone", 1.0, 25)])
        25.0
    """
    rates = [
        alarm.frame / alarm.seconds
        for alarm in alarms
        if not alarm.is_image and alarm.frame is not None and alarm.frame > 0 and alarm.seconds > 0
    ]
    return float(np.median(rates)) if rates else None


def assign_alarms(
    alarms: Sequence[StartedAlarm],
    videos: Mapping[str, Sequence[ImageRecord]],
    *,
    target: str,
    threshold: float,
    fps: float,
) -> tuple[list[AlarmedVideo], dict[str, Counter[str]]]:
    """The videos with the times of the alarms that count, and the alarms that do not.

    An alarm is left out for the first of these reasons that applies: it is from another source; it is of another class;
    it is in an ignore region of the target's class or of all classes; it is before the target. In a video with a
    target, the target appears somewhere between two annotated images: the first image with a target, and the one before
    it. An alarm up to the earlier of the two is before the target. An alarm between the two counts, with time 0. All
    other times are measured from the first image with a target, or from the start of a video without a target.

    An alarm is in an ignore region if its box covers no object, and a part of at least ``threshold`` of it lies in the
    region. The regions are those of the annotated image next to the frame of the alarm. An alarm that states no box
    does not count if the image shows a region and no target. A target whose box is ignored is such a region, and not a
    target of the video.

    Args:
        alarms: of ``read_alarms``.
        videos: annotated images by video, by ascending frame.
        target: class that must raise alarms.
        threshold: smallest IoU at which a box covers an object.
        fps: frames per second.

    Returns:
        The videos by name; and for each kind of LEFT_OUT, the numbers of alarms by source or by class.
    """
    begins = {name: first_target_frame(records, [target]) for name, records in videos.items()}
    empty = {name: _last_frame_before(records, begins[name]) for name, records in videos.items()}
    times: dict[str, list[float]] = {}
    left_out: dict[str, Counter[str]] = {kind: Counter() for kind in LEFT_OUT}
    for alarm in alarms:
        if alarm.source not in videos:
            left_out["other_sources"][alarm.source] += 1
        elif alarm.name not in (target, None):
            left_out["other_classes"][str(alarm.name)] += 1
        elif _is_ignored(alarm, videos[alarm.source], target, threshold, fps):
            left_out["ignore_regions"][alarm.source] += 1
        else:
            delay = alarm.seconds - (begins[alarm.source] or 0) / fps
            # The time of a frame in a video may differ a little from its number / fps.
            frame = alarm.seconds * fps if alarm.frame is None else alarm.frame
            if frame <= empty[alarm.source]:
                left_out["before_target"][alarm.source] += 1
            else:
                times.setdefault(alarm.source, []).append(max(delay, 0.0))
    result = []
    for name, records in sorted(videos.items()):
        shown = [
            each
            for record in records
            for each, is_region in zip(record.names, record.ignore, strict=True)
            if not is_region
        ]
        has_target = begins[name] is not None
        others = sorted(set(shown) - {target}, key=lambda each: -shown.count(each))
        category = target if has_target else (others or ["nothing"])[0]
        seconds = (max(record.frame or 0 for record in records) + 1) / fps
        result.append(AlarmedVideo(name, category, seconds, tuple(sorted(times.get(name, []))), has_target))
    return result, left_out


def first_target_frame(records: Sequence[ImageRecord], classes: Collection[str]) -> int | None:
    """Frame of the first image of a video that shows an object of ``classes`` outside of ignore regions, or None.

    Args:
        records: annotated images of the video, by ascending frame.
        classes: of the targets.

    Example:
        >>> first_target_frame([], ["drone"]) is None
        True
    """
    for record in records:
        if any(name in classes and not ignored for name, ignored in zip(record.names, record.ignore, strict=True)):
            return record.frame or 0
    return None


def _last_frame_before(records: Sequence[ImageRecord], frame: int | None) -> int:
    """The last annotated frame of a video before ``frame``; -1 if there is none."""
    numbers = [record.frame or 0 for record in records]
    return max((number for number in numbers if frame is not None and number < frame), default=-1)


def _is_ignored(alarm: StartedAlarm, records: Sequence[ImageRecord], target: str, threshold: float, fps: float) -> bool:
    frame = alarm.seconds * fps if alarm.frame is None else alarm.frame
    record = min(records, key=lambda each: abs((each.frame or 0) - frame))
    boxes = np.asarray(record.boxes, np.float64).reshape(-1, 4)
    is_region = np.array([name in (target, IGNORE) for name in record.names], bool) & record.ignore
    is_target = np.array([name == target for name in record.names], bool) & ~record.ignore
    if alarm.box is None or not is_region.any():
        return bool(is_region.any() and not is_target.any())
    box = np.array(alarm.box)
    if (iou(box, boxes[is_target]) >= threshold).any():
        return False
    shared = iop(box, boxes[is_region]).max()
    return bool(shared >= threshold and shared > 0)
