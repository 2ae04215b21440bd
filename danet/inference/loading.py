"""Loads a ``Detector`` from a weights file or from an exported ONNX file."""

import os
from pathlib import Path
from typing import Any

import torch

from danet.checkpoint import SHIPPED, load_weights
from danet.inference.detector import Detector
from danet.utils.errors import UserError


def load(weights: str | os.PathLike | None = None, device: str | torch.device = "cpu", **options: Any) -> Detector:
    """Loads a detector from a weights file or an exported .onnx, by default the package's own; ``options`` are those of
    ``Detector``.

    Raises:
        UserError: naming the file, if it is missing or not a DANet's weights.
    """
    weights = SHIPPED if weights is None else weights
    if is_onnx(weights):
        return _load_onnx(weights, device, **options)
    model, metadata = load_weights(weights, device)
    return Detector(model, metadata=metadata, **options)


def is_onnx(weights: str | os.PathLike) -> bool:
    """Whether ``load`` takes the file for an exported one."""
    return Path(weights).suffix.lower() == ".onnx"


def _load_onnx(path: str | os.PathLike, device: str | torch.device, **options: Any) -> Detector:
    """A detector of the file; thresholds and input size are the file's where ``options`` have none.

    Raises:
        UserError: for what is no such file, and for a device, dtype or form that it cannot have.
    """
    from danet.inference.onnx_network import OnnxNetwork

    if torch.device(device).type != "cpu":
        raise UserError(f"{path}: an ONNX file runs on the CPU here, not on {device}")
    if options.get("dtype", torch.float32) != torch.float32:
        raise UserError(f"{path}: an ONNX file computes in float32, not in another dtype")
    if not options.get("deploy", True):
        raise UserError(f"{path}: an ONNX file holds the fused form alone, not the trained one")
    network = OnnxNetwork(path)
    size = network.description["preprocessing"]["input_size"]
    defaults = {**network.description["thresholds"], "input_size": None if size is None else tuple(size)}
    given = {name: value for name, value in options.items() if name != "input_size" or value is not None}
    return Detector(network, metadata=network.description["training"], **{**defaults, **given})
