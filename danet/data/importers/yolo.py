"""Imports YOLO datasets: one txt file per image, with lines ``class x y width height`` relative to the image size.

The labels of ``images/train/a.png`` are in ``labels/train/a.txt``. Class names come from ``data.yaml``, ``classes.txt``
or ``obj.names``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from danet.data.importers.base import ImportFolder, ImportOptions, find_images, make_record, run_import
from danet.utils.errors import UserError
from danet.utils.files import read_text
from danet.utils.progress import track

RELATIVE_TOLERANCE = 1e-3
"""A coordinate may exceed the range from 0 to 1 by this much, because files contain rounded numbers."""


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import yolo``."""

    source: str
    """Folder that contains images/, labels/ and data.yaml or classes.txt; or the path of a data.yaml."""

    out: str
    """Output folder; the import writes images/ and one json for each split of data.yaml, or annotations.json."""


def import_yolo(options: Options) -> None:
    """Imports YOLO labels; images without a label file have no boxes."""
    source = Path(options.source).resolve()
    if not source.exists():
        raise UserError(f"{options.source}: no such folder")
    if source.is_file() and source.suffix not in (".yaml", ".yml"):
        raise UserError(f"{options.source}: must be a folder or a data.yaml")
    config_path = source if source.suffix in (".yaml", ".yml") else source / "data.yaml"
    config = _read_yaml(config_path)
    root = config_path.parent
    splits = {key: _folder(config_path, config, key) for key in ("train", "val", "test") if config.get(key)}
    names = _class_names(root, config_path, config)
    labels: set[Path] = set()
    with ImportFolder(options) as out:
        for split, folder in (splits or {"annotations": root / "images"}).items():
            records = []
            images = find_images(folder)
            for name, image in track(list(images.items()), f"importing {split}", quiet=options.quiet):
                path, *size = out.copy(image, (f"{split}/" if splits else "") + name + image.suffix)
                label = label_path(image, root)
                boxes, classes = read_label(label, size, names) if label.is_file() else ([], [])
                if label.is_file():
                    labels.add(label)
                records.append(make_record(path, size, boxes, classes))
            out.write(f"{split}.json", records, names)
        if not labels:
            raise UserError(f"{root}: none of the images has a label file (labels/NAME.txt for images/NAME.png)")
        files = {path for folder in {path.parent for path in labels} for path in folder.glob("*.txt")} - labels
        orphans = sorted(path for path in files if path.name != "classes.txt")
        if orphans:
            out.note(f"{orphans[0]}: no image belongs to this label file and {len(orphans) - 1} others")


def label_path(image: Path, root: Path) -> Path:
    """Returns the label file of an image: the last folder ``images`` of its path is replaced by ``labels``."""
    parts = list(image.relative_to(root).parts) if image.is_relative_to(root) else list(image.parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def read_label(path: Path, size: Sequence[int], names: Sequence[str]) -> tuple[list[list[float]], list[str]]:
    """Reads a label file.

    Args:
        path: the file.
        size: (width, height) of the image in pixels.
        names: the class names.

    Returns:
        Boxes (x0, y0, x1, y1) in pixels, and the class name of each.

    Raises:
        UserError: if a line does not contain five numbers, or a number is out of its range.
    """
    width, height = size
    boxes, classes = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        place = f"{path}: line {number}"
        words = line.split()
        if not words:
            continue
        if len(words) != 5:
            raise UserError(f"{place}: must be 'class x y width height', got {len(words)} words")
        try:
            index, (x, y, w, h) = int(words[0]), map(float, words[1:])
        except ValueError:
            raise UserError(f"{place}: must be an integer and four numbers, got {line.strip()!r}") from None
        if not 0 <= index < len(names):
            raise UserError(f"{place}: class {index} has no name; there are {len(names)} ({', '.join(names)})")
        in_range = all(-RELATIVE_TOLERANCE <= value <= 1 + RELATIVE_TOLERANCE for value in (x, y, w, h))
        if not in_range or w < 0 or h < 0:  # also if a number is not finite
            problem = "coordinates must be between 0 and 1, relative to the image size"
            raise UserError(f"{place}: {problem}, got {line.strip()!r}")
        boxes.append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        classes.append(names[index])
    return boxes, classes


def _read_yaml(path: Path) -> dict:
    """Reads data.yaml; an empty dictionary if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must contain 'names' and folders")
    return content


def _folder(path: Path, config: dict, key: str) -> Path:
    """Finds the image folder of a split, relative to the ``path`` in data.yaml or to the folder of data.yaml."""
    value = config[key]
    if not isinstance(value, str):
        raise UserError(f"{path}: {key!r} must be one folder, got {value!r}")
    # Exported files often state ../train/images although the folder is beside data.yaml.
    bases = [path.parent / str(config.get("path") or "."), path.parent]
    candidates = [base / value for base in bases] + [path.parent / value.removeprefix("../")]
    found = next((folder.resolve() for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise UserError(f"{path}: {key!r} names the folder {value}, which does not exist")
    return found


def _class_names(root: Path, path: Path, config: dict) -> list[str]:
    """Returns the class names of data.yaml, or else of classes.txt or obj.names."""
    names = config.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: the numbers of 'names' must be 0, 1, 2, ... without a gap, got {sorted(names)}")
        names = [names[index] for index in range(len(names))]
    for file in (root / "classes.txt", root / "obj.names", root / "labels" / "classes.txt"):
        if names is None and file.is_file():
            names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not names or not isinstance(names, list):
        raise UserError(f"{root}: no class names; give them in data.yaml (names: [...]) or classes.txt")
    names = [str(name) for name in names]
    if len(set(names)) != len(names):
        raise UserError(f"{root}: a class name occurs twice: {names}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import yolo``."""
    return run_import(import_yolo, Options, argv)
