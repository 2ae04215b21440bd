"""Reads, checks and writes COCO jsons, the format in which danet writes datasets; reads YOLO datasets, too."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.data.coco_files import ImageFinder, find_json, find_splits, single_json
from danet.data.image_folder import image_size
from danet.data.image_record import (
    CLIPPED,
    DUPLICATE,
    EMPTY,
    MAX_IMAGE_SIDE_PIXELS,
    OUTSIDE,
    CocoDataset,
    ImageRecord,
    Repairs,
    check_box_count,
    check_categories,
    clip_box,
)
from danet.data.yolo_config import CLASS_FILES, CONFIG_FILES
from danet.data.yolo_dataset import is_yolo, load_yolo, open_yolo
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json
from danet.utils.names import MAX_PATH_CHARACTERS, check_name, quote

__all__ = ["CocoDataset", "ImageRecord", "dataset_files", "list_splits", "load_coco", "write_coco"]

EXTRAS = {"video": str, "frame": int, "recording": str}
"""Optional keys of an image in addition to the standard ones of COCO, and their types; see ``ImageRecord``."""
PAST = "past"
"""Optional key of an image: a list of [seconds, file name], the earlier frames of its video, see ``ImageRecord``."""
MAX_PAST_FRAMES = 64
"""Maximum number of earlier frames of one image."""

# Kinds of repairs, see ``Repairs``.
FLAG = "flags changed: {} is given as text"
POLYGON = "boxes added: the extent of the polygon"
SAME_NAME = "categories dropped: unused, with the name of another"
FOUND_BY_NAME = "images found by their name alone, in another folder"
SHARED_FILE = "images that are the same file as another image; their boxes stay separate"
NO_SIZE = "image sizes added: read from the file"

FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True, "": False}
"""Texts that some tools write as ``iscrowd`` and ``ignore``, instead of 0 and 1."""
QUOTES = "'\""


def load_coco(
    path: str | os.PathLike, *, images: str | os.PathLike | None = None, split: str | None = None
) -> CocoDataset:
    """Reads a dataset and checks it: a COCO json, a folder with COCO jsons, or a YOLO dataset.

    In addition to the standard keys, an image may have ``video``, ``frame``, ``recording`` and ``past``, see
    ``ImageRecord``. An annotation with ``iscrowd`` or ``ignore`` becomes an ignore region. A box without area or
    outside the image is dropped, and a box partly outside is clipped, each with a line in ``warnings``. Exact
    duplicates of a box are dropped, and a polygon without box gets its extent; these and other repairs are counted in
    ``repairs``.

    Args:
        path: the json; or a folder that contains ``annotations.json``, exactly one json, or one for each split; or the
            data.yaml or the folder of a YOLO dataset.
        images: folder that ``file_name`` is relative to; by default the folder of the json, and folders beside it where
            tools put images.
        split: "train", "val" or "test", for a folder or YOLO dataset with several splits.

    Raises:
        UserError: if the file is missing or not a COCO json, a value is missing or has the wrong type, a box is not
            finite or has a negative size, an id is used twice or refers to nothing, an image file is missing, or there
            are several splits and none is chosen.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> path.touch()
        >>> record = ImageRecord(path, 64, 48, np.array([[10, 10, 22, 18]]), ["drone"], np.array([False]))
        >>> write_coco(path.with_suffix(".json"), [record], ["drone"])
        >>> load_coco(path.parent).records[0].boxes
        array([[10., 10., 22., 18.]], dtype=float32)
    """
    path = Path(path)
    if is_yolo(path):
        return load_yolo(path, split)
    unresolved = find_json(path, split).absolute()
    path = unresolved.resolve()
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file (the top level must be an object)")
    if "annotations" not in content and "annotation" in content:  # the jsons of HIT-UAV
        content["annotations"] = content["annotation"]
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: not a COCO file ({key!r} must be a list of objects)")

    repairs = Repairs()
    categories = _read_categories(path, content["categories"], content["annotations"], repairs)
    finder = ImageFinder(unresolved, None if images is None else Path(images).absolute())
    records = _read_images(path, content["images"], finder, repairs)
    _count_shared_files(records, repairs)
    warnings = _read_annotations(path, content["annotations"], records, categories, repairs)
    ids = {name: key for key, name in categories.items()}
    return CocoDataset(path, list(records.values()), list(ids), warnings, repairs, ids)


def list_splits(path: str | os.PathLike) -> list[str | None]:
    """Returns the splits of a dataset that ``load_coco`` can read.

    ``[None]`` for a COCO dataset without splits, ``["annotations"]`` for a YOLO dataset without splits.

    Example:
        >>> list_splits("train.json")
        [None]
    """
    path = Path(path)
    if is_yolo(path):
        return list(open_yolo(path).splits)
    if not path.is_dir() or single_json(path) is not None:
        return [None]
    return list(find_splits(path)) or [None]


def dataset_files(path: str | os.PathLike) -> list[Path]:
    """Returns the files that describe a dataset, which no result may replace: its jsons, or the data.yaml of YOLO.

    Raises:
        UserError: if a folder has no json, or several that are no splits.

    Example:
        >>> folder = getfixture("tmp_path") / "data"
        >>> folder.mkdir()
        >>> (folder / "train.json").touch()
        >>> [file.name for file in dataset_files(folder)]
        ['train.json']
    """
    path = Path(path)
    if is_yolo(path):
        return [path / name for name in (*CONFIG_FILES, *CLASS_FILES, "obj.data")] if path.is_dir() else [path]
    files = [find_json(path, split) for split in list_splits(path)]
    if path.is_dir():
        # A folder with one json of all images may have others for its splits, which a command can ask for.
        with contextlib.suppress(UserError):
            files += find_splits(path).values()
    return list(dict.fromkeys(files))


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
        name = _relative(record.path, folder)
        image: dict[str, Any] = {"id": image_id, "file_name": name, "width": record.width, "height": record.height}
        extras = {extra: getattr(record, extra) for extra in EXTRAS}
        if record.past:
            image[PAST] = [[seconds, _relative(file, folder)] for seconds, file in record.past]
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


def _read_id(place: str, item: dict, name: str) -> int | str:
    """Returns the id ``item[name]``, which must be an integer, a float with an integer value, or a string."""
    value = item.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{place}: {name} is {'missing' if value is None else f'{quote(value)}, not an id'}")
    return value


def _read_categories(path: Path, items: list[dict], annotations: list[dict], repairs: Repairs) -> dict[int | str, str]:
    """Reads the categories: id -> name. Of several with one name, those that no annotation uses are dropped: Roboflow
    adds a category with the name of the project, and a project may have the name of a class."""
    categories: dict[int | str, str] = {}
    for item in items:
        key = _read_id(f"{path}: category", item, "id")
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: category {quote(key)} has no name")
        if key in categories:
            raise UserError(f"{path}: category {quote(key)} ({quote(name)}): this id is used twice")
        categories[key] = check_name(name, f"{path}: category {quote(key)}")
    counts = Counter(categories.values())
    if len(counts) < len(categories):
        ids = (item.get("category_id") for item in annotations)
        used = {each for each in ids if isinstance(each, int | str)}
        for key, name in list(categories.items()):
            if counts[name] > 1 and key not in used:
                repairs.add(SAME_NAME, f"{path}: category {quote(key)} ({name})")
                counts[name] -= 1
                del categories[key]
        twice = [key for key, name in categories.items() if counts[name] > 1]
        if twice:
            raise UserError(f"{path}: category {quote(twice[-1])} ({categories[twice[-1]]}): this name is used twice")
    check_categories(list(categories.values()), str(path))
    return categories


def _read_images(path: Path, items: list[dict], finder: ImageFinder, repairs: Repairs) -> dict[int | str, ImageRecord]:
    images: dict[int | str, ImageRecord] = {}
    for index, item in enumerate(items):
        name = item.get("file_name", item.get("filename"))  # HIT-UAV writes filename
        place = f"{path}: image {quote(name or item.get('id', f'number {index}'), limit=200)}"
        if not isinstance(name, str) or not name:
            raise UserError(f"{place}: file_name is missing")
        check_name(name, place, MAX_PATH_CHARACTERS)
        key = _read_id(place, item, "id")
        if key in images:
            raise UserError(f"{place}: id {quote(key)} is used twice")
        for extra, kind in EXTRAS.items():
            value = item.get(extra)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise UserError(f"{place}: {extra} must be {kind.__name__}, got {quote(value)}")
            if value and isinstance(value, str):
                check_name(value, f"{place}: {extra}")
        file, by_name = finder.find(name, place)
        if by_name:
            repairs.add(FOUND_BY_NAME, f"{name} is {file}")
        width, height = _read_size(place, item, file, repairs)
        nothing: tuple = np.zeros((0, 4), np.float32), [], np.zeros(0, bool)  # boxes, names, ignore
        extras: dict[str, Any] = {extra: item.get(extra) for extra in EXTRAS} | {"image_id": key}
        extras["past"] = _read_past(place, item.get(PAST), finder)
        images[key] = ImageRecord(file, width, height, *nothing, **extras)
    return images


def _read_past(place: str, value: object, finder: ImageFinder) -> tuple[tuple[float, Path], ...]:
    """Reads the earlier frames of an image. A frame that is missing is an error, as an image that is missing is."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_PAST_FRAMES:
        raise UserError(f"{place}: {PAST} must be a list of at most {MAX_PAST_FRAMES} frames, got {quote(value)}")
    frames = []
    for entry in value:
        is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) and entry[1]
        if not is_pair or type(entry[0]) not in (int, float) or not 0 < entry[0] <= sys.float_info.max:
            raise UserError(f"{place}: {PAST} must hold pairs of positive seconds and a file name, got {quote(entry)}")
        check_name(entry[1], f"{place}: {PAST}", MAX_PATH_CHARACTERS)
        frames.append((float(entry[0]), finder.find(entry[1], place)[0]))
    return tuple(frames)


