"""A small dataset on the disk, and files of predictions for it, for tests of evaluations."""

import json
from pathlib import Path

import numpy as np

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.utils.image_io import write_image

CLASSES = ["drone", "bird"]


def write_dataset(folder: Path, seed: int, count: int = 24) -> str:
    """Noise of 96 x 64 pixels in videos of four frames: with a hot drone, with a cold bird, or empty."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        name = ("drone", "drone", "bird", None)[index // 4 % 4]
        image = rng.normal(90, 5, (64, 96))
        x, y = (int(value) for value in rng.integers(4, 44, 2))
        if name is not None:
            image[y : y + 8, x : x + 12] += 100 if name == "drone" else -60
        write_image(folder / f"{index}.png", image.clip(0, 255).astype(np.uint8))
        boxes = np.array([(x, y, x + 12, y + 8)] if name else [], np.float32).reshape(-1, 4)
        names = [name] if name else []
        video = f"{folder.name}-{index // 4}"
        ignore = np.zeros(len(names), bool)
        records.append(ImageRecord(folder / f"{index}.png", 96, 64, boxes, names, ignore, video, index % 4, video))
    write_coco(folder / "annotations.json", records, CLASSES)
    return str(folder / "annotations.json")


def predicted(data: str, seed: int, jitter: float) -> list[dict]:
    """COCO results: every object moved by about ``jitter`` pixels, and one false alarm with a lower score per image."""
    rng = np.random.default_rng(seed)
    results = []
    for record in load_coco(data).records:
        for (x0, y0, x1, y1), name in zip(record.boxes.tolist(), record.names, strict=True):
            dx, dy = rng.normal(0, jitter, 2)
            results.append(
                (record.image_id, CLASSES.index(name) + 1, (x0 + dx, y0 + dy, x1 - x0, y1 - y0), rng.uniform(0.4, 1))
            )
        x, y = rng.uniform(50, 80), rng.uniform(2, 50)
        results.append((record.image_id, 1, (x, y, 12.0, 8.0), rng.uniform(0.05, 0.6)))
    keys = ("image_id", "category_id", "bbox", "score")
    return [
        dict(zip(keys, (*ids, [round(max(value, 0), 3) for value in box], round(score, 6)), strict=True))
        for *ids, box, score in results
    ]


def write_results(path: Path, results: list[dict]) -> str:
    path.write_text(json.dumps(results))
    return str(path)


def write_yolo(folder: Path, data: str, results: list[dict]) -> str:
    """The same results as YOLO text files with confidences."""
    folder.mkdir()
    for record in load_coco(data).records:
        lines = []
        for each in results:
            if each["image_id"] == record.image_id:
                x, y, w, h = each["bbox"]
                values = ((x + w / 2) / 96, (y + h / 2) / 64, w / 96, h / 64, each["score"])
                lines.append(" ".join([str(each["category_id"] - 1), *(f"{value:.8f}" for value in values)]))
        if lines:
            (folder / f"{record.path.stem}.txt").write_text("\n".join(lines))
    return str(folder)
