"""Reads the files that describe a YOLO dataset: data.yaml, obj.data, and the lists of class names."""

import os
from pathlib import Path

from danet.data.image_folder import walk_files
from danet.data.image_record import check_categories
from danet.utils.errors import UserError
from danet.utils.files import read_text, read_yaml
from danet.utils.names import join_name, quote

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of splits in files and folders, and the split that they stand for."""
CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml")
CLASS_FILES = ("classes.txt", "obj.names")


def read_config(path: Path) -> dict:
    """Reads data.yaml."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must contain 'names' and folders")
    return content


def read_darknet(path: Path) -> dict:
    """Reads obj.data, which has lines such as ``train = data/train.txt``; an empty dictionary if there is no file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in read_text(path).splitlines())
    config = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    return {key: config[key] for key in (*SPLITS, "names") if config.get(key)}


def keypoint_values(path: Path | None, config: dict) -> int:
    """Number of values after the box in each line of a pose dataset, from ``kpt_shape`` of data.yaml."""
    shape = config.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 1000 for n in shape):
        raise UserError(f"{path}: kpt_shape must be two integers, got {quote(shape)}")
    return shape[0] * shape[1]


def locate(file: Path, config: dict, value: str, place: str) -> Path | None:
    """Finds a file or folder that a dataset names.

    The name is relative to the ``path`` of data.yaml or to the file that states the name, or is an absolute
    path of another machine.

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


def class_names(root: Path, file: Path | None, config: dict) -> list[str]:
    """Returns the class names of data.yaml, or else of obj.names or classes.txt."""
    names = config.get("names")
    if isinstance(names, str) and (listed := locate(root / "obj.data", config, names, f"{root}: names")):
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
