"""Small datasets and predictions for tests of the metrics."""

from pathlib import Path

import numpy as np

from danet.data.coco_dataset import ImageRecord

CLASSES = ["drone", "bird"]
TRUTH = (100, 100, 110, 110)


def record(boxes=(), names=None, ignore=None, video=None, recording=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    names = ["drone"] * len(boxes) if names is None else list(names)
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore, bool)
    return ImageRecord(Path("image.png"), 320, 256, boxes, names, ignore, video, None, recording)


def found(boxes=(), scores=(), labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    return boxes, np.array(scores, np.float32), labels


def random_case(seed, images=40, crowds=True, videos=10, detections=12):
    """Objects of two classes, some found with jitter; distinct scores; sizes from 4 to 30 pixels."""
    rng = np.random.default_rng(seed)
    total = images * detections
    scores = ((rng.permutation(total) + 0.5) / total).reshape(images, detections)
    records, predictions = [], []
    for index in range(images):
        count = int(rng.integers(0, 5))
        corner, side = rng.uniform(0, 200, (count, 2)), rng.uniform(4, 30, (count, 2))
        truths = np.concatenate([corner, corner + side], 1)
        names = [CLASSES[k] for k in rng.integers(0, 2, count)]
        ignore = rng.random(count) < (0.25 if crowds else 0.0)
        records.append(record(truths, names, ignore, f"v{index % videos}"))
        stray = rng.uniform(0, 200, (detections, 2))
        boxes = np.concatenate([stray, stray + rng.uniform(4, 30, (detections, 2))], 1)
        copies = np.repeat(truths, 2, 0)[: detections - 2]
        boxes[: len(copies)] = copies + rng.normal(0, 2, copies.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        predictions.append(found(boxes, scores[index], rng.integers(0, 2, detections)))
    return records, predictions
