from dataclasses import replace

import numpy as np
import pytest
from detections import record

from danet.evaluation.matching import CRITERIA, IGNORED, flatten, match
from danet.evaluation.tracking_metrics import TrackedVideo, count_tracking, drop_ignored, link_truth


def random_video(seed, frames=40, targets=4):
    """Targets that move, with jitter, misses, false alarms and exchanged numbers."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, 200, (targets, 2)), rng.normal(0, 3, (targets, 2))
    number = np.arange(targets) * 3 + 1
    truth_ids, truth_boxes, ids, boxes = [], [], [], []
    for _ in range(frames):
        place = place + speed
        present = rng.random(targets) < 0.9
        corners = np.concatenate([place, place + np.array([12, 8])], 1)
        # One target is always there: TrackEval leaves out frames without any track when it counts fragmentations.
        fixed = np.array([[300.0, 300, 310, 310]])
        truth_ids.append(np.concatenate([np.arange(targets)[present] + 10, [99]]))
        truth_boxes.append(np.concatenate([corners[present], fixed]))
        if rng.random() < 0.1:
            number = rng.permutation(number)
        seen = present & (rng.random(targets) < 0.85)
        stray = rng.uniform(0, 200, (int(rng.integers(0, 2)), 2))
        found = corners[seen] + rng.normal(0, 1.2, (int(seen.sum()), 4))
        boxes.append(np.concatenate([found, np.concatenate([stray, stray + 10], 1), fixed]))
        ids.append(np.concatenate([number[seen], 100 + rng.permutation(3)[: len(stray)], [999]]))
    return TrackedVideo(truth_ids, truth_boxes, ids, boxes, f"video {seed}")


def public_metrics(video, threshold):
    """The metrics of TrackEval."""
    metrics = pytest.importorskip("trackeval.metrics", reason="needs pip install sn-trackeval")
    from danet.boxes import iou

    def numbered(ids):
        known = np.unique(np.concatenate(ids))
        return [np.searchsorted(known, each) for each in ids], len(known)

    truth, truths = numbered(video.truth_ids)
    tracks, count = numbered(video.ids)
    data = {
        "num_gt_ids": truths,
        "num_tracker_ids": count,
        "num_gt_dets": sum(map(len, truth)),
        "num_tracker_dets": sum(map(len, tracks)),
        "num_timesteps": len(truth),
        "gt_ids": truth,
        "tracker_ids": tracks,
        "similarity_scores": [
            iou(a.reshape(-1, 1, 4), b.reshape(1, -1, 4)) for a, b in zip(video.truth_boxes, video.boxes, strict=True)
        ],
    }
    options = {"THRESHOLD": threshold, "PRINT_CONFIG": False}
    return (
        metrics.HOTA().eval_sequence(data)
        | metrics.CLEAR(options).eval_sequence(data)
        | metrics.Identity(options).eval_sequence(data)
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_metrics_equal_trackeval(seed, threshold, monkeypatch):
    for name, kind in (("float", float), ("int", int), ("bool", bool)):  # removed from numpy after TrackEval
        if not hasattr(np, name):
            monkeypatch.setattr(np, name, kind, raising=False)
    video = random_video(seed)
    expected = public_metrics(video, threshold)
    counts = count_tracking(video, threshold=threshold)
    assert counts.hota == pytest.approx(np.mean(expected["HOTA"]), abs=1e-12)
    assert counts.to_json()["assa"] == pytest.approx(np.mean(expected["AssA"]), abs=1e-12)
    assert counts.to_json()["deta"] == pytest.approx(np.mean(expected["DetA"]), abs=1e-12)
    assert counts.mota == pytest.approx(expected["MOTA"], abs=1e-12)
    assert counts.idf1 == pytest.approx(expected["IDF1"], abs=1e-12)
    assert (counts.switches, counts.fragmentations) == (expected["IDSW"], expected["Frag"])
    assert 0.1 < counts.hota < 0.9 and counts.switches > 0 and counts.fragmentations > 0


def constant(ids, *, found=None):
    """One target that stands still; the track has these numbers, 0 for none."""
    box = np.array([[10.0, 10, 20, 20]])
    none = np.zeros((0, 4))
    return TrackedVideo(
        [np.array([1])] * len(ids),
        [box] * len(ids),
        [np.array([i] if i else [], np.int64) for i in ids],
        [box if i else none for i in ids],
    )


def test_perfect_track():
    counts = count_tracking(constant([5] * 10))
    assert counts.hota == counts.mota == counts.idf1 == counts.recall == counts.precision == 1.0


def test_one_identity_switch_in_the_middle():
    counts = count_tracking(constant([5] * 5 + [6] * 5))
    assert (counts.switches, counts.fragmentations, counts.mota, counts.idf1) == (1, 0, 0.9, 0.5)
    assert counts.hota == pytest.approx(np.sqrt(0.5))


def test_one_gap():
    counts = count_tracking(constant([5] * 4 + [0] * 2 + [5] * 4))
    assert (counts.switches, counts.fragmentations, counts.mota) == (0, 1, 0.8)
    assert counts.idf1 == pytest.approx(16 / 18)


def test_counts_of_videos_add_up():
    one, other = count_tracking(constant([5] * 10)), count_tracking(constant([0] * 10))
    both = one + other
    assert (both.objects, both.hits, both.misses, both.recall) == (20, 10, 10, 0.5)
    assert both.hota == pytest.approx(np.sqrt(0.5))


def test_empty_video():
    counts = count_tracking(TrackedVideo([], [], [], []))
    assert (counts.hota, counts.mota, counts.idf1) == (0.0, 0.0, 0.0)


def test_number_twice_in_a_frame_is_refused():
    box = np.zeros((2, 4))
    with pytest.raises(ValueError, match="clip frame 0 holds a number of a track twice"):
        TrackedVideo([np.array([1, 2])], [box], [np.array([3, 3])], [box], "clip")


def test_link_truth_keeps_crossing_boxes_apart_and_begins_anew_after_a_jump():
    frames = [np.array([[x, 0, x + 10, 10], [100 - x, 30, 110 - x, 40.0]]) for x in range(0, 100, 4)]
    frames += [np.array([[200.0, 200, 210, 210]])]
    ids = link_truth(frames)
    assert all(each.tolist() == [1, 2] for each in ids[:-1]) and ids[-1].tolist() == [3]


def test_link_truth_widens_the_gate_by_the_gap_between_annotated_frames():
    every = [np.array([[x, 0, x + 4, 4], [x, 200, x + 4, 204.0]]) for x in range(0, 200, 5)]
    numbers = list(range(0, 40, 10))  # the targets move by 50 pixels, 12.5 sizes, from one annotated frame to the next
    strided = [every[number] for number in numbers]
    assert [ids.tolist() for ids in link_truth(strided, frames=numbers)] == [[1, 2]] * 4
    assert [ids.tolist() for ids in link_truth(strided)] == [[1, 2], [3, 4], [5, 6], [7, 8]], "without gaps, a jump"


def test_link_truth_uses_the_gap_before_each_frame():
    frames = [np.array([[x, 0, x + 4, 4.0]]) for x in (0, 50, 100)]
    assert [ids.tolist() for ids in link_truth(frames, frames=[0, 10, 11])] == [[1], [1], [2]]


@pytest.mark.parametrize(
    ("frames", "message"), [([0], "one entry per frame, got 1 for 2"), ([3, 3], "must ascend"), ([3, 1], "must ascend")]
)
def test_link_truth_refuses_invalid_frame_numbers(frames, message):
    with pytest.raises(ValueError, match=message):
        link_truth([np.zeros((0, 4))] * 2, frames=frames)


def test_drop_ignored_keeps_what_covers_an_object_or_lies_outside():
    region = np.array([[0.0, 0, 50, 50]])
    truth = np.array([[10.0, 10, 20, 20]])
    boxes = np.array(
        [
            [11.0, 10, 21, 20],  # covers the object
            [10.0, 10, 19, 20],  # covers it better, so that the box before is free
            [30.0, 30, 40, 40],  # in the region
            [46.0, 0, 56, 10],  # 40 % in the region
            [45.0, 20, 55, 30],  # 50 % in the region
            [80.0, 80, 90, 90],  # outside
        ]
    )
    none = np.zeros((0, 4))
    two_frames = TrackedVideo(
        [np.array([1]), np.array([1])], [truth, truth], [np.arange(6), np.arange(6)], [boxes, boxes]
    )
    dropped = drop_ignored(two_frames, [region, none], threshold=0.5)
    assert [ids.tolist() for ids in dropped.ids] == [[1, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert np.array_equal(dropped.boxes[0], boxes[[1, 3, 5]])
    assert (count_tracking(two_frames).false_alarms, count_tracking(dropped).false_alarms) == (10, 7)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_drop_ignored_follows_the_detection_metrics(threshold):
    """Boxes of tracks are removed where the matching of detections ignores them; without objects, both agree."""
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 100, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 40, (200, 2))], 1)
    regions = np.array([[0.0, 0, 40, 40], [50, 50, 110, 80]])
    video = TrackedVideo([np.zeros(0, np.int64)], [np.zeros((0, 4))], [np.arange(200)], [boxes])
    kept = drop_ignored(video, [regions], threshold=threshold).ids[0]
    criterion = replace(CRITERIA["iou50"], threshold=threshold, strict=threshold == 0)
    truth = record(regions, ignore=[True, True])
    data = flatten([truth], [(boxes, np.linspace(0.9, 0.1, 200), np.zeros(200, np.int64))], ["drone"])["drone"]
    assert kept.tolist() == np.flatnonzero(match(data, criterion).outcome != IGNORED).tolist()
    assert 0 < len(kept) < 200
