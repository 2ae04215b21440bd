"""What all importers share: options, the command, the folder that they write, and the search for images.

An importer is a module with a dataclass that extends ``ImportOptions``, a function that fills an ``ImportFolder``, and
a ``main`` that calls ``run_import``; its name and a line of help are added to ``FORMATS`` in ``__init__.py``.
"""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.dataset_summary import write_summary
from danet.data.image_folder import IMAGE_SUFFIXES
from danet.data.image_record import Repairs, make_record
from danet.data.yolo_dataset import REPEATED
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, read_json, read_text
from danet.utils.image_io import read_image
from danet.utils.names import MAX_PATH_CHARACTERS, check_name, join_name


@dataclass
class ImportOptions:
    """Options of every importer. An importer adds its own, and may document ``source`` and ``out`` in more detail."""

    source: str
    """Folder or file to import."""

    out: str
    """Output folder; the import writes images/ and annotations.json."""

    json: str | None = None
    """JSON file for the number of images, recordings and boxes of each annotation file."""

    quiet: bool = False
    """Print only errors."""


def run_import(importer: Callable[..., None], options: type[ImportOptions], argv: Sequence[str] | None) -> int:
    """Runs ``danet data import NAME`` and returns its exit code; NAME is the last part of the importer's module."""
    prog = f"danet data import {importer.__module__.rpartition('.')[2]}"
    return cli.run(importer, options, prog=prog, positionals=["source", "out"], argv=argv)


