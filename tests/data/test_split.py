from collections import Counter

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.utils.files import read_json


def make(folder, recordings=12, key="recording"):
    """A dataset of recordings with 3 to 8 images each; every third one shows birds, the others drones."""
    image = folder / "images" / "x.png"
    image.parent.mkdir(parents=True)
    cv2.imwrite(str(image), np.zeros((20, 20), np.uint8))
    records = []
    for index in range(recordings):
        for frame in range(3 + index % 6):
            boxes = np.array([[1, 2, 5, 6]], np.float32)
            name = "bird" if index % 3 == 0 else "drone"
            item = ImageRecord(image, 20, 20, boxes, [name], np.zeros(1, bool), frame=frame)
            if key is not None:
                setattr(item, key, f"clip{index}")
            records.append(item)
    write_coco(folder / "all.json", records, ["drone", "bird"])
    return folder / "all.json"


@pytest.mark.parametrize("key", ["recording", "video"])
def test_split_keeps_recordings_and_balances_categories(tmp_path, key):
    source = make(tmp_path, 40, key)
    a, b = tmp_path / "a.json", tmp_path / "elsewhere" / "b.json"
    assert main(["split", str(source), "--fraction", "0.25", "--out_a", str(a), "--out_b", str(b)]) == 0
    whole, first, second = (load_coco(path) for path in (source, a, b))
    assert len(first.records) + len(second.records) == len(whole.records)
    assert not {item.group for item in first.records} & {item.group for item in second.records}
    count = [Counter(name for item in part.records for name in item.names) for part in (whole, second)]
    for name in ("drone", "bird"):
        assert 0.2 < count[1][name] / count[0][name] < 0.3
    assert second.records[0].path == whole.records[0].path


def test_split_json_states_the_counts(tmp_path, capsys):
    source = make(tmp_path, 12)
    a, b, counts = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "counts.json"
    parts = ["--out_a", str(a), "--out_b", str(b)]
    assert main(["split", str(source), *parts, "--json", str(counts)]) == 0
    said = read_json(counts)
    for path in (a, b):
        records = load_coco(path).records
        boxes = Counter(name for item in records for name in item.names)
        recordings = len({item.recording for item in records})
        assert said[str(path)] == {
            "images": len(records), "recordings": recordings, "images_without_boxes": 0, "boxes": boxes,
        }  # fmt: skip
    capsys.readouterr()
    assert main(["split", str(source), *parts, "--json", str(source)]) == 2
    assert "must differ" in capsys.readouterr().err
    assert main(["split", str(source), *parts, "--json", str(source / "counts.json")]) == 2
    assert "no folder for results" in capsys.readouterr().err


def test_split_depends_on_the_seed(tmp_path):
    source = make(tmp_path, 40)
    chosen = []
    for seed in ("0", "0", "1"):
        outs = ["--out_a", str(tmp_path / "a.json"), "--out_b", str(tmp_path / "b.json")]
        assert main(["split", str(source), "--seed", seed, "--quiet", "true", *outs]) == 0
        chosen.append({item.recording for item in load_coco(tmp_path / "b.json").records})
    assert chosen[0] == chosen[1] != chosen[2]


def test_split_folds_cover_every_recording_once(tmp_path):
    source = make(tmp_path, 15)
    assert main(["split", str(source), "--folds", "3", "--out", str(tmp_path / "folds")]) == 0
    total = len(load_coco(source).records)
    groups = []
    for fold in range(3):
        train, val = (load_coco(tmp_path / "folds" / f"fold{fold}_{side}.json").records for side in ("train", "val"))
        assert len(train) + len(val) == total
        assert not {item.recording for item in train} & {item.recording for item in val}
        groups += {item.recording for item in val}
    assert sorted(groups) == sorted(f"clip{index}" for index in range(15))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "1", "--out_a", "a.json", "--out_b", "b.json"], "--fraction must lie between 0 and 1"),
        (["--fraction", "-0.5", "--out_a", "a.json", "--out_b", "b.json"], "--fraction must lie between 0 and 1"),
        (["--seed", "-1", "--out_a", "a.json", "--out_b", "b.json"], "--seed must be 0 or more"),
        (["--out_a", "a.json"], "--out_a and --out_b"),
        (["--out_a", "a.json", "--out_b", "a.json"], "must differ"),
        (["--folds", "1", "--out", "x"], "--folds must be 2 or more"),
        (["--folds", "3"], "--folds needs --out"),
        (["--folds", "99", "--out", "x"], "99 parts cannot be made of 12 recordings"),
    ],
)
def test_split_with_wrong_options_writes_nothing(tmp_path, monkeypatch, capsys, options, message):
    source = make(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    assert main(["split", str(source), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_split_does_not_overwrite_its_source(tmp_path, capsys):
    source = make(tmp_path)
    before = source.read_bytes()
    assert main(["split", str(source), "--out_a", str(source), "--out_b", str(tmp_path / "b.json")]) == 2
    assert source.read_bytes() == before and "must differ" in capsys.readouterr().err


def test_split_does_not_overwrite_the_json_of_a_folder(tmp_path, capsys):
    source = make(tmp_path)
    before = source.read_bytes()
    assert main(["split", str(tmp_path), "--out_a", str(tmp_path / "a.json"), "--out_b", str(source)]) == 2
    assert source.read_bytes() == before and "must differ" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("name", "message"), [("images", "is a folder"), ("all.json/b.json", "no folder for results")])
def test_split_checks_both_outputs_before_it_writes(tmp_path, capsys, name, message):
    source = make(tmp_path)
    a, b = tmp_path / "a.json", tmp_path / name
    assert main(["split", str(source), "--out_a", str(a), "--out_b", str(b)]) == 2
    assert message in capsys.readouterr().err and not a.exists()
