import json

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco
from danet.data.importers.coco import Options, import_coco
from danet.utils.errors import UserError


def make(folder, image=None, box=(2, 3, 8, 6)):
    """A json in ann/ whose file names are relative to pictures/, with one 16-bit image."""
    image = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 13 if image is None else image
    for name in ("ann", "pictures/deep"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "pictures" / "deep" / "a.png"), image)
    content = {
        "images": [{"id": 1, "file_name": "deep/a.png", "width": 40, "height": 30, "recording": "r1"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": list(box)}],
        "categories": [{"id": 1, "name": "drone"}],
    }
    path = folder / "ann" / "train.json"
    path.write_text(json.dumps(content))
    return path


def run(folder, source, *options):
    return main(["import", "coco", str(source), str(folder / "out"), "--images", str(folder / "pictures"), *options])


def test_coco_keeps_images_and_boxes(tmp_path, capsys):
    source = make(tmp_path)
    assert run(tmp_path, source) == 0
    dataset = load_coco(tmp_path / "out")
    (item,) = dataset.records
    assert dataset.path.name == "train.json" and item.path == (tmp_path / "out/images/deep/a.png").resolve()
    assert item.path.read_bytes() == (tmp_path / "pictures/deep/a.png").read_bytes()
    np.testing.assert_array_equal(item.boxes, [[2, 3, 10, 9]])
    assert item.names == ["drone"] and item.recording == "r1"
    assert "1 images (0 without boxes), 1 drone" in capsys.readouterr().out


def test_coco_imports_its_own_output(tmp_path):
    assert run(tmp_path, make(tmp_path)) == 0
    assert main(["import", "coco", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert load_coco(tmp_path / "again").records[0].path == (tmp_path / "again/images/deep/a.png").resolve()


def test_coco_clips_boxes_with_a_note(tmp_path, capsys):
    assert run(tmp_path, make(tmp_path, box=(30, 20, 20, 20))) == 0
    np.testing.assert_array_equal(load_coco(tmp_path / "out").records[0].boxes, [[30, 20, 40, 30]])
    assert "1 boxes changed" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(30, 41), (40, 30)])
def test_coco_refuses_an_image_of_another_size(tmp_path, capsys, size):
    source = make(tmp_path, image=np.zeros(size, np.uint8))
    assert run(tmp_path, source) == 2
    error = capsys.readouterr().err
    assert "a.png: the image is" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_coco_refuses_a_truncated_image_and_writes_nothing(tmp_path, capfd):
    source = make(tmp_path)
    image = tmp_path / "pictures/deep/a.png"
    image.write_bytes(image.read_bytes()[:-40])
    assert run(tmp_path, source) == 2
    error = capfd.readouterr().err
    assert "a.png: not a readable image" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_coco_failed_import_keeps_older_files(tmp_path, capsys):
    source = make(tmp_path)
    assert run(tmp_path, source) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    source.write_text(source.read_text().replace("[2, 3, 8, 6]", "[2, NaN, 8, 6]"))
    assert run(tmp_path, source) == 2
    assert "not finite" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_coco_refuses_its_source_as_output(tmp_path, capsys):
    source = make(tmp_path)
    assert run(tmp_path, source) == 0
    assert main(["import", "coco", str(tmp_path / "out"), str(tmp_path / "out")]) == 2
    assert "lies in the output folder" in capsys.readouterr().err
    assert len(load_coco(tmp_path / "out").records) == 1


def test_coco_refuses_a_file_as_output(tmp_path, capsys):
    source = make(tmp_path)
    assert main(["import", "coco", str(source), str(source), "--images", str(tmp_path / "pictures")]) == 2
    assert "train.json: is a file" in capsys.readouterr().err
    assert json.loads(source.read_text())["images"]


def write_set(folder, files):
    """Writes jsons, and for None an image of 40 x 30 whose brightness depends on its path."""
    for index, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            cv2.imwrite(str(path), np.full((30, 40), 80 + index, np.uint8))
        else:
            path.write_text(json.dumps(content))
    return folder


def coco(name, *, image=None, annotation=None, **keys):
    return {
        "images": [image or {"id": 1, "file_name": name, "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 8, 6]} | (annotation or {})],
        "categories": [{"id": 1, "name": "drone"}],
        **keys,
    }


PLACEHOLDER = [
    {"id": 0, "name": "drone", "supercategory": "none"},
    {"id": 1, "name": "drone", "supercategory": "drone"},
]
ROBOFLOW = {
    "train/_annotations.coco.json": coco("a_jpg.rf.1b.jpg", categories=PLACEHOLDER),
    "train/a_jpg.rf.1b.jpg": None,
    "valid/_annotations.coco.json": coco("a_jpg.rf.1b.jpg", categories=PLACEHOLDER),
    "valid/a_jpg.rf.1b.jpg": None,
}
FLIR_ENTRY = {"extra_info": {"human_annotated": True}, "iscrowd": False, "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}
FLIR = {
    "images_thermal_train/coco.json": coco("data/video-a-frame-000000-x.jpg", annotation=FLIR_ENTRY),
    "images_thermal_train/index.json": {"frames": []},
    "images_thermal_train/data/video-a-frame-000000-x.jpg": None,
    "images_thermal_val/coco.json": coco("data/video-b-frame-000001-y.jpg", annotation=FLIR_ENTRY),
    "images_thermal_val/index.json": {"frames": []},
    "images_thermal_val/data/video-b-frame-000001-y.jpg": None,
}
HIT_UAV = {}
for split in ("train", "val", "test"):
    content = coco("", image={"filename": f"0_60_30_0_{split}.jpg", "height": 30, "width": 40, "id": 1})
    content["annotation"] = content.pop("annotations")
    HIT_UAV |= {f"annotations/{split}.json": content, f"{split}/0_60_30_0_{split}.jpg": None}
COCO_2017 = {
    "annotations/instances_train2017.json": coco("000000000009.jpg"),
    "annotations/captions_train2017.json": {"images": [], "annotations": []},
    "annotations/instances_val2017.json": coco("000000000139.jpg"),
    "annotations/person_keypoints_val2017.json": {"images": [], "annotations": []},
    "train2017/000000000009.jpg": None,
    "val2017/000000000139.jpg": None,
}
CVAT = {
    "annotations/instances_train.json": coco("a.jpg", annotation={"attributes": {"occluded": False}}),
    "annotations/instances_val.json": coco("a.jpg", annotation={"attributes": {"occluded": False}}),
    "images/train/a.jpg": None,
    "images/val/a.jpg": None,
}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (ROBOFLOW, ["train", "val"]),
        (FLIR, ["train", "val"]),
        (HIT_UAV, ["train", "val", "test"]),
        (COCO_2017, ["train", "val"]),
        (CVAT, ["train", "val"]),
    ],
)
def test_coco_imports_folders_of_splits(tmp_path, files, splits):
    write_set(tmp_path / "in", files)
    images = [path for path, content in files.items() if content is None]
    assert main(["import", "coco", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.json")) == sorted(splits)
    for split, image in zip(splits, images, strict=True):
        (item,) = load_coco(tmp_path / "out", split=split).records
        np.testing.assert_array_equal(item.boxes, [[2, 3, 10, 9]])
        assert item.names == ["drone"] and item.ignore.tolist() == [False]
        assert item.path.read_bytes() == (tmp_path / "in" / image).read_bytes()
        (same,) = load_coco(tmp_path / "in", split=split).records
        assert same.path == (tmp_path / "in" / image).resolve()


LABEL_STUDIO = {
    "result.json": coco(
        "images\\8e2c1f0a-a.jpg",
        annotation={"bbox": [2.0, 3.0, 8.0, 6.0], "ignore": 0, "iscrowd": 0, "segmentation": [], "area": 48.0},
        info={"year": 2026, "contributor": "Label Studio"},
    ),
    "images/8e2c1f0a-a.jpg": None,
}
CVAT_DEFAULT = {"annotations/instances_default.json": coco("a.jpg"), "images/default/a.jpg": None}
OTHER_MACHINE = {"annotations.json": coco("/data/upload/1/a.jpg"), "photos/2026/a.jpg": None}


@pytest.mark.parametrize("files", [LABEL_STUDIO, CVAT_DEFAULT, OTHER_MACHINE])
def test_coco_imports_single_jsons_of_tools(tmp_path, capsys, files):
    write_set(tmp_path / "in", files)
    assert main(["import", "coco", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    (item,) = load_coco(tmp_path / "out").records
    np.testing.assert_array_equal(item.boxes, [[2, 3, 10, 9]])
    assert ("1 images found by their name alone" in capsys.readouterr().err) == (files is OTHER_MACHINE)


def test_coco_imports_splits_one_by_one_into_one_folder(tmp_path):
    write_set(tmp_path / "in", ROBOFLOW)
    for split in ("train", "valid"):
        assert main(["import", "coco", str(tmp_path / "in" / split), str(tmp_path / "out")]) == 0
    for split, folder in (("train", "train"), ("val", "valid")):
        (item,) = load_coco(tmp_path / f"out/{split}.json").records
        assert item.path.read_bytes() == (tmp_path / "in" / folder / "a_jpg.rf.1b.jpg").read_bytes()


def test_coco_second_import_replaces_neither_json_nor_images(tmp_path, capsys):
    for name in ("one", "two"):
        write_set(tmp_path / name, {"annotations.json": coco(f"{name}.jpg"), f"{name}.jpg": None})
    out = tmp_path / "out"
    command = ["import", "coco", str(tmp_path / "one"), str(out)]
    assert main(command) == 0 and main(command) == 0  # the same dataset again changes nothing
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["import", "coco", str(tmp_path / "two"), str(out)]) == 2
    error = capsys.readouterr().err
    assert "annotations.json: holds 1 images of an earlier import, which would be lost" in error
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # Another image of the same name.
    write_set(tmp_path / "three", {"annotations.json": coco("one.jpg"), "x.jpg": None, "y.jpg": None, "one.jpg": None})
    assert main(["import", "coco", str(tmp_path / "three"), str(out)]) == 2
    assert "images/one.jpg: is another image, of an earlier import" in capsys.readouterr().err
    assert main(["import", "coco", str(tmp_path / "two"), str(out), "--name", "val.json"]) == 0
    assert before.items() <= {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}.items()


def two_entries(**extras):
    content = coco("a.png")
    content["images"] = [content["images"][0] | {"id": i} | {k: v[i] for k, v in extras.items()} for i in (0, 1)]
    content["annotations"] = [
        {"id": i, "image_id": i % 2, "category_id": 1, "bbox": box}
        for i, box in enumerate([[2, 3, 8, 6], [20, 10, 5, 5], [20, 10, 5, 5]])
    ]
    return content


def test_coco_merges_entries_of_one_file(tmp_path, capsys):
    write_set(tmp_path / "in", {"annotations.json": two_entries(), "a.png": None})
    assert main(["import", "coco", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    (item,) = load_coco(tmp_path / "out").records
    np.testing.assert_array_equal(item.boxes, [[2, 3, 10, 9], [20, 10, 25, 15]])
    error = capsys.readouterr().err
    assert "1 images merged: the same file under several ids, the first: a.png" in error and "exact duplicates" in error


def test_coco_refuses_one_file_for_two_frames(tmp_path, capsys):
    write_set(tmp_path / "in", {"annotations.json": two_entries(video=["v1", "v2"]), "a.png": None})
    assert main(["import", "coco", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "a.png: one file for two images, video 'v1' and video 'v2'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["in", "in/annotations.json"])
def test_coco_json_does_not_replace_the_source(tmp_path, capsys, name):
    write_set(tmp_path / "in", {"annotations.json": coco("a.png"), "a.png": None})
    before = (tmp_path / "in/annotations.json").read_bytes()
    command = ["import", "coco", str(tmp_path / name), str(tmp_path / "out"), "--json"]
    assert main([*command, str(tmp_path / "in/annotations.json")]) == 2
    assert "annotations.json: is an input of this command" in capsys.readouterr().err
    assert (tmp_path / "in/annotations.json").read_bytes() == before and not (tmp_path / "out").exists()


def test_coco_failed_second_import_changes_nothing(tmp_path):
    both = coco("a.png") | {"images": [{"id": i, "file_name": name} for i, name in enumerate(("a.png", "b.png"), 1)]}
    write_set(tmp_path / "one", {"annotations.json": coco("a.png"), "a.png": None})
    write_set(tmp_path / "two", {"annotations.json": both, "b.png": None})
    (tmp_path / "two/a.png").write_bytes((tmp_path / "one/a.png").read_bytes())
    out, folder = tmp_path / "out", tmp_path / "folder"
    folder.mkdir()
    assert main(["import", "coco", str(tmp_path / "one"), str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["import", "coco", str(tmp_path / "two"), str(out), "--json", str(folder)]) == 2
    with pytest.raises(UserError, match="folder: cannot be written"):
        import_coco(Options(str(tmp_path / "two"), str(out), json=str(folder)))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(load_coco(out).records) == 1
    assert main(["import", "coco", str(tmp_path / "two"), str(out)]) == 0
    assert len(load_coco(out).records) == 2


def test_coco_merged_entries_keep_their_earlier_frames(tmp_path):
    past = [[[0.5, "b.png"]], [[0.1, "c.png"], [0.5, "b.png"]]]
    files = {"annotations.json": two_entries(past=past), "a.png": None, "b.png": None, "c.png": None}
    write_set(tmp_path / "in", files)
    assert main(["import", "coco", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    (item,) = load_coco(tmp_path / "out").records
    assert [(age, file.name) for age, file in item.past] == [(0.1, "c.png"), (0.5, "b.png")]
