"""What an exported file says about itself: how its images are prepared, and what its results mean."""

import dataclasses
import json

from danet import __version__
from danet.config import ModelConfig
from danet.data.normalize import CLIP_UNITS, MIN_RANGE_COUNTS, PERCENTILES, RANGE_UNITS
from danet.utils.errors import UserError

FORMAT = "danet-export-1"
KEY = "danet"
"""The name under which a file keeps its description, as JSON."""

PREPROCESSING = {
    "percentiles": list(PERCENTILES),
    "units_between_outer_percentiles": RANGE_UNITS,
    "minimum_range_in_counts": MIN_RANGE_COUNTS,
    "clip": CLIP_UNITS,
    "colour": "BGR",
    "padding": 0.0,
}
"""``normalize`` of ``danet.data.normalize``: of each image the middle percentile becomes 0, the range between the outer
ones, at least the minimum, so many units, clipped; smaller images of a batch are padded at the right and bottom."""


def describe(
    config: ModelConfig, *, thresholds: dict, input_size: tuple[int, int] | None, minimum_size: int, training: dict
) -> dict:
    """The description of a file.

    Args:
        thresholds: score_threshold, iou_threshold and max_detections, as ``Detector`` has them.
        input_size: (height, width) that images are letterboxed to; None for their own size.
        minimum_size: least height and width in pixels; there is no other limit, and no multiple to keep.
        training: what the weights file says of its training.
    """
    return {
        "format": FORMAT,
        "danet": __version__,
        "classes": config.classes,
        "images": {"type": "float32", "shape": ["N", config.input_channels, "H", "W"], "minimum_size": minimum_size},
        "boxes": {"type": "float32", "shape": ["N", "P", 4], "meaning": "x0, y0, x1, y1 in pixels of the images"},
        "scores": {"type": "float32", "shape": ["N", "P", len(config.classes)], "meaning": "0 to 1, a class each"},
        "preprocessing": {**PREPROCESSING, "input_size": None if input_size is None else list(input_size)},
        "thresholds": thresholds,
        "model": dataclasses.asdict(config),
        "training": training,
    }


def read(text: str | None, path: object) -> dict:
    """The description in the JSON ``text``. Raises UserError naming ``path`` if it is none that this version reads."""
    try:
        description = json.loads(text or "null")
        known = isinstance(description, dict) and description["format"] == FORMAT
        if known and {name: description["preprocessing"][name] for name in PREPROCESSING} == PREPROCESSING:
            return description
    except (ValueError, KeyError, TypeError):
        known = False
    if known:
        raise UserError(f"{path}: its images are prepared differently by this version of DANet; export it again")
    raise UserError(f"{path}: not a file that danet export has written")
