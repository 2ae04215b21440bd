import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenes import write_scenes

from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.loader import DataSource, DetectionDataset
from danet.data.scales import SCALES, SizeRange, check_scale_edges
from danet.data.transforms import Augmentation
from danet.utils.errors import UserError

EDGES = (14.0, 18.0)


def record(*sides, names=None, ignore=None, path=Path("a.png")):
    boxes = np.array([[2, 3, 2 + side, 3 + side] for side in sides], np.float32).reshape(-1, 4)
    names = ["drone"] * len(sides) if names is None else names
    return ImageRecord(path, 64, 64, boxes, names, np.array(ignore or [False] * len(sides), bool))


def test_size_range_contains_each_size_once():
    boxes = record(0.5, 13.99, 14, 16, 17.99, 18, 400).boxes
    held = np.array([SizeRange(scale, EDGES, "drone").contains(boxes) for scale in SCALES])
    assert held.sum(0).tolist() == [1] * 7
    assert held.argmax(0).tolist() == [0, 0, 1, 1, 1, 2, 2]
    # sqrt(area): 8 x 24.5 is as large as 14 x 14.
    assert SizeRange("medium", EDGES, "drone").contains(np.array([[0, 0, 8, 24.5]], np.float32)).tolist() == [True]
    assert str(SizeRange("large", EDGES, "drone")) == "large (from 18 pixels)"


def test_size_range_accepts_images_that_can_be_scaled_into_it():
    accepts = SizeRange("medium", EDGES, "drone").accepts
    assert accepts(record(15)) and accepts(record(10, 15, 30)) and not accepts(record(10, 30))
    assert accepts(record(10), (1.0, 1.4)) and not accepts(record(10), (0.5, 1.39))
    assert accepts(record(36), (0.49, 1.0)) and not accepts(record(36), (0.5, 1.0))
    assert accepts(record()) and accepts(record(30, names=["bird"]))  # no target
    assert accepts(record(30, ignore=[True])) and not accepts(record(30, 15, ignore=[False, True]))


def test_size_range_ignores_targets_of_other_scales():
    given = record(10, 15, 30, 30, 15, names=["drone", "drone", "drone", "bird", "drone"], ignore=[False] * 4 + [True])
    restricted = SizeRange("large", EDGES, "drone").ignore_other_scales(given)
    assert restricted.ignore.tolist() == [True, True, False, False, True]
    assert given.ignore.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("scale", SCALES)
def test_dataset_scales_targets_into_the_size_range(tmp_path, scale):
    """Targets that remain outside of the size range are ignored, and birds stay distractors of any size."""
    data = str(write_scenes(tmp_path / "scenes", 12, size=(96, 96)))
    augmentation = Augmentation(crop=(96, 96), scale=(0.5, 3.0), copy_paste=0.5)
    size_range = SizeRange(scale, (9.0, 16.0), "drone")
    dataset = DetectionDataset([data], ["drone"], augmentation=augmentation, size_range=size_range)
    assert len(dataset) == 12
    whole = lost = birds = 0
    for epoch in range(4):
        for index in range(len(dataset)):
            sample = dataset[epoch, index]
            size = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1).sqrt()
            inside = (size >= size_range.low) & (size < size_range.high)
            drone = sample.labels == 0
            assert not (drone & ~inside & ~sample.ignore).any()
            whole += bool((drone & inside & ~sample.ignore).any())
            lost += bool((drone & ~inside).any())
            birds += int(((sample.labels == -1) & ~inside & ~sample.ignore).sum())
    assert whole > 36  # of 48: a crop may lose the target that was scaled into the size range
    assert lost > 0 and birds > 0
    again = DetectionDataset([data], ["drone"], augmentation=augmentation, size_range=size_range)
    assert np.array_equal(again[2, 5].image, dataset[2, 5].image)


def test_dataset_without_magnification_selects_images_of_the_scale(tmp_path):
    sides = [10, 15, 30, 12]
    records = []
    for index, side in enumerate(sides):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.full((64, 64), 9 * index, np.uint8))
        records.append(record(side, path=path, names=["bird" if index == 3 else "drone"]))
    write_coco(tmp_path / "annotations.json", records, ["drone", "bird"])
    data = str(tmp_path / "annotations.json")
    for scale, expected in (("small", [0, 3]), ("medium", [1, 3]), ("large", [2, 3])):
        dataset = DetectionDataset([data], ["drone"], size_range=SizeRange(scale, EDGES, "drone"))
        assert [int(r.path.stem) for r in dataset.records] == expected
        assert dataset.sizes == [2]
        assert [dataset[i].ignore.tolist() for i in range(2)] == [[False], [False]]
    with pytest.raises(UserError, match="no box named 'drone'"):  # only the bird is left
        DetectionDataset([data], ["drone"], size_range=SizeRange("large", (14.0, 40.0), "drone"))
    drones = DataSource(data, class_map={"bird": "drone"})
    with pytest.raises(UserError, match=r"no image has a drone of scale large \(from 40 pixels\)"):
        DetectionDataset([drones], ["drone"], size_range=SizeRange("large", (14.0, 40.0), "drone"))


@pytest.mark.parametrize("edges", [(0.0, 5.0), (5.0, 5.0), (9.0, 5.0), (5.0, math.inf), (math.nan, 5.0)])
def test_check_scale_edges_refuses_impossible_edges(edges):
    with pytest.raises(UserError, match="scale_edges must be two positive numbers of pixels, the smaller first, got"):
        check_scale_edges(edges)
