import json

import numpy as np
import pytest

from danet.data.coco_dataset import load_coco
from danet.inference.stored_predictions import StoredPredictions, prediction_classes
from danet.utils.errors import UserError
from danet.utils.image_io import write_image

CLASSES = ["drone", "bird"]
GOOD = {"image_id": 7, "category_id": 1, "bbox": [10, 10, 12, 8], "score": 0.9}


@pytest.fixture
def data(tmp_path):
    """Two frames of 64 x 48 pixels in each of two videos; both videos have a frame 1."""
    images = []
    for key, name in ((7, "a/1.png"), (8, "a/2.png"), (9, "b/1.png"), (10, "b/3.png")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "images" / name, np.zeros((48, 64), np.uint8))
        images.append({"id": key, "file_name": f"images/{name}", "width": 64, "height": 48})
    categories = [{"id": 1, "name": "drone"}, {"id": 3, "name": "bird"}]
    content = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    return load_coco(tmp_path / "val.json")


def read_results(tmp_path, data, results, **options):
    (tmp_path / "results.json").write_text(json.dumps(results))
    return StoredPredictions(tmp_path / "results.json", data, CLASSES, **options)


def yolo_folder(tmp_path, files):
    folder = tmp_path / "labels"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_coco_results_become_the_detections_of_each_image(tmp_path, data):
    results = [
        {**GOOD, "score": 0.3},
        {**GOOD, "bbox": [1, 2, 3, 4], "category_id": 3},
        {**GOOD, "image_id": 9.0, "score": 1},
        {**GOOD, "score": 0.02, "bbox": [5, 5, 5, 5]},
    ]
    stored = read_results(tmp_path, data, results, score_threshold=0.02)
    first, second, third, _ = stored.select(data.records)
    assert first.boxes.tolist() == [[1, 2, 4, 6], [10, 10, 22, 18]] and first.labels.tolist() == [1, 0]
    assert len(second) == 0 and third.scores.tolist() == [1.0]
    assert stored.warnings == [] and "3 detections in 2 of 4 images" in stored.note
    assert [len(found) for found in stored.select(data.records[1:3])] == [0, 1]
    limited = read_results(tmp_path, data, results, max_detections=1)
    assert limited.select(data.records)[0].names == ["bird"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 70}, r"result 1: image_id 70 is not among the image ids of .*val\.json"),
        ({"image_id": "a/1.png"}, "image_id 'a/1.png' is not among"),
        ({"image_id": None}, "image_id is missing"),
        ({"category_id": 2}, r"category_id 2 is not among those of .* \(1 drone, 3 bird\)"),
        ({"category_id": 0}, "category_id 0 is not among"),
        ({"score": float("nan")}, "score must be a number from 0 to 1, got nan"),
        ({"score": 87}, "score must be a number from 0 to 1, got 87"),
        ({"score": None}, "score must be a number"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bbox must be four finite numbers"),
        ({"bbox": [10, 10, -2, 8]}, "bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3]}, "bbox must be four finite numbers"),
        ({"bbox": [70, 10, 5, 5]}, r"lies outside of 1\.png, which has 64 x 48 pixels, got \(70\.0, 10\.0, 75\.0"),
    ],
)
def test_invalid_results_are_one_line(tmp_path, data, change, message):
    with pytest.raises(UserError, match=message) as raised:
        read_results(tmp_path, data, [GOOD, {**GOOD, **change}])
    assert "\n" not in str(raised.value)


