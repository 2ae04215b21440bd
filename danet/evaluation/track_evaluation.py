"""``danet evaluate --tracks``: compares the results of ``danet track``, or of any tracker, with annotated videos."""

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danet.data.class_map import IGNORE
from danet.data.coco_dataset import ImageRecord, dataset_files, load_coco
from danet.evaluation.alarm_assignment import LEFT_OUT, MAX_RATE_DIFFERENCE, assign_alarms, read_alarms, stated_rate
from danet.evaluation.alarm_metrics import first_alarm_delays, summarize_alarms
from danet.evaluation.bootstrap import Estimate
from danet.evaluation.tracking_metrics import (
    TrackedVideo,
    TrackingCounts,
    count_tracking,
    drop_ignored,
    link_truth,
)
from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import read_text, write_json
from danet.utils.names import quote
from danet.utils.printable import printable


@dataclass
class TrackEvaluationOptions:
    """Options of ``danet evaluate --tracks``.

    Example:
        >>> TrackEvaluationOptions("runs/track", "val.json").iou
        0.3
    """

    tracks: str
    """Folder with a text in the format of the MOT Challenge for each video, such as runs/track: VIDEO.txt, with frames
    counted from 1. If it also holds alarms.jsonl, false alarms per hour and the time to alarm are reported."""

    data: str
    """COCO json (or a folder with one) whose images state `video` and `frame`, such as danet data import svanstrom
    writes; only annotated frames count. Boxes of tracks in ignore regions count neither as true nor as false positives,
    unless they cover an object; nor do alarms that begin there."""

    target: str = "drone"
    """Class of the tracks; boxes of other classes are distractors, and alarms of other classes are left out."""

    iou: float = 0.3
    """Smallest IoU (0 to 1) at which a box of a track covers an object, for MOTA, IDF1, recall and precision; HOTA uses
    19 thresholds."""

    fps: float = 30.0
    """Frames per second of the videos, for times of alarms and hours of video."""

    within: float = 1.0
    """Seconds after the first annotated frame with a target within which a video must raise an alarm."""

    share: float = 0.9
    """The time until this share of the videos with a target have raised an alarm is reported, 0 to 1."""

    resamples: int = 1000
    """Bootstrap resamples over the videos for the 95 % intervals."""

    json: str | None = None
    """Also write the metrics to this file."""

    quiet: bool = False
    """Print only errors."""

    def __post_init__(self) -> None:
        check_values(self, ["iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        check_values(self, ["fps", "within"], "be positive", lambda value: 0 < value < math.inf, prefix="--")
        check_values(self, ["share"], "lie above 0 and be at most 1", lambda value: 0 < value <= 1, prefix="--")
        check_values(self, ["resamples"], "be at least 1", lambda value: value >= 1, prefix="--")


def evaluate_tracks(options: TrackEvaluationOptions) -> None:
    """Measures tracks on annotated videos: HOTA, MOTA, IDF1, identity switches, fragmentations, and alarms.

    The numbers of the true targets come from the positions of the boxes, because COCO files have none.
    """
    folder = Path(options.tracks)
    cli.check_outputs([options.json], [*dataset_files(options.data), folder / "alarms.jsonl"])
    videos: dict[str, list[ImageRecord]] = {}
    for record in load_coco(options.data).records:
        if record.video is None or record.frame is None:
            raise UserError(f"{options.data}: every image must state video and frame, got {record.path.name} without")
        videos.setdefault(record.video, []).append(record)
    for name, records in videos.items():
        records.sort(key=lambda record: record.frame or 0)
        for one, other in itertools.pairwise(records):
            if one.frame == other.frame:
                raise UserError(
                    f"{options.data}: frame {one.frame} of video {quote(name)} must occur once, got it twice"
                )
    missing = sorted(name for name in videos if not (folder / f"{name}.txt").is_file())
    if missing:
        got = "none of them" if len(missing) == len(videos) else f"{len(videos) - len(missing)} of {len(videos)}"
        raise UserError(
            f"{folder}: must hold a file VIDEO.txt for each video of {options.data}, got {got}; track "
            f"{quote(missing[0])} and other missing ones, or write an empty file for a video without tracks"
        )
    counts = {name: _count(folder / f"{name}.txt", records, options) for name, records in sorted(videos.items())}
    first, *others = counts.values()
    content: dict[str, Any] = {"tracks": options.tracks, "iou": options.iou, **sum(others, first).to_json()}
    content["videos"] = {name: each.to_json() for name, each in counts.items()}
    content["largest_frame_gap"] = max(map(_largest_gap, videos.values()))
    if (folder / "alarms.jsonl").is_file():
        found = read_alarms(folder / "alarms.jsonl", fps=options.fps)
        if (rate := stated_rate(found)) is not None and abs(rate / options.fps - 1) > MAX_RATE_DIFFERENCE:
            print(
                f"danet evaluate --tracks: warning: --fps {options.fps:g}: {folder / 'alarms.jsonl'} states {rate:.3g} "
                "frames per second; the hours of video and the delays depend on --fps",
                file=sys.stderr,
            )
        alarmed, left_out = assign_alarms(found, videos, target=options.target, threshold=options.iou, fps=options.fps)
        content["alarms_left_out"] = left_out
        content["first_alarms"] = first_alarm_delays(alarmed)
        content["alarms"] = summarize_alarms(
            alarmed, within=options.within, share=options.share, resamples=options.resamples
        )
    if options.json is not None:
        write_json(options.json, _plain(content))
    if not options.quiet:
        _print(content, len(videos))


def read_mot(path: Path) -> dict[int, list[tuple[int, list[float]]]]:
    """Reads a text file in the format of the MOT Challenge.

    Returns a dict from the frame (counted from 0) to (id, box) of each track, box as (x0, y0, x1, y1).

    Raises:
        UserError: the file cannot be read, a line does not begin with six finite numbers, of which frame and id are
            integers, an id, width or height is negative, or a frame number is below 1.

    Example:
        >>> path = getfixture("tmp_path") / "a.txt"
        >>> _ = path.write_text("1,7,10,20,4,2,0.9,-1,-1,-1")
        >>> read_mot(path)
        {0: [(7, [10.0, 20.0, 14.0, 22.0])]}
    """
    result: dict[int, list[tuple[int, list[float]]]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            frame, track, x, y, width, height = map(float, line.split(",")[:6])
            if not all(map(math.isfinite, (frame, track, x, y, width, height))):
                raise ValueError
            if not frame.is_integer() or not track.is_integer():
                raise ValueError
        except ValueError:
            expected = "must be frame,id,left,top,width,height and more"
            raise UserError(f"{path}: line {number} {expected}, got {line[:80]!r}") from None
        if not 0 <= track < 2**53 or min(width, height) < 0:
            raise UserError(
                f"{path}: line {number}: id, width and height must not be negative, got {line[:80]!r}; files of "
                "detections without tracks have the id -1"
            )
        if frame < 1:
            raise UserError(
                f"{path}: line {number}: frame numbers must count from 1, got {frame:.0f}; if the file counts them "
                "from 0, add 1 to each"
            )
        result.setdefault(int(frame) - 1, []).append((int(track), [x, y, x + width, y + height]))
    return result


def _count(path: Path, records: list[ImageRecord], options: TrackEvaluationOptions) -> TrackingCounts:
    tracks = read_mot(path)
    truth, regions, ids, boxes = [], [], [], []
    for record in records:
        is_target = np.array([name == options.target for name in record.names], bool) & ~record.ignore
        is_region = np.array([name in (options.target, IGNORE) for name in record.names], bool) & record.ignore
        truth.append(np.asarray(record.boxes, np.float64)[is_target])
        regions.append(np.asarray(record.boxes, np.float64)[is_region])
        found = tracks.get(record.frame or 0, [])
        ids.append(np.array([number for number, _ in found], np.int64))
        boxes.append(np.array([box for _, box in found], np.float64).reshape(-1, 4))
    frames = [record.frame or 0 for record in records]
    try:
        video = TrackedVideo(link_truth(truth, frames=frames), truth, ids, boxes, path.stem)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return count_tracking(drop_ignored(video, regions, threshold=options.iou), threshold=options.iou)


def _largest_gap(records: list[ImageRecord]) -> int:
    """Largest distance in frames between two annotated frames that follow each other; 1 if all are annotated."""
    return max(((other.frame or 0) - (one.frame or 0) for one, other in itertools.pairwise(records)), default=1)


def _plain(value: object) -> object:
    """Replaces estimates by dicts, for JSON."""
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _print(content: dict, videos: int) -> None:
    names = ("hota", "deta", "assa", "mota", "idf1", "recall", "precision")
    scores = ", ".join(f"{name.upper() if len(name) < 5 else name} {content[name]:.3f}" for name in names)
    print(f"{scores} (videos: {videos}, objects: {content['objects']})")
    print(
        f"identity switches {content['identity_switches']}, fragmentations {content['fragmentations']}, "
        f"misses {content['misses']}, false alarms {content['false_alarms']} (boxes, IoU >= {content['iou']:g})"
    )
    if content["largest_frame_gap"] > 1:
        print(
            f"identities of the ground truth were linked over gaps of up to {content['largest_frame_gap']} frames; "
            "HOTA, IDF1 and identity switches are exact only if every frame is annotated"
        )
    if alarms := content.get("alarms"):
        delay = "" if alarms["median_delay"] is None else f", median delay {alarms['median_delay']:.2f} s"
        share = _show(alarms["probability"])
        print(
            f"alarm within {alarms['within_seconds']:g} s in {alarms['detected']} of {alarms['videos']} videos with a "
            f"target, probability {share}{delay}"
        )
        if alarms["videos"]:
            print(f"time to alarm: {_show_delay(alarms['delay_of_share'])}")
        for name, each in alarms["false_alarms"].items():
            print(
                f"false alarms, {name}: {each['alarms']} in {each['videos_with_alarm']} of {each['videos']} videos, "
                f"per hour {_show(each['per_hour'])}"
            )
    for kind, counts in content.get("alarms_left_out", {}).items():
        if counts:
            reason = LEFT_OUT[kind]
            shown = ", ".join(f"{printable(name)} {count}" for name, count in itertools.islice(counts.items(), 5))
            more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
            print(f"alarms left out, {reason}: {shown}{more}")


def _show_delay(delay: dict[str, float | None]) -> str:
    """The time until a share of the videos have raised an alarm.

    Example:
        >>> _show_delay({"share": 0.9, "value": 0.5, "low": 0.2, "high": None})
        '90 % of the videos with a target have an alarm after 0.50 s (0.20-never)'
        >>> _show_delay({"share": 0.9, "value": None, "low": None, "high": None})
        'fewer than 90 % of the videos with a target have an alarm'
    """
    share = f"{100 * (delay['share'] or 0):g} % of the videos with a target have an alarm"
    if delay["value"] is None:
        return f"fewer than {share}"
    high = "never" if delay["high"] is None else f"{delay['high']:.2f}"
    interval = "" if delay["low"] is None else f" ({delay['low']:.2f}-{high})"
    return f"{share} after {delay['value']:.2f} s{interval}"


def _show(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    interval = "" if estimate.low is None else f" ({estimate.low:.2f}-{estimate.high:.2f})"
    return f"{estimate.value:.2f}{interval}"
