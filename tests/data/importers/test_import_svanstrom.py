import json
import os
import shutil
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco
from danet.data.importers import svanstrom_labels
from danet.data.importers.base import ImportFolder
from danet.data.importers.svanstrom import (
    Options,
    Video,
    check_counts,
    decode,
    find_recordings,
    find_videos,
    import_video,
)
from danet.data.importers.svanstrom_labels import read_labels
from danet.data.video_writer import VideoWriter
from danet.utils.errors import UserError

# Videos with several boxes per frame, two classes, or frames without a box. Of the others, tests read a sample.
TRICKY = {f"IR_DRONE_{number:03d}" for number in (67, 96, 101, 104, *range(143, 148))} | {"IR_HELICOPTER_006"}


@pytest.fixture(scope="session")
def videos(real_data):
    return real_data / "svanstrom-ir"


def subset(videos, folder, names, **changes):
    """A folder with some of the real videos and their entries of splits.json."""
    folder.mkdir(parents=True)
    listing = json.loads((videos / "splits.json").read_text())
    listing["videos"] = [entry | changes for entry in listing["videos"] if entry["video"] in names]
    (folder / "splits.json").write_text(json.dumps(listing))
    for name in names:
        for ending in (".mp4", "_LABELS.mat"):
            shutil.copyfile(videos / f"{name}{ending}", folder / f"{name}{ending}")
            (folder / f"{name}{ending}").chmod(0o644)
    return folder


def run(source, *options):
    return main(["import", "svanstrom", str(source), str(source.parent / "out"), *options])


@pytest.mark.long
def test_read_labels_gives_the_published_counts(videos):
    every = find_videos(videos)
    assert len(every) == 255
    chosen = [item for item in every if item.name in TRICKY or item.expected["max_boxes_in_a_frame"] > 1]
    assert len(chosen) >= 22
    for video in chosen + every[::25]:
        check_counts(video, read_labels(videos / f"{video.name}_LABELS.mat"))


def test_read_labels_first_pixel_is_0_and_classes_are_separate(videos):
    labels = read_labels(videos / "IR_DRONE_096_LABELS.mat")
    np.testing.assert_allclose(labels[0]["drone"], [[160, 98, 181, 109]])
    assert "bird" not in labels[0] and any(set(frame) == {"drone", "bird"} for frame in labels)
    assert all(len(frame["drone"]) == 2 for frame in read_labels(videos / "IR_DRONE_143_LABELS.mat"))


def test_svanstrom_agrees_with_the_published_frames(videos, real_data, tmp_path):
    names = ["IR_DRONE_096", "IR_DRONE_067", "IR_BIRD_001", "IR_DRONE_014"]
    assert run(subset(videos, tmp_path / "in", names), "--stride", "15", "--class_stride", "{bird: 60}") == 0
    published = {
        (item.video, item.frame): item
        for split in ("train", "val")
        for item in load_coco(real_data / f"svanstrom-ir-frames/{split}.json").records
    }
    entries = {item.name: item for item in find_videos(videos)}
    compared = 0
    for split in ("train", "val"):
        for item in load_coco(tmp_path / f"out/{split}.json").records:
            assert entries[item.video].split == split and entries[item.video].recording == item.recording
            assert item.frame % (60 if item.video == "IR_BIRD_001" else 15) == 0
            other = published.get((item.video, item.frame))
            if other is None:
                continue
            compared += 1
            assert item.names == other.names
            np.testing.assert_allclose(item.boxes, other.boxes, atol=0.02)
            image, jpeg = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (item.path, other.path))
            assert image.shape == jpeg.shape == (256, 320)
            assert (
                np.abs(image.astype(float) - jpeg).mean() < 3
            )  # less than the difference of neighbouring frames in places
    assert compared >= 20


def test_svanstrom_keeps_frames_without_boxes(videos, tmp_path):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    assert run(source, "--quiet", "true") == 0
    records = load_coco(tmp_path / "out").records
    assert [item.frame for item in records if not item.names] == [304, 305]
    assert [item.frame for item in records] == list(range(len(records)))


