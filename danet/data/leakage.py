"""Finding pictures that lie on both sides of a split: the same file, clip or recording, or nearly the same frame."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

from danet.data.coco_dataset import CocoDataset, ImageRecord

SIDE = 32
BITS = SIDE * SIDE


class NearPair(NamedTuple):
    """Image ``a`` of one dataset and its nearest image ``b`` of another; ``distance`` in bits of BITS."""

    a: int
    b: int
    distance: int


def average_hash(image: np.ndarray) -> np.ndarray:
    """int8 ``[1024]`` of 1 and -1: which cells of a 32 x 32 reduction are brighter than their median.

    On the Svanstrom videos, frames of one clip that are 0.1 s apart differ by 3 bits (median; four of five
    by at most 7), frames of clips with other views by 33 and more. Zeros, which resemble nothing, for an image
    without any contrast.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    if grey.min() == grey.max():
        return np.zeros(BITS, np.int8)
    cells = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
    return np.where(cells > np.median(cells), 1, -1).astype(np.int8)


def near_pairs(a: np.ndarray, b: np.ndarray, distance: int) -> list[NearPair]:
    """For each hash of ``a`` ``[A, 1024]`` its nearest of ``b`` ``[B, 1024]``, if at most ``distance`` bits differ."""
    pairs = []
    other = b.T.astype(np.float32)
    for start in range(0, len(a) if len(b) else 0, 256):
        differing = (BITS - a[start : start + 256].astype(np.float32) @ other) / 2
        nearest = differing.argmin(axis=1)
        for row, column in enumerate(nearest.tolist()):
            if differing[row, column] <= distance:
                pairs.append(NearPair(start + row, column, int(differing[row, column])))
    return pairs


def find_leakage(datasets: Sequence[CocoDataset], hashes: Sequence[np.ndarray] | None, distance: int) -> list[str]:
    """One line for each kind of leakage between each two datasets; ``hashes`` ``[N, 1024]`` of each, if known."""
    lines = []
    for first, second in combinations(range(len(datasets)), 2):
        a, b = datasets[first], datasets[second]
        where = f"{a.path} and {b.path}"
        for kind in ("path", "recording", "video"):
            common = {getattr(item, kind) for item in a.records} & {getattr(item, kind) for item in b.records} - {None}
            if common:
                names = sorted(map(str, common))
                what = "image file" if kind == "path" else kind
                lines.append(f"{where}: the same {what}s in both ({len(names)}): {_some(names)}")
        pairs = near_pairs(hashes[first], hashes[second], distance) if hashes is not None else []
        if pairs:
            closest = sorted(pairs, key=lambda pair: pair.distance)
            names = [f"{_name(a.records[pair.a])} ~ {_name(b.records[pair.b])}" for pair in closest]
            lines.append(f"{where}: near-identical images in both ({len(pairs)}): {_some(names)}")
    return lines


def _name(record: ImageRecord) -> str:
    """The file, with its folder: frames of different clips are often called the same."""
    return f"{record.path.parent.name}/{record.path.name}"


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
