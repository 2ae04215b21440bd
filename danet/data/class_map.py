"""Categories of a dataset under other names."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from danet.data.coco_dataset import ImageRecord

IGNORE = "ignore"
"""Category of a region that counts neither way, for any class."""


def apply_class_map(record: ImageRecord, class_map: Mapping[str, str]) -> ImageRecord:
    """The record with new names for the categories in ``class_map``; boxes named "ignore" become ignore regions."""
    names = [class_map.get(name, name) for name in record.names]
    ignore = record.ignore | np.array([name == IGNORE for name in names], bool)
    return replace(record, names=names, ignore=ignore)
