"""Loads a ``Detector`` from a weights file or from an exported ONNX file."""

import os
from pathlib import Path
from typing import Any

import torch

from danet.checkpoint import SHIPPED, load_weights
from danet.inference.batch_detector import parse_dtype
from danet.inference.detector import Detector
from danet.utils.devices import find_device
from danet.utils.errors import UserError


def load(weights: str | os.PathLike | None = None, device: str | torch.device = "auto", **options: Any) -> Detector:
    """Loads a detector, see ``danet.load``; ``options`` are those of ``Detector``.

    Raises:
        UserError: the file is missing or does not hold the weights of a DANet, or the device is not available.

    Example:
        >>> load(score_threshold=0.3).score_threshold
        0.3
    """
    weights = SHIPPED if weights is None else weights
    device = choose_device(str(device), weights)
    if is_onnx(weights):
        return _load_onnx(weights, device, **options)
    model, metadata = load_weights(weights, device)
    return Detector(model, metadata=metadata, **options)


def is_onnx(weights: str | os.PathLike) -> bool:
    """Whether ``load`` treats the file as an ONNX file: by its suffix."""
    return Path(weights).suffix.lower() == ".onnx"


def choose_device(name: str, weights: str | os.PathLike | None = None) -> str:
    """Resolves the option ``--device``: ``auto`` is the CPU for an ONNX file, else see ``find_device``.

    Example:
        >>> choose_device("auto", "model.onnx")
        'cpu'
    """
    return "cpu" if name == "auto" and is_onnx(weights or "") else str(find_device(name))


def _load_onnx(path: str | os.PathLike, device: str | torch.device, **options: Any) -> Detector:
    """Loads an ONNX file of ``danet export``; thresholds and input size default to those stored in the file.

    Raises:
        UserError: the file cannot be read, or ``options`` ask for what an ONNX file does not have.
    """
    from danet.inference.onnx_network import OnnxNetwork

    if torch.device(device).type != "cpu":
        raise UserError(f"{path}: an ONNX file runs only on the CPU, got device {device}")
    if parse_dtype(options.get("dtype", "auto")) not in ("auto", torch.float32):
        raise UserError(f"{path}: an ONNX file computes in float32, got {options['dtype']}")
    if not options.get("deploy", True):
        raise UserError(f"{path}: an ONNX file holds only the fused network; use the .safetensors file instead")
    network = OnnxNetwork(path)
    size = network.description["preprocessing"]["input_size"]
    defaults = {**network.description["thresholds"], "input_size": size}
    given = {name: value for name, value in options.items() if name != "input_size" or value is not None}
    return Detector(network, metadata=network.description["training"], **{**defaults, **given})
