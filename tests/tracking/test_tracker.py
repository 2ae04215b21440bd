import time

import cv2
import numpy as np
import pytest
import torch
from moving_targets import CLASSES, detections, follow, straight

from danet.boxes import Detections
from danet.tracking.camera_motion import STILL, Motion
from danet.tracking.tracker import DEFAULT_INTERVAL_S, Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.utils.errors import UserError

FPS = 30
TIMES = np.arange(60) / FPS


def still_tracker(**options):
    return Tracker(TrackerOptions(camera_motion=False, **options))


def assert_one_identity_each(ids, *, first=5):
    """Every target has one id from frame ``first`` on, and no two targets share one."""
    late = ids[first:]
    assert np.all(late != 0), "a target is missing"
    own = [set(column[column > 0]) for column in late.T]
    assert all(len(one) == 1 for one in own), "an identity changes"
    assert len(set.union(*own)) == ids.shape[1], "two targets share an identity"


def test_target_of_four_pixels_keeps_its_identity_where_iou_is_zero():
    centres = straight([[20, 30]], [[240, 60]], TIMES[:30])  # 8 pixels per frame: its boxes never overlap
    ids = follow(still_tracker(), centres, TIMES[:30], size=(2.0, 2.0))
    assert_one_identity_each(ids)
    assert np.all(ids[:2] == 0), "reported only after three detections"


def test_crossing_targets_keep_their_identities():
    centres = straight([[20, 100], [140, 100], [80, 40]], [[60, 0], [-60, 0], [0, 60]], TIMES)
    assert_one_identity_each(follow(still_tracker(), centres, TIMES))


@pytest.mark.parametrize("speed", [0, 60])
def test_misses_of_ten_frames_keep_the_identity(speed):
    present = np.ones((60, 1), bool)
    present[20:30] = present[42:52] = False
    centres = straight([[20, 30]], [[speed, 20]], TIMES)
    ids = follow(still_tracker(coast=1.0), centres, TIMES, present=present)
    assert_one_identity_each(ids)
    # By default a target is reported for 0.2 s without a detection, and then again under its number.
    ids = follow(still_tracker(), centres, TIMES, present=present)
    assert set(ids[5:25, 0]) == set(ids[31:47, 0]) == {1} and set(ids[27:30, 0]) == {0}


def test_low_scores_near_the_prediction_keep_a_track_but_begin_none():
    tracker = still_tracker()
    centres = straight([[20, 30]], [[60, 0]], TIMES)[:, 0]
    for index, place in enumerate(centres):
        score = 0.8 if index < 6 else 0.2
        far = place + np.array([0, 80])
        tracks = tracker.update(detections([place, far], scores=[score, 0.3]), seconds=index / FPS)
    assert tracks.ids == [1] and tracks[0].is_detected and tracks[0].hits == 60


def test_single_false_alarms_are_not_reported():
    rng = np.random.default_rng(0)
    tracker = still_tracker()
    reported = 0
    for index in range(300):  # one with a high score at a random place, in every third frame
        places = rng.uniform(0, 300, (int(index % 3 == 0), 2))
        reported += len(tracker.update(detections(places), seconds=index / FPS))
    assert reported == 0


def test_two_targets_one_pixel_apart_stay_two():
    centres = straight([[50, 50], [53, 50]], [[30, 0], [30, 0]], TIMES)  # boxes of 2 pixels, 1 pixel between them
    assert_one_identity_each(follow(still_tracker(), centres, TIMES, size=(2.0, 2.0), noise=0.15))


def test_200_targets_keep_their_identities_in_time():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(10)), -1).reshape(-1, 2) * 30.0 + 20
    centres = straight(grid, rng.normal(0, 8, (200, 2)), TIMES)
    started = time.process_time()
    ids = follow(still_tracker(), centres, TIMES, noise=0.2)
    assert time.process_time() - started < 20
    assert_one_identity_each(ids)


