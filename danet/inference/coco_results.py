"""Detections as COCO result files hold them."""

import os
from collections.abc import Sequence

import torch

from danet.boxes import Detections
from danet.data.coco_dataset import CocoDataset, ImageRecord
from danet.utils.errors import UserError
from danet.utils.files import read_json


def to_coco_results(
    data: CocoDataset, records: Sequence[ImageRecord], predictions: Sequence[Detections], classes: Sequence[str]
) -> list[dict]:
    """Converts detections to COCO's result format, with the image and category ids of the file of ``data``.

    A class that the file does not have gets an id above the largest of the file.
    """
    ids = category_ids(data, classes)
    results = []
    for record, (boxes, scores, labels) in zip(records, predictions, strict=True):
        for (x0, y0, x1, y1), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            results.append(
                {
                    "image_id": record.image_id,
                    "category_id": ids[classes[label]],
                    "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(score, 6),
                }
            )
    return results


def read_coco_results(
    path: str | os.PathLike, data: CocoDataset, records: Sequence[ImageRecord], classes: Sequence[str]
) -> list[Detections]:
    """Reads a file of ``to_coco_results``: the detections of each of ``records``.

    Raises:
        UserError: the file is no COCO result file, or names an image or a category that ``data`` does not have.
    """
    ids = category_ids(data, classes)
    labels = {ids[name]: label for label, name in enumerate(classes)}
    found: dict[object, list[tuple]] = {record.image_id: [] for record in records}
    try:
        for item in read_json(path):
            x, y, width, height = item["bbox"]
            box = (x, y, x + width, y + height)
            found[item["image_id"]].append((box, item["score"], labels[item["category_id"]]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the detections of {data.path} ({error})") from error
    return [_to_detections(found[record.image_id]) for record in records]


def _to_detections(items: list[tuple]) -> Detections:
    boxes, scores, labels = zip(*items, strict=True) if items else ((), (), ())
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def category_ids(data: CocoDataset, classes: Sequence[str]) -> dict[str, int | str]:
    """Category ids by name; a class that the file lacks gets an id above the largest.

    Example:
        >>> from pathlib import Path
        >>> category_ids(CocoDataset(Path("val.json"), [], ["drone"], category_ids={"drone": 5}), ["drone", "bird"])
        {'drone': 5, 'bird': 6}
    """
    largest = max((key for key in data.category_ids.values() if isinstance(key, int)), default=0)
    new = [name for name in classes if name not in data.category_ids]
    return data.category_ids | {name: number for number, name in enumerate(new, largest + 1)}
