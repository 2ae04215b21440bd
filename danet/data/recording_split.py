"""Splits a dataset by recording: nearly identical images never lie in different parts.

The algorithm is greedy (our decision): recordings are assigned one by one, roughly from large to small, each to the
part that needs its images and its boxes of each category most.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.utils.errors import UserError


def split_by_recording(
    records: Sequence[ImageRecord], fractions: Sequence[float], seed: int
) -> list[list[ImageRecord]]:
    """Splits records into parts of approximately the given fractions; images of one ``group`` stay together.

    Args:
        records: images of a dataset; each part keeps their order.
        fractions: share of the images, and of the boxes of each category, of each part.
        seed: seed of the order in which recordings are assigned.

    Raises:
        UserError: if there are fewer recordings than parts.

    Example:
        >>> from pathlib import Path
        >>> none = np.zeros((0, 4)), [], np.zeros(0, bool)
        >>> records = [ImageRecord(Path(f"{i}.png"), 64, 48, *none, recording=f"r{i // 2}") for i in range(8)]
        >>> [[record.recording for record in part] for part in split_by_recording(records, [0.75, 0.25], seed=0)]
        [['r0', 'r0', 'r1', 'r1', 'r2', 'r2'], ['r3', 'r3']]
    """
    names = sorted({name for item in records for name in item.names})
    column = {name: index for index, name in enumerate(names, 1)}
    rows: dict[str, np.ndarray] = {}
    for item in records:
        row = rows.setdefault(item.group, np.zeros(len(names) + 1))
        row[0] += 1  # images count as one more category
        for name, count in Counter(item.names).items():
            row[column[name]] += count
    if len(rows) < len(fractions):
        raise UserError(f"{len(fractions)} parts cannot be made of {len(rows)} recordings, which are never divided")
    groups = sorted(rows)
    share = np.stack([rows[group] for group in groups])
    share /= np.maximum(share.sum(axis=0), 1)

    # Large groups first: small ones can balance the rest. The seed varies the order.
    order = np.argsort(-share.max(axis=1) * np.random.default_rng(seed).uniform(0.5, 1.0, len(groups)))
    wanted = np.asarray(fractions)[:, None] * (share.sum(axis=0) > 0)
    part_of: dict[str, int] = {}
    for position, index in enumerate(order):
        empty = [part for part in range(len(fractions)) if part not in part_of.values()]
        # Choose the part whose squared deficit over all categories decreases most.
        gains = ((wanted**2) - (wanted - share[index]) ** 2).sum(axis=1)
        choices = empty if len(empty) == len(order) - position else range(len(fractions))
        part = max(choices, key=lambda part: gains[part])
        part_of[groups[index]] = part
        wanted[part] -= share[index]
    parts: list[list[ImageRecord]] = [[] for _ in fractions]
    for item in records:
        parts[part_of[item.group]].append(item)
    return parts