def test_target_that_stands_still():
    ids = follow(still_tracker(), straight([[20, 30]], [[0, 0]], TIMES), TIMES)
    assert_one_identity_each(ids)


def test_variable_frame_rate_and_dropped_frames():
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.choice([1 / 60, 1 / 30, 1 / 10, 0.3], 80))
    ids = follow(still_tracker(), straight([[20, 30], [20, 60]], [[50, 0], [40, 5]], times), times)
    assert_one_identity_each(ids)


@pytest.mark.parametrize("jump", [-100.0, 0.0, float("nan")])
def test_times_that_do_not_increase_do_not_end_tracks(jump):
    times = TIMES.copy()
    times[30:] = times[30:] + jump - 1 / FPS if jump == jump else np.nan
    ids = follow(still_tracker(), straight([[20, 30]], [[60, 0]], TIMES), times)
    assert_one_identity_each(ids)


def test_frames_without_times_count_the_default_interval():
    tracker = still_tracker()
    for index in range(40):
        tracks = tracker.update(detections([[20 + 2 * index, 30]]))
    assert tracks.ids == [1] and tracks[0].velocity == pytest.approx((2 / DEFAULT_INTERVAL_S, 0), rel=0.02, abs=0.5)
    assert tracks[0].age == pytest.approx(39 * DEFAULT_INTERVAL_S)


def test_a_jump_of_the_time_forward_ends_tracks():
    times = TIMES.copy()
    times[30:] += 60
    ids = follow(still_tracker(), straight([[20, 30]], [[0, 0]], TIMES), times)
    assert set(ids[:30, 0]) == {0, 1} and set(ids[34:, 0]) == {2}


def test_known_motion_of_the_camera_is_taken_out():
    """The camera turns by 25 pixels per frame, left and right; the target moves by one."""
    tracker = still_tracker()
    shift, place = np.zeros(2), np.array([150.0, 100.0])
    for index in range(40):
        step = np.array([25.0, -10.0]) * (1 if index % 8 < 4 else -1)
        shift, place = shift + step, place + np.array([1.0, 0.0])
        motion = Motion(np.column_stack([np.eye(2), step]))
        tracks = tracker.update(detections([place + shift]), seconds=index / FPS, motion=motion)
    assert tracks.ids == [1] and tracks[0].hits == 40
    assert tracks[0].velocity == pytest.approx((30.0, 0.0), abs=3)
    assert tracks[0].displacement == pytest.approx(39.0, abs=2)
    assert np.ptp(np.array(tracks[0].trail)[:, 1]) < 1e-6, "the trail moves with the picture"


def background(seed=0):
    """A scene of clouds and of small structures, darker than a target."""
    rng = np.random.default_rng(seed)
    clouds, detail = (cv2.GaussianBlur(rng.normal(0, 1, (420, 640)), (0, 0), width) for width in (40, 3))
    return np.clip(100 + 40 * clouds / clouds.std() + 10 * detail / detail.std(), 0, 220).astype(np.uint8)


def view(scene, x, y, target):
    image = scene[y : y + 256, x : x + 320].copy()
    cx, cy = (round(float(value)) for value in target)
    image[cy - 2 : cy + 2, cx - 3 : cx + 3] = 255
    return image


@pytest.mark.parametrize("kind", ["pan", "shake"])
def test_panning_and_shaking_camera(kind):
    """The camera's own motion is estimated from the frames; without it, the shaking breaks the track."""
    scene = background()

    def run(tracker):
        rng = np.random.default_rng(1)
        ids = []
        for index in range(50):
            x, y = (5 * index, index) if kind == "pan" else (100 + rng.integers(-40, 41), 80 + rng.integers(-30, 31))
            place = np.array([160.0 + index, 120.0]) - ([0, 0] if kind == "pan" else [x - 100, y - 80])
            image = view(scene, int(x), int(y), place)
            tracks = tracker.update(detections([place + 0.0]), seconds=index / FPS, image=image)
            ids.append(tracks.ids)
        return ids

    ids = run(Tracker())
    assert ids[5:] == [[1]] * 45
    if kind == "shake":
        assert run(still_tracker())[5:] != [[1]] * 45


