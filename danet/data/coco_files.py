"""Finds the COCO jsons of a folder and the images that a json names, in the layouts of the common tools.

- ``annotations.json``, or one json of any name, beside ``images/`` (danet, Label Studio's ``result.json``).
- ``train.json`` and ``val.json`` beside ``images/`` (danet).
- ``train/_annotations.coco.json`` with the images beside it (Roboflow); ``images_thermal_train/coco.json`` (FLIR).
- ``annotations/instances_train2017.json`` and ``train2017/`` (COCO); ``annotations/train.json`` and ``train/``
  (HIT-UAV);
  ``annotations/instances_default.json`` and ``images/default/`` (CVAT).
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from danet.data.image_folder import IMAGE_SUFFIXES, walk_files
from danet.data.yolo_config import SPLITS
from danet.data.yolo_dataset import choose_split
from danet.utils.errors import UserError
from danet.utils.names import join_name

PREFERRED = ("annotations.json", "_annotations.coco.json", "coco.json", "result.json", "result_coco.json")
"""Names of the json of a folder that has others, too, such as ``index.json`` beside ``coco.json``."""

# A split in a name such as instances_train2017 or images_thermal_val.
SPLIT_IN_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?:[0-9]{{4}})?(?:[^a-z0-9]|$)")


def split_of(name: str) -> str | None:
    """Returns the split ("train", "val" or "test") in the name of a file or folder, or None.

    Example:
        >>> split_of("instances_train2017"), split_of("valid"), split_of("annotations")
        ('train', 'val', None)
    """
    found = SPLIT_IN_NAME.search(name.lower())
    return SPLITS[found[1]] if found else None


def find_splits(folder: Path) -> dict[str, Path]:
    """Finds the jsons of the splits of a folder: split -> json; empty if there are none.

    Raises:
        UserError: if several jsons belong to one split.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "train.json").touch()
        >>> list(find_splits(folder))
        ['train']
    """
    annotated = _jsons(folder / "annotations")
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "annotations"]
    levels = (
        [(split_of(path.stem), path) for path in _jsons(folder)],
        [(split_of(path.stem), path) for path in annotated if path.stem.startswith("instances")]
        or [(split_of(path.stem), path) for path in annotated],
        [(split_of(path.name), json) for path in inner if (json := single_json(path)) is not None],
    )
    for level in levels:
        found: dict[str, Path] = {}
        for split, path in level:
            if split is None:
                continue
            if split in found and single_json(folder) is not None:
                return {}
            if split in found:
                raise UserError(f"{folder}: two jsons belong to {split!r}, {found[split]} and {path}; give one of them")
            found[split] = path
        if found:
            return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}
    return {}


def find_json(path: Path, split: str | None) -> Path:
    """Finds the json of a file or folder.

    Args:
        path: a json, or a folder.
        split: "train", "val" or "test": which json of a folder with several.

    Raises:
        UserError: if the folder has no json, or several and none is preferred.

    Example:
        >>> find_json(Path("train.json"), None).name
        'train.json'
    """
    if not path.is_dir():
        return path
    splits = find_splits(path) if split is not None or single_json(path) is None else {}
    if split in splits:
        return splits[str(split)]
    single = single_json(path) or single_json(path / "annotations")
    if single is not None:
        return single
    if len(splits) == 1 and split is None:
        return next(iter(splits.values()))
    if splits and split is not None:
        choose_split(splits, split, str(path))
    names = dict.fromkeys(item.relative_to(path).as_posix() for item in [*splits.values(), *_jsons(path)])
    files = ", ".join(list(names)[:5]) or "none"
    raise UserError(f"{path}: a folder must contain annotations.json or exactly one json (found: {files})")


def _jsons(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("._"))


def single_json(folder: Path) -> Path | None:
    """Returns the preferred or only json of a folder; None if it has none, or several.

    Example:
        >>> folder = getfixture("tmp_path") / "train"
        >>> folder.mkdir()
        >>> (folder / "coco.json").touch()
        >>> single_json(folder).name
        'coco.json'
    """
    found = _jsons(folder)
    preferred = [folder / name for name in PREFERRED if folder / name in found]
    return next(iter(preferred + found), None) if preferred or len(found) == 1 else None


class ImageFinder:
    """Finds the image files of a json: beside it, in the folders where tools put them, or by their name alone.

    Args:
        json: the json.
        images: the folder that the names are relative to; None looks into the usual folders.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "images").mkdir()
        >>> (folder / "images/a.png").touch()
        >>> ImageFinder(folder / "train.json", None).find("a.png", "train.json")[0].name
        'a.png'
    """

    def __init__(self, json: Path, images: Path | None) -> None:
        usual = dict.fromkeys([*_image_folders(json.resolve()), *_image_folders(json)])  # the json may be a link
        self.folders = [images] if images else list(usual)
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, place: str) -> tuple[Path, bool]:
        """Returns the file, and whether it was found by its name alone.

        Raises:
            UserError: if there is no such file, or several have its name.
        """
        first = join_name(self.folders[0], name, place, inside=False)
        plain = name.replace("\\", "/")  # as Windows writes it
        for folder in self.folders:
            for path in dict.fromkeys((Path(folder, name), Path(folder, plain))):
                if os.path.isfile(path):
                    return Path(os.path.normpath(path)), False
        found = self._named(plain.rpartition("/")[2])
        if len(found) == 1:
            return found[0], True
        several = f", but {len(found)} files of this name in other folders" if found else ""
        raise UserError(f"{place}: there is no file {os.path.normpath(first)}{several}")

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for path in walk_files(self.folders[0], IMAGE_SUFFIXES):
                self._by_name.setdefault(path.name, []).append(path)
        return self._by_name.get(name, [])


def _image_folders(json: Path) -> Iterator[Path]:
    """Yields the folders that the file names of a json may be relative to, the usual one first."""
    folder, above = json.parent, json.parent.parent
    yield folder
    yield folder / "images"
    if folder.name == "annotations":
        part = json.stem.removeprefix("instances_")
        yield from (above, above / "images" / part, above / part, above / "images")
