"""The summary that commands print and write for the datasets that they have written."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from danet.data.coco_dataset import ImageRecord
from danet.utils.errors import UserError
from danet.utils.files import write_json


def write_summary(
    written: Mapping[Path, Sequence[ImageRecord]],
    *,
    json: str | os.PathLike | None,
    quiet: bool,
    whole: Sequence[ImageRecord] | None = None,
) -> None:
    """Prints a line for each dataset, and writes the same counts as JSON.

    Args:
        written: json -> its records.
        json: file for the counts; None writes none.
        quiet: print nothing.
        whole: the records that were split; each line then also states the share of their boxes.

    Raises:
        UserError: if ``json`` is one of the written datasets, or cannot be written.

    Example:
        >>> write_summary({Path("empty.json"): []}, json=None, quiet=False)
        empty.json: 0 images (0 without boxes), no boxes
    """
    total = count_boxes(whole or [])
    counts = {}
    for path, records in written.items():
        boxes = count_boxes(records)
        recordings, empty = len({item.group for item in records}), sum(not item.names for item in records)
        counts[str(path)] = {
            "images": len(records),
            "recordings": recordings,
            "images_without_boxes": empty,
            "boxes": dict(boxes),
        }
        if not quiet:
            of = f" of {recordings} recordings" if recordings < len(records) else ""
            names = total if whole else [name for name, _ in boxes.most_common()]
            part = {name: f" ({boxes[name] / total[name]:.0%})" if whole else "" for name in names}
            listed = ", ".join(f"{boxes[name]} {name}{part[name]}" for name in names) or "no boxes"
            print(f"{path}: {len(records)} images{of} ({empty} without boxes), {listed}")
    if json is not None:
        if os.path.realpath(json) in map(os.path.realpath, written):
            raise UserError(f"--json {json}: is the dataset itself; give another file")
        write_json(json, counts)


def count_boxes(records: Sequence[ImageRecord]) -> Counter[str]:
    """Counts the boxes of each category, ignore regions included."""
    return Counter(name for item in records for name in item.names)
