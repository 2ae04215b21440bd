"""Renames the categories of a dataset."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from danet.data.coco_dataset import ImageRecord

IGNORE = "ignore"
"""Category whose boxes are ignore regions of all classes."""


def apply_class_map(record: ImageRecord, class_map: Mapping[str, str]) -> ImageRecord:
    """Renames the categories of a record; a box that is then named "ignore" becomes an ignore region.

    Args:
        record: it is not changed.
        class_map: old name -> new name; other names stay.

    Example:
        >>> from pathlib import Path
        >>> record = ImageRecord(Path("a.png"), 64, 48, np.zeros((2, 4)), ["uav", "cloud"], np.zeros(2, bool))
        >>> renamed = apply_class_map(record, {"uav": "drone", "cloud": "ignore"})
        >>> renamed.names, renamed.ignore.tolist()
        (['drone', 'ignore'], [False, True])
    """
    names = [class_map.get(name, name) for name in record.names]
    ignore = record.ignore | np.array([name == IGNORE for name in names], bool)
    return replace(record, names=names, ignore=ignore)
