"""Reads YOLO datasets in the layouts of the common tools; ``yolo_label`` describes the label files.

- ``data.yaml`` with ``train``, ``val`` and ``test`` (Ultralytics, Roboflow, CVAT): each names a folder, a text file
  that lists images, or a list of these.
- ``obj.data`` and ``obj.names`` (Darknet, CVAT "YOLO 1.1"): lists of images, with the labels beside the images.
- ``images/`` and ``labels/`` with ``classes.txt`` (Label Studio), also with ``train/`` and ``val/`` inside.
- images and labels in one folder with ``classes.txt`` (labelImg).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from danet.data.image_folder import IMAGE_SUFFIXES, find_images, image_size, walk_files
from danet.data.image_record import CocoDataset, ImageRecord, Repairs, make_record
from danet.data.yolo_config import (
    CLASS_FILES,
    CONFIG_FILES,
    SPLITS,
    class_names,
    keypoint_values,
    locate,
    read_config,
    read_darknet,
)
from danet.data.yolo_label import find_label, read_label
from danet.utils.errors import UserError
from danet.utils.files import read_text
from danet.utils.names import quote

REPEATED = "lines dropped: the list names an image twice"
NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
"""Text files beside label files that are no labels."""


@dataclass
class YoloFolder:
    """A YOLO dataset on disk.

    Attributes:
        root: its folder.
        names: class names.
        splits: split ("train", "val", "test", or "annotations" if the dataset has no splits) -> name of each image
            without suffix -> its file.
        places: the file or folder that names the images of each split; the first one if there are several.
        keypoint_values: number of values after the box in each line of a pose dataset.
        notes: lines about parts of the dataset that are left out, and warnings.
        repairs: counts what was changed.
        labels: the label files that were read, by split.
    """

    root: Path
    names: list[str]
    splits: dict[str, dict[str, Path]]
    places: dict[str, Path]
    keypoint_values: int = 0
    notes: list[str] = field(default_factory=list)
    repairs: Repairs = field(default_factory=Repairs)
    labels: dict[str, list[Path]] = field(default_factory=dict)

    def read(self, split: str, image: Path, size: tuple[int, int], path: Path | None = None) -> ImageRecord:
        """Reads the labels of an image; without a label file it has no boxes.

        Args:
            split: name of its split.
            image: its file.
            size: (width, height) in pixels.
            path: file that the record names; by default ``image``.

        Raises:
            UserError: if the label file is invalid.
        """
        label = find_label(image, self.root)
        if label is None:
            return make_record(path or image, size, [], [], repairs=self.repairs)
        self.labels.setdefault(split, []).append(label)
        boxes, names = read_label(label, size, self.names, self.repairs, self.keypoint_values)
        return make_record(path or image, size, boxes, names, repairs=self.repairs, place=str(label))

    def check_labels(self, split: str) -> None:
        """Checks that ``read`` has found labels in a split.

        For "test", which is often published without labels, it only adds a line to ``notes``.

        Raises:
            UserError: if no image of "train", "val" or "annotations" has a label file.
        """
        if self.labels.get(split):
            return
        of = "the images" if split == "annotations" else f"the {len(self.splits[split])} images of {split!r}"
        where = "labels/NAME.txt for images/NAME.png, or NAME.txt beside NAME.png"
        problem = f"{self.places[split]}: none of {of} has a label file ({where})"
        if split != "test":
            raise UserError(f"{problem}; for images without objects, add empty files")
        self.notes.append(f"warning: {problem}")

    def unused_labels(self) -> list[Path]:
        """Returns the label files that were not read, in the folders of those that were read."""
        used = {label for labels in self.labels.values() for label in labels}
        files = {file for folder in {path.parent for path in used} for file in folder.glob("*.txt")} - used
        return sorted(
            file for file in files if file.name not in NOT_LABELS and not file.name.startswith(("._", "README"))
        )


def is_yolo(path: Path) -> bool:
    """Tells whether a path is a YOLO dataset.

    It is a YAML file; a folder with data.yaml (also data.yml, dataset.yaml) or obj.data; or a folder with classes.txt
    or obj.names and without a COCO json called annotations.json.

    Example:
        >>> is_yolo(Path("data.yaml")), is_yolo(Path("train.json"))
        (True, False)
    """
    if not path.is_dir():
        return path.suffix.lower() in (".yaml", ".yml")
    if any((path / name).is_file() for name in (*CONFIG_FILES, "obj.data")):
        return True
    return any((path / name).is_file() for name in CLASS_FILES) and not (path / "annotations.json").is_file()


def open_yolo(source: str | os.PathLike) -> YoloFolder:
    """Finds the images, splits and class names of a YOLO dataset; labels are read later, by ``YoloFolder.read``.

    Args:
        source: the folder, or its data.yaml.

    Raises:
        UserError: if the folder, its images or its class names are missing or invalid.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "classes.txt").write_text("drone")
        >>> (folder / "a.png").touch()
        >>> open_yolo(folder).splits["annotations"].keys()
        dict_keys(['a'])
    """
    # Do not resolve symbolic links: images/ may be a link while labels/ beside it is a real folder.
    path = Path(os.path.abspath(source))
    if not path.exists():
        raise UserError(f"{source}: no such folder")
    if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{source}: must be a folder or a data.yaml")
    root = path.parent if path.is_file() else path
    file = path if path.is_file() else next((root / name for name in CONFIG_FILES if (root / name).is_file()), None)
    config = read_config(file) if file else read_darknet(root / "obj.data")
    data = YoloFolder(root, class_names(root, file, config), {}, {}, keypoint_values(file, config))
    _find_splits(data, file or root / "obj.data", config)
    return data


def load_yolo(source: str | os.PathLike, split: str | None = None) -> CocoDataset:
    """Reads a split of a YOLO dataset.

    Args:
        source: the folder, or its data.yaml.
        split: "train", "val" or "test"; needed if the dataset has several splits.

    Raises:
        UserError: if the dataset is invalid (see ``open_yolo``), has no such split, or has no labels in it.

    Example:
        >>> from danet.utils.image_io import write_image
        >>> import numpy as np
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "classes.txt").write_text("drone")
        >>> _ = (folder / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
        >>> write_image(folder / "a.png", np.zeros((48, 64), np.uint8))
        >>> load_yolo(folder).records[0].boxes
        array([[24., 12., 40., 36.]], dtype=float32)
    """
    data = open_yolo(source)
    split = choose_split(data.splits, split, str(source))
    records = [data.read(split, image, image_size(image)) for image in data.splits[split].values()]
    for number, record in enumerate(records, 1):
        record.image_id = number
    data.check_labels(split)
    ids: dict[str, int | str] = {name: number for number, name in enumerate(data.names, 1)}
    return CocoDataset(data.places[split], records, data.names, data.notes, data.repairs, ids)


def choose_split(splits: Iterable[str], split: str | None, place: str) -> str:
    """Returns the split to read: ``split``, or the only one.

    Raises:
        UserError: if the dataset has splits but not this one, or has several and ``split`` is None. A dataset without
            splits is read for every ``split``.

    Example:
        >>> choose_split(["train", "val"], "val", "data.yaml")
        'val'
    """
    names = list(splits)
    if split in names:
        return str(split)
    if names == ["annotations"]:
        return names[0]
    if split is None and len(names) == 1:
        return names[0]
    problem = "has several splits" if split is None else f"has no split {split!r}"
    raise UserError(f"{place}: {problem} (it has: {', '.join(names)})")


def _find_splits(data: YoloFolder, file: Path, config: dict) -> None:
    """Finds the images of all splits, from the file that names them or else from the names of folders."""
    for key, split in SPLITS.items():
        if config.get(key) and split not in data.splits:
            places = _split_places(file, config, key)
            if places is None:
                data.notes.append(f"{file}: {key!r} names {quote(config[key])}, which does not exist; it is left out")
                continue
            data.places[split] = places[0]
            data.splits[split] = _images_of(places, file, config, data.repairs)
    if not data.splits:
        folders = _split_folders(data.root) or {"annotations": _image_folder(data.root)}
        data.places.update(folders)
        data.splits.update({split: find_images(folder) for split, folder in folders.items()})
    if data.places.get("train") is not None and data.places.get("train") == data.places.get("val"):
        data.notes.append(f"warning: {file}: 'train' and 'val' name the same images, {data.places['train']}")


def _split_places(file: Path, config: dict, key: str) -> list[Path] | None:
    """The folders and lists of images that a key names; None for a test split that was not exported."""
    values = config[key] if isinstance(config[key], list) else [config[key]]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{file}: {key!r} must be a folder or a list of images (.txt), got {quote(config[key])}")
    places = [locate(file, config, value, f"{file}: {key!r}") for value in values]
    missing = [value for value, place in zip(values, places, strict=True) if place is None]
    if missing and key == "test":
        return None
    if missing:
        raise UserError(f"{file}: {key!r} names the folder {quote(missing[0])[1:-1]}, which does not exist")
    return [place for place in places if place is not None]


def _images_of(places: list[Path], file: Path, config: dict, repairs: Repairs) -> dict[str, Path]:
    """Finds the images of the folders and lists of one split: name without suffix -> file."""
    if len(places) == 1 and places[0].is_dir():
        return find_images(places[0])
    images: list[Path] = []
    for place in places:
        images += find_images(place).values() if place.is_dir() else _read_list(place, file, config, repairs)
    common = Path(os.path.commonpath([image.parent for image in images]))
    by_name: dict[str, Path] = {}
    for image in images:
        name = image.relative_to(common).with_suffix("").as_posix()
        if by_name.setdefault(name, image) != image:
            raise UserError(f"{image}: another image has this name ({by_name[name]})")
    return by_name


def _read_list(path: Path, file: Path, config: dict, repairs: Repairs) -> list[Path]:
    """Reads the images that a text file lists, one per line."""
    images: dict[Path, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        image = locate(path, {}, line.strip(), place) or locate(file, config, line.strip(), place)
        if image is None or image.is_dir():
            raise UserError(f"{place}: there is no image {quote(line.strip())}; export the dataset with its images")
        if image in images:
            repairs.add(REPEATED, place)
        images[image] = None
    if not images:
        raise UserError(f"{path}: this list is empty")
    return list(images)


def _split_folders(root: Path) -> dict[str, Path]:
    """Finds train and val folders of a dataset without data.yaml: images/train, train/images, or train.

    Only if all images are in such folders, so that none is left out; otherwise there are no splits.
    """
    for base, inner in ((root / "images", ""), (root, "images"), (root, "")):
        folders = [path for path in sorted(base.iterdir()) if path.is_dir()] if base.is_dir() else []
        found = {SPLITS[path.name]: path / inner for path in folders if path.name in SPLITS and (path / inner).is_dir()}
        others = [path for path in folders if path.name not in (*SPLITS, "labels") and _has_image(path)]
        has_image_beside = base.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in base.iterdir())
        if (
            len(found) > 1
            and "train" in found
            and not others
            and not has_image_beside
            and all(map(_has_image, found.values()))
        ):
            return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}
    return {}


def _has_image(folder: Path) -> bool:
    return next(walk_files(folder, IMAGE_SUFFIXES), None) is not None


def _image_folder(root: Path) -> Path:
    """The folder of the images of a dataset without splits."""
    return root / "images" if (root / "images").is_dir() else root
