"""Loads a ``Detector`` from a weights file or from an exported ONNX file."""

import os
from pathlib import Path
from typing import Any, Literal

import torch

from danet.checkpoint import SHIPPED, load_weights
from danet.inference.detector import Detector
from danet.inference.export_description import MAX_INPUT_PIXELS
from danet.models.danet import MINIMUM_SIZE
from danet.utils.distributed import parse_device
from danet.utils.errors import UserError


def load(weights: str | os.PathLike | None = None, device: str | torch.device = "auto", **options: Any) -> Detector:
    """Loads a detector, see ``danet.load``; ``options`` are those of ``Detector``.

    Raises:
        UserError: the file is missing or does not hold the weights of a DANet.

    Example:
        >>> load(score_threshold=0.3).score_threshold
        0.3
    """
    weights = SHIPPED if weights is None else weights
    if device == "auto":
        device = choose_device("auto", weights)
    if is_onnx(weights):
        return _load_onnx(weights, device, **options)
    model, metadata = load_weights(weights, device)
    return Detector(model, metadata=metadata, **options)


def is_onnx(weights: str | os.PathLike) -> bool:
    """Whether ``load`` treats the file as an ONNX file: by its suffix."""
    return Path(weights).suffix.lower() == ".onnx"


def choose_device(name: str, weights: str | os.PathLike | None = None) -> str:
    """Resolves the option ``--device``: ``auto`` is a GPU if there is one, and the CPU for an ONNX file.

    Raises:
        UserError: the device is unknown or not available.

    Example:
        >>> choose_device("auto", "model.onnx")
        'cpu'
        >>> choose_device("gpu")
        Traceback (most recent call last):
        danet.utils.errors.UserError: --device must be auto, cpu, cuda or cuda:N, got 'gpu'
    """
    if name == "auto" and is_onnx(weights or ""):
        return "cpu"
    device = parse_device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UserError(f"--device {device}: not available here ({reason})") from error
    return str(device)


def parse_size(values: list[int] | None) -> tuple[int, int] | None:
    """Resolves the option ``--input_size`` to (height, width) in pixels; None keeps the size of each image.

    Raises:
        UserError: there are more than two values, or one below the minimum size of the network.

    Example:
        >>> parse_size([320])
        (320, 320)
    """
    if values is None:
        return None
    if len(values) not in (1, 2) or not MINIMUM_SIZE <= min(values) <= max(values) <= MAX_INPUT_PIXELS:
        limits = f"at least {MINIMUM_SIZE} and at most {MAX_INPUT_PIXELS} pixels"
        raise UserError(f"--input_size: height and width must be {limits}, got {values}")
    return values[0], values[-1]


def parse_fitted_size(
    values: list[int | Literal["native"]] | None,
) -> tuple[int, int] | Literal["native"] | None:
    """Resolves the option ``--input_size`` of a detector: (height, width), ``native``, or None to fit the images.

    Raises:
        UserError: as ``parse_size``; or ``native`` is not the only word.

    Example:
        >>> parse_fitted_size(["native"]), parse_fitted_size([256, 320]), parse_fitted_size(None)
        ('native', (256, 320), None)
    """
    if values is None:
        return None
    if values == ["native"]:
        return "native"
    numbers = [value for value in values if value != "native"]
    if len(numbers) != len(values):
        raise UserError(f"--input_size: give native alone, or height and width in pixels, got {values}")
    return parse_size(numbers)


def _load_onnx(path: str | os.PathLike, device: str | torch.device, **options: Any) -> Detector:
    """Loads an ONNX file of ``danet export``; thresholds and input size default to those stored in the file.

    Raises:
        UserError: the file cannot be read, or ``options`` ask for what an ONNX file does not have.
    """
    from danet.inference.onnx_network import OnnxNetwork

    if torch.device(device).type != "cpu":
        raise UserError(f"{path}: an ONNX file runs only on the CPU, got device {device}")
    if options.get("dtype", torch.float32) != torch.float32:
        raise UserError(f"{path}: an ONNX file computes in float32, got {options['dtype']}")
    if not options.get("deploy", True):
        raise UserError(f"{path}: an ONNX file holds only the fused network; use the .safetensors file instead")
    network = OnnxNetwork(path)
    size = network.description["preprocessing"]["input_size"]
    defaults = {**network.description["thresholds"], "input_size": None if size is None else tuple(size)}
    given = {name: value for name, value in options.items() if name != "input_size" or value is not None}
    return Detector(network, metadata=network.description["training"], **{**defaults, **given})
