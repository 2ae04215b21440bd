"""Local contrast: a classical filter for small hot spots in infrared images.

In the manner of the double-neighbourhood gradient (DNGM, Wu et al., GRSL 2020) and of the weighted local contrasts
(WSLCM, Han et al., GRSL 2020), the paper's classical rivals. The contrastive loss finds its hard negatives with it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = (3, 5, 7, 11, 15)
"""Sides of the cells in pixels, odd: spots of about these sizes are found."""


def local_contrast(images: Tensor, cells: Sequence[int] = CELLS) -> tuple[Tensor, Tensor]:
    """How much a spot at every position differs from all that surrounds it.

    Mean levels of square cells are compared: the middle cell with the 8 of the ring around it and with the 16 of the
    next ring. What is left of a hot spot is ``sqrt((middle - hottest of 8) * (middle - hottest of 16))``, 0 where
    either is hotter; a cold spot is the same of the negative. So a line or an edge, which continues into some cell of
    both rings, gives nothing. The strongest of all sizes of cells counts. Cells beyond the border are left out.

    Args:
        images: ``[N, C, H, W]``; the mean over the channels is looked at.
        cells: sides of the cells; those of which five do not fit into the image are left out.

    Returns:
        float32 ``[N, H, W]`` each: the contrast in the images' units, and the side of its cell in pixels (0 where
        there is none).
    """
    level = images.float().mean(1)
    best, side = torch.zeros_like(level), torch.zeros_like(level)
    # In float64: sums over thousands of pixels are subtracted from each other.
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
    """The strongest local maxima (of 3x3 positions) of ``contrast [N, H, W]``.

    Returns:
        ``[N, K]`` each with K = count, or H * W if that is less: their values by descending value, 0 where there is no
        further maximum, and int64 y and x.
    """
    padded = F.pad(contrast, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 2:]), padded[:, 1:-1])
    around = torch.maximum(torch.maximum(rows[:, :, :-2], rows[:, :, 2:]), rows[:, :, 1:-1])
    peaks = torch.where(contrast == around, contrast, 0.0).flatten(1)
    values, index = peaks.topk(min(count, peaks.shape[1]))
    return values, index // contrast.shape[2], index % contrast.shape[2]


def significance(contrast: Tensor) -> Tensor:
    """Contrasts ``[N, H, W]`` in standard deviations above the mean of their image: large where little else stands out.

    The adaptive threshold of the classical methods is a certain value of it.
    """
    deviation, mean = torch.std_mean(contrast, dim=(1, 2), correction=0, keepdim=True)
    return (contrast - mean) / deviation.clamp(min=torch.finfo(contrast.dtype).tiny)


def _cell_means(total: Tensor, cell: int) -> Tensor:
    """Means ``[N, H, W]`` of the part inside the image of a cell around every pixel, of integrals ``[N, H+1, W+1]``."""
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
    """Squared contrast of hot spots, ``[N, H, W]``, of the means of cells around every pixel."""
    height, width = mean.shape[1:]
    reach = 2 * cell
    padded = F.pad(mean, (reach, reach, reach, reach), value=-torch.inf)

    def row(step: int) -> Tensor:
        return padded[:, reach + step * cell :][:, :height]

    def column(rows: Tensor, step: int) -> Tensor:
        return rows[:, :, reach + step * cell :][:, :, :width]

    # Both rings from shared columns of cells: half of the work of going through 24 cells.
    near, far = torch.maximum(row(-1), row(1)), torch.maximum(row(-2), row(2))
    three = torch.maximum(near, row(0))
    five = torch.maximum(three, far)
    inner = torch.maximum(torch.maximum(column(three, -1), column(three, 1)), column(near, 0))
    outer = torch.maximum(column(five, -2), column(five, 2))
    for step in (-1, 0, 1):
        outer = torch.maximum(outer, column(far, step))
    return (mean - inner).clamp_(min=0).mul_((mean - outer).clamp_(min=0))
