"""Reads, checks and writes COCO jsons, the format of all datasets on disk."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json

CLIP_TOLERANCE_PIXELS = 0.01
"""A box that is clipped by at most this much gives no warning: rounded coordinates cause such differences."""

EXTRAS = {"video": str, "frame": int, "recording": str}
"""Optional keys of an image in addition to the standard ones of COCO, and their types; see ``ImageRecord``."""


@dataclass(eq=False)
class ImageRecord:
    """One image with its annotations.

    Attributes:
        path: the image file.
        width, height: size of the image in pixels.
        boxes: float32 ``[M, 4]`` (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1).
        names: category of each box.
        ignore: bool ``[M]``, True for an ignore region, in which detections count neither as true nor as false
            positives and nothing is trained.
        video: name of the video that the image is a frame of.
        frame: frame number in the video, from 0.
        recording: name of the recording; a split must not divide it, because its images look nearly the same.

    Example:
        >>> boxes = np.array([[10, 10, 22, 18]], np.float32)
        >>> record = ImageRecord(Path("a.png"), 64, 48, boxes, ["drone"], np.array([False]), recording="flight 1")
        >>> record.group
        'flight 1'
    """

    path: Path
    width: int
    height: int
    boxes: np.ndarray
    names: list[str]
    ignore: np.ndarray
    video: str | None = None
    frame: int | None = None
    recording: str | None = None

    @property
    def group(self) -> str:
        """Name of the images that a split keeps together: the recording, else the video, else the image's path."""
        return self.recording or self.video or str(self.path)


@dataclass(eq=False)
class CocoDataset:
    """The content of a COCO json.

    Attributes:
        path: the json, absolute.
        records: its images in the order of the file.
        categories: names of all categories in the order of the file.
        warnings: one line for each box that was dropped or clipped.

    Example:
        >>> CocoDataset(Path("train.json"), records=[], categories=["drone", "bird"]).warnings
        []
    """

    path: Path
    records: list[ImageRecord]
    categories: list[str]
    warnings: list[str] = field(default_factory=list)