def test_svanstrom_stores_the_frames_at_the_lags(videos, tmp_path):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    assert run(source, "--stride", "20", "--lags", "0.1", "1.0", "--quiet") == 0
    records = load_coco(tmp_path / "out").records
    assert [item.frame for item in records] == list(range(0, 306, 20))
    past = [[(lag, file.name) for lag, file in item.past] for item in records[:3]]
    assert past == [[], [(0.1, "000017.png")], [(0.1, "000037.png"), (1.0, "000010.png")]]
    frames = [image for _, image in decode(videos / "IR_DRONE_067.mp4", 1)]
    for _, file in records[2].past:
        assert (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) == frames[int(file.stem)]).all()
    # The frames survive a split of the dataset and an import of its json.
    json = tmp_path / "out/train.json"
    assert main(["import", "coco", str(json), str(tmp_path / "copy"), "--quiet"]) == 0
    copied = load_coco(tmp_path / "copy").records
    assert [[(lag, file.name) for lag, file in item.past] for item in copied[:3]] == past
    assert all(file.is_relative_to(tmp_path / "copy") for item in copied for _, file in item.past)


def write_video(path, rate, frames=12):
    """A video with empty labels; frame i has the grey value 10 * i."""
    with VideoWriter(path, rate) as writer:
        for index in range(frames):
            writer.write(np.full((64, 96), 10 * index, np.uint8))
    return Video(path, path.stem, "drone", "train", path.stem, None, labels=[{} for _ in range(frames)])


@pytest.mark.parametrize(("rate", "steps"), [(10, [2, 5]), (12, [3, 6]), (30, [7, 15])])
def test_svanstrom_states_the_real_age_of_earlier_frames(tmp_path, rate, steps):
    video = write_video(tmp_path / "IR_DRONE_001.mp4", rate, frames=20)
    options = Options(str(tmp_path), str(tmp_path / "out"), quiet=True)
    records = import_video(video, ImportFolder(options), stride=19, lags=[0.22, 0.5])
    assert [record.frame for record in records] == [0, 19]
    assert records[0].past == ()
    assert [int(file.stem) for _, file in records[1].past] == [19 - step for step in steps]
    assert [age for age, _ in records[1].past] == pytest.approx([step / rate for step in steps])


def test_svanstrom_takes_folders_whose_names_are_not_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    video = write_video(folder / "IR_DRONE_001.mp4", 10)
    records = import_video(video, ImportFolder(Options(str(folder), str(tmp_path / "out"))), stride=6, lags=[0.2])
    assert [record.frame for record in records] == [0, 6] and len(records[1].past) == 1
    assert find_recordings([video.path], quiet=True) == {video.path: "IR_DRONE_001"}


def test_svanstrom_drops_and_counts_lags_shorter_than_the_frame_interval(tmp_path):
    video = write_video(tmp_path / "IR_DRONE_001.mp4", 10)
    out = ImportFolder(Options(str(tmp_path), str(tmp_path / "out"), quiet=True))
    (_, last) = import_video(video, out, stride=11, lags=[0.04, 0.1, 0.12])
    assert [(age, file.name) for age, file in last.past] == [(0.1, "000010.png")]
    assert out.repairs.lines() == [
        "1 lags of a video dropped: its frames are too far apart, the first: IR_DRONE_001: 0.04 s at 10 frames per "
        "second"
    ]


def test_svanstrom_imports_splits_into_one_folder(videos, tmp_path):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067", "IR_DRONE_014"])
    assert run(source, "--split", "val", "--stride", "50") == 0
    val = tmp_path / "out/val.json"
    before = val.read_bytes()
    assert load_coco(tmp_path / "out").path == val and {item.video for item in load_coco(val).records} == {
        "IR_DRONE_014"
    }
    assert run(source, "--split", "train", "--stride", "100") == 0
    assert [item.frame for item in load_coco(tmp_path / "out/train.json").records] == [0, 100, 200, 300]
    assert val.read_bytes() == before and load_coco(val).records


def test_svanstrom_without_splits_json_writes_one_json(videos, tmp_path):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    (source / "splits.json").unlink()
    assert run(source, "--stride", "100") == 0
    dataset = load_coco(tmp_path / "out")
    assert dataset.path.name == "annotations.json"
    assert {(item.video, item.recording) for item in dataset.records} == {("IR_DRONE_067", "IR_DRONE_067")}


def end_early(source):
    with VideoWriter(source / "IR_DRONE_067.mp4", 30) as writer:
        for _ in range(20):
            writer.write(np.full((256, 320), 90, np.uint8))


def cut_video(source):
    path = source / "IR_DRONE_067.mp4"
    path.write_bytes(path.read_bytes()[:3000])


def cut_labels(source):
    path = source / "IR_DRONE_067_LABELS.mat"
    path.write_bytes(path.read_bytes()[:3000])


def text_labels(source):
    (source / "IR_DRONE_067_LABELS.mat").write_text("not MATLAB " * 50)


def no_labels(source):
    (source / "IR_DRONE_067_LABELS.mat").unlink()


