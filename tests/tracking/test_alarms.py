import json

import numpy as np
import pytest

from danet.data.video import Frame
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.tracking.alarm_options import AlarmOptions, read_zones
from danet.tracking.alarms import Alarms, crop_around
from danet.tracking.tracks import Track, Tracks
from danet.utils.errors import UserError

FPS = 30


def track(number=1, centre=(50.0, 40.0), *, score=0.8, name="drone", detected=True, displacement=0.0):
    x, y = centre
    box = (x - 3.0, y - 2.0, x + 3.0, y + 2.0)
    return Track(number, box, score, 0, name, (0.0, 0.0), detected, 5, 0.5, displacement=displacement)


def run(alarms, frames):
    """Feeds lists of tracks; returns (frame, kind, track) of all events."""
    events = []
    for index, items in enumerate(frames):
        found = alarms.update(Tracks(items), seconds=index / FPS, file="a.mp4", frame=index)
        events += [(index, event.kind, event.track) for event in found]
    return events


def test_alarm_starts_after_m_of_n_frames_and_ends_after_a_pause():
    alarms = Alarms(AlarmOptions(hits=3, window=5, end=0.5))
    frames = [[track()], [], [track()], [], [track()]] + [[track()]] * 10 + [[]] * 30
    assert run(alarms, frames) == [(4, "start", 1), (30, "end", 1)]


CALIBRATED = CalibratedThresholds(0.7, 0.6, 8, 12, ("drone",), 1.0, 3.5, 0, 0.86, {"iou": 0.5})


@pytest.mark.parametrize(
    ("given", "reported", "expected"),
    [
        ({}, ["drone"], (8, 12, 0.6, ["drone"])),
        ({"score": 0.9}, ["drone"], (8, 12, 0.9, ["drone"])),
        ({"hits": 3, "window": 5}, ["drone"], (3, 5, 0.6, ["drone"])),
        ({}, ["drone", "bird"], (8, 12, 0.6, ["drone"])),  # alarms of birds were not measured
        ({}, ["bird"], (6, 10, 0.5, None)),
        ({"classes": ["bird"]}, ["drone", "bird"], (6, 10, 0.5, ["bird"])),
        ({"classes": ["drone", "bird"]}, ["drone", "bird"], (8, 12, 0.6, ["drone", "bird"])),
    ],
)
def test_options_that_are_not_given_come_from_calibrated_weights(given, reported, expected):
    complete = AlarmOptions(**given).complete(CALIBRATED, reported)
    assert (complete.hits, complete.window, complete.score, complete.classes) == expected


@pytest.mark.parametrize(
    ("given", "settings", "end"),
    [
        ({}, {"iou": 0.5}, "(weights); danet calibrate counted 0 false alarms in 3.5 h without targets, "
                           "at most 0.86 per hour with 95 % confidence"),
        ({}, {"iou": 0.4}, "(weights); the rate that danet calibrate measured does not hold with your --iou"),
        ({"score": 0.9}, {}, "does not hold with your --alarm.score"),
        ({"classes": ["drone", "bird"]}, {}, "does not hold with your --alarm.classes"),
        ({"end": 0.1}, {}, "does not hold with your --alarm.end"),
        ({"end": 5.0}, {}, "with 95 % confidence"),
        ({"classes": ["bird"]}, {}, "alarms: score from 0.5 on (default), detections in 6 of 10 frames (default)"),
    ],
)  # fmt: skip
def test_output_states_where_the_options_come_from(given, settings, end):
    options = AlarmOptions(**given)
    assert options.complete(CALIBRATED, ["drone", "bird"]).describe(options, CALIBRATED, settings).endswith(end)


def test_hits_that_do_not_fit_the_window_of_the_weights_are_refused():
    with pytest.raises(UserError, match=r"--alarm.hits must be at most --alarm.window \(12\), got 13"):
        AlarmOptions(hits=13).complete(CALIBRATED, ["drone"])


def test_too_few_hits_in_the_window_raise_nothing():
    alarms = Alarms(AlarmOptions(hits=3, window=5))
    assert run(alarms, [[track()], [], [], [track()], [], []] * 5) == []


