import json

import cv2
import numpy as np
import pytest
import torch

from danet.detections import Detection, Detections

CLASSES = ["drone", "bird"]


def three(image=None) -> Detections:
    boxes = torch.tensor([[10.0, 12.0, 20.0, 18.0], [30.0, 30.0, 40.0, 44.0], [50.0, 5.0, 58.0, 9.0]])
    return Detections(boxes, torch.tensor([0.9, 0.7, 0.4]), torch.tensor([0, 1, 0]), CLASSES, image)


def test_detections_unpack_to_their_arrays():
    found = three()
    boxes, scores, labels = found
    assert boxes is found.boxes and scores is found.scores and labels is found.labels
    for boxes, _, _ in [found]:
        assert boxes is found.boxes
    first, *rest = found
    assert first is found.boxes and len(rest) == 2
    assert (lambda boxes, scores, labels: scores)(*found) is found.scores
    with pytest.raises(ValueError, match="unpack"):
        _, _ = found


def test_detections_iterate_over_each_detection():
    found = three()
    assert [each.name for each in found] == ["drone", "bird", "drone"] == found.names
    assert [each.score for each in list(found)] == pytest.approx([0.9, 0.7, 0.4])
    assert len(found) == 3 == len(list(found)) and bool(found) and not found[[]]
    assert sum(1 for _ in enumerate(found)) == 3


def test_detections_index_by_number_mask_and_slice():
    found = three()
    assert found[0] == Detection((10.0, 12.0, 20.0, 18.0), pytest.approx(0.9), 0, "drone")
    assert found[-1].score == pytest.approx(0.4) and found[np.int64(1)].name == "bird"
    with pytest.raises(IndexError, match="detection 3 of 3"):
        _ = found[3]
    for index in (found.scores > 0.5, (found.scores > 0.5).numpy(), [True, True, False], [0, 1], slice(2)):
        part = found[index]
        assert isinstance(part, Detections) and part.names == ["drone", "bird"], index
        assert torch.equal(part.boxes, found.boxes[:2]) and part.classes == CLASSES
    assert len(found[found.scores > 1]) == 0


def test_detections_numpy_and_dict_hold_the_same_values():
    found = three()
    arrays = found.numpy()
    assert isinstance(arrays.boxes, np.ndarray) and np.array_equal(arrays.boxes, found.boxes.numpy())
    assert arrays[arrays.scores > 0.8].names == ["drone"] and arrays[0] == found[0]
    boxes, _, labels = arrays
    assert boxes.shape == (3, 4) and labels.tolist() == [0, 1, 0]
    content = json.loads(json.dumps(found.to_dict()))
    assert content["names"] == ["drone", "bird", "drone"] and content["boxes"][1] == [30.0, 30.0, 40.0, 44.0]
    assert arrays.to_dict() == found.to_dict()


def test_detections_repr_is_short_and_lists_the_best():
    assert repr(three()).startswith("Detections(3: drone 0.90 at (10.0, 12.0, 20.0, 18.0), bird 0.70 at")
    assert repr(three()[[]]) == "Detections(0)"
    many = Detections(torch.zeros(40, 4), torch.linspace(1, 0, 40), torch.zeros(40, dtype=torch.int64))
    assert repr(many).endswith("and 35 more)") and len(repr(many)) < 300
    assert many.names[:2] == ["0", "0"], "without class names, their numbers"


def test_detections_plot_draws_into_a_copy(tmp_path):
    image = np.full((64, 80), 90, np.uint8)
    plain = image.copy()
    drawn = three().plot(image, upscale=2)
    assert drawn.shape == (128, 160, 3) and np.array_equal(image, plain)
    assert not np.array_equal(drawn[..., 0], drawn[..., 2]), "boxes are coloured"
    assert np.array_equal(three(image).plot(), three().plot(image))
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert np.array_equal(three(tmp_path / "a.png").plot(), three().plot(image))
    with pytest.raises(ValueError, match="do not keep their image"):
        three().plot()


def test_detections_save_by_suffix(tmp_path):
    image = np.full((64, 80), 90, np.uint8)
    assert json.loads(three().save(tmp_path / "a.json").read_text()) == three().to_dict()
    lines = three().save(tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "class,score,x0,y0,x1,y1" and lines[2] == "bird,0.7,30.0,30.0,40.0,44.0" and len(lines) == 4
    assert np.array_equal(cv2.imread(str(three().save(tmp_path / "a.png", image))), three().plot(image))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.png"]


def test_conversion_to_supervision():
    pytest.importorskip("supervision", reason="needs pip install supervision")
    boxes = torch.tensor([[1.0, 2, 9, 8], [3, 3, 5, 6]])
    found = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([1, 0]), ["drone", "bird"])
    other = found.to_supervision()
    assert other.xyxy.tolist() == boxes.tolist() and other.class_id.tolist() == [1, 0]
    assert other.data["class_name"].tolist() == ["bird", "drone"] and len(found[:0].to_supervision()) == 0


def test_conversion_to_coco_uses_the_ids_of_the_dataset():
    found = Detections(torch.tensor([[1.0, 2, 9, 8]]), torch.tensor([0.9]), torch.tensor([1]), ["drone", "bird"])
    (result,) = found.to_coco("a.png", {"bird": 16})
    assert result == {"image_id": "a.png", "category_id": 16, "bbox": [1.0, 2.0, 8.0, 6.0], "score": 0.9}
