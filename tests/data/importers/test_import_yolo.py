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
