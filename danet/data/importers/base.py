"""The folder an import writes: images first, the jsons last, nothing at all if it fails."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.summary import report
from danet.data.video import IMAGE_SUFFIXES
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, read_text
from danet.utils.image_io import read_image


class ImportFolder:
    """Collects images under ``OUT/images`` and jsons in ``OUT``.

    Used as a context: the jsons appear when the block succeeds, and if it fails every image that this
    import added is removed again. Images that an earlier import put there are replaced only by name.
    """

    def __init__(self, out: str | os.PathLike, *, quiet: bool = False, json: str | None = None):
        self.folder = Path(out)
        self.quiet = quiet
        self.json = json
        self._sources: dict[Path, Path | None] = {}
        self._added: list[Path] = []
        self._jsons: list[tuple[Path, Sequence[ImageRecord], Sequence[str]]] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file; an import needs a folder to write to")

    def __enter__(self) -> "ImportFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                for path, records, categories in self._jsons:
                    if not path.exists():
                        self._added.append(path)
                    write_coco(path, records, categories)
                written = {path: records for path, records, _ in self._jsons}
                report(written, json=self.json, quiet=self.quiet)
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                self._remove_added()

    def copy(self, source: Path, name: str | None = None) -> tuple[Path, int, int]:
        """Copies an image unchanged, after reading it; returns its new path, width and height.

        ``name`` is the place below ``images``, by default the file's own name. Copying the same source
        again only returns its place.
        """
        target = self._target(name or source.name)
        if self._sources.get(target, source) != source:
            raise UserError(f"{source}: another image is stored as {target} already ({self._sources[target]})")
        height, width = read_image(source).shape[:2]
        if target not in self._sources:
            if target.exists() and target.samefile(source):
                raise UserError(f"{source}: lies in the output folder; import into another one")
            self._store(target, source.read_bytes())
            self._sources[target] = source
        return target, width, height

    def save_png(self, image: np.ndarray, name: str) -> Path:
        """Stores an image ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16, without loss."""
        target = self._target(name)
        self._store(target, cv2.imencode(".png", image)[1].tobytes())
        return target

    def write(self, name: str, records: Sequence[ImageRecord], categories: Sequence[str]) -> None:
        """Announces a json; it is written when everything else has succeeded."""
        if not records:
            raise UserError(f"{name}: no images to import")
        self._jsons.append((self.folder / name, records, categories))

    def _target(self, name: str) -> Path:
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")]
        return self.folder.joinpath("images", *parts)

    def _store(self, target: Path, content: bytes) -> None:
        if not target.exists():
            self._added.append(target)
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)

    def _remove_added(self) -> None:
        """Removes the files that this import added, and folders that are empty then."""
        for path in self._added:
            path.unlink(missing_ok=True)
        for folder in sorted({parent for path in self._added for parent in path.parents}, reverse=True):
            if folder == self.folder or self.folder in folder.parents:
                try:
                    folder.rmdir()
                except OSError:
                    continue


def record(
    path: Path,
    size: Sequence[int],
    boxes: Sequence[Sequence[float]] | np.ndarray,
    names: Sequence[str],
    ignore: Sequence[bool] | None = None,
    **extras: Any,
) -> ImageRecord:
    """An ImageRecord from lists. ``size`` is (width, height); ``extras`` are video, frame and recording."""
    flags = np.zeros(len(names), bool) if ignore is None else np.array(ignore, bool)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageRecord(path, size[0], size[1], boxes=corners, names=list(names), ignore=flags, **extras)


def read_names(path: str | os.PathLike, below: Path) -> list[str]:
    """The names in a list file, one a line, without an image's suffix.

    ``path`` is taken as given, or below the folder that is imported.
    """
    found = next((file for file in (Path(path), below / path) if file.is_file()), None)
    if found is None:
        raise UserError(f"{path}: no such list file, here or in {below}")
    names = [line.strip() for line in read_text(found).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{found}: this list is empty")
    return [name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name for name in names]


def find_images(folder: Path) -> dict[str, Path]:
    """All images in ``folder`` and below by their name there, without suffix; sorted, at least one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in images:
                raise UserError(f"{path}: another image has this name ({images[name].name})")
            images[name] = path
    if not images:
        raise UserError(f"{folder}: no images in this folder")
    return images


def note(text: str) -> None:
    """A line for the user that is not an error."""
    print(text, file=sys.stderr)
