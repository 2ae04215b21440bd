"""The description that an exported file carries: its preprocessing, its thresholds and the meaning of its outputs."""

import dataclasses
import json

from danet import __version__
from danet.config import ModelConfig
from danet.data.normalize import CLIP_UNITS, MIN_RANGE_COUNTS, PERCENTILES, RANGE_UNITS
from danet.utils.errors import UserError

FORMAT = "danet-export-1"
KEY = "danet"
"""The metadata name under which a file stores its description, as JSON."""

PREPROCESSING = {
    "percentiles": list(PERCENTILES),
    "units_between_outer_percentiles": RANGE_UNITS,
    "minimum_range_in_counts": MIN_RANGE_COUNTS,
    "clip": CLIP_UNITS,
    "colour": "BGR",
    "padding": 0.0,
}
"""What ``danet.data.normalize.normalize`` does to each image. The middle percentile becomes 0. The range between the
outer percentiles, or the minimum range if that is larger, becomes ``units_between_outer_percentiles``. Values are then
clipped. Smaller images of a batch are padded at the right and at the bottom."""


def describe(
    config: ModelConfig, *, thresholds: dict, input_size: tuple[int, int] | None, minimum_size: int, training: dict
) -> dict:
    """Builds the description of a file.

    Args:
        config: the model's configuration.
        thresholds: score_threshold, iou_threshold and max_detections of ``Detector``.
        input_size: (height, width) in pixels that images are letterboxed to; None keeps their size.
        minimum_size: minimum height and width of an image in pixels; any larger size is allowed.
        training: the metadata of the weights file.

    Example:
        >>> thresholds = {"score_threshold": 0.5, "iou_threshold": 0.5, "max_detections": 300}
        >>> describe(ModelConfig(), thresholds=thresholds, input_size=None, minimum_size=32, training={})["classes"]
        ['drone']
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


def parse(text: str | None, path: object) -> dict:
    """Parses the JSON of a description.

    Raises:
        UserError: ``text`` is not a description, or one of another preprocessing; the message starts with ``path``.
    """
    try:
        description = json.loads(text or "null")
        known = isinstance(description, dict) and description["format"] == FORMAT
        if known and {name: description["preprocessing"][name] for name in PREPROCESSING} == PREPROCESSING:
            return description
    except (ValueError, KeyError, TypeError):
        known = False
    if known:
        raise UserError(f"{path}: this version of DANet preprocesses images differently; export the file again")
    raise UserError(f"{path}: not a file written by danet export")
