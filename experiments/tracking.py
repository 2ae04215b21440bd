"""Tracks and alarms on all frames of the Svanstrom videos, beside public trackers that get the same detections.

    python experiments/tracking.py detect SVANSTROM DETECTIONS --split val            # once; the costly part
    python experiments/tracking.py detect SVANSTROM DETECTIONS --videos_of TUNE.json
    python experiments/tracking.py measure SVANSTROM DETECTIONS RESULT.json --split val --tune TUNE.json

SVANSTROM is the folder of the videos with splits.json. TUNE.json is the COCO json of the training recordings that serve
for choices (``make real`` and ``import_svanstrom`` in common.sh write it); the shipped weights were not trained on
them. ``detect`` stores the detections down to score 0.1 in one .npz per video and skips videos that are
stored already. ``measure`` uses the videos that are stored.

All trackers have their default options. Thresholds of the score come from the recordings of TUNE.json:

- for recall: the lowest threshold that gives a precision there, for single frames and for tracks;
- for alarms: what ``danet calibrate`` chooses on the videos of TUNE.json without drones. They are short, so that it
  chooses the lowest score without any alarm in them, and at least 0.5.

Identities of the ground truth come from ``link_truth``. ByteTrack and OC-SORT are those of the package ``trackers``
(pip install trackers); without it they are left out.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recall_curve import RecallCurve
from tracking_methods import TARGET, Danet, Public, SingleFrames, boxes_of, scores_of, with_earlier

import danet
from danet.calibration.choice import CANDIDATES, choose_alarm, choose_detection_score
from danet.calibration.footage import Footage, TopScores
from danet.calibration.footage import SingleFrames as ScoresOfFrames
from danet.data.coco_dataset import load_coco
from danet.data.frame_sources import open_source
from danet.data.importers.svanstrom import Video, find_videos
from danet.data.importers.svanstrom_labels import CLASSES, read_labels
from danet.detections import Detections
from danet.evaluation.alarm_metrics import AlarmedVideo, first_alarm_delays, summarize_alarms
from danet.evaluation.bootstrap import Estimate
from danet.evaluation.tracking_metrics import TrackedVideo, TrackingCounts, count_tracking, link_truth
from danet.inference.stream import DetectionStream
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.tracks import Tracks
from danet.utils.files import write_json

MIN_SCORE = 0.1
IOU = 0.3
FPS = 30.0
SCORE = 0.5
"""Threshold of the single-frame detections, the default of ``danet detect``."""
PRECISIONS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Precisions in the recordings of TUNE.json at which the recall is measured."""
PER_HOUR = 1.0
"""False alarms per hour for which the thresholds of alarms are chosen, the default of ``danet calibrate``."""
GROUPS = ("all_videos", "drone_videos")
SINGLE, DANET, DANET_EARLIER = "single frames", "danet", "danet, with the frames before confirmation"


def detect(folder: Path, names: Sequence[str], out: Path, weights: str | None) -> None:
    """Stores the detections of every frame: rows of frame, x0, y0, x1, y1, score, label."""
    torch.set_num_threads(1)
    detector = danet.load(weights, score_threshold=MIN_SCORE, classes=["all"], dtype=torch.float32, polarity="white")
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


