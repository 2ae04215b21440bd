"""Records in a file equal those in a list, and cost worker processes no memory."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from danet.data.coco_dataset import ImageRecord
from danet.data.shared_records import SharedRecords


def record(i: int) -> ImageRecord:
    boxes = np.random.default_rng(i).uniform(0, 60, (i % 4, 4)).astype(np.float32)
    names = [("drone", "bird", "Möwe")[(i + k) % 3] for k in range(len(boxes))]
    ignore = np.arange(len(boxes)) % 2 == 1
    video, recording = (None, None) if i % 5 == 0 else (f"video {i // 7}", f"recording {i // 20}")
    return ImageRecord(Path(f"/ä b/{i}.png"), 64 + i, 48, boxes, names, ignore, video, i or None, recording)


def test_shared_records_equal_a_list():
    expected = [record(i) for i in range(2345)]
    records = SharedRecords(iter(expected))
    assert len(records) == len(expected)
    for index in (0, 1, 5, 999, 1000, 1001, 2344, -1, np.int64(17)):
        found, right = records[index], expected[index]
        for name in ("path", "width", "height", "names", "video", "frame", "recording"):
            assert getattr(found, name) == getattr(right, name), (index, name)
        for name in ("boxes", "ignore"):
            a, b = getattr(found, name), getattr(right, name)
            assert a.dtype == b.dtype and np.array_equal(a, b)
    assert [r.path for r in records[10:20:3]] == [r.path for r in expected[10:20:3]]
    assert [r.width for r in records] == [r.width for r in expected]
    with pytest.raises(IndexError, match="record 2345 of 2345"):
        records[2345]
    assert len(SharedRecords([])) == 0
    copy = pickle.loads(pickle.dumps(records))
    assert len(copy) == len(records) and copy[7].path == expected[7].path


WORKERS = """
import multiprocessing
import sys
from pathlib import Path
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import DetectionDataset, make_loader

dataset = DetectionDataset([sys.argv[1]], ["drone"])
assert len(dataset) == int(sys.argv[2])
loader = iter(make_loader(dataset, EpochSampler(dataset.sizes, dataset.weights, batch=8, epochs=1), workers=2))
for _ in range(30):
    next(loader)
workers = multiprocessing.active_children()
assert len(workers) == 2
maximum = 0
for worker in workers:
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    print(sizes["Rss:"] >> 10, "MB resident", file=sys.stderr)
    maximum = max(maximum, sizes["Rss:"] >> 10)
print(maximum)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc/self/smaps_rollup")
@pytest.mark.long
@pytest.mark.parametrize("count", [20_000, 1_000_000])
def test_loader_workers_stay_small(count, tmp_path):
    """Measures the resident memory in MB, including Python and torch."""
    cv2.imwrite(str(tmp_path / "frame.png"), np.full((64, 80), 90, np.uint8))
    images = [
        {"id": i, "file_name": "frame.png", "width": 80, "height": 64, "video": f"v{i >> 8}"} for i in range(count)
    ]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [i % 50, i % 40, 9.5, 7.25], "area": 1, "iscrowd": 0}
        for i in range(count)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "drone"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    command = [sys.executable, "-c", WORKERS, str(tmp_path / "data.json"), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 300