def _relative(path: Path, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _read_size(place: str, item: dict, file: Path, repairs: Repairs) -> tuple[int, int]:
    """Returns the width and height that the json states, or else those of the file."""
    if item.get("width") is None and item.get("height") is None:
        repairs.add(NO_SIZE, place)
        return image_size(file)
    sides = []
    for side in ("width", "height"):
        value = item.get(side)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_IMAGE_SIDE_PIXELS:
            raise UserError(
                f"{place}: {side} must be an integer from 1 to {MAX_IMAGE_SIDE_PIXELS}, got {quote(item.get(side))}"
            )
        sides.append(value)
    return sides[0], sides[1]


def _count_shared_files(records: dict[int | str, ImageRecord], repairs: Repairs) -> None:
    """Counts images that are the same file as another, as after an export of several videos into one folder."""
    seen: dict[Path, int | str] = {}
    for key, record in records.items():
        if (first := seen.setdefault(record.path, key)) != key:
            repairs.add(SHARED_FILE, f"{record.path.name} (ids {quote(first)} and {quote(key)})")


def _read_annotations(
    path: Path,
    annotations: list[dict],
    records: dict[int | str, ImageRecord],
    categories: dict[int | str, str],
    repairs: Repairs,
) -> list[str]:
    """Sets the boxes of all records; returns a warning for each box clipped or dropped, except dropped duplicates."""
    boxes: dict[int | str, dict[tuple[tuple[float, ...], str, bool], None]] = {key: {} for key in records}
    warnings: list[str] = []
    counts = Counter(key for item in annotations if isinstance(key := item.get("image_id"), int | str))
    for key in records:
        check_box_count(counts[key], f"{path}: image {quote(key)}")
    prefix = f"{path}: annotation "
    seen = set()
    for index, annotation in enumerate(annotations):
        shown_id = annotation.get("id", f"number {index}")
        place = prefix + (str(shown_id) if type(shown_id) is int else quote(shown_id).strip(QUOTES))
        if "id" in annotation:
            annotation_id = _read_id(place, annotation, "id")
            if annotation_id in seen:
                raise UserError(f"{place}: this id is used twice")
            seen.add(annotation_id)
        image_id = _read_id(place, annotation, "image_id")
        record = records.get(image_id)
        if record is None:
            raise UserError(f"{place}: image id {quote(image_id)} is not among the images")
        category_id = _read_id(place, annotation, "category_id")
        category = categories.get(category_id)
        if category is None:
            raise UserError(f"{place}: category id {quote(category_id)} is not among the categories")
        is_crowd, is_ignored = (_read_flag(place, annotation, key, repairs) for key in ("iscrowd", "ignore"))
        ignore = is_crowd or is_ignored
        box, warning = _read_box(place, annotation, record, repairs)
        if warning:
            warnings.append(f"{record.path.name}: {warning}")
        if box is None:
            continue
        entry = (tuple(box), category, ignore)
        if entry in boxes[image_id]:
            repairs.add(DUPLICATE, place)
        boxes[image_id][entry] = None
    for key, record in records.items():
        record.boxes = np.array([box for box, _, _ in boxes[key]], np.float32).reshape(-1, 4)
        record.names = [name for _, name, _ in boxes[key]]
        record.ignore = np.array([ignore for _, _, ignore in boxes[key]], bool)
    return warnings


def _read_flag(place: str, annotation: dict, key: str, repairs: Repairs) -> bool:
    """Reads ``iscrowd`` or ``ignore``: 0 or 1, false or true; some tools write them as text."""
    value = annotation.get(key)
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        repairs.add(FLAG.format(key), place)
        return FLAGS[value.strip().lower()]
    if value is None:
        return False
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise UserError(f"{place}: {key} must be 0 or 1, got {quote(value)}")
    return bool(value)


def _read_box(
    place: str, annotation: dict, record: ImageRecord, repairs: Repairs
) -> tuple[list[float] | None, str | None]:
    """Returns the corners of a box, clipped to the image (None if it is dropped), and a warning if it was changed.

    An annotation without a box gets the extent of its polygon.
    """
    bbox = annotation.get("bbox")
    if not bbox or bbox == [0, 0, 0, 0]:
        extent = _polygon_extent(annotation.get("segmentation"))
        if extent is not None:
            repairs.add(POLYGON, place)
            bbox = extent
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(v) in (int, float) for v in bbox):
        raise UserError(f"{place}: bbox must be four numbers, got {quote(bbox)}")
    x, y, w, h = bbox
    # Compare with the largest float: math.isfinite fails on integers of hundreds of digits, which JSON allows.
    if not all(abs(v) <= sys.float_info.max for v in bbox) or w < 0 or h < 0:
        problem = "a negative size" if w < 0 or h < 0 else "a number that is not finite"
        raise UserError(f"{place}: bbox {quote(bbox)} has {problem} ({record.path.name})")
    corners, kind = clip_box((x, y, x + w, y + h), record.width, record.height)
    if kind is None:
        return corners, None
    size = f"({record.width} x {record.height})"
    warning = {
        EMPTY: f"box {quote(bbox)} has no area, dropped",
        OUTSIDE: f"box {quote(bbox)} is outside the image {size}, dropped",
        CLIPPED: f"box {quote(bbox)} reaches outside the image {size}, clipped",
    }[kind]
    repairs.add(kind, f"{record.path.name}: {warning}")
    return corners, warning


def _polygon_extent(segmentation: object) -> list[float] | None:
    """The bounding box (x, y, width, height) of the polygons of an annotation.

    None if it has none, if they have fewer than three points in all, or if their coordinates are not pairs of finite
    numbers.
    """
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return None
    values = [value for part in segmentation for value in part]
    if len(values) < 6 or not all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in values):
        return None
    if any(len(part) % 2 for part in segmentation):
        return None
    xs = [value for part in segmentation for value in part[::2]]
    ys = [value for part in segmentation for value in part[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
