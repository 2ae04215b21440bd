"""One rule for the EXIF orientation: import, training and detection see the image that viewers show."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

import danet
from danet.data.__main__ import main
from danet.data.loader import DetectionDataset


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_import_training_and_detection_agree_on_the_orientation(tmp_path, orientation):
    stored = np.random.default_rng(0).normal(90, 3, (96, 128)).clip(0, 255).astype(np.uint8)
    stored[27:34, 37:44] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = tmp_path / "yolo"
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
    Image.fromarray(stored).save(source / "images" / "a.jpg", quality=95, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(source / "images" / "a.jpg")))
    height, width = shown.shape
    rows, columns = np.nonzero(shown > 200)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    values = (*(centre / (width, height)), *(size / (width, height)))
    (source / "labels" / "a.txt").write_text(" ".join(map(str, (0, *values))))
    (source / "classes.txt").write_text("drone\n")

    assert main(["import", "yolo", str(source), str(tmp_path / "out"), "--quiet"]) == 0
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (width, height)
    (x, y, w, h) = content["annotations"][0]["bbox"]
    assert np.allclose([x, y, x + w, y + h], box, atol=0.01)

    sample = DetectionDataset([str(tmp_path / "out")], ["drone"])[0]
    x0, y0, x1, y1 = sample.boxes[0].round().int().tolist()
    assert sample.image[0, y0:y1, x0:x1].min() > 4 * sample.image[0, :y0].abs().mean(), "the box is on the target"

    detector = danet.load(score_threshold=0.01)
    by_path, by_array = detector(tmp_path / "out" / "images" / "a.jpg"), detector(shown)
    assert len(by_path.scores) == len(by_array.scores) and np.allclose(by_path.boxes, by_array.boxes, atol=0.5)
