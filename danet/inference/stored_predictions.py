"""Reads the predictions of any program: a file of COCO results, or a folder of YOLO text files with confidences."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from danet.boxes import Detections
from danet.data.class_map import IGNORE
from danet.data.coco_dataset import CocoDataset, ImageRecord
from danet.data.image_record import CLIPPED, EMPTY, Repairs, check_box_count, check_categories, clip_box
from danet.data.yolo_label import RELATIVE_TOLERANCE
from danet.inference.coco_results import category_ids
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text
from danet.utils.names import quote

DUPLICATE = "detections dropped: exact duplicates of another one"
LABEL_FOLDER = "labels"
"""Folder in which Ultralytics writes the text files of a prediction or validation."""


class _Found(NamedTuple):
    """One detection of a file: ``place`` is what messages about it start with."""

    place: str
    image: int  # index of the record
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    score: float
    name: str


class StoredPredictions:
    """Predictions that were read from files; a replacement for a detector in an evaluation.

    Detections are treated like those of a ``Detector``: those with a score of at most ``score_threshold`` are left out,
    boxes are clipped to the image, and an image keeps its ``max_detections`` best ones. Suppression is left to the
    program that wrote them.

    Args:
        path: a JSON file in COCO's results format, or a folder of YOLO text files, which are named like the images. The
            lines of a YOLO file are ``class x y width height confidence``, relative to the image size.
        data: the images that were predicted.
        classes: names of the classes of ``StoredPredictions.classes``, see ``prediction_classes``.
        class_names: YOLO files: the names of the class numbers; by default those of a YOLO dataset. COCO results: names
            that the file of ``data`` does not have get ids above its largest, as ``danet evaluate`` writes them.
        class_map: new names of the classes, as for the categories of ``data``.
        score_threshold, max_detections: as for ``Detector``.

    Attributes:
        classes: names of the labels.
        warnings: one line for each kind of doubtful content.

    Raises:
        UserError: a file is empty or broken, a value is not finite, a score lies outside of 0 to 1, a box lies outside
            its image, or an image, an id or a class is not among those of ``data``.

    Example:
        >>> import json
        >>> from danet.data.coco_dataset import load_coco
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a.png").touch()
        >>> image = {"id": 7, "file_name": "a.png", "width": 64, "height": 48}
        >>> text = json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "drone"}]})
        >>> _ = (folder / "val.json").write_text(text)
        >>> result = {"image_id": 7, "category_id": 1, "bbox": [10, 10, 12, 8], "score": 0.9}
        >>> _ = (folder / "results.json").write_text(json.dumps([result]))
        >>> data = load_coco(folder / "val.json")
        >>> StoredPredictions(folder / "results.json", data, ["drone"]).select(data.records)
        [Detections(1: drone 0.90 at (10.0, 10.0, 22.0, 18.0))]
    """

    device, dtype, dtype_note = torch.device("cpu"), torch.float32, ""

    def __init__(
        self,
        path: str | os.PathLike,
        data: CocoDataset,
        classes: Sequence[str],
        *,
        class_names: Sequence[str] | None = None,
        class_map: Mapping[str, str] | None = None,
        score_threshold: float = 0.0,
        max_detections: int = 300,
    ) -> None:
        self.path = Path(path)
        self.classes = list(classes)
        self.warnings: list[str] = []
        self._data = data
        self._class_map = class_map or {}
        self._repairs = Repairs()
        if self.path.is_dir():
            names = _yolo_names(self.path, data, class_names)
            items = _read_yolo(self.path, data, names)
        else:
            items = _read_results(self.path, data, class_names or [])
        kept = self._check(list(items))
        self._found = [_to_detections(found, self.classes, score_threshold, max_detections) for found in kept]
        self._index = {_key(record): index for index, record in enumerate(data.records)}
        total, images = sum(map(len, self._found)), sum(map(bool, map(len, self._found)))
        self.note = f"{self.path}: {total} detections in {images} of {len(data.records)} images"
        self.warnings += [f"{self.path}: {line}" for line in self._repairs.lines()]
        if not total:
            self.warnings.append(f"{self.path}: there are no detections with a score above {score_threshold:g}")

    def select(self, records: Sequence[ImageRecord]) -> list[Detections]:
        """The detections of some of the images, which are records of the dataset or renamed copies of them."""
        return [self._found[self._index[_key(record)]] for record in records]

    def _check(self, items: list[_Found]) -> list[list[tuple[list[float], float, str]]]:
        """The detections of every image, clipped to it."""
        records = self._data.records
        kept: list[list[tuple[list[float], float, str]]] = [[] for _ in records]
        if items and max(max(map(abs, found.box)) for found in items) <= 1:
            raise UserError(
                f"{self.path}: all coordinates lie between 0 and 1; boxes must be in pixels, got {items[0].box}"
            )
        seen = set()
        for found in items:
            record = records[found.image]
            name = self._class_map.get(found.name, found.name)
            if name != IGNORE and name not in self.classes:
                raise UserError(f"{found.place}: its class {name!r} is not among {', '.join(self.classes)}")
            if found[1:] in seen:
                self._repairs.add(DUPLICATE, found.place)
                continue
            seen.add(found[1:])
            box, kind = clip_box(found.box, record.width, record.height)
            if box is None and kind != EMPTY:
                size = f"{record.width} x {record.height} pixels"
                raise UserError(
                    f"{found.place}: lies outside of {record.path.name}, which has {size}, got "
                    f"{_shown(found.box)}; give boxes in pixels of the original image"
                )
            if kind is not None:
                self._repairs.add(EMPTY if box is None else CLIPPED, found.place)
            if box is not None and name != IGNORE:
                kept[found.image].append((box, found.score, name))
        for record, found_there in zip(records, kept, strict=True):
            check_box_count(len(found_there), f"{self.path}: image {record.path.name}")
        return kept


def prediction_classes(
    datasets: Sequence[CocoDataset],
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> list[str]:
    """Names of the classes of stored predictions: ``class_names``, or else the categories of the datasets.

    They are renamed by ``class_map``; one that becomes "ignore" is left out.

    Example:
        >>> data = CocoDataset(Path("val.json"), [], ["uav", "cloud"])
        >>> prediction_classes([data], class_map={"uav": "drone", "cloud": "ignore"})
        ['drone']
    """
    names = class_names or [name for data in datasets for name in data.categories]
    renamed = [(class_map or {}).get(name, name) for name in names]
    return [name for name in dict.fromkeys(renamed) if name != IGNORE]


def _key(record: ImageRecord) -> object:
    """What identifies an image in its dataset; copies of the record have the same."""
    return record.path if record.image_id is None else record.image_id


def _to_detections(
    found: list[tuple[list[float], float, str]], classes: list[str], score_threshold: float, limit: int
) -> Detections:
    best = sorted((item for item in found if item[1] > score_threshold), key=lambda item: -item[1])[:limit]
    boxes, scores, names = zip(*best, strict=True) if best else ((), (), ())
    labels = torch.tensor([classes.index(name) for name in names], dtype=torch.int64)
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), labels, classes)


def _read_results(path: Path, data: CocoDataset, class_names: Sequence[str]) -> Iterator[_Found]:
    """Reads a JSON file of COCO results."""
    content = read_json(path)
    if not isinstance(content, list):
        what = (
            "a COCO dataset with annotations" if isinstance(content, dict) and "images" in content else quote(content)
        )
        raise UserError(f"{path}: must be a list of COCO results (image_id, category_id, bbox, score), got {what}")
    images = {record.image_id: index for index, record in enumerate(data.records)}
    names = {key: name for name, key in category_ids(data, class_names).items()}
    for number, item in enumerate(content):
        place = f"{path}: result {number}"
        if not isinstance(item, dict):
            raise UserError(f"{place}: must be an object with image_id, category_id, bbox and score, got {quote(item)}")
        image, category = _id(place, item, "image_id"), _id(place, item, "category_id")
        if image not in images:
            raise UserError(f"{place}: image_id {quote(image)} is not among the image ids of {data.path}")
        if category not in names:
            known = ", ".join(f"{key} {name}" for key, name in list(names.items())[:10])
            raise UserError(f"{place}: category_id {quote(category)} is not among those of {data.path} ({known})")
        bbox = item.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)) or min(bbox[2:]) < 0:
            raise UserError(f"{place}: bbox must be four finite numbers x, y, width, height, got {quote(bbox)}")
        x, y, width, height = map(float, bbox)
        yield _Found(place, images[image], (x, y, x + width, y + height), _score(place, item), names[category])


def _id(place: str, item: dict, name: str) -> int | str:
    value = item.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{place}: {name} is {'missing' if value is None else f'{quote(value)}, not an id'}")
    return value


def _score(place: str, item: dict) -> float:
    score = item.get("score")
    if not _is_finite(score) or not 0 <= score <= 1:  # type: ignore[operator]  # a number
        raise UserError(f"{place}: score must be a number from 0 to 1, got {quote(score)}")
    return float(score)  # type: ignore[arg-type]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _yolo_names(path: Path, data: CocoDataset, class_names: Sequence[str] | None) -> list[str]:
    if class_names:
        return check_categories(list(class_names), "--class_names")
    if data.path.suffix.lower() != ".json":  # a YOLO dataset, whose categories are numbered in their order
        return data.categories
    raise UserError(
        f"{path}: the class numbers of YOLO files have no names; give --class_names in the order of their numbers"
    )


def _read_yolo(folder: Path, data: CocoDataset, names: Sequence[str]) -> Iterator[_Found]:
    """Reads the text files of a folder, and of its folders."""
    if not any(folder.glob("*.txt")) and (folder / LABEL_FOLDER).is_dir():
        folder = folder / LABEL_FOLDER
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise UserError(f"{folder}: there are no .txt files; give the folder with one text file for each image")
    find = _image_finder(data.records)
    taken: dict[int, Path] = {}
    for file in files:
        index = find(file, folder)
        if (other := taken.setdefault(index, file)) != file:
            raise UserError(f"{file}: belongs to the same image as {other}; keep one of them")
        record = data.records[index]
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                yield _read_line(f"{file}: line {number}", line, index, (record.width, record.height), names)


def _image_finder(records: Sequence[ImageRecord]) -> Callable[[Path, Path], int]:
    """A function that finds the index of the image of a text file.

    The file has the name of the image, also with folders of its path before it: ``7.txt``, ``clip/7.txt`` and
    ``clip_7.txt`` belong to ``images/clip/7.png``.
    """
    keys: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        parts = record.path.with_suffix("").parts
        for count in range(1, min(4, len(parts)) + 1):
            for name in {"/".join(parts[-count:]), "_".join(parts[-count:])}:
                keys.setdefault(name, []).append(index)

    def find(file: Path, folder: Path) -> int:
        name = file.relative_to(folder).with_suffix("").as_posix()
        found = keys.get(name, [])
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(f"{file}: no image of the dataset has this name, such as {records[0].path.name}")
        first, second = (records[index].path for index in found[:2])
        raise UserError(
            f"{file}: several images have this name, such as {first} and {second}; name files like clip_7.txt"
        )

    return find


def _read_line(place: str, line: str, image: int, size: tuple[int, int], names: Sequence[str]) -> _Found:
    words = line.split()
    try:
        index, values = float(words[0]), list(map(float, words[1:]))
    except ValueError:
        raise UserError(f"{place}: must be six numbers, got {quote(line.strip())}") from None
    if len(values) == 4:
        raise UserError(f"{place}: has no confidence; let the program write it (save_conf=True in Ultralytics)")
    if len(values) != 5 or not all(map(math.isfinite, values)):
        raise UserError(f"{place}: must be 'class x y width height confidence', got {quote(line.strip())}")
    if not index.is_integer() or not 0 <= index < len(names):
        known = ", ".join(names[:10])
        raise UserError(f"{place}: class {quote(words[0])} has no name; there are {len(names)} ({known})")
    x, y, w, h, score = values
    low, high = -RELATIVE_TOLERANCE, 1 + RELATIVE_TOLERANCE
    if not (low <= x <= high and low <= y <= high and 0 <= w <= high and 0 <= h <= high):
        problem = "coordinates must be between 0 and 1, relative to the image size"
        raise UserError(f"{place}: {problem}, got {quote(line.strip())}")
    if not 0 <= score <= 1:
        raise UserError(f"{place}: the confidence must be a number from 0 to 1, got {quote(words[5])}")
    width, height = size
    box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return _Found(place, image, box, score, names[int(index)])


def _shown(box: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.1f}' for value in box)})"
