"""Imports COCO jsons: checks them and copies their images into one folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from danet.data.coco_dataset import (
    MAX_PAST_FRAMES,
    SHARED_FILE,
    CocoDataset,
    ImageRecord,
    dataset_files,
    list_splits,
    load_coco,
)
from danet.data.coco_files import split_of
from danet.data.importers.base import ImportFolder, ImportOptions, run_import
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.progress import track

MERGED = "images merged: the same file under several ids"


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import coco``."""

    source: str
    """COCO json; a folder that contains annotations.json or exactly one json; or a folder with a json for each split,
    as Roboflow, CVAT, FLIR and COCO itself arrange them."""

    out: str
    """Output folder; the import writes images/ and a json with the name of the source, or train.json, val.json and
    test.json for a folder of splits."""

    images: str | None = None
    """Folder that the file names in the json are relative to; by default the folder of the json."""

    name: str | None = None
    """Name of the json to write, such as val.json; by default that of the source, or of the split in the name of its
    folder. Several imports with different names may share one output folder."""


def import_coco(options: Options) -> None:
    """Imports COCO jsons: reads every image, checks its size, and clips the boxes to the image."""
    splits = list_splits(options.source)
    if len(splits) > 1 and (options.images or options.name):
        raise UserError(f"{options.source}: has several splits; --images and --name are for a single json")
    cli.check_outputs([options.json], dataset_files(options.source))
    with ImportFolder(options) as out:
        for split in splits:
            dataset = load_coco(options.source, images=options.images, split=split)
            name = options.name or (_json_name(dataset) if split is None else f"{split}.json")
            out.repairs.update(dataset.repairs)
            out.repairs.counts.pop(SHARED_FILE, None)  # these images are merged
            # Jsons in different folders often have images of the same name.
            prefix = "" if name == dataset.path.name else f"{Path(name).stem}/"
            items = track(dataset.records, f"importing {name}", quiet=options.quiet)
            records = [_copy(record, dataset, prefix, options, out) for record in items]
            out.write(name if name.endswith(".json") else f"{name}.json", _merge(records, out), dataset.categories)


def _json_name(dataset: CocoDataset) -> str:
    """Name of the json to write: Roboflow and others use one name for all splits, in folders named after them."""
    split = split_of(dataset.path.parent.name)
    return dataset.path.name if split is None or split_of(dataset.path.stem) else f"{split}.json"


def _copy(record: ImageRecord, dataset: CocoDataset, prefix: str, options: Options, out: ImportFolder) -> ImageRecord:
    """Copies an image, and checks that it has the size that the json states."""
    folder = os.path.abspath(options.images or dataset.path.parent)
    path, width, height = out.copy(record.path, _stored_name(record.path, folder, prefix))
    if (width, height) != (record.width, record.height):
        said = f"the image is {width} x {height}, the json says {record.width} x {record.height}"
        raise UserError(f"{record.path}: {said}")
    past = tuple((seconds, _copy_past(file, folder, prefix, out)) for seconds, file in record.past)
    return replace(record, path=path, past=past)


def _copy_past(file: Path, folder: str, prefix: str, out: ImportFolder) -> Path:
    """Copies an earlier frame of an image to the place that it has as an image of its own."""
    return out.copy(file, _stored_name(file, folder, prefix))[0]


def _stored_name(file: Path, folder: str, prefix: str) -> str:
    parts = Path(os.path.relpath(file, folder)).parts
    name = "/".join(part for part in parts if part != "..").removeprefix("images/")
    return prefix + name.removeprefix(prefix)


def _merge(records: Sequence[ImageRecord], out: ImportFolder) -> list[ImageRecord]:
    """Merges records of the same file: some converters write one image entry for each box.

    Raises:
        UserError: if they are different frames, of which one file has replaced the other.
    """
    same_file: dict[Path, list[ImageRecord]] = {}
    for record in records:
        same_file.setdefault(record.path, []).append(record)
    return [_merge_same(entries, out) if len(entries) > 1 else entries[0] for entries in same_file.values()]


def _merge_same(entries: Sequence[ImageRecord], out: ImportFolder) -> ImageRecord:
    """Merges the boxes and the earlier frames of several records of one file."""
    first, path = entries[0], entries[0].path
    extras = {"video": first.video, "frame": first.frame, "recording": first.recording}
    for key, value in extras.items():
        other = next((each for item in entries if (each := getattr(item, key)) != value), value)
        if other != value:
            problem = f"one file for two images, {key} {value!r} and {key} {other!r}; export them to different files"
            raise UserError(f"{path.name}: {problem}")
    out.repairs.add(MERGED, path.name, len(entries) - 1)
    boxes, ignore = (np.concatenate([getattr(item, key) for item in entries]) for key in ("boxes", "ignore"))
    names = [name for item in entries for name in item.names]
    past = tuple(sorted({frame for item in entries for frame in item.past}))
    if len(past) > MAX_PAST_FRAMES:
        problem = f"must have at most {MAX_PAST_FRAMES} earlier frames in all of its image entries, got {len(past)}"
        raise UserError(f"{path.name}: {problem}; leave some out")
    size = (first.width, first.height)
    return out.record(path, size, boxes, names, ignore=ignore, place=path.name, past=past, **extras)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import coco``."""
    return run_import(import_coco, Options, argv)
