"""``danet data split``: splits a dataset by recording into two parts or into the folds of a cross-validation."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danet.data.coco_dataset import dataset_files, load_coco, write_coco
from danet.data.dataset_summary import write_summary
from danet.data.recording_split import split_by_recording
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import check_folder, check_new_file


@dataclass
class Options:
    """Options of ``danet data split``."""

    source: str
    """COCO json to split."""

    fraction: float = 0.2
    """Fraction of the images, and of the boxes of each category, that goes into out_b; approximate, since recordings
    are not divided."""

    folds: int | None = None
    """Number of folds of a cross-validation: writes fold0_train.json, fold0_val.json, ... instead of two parts."""

    seed: int = 0
    """Seed; another seed gives another split."""

    out_a: str | None = None
    """Json for the part with 1 - fraction of the images."""

    out_b: str | None = None
    """Json for the part with the fraction."""

    out: str | None = None
    """Output folder for the jsons of --folds."""

    json: str | None = None
    """JSON file for the number of images, recordings and boxes of each part."""

    quiet: bool = False
    """Print only errors."""


def split_command(options: Options) -> None:
    """Splits a dataset by recording, with a similar share of each category in all parts. Images without a recording are
    grouped by video; images without both are assigned one by one."""
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {options.seed}")
    jsons = _requested(options)
    dataset = load_coco(options.source)
    if options.folds is None:
        contents = split_by_recording(dataset.records, [1 - options.fraction, options.fraction], options.seed)
    else:
        folds = split_by_recording(dataset.records, [1 / options.folds] * options.folds, options.seed)
        contents = []
        for index, fold in enumerate(folds):
            rest = [item for other, items in enumerate(folds) if other != index for item in items]
            contents += [rest, fold]
    parts = dict(zip(jsons, contents, strict=True))
    for path, records in parts.items():
        write_coco(path, records, dataset.categories)
    write_summary(parts, json=options.json, quiet=options.quiet, whole=dataset.records)


def _requested(options: Options) -> list[Path]:
    """Checks the options and returns the jsons to write: two, or two per fold."""
    if options.folds is None:
        if not 0 < options.fraction < 1:
            raise UserError(f"--fraction must lie between 0 and 1, got {options.fraction}")
        if options.out_a is None or options.out_b is None or options.out is not None:
            raise UserError("give --out_a and --out_b, or --folds and --out")
        jsons = [Path(options.out_a), Path(options.out_b)]
    else:
        if options.folds < 2:
            raise UserError(f"--folds must be 2 or more, got {options.folds}")
        if options.out is None or options.out_a is not None or options.out_b is not None:
            raise UserError("--folds needs --out, the folder for the jsons, instead of --out_a and --out_b")
        sides = ("train", "val")
        jsons = [Path(options.out, f"fold{fold}_{side}.json") for fold in range(options.folds) for side in sides]
    read = {os.path.realpath(path) for path in dataset_files(options.source)}
    written = [os.path.realpath(path) for path in (*jsons, options.json) if path]
    if len(set(written)) < len(written) or not read.isdisjoint(written):
        raise UserError("the output files must differ from each other and from the source")
    for path in jsons:
        check_new_file(path, overwrite=True)
        check_folder(path.parent)
    return jsons


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data split``."""
    return cli.run(split_command, Options, prog="danet data split", positionals=["source"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
