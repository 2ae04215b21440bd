"""A COCO json and its images, checked and brought together in one folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danet.data.coco_dataset import load_coco
from danet.data.importers.output import ImportFolder, note
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.progress import track


@dataclass
class Options:
    source: str
    """COCO json, or a folder that holds exactly one (or annotations.json)."""

    out: str
    """Folder to write: images/ and a json of the source's name."""

    images: str | None = None
    """Folder that the json's file names are relative to; by default the json's own."""

    json: str | None = None
    """Write the number of images, recordings and boxes of each json to this file."""

    quiet: bool = False
    """Print nothing but errors."""


def import_coco(options: Options) -> None:
    """Imports a COCO json: every image is read and its size compared, boxes are clipped to the image."""
    dataset = load_coco(options.source, images=options.images)
    folder = os.path.abspath(options.images or dataset.path.parent)
    with ImportFolder(options.out, quiet=options.quiet, json=options.json) as out:
        for item in track(dataset.records, "importing images", quiet=options.quiet):
            source = item.path
            name = Path(os.path.relpath(source, folder)).as_posix().removeprefix("images/")
            item.path, width, height = out.copy(source, name)
            if (width, height) != (item.width, item.height):
                said = f"the image is {width} x {height}, the json says {item.width} x {item.height}"
                raise UserError(f"{source}: {said}")
        out.write(dataset.path.name, dataset.records, dataset.categories)
    if dataset.warnings and not options.quiet:
        note(f"{dataset.path}: {len(dataset.warnings)} boxes changed, the first: {dataset.warnings[0]}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(import_coco, Options, prog="danet data import coco", positionals=["source", "out"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
