"""Small datasets on which a small network trains quickly: bright drones and dark birds on smooth noise."""

from pathlib import Path

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord, write_coco


def write_scenes(folder: Path, count: int, *, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """Writes ``count`` images of ``size`` (height, width) with one to three objects; returns the path of the json."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    records = []
    for index in range(count):
        image = 100 + 6 * cv2.GaussianBlur(rng.normal(0, 60, size), (0, 0), 8) + rng.normal(0, 3, size)
        boxes, names = [], []
        for number in range(rng.integers(1, 4)):
            w, h = rng.uniform(8, 16), rng.uniform(6, 12)
            centre_x, centre_y = rng.uniform(w, width - w), rng.uniform(h, height - h)
            distance = ((x - centre_x) / w) ** 2 + ((y - centre_y) / h) ** 2
            drone = number == 0 or rng.random() < 0.6
            image += (90 if drone else -60) * np.exp(-6 * distance)
            boxes.append([centre_x - w / 2, centre_y - h / 2, centre_x + w / 2, centre_y + h / 2])
            names.append("drone" if drone else "bird")
        path = folder / f"{index:03}.png"
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))
        records.append(ImageRecord(path, width, height, np.array(boxes, np.float32), names, np.zeros(len(boxes), bool)))
    write_coco(folder / "annotations.json", records, ["drone", "bird"])
    return folder / "annotations.json"
