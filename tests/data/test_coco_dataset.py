import copy
import json
import time

import cv2
import numpy as np
import pytest

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.utils.errors import UserError

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30, "video": "v", "frame": 3, "recording": "r"},
        {"id": 9, "file_name": "sub/b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 4, "bbox": [1.5, 2, 10, 5]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 4, "name": "drone"}, {"id": 2, "name": "bird"}],
}


@pytest.fixture
def content(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40), np.uint8))
    return copy.deepcopy(CONTENT)


def save(folder, content, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_load_coco_reads_boxes_names_and_extras(tmp_path, content):
    dataset = load_coco(save(tmp_path, content))
    a, b = dataset.records
    assert dataset.categories == ["drone", "bird"] and dataset.warnings == []
    assert a.path == (tmp_path / "a.png").resolve() and (a.width, a.height) == (40, 30)
    np.testing.assert_array_equal(a.boxes, np.array([[1.5, 2, 11.5, 7], [0, 0, 4, 4]], np.float32))
    assert a.boxes.dtype == np.float32 and a.names == ["drone", "bird"] and a.ignore.tolist() == [False, True]
    assert (a.video, a.frame, a.recording) == ("v", 3, "r")
    assert b.boxes.shape == (0, 4) and b.ignore.shape == (0,) and (b.video, b.frame, b.recording) == (None,) * 3


def test_load_coco_finds_the_json_of_a_folder(tmp_path, content):
    save(tmp_path, content, "train.json")
    assert load_coco(tmp_path).path.name == "train.json"
    save(tmp_path, content, "val.json")
    with pytest.raises(UserError, match=r"train\.json, val\.json"):
        load_coco(tmp_path)
    save(tmp_path, content)
    assert load_coco(tmp_path).path.name == "annotations.json"


def test_write_coco_round_trip_in_another_folder(tmp_path, content):
    dataset = load_coco(save(tmp_path, content))
    path = tmp_path / "new" / "deep" / "copy.json"
    write_coco(path, dataset.records, dataset.categories)
    again = load_coco(path)
    assert json.loads(path.read_text())["images"][1]["file_name"] == "../../sub/b.png"
    assert again.categories == dataset.categories
    for before, after in zip(dataset.records, again.records, strict=True):
        assert before.path == after.path and before.names == after.names
        assert (before.video, before.frame, before.recording) == (after.video, after.frame, after.recording)
        np.testing.assert_array_equal(before.boxes, after.boxes)
        np.testing.assert_array_equal(before.ignore, after.ignore)


def test_load_coco_clips_or_drops_boxes_with_a_warning(tmp_path, content):
    for index, bbox in enumerate([[-3, 5, 10, 10], [41, 5, 3, 3], [5, 5, 0, 3], [30, 20, 10.005, 10]], 10):
        content["annotations"].append({"id": index, "image_id": 9, "category_id": 4, "bbox": bbox})
    dataset = load_coco(save(tmp_path, content))
    np.testing.assert_array_equal(dataset.records[1].boxes, [[0, 5, 7, 15], [30, 20, 40, 30]])
    assert [warning.split(", ")[-1] for warning in dataset.warnings] == ["clipped", "dropped", "dropped"]
    assert all(warning.startswith("b.png") for warning in dataset.warnings)


def change(**values):
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(bbox=[1, float("nan"), 3, 4]), r"annotation 1: .*not finite \(a\.png\)"),
        (change(bbox=[1, 2, float("inf"), 4]), "annotation 1: .*not finite"),
        (change(bbox=[1, 2, 10**400, 4]), "annotation 1: .*not finite"),
        (change(bbox=[1, 2, -3, 4]), "annotation 1: .*negative size"),
        (change(bbox=[1, 2, 3]), "annotation 1: bbox must be four numbers"),
        (change(bbox=None), "annotation 1: bbox must be four numbers"),
        (change(bbox=[1, 2, "3", 4]), "annotation 1: bbox must be four numbers"),
        (change(category_id=3), "annotation 1: category id 3 is not among"),
        (change(category_id=None), "annotation 1: category_id is missing"),
        (change(image_id=8), "annotation 1: image id 8 is not among"),
        (change(image_id=[7]), "annotation 1: image_id"),
        (change(id=2), "annotation 2: this id is used twice"),
        (lambda c: c["images"][1].update(id=7), r"sub/b\.png.*used twice"),
        (lambda c: c["images"][1].update(file_name="c.png"), r"c\.png.*there is no file"),
        (lambda c: c["images"][1].update(width=0), r"sub/b\.png.*width must be"),
        (lambda c: c["images"][1].update(recording=5), r"sub/b\.png.*recording must be"),
        (lambda c: c["images"][1].pop("file_name"), "file_name is missing"),
        (lambda c: c["categories"][1].update(name="drone"), "category 2.*used twice"),
        (lambda c: c["categories"][1].pop("name"), "category 2 has no name"),
        (lambda c: c.pop("categories"), "'categories' must be a list"),
        (lambda c: c["annotations"].append(3), "'annotations' must be a list of objects"),
    ],
)
def test_load_coco_names_the_error_and_the_file(tmp_path, content, damage, message):
    damage(content)
    path = save(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        load_coco(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path.resolve()))


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"images": '])
def test_load_coco_refuses_other_files(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json: not"):
        load_coco(path)
    with pytest.raises(UserError, match=r"y\.json: no such file"):
        load_coco(tmp_path / "y.json")


def test_write_coco_refuses_an_unknown_category(tmp_path, content):
    records = load_coco(save(tmp_path, content)).records
    with pytest.raises(UserError, match=r"a\.png has a box of 'bird'"):
        write_coco(tmp_path / "out" / "x.json", records, ["drone"])
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_load_coco_speed(tmp_path, content):
    a = load_coco(save(tmp_path, content)).records[0]
    records = [ImageRecord(a.path, 40, 30, a.boxes, a.names, a.ignore) for _ in range(30_000)]
    start = time.process_time()
    write_coco(tmp_path / "many.json", records, ["drone", "bird"])
    assert len(load_coco(tmp_path / "many.json").records) == 30_000
    assert time.process_time() - start < 15


def test_load_coco_reads_the_svanstrom_frames(real_data):
    counts = {"train": (1505, [672, 391, 308, 231]), "val": (280, [126, 58, 56, 42])}
    for split, (images, boxes) in counts.items():
        dataset = load_coco(real_data / "svanstrom-ir-frames" / f"{split}.json")
        names = [name for item in dataset.records for name in item.names]
        assert len(dataset.records) == images
        assert [names.count(name) for name in ("drone", "bird", "airplane", "helicopter")] == boxes
        assert dataset.warnings == []


@pytest.mark.parametrize(
    ("keys", "ignore"),
    [
        ({"iscrowd": "0"}, False),
        ({"iscrowd": "1"}, True),
        ({"iscrowd": False}, False),
        ({"iscrowd": True}, True),
        ({"iscrowd": "false"}, False),
        ({"iscrowd": "True"}, True),
        ({"iscrowd": None}, False),
        ({"iscrowd": 0.0}, False),
        ({"ignore": 1}, True),
        ({"ignore": "1", "iscrowd": 0}, True),
        ({"ignore": 0, "iscrowd": 1}, True),
        ({"ignore": False}, False),
    ],
)
def test_load_coco_reads_flags_as_tools_write_them(tmp_path, content, keys, ignore):
    content["annotations"][0] |= keys
    dataset = load_coco(save(tmp_path, content))
    assert dataset.records[0].ignore.tolist() == [ignore, True]
    texts = sum(isinstance(value, str) for value in keys.values())
    assert sum(dataset.repairs.counts.values()) == texts


@pytest.mark.parametrize("value", ["maybe", 2, -1, [], {}, float("nan")])
def test_load_coco_refuses_other_flags(tmp_path, content, value):
    content["annotations"][0]["iscrowd"] = value
    with pytest.raises(UserError, match="annotation 1: iscrowd must be 0 or 1"):
        load_coco(save(tmp_path, content))


def test_load_coco_drops_exact_duplicates(tmp_path, content):
    first = content["annotations"][0]
    same, crowd, other = ({**first, "id": i} for i in (10, 11, 12))
    content["annotations"] += [same, crowd | {"iscrowd": 1}, other | {"category_id": 2}]
    dataset = load_coco(save(tmp_path, content))
    assert len(dataset.records[0].boxes) == 4
    assert dataset.repairs.lines() == [
        f"1 boxes dropped: exact duplicates of another box, the first: {dataset.path}: annotation 10"
    ]


def test_load_coco_keeps_the_ids_of_images_that_share_a_file(tmp_path, content):
    content["images"].append(content["images"][0] | {"id": 22})
    content["annotations"].append({"id": 3, "image_id": 22, "category_id": 4, "bbox": [20, 10, 4, 4]})
    dataset = load_coco(save(tmp_path, content))
    assert [record.image_id for record in dataset.records] == [7, 9, 22]
    assert [len(record.boxes) for record in dataset.records] == [2, 0, 1]
    assert "1 images that are the same file as another image" in dataset.repairs.lines()[0]
    assert dataset.category_ids == {"drone": 4, "bird": 2}


def test_load_coco_takes_the_extent_of_a_polygon(tmp_path, content):
    polygons = [[3, 4, 9, 4, 9, 10, 3, 10], [20, 5, 22, 5, 22, 8]]
    content["annotations"][0] |= {"bbox": [], "segmentation": polygons}
    content["annotations"].append({"id": 5, "image_id": 9, "category_id": 4, "segmentation": polygons[:1]})
    dataset = load_coco(save(tmp_path, content))
    np.testing.assert_array_equal(dataset.records[0].boxes[0], [3, 4, 22, 10])
    np.testing.assert_array_equal(dataset.records[1].boxes, [[3, 4, 9, 10]])
    assert dataset.repairs.lines()[0].startswith("2 boxes added: the extent of the polygon")


@pytest.mark.parametrize(
    "segmentation", [[], [[1, 2]], [[1, 2, 3, "x", 5, 6]], {"size": [1, 2]}, [[1, 2, 3, 4, 5, 1e999]]]
)
def test_load_coco_refuses_a_missing_box_without_polygon(tmp_path, content, segmentation):
    content["annotations"][0] |= {"bbox": None, "segmentation": segmentation}
    with pytest.raises(UserError, match="annotation 1: bbox must be four numbers"):
        load_coco(save(tmp_path, content))


def test_load_coco_drops_the_unused_category_of_roboflow(tmp_path, content):
    content["categories"].insert(0, {"id": 0, "name": "drone", "supercategory": "none"})
    dataset = load_coco(save(tmp_path, content))
    assert dataset.category_ids == {"drone": 4, "bird": 2}
    assert "1 categories dropped: unused, with the name of another" in dataset.repairs.lines()[0]


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[31m", "a\nb", "x" * 300, " "])
@pytest.mark.parametrize("place", ["category", "video", "recording", "file_name"])
def test_load_coco_refuses_names_that_cannot_be_printed(tmp_path, content, name, place):
    if place == "file_name" and name[0] in "x ":
        return
    item = content["categories" if place == "category" else "images"][0]
    item["name" if place == "category" else place] = name
    with pytest.raises(UserError, match="a name must") as caught:
        load_coco(save(tmp_path, content))
    str(caught.value).encode()
    assert str(caught.value).startswith(str(tmp_path.resolve())) and len(str(caught.value)) < 400


def test_load_coco_reads_missing_sizes_from_the_files(tmp_path, content):
    for key in ("width", "height"):
        del content["images"][0][key]
        content["images"][1][key] = float(content["images"][1][key])
    dataset = load_coco(save(tmp_path, content))
    assert [(record.width, record.height) for record in dataset.records] == [(40, 30)] * 2
    assert dataset.repairs.lines()[0].startswith("1 image sizes added: read from the file")


def test_load_coco_of_a_folder_chooses_the_split(tmp_path, content):
    for name in ("train.json", "val.json"):
        save(tmp_path, content | {"annotations": []} if name == "val.json" else content, name)
    assert load_coco(tmp_path, split="train").path.name == "train.json"
    assert load_coco(tmp_path, split="val").path.name == "val.json"
    with pytest.raises(UserError, match=r"has no split 'test' \(it has: train, val\)"):
        load_coco(tmp_path, split="test")
    save(tmp_path, content)  # beside the whole dataset, which a split must not be replaced by
    assert load_coco(tmp_path, split="train").path.name == "train.json"
    assert load_coco(tmp_path).path.name == "annotations.json"


def test_find_splits_refuses_two_jsons_for_one_split(tmp_path, content):
    for folder in ("images_rgb_train", "images_thermal_train"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder, content, "coco.json")
    with pytest.raises(UserError, match="two jsons belong to 'train'"):
        load_coco(tmp_path, split="train")


def test_load_coco_limits_categories_and_boxes_per_image(tmp_path, content):
    start = time.process_time()
    many = {**content, "categories": [{"id": i, "name": f"c{i}"} for i in range(20_000)]}
    with pytest.raises(UserError, match="20000 categories; the limit is 10000"):
        load_coco(save(tmp_path, many))
    boxes = [{"id": i, "image_id": 7, "category_id": 4, "bbox": [1, 1, 3, 3]} for i in range(100_001)]
    with pytest.raises(UserError, match="image 7: 100001 boxes in one image; the limit is 100000"):
        load_coco(save(tmp_path, {**content, "annotations": boxes}))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("past", "message"),
    [
        (5, "past must be a list of at most 64 frames, got 5"),
        ([[0.5, "b.png"]] * 65, "past must be a list of at most 64 frames"),
        ([["b.png", 0.5]], "past must hold pairs of positive seconds and a file name"),
        ([[0, "b.png"]], "past must hold pairs of positive seconds and a file name"),
        ([[float("nan"), "b.png"]], "past must hold pairs of positive seconds and a file name"),
        ([[0.5, "missing.png"]], "there is no file .*missing.png"),
    ],
)
def test_load_coco_names_invalid_earlier_frames(tmp_path, past, message):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((30, 40), np.uint8))
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 30, "past": past}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "drone"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_coco(tmp_path / "a.json")


def test_write_coco_keeps_the_earlier_frames(tmp_path):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40), np.uint8))
    nothing = np.zeros((0, 4), np.float32), [], np.zeros(0, bool)
    record = ImageRecord(tmp_path / "a.png", 40, 30, *nothing, past=((0.5, tmp_path / "b.png"),))
    write_coco(tmp_path / "a.json", [record], ["drone"])
    assert load_coco(tmp_path / "a.json").records[0].past == ((0.5, tmp_path / "b.png"),)
