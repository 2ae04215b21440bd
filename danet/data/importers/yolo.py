"""Imports YOLO datasets: one txt file per image, with lines ``class x y width height`` relative to the image size.

``danet.data.yolo_dataset`` describes the layouts that are read, and ``danet.data.yolo_label`` the lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from danet.data.coco_dataset import dataset_files
from danet.data.importers.base import ImportFolder, ImportOptions, run_import
from danet.data.yolo_dataset import open_yolo
from danet.utils import cli
from danet.utils.progress import track


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import yolo``."""

    source: str
    """Folder that contains images, labels and data.yaml, obj.data or classes.txt, as Ultralytics, Roboflow, CVAT, Label
    Studio and labelImg write it; or the path of a data.yaml."""

    out: str
    """Output folder; the import writes images/ and one json for each split, or annotations.json."""


def import_yolo(options: Options) -> None:
    """Imports YOLO labels; images without a label file have no boxes."""
    data = open_yolo(options.source)
    cli.check_outputs([options.json], [*dataset_files(options.source), *data.places.values()])
    with ImportFolder(options) as out:
        out.repairs = data.repairs
        for split, images in data.splits.items():
            records = []
            for name, image in track(list(images.items()), f"importing {split}", quiet=options.quiet):
                path, *size = out.copy(image, (f"{split}/" if split != "annotations" else "") + name + image.suffix)
                records.append(data.read(split, image, (size[0], size[1]), path))
            data.check_labels(split)
            out.write(f"{split}.json", records, data.names)
        for note in data.notes:
            out.note(note)
        if unused := data.unused_labels():
            out.note(f"{unused[0]}: no image belongs to this label file and {len(unused) - 1} others")
    if list(data.splits) == ["annotations"]:
        json, parts = (
            f"{options.out}/annotations.json",
            f"--out_a {options.out}/train.json --out_b {options.out}/val.json",
        )
        out.note(f"{options.source}: has no splits; `danet data split {json} {parts}` makes two")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import yolo``."""
    return run_import(import_yolo, Options, argv)