@dataclass
class Tracked:
    """One video, and the tracks of each method in each of its frames."""

    video: Video
    truth: list[np.ndarray]
    """float64 ``[G, 4]`` of each frame: the drones."""
    found: list[Detections]
    tracks: dict[str, list[Tracks]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU time of each method."""

    @property
    def shows_target(self) -> bool:
        return self.video.category == TARGET


def track(video: Video, detections: Path, makers: dict[str, Callable[[], Any]]) -> Tracked:
    """Runs all methods on a video."""
    labels = read_labels(video.path.with_name(f"{video.name}_LABELS.mat"))
    truth = [frame.get(TARGET, np.zeros((0, 4))) for frame in labels]
    result = Tracked(video, truth, stored(detections / f"{video.name}.npz"))
    methods = {name: make() for name, make in makers.items()}
    result.tracks = {name: [] for name in makers}
    for frame, found in zip(open_source(video.path), result.found, strict=True):
        for name, method in methods.items():
            result.tracks[name].append(method.update(frame, found))
    result.seconds = {name: method.seconds for name, method in methods.items()}
    result.tracks[DANET_EARLIER] = with_earlier(result.tracks[DANET])
    return result


def summarize_tracks(videos: Sequence[Tracked], method: str) -> dict[str, Any]:
    """Metrics of tracks over all videos, and over those with a drone."""
    counts: dict[str, TrackingCounts] = {}
    for each in videos:
        tracks = each.tracks[method]
        ids = [np.array(one.ids, np.int64) for one in tracks]
        video = TrackedVideo(link_truth(each.truth), each.truth, ids, list(map(boxes_of, tracks)), each.video.name)
        mine = count_tracking(video, threshold=IOU)
        for group in GROUPS if each.shows_target else GROUPS[:1]:
            counts[group] = counts[group] + mine if group in counts else mine
    return {group: each.to_json() for group, each in counts.items()}


def curves(videos: Sequence[Tracked], method: str) -> dict[str, RecallCurve]:
    """Precision and recall by the threshold of the score."""
    result = {group: RecallCurve(IOU) for group in GROUPS}
    for each in videos:
        if method == SINGLE:
            drones = [one[one.labels == 0] for one in each.found]
            frames = [(one.boxes.numpy(), one.scores.numpy()) for one in drones]
        else:
            frames = [(boxes_of(one), scores_of(one)) for one in each.tracks[method]]
        for group in GROUPS if each.shows_target else GROUPS[:1]:
            result[group].add(frames, each.truth)
    return result


def measure_recall(tune: Sequence[Tracked], val: Sequence[Tracked]) -> dict[str, Any]:
    """Recall per frame at thresholds that give PRECISIONS in ``tune``.

    For tracks, ``single_frames`` is the largest recall of single frames with at least the same precision in ``val``,
    which is read from the curve of ``val``.
    """
    single, result = curves(val, SINGLE), {}
    for method in (SINGLE, DANET, DANET_EARLIER):
        of_tune, of_val = curves(tune, method), curves(val, method)
        result[method] = {group: {} for group in GROUPS}
        for precision in PRECISIONS:
            chosen = of_tune["all_videos"].find(precision=precision)
            for group in GROUPS if chosen is not None else ():
                point = of_val[group].at(chosen["threshold"])
                row = {"tune": of_tune[group].at(chosen["threshold"]), "val": point}
                if method != SINGLE:
                    row["single_frames"] = single[group].find(precision=point["precision"])
                result[method][group][f"{precision:g}"] = row
        result[method]["curve"] = {
            group: {f"{precision:g}": of_val[group].find(precision=precision) for precision in PRECISIONS}
            for group in GROUPS
        }
    return result


def choose_alarms(tune: Sequence[Tracked], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The alarm options that ``danet calibrate`` chooses on the videos without a drone; for single frames the score."""
    others = [each for each in tune if not each.shows_target]
    frames, hours = sum(len(each.found) for each in others), sum(len(each.found) for each in others) / FPS / 3600
    result: dict[str, dict[str, Any]] = {}
    for method in methods:
        if method == SINGLE:
            score = choose_detection_score(
                Footage(len(others), frames, hours, {}, list(map(scores_of_frames, others))), PER_HOUR, pause=pause()
            )
            result[method] = {"score": score}
            continue
        found = {}
        for hits, window in CANDIDATES:
            collector = TopScores(AlarmOptions(hits=hits, window=window))
            for each in others:
                for index, tracks in enumerate(each.tracks[method]):
                    collector.update(tracks, seconds=index / FPS, file=each.video.name)
                collector.finish()
            found[hits, window] = sorted(collector.found, reverse=True)
        chosen = choose_alarm(Footage(len(others), frames, hours, found, []), PER_HOUR, CANDIDATES)[0]
        result[method] = {"score": chosen.score, "hits": chosen.hits, "window": chosen.window}
    return result


def scores_of_frames(video: Tracked) -> ScoresOfFrames:
    """The best score of a drone in each frame with one."""
    result = ScoresOfFrames(video.video.name)
    for index, found in enumerate(video.found):
        scores = found.scores[found.labels == 0]
        if len(scores):
            result.seconds.append(index / FPS)
            result.scores.append(float(scores.max()))
    return result


def pause() -> float:
    """Detections of single frames that follow each other within these seconds are one alarm."""
    return AlarmOptions().end


def summarize(videos: Sequence[Tracked], method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Alarms with these options: delays in drone videos and false alarms in the others."""
    alarmed = []
    for each in videos:
        if method == SINGLE:
            starts = [alarm.seconds for alarm in scores_of_frames(each).false_alarms(options["score"], pause=pause())]
        else:
            alarms, starts = Alarms(AlarmOptions(**options)), []
            for index, tracks in enumerate(each.tracks[method]):
                events = alarms.update(tracks, seconds=index / FPS)
                starts += [event.time for event in events if event.kind == "start"]
        seconds = len(each.found) / FPS
        begin = next((index / FPS for index, boxes in enumerate(each.truth) if len(boxes)), 0.0)
        after = tuple(start - begin for start in starts if start >= begin)
        alarmed.append(AlarmedVideo(each.video.name, each.video.category, seconds, after, each.shows_target))
    return {"options": options, "first_alarms": first_alarm_delays(alarmed), **summarize_alarms(alarmed)}


def measure(folder: Path, names: Sequence[str], tune_names: Sequence[str], detections: Path) -> dict[str, Any]:
    """Metrics of all methods on the videos ``names``, with thresholds chosen on ``tune_names``."""
    makers: dict[str, Callable[[], Any]] = {
        SINGLE: lambda: SingleFrames(SCORE),
        DANET: lambda: Danet(TrackerOptions()),
    }
    try:
        import trackers  # noqa: F401

        makers |= {"ByteTrack": lambda: Public("ByteTrackTracker"), "OC-SORT": lambda: Public("OCSORTTracker")}
    except ImportError:
        print("the package trackers is not installed: ByteTrack and OC-SORT are left out")
    known = {video.name: video for video in find_videos(folder, "all", quiet=True)}
    val, tune = ([track(known[name], detections, makers) for name in each] for each in (names, tune_names))
    defaults = AlarmOptions().complete()
    default = {"score": defaults.score, "hits": defaults.hits, "window": defaults.window}
    chosen = choose_alarms(tune, list(makers)) if tune else {}
    frames = sum(len(each.found) for each in val)
    methods: dict[str, Any] = {}
    for method in (*makers, DANET_EARLIER):
        methods[method] = summarize_tracks(val, method)
        if method not in makers:
            continue
        methods[method]["milliseconds_per_frame"] = 1e3 * sum(each.seconds[method] for each in val) / frames
        options = {"default": default if method != SINGLE else {"score": SCORE}}
        if method in chosen:
            options["chosen_on_tune"] = chosen[method]
        methods[method]["alarms"] = {name: summarize(val, method, each) for name, each in options.items()}
        methods[method]["alarms_of_tune_videos"] = {
            name: summarize(tune, method, each) for name, each in options.items() if tune
        }
    return {
        "videos": sorted(names),
        "tune_videos": sorted(tune_names),
        "frames": frames,
        "iou": IOU,
        "methods": methods,
        "recall": measure_recall(tune, val),
    }


def plain(value: object) -> object:
    """Replaces estimates by dicts, for JSON."""
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def show(result: dict[str, Any]) -> None:
    """Prints the metrics."""
    for method, content in result["methods"].items():
        scores = content.get("drone_videos", content["all_videos"])
        cost = f"  {content['milliseconds_per_frame']:.2f} ms" if "milliseconds_per_frame" in content else ""
        print(
            f"{method}: HOTA {scores['hota']:.3f}  IDF1 {scores['idf1']:.3f}  MOTA {scores['mota']:.3f}  "
            f"switches {scores['identity_switches']}  recall {content['all_videos']['recall']:.3f}  "
            f"precision {content['all_videos']['precision']:.3f}{cost}"
        )
        for name, alarms in [*content.get("alarms", {}).items(), *content.get("alarms_of_tune_videos", {}).items()]:
            false = alarms["false_alarms"].get("any", {"videos_with_alarm": 0, "videos": 0, "alarms": 0})
            print(
                f"  alarms {name} {alarms['options']}: within 1 s {alarms['detected']}/{alarms['videos']}  "
                f"other videos with alarm {false['videos_with_alarm']}/{false['videos']} ({false['alarms']} alarms)"
            )
    for method, groups in result["recall"].items():
        for group in GROUPS:
            for precision, row in groups[group].items():
                line = "  ".join(
                    f"{name} {point['recall']:.4f} @ {point['precision']:.4f} ({point['threshold']:.3f})"
                    for name, point in row.items()
                    if point is not None
                )
                print(f"{method}, {group}, precision {precision}: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["detect", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("detections", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--weights", help="weights of detect; by default the pretrained detector")
    parser.add_argument("--videos_of", help="COCO json; its videos instead of those of --split")
    parser.add_argument("--tune", help="COCO json of the recordings on which measure chooses the thresholds")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    def videos_of(path: str) -> list[str]:
        return sorted({str(record.video) for record in load_coco(path).records})

    if arguments.videos_of is not None:
        names = videos_of(arguments.videos_of)
    else:
        names = [video.name for video in find_videos(arguments.folder, arguments.split, quiet=True)]
    if arguments.step == "detect":
        detect(arguments.folder, names, arguments.detections, arguments.weights)
        return
    tune = [] if arguments.tune is None else videos_of(arguments.tune)
    if common := set(names) & set(tune):
        parser.error(f"--tune: holds videos that are measured, such as {min(common)}")
    is_stored = [[name for name in each if (arguments.detections / f"{name}.npz").exists()] for each in (names, tune)]
    result = measure(arguments.folder, *is_stored, arguments.detections)
    show(result)
    if arguments.out is not None:
        write_json(arguments.out, plain(result))


if __name__ == "__main__":
    main()