class ImportFolder:
    """The output folder of an import: images in ``OUT/images``, annotation files in ``OUT``.

    It is a context manager. The annotation files are written when the ``with`` block succeeds. If that or the block
    fails, all files that this import added are removed, and older files are unchanged. Several imports may write to one
    folder, but none replaces an image or an annotation file of another dataset.

    Args:
        options: of the importer; ``source``, ``out``, ``json`` and ``quiet`` are used.

    Attributes:
        repairs: counts what the importer changes in the dataset; one line for each kind is printed at the end.

    Raises:
        UserError: if ``options.out`` is a file.
    """

    def __init__(self, options: ImportOptions) -> None:
        self.folder = Path(options.out)
        self.options = options
        self.repairs = Repairs()
        self._sources: dict[Path, Path | None] = {}
        self._added: list[Path] = []
        self._annotations: list[tuple[Path, Sequence[ImageRecord], Sequence[str]]] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file; an import needs a folder to write to")

    def __enter__(self) -> "ImportFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                with contextlib.ExitStack() as stack:
                    for path, records, categories in self._annotations:
                        if not path.exists():
                            self._added.append(path)
                        # Replace the older file at the end, when nothing else can fail.
                        write_coco(stack.enter_context(atomic_path(path)), records, categories)
                    written = {path: records for path, records, _ in self._annotations}
                    write_summary(written, json=self.options.json, quiet=self.options.quiet)
                    for line in self.repairs.lines():
                        self.note(f"{self.options.source}: {line}")
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                self._remove_added()

    def copy(self, source: Path, name: str | None = None) -> tuple[Path, int, int]:
        """Copies an image file unchanged; returns its new path, width and height in pixels.

        Args:
            source: the file. A second copy of the same file to the same place does nothing.
            name: path below ``images``; by default the name of the file.

        Raises:
            UserError: if the file cannot be decoded, if it lies in the output folder, or if another image is stored at
                the same place.
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

    def record(
        self,
        path: Path,
        size: Sequence[int],
        boxes: Sequence[Sequence[float]] | np.ndarray,
        names: Sequence[str],
        **options: Any,
    ) -> ImageRecord:
        """Makes the record of an image and counts repairs, see ``make_record``."""
        return make_record(path, size, boxes, names, repairs=self.repairs, **options)

    def without_repetitions(self, names: Sequence[str], place: str) -> list[str]:
        """Returns the image names of a list, each once, and counts the others as repairs."""
        counts = Counter(names)
        for name, count in counts.items():
            if count > 1:
                self.repairs.add(REPEATED, f"{place}: {name}", count - 1)
        return list(counts)

    def save_png(self, image: np.ndarray, name: str) -> Path:
        """Stores an image ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16, as PNG; returns its path.

        Raises:
            UserError: if another image is stored at the same place.
        """
        target = self._target(name)
        self._store(target, cv2.imencode(".png", image)[1].tobytes())
        return target

    def write(self, name: str, records: Sequence[ImageRecord], categories: Sequence[str]) -> None:
        """Registers an annotation file, which is written at the end of the ``with`` block.

        Raises:
            UserError: if there are no records, or the file has images of an earlier import that are not among them.
        """
        if not records:
            raise UserError(f"{name}: no images to import")
        if not any(record.names for record in records):
            self.note(f"warning: {name}: none of the {len(records)} images has a box")
        path = join_name(self.folder, name, f"{self.options.source}: annotation file")
        if path.exists():
            self._check_earlier(path, records)
        self._annotations.append((path, records, categories))

    def note(self, text: str) -> None:
        """Prints a line on stderr about something that is not an error, unless the import is quiet."""
        if not self.options.quiet:
            print(text, file=sys.stderr)

    def _check_earlier(self, path: Path, records: Sequence[ImageRecord]) -> None:
        """Raises UserError if an existing annotation file names images that are not among ``records``."""
        content = read_json(path)
        images = content.get("images") if isinstance(content, dict) else None
        folder = os.path.realpath(self.folder)
        new = {Path(os.path.relpath(record.path, folder)).as_posix() for record in records}
        earlier = [item.get("file_name") for item in images or [] if isinstance(item, dict)]
        lost = sum(name not in new for name in map(str, earlier))
        if images is None or lost:
            what = "is another file" if images is None else f"holds {lost} images of an earlier import"
            raise UserError(f"{path}: {what}, which would be lost; import into another folder")

    def _target(self, name: str) -> Path:
        return join_name(self.folder / "images", name, f"{self.options.source}: image")

    def _store(self, target: Path, content: bytes) -> None:
        """Writes a file unless it is there already. Raises UserError if its content differs."""
        if target.exists():
            if not target.is_file() or target.read_bytes() != content:
                raise UserError(f"{target}: is another image, of an earlier import; import into another folder")
            return
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
        self._added.append(target)

    def _remove_added(self) -> None:
        """Removes the files that this import added, and the folders that become empty."""
        for path in self._added:
            path.unlink(missing_ok=True)
        for folder in sorted({parent for path in self._added for parent in path.parents}, reverse=True):
            if folder == self.folder or self.folder in folder.parents:
                try:
                    folder.rmdir()
                except OSError:
                    continue


def read_lists(paths: Sequence[str], below: Path) -> dict[str, list[str]]:
    """Reads lists of images: name of the json to write -> names of its images, see ``read_names``.

    Raises:
        UserError: if two lists have the same name without suffix, or a list is missing or contains no name.
    """
    by_json: dict[str, str] = {}
    for path in paths:
        json = f"{Path(path).stem}.json"
        if json in by_json:
            raise UserError(f"--lists: {by_json[json]} and {path} would both become {json}; rename one of them")
        by_json[json] = path
    return {json: read_names(path, below) for json, path in by_json.items()}


def read_names(path: str | os.PathLike, below: Path) -> list[str]:
    """Reads image names from a text file, one name per line; a suffix such as .png is removed.

    Args:
        path: the file, relative to the working directory or else to ``below``.
        below: folder that is imported.

    Raises:
        UserError: if there is no such file, or it contains no name.
    """
    found = next((file for file in (Path(path), below / path) if file.is_file()), None)
    if found is None:
        raise UserError(f"{path}: no such list file, neither here nor in {below}")
    names = [line.strip() for line in read_text(found).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{found}: this list is empty")
    for name in names:
        check_name(name, f"{found}: image", MAX_PATH_CHARACTERS)
    return [name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name for name in names]
