"""Dividing a dataset: a recording, and so nearly the same picture, never lies on both sides.

Groups are given away one by one, the large ones first, each to the part that lacks most of what the group
holds (images, and boxes of each category). Our decision.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.data.summary import group_of, report
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
        contents = split_groups(dataset.records, [1 - options.fraction, options.fraction], options.seed)
    else:
        folds = split_groups(dataset.records, [1 / options.folds] * options.folds, options.seed)
        contents = []
        for index, fold in enumerate(folds):
            rest = [item for other, items in enumerate(folds) if other != index for item in items]
            contents += [rest, fold]
    parts = dict(zip(jsons, contents, strict=True))
    for path, records in parts.items():
        write_coco(path, records, dataset.categories)
    report(parts, json=options.json, quiet=options.quiet, whole=dataset.records)


def split_groups(records: Sequence[ImageRecord], fractions: Sequence[float], seed: int) -> list[list[ImageRecord]]:
    """Divides records into parts of about the given fractions, by group, in their old order in each part.

    Raises UserError if there are fewer groups than parts.
    """
    names = sorted({name for item in records for name in item.names})
    column = {name: index for index, name in enumerate(names, 1)}
    rows: dict[str, np.ndarray] = {}
    for item in records:
        row = rows.setdefault(group_of(item), np.zeros(len(names) + 1))
        row[0] += 1  # images count like one more category
        for name, count in Counter(item.names).items():
            row[column[name]] += count
    if len(rows) < len(fractions):
        raise UserError(f"{len(fractions)} parts cannot be made of {len(rows)} recordings, which are never divided")
    groups = sorted(rows)
    share = np.stack([rows[group] for group in groups])
    share /= np.maximum(share.sum(axis=0), 1)

    # Large groups first, since small ones can level out what they leave; the seed varies the order.
    order = np.argsort(-share.max(axis=1) * np.random.default_rng(seed).uniform(0.5, 1.0, len(groups)))
    wanted = np.asarray(fractions)[:, None] * (share.sum(axis=0) > 0)
    part_of: dict[str, int] = {}
    for position, index in enumerate(order):
        empty = [part for part in range(len(fractions)) if part not in part_of.values()]
        # The squared lack over all categories once this group is added: each part gets what it needs most.
        gains = ((wanted**2) - (wanted - share[index]) ** 2).sum(axis=1)
        choices = empty if len(empty) == len(order) - position else range(len(fractions))
        part = max(choices, key=lambda part: gains[part])
        part_of[groups[index]] = part
        wanted[part] -= share[index]
    parts: list[list[ImageRecord]] = [[] for _ in fractions]
    for item in records:
        parts[part_of[group_of(item)]].append(item)
    return parts


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
