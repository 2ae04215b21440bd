import json

import pytest
from detections import record

from danet.data.coco_dataset import write_coco
from danet.evaluate import main


def frame_of(folder, video, frame, *args, **kwargs):
    """An annotated frame of a video; see ``record`` for the other arguments."""
    one = record(*args, video=video, **kwargs)
    one.path, one.frame = folder / f"{video}_{frame}.png", frame
    one.path.touch()
    return one


def write_dataset(folder, records):
    write_coco(folder / "val.json", records, ["drone", "bird", "ignore"])
    (folder / "tracks").mkdir()
    return folder / "val.json", folder / "tracks"


@pytest.fixture
def dataset(tmp_path):
    """Two videos of 20 frames: a drone that moves, and a bird. Every second frame is annotated."""
    records = [
        frame_of(tmp_path, name, frame, [(10 + frame, 20, 20 + frame, 28)], [category])
        for name, category in (("day", "drone"), ("night", "bird"))
        for frame in range(0, 20, 2)
    ]
    return write_dataset(tmp_path, records)


def write_track(path, frames, number=3):
    path.write_text("".join(f"{f + 1},{number},{10 + f},20,10,8,0.9,-1,-1,-1\n" for f in frames))


def run(data, folder, tmp_path, *more):
    code = main(["--tracks", str(folder), str(data), "--json", str(tmp_path / "m.json"), *more])
    return code, json.loads((tmp_path / "m.json").read_text()) if code == 0 else None


