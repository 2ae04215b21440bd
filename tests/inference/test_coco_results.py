import json

import cv2
import numpy as np
import torch

from danet.boxes import Detections
from danet.data.coco_dataset import load_coco
from danet.inference.coco_results import read_coco_results, to_coco_results


def test_coco_results_keep_the_ids_of_images_that_share_a_file(tmp_path):
    """Frames of two videos that were exported under one name: each image has its own detections."""
    cv2.imwrite(str(tmp_path / "frame.png"), np.full((30, 40), 90, np.uint8))
    content = {
        "images": [{"id": key, "file_name": "frame.png", "width": 40, "height": 30} for key in (11, "b", 22)],
        "annotations": [],
        "categories": [{"id": 5, "name": "drone"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = load_coco(tmp_path / "a.json")
    found = [
        Detections(torch.tensor([[x, 2.0, x + 4, 8.0]]), torch.tensor([0.5]), torch.tensor([label]))
        for x, label in ((1.0, 0), (2.0, 1), (3.0, 0))
    ]
    results = to_coco_results(data, data.records, found, ["drone", "bird"])
    assert [(item["image_id"], item["category_id"], item["bbox"][0]) for item in results] == [
        (11, 5, 1.0), ("b", 6, 2.0), (22, 5, 3.0),
    ]  # fmt: skip
    (tmp_path / "predictions.json").write_text(json.dumps(results))
    again = read_coco_results(tmp_path / "predictions.json", data, data.records, ["drone", "bird"])
    for before, after in zip(found, again, strict=True):
        assert torch.equal(before.boxes, after.boxes) and torch.equal(before.labels, after.labels)
