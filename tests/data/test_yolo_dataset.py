"""YOLO datasets as Ultralytics, Roboflow, CVAT, Label Studio and labelImg write them, read without an import."""

import os

import cv2
import numpy as np
import pytest

from danet.data.coco_dataset import list_splits, load_coco
from danet.data.loader import DetectionDataset
from danet.utils.errors import UserError

BOX = "0 0.25 0.25 0.05 0.05\n"


def write(folder, files):
    """Writes texts, and for None an image of 160 x 120."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            cv2.imwrite(str(path), np.full((120, 160), 90, np.uint8))
        else:
            path.write_text(text)
    return folder


def pair(images, labels, name="a", text=BOX):
    return {f"{images}/{name}.jpg": None, f"{labels}/{name}.txt": text}


ULTRALYTICS = {
    "data.yaml": "path: ../datasets/uav\ntrain: images/train\nval: images/val\ntest: # optional\nnames:\n  0: drone\n",
    **pair("images/train", "labels/train"),
    **pair("images/val", "labels/val"),
}
ROBOFLOW = {
    "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\nnames: ['drone']\n",
    "README.roboflow.txt": "uav - v1\n",
    **pair("train/images", "train/labels", "a_jpg.rf.0b1f"),
    **pair("valid/images", "valid/labels", "b_jpg.rf.77aa"),
}
CVAT_ULTRALYTICS = {
    "data.yaml": "names:\n  0: drone\npath: .\ntrain: train.txt\nval: val.txt\n",
    "train.txt": "data/images/train/a.jpg\n",
    "val.txt": "images/val/a.jpg\n",
    **pair("images/train", "labels/train"),
    **pair("images/val", "labels/val"),
}
CVAT_YOLO = {
    "obj.data": "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = data/\n",
    "obj.names": "drone\n",
    "train.txt": "data/obj_train_data/a.jpg\n",
    "valid.txt": "data/obj_valid_data/a.jpg\n",
    **pair("obj_train_data", "obj_train_data"),
    **pair("obj_valid_data", "obj_valid_data"),
}
LABEL_STUDIO = {
    "classes.txt": "drone",
    "notes.json": '{"categories": [{"id": 0, "name": "drone"}], "info": {"contributor": "Label Studio"}}',
    **pair("images", "labels", "8e2c1f0a-frame_1"),
}
LABELIMG = {"classes.txt": "drone\n", "a.jpg": None, "a.txt": BOX}
KAGGLE = {"classes.txt": "drone\n", **pair("images/train", "labels/train"), **pair("images/val", "labels/val")}
NESTED = {"classes.txt": "drone\n", **pair("images/flight1", "labels/flight1"), **pair("images/b", "labels/b")}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (ULTRALYTICS, ["train", "val"]),
        (ROBOFLOW, ["train", "val"]),
        (CVAT_ULTRALYTICS, ["train", "val"]),
        (CVAT_YOLO, ["train", "val"]),
        (KAGGLE, ["train", "val"]),
        (LABEL_STUDIO, ["annotations"]),
        (LABELIMG, ["annotations"]),
        (NESTED, ["annotations"]),
    ],
)
def test_load_coco_reads_yolo_layouts(tmp_path, files, splits):
    write(tmp_path, files)
    assert list_splits(tmp_path) == splits
    for split in splits:
        dataset = load_coco(tmp_path, split=split)
        assert dataset.categories == ["drone"] and len(dataset.records) == (2 if files is NESTED else 1)
        for record in dataset.records:
            assert (record.width, record.height) == (160, 120) and record.path.is_file()
            np.testing.assert_allclose(record.boxes, [[36, 27, 44, 33]], atol=1e-4)


def test_load_coco_of_data_yaml_needs_a_split(tmp_path):
    write(tmp_path, ULTRALYTICS)
    path = tmp_path / "data.yaml"
    with pytest.raises(UserError, match=r"data\.yaml: has several splits \(it has: train, val\)"):
        load_coco(path)
    with pytest.raises(UserError, match=r"data\.yaml: has no split 'test'"):
        load_coco(path, split="test")
    assert load_coco(path, split="val").records[0].path == tmp_path / "images/val/a.jpg"


def test_detection_dataset_accepts_data_yaml(tmp_path):
    write(tmp_path, ULTRALYTICS)
    dataset = DetectionDataset([str(tmp_path / "data.yaml")], ["drone"])
    assert dataset.records[0].path == tmp_path / "images/train/a.jpg"
    np.testing.assert_allclose(dataset[0].boxes, [[36, 27, 44, 33]], atol=1e-4)


def test_yolo_missing_test_split_is_noted_and_a_missing_val_refused(tmp_path):
    write(tmp_path, ROBOFLOW)
    assert "'test' names '../test/images', which does not exist" in load_coco(tmp_path, split="train").warnings[0]
    # A folder images/ beside it is not the missing test/images.
    write(tmp_path, pair("images", "labels"))
    assert list_splits(tmp_path) == ["train", "val"]
    (tmp_path / "data.yaml").write_text(ROBOFLOW["data.yaml"].replace("valid", "nowhere"))
    with pytest.raises(UserError, match=r"'val' names the folder \.\./nowhere/images, which does not exist"):
        load_coco(tmp_path, split="train")


def test_yolo_several_folders_and_lists_are_one_split(tmp_path):
    files = {
        "data.yaml": "train: [images/one, images/two, list.txt]\nval: images/val\nnames: [drone]",
        "list.txt": "./images/three/a.jpg\nimages/three/a.jpg\n\n",
    }
    for name in ("one", "two", "three", "val"):
        files |= pair(f"images/{name}", f"labels/{name}")
    dataset = load_coco(write(tmp_path, files), split="train")
    assert [record.path.parent.name for record in dataset.records] == ["one", "two", "three"]
    assert dataset.repairs.lines()[0].startswith("1 lines dropped: the list names an image twice")


@pytest.mark.parametrize("link", ["images", "labels", "image", "root"])
def test_yolo_links_keep_their_labels(tmp_path, link):
    root = tmp_path / "set"
    write(root, {"data.yaml": "train: images/train\nval: images/val\nnames: [drone]"})
    write(root, pair("images/train", "labels/train"))
    if link == "images":  # a link to the raw recordings; the labels are beside the link
        write(tmp_path, {"raw/flight7/a.jpg": None, "set/labels/val/a.txt": BOX})
        os.symlink("../../raw/flight7", root / "images/val")
    elif link == "labels":
        write(tmp_path, {"set/images/val/a.jpg": None, "annotators/7/a.txt": BOX})
        os.symlink(tmp_path / "annotators/7", root / "labels/val")
    elif link == "image":  # the labels are beside the linked image
        write(tmp_path, {**pair("raw/images", "raw/labels"), "set/images/val/b.txt": ""})
        os.symlink(tmp_path / "raw/images/a.jpg", root / "images/val/a.jpg")
    else:
        write(root, pair("images/val", "labels/val"))
        os.symlink(root, tmp_path / "linked")
        root = tmp_path / "linked"
    for split in ("train", "val"):
        np.testing.assert_allclose(load_coco(root, split=split).records[0].boxes, [[36, 27, 44, 33]], atol=1e-4)


def test_yolo_folder_images_above_the_dataset_is_no_label_folder(tmp_path):
    root = write(tmp_path / "images/set", {**LABELIMG, "a.txt": BOX})
    write(tmp_path, {"labels/set/a.txt": "0 0.5 0.5 0.1 0.1\n"})
    (root / "images").mkdir()
    for name in ("a.jpg", "a.txt"):
        (root / name).rename(root / "images" / name)
    np.testing.assert_allclose(load_coco(root).records[0].boxes, [[36, 27, 44, 33]], atol=1e-4)


def test_yolo_split_without_labels_is_an_error_or_a_warning(tmp_path):
    write(tmp_path, ULTRALYTICS)
    (tmp_path / "labels/val/a.txt").unlink()
    with pytest.raises(UserError, match="images/val: none of the 1 images of 'val' has a label file"):
        load_coco(tmp_path, split="val")
    write(tmp_path, {"images/test/t.jpg": None})
    (tmp_path / "data.yaml").write_text(ULTRALYTICS["data.yaml"].replace("test:", "test: images/test"))
    dataset = load_coco(tmp_path, split="test")
    assert len(dataset.records) == 1 and dataset.warnings[0].startswith("warning: ")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: {0: drone, x: bird}", "the keys of 'names' must be the numbers"),
        ("names: {0: drone, 2: bird}", "must be 0, 1, 2, ... without a gap"),
        ("names: [drone, no]", "class 1 has the name False, which is no text; put it into quotes"),
        ("names: [drone, null]", "class 1 has the name None"),
        ("names: [drone, drone]", "a class name occurs twice: 'drone'"),
        ('names: ["a\\u001b[2J"]', "class 0: a name must not contain control characters"),
        ("names: 3", "no class names"),
        ("names: [drone]\ntrain: 3", "'train' must be a folder or a list of images"),
        ("names: [drone]\ntrain: {a: b}", "'train' must be a folder or a list of images"),
        ("names: [drone]\nkpt_shape: [x]", "kpt_shape must be two integers"),
        ('names: [drone]\ntrain: "a\\0b"', "a name must not contain control characters"),
        ("- 1", "must contain 'names' and folders"),
    ],
)
def test_yolo_names_a_wrong_data_yaml(tmp_path, names, message):
    write(tmp_path, {**ULTRALYTICS, "data.yaml": names})
    with pytest.raises(UserError, match=message) as caught:
        load_coco(tmp_path, split="train")
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_yolo_classes_txt_must_not_have_empty_lines(tmp_path):
    write(tmp_path, {**LABELIMG, "classes.txt": "drone\n\nbird\n"})
    with pytest.raises(UserError, match=r"classes\.txt: line 2 is empty"):
        load_coco(tmp_path)
    write(tmp_path, {"classes.txt": "\n"})
    with pytest.raises(UserError, match=r"classes\.txt: no class names"):
        load_coco(tmp_path)


def test_yolo_list_names_a_missing_image(tmp_path):
    write(tmp_path, CVAT_ULTRALYTICS)
    (tmp_path / "images/train/a.jpg").unlink()
    with pytest.raises(UserError, match=r"train\.txt: line 1: there is no image 'data/images/train/a\.jpg'"):
        load_coco(tmp_path, split="train")
