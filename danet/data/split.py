"""Dividing a dataset: a recording, and so nearly the same picture, never lies on both sides.

Groups are given away one by one, the large ones first, each to the part that lacks most of what the group
holds (images, and boxes of each category). Our decision.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danet.data.coco_dataset import load_coco, write_coco
from danet.data.recording_split import split_by_recording
from danet.data.summary import write_summary
from danet.utils import cli
from danet.utils.errors import UserError


@dataclass
class Options:
    source: str
    """COCO json to divide."""

    fraction: float = 0.2
    """Part of the images (and of each category's boxes, as nearly as recordings allow) that goes into out_b."""

    folds: int | None = None
    """Instead of two parts: K parts, for each of which fold0_train.json, fold0_val.json, ... are written."""

    seed: int = 0
    """Seed of the order in which recordings are given away: another one gives another split."""

    out_a: str | None = None
    """Json of the larger part."""

    out_b: str | None = None
    """Json of the fraction."""

    out: str | None = None
    """Folder for the jsons of --folds."""

    json: str | None = None
    """Write the number of images, recordings and boxes of each part to this file."""

    quiet: bool = False
    """Print nothing but errors."""


def split_command(options: Options) -> None:
    """Divides a dataset by recording (or video, or image, where there is none), balanced over categories."""
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
    """The jsons to write: two, or two a fold; checked against the other options."""
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
            raise UserError("--folds needs --out, a folder for the jsons")
        sides = ("train", "val")
        jsons = [Path(options.out, f"fold{fold}_{side}.json") for fold in range(options.folds) for side in sides]
    others = [Path(options.source), *([Path(options.json)] if options.json else [])]
    resolved = [os.path.realpath(path) for path in [*jsons, *others]]
    if len(set(resolved)) < len(resolved):
        raise UserError("the output files must differ from each other and from the source")
    return jsons


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(split_command, Options, prog="danet data split", positionals=["source"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
