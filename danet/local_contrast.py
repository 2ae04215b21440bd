"""A classical filter for small spots in infrared images, and the detector that it makes, nothing learned.

In the manner of the double-neighbourhood gradient (DNGM, Wu et al., GRSL 2020) and of the weighted local contrasts
(WSLCM, Han et al., GRSL 2020), the paper's classical rivals. The contrastive loss finds its hard negatives with it.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danet.boxes import Detections, nms
from danet.data.image import normalise, read_image

CELLS = (3, 5, 7, 11, 15)
"""Sides of the cells in pixels, odd: spots of about these sizes are found."""

HALFWAY = 20.0
"""Standard deviations above the mean at which a spot scores 0.5."""


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


class LocalContrastDetector:
    """Calls every spot that stands out a target; takes a ``danet.detector.Detector``'s place in ``predict``.

    A box is a multiple of its spot's cell, ``calibrate`` finds which. A score is s / (s + HALFWAY) of the
    ``significance`` s.

    Args:
        target: name of the only class.
        score_threshold, iou_threshold, max_detections: as ``Detector`` has them.
    """

    def __init__(
        self,
        target: str,
        device: str | torch.device = "cpu",
        *,
        score_threshold: float = 0.2,
        iou_threshold: float = 0.5,
        max_detections: int = 300,
    ) -> None:
        self.classes = [target]
        self.device = torch.device(device)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.box_size = (1.0, 1.0)
        """Width and height of a box in sides of its cell."""

    def calibrate(self, records: Sequence) -> None:
        """Makes boxes as wide and high as those of ``records`` (``ImageRecord``) are drawn: by the median.

        Without a target in them that is found, boxes stay as they are.
        """
        ratios = []
        for record in records:
            if self.classes[0] not in record.names:
                continue
            contrast, side = (values[0].cpu() for values in self.forward(self.preprocess([record.path])[0], [])[0])
            for (x0, y0, x1, y1), name, ignored in zip(record.boxes.tolist(), record.names, record.ignore, strict=True):
                inside = (slice(max(round(y0), 0), max(round(y1), 0)), slice(max(round(x0), 0), max(round(x1), 0)))
                if name != self.classes[0] or ignored or not contrast[inside].any():
                    continue
                cell = side[inside].flatten()[contrast[inside].argmax()].item()
                ratios.append(((x1 - x0) / cell, (y1 - y0) / cell))
        if ratios:
            self.box_size = tuple(np.median(ratios, axis=0).tolist())

    def preprocess(self, paths: Sequence[str | os.PathLike]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Reads and normalises images of one size: ``[N, 1, H, W]`` float32, and height and width of each."""
        images = np.stack([normalise(read_image(path)) for path in paths])
        return torch.from_numpy(images), [images.shape[2:]] * len(images)

    @torch.inference_mode()
    def forward(self, images: Tensor, geometry: list) -> tuple[tuple[Tensor, Tensor], list]:
        return local_contrast(images.to(self.device)), geometry

    @torch.inference_mode()
    def postprocess(self, output: tuple[Tensor, Tensor], geometry: list) -> list[Detections]:
        """Boxes around the peaks, clipped to the image, the weaker of two that overlap suppressed; on the CPU."""
        contrast, side = output
        results = []
        # More candidates than boxes: a spot may have several peaks.
        peaks = find_peaks(significance(contrast), 4 * self.max_detections)
        for image, (values, y, x) in enumerate(zip(*peaks, strict=True)):
            scores = values / (values + HALFWAY)
            found = scores > self.score_threshold
            cell = side[image, y, x][found]
            centre = torch.stack([x, y], dim=1)[found] + 0.5
            half = cell[:, None] * torch.tensor(self.box_size, device=cell.device) / 2
            limits = torch.tensor(geometry[image][::-1], device=cell.device)
            boxes = torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, limits)], dim=1)
            kept = nms(boxes, scores[found], self.iou_threshold)[: self.max_detections]
            labels = torch.zeros(len(kept), dtype=torch.int64)
            results.append(Detections(boxes[kept].cpu(), scores[found][kept].cpu(), labels))
        return results


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
