"""The description that an exported file carries: its preprocessing, its thresholds and the meaning of its outputs."""

import dataclasses
import json
from typing import Any

from danet import __version__
from danet.checkpoint import parse_config
from danet.config import EXTRA_CHANNELS, EXTRA_CHANNELS_VERSION, ModelConfig
from danet.data.normalize import CLIP_UNITS, MIN_RANGE_COUNTS, PERCENTILES, RANGE_UNITS
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError

FORMAT = "danet-export-1"
KEY = "danet"
"""The metadata name under which a file stores its description, as JSON."""

MAX_INPUT_PIXELS = 16384
"""Maximum height and width that images can be letterboxed to."""

MAX_MAX_DETECTIONS = 1_000_000
"""Largest value of ``max_detections`` that is accepted from a file."""

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
        "images": {"type": "float32", "shape": ["N", config.network_channels, "H", "W"], "minimum_size": minimum_size},
        "boxes": {"type": "float32", "shape": ["N", "P", 4], "meaning": "x0, y0, x1, y1 in pixels of the images"},
        "scores": {"type": "float32", "shape": ["N", "P", len(config.classes)], "meaning": "0 to 1, a class each"},
        "preprocessing": {
            **PREPROCESSING,
            **_extra_channels(config),
            "input_size": None if input_size is None else list(input_size),
        },
        "thresholds": thresholds,
        "model": dataclasses.asdict(config),
        "training": training,
    }


def parse(text: str | None, path: object) -> dict:
    """Parses the JSON of a description.

    Raises:
        UserError: ``text`` is not a description, or one of another preprocessing; the message starts with ``path``.

    Example:
        >>> parse('{"format": "other"}', "model.onnx")
        Traceback (most recent call last):
        danet.utils.errors.UserError: model.onnx: not a file written by danet export (format is not danet-export-1)
    """
    try:
        description = json.loads(text or "null")
        same_preprocessing = _check(description)
    except RecursionError:
        raise UserError(f"{path}: not a file written by danet export (nested too deeply)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise UserError(f"{path}: not a file written by danet export ({reason[:200]})") from None
    if not same_preprocessing:
        raise UserError(f"{path}: this version of DANet preprocesses images differently; export the file again")
    return description


def _check(description: Any) -> bool:
    """Checks everything that a detector takes from a description; returns whether the preprocessing is known.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a value is missing or not valid.
    """
    if not isinstance(description, dict):
        raise ValueError("it has no description")
    if description["format"] != FORMAT:
        raise ValueError(f"format is not {FORMAT}")
    config = parse_config(description["model"])
    if description["classes"] != config.classes:
        raise ValueError("classes are not those of the model")
    thresholds = description["thresholds"]
    for name in ("score_threshold", "iou_threshold"):
        if type(thresholds[name]) not in (int, float) or not 0 <= thresholds[name] <= 1:
            raise ValueError(f"{name} does not lie between 0 and 1")
    if not _is_integer(thresholds["max_detections"], 1, MAX_MAX_DETECTIONS) or len(thresholds) != 3:
        raise ValueError("max_detections is not valid")
    preprocessing = description["preprocessing"]
    size = preprocessing["input_size"]
    if size is not None and not (len(size) == 2 and all(_is_integer(n, MINIMUM_SIZE, MAX_INPUT_PIXELS) for n in size)):
        raise ValueError("input_size is not valid")
    if not isinstance(description["training"], dict):
        raise ValueError("training is not valid")
    known = {**PREPROCESSING, **_extra_channels(config)}
    return bool({name: preprocessing.get(name) for name in known} == known)


def _extra_channels(config: ModelConfig) -> dict[str, int]:
    """The definition of the channels that are computed beside the image."""
    return {EXTRA_CHANNELS: EXTRA_CHANNELS_VERSION} if config.has_extra_channels else {}


def _is_integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
