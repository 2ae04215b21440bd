import gc
import json
import tracemalloc

import numpy as np
import pytest
from moving_targets import detections

from danet.data.video import Frame
from danet.evaluation.track_evaluation import read_mot
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.distance import DistanceEstimator
from danet.tracking.track_files import TrackFiles
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.utils.errors import UserError


def test_files_grow_with_every_frame(tmp_path):
    jsonl, table, mot = (tmp_path / name for name in ("t.jsonl", "t.csv", "clip.txt"))
    tracker = Tracker(TrackerOptions(camera_motion=False))
    with TrackFiles(table, jsonl) as files, files.source(mot):
        for index in range(6):
            tracks = tracker.update(detections([[20 + index, 30]]), seconds=index / 30)
            files.add(Frame("a.mp4", index, None, index / 30), tracks)
            assert jsonl.read_text().count("\n") == index + 1
            assert table.read_text().count("\n") - 1 == max(0, index - 1)
            assert mot.read_text().count("\n") == (0 if index < 2 else index + 1), "with the frames before confirmation"
    assert json.loads(jsonl.read_text().splitlines()[-1])["tracks"][0]["id"] == 1
    assert files.paths == [table, jsonl, mot] and dict(files.ids) == {"drone": 1} and files.boxes == 4


def test_mot_text_has_the_detections_before_confirmation(tmp_path):
    """The target is missed in frame 12, and confirmed in frame 14; frame 11 was dropped by a live source."""
    tracker = Tracker(TrackerOptions(camera_motion=False))
    with TrackFiles(None, None) as files, files.source(tmp_path / "clip.txt"):
        for index in (9, 10, 12, 13, 14, 15):
            places = [] if index == 12 else [[20 + index, 30]]
            found = detections(places, scores=[0.5] * len(places))
            files.add(Frame("a.mp4", index, None, index / 30), tracker.update(found, seconds=index / 30))
    rows = read_mot(tmp_path / "clip.txt")
    assert sorted(rows) == [9, 10, 13, 14, 15], "no box in frame 12, in which the target was not detected"
    assert {number for row in rows.values() for number, _ in row} == {1}
    assert [row[0][1][0] for _, row in sorted(rows.items())] == [17 + index for index in (9, 10, 13, 14, 15)]


def test_boxes_before_confirmation_are_not_written_into_another_source(tmp_path):
    tracker = Tracker(TrackerOptions(camera_motion=False))
    with TrackFiles(None, None) as files:
        for name in ("a", "b"):
            with files.source(tmp_path / f"{name}.txt"):
                tracker.begin_source()
                for index in range(2 if name == "a" else 5):
                    tracks = tracker.update(detections([[20 + index, 30]]), seconds=index / 30)
                    files.add(Frame(f"{name}.mp4", index, None, index / 30), tracks)
    assert (tmp_path / "a.txt").read_text() == "" and sorted(read_mot(tmp_path / "b.txt")) == [0, 1, 2, 3, 4]


def traced_memory():
    """Bytes in use; the collection empties Python's lists of free tuples and floats, which fill up over a long run."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("frames", [500, pytest.param(36_000, marks=pytest.mark.long)])
def test_memory_is_constant_in_long_runs(tmp_path, frames):
    """The long run is ten hours at one frame per second; targets come and go. Python counts its memory."""
    tracker, alarms = Tracker(TrackerOptions(camera_motion=False)), Alarms(AlarmOptions(score=0.2))
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        with TrackFiles(None, tmp_path / "t.jsonl") as files, files.source(tmp_path / "t.txt"):
            start = 0
            for index in range(frames):
                place = [[20 + index % 50, 30]] if index % 60 < 50 else []
                tracks = tracker.update(detections([*place, *rng.uniform(0, 300, (1, 2))]), seconds=float(index))
                alarms.update(tracks, seconds=float(index))
                files.add(Frame("camera0", index, None, float(index)), tracks)
                if index == 200:
                    start = traced_memory()
            # A growing file remembers the ends of its last records, at most 1024 of 32 bytes.
            assert traced_memory() - start < 200_000
    finally:
        tracemalloc.stop()
    assert sum(files.ids.values()) > 2 and alarms.started > 2


def test_distances_are_in_the_json_lines(tmp_path):
    tracker, estimator = Tracker(TrackerOptions(camera_motion=False)), DistanceEstimator(0.35, 1200.0)
    rng = np.random.default_rng(0)
    with TrackFiles(None, tmp_path / "t.jsonl") as files, files.source(None):
        for index in range(30):
            found = detections([[20, 30]], size=(6.0 * np.exp(rng.normal(0, 0.1)), 4.0))
            tracks = tracker.update(found, seconds=index / 30)
            files.add(Frame("a.mp4", index, None, index / 30), tracks, list(map(estimator.estimate, tracks)))
    (track,) = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[-1])["tracks"]
    assert track["distance"] == pytest.approx(70.0, rel=0.3)
    assert 0.02 < track["distance_error"] / track["distance"] < 0.2


def test_distance_needs_positive_values():
    with pytest.raises(UserError, match="--focal_px must be positive, got 0"):
        DistanceEstimator(0.35, 0)
