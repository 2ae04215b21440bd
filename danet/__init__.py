"""DANet: a real-time detector of small aerial targets in infrared video, and its operators.

>>> detector = danet.load()  # or your own: danet.load("weights.safetensors")
>>> boxes, scores, labels = detector("frame.png")

Importing this package loads neither torch nor OpenCV; its modules and ``load`` do.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet.inference.detector import Detector

try:
    __version__ = version("danet")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load"]


def load(weights: str | os.PathLike | None = None, device: str = "cpu", **options: object) -> "Detector":
    """Loads a trained detector.

    Args:
        weights: a ``.safetensors`` file written by ``danet train``, or a ``.onnx`` file by ``danet export``, which
            ONNX Runtime runs on the CPU; by default the detector of drones that comes with the package.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        options: ``score_threshold`` (0.5), ``iou_threshold`` (0.5), ``max_detections`` (300) and
            ``input_size`` (native), see
            ``danet.inference.detector.Detector``; a ``.onnx`` file has defaults of its own.

    Returns:
        A ``Detector``: called with an image (a path or a numpy array), it returns boxes in pixels of
        that image, scores and labels.

    Raises:
        danet.utils.errors.UserError: naming the file, if it is missing or not a DANet's weights.
    """
    from danet.inference.loading import load as load_detector

    return load_detector(weights, device, **options)
