"""Local contrast: a classical filter for small spots in infrared images.

It follows the ideas of DNGM (double-neighbourhood gradient, Wu et al., GRSL 2020) and WSLCM (weighted strengthened
local contrast, Han et al., GRSL 2020), two classical baselines of the DANet paper. ADCR finds hard negatives with it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = (3, 5, 7, 11, 15)
"""Cell sides in pixels, odd numbers: spots of about these sizes are found."""


def local_contrast(images: Tensor, cells: Sequence[int] = CELLS) -> tuple[Tensor, Tensor]:
    """Contrast of a spot at every position with its surroundings (our decision).

    The mean grey level of a square cell is compared with the cells of two rings around it, 8 and 16 cells. The contrast
    of a hot spot is ``sqrt((middle - hottest of 8) * (middle - hottest of 16))``, or 0 if a ring has a hotter cell. The
    contrast of a cold spot is that of the negative image. Lines and edges have no contrast, since they continue into a
    cell of both rings. The result is the maximum over the cell sides. Cells outside the image are left out.

    Args:
        images: ``[N, C, H, W]``; their mean over the channels is used.
        cells: cell sides in pixels. A side is skipped if five cells of it exceed the image in height and width.

    Returns:
        The contrast in the images' units, and the cell side in pixels (0 where the contrast is 0), float32
        ``[N, H, W]`` each.

    Example:
        >>> image = torch.zeros(1, 1, 32, 32)
        >>> image[..., 15:18, 10:13] = 1.0
        >>> contrast, side = local_contrast(image, cells=(3,))
        >>> contrast[0, 16, 11].item(), side[0, 16, 11].item()
        (1.0, 3.0)
    """
    level = images.float().mean(1)
    best, side = torch.zeros_like(level), torch.zeros_like(level)
    # Integral image, in float64 because sums over thousands of pixels are subtracted from each other.
    total = F.pad(level.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    for cell in cells:
        if max(level.shape[1:]) < 5 * cell:
            continue
        mean = _cell_means(total, cell)
        squared = torch.maximum(_hot_spots(mean, cell), _hot_spots(-mean, cell))
        better = squared > best
        best, side = torch.where(better, squared, best), torch.where(better, cell, side)
    return best.sqrt(), side


def find_peaks(contrast: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` strongest local maxima (of 3x3 positions) of ``contrast [N, H, W]``.

    Returns:
        Values in descending order, and int64 y and x, ``[N, K]`` each with K = min(count, H * W). Values are 0 if an
        image has fewer maxima.

    Example:
        >>> contrast = torch.zeros(1, 8, 8)
        >>> contrast[0, 2, 5] = 3.0
        >>> [found.tolist() for found in find_peaks(contrast, 1)]
        [[[3.0]], [[2]], [[5]]]
    """
    padded = F.pad(contrast, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    around = torch.maximum(torch.maximum(rows[:, :, :-2], rows[:, :, 2:]), rows[:, :, 1:-1])
    peaks = torch.where(contrast == around, contrast, 0.0).flatten(1)
    values, index = peaks.topk(min(count, peaks.shape[1]))
    return values, index // contrast.shape[2], index % contrast.shape[2]


def significance(contrast: Tensor) -> Tensor:
    """Contrasts ``[N, H, W]`` in standard deviations above the mean of their image.

    The adaptive threshold of the classical methods is a threshold on this value.

    Example:
        >>> significance(torch.tensor([[[0.0, 2.0]]])).tolist()
        [[[-1.0, 1.0]]]
    """
    deviation, mean = torch.std_mean(contrast, dim=(1, 2), correction=0, keepdim=True)
    return (contrast - mean) / deviation.clamp(min=torch.finfo(contrast.dtype).tiny)


def _cell_means(total: Tensor, cell: int) -> Tensor:
    """Mean over a cell around every pixel ``[N, H, W]`` (over its part in the image), from an integral image.

    Args:
        total: integral images ``[N, H + 1, W + 1]``.
        cell: cell side in pixels.
    """
    height, width = (extent - 1 for extent in total.shape[1:])
    (top, bottom), (left, right) = (
        ((at - cell // 2).clamp(min=0), (at + cell // 2 + 1).clamp(max=extent))
        for at, extent in ((torch.arange(height), height), (torch.arange(width), width))
    )
    columns = total[:, :, right] - total[:, :, left]
    sums = columns[:, bottom] - columns[:, top]
    area = (bottom - top)[:, None] * (right - left)
    return sums.float() / area.to(sums.device)


def _hot_spots(mean: Tensor, cell: int) -> Tensor:
    """Squared contrast of hot spots ``[N, H, W]`` from the means over a cell around every pixel ``[N, H, W]``."""
    height, width = mean.shape[1:]
    margin = 2 * cell
    padded = F.pad(mean, (margin, margin, margin, margin), value=-torch.inf)

    def row(step: int) -> Tensor:
        return padded[:, margin + step * cell :][:, :height]

    def column(rows: Tensor, step: int) -> Tensor:
        return rows[:, :, margin + step * cell :][:, :, :width]

    # Maxima of both rings from shared rows and columns of cells: half the work of visiting 24 cells.
    near, far = torch.maximum(row(-1), row(1)), torch.maximum(row(-2), row(2))
    three = torch.maximum(near, row(0))
    five = torch.maximum(three, far)
    inner = torch.maximum(torch.maximum(column(three, -1), column(three, 1)), column(near, 0))
    outer = torch.maximum(column(five, -2), column(five, 2))
    for step in (-1, 0, 1):
        outer = torch.maximum(outer, column(far, step))
    return (mean - inner).clamp_(min=0).mul_((mean - outer).clamp_(min=0))
