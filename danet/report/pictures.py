"""Pictures of a page as embedded JPEG files: contact sheets, and frames with their detections."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from danet.boxes import Detections
from danet.data.coco_dataset import ImageRecord
from danet.evaluation.contact_sheets import DETECTION_COLOR, TRUTH_COLOR
from danet.report.page import Paragraph, Picture, Sheet
from danet.utils.drawing import draw_boxes, enlarge
from danet.utils.errors import UserError
from danet.utils.image_io import read_image, to_display

JPEG_QUALITY = 82
MAX_SHEET_WIDTH = 1800
"""Pixels. Nearly all bytes of a page are its pictures."""
FRAME_WIDTH = 560
"""Pixels, about; frames are enlarged by a whole number."""


def sheet(path: Path, caption: str) -> Sheet:
    """A contact sheet from a picture file, at most MAX_SHEET_WIDTH pixels wide."""
    image = to_display(read_image(path))
    image = enlarge(image, min(1.0, MAX_SHEET_WIDTH / image.shape[1]))
    return Sheet(_data_url(image), caption, image.shape[1], image.shape[0])


def choose_frames(records: Sequence, count: int) -> list[int]:
    """Indices of at most ``count`` images, one per video; images with objects are preferred."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.video or str(record.path), []).append(index)
    middles = []
    for group in groups.values():
        showing = [index for index in group if records[index].names] or group
        middles.append(showing[len(showing) // 2])
    middles = [index for index in middles if records[index].names] or middles
    places = np.linspace(0, len(middles) - 1, min(count, len(middles))).round().astype(int)
    return [middles[place] for place in places]


def frame(record: ImageRecord, detections: Detections, classes: Sequence[str], threshold: float) -> Picture:
    """An image with its ground truth (blue) and the detections of at least ``threshold`` (orange)."""
    boxes, scores, labels = map(np.asarray, (detections.boxes, detections.scores, detections.labels))
    kept = scores >= threshold
    image = to_display(read_image(record.path))
    factor = max(1, round(FRAME_WIDTH / image.shape[1])) if image.shape[1] < FRAME_WIDTH else 1
    image = enlarge(image, factor)
    image = draw_boxes(image, np.asarray(record.boxes) * factor, colors=[TRUTH_COLOR])
    image = draw_boxes(image, boxes[kept] * factor, scores[kept].tolist(), colors=[DETECTION_COLOR])
    names = [f"{classes[label]} {score:.2f}" for label, score in zip(labels[kept], scores[kept], strict=True)]
    counts = sorted(Counter(record.names).items())
    truth = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts) or "nothing"
    caption = f"{record.path.stem}: shows {truth}; found: {', '.join(names) or 'nothing'}"
    return Picture(_data_url(image), caption, image.shape[1], image.shape[0])


def missing(error: UserError) -> Paragraph:
    """Why a page has no pictures; without the folder that the report was written in, which readers do not need."""
    return Paragraph(f"No frames are shown: {error}.".replace(f"{Path.cwd()}/", ""))


def _data_url(image: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
