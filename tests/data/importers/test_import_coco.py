import json

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco


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
