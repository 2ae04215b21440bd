"""Checks the claim of ``danet calibrate`` on other videos than those on which the thresholds were chosen.

    python experiments/tracking.py detect SVANSTROM DETECTIONS --split train     # once; the costly part
    python experiments/tracking.py detect SVANSTROM DETECTIONS --split val
    python experiments/calibration.py SVANSTROM DETECTIONS RESULT.json

The negatives are the videos of birds, airplanes and helicopters in the training split, as far as their detections are
stored. The alarms at the chosen thresholds are then counted in the validation videos, with and without drones. The
weights of the package were trained on most of the negatives, so that false alarms are rarer there than in new footage.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
from tracking import FPS, stored

from danet.calibration.choice import CANDIDATES, choose_alarm, choose_detection_score
from danet.calibration.footage import collect
from danet.calibration.rates import upper_limit
from danet.data.frame_sources import open_source
from danet.data.importers.svanstrom import find_videos
from danet.data.video import Frame
from danet.detections import Detections
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.tracker import Tracker
from danet.tracking.tracks import Tracks
from danet.utils.files import write_json

RATES = (1.0, 30.0, 60.0)
"""False alarms per hour for which thresholds are chosen."""


def track(folder: Path, detections: Path, name: str) -> list[tuple[Frame, Detections, Tracks]]:
    """The frames of a video without their pixels, with the detections and the tracks of drones."""
    tracker, result = Tracker(classes=["drone"]), []
    for frame, found in zip(open_source(folder / f"{name}.mp4"), stored(detections / f"{name}.npz"), strict=True):
        tracks = tracker.update(found, seconds=frame.index / FPS, image=frame.image)
        result.append((Frame(name, frame.index, frame.image[:0], frame.index / FPS), found[found.labels == 0], tracks))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folder", "detections", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    groups: dict[str, list[str]] = {"negatives": [], "other negatives": [], "drones": []}
    for split in ("train", "val"):
        for video in find_videos(arguments.folder, split, quiet=True):
            is_drone = video.category == "drone"
            if (arguments.detections / f"{video.name}.npz").exists() and not (is_drone and split == "train"):
                groups["drones" if is_drone else "negatives" if split == "train" else "other negatives"].append(
                    video.name
                )
    tracked = {name: track(arguments.folder, arguments.detections, name) for names in groups.values() for name in names}

    def videos(group: str) -> Iterator[tuple[str, list[tuple[Frame, Detections, Tracks]]]]:
        return ((name, tracked[name]) for name in groups[group])

    pause = AlarmOptions().end
    footage = {group: collect(videos(group), CANDIDATES) for group in groups}
    result: dict = {"videos": groups, "hours": {group: each.hours for group, each in footage.items()}, "points": []}
    for per_hour in RATES:
        choices = choose_alarm(footage["negatives"], per_hour, CANDIDATES)
        chosen = choices[0]
        score = choose_detection_score(footage["negatives"], per_hour, pause=pause)
        point: dict = {"requested_per_hour": per_hour, "choices": list(map(asdict, choices)), "detection_score": score}
        for group in ("other negatives", "drones"):
            alarms = [each for each in footage[group].tracks[chosen.hits, chosen.window] if each.score >= chosen.score]
            single = [each for each in footage[group].single if each.false_alarms(score, pause=pause)]
            point[group] = {
                "videos": len(groups[group]),
                "alarms": len(alarms),
                "videos_with_alarm": len({each.file for each in alarms}),
                "videos_with_detection": len(single),
            }
        count, hours = point["other negatives"]["alarms"], footage["other negatives"].hours
        point["other negatives"] |= {"per_hour": count / hours, "at_most_per_hour": upper_limit(count, hours)}
        result["points"].append(point)
        negatives, drones = footage["negatives"], point["drones"]
        print(
            f"{per_hour:g} per hour: score {chosen.score:g}, {chosen.hits} of {chosen.window} frames; at most "
            f"{chosen.at_most_per_hour:.3g} per hour in {negatives.hours:.3g} h of {negatives.videos} videos; other "
            f"negatives: {count} alarms in {hours:.3g} h; drones: alarms in "
            f"{drones['videos_with_alarm']} of {drones['videos']} videos; single frames: score {score:g}, drones in "
            f"{drones['videos_with_detection']} videos"
        )
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
