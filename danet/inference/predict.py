"""Running a detector over a dataset, with the time of each part, and its results as COCO files hold them."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from danet.data.coco_dataset import CocoDataset, ImageRecord
from danet.inference.loading import is_onnx
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError
from danet.utils.files import read_json
from danet.utils.progress import track

if TYPE_CHECKING:
    from danet.boxes import Detections


class AnyDetector(Protocol):
    """What ``predict`` runs: a ``Detector``, or a ``LocalContrastDetector``."""

    device: torch.device

    def preprocess(self, paths: list, /) -> tuple[torch.Tensor, list]: ...
    def forward(self, batch: torch.Tensor, geometry: list, /) -> tuple[Any, list]: ...
    def postprocess(self, output: Any, geometry: list, /) -> list["Detections"]: ...


@dataclass
class Speed:
    """Seconds spent on ``images`` images in each part; the first batch of a run is left out as warm-up."""

    images: int = 0
    read_and_preprocess: float = 0.0
    network: float = 0.0
    decode: float = 0.0

    def to_json(self, method: str) -> dict:
        """Milliseconds an image by part, images a second with and without reading, and how it was measured."""
        if not self.images:
            return {"method": method, "images": 0}
        parts = {name: getattr(self, name) for name in ("read_and_preprocess", "network", "decode")}
        return {
            "method": method,
            "images": self.images,
            "milliseconds_per_image": {name: 1000.0 * seconds / self.images for name, seconds in parts.items()},
            "fps": self.images / sum(parts.values()),
            "fps_network_and_decode": self.images / (self.network + self.decode),
        }


def choose_device(name: str, weights: str | os.PathLike | None = None) -> str:
    """``auto`` to a GPU where there is one, else the CPU, which is also where an ONNX file runs.

    A device that is not there is a UserError.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() and not is_onnx(weights or "") else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--device {name}: not available here ({reason})") from error
    return name


def parse_size(values: list[int] | None) -> tuple[int, int] | None:
    """``--input_size`` as (height, width); one number is a square, None keeps native sizes."""
    if values is None:
        return None
    if len(values) not in (1, 2) or min(values) < MINIMUM_SIZE:
        raise UserError(f"--input_size takes height and width of at least {MINIMUM_SIZE} pixels, got {values}")
    return values[0], values[-1]


def predict(
    detector: AnyDetector, records: Sequence[ImageRecord], batch: int = 8, *, quiet: bool = False
) -> tuple[list["Detections"], Speed]:
    """Detects in every image, successive ones of equal size together.

    Raises UserError naming an image that cannot be read or whose size is not the one annotated.
    """
    predictions: list[Detections] = []
    speed = Speed()
    device = detector.device
    batches = list(_batches(records, batch))
    for number, part in enumerate(track(batches, "detecting", quiet=quiet)):
        started = time.perf_counter()
        tensor, geometry = detector.preprocess([record.path for record in part])
        for record, (height, width, *_) in zip(part, geometry, strict=True):
            if (height, width) != (record.height, record.width):
                annotated = f"{record.width} x {record.height}"
                raise UserError(f"{record.path}: the image is {width} x {height}, its annotation says {annotated}")
        ready = time.perf_counter()
        output = detector.forward(tensor, geometry)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        computed = time.perf_counter()
        predictions += detector.postprocess(*output)
        if number > 0:
            speed.images += len(part)
            speed.read_and_preprocess += ready - started
            speed.network += computed - ready
            speed.decode += time.perf_counter() - computed
    return predictions, speed


def coco_results(
    data: CocoDataset, records: Sequence[ImageRecord], predictions: Sequence["Detections"], classes: Sequence[str]
) -> list[dict]:
    """Detections in COCO's result format, with the ids of ``data``'s file.

    A class that the file lacks gets an id after the largest of the file.
    """
    content = read_json(data.path)
    image_ids = {record.path: image["id"] for record, image in zip(data.records, content["images"], strict=True)}
    category_ids = _category_ids(content, classes)
    results = []
    for record, (boxes, scores, labels) in zip(records, predictions, strict=True):
        for (x0, y0, x1, y1), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            results.append(
                {
                    "image_id": image_ids[record.path],
                    "category_id": category_ids[classes[label]],
                    "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(score, 6),
                }
            )
    return results


def read_results(
    path: str | os.PathLike, data: CocoDataset, records: Sequence[ImageRecord], classes: Sequence[str]
) -> list["Detections"]:
    """Reads the file that ``coco_results`` made: the detections of every one of ``records``."""
    content = read_json(data.path)
    category_ids = _category_ids(content, classes)
    labels = {category_ids[name]: label for label, name in enumerate(classes)}
    images = {record.path: image["id"] for record, image in zip(data.records, content["images"], strict=True)}
    found: dict[object, list[tuple]] = {images[record.path]: [] for record in records}
    try:
        for item in read_json(path):
            x, y, width, height = item["bbox"]
            box = (x, y, x + width, y + height)
            found[item["image_id"]].append((box, item["score"], labels[item["category_id"]]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the detections of {data.path} ({error})") from error
    return [_detections(found[images[record.path]]) for record in records]


def _detections(items: list[tuple]) -> "Detections":
    from danet.boxes import Detections

    boxes, scores, labels = zip(*items, strict=True) if items else ((), (), ())
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def _category_ids(content: dict, classes: Sequence[str]) -> dict[str, object]:
    """Ids by name: those of a COCO file, and for classes that it lacks numbers after the largest."""
    ids = {category["name"]: category["id"] for category in content["categories"]}
    largest = max((key for key in ids.values() if isinstance(key, int)), default=0)
    for name in classes:
        if name not in ids:
            largest += 1
            ids[name] = largest
    return ids


def _batches(records: Sequence[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    """Up to ``size`` successive images of equal size: padding would let results depend on the neighbours."""
    for _, group in itertools.groupby(records, key=lambda record: (record.height, record.width)):
        while part := list(itertools.islice(group, size)):
            yield part