def load_coco(path: str | os.PathLike, *, images: str | os.PathLike | None = None) -> CocoDataset:
    """Reads a COCO json and checks it.

    In addition to the standard keys, an image may have ``video``, ``frame`` and ``recording``, see ``ImageRecord``. An
    annotation with ``iscrowd`` becomes an ignore region. A box without area or outside the image is dropped, and a box
    partly outside is clipped, each with a line in ``warnings``.

    Args:
        path: the json, or a folder that contains ``annotations.json`` or exactly one json.
        images: folder that ``file_name`` is relative to; by default the folder of the json.

    Raises:
        UserError: if the file is missing or not a COCO json, a value is missing or has the wrong type, a box is not
            finite or has a negative size, an id is used twice or refers to nothing, or an image file is missing.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> path.touch()
        >>> record = ImageRecord(path, 64, 48, np.array([[10, 10, 22, 18]]), ["drone"], np.array([False]))
        >>> write_coco(path.with_suffix(".json"), [record], ["drone"])
        >>> load_coco(path.parent).records[0].boxes
        array([[10., 10., 22., 18.]], dtype=float32)
    """
    path = _find_json(Path(path))
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file (the top level must be an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: not a COCO file ({key!r} must be a list of objects)")

    categories = _read_categories(path, content["categories"])
    records = _read_images(path, content["images"], Path(images or path.parent).absolute())
    boxes: dict[object, list[tuple[list[float], str, bool]]] = {key: [] for key in records}
    warnings: list[str] = []
    seen = set()
    for index, annotation in enumerate(content["annotations"]):
        place = f"{path}: annotation {annotation.get('id', f'number {index}')}"
        if "id" in annotation:
            if _key(place, annotation, "id") in seen:
                raise UserError(f"{place}: this id is used twice")
            seen.add(annotation["id"])
        record = records.get(_key(place, annotation, "image_id"))
        if record is None:
            raise UserError(f"{place}: image id {annotation['image_id']!r} is not among the images")
        category = categories.get(_key(place, annotation, "category_id"))
        if category is None:
            raise UserError(f"{place}: category id {annotation['category_id']!r} is not among the categories")
        box, warning = _read_box(place, annotation.get("bbox"), record)
        if warning:
            warnings.append(f"{record.path.name}: {warning}")
        if box:
            boxes[annotation["image_id"]].append((box, category, bool(annotation.get("iscrowd", 0))))

    for image_id, record in records.items():
        record.boxes = np.array([box for box, _, _ in boxes[image_id]], np.float32).reshape(-1, 4)
        record.names = [name for _, name, _ in boxes[image_id]]
        record.ignore = np.array([ignore for _, _, ignore in boxes[image_id]], bool)
    return CocoDataset(path, list(records.values()), list(categories.values()), warnings)


def write_coco(path: str | os.PathLike, records: Sequence[ImageRecord], categories: Sequence[str]) -> None:
    """Writes records as a COCO json; the file is replaced only when it is complete.

    Coordinates are rounded to 1/1000 pixel, image paths are relative to the folder of the json, and ids count from 1 in
    the given order. An ignore region is written with ``iscrowd`` 1.

    Raises:
        UserError: if a box has a category that is not in ``categories``, or the file cannot be written.

    Example:
        >>> write_coco(getfixture("tmp_path") / "empty.json", records=[], categories=["drone"])
    """
    path = Path(path).absolute()
    folder = os.path.realpath(path.parent)
    ids = {name: index for index, name in enumerate(categories, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, record in enumerate(records, 1):
        relative = os.path.relpath(record.path, folder)
        image = {"id": image_id, "file_name": Path(relative).as_posix(), "width": record.width, "height": record.height}
        extras = {extra: getattr(record, extra) for extra in EXTRAS}
        images.append(image | {key: value for key, value in extras.items() if value is not None})
        for box, name, ignore in zip(record.boxes.tolist(), record.names, record.ignore, strict=True):
            if name not in ids:
                raise UserError(f"{path}: {record.path.name} has a box of {name!r}, which is not among the categories")
            x, y, w, h = (round(v, 3) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [x, y, w, h],
                    "area": round(w * h, 3),
                    "iscrowd": int(ignore),
                }
            )
    named = [{"id": index, "name": name} for name, index in ids.items()]
    write_json(path, {"images": images, "annotations": annotations, "categories": named}, indent=None)


def _find_json(path: Path) -> Path:
    """Finds the json of a file or folder; returns an absolute path without symbolic links."""
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        preferred = path / "annotations.json"
        if preferred not in found and len(found) != 1:
            names = ", ".join(item.name for item in found[:5]) or "none"
            raise UserError(f"{path}: a folder must contain annotations.json or exactly one json (found: {names})")
        path = preferred if preferred in found else found[0]
    return path.resolve()


def _key(place: str, item: dict, name: str) -> int | str:
    """Returns the id ``item[name]``, which must be an integer or a string."""
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{place}: {name} is {'missing' if value is None else f'{value!r}, not an id'}")
    return value


def _read_categories(path: Path, items: list[dict]) -> dict[object, str]:
    categories: dict[object, str] = {}
    for item in items:
        key = _key(f"{path}: category", item, "id")
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: category {key} has no name")
        if key in categories or name in categories.values():
            raise UserError(f"{path}: category {key} ({name}): this id or name is used twice")
        categories[key] = name
    return categories


def _read_images(path: Path, items: list[dict], folder: Path) -> dict[object, ImageRecord]:
    images: dict[object, ImageRecord] = {}
    for index, item in enumerate(items):
        name = item.get("file_name")
        place = f"{path}: image {name or item.get('id', f'number {index}')!r}"
        if not isinstance(name, str) or not name:
            raise UserError(f"{place}: file_name is missing")
        key = _key(place, item, "id")
        if key in images:
            raise UserError(f"{place}: id {key!r} is used twice")
        for side in ("width", "height"):
            if isinstance(item.get(side), bool) or not isinstance(item.get(side), int) or item[side] <= 0:
                raise UserError(f"{place}: {side} must be a positive integer, got {item.get(side)!r}")
        for extra, kind in EXTRAS.items():
            if item.get(extra) is not None and not isinstance(item[extra], kind):
                raise UserError(f"{place}: {extra} must be {kind.__name__}, got {item[extra]!r}")
        file = Path(os.path.normpath(folder / name))
        if not file.is_file():
            raise UserError(f"{place}: there is no file {file}")
        nothing: tuple = np.zeros((0, 4), np.float32), [], np.zeros(0, bool)  # boxes, names, ignore
        extras: dict[str, Any] = {extra: item.get(extra) for extra in EXTRAS}
        images[key] = ImageRecord(file, item["width"], item["height"], *nothing, **extras)
    return images


def _read_box(place: str, bbox: object, record: ImageRecord) -> tuple[list[float] | None, str | None]:
    """Converts x, y, width, height to corners (None: dropped) and clips them; the warning says what was changed."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(v) in (int, float) for v in bbox):
        raise UserError(f"{place}: bbox must be four numbers, got {bbox!r}")
    x, y, w, h = bbox
    # Compare with the largest float: math.isfinite fails on integers of hundreds of digits, which JSON allows.
    if not all(abs(v) <= sys.float_info.max for v in bbox) or w < 0 or h < 0:
        problem = "a negative size" if w < 0 or h < 0 else "a number that is not finite"
        raise UserError(f"{place}: bbox {bbox} has {problem} ({record.path.name})")
    if w == 0 or h == 0:
        return None, f"box {bbox} has no area, dropped"
    corners = [max(x, 0), max(y, 0), min(x + w, record.width), min(y + h, record.height)]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return None, f"box {bbox} is outside the image ({record.width} x {record.height}), dropped"
    moved = max(abs(a - b) for a, b in zip(corners, (x, y, x + w, y + h), strict=True))
    warning = f"box {bbox} reaches outside the image ({record.width} x {record.height}), clipped"
    return corners, warning if moved > CLIP_TOLERANCE_PIXELS else None