def no_video(source):
    (source / "IR_DRONE_067.mp4").unlink()


def other_labels(source):
    shutil.copyfile(source / "IR_DRONE_096_LABELS.mat", source / "IR_DRONE_067_LABELS.mat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (end_early, "IR_DRONE_067.mp4: 20 frames can be decoded, but 306 are labelled"),
        (cut_video, "IR_DRONE_067.mp4: not a readable video"),
        (cut_labels, "IR_DRONE_067_LABELS.mat: no readable groundTruth labels"),
        (text_labels, "IR_DRONE_067_LABELS.mat: no readable groundTruth labels"),
        (no_labels, "IR_DRONE_067_LABELS.mat: no such label file"),
        (no_video, "IR_DRONE_067.mp4: no such video"),
        (other_labels, "IR_DRONE_067_LABELS.mat: frames: read"),
    ],
)
def test_svanstrom_names_the_error_and_writes_nothing(videos, tmp_path, capfd, damage, message):
    # 067 is the second video by name, so that images of the first one have been written before the error.
    source = subset(videos, tmp_path / "in", ["IR_BIRD_001", "IR_DRONE_067", "IR_DRONE_096"])
    damage(source)
    assert run(source, "--stride", "100") == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled_frames": 306}, "labelled frames: read 304, but splits.json says 306"),
        ({"boxes": {"drone": 303}}, "boxes: read {'drone': 304}, but splits.json says {'drone': 303}"),
        ({"max_boxes_in_a_frame": 2}, "max boxes in a frame: read 1, but splits.json says 2"),
        ({"mean_box_sqrt_area_px": 15.5}, "mean box sqrt area px: read "),
        ({"boxes_by_size": {"small": 303, "medium": 1, "large": 0}}, "boxes by size: read {'small': 304"),
        ({"recording": None}, "splits.json: video IR_DRONE_067: 'recording' is missing"),
    ],
)
def test_svanstrom_refuses_counts_unlike_splits_json(videos, tmp_path, capsys, changes, message):
    assert run(subset(videos, tmp_path / "in", ["IR_DRONE_067"], **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["boxes", "boxes_by_size", "mean_box_sqrt_area_px", "max_boxes_in_a_frame"])
def test_svanstrom_names_a_count_missing_in_splits_json(videos, tmp_path, capsys, key):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    listing = json.loads((source / "splits.json").read_text())
    del listing["videos"][0][key]
    (source / "splits.json").write_text(json.dumps(listing))
    assert run(source) == 2
    assert f"IR_DRONE_067_LABELS.mat: splits.json has no {key!r}" in capsys.readouterr().err


def test_svanstrom_reads_size_buckets_from_splits_json(videos, tmp_path, capsys):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    listing = json.loads((source / "splits.json").read_text())
    listing["size_buckets_px"]["large"] = "sqrt(w*h) >= 2"
    listing["size_buckets_px"]["small"] = "sqrt(w*h) < 1.5"
    listing["videos"][0]["boxes_by_size"] = {"small": 0, "medium": 0, "large": 304}
    (source / "splits.json").write_text(json.dumps(listing))
    assert run(source, "--stride", "300") == 0
    listing["size_buckets_px"]["small"] = "tiny"
    (source / "splits.json").write_text(json.dumps(listing))
    assert run(source) == 2
    assert "splits.json: 'size_buckets_px' must give edges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "0"], "stride must be 1 or more, got 0"),
        (["--class_stride", "{bird: 0}"], "bird: a stride must be 1 or more"),
        (["--class_stride", "{brid: 3}"], "unknown class 'brid'"),
        (["--split", "test"], "--split"),
        (["--split", "val"], "no videos to import (IR_<CLASS>_<NUMBER>.mp4, --split val)"),
        ([], "no videos to import"),
    ],
)
def test_svanstrom_names_wrong_options(tmp_path, capsys, options, message):
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_find_videos_refuses_a_name_without_class(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UserError, match=r"clip\.mp4: the name must be IR_<CLASS>_<NUMBER>\.mp4"):
        find_videos(tmp_path)


def test_file_that_crashes_mat_io_is_one_error(tmp_path, monkeypatch):
    """The compiled reader of mat-io ends the process on some damaged files."""
    parent = os.getpid()

    def crash(path):
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(svanstrom_labels, "_load_mat", crash)
    path = tmp_path / "IR_DRONE_001_LABELS.mat"
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="mat-io crashed while it read this file"):
        read_labels(path)