def test_predicted_boxes_do_not_count():
    assert run(Alarms(AlarmOptions(hits=2, window=5)), [[track(detected=False)]] * 20) == []


@pytest.mark.parametrize(
    ("options", "quiet", "loud"),
    [
        ({"score": 0.7}, track(score=0.6), track(score=0.75)),
        ({"classes": ["drone"]}, track(name="bird"), track()),
        ({"displacement": 20.0}, track(displacement=19.0), track(displacement=21.0)),
    ],
)
def test_conditions(options, quiet, loud):
    assert run(Alarms(AlarmOptions(hits=2, window=2, **options)), [[quiet]] * 9) == []
    assert run(Alarms(AlarmOptions(hits=2, window=2, **options)), [[loud]] * 9) == [(1, "start", 1)]


def test_zones(tmp_path):
    path = tmp_path / "zones.json"
    corner = [[0, 0], [30, 0], [30, 30], [0, 30]]
    path.write_text(json.dumps([corner, {"name": "gate", "points": [[40, 30], [60, 30], [60, 60], [40, 60]]}]))
    alarms = Alarms(AlarmOptions(hits=2, window=3, zones=str(path)))
    assert run(alarms, [[track(1, (80, 40)), track(2, (10, 10))]] * 5) == [(1, "start", 2)]
    entered = [[track(1, (80.0 - 10 * index, 40.0))] for index in range(6)]  # inside from the third frame on
    alarms = Alarms(AlarmOptions(hits=2, window=3, zones=str(path)))
    events = [alarms.update(Tracks(items), seconds=i / FPS) for i, items in enumerate(entered)]
    assert [len(each) for each in events] == [0, 0, 0, 1, 0, 0] and events[3][0].zone == "gate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "zones must be a list of polygons, got dict"),
        ("[]", "zones must be a list of polygons"),
        ("[[[0, 0], [1, 1]]]", "zone 1 must be a list of at least three points"),
        ('[{"name": "a", "points": [[0, 0], [1, 1], [2, "x"]]}]', "a must be a list of at least three points"),
        ("[[[0, 0], [1, 1], [.inf, 2]]]", "zone 1 must be a list"),
    ],
)
def test_invalid_zones_are_refused(tmp_path, text, message):
    (tmp_path / "zones.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_zones(str(tmp_path / "zones.yaml"))


def with_zones(tmp_path, *zones, **options):
    (tmp_path / "zones.json").write_text(json.dumps(zones))
    return Alarms(AlarmOptions(zones=str(tmp_path / "zones.json"), **options))


def square(left, top, side=20):
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


@pytest.mark.parametrize(
    ("left", "top", "is_outside"),
    [(70, 10, False), (100, 10, True), (10, 80, True), (-30, 10, True), (-10, -10, False), (99, 79, False)],
)
def test_zone_outside_of_the_frames_is_refused(tmp_path, left, top, is_outside):
    gate = {"name": "gate", "points": square(0, 0)}  # another zone of this name
    alarms = with_zones(tmp_path, {"name": "gate", "points": square(left, top)}, gate)
    if not is_outside:
        return alarms.check(["drone"], ["drone"], [(100, 80)])
    with pytest.raises(
        UserError, match=r"zones.json: gate must overlap the frames \(100 x 80 pixels\), but lies outside"
    ):
        alarms.check(["drone"], ["drone"], [(100, 80)])


def test_zone_around_a_corner_of_the_frame_is_refused(tmp_path):
    """The rectangle around the points of this L overlaps the frame, and the L does not."""
    around = [[-20, -20], [120, -20], [120, -5], [-5, -5], [-5, 100], [-20, 100]]
    with pytest.raises(UserError, match="zone 1 must overlap the frames"):
        with_zones(tmp_path, around).check(["drone"], ["drone"], [(100, 80)])


def test_zone_must_overlap_the_frames_of_one_source_only(tmp_path):
    alarms = with_zones(tmp_path, square(150, 10), square(10, 10))
    alarms.check(["drone"], ["drone"], [(100, 80), (100, 80), (200, 160)])
    with pytest.raises(UserError, match="zone 1 must overlap the frames \\(100 x 80, 120 x 80 pixels\\)"):
        alarms.check(["drone"], ["drone"], [(120, 80), (100, 80)])


def test_sizes_are_read_only_while_a_zone_is_outside(tmp_path):
    sizes = iter([(100, 80), (200, 160), (300, 240)])
    with_zones(tmp_path, square(150, 10)).check(["drone"], ["drone"], sizes)
    assert next(sizes) == (300, 240)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["drone", "plane"], r"--alarm.classes: 'plane' is no class of the model \(drone, bird\)"),
        (["bird"], "--alarm.classes: 'bird' is not reported and can raise no alarm; reported are drone"),
    ],
)
def test_class_that_cannot_occur_is_refused(classes, message):
    with pytest.raises(UserError, match=message):
        Alarms(AlarmOptions(classes=classes)).check(["drone", "bird"], ["drone"], [(100, 80)])
    Alarms(AlarmOptions(classes=["drone"])).check(["drone", "bird"], ["drone"], [(100, 80)])


