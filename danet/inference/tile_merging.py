"""Merges the detections of overlapping tiles: one box for each target, also for targets on a border of tiles."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from danet.boxes import Detections, area, clip, intersection, iou

CUT_MARGIN_PIXELS = 3.0
"""A box is truncated if one of its sides is at most this far from an edge of its tile inside the frame."""
CUT_WEIGHT = 0.5
"""Truncated boxes are ranked by their score times this factor, so that the complete box of the neighbouring tile
usually wins."""
MIN_COVERED_FRACTION = 0.5
"""If at least one of two boxes of different tiles is truncated, they are duplicates if their intersection is more than
this fraction of the smaller box."""
SAME_TARGET_IOU = 0.25
"""Whole boxes of different tiles show the same target above this IoU: boxes of a few pixels differ by a pixel or two
from tile to tile. Within a tile, the usual non-maximum suppression applies."""
MIN_ALIGNED_FRACTION = 0.5
"""Two parts of a target on both sides of a border share at least this fraction of the shorter one, along the border."""
MAX_CANDIDATES = 4096
"""Only this many boxes with the highest scores are merged."""


class Tile(NamedTuple):
    """A part of a frame, in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


def merge_tiles(
    found: Sequence[Detections], tiles: Sequence[Tile], size: tuple[int, int], *, max_detections: int
) -> Detections:
    """Merges the detections of the tiles of one frame.

    1. Parts of a target on the two sides of a border, each of which ends there, are joined: such a target is larger
       than the overlap, and no tile shows it as a whole.
    2. Duplicates of a box of another tile are dropped, in descending order of score. A truncated box counts with half
       of its score, so that the complete box of the neighbouring tile usually wins. A kept box gets the highest score
       among itself and the boxes of its class that it replaces.

    Two targets that one tile tells apart stay apart: a whole box replaces at most one whole box of every other tile,
    and none of its own.

    Args:
        found: the detections of each tile, on the CPU, in pixels of the tile.
        tiles: their places in the frame.
        size: (height, width) of the frame.
        max_detections: maximum number of detections.

    Returns:
        The detections in pixels of the frame, by descending score.

    Example:
        >>> whole = Detections(torch.tensor([[40.0, 10, 52, 18]]), torch.tensor([0.7]), torch.tensor([0]))
        >>> cut = Detections(torch.tensor([[0.0, 10, 6, 18]]), torch.tensor([0.8]), torch.tensor([0]))
        >>> tiles = [Tile(0, 0, 64, 64), Tile(46, 0, 110, 64)]
        >>> merged = merge_tiles([whole, cut], tiles, (64, 110), max_detections=10)
        >>> merged.boxes.tolist(), round(float(merged.scores[0]), 2)
        ([[40.0, 10.0, 52.0, 18.0]], 0.8)
    """
    origins = [torch.tensor([t.left, t.top, t.left, t.top], dtype=torch.float32) for t in tiles]
    parts = [clip(each.boxes.float(), *t.size) + at for each, t, at in zip(found, tiles, origins, strict=True)]
    boxes = torch.cat([torch.zeros(0, 4), *parts]).numpy().astype(np.float64)
    scores = torch.cat([torch.zeros(0), *(each.scores.float() for each in found)]).numpy().copy()
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(each.labels for each in found)]).numpy().copy()
    owner = np.repeat(np.arange(len(tiles)), [len(each) for each in found])
    usable = np.flatnonzero(area(boxes) > 0)
    usable = usable[np.argsort(-scores[usable], kind="stable")[:MAX_CANDIDATES]]
    boxes, scores, labels, owner = boxes[usable], scores[usable], labels[usable], owner[usable]
    kept = np.arange(len(boxes))[:max_detections]
    if len(tiles) > 1 and len(boxes) > 1:
        is_cut = _cut_sides(boxes, np.array(tiles)[owner], size)
        boxes, scores, labels, owner, whole = _join(boxes, scores, labels, owner, np.array(tiles), is_cut)
        kept = _suppress(boxes, scores, labels, owner, whole, max_detections)
    return Detections(
        torch.from_numpy(boxes[kept]).float(), torch.from_numpy(scores[kept]), torch.from_numpy(labels[kept])
    )