def test_read_labels_reads_a_file_only_in_the_child_process(videos, monkeypatch):
    parent, load = os.getpid(), svanstrom_labels._load_mat

    def load_in_child(path):
        assert os.getpid() != parent
        return load(path)

    monkeypatch.setattr(svanstrom_labels, "_load_mat", load_in_child)
    assert len(read_labels(videos / "IR_DRONE_067_LABELS.mat")) == 306


def test_file_that_ends_the_child_process_is_one_error(tmp_path, monkeypatch):
    """Such as by the system, if the memory is full."""
    monkeypatch.setattr(svanstrom_labels, "_load_mat", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    path = tmp_path / "IR_DRONE_001_LABELS.mat"
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="the process that read this file sent no table"):
        read_labels(path)


def test_read_labels_without_mat_io(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matio", None)
    with pytest.raises(UserError, match="needs mat-io: pip install mat-io"):
        read_labels(Path("x_LABELS.mat"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "../../../escaped"}, "split: a name must not lead out of its folder, got '../../../escaped'"),
        ({"split": "/tmp/escaped"}, "split: a name must not lead out of its folder"),
        ({"split": "a/escaped"}, "split must be a name without folders, got 'a/escaped'"),
        ({"split": "a\0b"}, "split: a name must not contain control characters"),
        ({"video": "../x"}, "video: a name must not lead out of its folder, got '../x'"),
        ({"video": "\ud800"}, "video: a name must not contain control characters"),
        ({"video": "x" * 300}, "video: a name must have at most 200 characters"),
        ({"recording": "a\nb"}, "recording: a name must not contain control characters"),
        ({"class": "[/]"}, "class must be one of drone, bird, airplane, helicopter, got '[/]'"),
        ({"class": ["drone"]}, "'class' is missing"),
        ({"boxes": "x" * 10_000}, "boxes: read {'drone': 304}, but splits.json says 'xxx"),
    ],
)
def test_svanstrom_writes_nothing_for_invalid_names_in_splits_json(videos, tmp_path, capsys, changes, message):
    source = subset(videos, tmp_path / "a/b/c/in", ["IR_DRONE_067"], **changes)
    before = sorted(tmp_path.rglob("*"))
    assert run(source, "--stride", "100") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 500
    assert sorted(tmp_path.rglob("*")) == before


def test_svanstrom_refuses_a_video_that_is_listed_twice(videos, tmp_path, capsys):
    source = subset(videos, tmp_path / "in", ["IR_DRONE_067"])
    listing = json.loads((source / "splits.json").read_text())
    listing["videos"] *= 2
    (source / "splits.json").write_text(json.dumps(listing))
    assert run(source) == 2
    assert "video 'IR_DRONE_067' is listed twice" in capsys.readouterr().err


def test_find_recordings_joins_clips_that_continue_one_another(videos):
    numbers = {"DRONE": (43, 44, 45, 138), "BIRD": (11, 12, 18)}
    paths = [videos / f"IR_{kind}_{number:03d}.mp4" for kind, found in numbers.items() for number in found]
    assert {path.stem: recording for path, recording in find_recordings(paths).items()} == {
        **dict.fromkeys(["IR_DRONE_043", "IR_DRONE_044", "IR_DRONE_045"], "IR_DRONE_043"),
        **dict.fromkeys(["IR_BIRD_011", "IR_BIRD_012"], "IR_BIRD_011"),
        "IR_DRONE_138": "IR_DRONE_138",
        "IR_BIRD_018": "IR_BIRD_018",
    }


def test_svanstrom_without_splits_json_divides_recordings(videos, tmp_path, capsys):
    """The original repository, whose videos are in Data/Video_IR."""
    names = ["IR_DRONE_043", "IR_DRONE_044", "IR_BIRD_018"]
    source = subset(videos, tmp_path / "repository" / "in", names)
    (source / "splits.json").unlink()
    (source / "._IR_DRONE_043.mp4").touch()
    (tmp_path / "repository/Data").mkdir()
    source.rename(tmp_path / "repository/Data/Video_IR")
    assert run(tmp_path / "repository", "--stride", "150") == 0
    parts = {split: load_coco(tmp_path / f"out/{split}.json").records for split in ("train", "val")}
    videos_of = [sorted({record.video for record in records}) for records in parts.values()]
    assert sorted(videos_of) == [["IR_BIRD_018"], ["IR_DRONE_043", "IR_DRONE_044"]]
    assert {record.recording for records in parts.values() for record in records} == {"IR_BIRD_018", "IR_DRONE_043"}
    assert "no splits.json; 3 videos of 2 recordings were divided" in capsys.readouterr().err
