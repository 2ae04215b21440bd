"""A confirmed target gets the weak detections that lead to its first strong one, and no others."""

import numpy as np
import pytest
import torch

from danet.boxes import Detections
from danet.tracking.camera_motion import Motion
from danet.tracking.tracker import Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.weak_detections import MAX_TRACED_FRAMES

WEAK, STRONG = 0.2, 0.8
SIZE = 4.0


def found(*targets):
    """Detections of (x, y, score)."""
    boxes = torch.tensor([[x, y, x + SIZE, y + SIZE] for x, y, _ in targets]).reshape(-1, 4)
    scores = torch.tensor([score for *_, score in targets])
    return Detections(boxes, scores, torch.zeros(len(targets), dtype=torch.int64), ["drone"])


def first_report(frames, **update):
    """The tracks in the first frame with tracks, and its index; ``update``: more arguments of each frame."""
    tracker = Tracker(TrackerOptions(camera_motion=False))
    for index, targets in enumerate(frames):
        more = {name: values[index] for name, values in update.items()}
        tracks = tracker.update(found(*targets), seconds=index / 30, **more)
        if len(tracks):
            return tracks, index
    raise AssertionError("no track")


def moving(count, weak, *, start=(10.0, 20.0), step=(2.0, 1.0)):
    """One target per frame, the first ``weak`` ones with a low score."""
    x, y = start
    return [(x + step[0] * i, y + step[1] * i, WEAK if i < weak else STRONG) for i in range(count)]


def test_weak_detections_before_the_first_strong_one_are_reported():
    (track,), index = first_report([[target] for target in moving(20, weak=8)])
    frames = [index - earlier.frames_ago for earlier in track.earlier]
    assert frames == list(range(index)) and index == 10
    assert [earlier.box[0] for earlier in track.earlier] == [10.0 + 2 * frame for frame in frames]
    assert [earlier.score for earlier in track.earlier[:8]] == pytest.approx([WEAK] * 8)


def test_weak_detections_elsewhere_are_not():
    still = (100.0, 80.0, WEAK)
    (track,), index = first_report([[still, target] for target in moving(20, weak=8)])
    assert len(track.earlier) == index and all(earlier.box[1] < 40 for earlier in track.earlier)


def test_a_frame_without_a_detection_ends_the_search():
    frames = [[target] for target in moving(20, weak=8)]
    frames[4] = []
    (track,), index = first_report(frames)
    assert [index - earlier.frames_ago for earlier in track.earlier] == list(range(5, index))


def test_two_targets_share_no_detection():
    """Both come from the same place, where one weak detection is seen."""
    frames = [[(50.0, 50.0, WEAK)]]
    frames += [[(50.0, 50.0 + 3 * i, STRONG), (50.0, 50.0 - 3 * i, STRONG)] for i in range(3, 12)]
    frames[1:1] = [[(50.0, 53.0, WEAK), (50.0, 47.0, WEAK)], [(50.0, 56.0, WEAK), (50.0, 44.0, WEAK)]]
    tracks, index = first_report(frames)
    boxes = [(index - earlier.frames_ago, earlier.box) for track in tracks for earlier in track.earlier]
    assert len(tracks) == 2 and len(boxes) == len(set(boxes)) and sum(frame == 0 for frame, _ in boxes) == 1


def test_the_motion_of_the_camera_is_taken_out():
    """The target stands still in the scene, and the camera moves by 30 pixels per frame."""
    frames = [[(300.0 - 30 * i, 50.0, WEAK if i < 5 else STRONG)] for i in range(9)]
    pan = Motion(np.array([[1.0, 0.0, -30.0], [0.0, 1.0, 0.0]]))
    (track,), index = first_report(frames, motion=[pan] * 9)
    assert len(track.earlier) == index == 7
    with pytest.raises(AssertionError, match="no track"):
        first_report(frames)  # without the motion, the detections lie outside of the gate


def test_a_cut_ends_the_search():
    motions = [Motion(np.eye(2, 3), is_cut=index == 5) for index in range(20)]
    (track,), index = first_report([[target] for target in moving(20, weak=8)], motion=motions)
    assert [index - earlier.frames_ago for earlier in track.earlier] == list(range(5, index))


def test_a_target_is_traced_back_a_limited_number_of_frames():
    (track,), index = first_report([[target] for target in moving(60, weak=50, step=(0.5, 0.0))])
    assert [index - earlier.frames_ago for earlier in track.earlier] == list(range(50 - MAX_TRACED_FRAMES, index))
