"""Selects the images of a dataset on which detectors are evaluated."""

from collections.abc import Mapping

from danet.data.class_map import apply_class_map
from danet.data.image_record import CocoDataset, ImageRecord
from danet.utils.errors import UserError


def select_images(data: CocoDataset, stride: int = 1, class_map: Mapping[str, str] | None = None) -> list[ImageRecord]:
    """Returns every ``stride``-th image of each video, with categories renamed by ``class_map``.

    Raises UserError if the dataset has no images.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> nothing = np.zeros((0, 4), np.float32), [], np.zeros(0, bool)
        >>> records = [ImageRecord(Path(f"{i}.png"), 64, 48, *nothing, video=video) for i, video in enumerate("aaabb")]
        >>> [record.path.name for record in select_images(CocoDataset(Path("val.json"), records, ["drone"]), 2)]
        ['0.png', '2.png', '3.png']
    """
    position: dict[str | None, int] = {}
    chosen = []
    for record in data.records:
        index = position.get(record.video, 0)
        position[record.video] = index + 1
        if index % stride == 0:
            chosen.append(apply_class_map(record, class_map or {}))
    if not chosen:
        raise UserError(f"{data.path}: no images")
    return chosen