def test_tracks_and_alarms_are_measured(dataset, tmp_path, capsys):
    data, folder = dataset
    write_track(folder / "day.txt", range(4, 20))
    write_track(folder / "night.txt", [])
    events = [
        {"event": "start", "file": "clips/day.mp4", "time": 0.2},
        {"event": "end", "file": "clips/day.mp4", "time": 0.6},
        {"event": "start", "file": "clips/night.mp4", "time": 0.5},
    ]
    (folder / "alarms.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    code, content = run(data, folder, tmp_path)
    assert code == 0
    assert (content["objects"], content["misses"], content["false_alarms"]) == (10, 2, 0), "annotated frames only"
    assert content["recall"] == 0.8 and content["precision"] == 1.0 and content["mota"] == 0.8
    assert content["idf1"] == pytest.approx(16 / 18)
    assert content["first_alarms"] == {"day": 0.2} and content["alarms"]["detected"] == 1
    assert content["alarms"]["false_alarms"]["bird"]["per_hour"]["value"] == pytest.approx(3600 / (19 / 30))
    printed = capsys.readouterr().out
    assert "HOTA" in printed and "(videos: 2, objects: 10)" in printed
    assert "false alarms, bird: 1 in 1 of 1 videos" in printed


def write_alarms(folder, *events):
    for name in ("day", "night"):
        write_track(folder / f"{name}.txt", [])
    lines = [json.dumps({"event": "start", "class": "drone", **event}) + "\n" for event in events]
    (folder / "alarms.jsonl").write_text("".join(lines))


def test_alarm_in_a_folder_of_images_belongs_to_the_video_of_the_folder(dataset, tmp_path, capsys):
    data, folder = dataset
    # Images have no times: what the event states assumes another frame rate.
    write_alarms(folder, {"file": "frames/day/6.png", "source": "day", "frame": 6, "time": 0.24})
    code, content = run(data, folder, tmp_path, "--fps", "10", "--within", "0.6")
    assert code == 0 and content["first_alarms"] == {"day": 0.6} and content["alarms"]["detected"] == 1
    assert "left out" not in capsys.readouterr().out


def test_alarm_of_another_class_counts_neither_as_found_nor_as_false(dataset, tmp_path, capsys):
    data, folder = dataset
    bird = {"file": "day.mp4", "time": 0.1, "class": "bird"}
    write_alarms(folder, bird, {"file": "day.mp4", "time": 0.4}, bird | {"file": "night.mp4"})
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["first_alarms"] == {"day": 0.4}
    assert content["alarms"]["false_alarms"]["bird"]["alarms"] == 0
    assert content["alarms_left_out"] == {
        "other_sources": {},
        "other_classes": {"bird": 2},
        "ignore_regions": {},
        "before_target": {},
    }
    assert "alarms left out, not of the class --target: bird 2" in capsys.readouterr().out


def test_delay_of_an_alarm_begins_at_the_first_target(tmp_path, capsys):
    """The target is annotated from frame 15 on; its first appearance is marked as ignored."""
    target = [(10, 20, 20, 28)], ["drone"]
    records = [frame_of(tmp_path, "day", frame) for frame in range(0, 10, 5)]
    records += [frame_of(tmp_path, "day", 10, *target, [True])]
    records += [frame_of(tmp_path, "day", frame, *target) for frame in range(15, 60, 5)]
    records += [frame_of(tmp_path, "night", 0, *target), frame_of(tmp_path, "night", 10)]
    data, folder = write_dataset(tmp_path, records)
    early = {"file": "day.mp4", "frame": 3, "time": 0.3, "box": [60, 60, 70, 68]}
    write_alarms(folder, early, early | {"frame": None, "time": 0.4}, {"file": "day.mp4", "frame": 50, "time": 5.0})
    code, content = run(data, folder, tmp_path, "--fps", "10")
    assert code == 0 and content["first_alarms"] == {"day": 3.5, "night": None}
    assert content["alarms"]["detected"] == 0 and content["alarms"]["false_alarms"] == {}
    assert content["alarms_left_out"]["before_target"] == {"day": 2}
    assert "alarms left out, before the first annotated target of the video: day 2" in capsys.readouterr().out


def test_alarm_between_the_last_image_without_a_target_and_the_first_one_with_it_has_no_delay(tmp_path):
    frames = [frame_of(tmp_path, "day", 0), frame_of(tmp_path, "day", 30)]
    frames += [frame_of(tmp_path, "day", frame, [(10, 20, 20, 28)], ["drone"]) for frame in (60, 90)]
    data, folder = write_dataset(tmp_path, frames)
    write_alarms(folder, {"file": "day.mp4", "frame": 29, "time": 2.9}, {"file": "day.mp4", "frame": 45, "time": 4.5})
    code, content = run(data, folder, tmp_path, "--fps", "10")
    assert code == 0 and content["first_alarms"] == {"day": 0.0}
    assert content["alarms_left_out"]["before_target"] == {"day": 1}


def test_alarm_at_the_frame_of_the_first_target_has_no_delay(tmp_path):
    """The video states the time of the frame a little earlier than frame / fps."""
    frames = frame_of(tmp_path, "day", 0), frame_of(tmp_path, "day", 15, [(10, 20, 20, 28)], ["drone"])
    data, folder = write_dataset(tmp_path, frames)
    write_alarms(folder, {"file": "day.mp4", "frame": 15, "time": 0.4995})
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["first_alarms"] == {"day": 0.0} and content["alarms"]["detected"] == 1


def test_alarm_of_another_class_and_source_is_left_out_once(dataset, tmp_path):
    data, folder = dataset
    write_alarms(folder, {"file": "other.mp4", "time": 0.1, "class": "bird"})
    code, content = run(data, folder, tmp_path)
    assert code == 0
    assert content["alarms_left_out"] == {
        "other_sources": {"other": 1},
        "other_classes": {},
        "ignore_regions": {},
        "before_target": {},
    }


@pytest.mark.parametrize(
    ("box", "frame", "counted"),
    [
        ((12, 21, 18, 27), 3, 0),  # inside of the region of frame 2, the nearest annotated one
        ((60, 60, 70, 68), 2, 1),
        ((12, 21, 18, 27), 16, 1),  # the region is gone
        (None, 2, 0),  # an event of another program, without a box
    ],
)
@pytest.mark.parametrize("category", ["drone", "ignore"])
def test_alarm_in_an_ignore_region_is_not_false(tmp_path, capsys, box, frame, counted, category):
    """The video shows a target whose box is ignored, or a region of all classes, and nothing else."""
    records = [frame_of(tmp_path, "day", 0, [(10, 20, 20, 28)], ["drone"])]
    region = [(10, 20, 20, 28)], [category], [True]
    records += [frame_of(tmp_path, "night", each, *region) for each in range(0, 10, 2)]
    records += [frame_of(tmp_path, "night", each) for each in range(10, 20, 2)]
    data, folder = write_dataset(tmp_path, records)
    write_alarms(folder, {"file": "night.mp4", "frame": frame, "time": frame / 30, "box": box})
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["alarms"]["videos"] == 1, "an ignored target is none of the video"
    assert content["alarms"]["false_alarms"]["any"]["alarms"] == counted
    assert content["alarms_left_out"]["ignore_regions"] == ({} if counted else {"night": 1})
    assert ("alarms left out, in an ignore region: night 1" in capsys.readouterr().out) == (not counted)


def test_alarm_on_a_target_in_an_ignore_region_counts(tmp_path):
    boxes = [(10, 20, 20, 28), (0, 0, 50, 50)]
    data, folder = write_dataset(
        tmp_path,
        [frame_of(tmp_path, "day", 0, boxes, ["drone", "ignore"], [False, True]), frame_of(tmp_path, "night", 0)],
    )
    on_target = {"file": "day.mp4", "frame": 0, "time": 0.0, "box": [11, 20, 21, 28]}
    write_alarms(folder, on_target, on_target | {"box": [40, 40, 46, 44], "time": 0.5})
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["first_alarms"] == {"day": 0.0}
    assert content["alarms_left_out"]["ignore_regions"] == {"day": 1}


@pytest.mark.parametrize(("fps", "is_warned"), [("30", True), ("25", False), ("25.5", False)])
def test_frame_rate_that_contradicts_the_alarms_is_a_warning(dataset, tmp_path, capsys, fps, is_warned):
    data, folder = dataset
    write_alarms(folder, *({"file": "day.mp4", "frame": frame, "time": frame / 25} for frame in (0, 5, 10)))
    assert run(data, folder, tmp_path, "--fps", fps)[0] == 0
    assert ("alarms.jsonl states 25 frames per second; the hours" in capsys.readouterr().err) == is_warned


def test_alarms_of_other_sources_are_named(dataset, tmp_path, capsys):
    data, folder = dataset
    write_alarms(folder, *({"file": f"x{number}.mp4", "time": 0.1} for number in (1, 1, 2, 3, 4, 5, 6)))
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["first_alarms"] == {"day": None}
    line = "alarms left out, not from a video of the data: x1 2, x2 1, x3 1, x4 1, x5 1 and 1 more"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"event": "start"}',
        '{"event": "start", "file": "a", "time": NaN}',
        '{"event": "start", "file": 3}',
        '{"event": "start", "file": "a", "time": 1, "class": ["drone"]}',
    ],
)
def test_invalid_alarms_are_one_line(dataset, tmp_path, capsys, line):
    data, folder = dataset
    write_alarms(folder)
    (folder / "alarms.jsonl").write_text(f"{line}\n")
    assert run(data, folder, tmp_path)[0] == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert "alarms.jsonl: line 1 must be an event of danet track, got " in printed


