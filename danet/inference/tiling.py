"""Cuts large frames into overlapping tiles, so that small targets keep their pixels.

A frame is normalized as a whole before it is cut, so that all tiles agree in contrast and polarity. The boxes of the
tiles are merged by ``danet.inference.tile_merging``. Between two frames of a video that are searched completely, the
tiles lie around the targets, see ``danet.inference.tile_search``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from danet.boxes import Detections
from danet.inference.input_size import parse_sides
from danet.inference.tile_merging import Tile, merge_tiles
from danet.inference.tile_options import DEFAULT_OVERLAP, MAX_OVERLAP
from danet.models.danet import MINIMUM_SIZE

TILE_BATCH = {"cpu": 4, "cuda": 16}
"""Maximum number of tiles that go through the network at once, by type of device."""
MAX_FRAME_OF_CROP = 0.5
"""A target whose longer side is at most this fraction of a tile gets a crop around it; a larger one gets the tiles of
the whole frame that it overlaps."""


class Tiling(NamedTuple):
    """How frames are cut.

    Example:
        >>> tiling = Tiling((320, 320), 0.2)
        >>> tiling.applies(256, 320), len(tiling.grid(1080, 1920))
        (False, 32)
    """

    size: tuple[int, int]
    """(height, width) of a tile in pixels."""
    overlap: float = DEFAULT_OVERLAP
    """Minimum overlap of neighbouring tiles, as a fraction of their side."""

    def applies(self, height: int, width: int) -> bool:
        """Whether a frame is cut: it is higher or wider than a tile."""
        return height > self.size[0] or width > self.size[1]

    def scaled(self, scale: float) -> "Tiling":
        """The same tiling of frames that are enlarged by ``scale``."""
        height, width = (max(1, round(side * scale)) for side in self.size)
        return Tiling((height, width), self.overlap)

    def grid(self, height: int, width: int) -> list[Tile]:
        """The tiles of a frame, row by row; they are spread evenly, and the outer ones end at the edges of the frame.

        Example:
            >>> Tiling((64, 64), 0.25).grid(64, 100)
            [Tile(left=0, top=0, right=64, bottom=64), Tile(left=36, top=0, right=100, bottom=64)]
        """
        rows = _spans(height, self.size[0], self.overlap)
        columns = _spans(width, self.size[1], self.overlap)
        return [Tile(left, top, right, bottom) for top, bottom in rows for left, right in columns]

    def crops(self, boxes: np.ndarray, height: int, width: int) -> list[Tile]:
        """Few tiles that contain the boxes ``[M, 4]``: crops around them, or all tiles of the frame if these are fewer.

        Example:
            >>> Tiling((64, 64)).crops(np.array([[100.0, 20, 104, 23], [110, 25, 114, 28]]), 200, 300)
            [Tile(left=70, top=0, right=134, bottom=64)]
        """
        grid = self.grid(height, width)
        rows, columns = min(self.size[0], height), min(self.size[1], width)
        chosen: list[Tile] = []
        for x0, y0, x1, y1 in np.asarray(boxes, np.float64).reshape(-1, 4):
            # A margin of half of the target on each side: it may move, and the network needs its surroundings.
            x_margin, y_margin = max(8.0, (x1 - x0) / 2), max(8.0, (y1 - y0) / 2)
            left, top = max(0.0, x0 - x_margin), max(0.0, y0 - y_margin)
            right, bottom = min(float(width), x1 + x_margin), min(float(height), y1 + y_margin)
            if any(t.left <= left and t.top <= top and right <= t.right and bottom <= t.bottom for t in chosen):
                continue
            if x1 - x0 > MAX_FRAME_OF_CROP * columns or y1 - y0 > MAX_FRAME_OF_CROP * rows:
                overlapped = [t for t in grid if t.left < x1 and x0 < t.right and t.top < y1 and y0 < t.bottom]
                chosen += [tile for tile in overlapped if tile not in chosen]
            else:
                x = min(max(round((x0 + x1 - columns) / 2), 0), width - columns)
                y = min(max(round((y0 + y1 - rows) / 2), 0), height - rows)
                chosen.append(Tile(x, y, x + columns, y + rows))
        return grid if len(chosen) >= len(grid) else chosen


def parse_tiling(tile: Any, overlap: float = DEFAULT_OVERLAP) -> Tiling | None:
    """The tiling of one number for square tiles or of two numbers (height, width); None for None.

    Raises:
        ValueError: ``tile`` is anything else, or a number is out of range, or ``overlap`` is not between 0 and
            MAX_OVERLAP.

    Example:
        >>> parse_tiling([256, 320], 0.1)
        Tiling(size=(256, 320), overlap=0.1)
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ValueError(f"overlap must lie between 0 and {MAX_OVERLAP:g}, got {overlap}")
    return None if tile is None else Tiling(parse_sides("tile", tile), float(overlap))


def detect_in_tiles(
    images: Tensor,
    tiles: Sequence[Sequence[Tile] | None],
    detect: Callable[[Tensor], list[Detections]],
    *,
    max_detections: int,
) -> list[Detections]:
    """Detects in the tiles of each image and merges their detections.

    Args:
        images: ``[N, C, H, W]``.
        tiles: for each image its tiles; None for the whole image.
        detect: runs the network on a batch ``[B, C, h, w]`` and decodes its output.
        max_detections: maximum number of detections per image.

    Returns:
        For each image its detections on the CPU, in pixels of the image.
    """
    height, width = images.shape[2:]
    lists = [[Tile(0, 0, width, height)] if each is None else list(each) for each in tiles]
    places = [(image, tile) for image, each in enumerate(lists) for tile in each]
    found: list[Detections] = []
    for part in _parts([tile.size for _, tile in places], TILE_BATCH.get(images.device.type, 1)):
        batch = torch.stack([images[image, :, t.top : t.bottom, t.left : t.right] for image, t in places[part]])
        missing = [max(0, MINIMUM_SIZE - side) for side in batch.shape[2:]]
        if any(missing):
            batch = torch.nn.functional.pad(batch, (0, missing[1], 0, missing[0]))
        found += [each.cpu() for each in detect(batch.contiguous(memory_format=torch.channels_last))]
    results, first = [], 0
    for each in lists:
        own, first = found[first : first + len(each)], first + len(each)
        results.append(merge_tiles(own, each, (height, width), max_detections=max_detections))
    return results


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Starts and ends of the tiles along one side of a frame."""
    if length <= tile:
        return [(0, length)]
    step = max(1, math.floor(tile * (1 - overlap) + 1e-6))
    count = math.ceil((length - tile) / step) + 1
    starts = [index * (length - tile) // (count - 1) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _parts(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[slice]:
    """Slices of at most ``limit`` successive tiles of one size; their lengths are powers of two.

    On a GPU every length costs a CUDA graph, and with powers of two there are few of them.
    """
    start = 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and end - start < limit and sizes[end] == sizes[start]:
            end += 1
        length = 1 << ((end - start).bit_length() - 1)
        yield slice(start, start + length)
        start += length
