"""Splits a dataset so that all images of a recording, which look nearly the same, lie in one part.

Groups are given away one by one, the large ones first, each to the part that lacks most of what the group
holds (images, and boxes of each category). Our decision.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.utils.errors import UserError


def split_by_recording(
    records: Sequence[ImageRecord], fractions: Sequence[float], seed: int
) -> list[list[ImageRecord]]:
    """Divides records into parts of about the given fractions, by group, in their old order in each part.

    Raises UserError if there are fewer groups than parts.
    """
    names = sorted({name for item in records for name in item.names})
    column = {name: index for index, name in enumerate(names, 1)}
    rows: dict[str, np.ndarray] = {}
    for item in records:
        row = rows.setdefault(item.group, np.zeros(len(names) + 1))
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
        parts[part_of[item.group]].append(item)
    return parts