def test_track_on_a_distractor_is_a_false_alarm(dataset, tmp_path):
    data, folder = dataset
    write_track(folder / "day.txt", range(20))
    write_track(folder / "night.txt", range(20))
    code, content = run(data, folder, tmp_path, "--quiet")
    assert code == 0 and content["false_alarms"] == 10 and content["recall"] == 1.0 and "alarms" not in content


def test_truth_is_linked_over_gaps_between_annotated_frames(tmp_path, capsys):
    """The drone moves by 4 pixels, 0.4 sizes, per frame; only every tenth frame is annotated."""
    records = [
        frame_of(tmp_path, "day", frame, [(10 + 4 * frame, 20, 20 + 4 * frame, 30)], ["drone"])
        for frame in range(0, 60, 10)
    ]
    data, folder = write_dataset(tmp_path, reversed(records))
    (folder / "day.txt").write_text("".join(f"{f + 1},3,{10 + 4 * f},20,10,10,0.9,-1,-1,-1\n" for f in range(60)))
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["idf1"] == content["hota"] == 1.0 and content["largest_frame_gap"] == 10
    assert "ground truth were linked over gaps of up to 10 frames" in capsys.readouterr().out


def test_no_gap_is_reported_if_every_frame_is_annotated(tmp_path, capsys):
    records = [frame_of(tmp_path, "day", frame, [(10, 20, 20, 30)], ["drone"]) for frame in range(3)]
    data, folder = write_dataset(tmp_path, records)
    (folder / "day.txt").write_text("1,3,10,20,10,10,0.9,-1,-1,-1\n")
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["largest_frame_gap"] == 1 and "gaps" not in capsys.readouterr().out


