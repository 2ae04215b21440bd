"""The parts of the scripts in experiments/rivals that need no other detector."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prediction_files import write_dataset

from danet.data.coco_dataset import load_coco

FOLDER = Path(__file__).parents[2] / "experiments" / "rivals"


@pytest.fixture
def segmentation(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import segmentation

    return segmentation


def test_yolo_dataset_holds_the_same_boxes(tmp_path):
    for seed, name in enumerate(("fit", "tune", "val")):
        source = Path(write_dataset(tmp_path / name, seed, 8))
        source.rename(tmp_path / f"{name}.json")
        text = (tmp_path / f"{name}.json").read_text()
        (tmp_path / f"{name}.json").write_text(text.replace('"file_name": "', f'"file_name": "{name}/'))
    command = [sys.executable, str(FOLDER / "yolo_dataset.py"), str(tmp_path), str(tmp_path / "yolo")]
    subprocess.run(
        [*command, "--classes", "drone"], check=True, timeout=120, env={"PYTHONPATH": str(FOLDER.parents[1])}
    )
    for split, name in (("train", "fit"), ("val", "tune"), ("test", "val")):
        ours = {record.path: record for record in load_coco(tmp_path / f"{name}.json").records}
        theirs = load_coco(tmp_path / "yolo", split=split).records
        assert len(theirs) == len(ours) == 8
        for record in theirs:
            np.testing.assert_allclose(record.boxes, ours[record.path.resolve()].boxes, atol=0.01)
            assert set(record.names) <= {"drone"}


def test_components_of_masks_become_scored_boxes(segmentation):
    mask = np.zeros((2, 40, 60), np.float32)
    mask[0, 10:16, 20:28] = 0.3  # the edge of a target whose core is above 0.5
    mask[0, 12:14, 22:26] = 0.8
    mask[0, 30:34, 5:9] = 0.2
    mask[0, 5, 50] = 0.9  # a single pixel
    mask[1, 0:3, 0:3] = 0.6
    boxes, scores, labels = segmentation.components(mask)
    assert boxes == [[22, 12, 26, 14], [5, 30, 9, 34], [0, 0, 3, 3]] and labels == [0, 0, 1]
    assert scores == pytest.approx([0.8, 0.2, 0.6])


def test_mask_is_the_ellipse_in_each_box(segmentation, tmp_path):
    record = load_coco(write_dataset(tmp_path / "a", 0, 12)).records[8]  # a bird
    x0, y0, x1, y1 = record.boxes[0].astype(int)
    masks = segmentation.make_mask(record, ["drone", "bird"], None)
    assert masks.shape == (2, 64, 96) and not masks[0].any() and not masks[1, y0, x0]
    assert masks[1, y0:y1, x0:x1].sum() == masks.sum() == pytest.approx(np.pi / 4 * 12 * 8, rel=0.1)
    same = segmentation.soft_iou_loss(*[segmentation.torch.from_numpy(masks[None])] * 2)
    assert float(same) == 0
