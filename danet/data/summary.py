"""What a command that writes datasets says of them: a line for each json, and the same figures as JSON."""

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
    """Prints and writes what the jsons hold; with ``whole`` also which part of its boxes."""
    total = count_boxes(whole or [])
    figures = {}
    for path, records in written.items():
        boxes = count_boxes(records)
        recordings, empty = len({item.group for item in records}), sum(not item.names for item in records)
        figures[str(path)] = {
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
            raise UserError(f"--json {json}: is the dataset itself")
        write_json(json, figures)


def count_boxes(records: Sequence[ImageRecord]) -> Counter[str]:
    """Boxes of each category."""
    return Counter(name for item in records for name in item.names)
