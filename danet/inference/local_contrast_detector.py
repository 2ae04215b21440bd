"""A detector made of the local-contrast filter alone: a classical baseline, nothing learned."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from danet.boxes import Detections, nms
from danet.data.normalize import normalize
from danet.losses.local_contrast import find_peaks, local_contrast, significance
from danet.utils.image_io import read_image

HALFWAY = 20.0
"""Standard deviations above the mean at which a spot scores 0.5."""


class LocalContrastDetector:
    """Calls every spot that stands out a target; takes a ``danet.inference.detector.Detector``'s place in ``predict``.

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
        images = np.stack([normalize(read_image(path)) for path in paths])
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
