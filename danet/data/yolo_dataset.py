"""Reads YOLO datasets in the layouts of the common tools.

A label file has one line ``class x y width height`` per box, relative to the image size, or ``class x1 y1 x2 y2 ...``
with the corners of a polygon, of which the extent is used. Layouts:

- ``data.yaml`` with ``train``, ``val`` and ``test`` (Ultralytics, Roboflow, CVAT): each names a folder, a text file
  that lists images, or a list of these.
- ``obj.data`` and ``obj.names`` (Darknet, CVAT "YOLO 1.1"): lists of images, with the labels beside the images.
- ``images/`` and ``labels/`` with ``classes.txt`` (Label Studio), also with ``train/`` and ``val/`` inside.
- images and labels in one folder with ``classes.txt`` (labelImg).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danet.data.image_folder import find_images, image_size, walk_files
from danet.data.image_record import CocoDataset, ImageRecord, Repairs, check_box_count, check_categories, make_record
from danet.data.video import IMAGE_SUFFIXES
from danet.utils.errors import UserError
from danet.utils.files import read_text, read_yaml
from danet.utils.names import join_name, quote

RELATIVE_TOLERANCE = 0.1
"""How far a coordinate may lie outside of the range from 0 to 1; tools write such values for boxes at the image's edge.
Labels in pixels exceed it."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of splits in files and folders, and the split that they stand for."""

POLYGON = "polygons changed: replaced by their extent"
KEYPOINTS = "key points dropped: only the box is used"
CONFIDENCE = "confidences dropped: labels of a detector"
DECIMAL_CLASS = "classes changed: written with a decimal point"
REPEATED = "lines dropped: the list names an image twice"


CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml")
CLASS_FILES = ("classes.txt", "obj.names")
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
    config = _read_config(file) if file else _read_darknet(root / "obj.data")
    data = YoloFolder(root, _class_names(root, file, config), {}, {}, _keypoint_values(file, config))
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


def find_label(image: Path, root: Path) -> Path | None:
    """Finds the label file of an image.

    A folder ``images`` of its path (the last one first) becomes ``labels``, or the label lies beside the image.

    If the image is a link, the label of the link's own path comes before that of the file it refers to.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a.txt").touch()
        >>> find_label(folder / "a.png", folder).name
        'a.txt'
    """
    paths = [image]
    if (real := image.resolve()) != image:
        paths.append(real)
    return next((label for path in paths for label in _label_paths(path, root) if label.is_file()), None)


def _label_paths(image: Path, root: Path) -> Iterator[Path]:
    """Yields the places where the label file of an image may be, the most usual one first."""
    start = len(root.parts) if image.is_relative_to(root) else 0
    parts = list(image.with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    # Below the dataset's folder first: a folder above it may be called images, too.
    for index in sorted(folders, key=lambda index: (index >= start, index), reverse=True):
        yield Path(*parts[:index], "labels", *parts[index + 1 :])
    yield Path(*parts)


def read_label(
    path: Path, size: Sequence[int], names: Sequence[str], repairs: Repairs, keypoint_values: int = 0
) -> tuple[list[list[float]], list[str]]:
    """Reads a label file.

    Args:
        path: the file.
        size: (width, height) of the image in pixels.
        names: the class names.
        repairs: counts polygons, and what else was changed.
        keypoint_values: number of values after the box in the lines of a pose dataset.

    Returns:
        Boxes (x0, y0, x1, y1) in pixels, not clipped to the image, and the class name of each.

    Raises:
        UserError: if a line is neither a box nor a polygon, a value is out of its range by more than
            RELATIVE_TOLERANCE, or there are too many boxes.

    Example:
        >>> path = getfixture("tmp_path") / "a.txt"
        >>> _ = path.write_text("0 0.5 0.5 0.25 0.5")
        >>> read_label(path, (64, 48), ["drone"], Repairs())
        ([[24.0, 12.0, 40.0, 36.0]], ['drone'])
    """
    width, height = size
    boxes, classes = [], []
    lines = read_text(path).split("\n")
    check_box_count(sum(map(bool, map(str.strip, lines))), str(path))
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        place = f"{path}: line {number}"
        try:
            index, values = _class_index(words[0], place, repairs), list(map(float, words[1:]))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{place}: must be an integer and four numbers, got {quote(line.strip())}") from None
        if not 0 <= index < len(names):
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"{place}: class {quote(index)} has no name; there are {len(names)} ({known})")
        x0, y0, x1, y1 = _extent(values, place, line, repairs, keypoint_values)
        boxes.append([x0 * width, y0 * height, x1 * width, y1 * height])
        classes.append(names[index])
    return boxes, classes


def _class_index(word: str, place: str, repairs: Repairs) -> int:
    """The class of a line, an integer; some tools write 0.0."""
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if not value.is_integer():
            raise
        repairs.add(DECIMAL_CLASS, place)
        return int(value)


