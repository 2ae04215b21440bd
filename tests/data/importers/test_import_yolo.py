import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco


def make(folder, label="1 0.25 0.5 0.1 0.2\n0 0.5 0.5 1 1\n"):
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(folder / f"images/{name}.png"), np.full((30, 40), 80, np.uint8))
    (folder / "labels/a.txt").write_text(label)
    (folder / "classes.txt").write_text("drone\nbird\n")
    return folder


def run(source):
    return main(["import", "yolo", str(source), str(source.parent / "out")])


def test_yolo_converts_relative_boxes_to_pixels(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "labels/z.txt").write_text("0 0.5 0.5 1 1\n")
    assert run(source) == 0
    dataset = load_coco(tmp_path / "out")
    a, b = dataset.records
    np.testing.assert_allclose(a.boxes, [[8, 12, 12, 18], [0, 0, 40, 30]], atol=1e-3)
    assert a.names == ["bird", "drone"] and b.names == [] and dataset.categories == ["drone", "bird"]
    assert "z.txt: no image belongs to this label file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
@pytest.mark.parametrize("names", ["[drone, bird]", "{0: drone, 1: bird}"])
def test_yolo_reads_names_and_splits_from_data_yaml(tmp_path, layout, names):
    source = tmp_path / "in"
    for index, split in enumerate(("train", "val")):
        images, labels = (source / layout.format(kind=kind, split=split) for kind in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        cv2.imwrite(str(images / "same.png"), np.full((30, 40), 80 + index, np.uint8))
        (labels / "same.txt").write_text(f"{index} 0.5 0.5 0.5 0.5\n")
    folders = {split: layout.format(kind="images", split=split) for split in ("train", "val")}
    (source / "data.yaml").write_text(
        f"path: /nowhere\ntrain: ../{folders['train']}\nval: {folders['val']}\nnames: {names}"
    )
    assert run(source) == 0
    for split, name, value in (("train", "drone", 80), ("val", "bird", 81)):
        (item,) = load_coco(tmp_path / f"out/{split}.json").records
        assert item.names == [name] and cv2.imread(str(item.path), cv2.IMREAD_UNCHANGED)[0, 0] == value


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("0 0.5 0.5 nan 0.1", "a.txt: line 1: coordinates must be between 0 and 1"),
        ("\n0 20 20 5 5", "a.txt: line 2: coordinates must be between 0 and 1"),
        ("2 0.5 0.5 0.1 0.1", "a.txt: line 1: class 2 has no name; there are 2 (drone, bird)"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 has no name"),
        ("0 0.5 0.5 0.1", "a.txt: line 1: must be 'class x y width height', got 4 words"),
        ("drone 0.5 0.5 0.1 0.1", "a.txt: line 1: must be an integer and four numbers"),
    ],
)
def test_yolo_names_a_wrong_line_and_writes_nothing(tmp_path, capsys, label, message):
    assert run(make(tmp_path / "in", label)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_yolo_names_missing_files(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "labels/a.txt").unlink()
    assert run(source) == 2
    assert "none of the images has a label file" in capsys.readouterr().err
    (source / "classes.txt").write_bytes("a\u00e9rien\n".encode("latin-1"))
    assert run(source) == 2
    assert "classes.txt: not UTF-8 text (byte 1)" in capsys.readouterr().err
    (source / "classes.txt").unlink()
    assert run(source) == 2
    assert "no class names" in capsys.readouterr().err
    (source / "data.yaml").write_text("names: [drone]\ntrain: images/train")
    assert run(source) == 2
    assert "data.yaml: 'train' names the folder images/train, which does not exist" in capsys.readouterr().err
    (source / "data.yaml").write_text("names: [drone")
    assert run(source) == 2
    assert "data.yaml: not valid YAML" in capsys.readouterr().err
    assert run(tmp_path / "nothing") == 2
    assert "nothing: no such folder" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("")
    assert run(tmp_path / "a.txt") == 2
    assert "a.txt: must be a folder or a data.yaml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("label", "box", "repair"),
    [
        ("0 0.2 0.2 0.3 0.2 0.3 0.3 0.2 0.3", [8, 6, 12, 9], "1 polygons changed: replaced by their extent"),
        ("0 0.25 0.2 0.3 0.25 0.25 0.3 0.2 0.25", [8, 6, 12, 9], "1 polygons changed"),  # an oriented box
        ("0 0.9 0.5 1.0021 0.1", [15.958, 13.5, 40, 16.5], "1 boxes changed: clipped to the image"),
        ("0 1.02 0.5 0.1 0.1", [38.8, 13.5, 40, 16.5], "1 boxes changed: clipped to the image"),
        ("0 -0.01 0.5 0.1 0.1", [0, 13.5, 1.6, 16.5], "1 boxes changed: clipped to the image"),
        ("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5", [10, 7.5, 30, 22.5], "1 boxes dropped: exact duplicates"),
        ("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0 0.5", [10, 7.5, 30, 22.5], "1 boxes dropped: no area"),
        ("0.0 0.5 0.5 0.5 0.5", [10, 7.5, 30, 22.5], "1 classes changed: written with a decimal point"),
        ("0 0.5 0.5 0.5 0.5 0.87", [10, 7.5, 30, 22.5], "1 confidences dropped"),
        ("\ufeff0 0.5 0.5 0.5 0.5\r\n", [10, 7.5, 30, 22.5], ""),
        ("0\t0.5\t0.5\t0.5\t0.5 \n\n", [10, 7.5, 30, 22.5], ""),
    ],
)
def test_yolo_repairs_what_tools_write_and_counts_it(tmp_path, capsys, label, box, repair):
    assert run(make(tmp_path / "in", label)) == 0
    a, _ = load_coco(tmp_path / "out").records
    np.testing.assert_allclose(a.boxes, [box], atol=1e-3)
    lines = [line for line in capsys.readouterr().err.splitlines() if ", the first: " in line]
    assert len(lines) == bool(repair) and all(repair in line and "a.txt" in line for line in lines)


