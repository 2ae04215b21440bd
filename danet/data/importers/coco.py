"""Imports a COCO json: checks it and copies its images into one folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danet.data.coco_dataset import load_coco
from danet.data.importers.base import ImportFolder, ImportOptions, run_import
from danet.utils.errors import UserError
from danet.utils.progress import track


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import coco``."""

    source: str
    """COCO json, or a folder that contains annotations.json or exactly one json."""

    out: str
    """Output folder; the import writes images/ and a json with the name of the source."""

    images: str | None = None
    """Folder that the file names in the json are relative to; by default the folder of the json."""


def import_coco(options: Options) -> None:
    """Imports a COCO json: reads every image, checks its size, and clips the boxes to the image."""
    dataset = load_coco(options.source, images=options.images)
    folder = os.path.abspath(options.images or dataset.path.parent)
    with ImportFolder(options) as out:
        for item in track(dataset.records, "importing images", quiet=options.quiet):
            source = item.path
            name = Path(os.path.relpath(source, folder)).as_posix().removeprefix("images/")
            item.path, width, height = out.copy(source, name)
            if (width, height) != (item.width, item.height):
                said = f"the image is {width} x {height}, the json says {item.width} x {item.height}"
                raise UserError(f"{source}: {said}")
        out.write(dataset.path.name, dataset.records, dataset.categories)
    if dataset.warnings:
        out.note(f"{dataset.path}: {len(dataset.warnings)} boxes changed, the first: {dataset.warnings[0]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import coco``."""
    return run_import(import_coco, Options, argv)