def test_files_that_are_no_results_are_one_line(tmp_path, data):
    (tmp_path / "empty.json").write_text("")
    for path, message in (
        (tmp_path / "empty.json", "not valid JSON"),
        (data.path, "must be a list of COCO results .* got a COCO dataset"),
        (tmp_path / "missing.json", "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            StoredPredictions(path, data, CLASSES)
    with pytest.raises(UserError, match="result 0: must be an object"):
        read_results(tmp_path, data, [[1, 2, 3, 4]])
    with pytest.raises(UserError, match="all coordinates lie between 0 and 1; boxes must be in pixels"):
        read_results(tmp_path, data, [{**GOOD, "bbox": [0.2, 0.3, 0.1, 0.1]}])


def test_doubtful_results_are_warnings(tmp_path, data):
    (line,) = read_results(tmp_path, data, []).warnings
    assert "there are no detections with a score above 0" in line
    results = [GOOD, GOOD, {**GOOD, "bbox": [60, 40, 10, 4]}, {**GOOD, "bbox": [20, 20, 0, 4]}]
    stored = read_results(tmp_path, data, results)
    assert stored.select(data.records)[0].boxes.tolist() == [[10, 10, 22, 18], [60, 40, 64, 44]]
    assert [line.split(": ", 1)[1].split(", the first")[0] for line in stored.warnings] == [
        "1 detections dropped: exact duplicates of another one",
        "1 boxes changed: clipped to the image",
        "1 boxes dropped: no area",
    ]


def test_class_map_renames_and_drops_classes_of_results(tmp_path, data):
    results = [GOOD, {**GOOD, "category_id": 3, "bbox": [1, 2, 3, 4]}]
    assert prediction_classes([data], class_map={"bird": "drone"}) == ["drone"]
    assert read_results(tmp_path, data, results, class_map={"bird": "drone"}).select(data.records)[0].names == [
        "drone", "drone",
    ]  # fmt: skip
    ignored = read_results(tmp_path, data, results, class_map={"bird": "ignore"})
    assert ignored.select(data.records)[0].names == ["drone"]


def test_results_of_classes_that_the_data_lack_have_ids_above_the_largest(tmp_path, data):
    (tmp_path / "results.json").write_text(json.dumps([{**GOOD, "category_id": 4}]))
    names = ["drone", "plane"]
    stored = StoredPredictions(tmp_path / "results.json", data, names, class_names=names)
    assert stored.select(data.records)[0].names == ["plane"]
    (tmp_path / "results.json").write_text(json.dumps([{**GOOD, "category_id": 3}]))
    with pytest.raises(UserError, match="its class 'bird' is not among drone, plane"):
        StoredPredictions(tmp_path / "results.json", data, names, class_names=names)


def test_yolo_files_are_found_by_name_and_folder(tmp_path, data):
    text = "0 0.5 0.5 0.25 0.5 0.9\n\n1 0.25 0.25 0.125 0.25 0.3\n"
    folder = yolo_folder(tmp_path / "out", {"a_1.txt": text, "2.txt": "0 0.5 0.5 0.25 0.5 0.5", "b/1.txt": ""})
    for path in (folder, folder.parent):  # also the folder above, as Ultralytics writes it
        stored = StoredPredictions(path, data, CLASSES, class_names=CLASSES)
        first, second, third, _ = stored.select(data.records)
        assert first.boxes.tolist() == [[24, 12, 40, 36], [12, 6, 20, 18]] and first.names == ["drone", "bird"]
        assert second.scores.tolist() == [0.5] and len(third) == 0


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "there are no .txt files"),
        ({"1.txt": ""}, r"several images have this name, such as .*a/1\.png and .*b/1\.png"),
        ({"4.txt": ""}, r"4\.txt: no image of the dataset has this name, such as 1\.png"),
        ({"2.txt": "", "a_2.txt": ""}, "belongs to the same image as"),
        ({"2.txt": "0 0.5 0.5 0.25 0.5"}, "line 1: has no confidence"),
        ({"2.txt": "0 0.5 0.5 0.25 0.5 nan"}, "line 1: must be 'class x y width height confidence'"),
        ({"2.txt": "0 0.5 0.5 0.25 0.5 1.5"}, "the confidence must be a number from 0 to 1, got '1.5'"),
        ({"2.txt": "0 32 24 12 8 0.5"}, "coordinates must be between 0 and 1"),
        ({"2.txt": "2 0.5 0.5 0.25 0.5 0.5"}, r"class '2' has no name; there are 2 \(drone, bird\)"),
        ({"2.txt": "drone 0.5 0.5 0.25 0.5 0.5"}, "must be six numbers"),
    ],
)
def test_invalid_yolo_files_are_one_line(tmp_path, data, files, message):
    folder = yolo_folder(tmp_path, files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as raised:
        StoredPredictions(folder, data, CLASSES, class_names=CLASSES)
    assert "\n" not in str(raised.value)


def test_yolo_files_need_the_names_of_their_classes(tmp_path, data):
    folder = yolo_folder(tmp_path, {"2.txt": "0 0.5 0.5 0.25 0.5 0.9"})
    with pytest.raises(UserError, match="give --class_names in the order of their numbers"):
        StoredPredictions(folder, data, CLASSES)
