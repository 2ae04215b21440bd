import json

import numpy as np
from moving_targets import detections

from danet.data.video import Frame
from danet.tracking.track_files import TrackFiles
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions


def test_files_grow_with_every_frame(tmp_path):
    jsonl, table, mot = (tmp_path / name for name in ("t.jsonl", "t.csv", "clip.txt"))
    tracker = Tracker(TrackerOptions(camera_motion=False))
    with TrackFiles(table, jsonl) as files, files.source(mot):
        for index in range(6):
            tracks = tracker.update(detections([[20 + index, 30]]), seconds=index / 30)
            files.add(Frame("a.mp4", index, None, index / 30), tracks)
            assert jsonl.read_text().count("\n") == index + 1
            assert mot.read_text().count("\n") == table.read_text().count("\n") - 1 == max(0, index - 1)
    assert json.loads(jsonl.read_text().splitlines()[-1])["tracks"][0]["id"] == 1
    assert files.paths == [table, jsonl, mot] and dict(files.ids) == {"drone": 1} and files.boxes == 4


def test_ten_hours_take_no_more_memory_than_one_minute(tmp_path):
    """Ten hours at one frame per second; targets come and go. Memory is counted by Python, after the first minute."""
    import tracemalloc

    tracker = Tracker(TrackerOptions(camera_motion=False))
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        with TrackFiles(None, tmp_path / "t.jsonl") as files, files.source(tmp_path / "t.txt"):
            start = 0
            for index in range(2000):  # of 36,000; the long test of the command runs all
                place = [[20 + index % 50, 30]] if index % 60 < 50 else []
                tracks = tracker.update(detections([*place, *rng.uniform(0, 300, (1, 2))]), seconds=float(index))
                files.add(Frame("camera0", index, None, float(index)), tracks)
                if index == 600:
                    start = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - start < 200_000
    finally:
        tracemalloc.stop()
    assert sum(files.ids.values()) > 5