def _cut_sides(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which sides (left, top, right, bottom) of each box end at a border of its tile inside of the frame: [M, 4]."""
    is_inner = tiles != np.array([0, 0, size[1], size[0]])
    return is_inner & (np.abs(boxes - tiles) <= CUT_MARGIN_PIXELS)


def _join(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, owner: np.ndarray, tiles: np.ndarray, is_cut: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Joins parts of targets; returns boxes, scores, labels, tiles (-1 for joined boxes), and which boxes are whole."""
    cut = np.flatnonzero(is_cut.any(1))
    if len(cut) < 2:
        return boxes, scores, labels, owner, np.asarray(~is_cut.any(1))
    part, sides, place = boxes[cut], is_cut[cut], tiles[owner[cut]]
    linked = np.zeros((len(cut), len(cut)), bool)
    for axis in (0, 1):  # the first part ends at the right (lower) border of its tile, the second one begins the other
        across = 1 - axis
        first, second = np.flatnonzero(sides[:, axis + 2]), np.flatnonzero(sides[:, axis])
        a, b = part[first][:, None], part[second][None]
        tile_a, tile_b = place[first][:, None], place[second][None]
        shared = np.minimum(a[..., across + 2], b[..., across + 2]) - np.maximum(a[..., across], b[..., across])
        shorter = np.minimum(a[..., across + 2] - a[..., across], b[..., across + 2] - b[..., across])
        # The target reaches over both borders: over the end of the first tile and over the begin of the second one.
        spans = (a[..., axis] <= tile_b[..., axis] + CUT_MARGIN_PIXELS) & (
            b[..., axis + 2] >= tile_a[..., axis + 2] - CUT_MARGIN_PIXELS
        )
        follows = (tile_a[..., axis] < tile_b[..., axis]) & (tile_b[..., axis] <= tile_a[..., axis + 2])
        linked[np.ix_(first, second)] |= spans & follows & (shared >= MIN_ALIGNED_FRACTION * shorter)
    count, group = connected_components(coo_matrix(linked), directed=False)
    members = np.bincount(group, minlength=count)
    alone = np.ones(len(boxes), bool)
    alone[cut[members[group] > 1]] = False
    joined = [cut[group == number] for number in np.flatnonzero(members > 1)]
    best = np.array([each[scores[each].argmax()] for each in joined], np.int64)
    hulls = [np.r_[boxes[each, :2].min(0), boxes[each, 2:].max(0)] for each in joined]
    whole = np.r_[~is_cut[alone].any(1), np.ones(len(joined), bool)]
    return (
        np.concatenate([boxes[alone], np.reshape(hulls, (-1, 4))]),
        np.r_[scores[alone], scores[best]],
        np.r_[labels[alone], labels[best]],
        np.r_[owner[alone], np.full(len(joined), -1)],
        whole,
    )


def _suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, owner: np.ndarray, whole: np.ndarray, limit: int
) -> np.ndarray:
    """Indices of the boxes to keep, by descending score; raises their ``scores`` to those of the boxes they replace.

    A score is that of a class: a replaced box of another class does not raise it.
    """
    areas = area(boxes)
    rest = np.argsort(-scores * np.where(whole, 1.0, CUT_WEIGHT), kind="stable")
    kept: list[int] = []
    while len(rest) and len(kept) < limit:
        one, rest = int(rest[0]), rest[1:]
        kept.append(one)
        is_foreign = (owner[rest] != owner[one]) | (owner[one] == -1)
        shared = intersection(boxes[one], boxes[rest]) / np.minimum(areas[one], areas[rest])
        either_cut = ~whole[rest] | ~whole[one]
        replaced = is_foreign & either_cut & (shared > MIN_COVERED_FRACTION)
        similar = np.where(is_foreign & ~either_cut, iou(boxes[one], boxes[rest]), 0.0)
        for tile in np.unique(owner[rest[similar > SAME_TARGET_IOU]]):
            replaced[np.where(owner[rest] == tile, similar, 0.0).argmax()] = True
        if replaced.any():
            same_class = rest[replaced & (labels[rest] == labels[one])]
            scores[one] = max(scores[one], scores[same_class].max(initial=0.0))
            rest = rest[~replaced]
    order = np.array(kept, np.int64)
    return order[np.argsort(-scores[order], kind="stable")]