def test_frame_that_occurs_twice_is_refused(tmp_path, capsys):
    records = [frame_of(tmp_path, "day", frame, [(10, 20, 20, 30)], ["drone"]) for frame in (0, 1)]
    records[1].frame = 0
    data, folder = write_dataset(tmp_path, records)
    (folder / "day.txt").touch()
    assert run(data, folder, tmp_path)[0] == 2
    assert "frame 0 of video 'day' must occur once, got it twice" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "false_alarms"), [("drone", 0), ("ignore", 0), ("bird", 4)])
def test_track_in_an_ignore_region_is_no_false_alarm(tmp_path, name, false_alarms):
    """One track covers the drone, which lies in the region, too; the other one covers only the region."""
    boxes = [(10, 20, 20, 30), (0, 0, 100, 100)]
    records = [frame_of(tmp_path, "day", frame, boxes, ["drone", name], ignore=[False, True]) for frame in range(4)]
    data, folder = write_dataset(tmp_path, records)
    tracks = [f"{frame},1,10,20,10,10,0.9\n{frame},2,60,60,10,10,0.9\n" for frame in range(1, 5)]
    (folder / "day.txt").write_text("".join(tracks))
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["false_alarms"] == false_alarms and content["recall"] == 1.0
    assert content["hota"] == 1.0 or false_alarms


def test_video_with_only_an_ignore_region_has_no_target(tmp_path):
    region = [(0, 0, 100, 100)]
    data, folder = write_dataset(tmp_path, [frame_of(tmp_path, "night", 0, region, ["drone"], ignore=[True])])
    write_alarms(folder)
    code, content = run(data, folder, tmp_path)
    assert code == 0 and content["first_alarms"] == {} and content["alarms"]["videos"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,3,10,20,10", "line 1 must be frame,id,left,top,width,height and more, got '1,3,10,20,10'"),
        ("1,-1,10,20,10,9", "line 1: id, width and height must not be negative, got '1,-1,10,20,10,9'"),
        ("1,3,10,20,-4,9", "line 1: id, width and height must not be negative, got '1,3,10,20,-4,9'"),
        ('1,"3,10,20,4,9', "line 1 must be frame,id,left,top,width,height and more, got '1,\"3,10,20,4,9'"),
        ("1,3,10,20,10,nan", "line 1 must be frame"),
        ("1.5,3,10,20,10,10", "line 1 must be frame"),
        ("1,3.5,10,20,10,10", "line 1 must be frame"),
        (
            "0,3,1,1,5,5\n1,3,2,2,5,5",
            "line 1: frame numbers must count from 1, got 0; if the file counts them from 0, add",
        ),
        ("1,3,1,1,5,5\n1,3,2,2,5,5", "day frame 0 holds a number of a track twice"),
    ],
)
def test_invalid_tracks_are_one_line(dataset, tmp_path, capsys, text, message):
    data, folder = dataset
    (folder / "day.txt").write_text(text)
    (folder / "night.txt").touch()
    assert run(data, folder, tmp_path)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("danet evaluate --tracks: error: ") and message in line


@pytest.mark.parametrize(("present", "got"), [([], "none of them; track 'day'"), (["day"], "1 of 2; track 'night'")])
def test_video_without_a_text_is_refused(dataset, tmp_path, capsys, present, got):
    data, folder = dataset
    for name in present:
        write_track(folder / f"{name}.txt", range(20))
    assert run(data, folder, tmp_path)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"must hold a file VIDEO.txt for each video of {data}, got {got}" in line
    assert not (tmp_path / "m.json").exists()


def test_json_replaces_neither_the_data_nor_the_alarms(dataset, tmp_path, capsys):
    data, folder = dataset
    write_track(folder / "day.txt", range(4, 20))
    write_alarms(folder)
    for given, out in ((data, data), (data.parent, data), (data, folder / "alarms.jsonl")):
        before = out.read_bytes()
        assert run(given, folder, tmp_path, "--json", str(out))[0] == 2
        assert f"{out}: is an input of this command" in capsys.readouterr().err and out.read_bytes() == before