def test_yolo_reads_the_boxes_of_pose_datasets(tmp_path, capsys):
    source = make(tmp_path / "in", "0 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 0\n")
    (source / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [drone, bird]")
    assert run(source) == 0
    np.testing.assert_allclose(load_coco(tmp_path / "out").records[0].boxes, [[10, 7.5, 30, 22.5]], atol=1e-3)
    assert "1 key points dropped" in capsys.readouterr().err


def test_yolo_imports_train_and_val_folders_without_data_yaml(tmp_path):
    source = tmp_path / "in"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        cv2.imwrite(str(source / f"images/{split}/a.png"), np.full((30, 40), 80, np.uint8))
        (source / f"labels/{split}/a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (source / "classes.txt").write_text("drone")
    assert run(source) == 0
    for split in ("train", "val"):
        assert load_coco(tmp_path / f"out/{split}.json").records[0].names == ["drone"]


def test_yolo_without_splits_says_how_to_make_them(tmp_path, capsys):
    source = make(tmp_path / "in")
    assert run(source) == 0
    assert "has no splits; `danet data split " in capsys.readouterr().err


def test_yolo_refuses_a_split_without_labels_and_writes_nothing(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "images/val").mkdir()
    cv2.imwrite(str(source / "images/val/v.png"), np.full((30, 40), 80, np.uint8))
    (source / "data.yaml").write_text("train: images\nval: images/val\nnames: [drone, bird]")
    assert run(source) == 2
    error = capsys.readouterr().err
    assert "images/val: none of the 1 images of 'val' has a label file" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_yolo_empty_label_files_give_a_loud_warning(tmp_path, capsys):
    assert run(make(tmp_path / "in", "")) == 0
    assert "warning: annotations.json: none of the 2 images has a box" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["0 " + "9" * 5000 + " 0 0 0", "9" * 5000 + " 0 0 0 0", "0 \ud800 0 0 0", "0 1e999 0 0 0"]
)
def test_yolo_messages_about_labels_are_short(tmp_path, capsys, text):
    source = make(tmp_path / "in")
    (source / "labels/a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert run(source) == 2
    error = capsys.readouterr().err
    assert "a.txt: " in error and error.count("\n") == 1 and len(error) < 400


def test_yolo_json_does_not_replace_the_source(tmp_path, capsys):
    data = tmp_path / "in" / "data.yaml"
    (tmp_path / "in").mkdir()
    data.write_text("names: [drone]")
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((48, 64), np.uint8))
    (tmp_path / "in" / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    for source in (data, data.parent):
        assert main(["import", "yolo", str(source), str(tmp_path / "out"), "--json", str(data)]) == 2
        assert "data.yaml: is an input of this command" in capsys.readouterr().err
    assert data.read_text() == "names: [drone]" and not (tmp_path / "out").exists()