def test_cut_ends_all_tracks():
    tracker = Tracker()
    for index in range(20):
        scene = background(0 if index < 10 else 1)
        tracks = tracker.update(detections([[50, 50]]), seconds=index / FPS, image=view(scene, 0, 0, (50, 50)))
        if index == 9:
            assert tracks.ids == [1]
        if index == 10:
            assert len(tracks) == 0
    assert tracker.cuts == 1 and tracks.ids == [2]


def test_tight_and_loose_box_of_one_target_give_one_track():
    tracker = still_tracker()
    for index in range(20):
        tight, loose = detections([[50, 50]]), detections([[51, 50]], size=(14.0, 10.0), scores=[0.6])
        both = Detections(*(torch.cat(each) for each in zip(tight._arrays(), loose._arrays(), strict=True)), CLASSES)
        tracks = tracker.update(both, seconds=index / FPS)
    assert tracks.ids == [1] and tracks[0].box == (47.0, 48.0, 53.0, 52.0)


@pytest.mark.parametrize("candidates", [1, 2])
def test_jump_is_followed_only_if_there_is_no_other_choice(candidates):
    """A target of 5 pixels jumps by 12, as at a cut between two shots of the same scene."""
    tracker = still_tracker()
    for index in range(30):
        places = [[50, 50]] if index < 20 else [[62, 50], [50, 62]][:candidates]
        tracks = tracker.update(detections(places), seconds=index / FPS)
    assert (1 in tracks.ids) == (candidates == 1) and len(tracks) == candidates


def test_class_is_decided_over_the_track():
    """Every third detection calls the bird a drone, with a higher score."""
    tracker = still_tracker()
    names = set()
    for index in range(60):
        is_wrong = index % 3 == 2
        found = detections([[20 + index, 30]], scores=[0.7 if is_wrong else 0.5], labels=[0 if is_wrong else 1])
        names |= {track.name for track in tracker.update(found, seconds=index / FPS)}
    assert names == {"bird"}


def test_only_reported_classes_are_returned():
    tracker = Tracker(TrackerOptions(camera_motion=False), classes=["drone"])
    for index in range(10):
        tracks = tracker.update(detections([[20, 30], [90, 30]], labels=[1, 0]), seconds=index / FPS)
    assert [track.name for track in tracks] == ["drone"]


def test_begin_source_ends_tracks_and_never_repeats_a_number():
    tracker = still_tracker()
    for source in range(2):
        tracker.begin_source()
        for index in range(5):
            tracks = tracker.update(detections([[20, 30]]), seconds=index / FPS)
        assert tracks.ids == [source + 1]


def test_empty_frames_and_unusable_boxes():
    tracker = still_tracker()
    assert len(tracker.update(detections([]), seconds=0.0)) == 0
    assert len(tracker.update(detections([[np.nan, 3], [np.inf, 2]]), seconds=0.1)) == 0
    assert len(tracker.update(detections([]), seconds=0.2, motion=Motion(STILL))) == 0


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="high_score must lie between 0 and 1, got 2"):
        TrackerOptions(high_score=2)
    with pytest.raises(UserError, match="min_hits must be at least 1, got 0"):
        TrackerOptions(min_hits=0)
    with pytest.raises(UserError, match=r"confirm must be at most max_evidence \(12\), got 12\.5"):
        TrackerOptions(confirm=12.5)
    with pytest.raises(UserError, match=r"confirm must be at most max_evidence \(3\), got 4"):
        TrackerOptions(max_evidence=3.0)
    assert TrackerOptions(confirm=12.0).confirm == TrackerOptions().max_evidence
