"""Finds leakage between datasets: the same image file, video or recording, or nearly identical images."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

from danet.data.coco_dataset import CocoDataset, ImageRecord

HASH_SIDE = 32
HASH_BITS = HASH_SIDE * HASH_SIDE


class NearPair(NamedTuple):
    """Index ``a`` of an image of one dataset, index ``b`` of its nearest image in another, and the differing bits."""

    a: int
    b: int
    distance: int


def average_hash(image: np.ndarray) -> np.ndarray:
    """Computes the average hash of an image: which cells of its reduction to 32 x 32 are brighter than their median.

    On the Svanstrom videos, frames of one video that are 0.1 s apart differ by 3 bits (median; 80 % by at most 7), and
    frames of videos with different views by at least 33 bits.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Returns:
        int8 ``[1024]`` of 1 (brighter) and -1; zeros, which are near to no hash, for an image without contrast.

    Example:
        >>> average_hash(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).tolist()[::300]
        [-1, -1, 1, 1]
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    if grey.min() == grey.max():
        return np.zeros(HASH_BITS, np.int8)
    cells = cv2.resize(grey.astype(np.float32), (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
    return np.where(cells > np.median(cells), 1, -1).astype(np.int8)


def near_pairs(a: np.ndarray, b: np.ndarray, distance: int) -> list[NearPair]:
    """Finds for each hash of ``a`` the nearest hash of ``b``, if at most ``distance`` bits differ.

    Args:
        a, b: hashes ``[A, 1024]`` and ``[B, 1024]``.
        distance: maximum number of differing bits.

    Example:
        >>> hashes = np.ones((2, HASH_BITS), np.int8)
        >>> near_pairs(hashes[:1], hashes, distance=12)
        [NearPair(a=0, b=0, distance=0)]
    """
    pairs = []
    other = b.T.astype(np.float32)
    for start in range(0, len(a) if len(b) else 0, 256):
        differing = (HASH_BITS - a[start : start + 256].astype(np.float32) @ other) / 2
        nearest = differing.argmin(axis=1)
        for row, column in enumerate(nearest.tolist()):
            if differing[row, column] <= distance:
                pairs.append(NearPair(start + row, column, int(differing[row, column])))
    return pairs


def find_leakage(datasets: Sequence[CocoDataset], hashes: Sequence[np.ndarray] | None, distance: int) -> list[str]:
    """Finds leakage between each pair of datasets.

    Args:
        datasets: the datasets to compare.
        hashes: average hashes ``[N, 1024]`` of the images of each dataset; None compares no images.
        distance: maximum number of differing bits of nearly identical images.

    Returns:
        One line for each kind of leakage and pair of datasets.
    """
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
    """Returns the name of the image file with its folder: frames of different videos often have the same name."""
    return f"{record.path.parent.name}/{record.path.name}"


def _some(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
