"""Pictures in a page: as JPEG in base64, small enough for a phone, and frames with what is found in them."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.evaluation.contact_sheets import DETECTION_COLOR, TRUTH_COLOR
from danet.report.html import Html, tag
from danet.utils.drawing import draw_boxes, enlarge
from danet.utils.errors import UserError
from danet.utils.image_io import read_image, to_display

# Bytes of a page: its pictures make nearly all of it.
QUALITY = 82
WIDEST_SHEET = 1800
FRAME_WIDTH = 560


def sheet(path: Path, caption: str) -> Html:
    """A picture file as wide as it must be to be seen; it scrolls on a narrow screen."""
    image = to_display(read_image(path))
    image = enlarge(image, min(1.0, WIDEST_SHEET / image.shape[1]))
    return tag(
        "figure",
        tag("div", _image(image, caption), class_="scroll", tabindex="0", role="region", aria_label=caption),
        tag("figcaption", caption),
        class_="sheet",
    )


def chosen(records: Sequence, count: int) -> list[int]:
    """Indices of ``count`` images at most, one of a video, of those that show something if any does."""
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


def frame(record: ImageRecord, detections: Sequence, classes: Sequence[str], threshold: float) -> Html:
    """An image with its truth (blue) and the detections of at least ``threshold`` (orange)."""
    boxes, scores, labels = (np.asarray(values) for values in detections)
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
    return tag("figure", _image(image, caption), tag("figcaption", caption))


def frames(figures: Sequence[Html]) -> Html:
    return tag("div", *figures, class_="pictures")


def missing(error: UserError) -> Html:
    """Why there are none; without the folder that the report was written in, which is no reader's business."""
    return tag("p", f"No frames are shown: {error}.".replace(f"{Path.cwd()}/", ""))


def _image(image: np.ndarray, text: str) -> Html:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    source = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
    height, width = image.shape[:2]
    return tag("img", src=source, alt=text, width=str(width), height=str(height), loading="lazy")
