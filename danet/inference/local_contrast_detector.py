"""A classical baseline: a detector that consists of the local-contrast filter, without a trained network."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from danet.boxes import Detections, centred_boxes, clip, nms
from danet.data.coco_dataset import ImageRecord
from danet.data.normalize import normalize
from danet.losses.local_contrast import find_peaks, local_contrast, significance
from danet.utils.image_io import read_image

HALF_SCORE_SIGNIFICANCE = 20.0
"""Significance, in standard deviations above the mean, at which a peak has the score 0.5 (our decision)."""


class LocalContrastDetector:
    """Detects every peak of the local contrast; a replacement for ``Detector`` in ``predict``.

    The score of a peak of significance s is s / (s + HALF_SCORE_SIGNIFICANCE). Its box is centred on the peak, and a
    multiple of the filter cell in size; ``calibrate`` measures the multiple.

    Args:
        target: name of the only class.
        device: where the filter runs.
        score_threshold, iou_threshold, max_detections: as for ``Detector``.

    Example:
        >>> detector = LocalContrastDetector("drone")
        >>> detector.classes, detector.box_size
        (['drone'], (1.0, 1.0))
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
        self.device, self.dtype, self.dtype_note = torch.device(device), torch.float32, ""
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.box_size = (1.0, 1.0)
        """Width and height of a box as multiples of the side of its cell."""

    def calibrate(self, records: Sequence[ImageRecord]) -> None:
        """Sets ``box_size`` to the median ratio of the annotated boxes of ``records`` to their cells.

        If no target of ``records`` has a peak inside its box, ``box_size`` does not change.
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

    lags: tuple[float, ...] = ()
    """Empty, because this detector uses no earlier frames."""

    def preprocess(
        self, paths: Sequence[str | os.PathLike], past: object = None
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Reads and normalizes images of one size to ``[N, 1, H, W]`` float32; also returns heights and widths.

        Earlier frames (``past``) are not used.
        """
        images = np.stack([normalize(read_image(path)) for path in paths])
        return torch.from_numpy(images), [images.shape[2:]] * len(images)

    @torch.inference_mode()
    def forward(self, images: Tensor, geometry: list) -> tuple[tuple[Tensor, Tensor], list]:
        return local_contrast(images.to(self.device)), geometry

    @torch.inference_mode()
    def postprocess(self, output: tuple[Tensor, Tensor], geometry: list) -> list[Detections]:
        """Boxes around the peaks, after thresholding, clipping to the image and NMS; on the CPU."""
        contrast, side = output
        results = []
        # Take more candidates than boxes, because one target may have several peaks.
        peaks = find_peaks(significance(contrast), 4 * self.max_detections)
        for image, (values, y, x) in enumerate(zip(*peaks, strict=True)):
            scores = values / (values + HALF_SCORE_SIGNIFICANCE)
            kept = scores > self.score_threshold
            cell = side[image, y, x][kept]
            sizes = cell[:, None] * torch.tensor(self.box_size, device=cell.device)
            boxes = clip(centred_boxes(torch.stack([x, y], dim=1)[kept] + 0.5, sizes), *geometry[image])
            best = nms(boxes, scores[kept], self.iou_threshold)[: self.max_detections]
            labels = torch.zeros(len(best), dtype=torch.int64)
            results.append(Detections(boxes[best].cpu(), scores[kept][best].cpu(), labels))
        return results