def test_events_tell_the_place_and_keep_the_best_crop():
    alarms = Alarms(AlarmOptions(hits=1, window=1))
    images = [np.full((100, 120), level, np.uint8) for level in (10, 20, 30)]
    events = []
    for index, (image, score) in enumerate(zip(images, (0.6, 0.9, 0.7), strict=True)):
        events += alarms.update(
            Tracks([track(score=score)]), seconds=index / FPS, file="b/a.mp4", source="a", frame=index, image=image
        )
    events += alarms.finish()
    start, end = events
    assert (start.crop == 10).all() and (end.crop == 20).all(), "the end has the crop of the highest score"
    assert start.alarm == end.alarm == 1 and end.score == 0.9
    assert start.to_dict() | {"duration": 0} == {
        "event": "start", "alarm": 1, "file": "b/a.mp4", "source": "a", "frame": 0, "time": 0.0, "track": 1,
        "class": "drone", "score": 0.6, "box": [47.0, 38.0, 53.0, 42.0], "zone": None, "duration": 0,
    }  # fmt: skip
    json.dumps(end.to_dict())


def test_every_track_raises_one_alarm():
    alarms = Alarms(AlarmOptions(hits=2, window=3))
    assert run(alarms, [[track(1), track(2, (90, 40))]] * 60) == [(1, "start", 1), (1, "start", 2)]
    assert alarms.started == 2


def test_memory_does_not_grow_with_tracks():
    alarms = Alarms(AlarmOptions(end=0.1))
    run(alarms, [[track(number)] for number in range(3000)])
    assert len(alarms._watched) < 10


@pytest.mark.parametrize("box", [(-5, -5, 3, 3), (95, 95, 130, 130), (0, 0, 100, 100), (50, 50, 50.1, 50.1)])
def test_crop_at_the_edge(box):
    crop = crop_around(np.zeros((100, 100), np.uint16), box)
    assert crop.dtype == np.uint8 and crop.ndim == 3 and min(crop.shape[:2]) > 0


def test_frames_without_time_count_the_default_interval():
    alarms = Alarms(AlarmOptions(hits=2, window=2, end=0.5))
    image = np.zeros((96, 128), np.uint8)
    events = []
    for index in range(30):
        items = [track()] if index < 3 else []
        events += alarms.update_frame(Frame(f"{index}.png", index, image), Tracks(items), source="frames")
    assert [(each.kind, each.source, each.frame) for each in events] == [("start", "frames", 1), ("end", "frames", 15)]
    assert [each.time for each in events] == pytest.approx([0.04, 0.6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hits": 0}, "hits must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"score": 1.1}, "score must lie between 0 and 1, got 1.1"),
        ({"displacement": -1.0}, "displacement must be 0 or more, got -1"),
        ({"end": float("nan")}, "end must be 0 or more, got nan"),
    ],
)
def test_each_option_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=f"--alarm.{message}"):
        AlarmOptions(**options)


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"--alarm.hits must be at most --alarm.window \(3\), got 5"):
        AlarmOptions(hits=5, window=3)


def test_empty_list_of_classes_is_refused():
    with pytest.raises(UserError, match=r"--alarm.classes must name at least one class, got none"):
        AlarmOptions(classes=[])