def _extent(values: list[float], place: str, line: str, repairs: Repairs, keypoint_values: int) -> tuple[float, ...]:
    """Corners (x0, y0, x1, y1), relative to the image size, of the values after the class."""
    count = len(values)
    is_polygon = count >= 6 and count % 2 == 0
    if keypoint_values and count == 4 + keypoint_values:
        repairs.add(KEYPOINTS, place)
        values, is_polygon = values[:4], False
    elif count == 5 and 0 <= values[4] <= 1:
        repairs.add(CONFIDENCE, place)
        values = values[:4]
    elif count != 4 and not is_polygon:
        raise UserError(f"{place}: must be 'class x y width height', got {count + 1} words")
    # The comparison is false for values that are not finite, too.
    in_range = all(-RELATIVE_TOLERANCE <= value <= 1 + RELATIVE_TOLERANCE for value in values)
    if not in_range or (not is_polygon and min(values[2:]) < 0):
        problem = "coordinates must be between 0 and 1, relative to the image size"
        raise UserError(f"{place}: {problem}, got {quote(line.strip())}")
    if is_polygon:
        repairs.add(POLYGON, place)
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    x, y, w, h = values
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _read_config(path: Path) -> dict:
    """Reads data.yaml."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must contain 'names' and folders")
    return content


def _read_darknet(path: Path) -> dict:
    """Reads obj.data, which has lines such as ``train = data/train.txt``; an empty dictionary if there is no file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in read_text(path).splitlines())
    config = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    return {key: config[key] for key in (*SPLITS, "names") if config.get(key)}


def _keypoint_values(path: Path | None, config: dict) -> int:
    """Number of values after the box in each line of a pose dataset, from ``kpt_shape`` of data.yaml."""
    shape = config.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 1000 for n in shape):
        raise UserError(f"{path}: kpt_shape must be two integers, got {quote(shape)}")
    return shape[0] * shape[1]


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
    places = [_locate(file, config, value, f"{file}: {key!r}") for value in values]
    missing = [value for value, place in zip(values, places, strict=True) if place is None]
    if missing and key == "test":
        return None
    if missing:
        raise UserError(f"{file}: {key!r} names the folder {quote(missing[0])[1:-1]}, which does not exist")
    return [place for place in places if place is not None]


def _locate(file: Path, config: dict, value: str, place: str) -> Path | None:
    """Finds a file or folder that a dataset names.

    The name is relative to the ``path`` of data.yaml or to the file that states the name, or is a path of another
    machine.

    Exported files often state ../train/images or data/images/train although these folders are beside the file: leading
    folders of the name are dropped until it exists.
    """
    base = join_name(file.parent, str(config.get("path") or "."), f"{file}: 'path'", inside=False)
    bases = [base, file.parent, file.resolve().parent]
    candidates = [join_name(folder, value, place, inside=False) for folder in bases]
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    shorter = [Path(folder, *parts[start:]) for start in range(len(parts)) for folder in bases[:2]]
    # The last part alone must be a file or the name of a split: if test/images is missing, another folder images must
    # not be taken for it.
    candidates += [path for path in shorter if len(parts) == 1 or path.parent not in bases or _is_split_or_file(path)]
    found = next((path for path in candidates if os.path.exists(path)), None)
    if found is None:
        return None
    # Remove ".." from the text without resolving links, unless that names another file (".." after a link).
    plain = Path(os.path.normpath(found))
    return plain if plain.exists() and plain.samefile(found) else found


def _is_split_or_file(path: Path) -> bool:
    return path.name in SPLITS or os.path.isfile(path)


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
        image = _locate(path, {}, line.strip(), place) or _locate(file, config, line.strip(), place)
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


def _class_names(root: Path, file: Path | None, config: dict) -> list[str]:
    """Returns the class names of data.yaml, or else of obj.names or classes.txt."""
    names = config.get("names")
    if isinstance(names, str) and (listed := _locate(root / "obj.data", config, names, f"{root}: names")):
        return _read_class_file(listed)
    if isinstance(names, dict):
        names = _numbered_names(names, file)
    if names is None:
        folders = [root, root / "labels", root / "images"]
        files = [folder / name for folder in folders for name in CLASS_FILES]
        found = next((path for path in files if path.is_file()), None)
        # labelImg writes classes.txt into the folder of the labels, such as labels/train.
        found = found or next(
            (path for path in walk_files(root, frozenset({".txt"})) if path.name in CLASS_FILES), None
        )
        if found:
            return _read_class_file(found)
    if not names or not isinstance(names, list):
        raise UserError(f"{root}: no class names; give them in data.yaml (names: [...]) or classes.txt")
    for index, name in enumerate(names):
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            raise UserError(f"{file}: class {index} has the name {quote(name)}, which is no text; put it into quotes")
    return check_categories([str(name) for name in names], str(file))


def _numbered_names(names: dict, file: Path | None) -> list:
    """The names of a mapping such as {0: drone, 1: bird}, in the order of their numbers."""
    try:
        numbered = {int(key): name for key, name in names.items()}
    except (TypeError, ValueError):
        raise UserError(f"{file}: the keys of 'names' must be the numbers 0, 1, 2, ..., got {quote(names)}") from None
    if sorted(numbered) != list(range(len(names))):
        said = quote(sorted(numbered))
        raise UserError(f"{file}: the numbers of 'names' must be 0, 1, 2, ... without a gap, got {said}")
    return [numbered[index] for index in range(len(numbered))]


def _read_class_file(path: Path) -> list[str]:
    """Reads class names, one per line.

    A class's number is the number of its line (from 0), so that only lines at the end may be empty.
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    for number, line in enumerate(lines, 1):
        if not line and len(lines) > 1:
            raise UserError(f"{path}: line {number} is empty; each line must be the name of a class")
    if not lines[0]:
        raise UserError(f"{path}: no class names in this file")
    return check_categories(lines, str(path))
