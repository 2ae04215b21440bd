"""DANet: a real-time detector of small aerial targets in infrared video, and its deformable operators.

The detector is described in https://doi.org/10.1145/3581783.3612146. Importing this package loads neither torch nor
OpenCV; ``load``, ``Detector``, ``Tracker`` and ``ops`` do.

Example:
    >>> import danet, numpy
    >>> detector = danet.load()  # the shipped weights; danet.load("weights.safetensors") for your own
    >>> boxes, scores, labels = detector(numpy.zeros((256, 320), numpy.uint8))  # or a path, such as "frame.png"
    >>> boxes.shape
    torch.Size([0, 4])
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet import ops
    from danet.inference.detector import Detector
    from danet.tracking.tracker import Tracker

    __version__: str

__all__ = ["Detector", "Tracker", "__version__", "load", "ops"]


def load(weights: str | os.PathLike | None = None, device: str = "auto", **options: object) -> "Detector":
    """Loads a trained detector.

    Args:
        weights: a ``.safetensors`` file written by ``danet train``, or a ``.onnx`` file written by ``danet export``,
            which ONNX Runtime runs on the CPU; or the name of weights in the package, see
            ``danet.checkpoint.shipped_names``. By default the drone detector that is part of the package.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is a GPU if there is one.
        options: ``score_threshold``, ``iou_threshold``, ``max_detections``, ``input_size``, ``tile``, ``overlap``,
            ``polarity``, ``classes``, ``dtype`` and ``deploy`` of ``Detector``. The defaults for a ``.onnx`` file are
            stored in the file.

    Raises:
        danet.utils.errors.UserError: the file is missing or does not hold the weights of a DANet.

    Example:
        >>> detector = load(score_threshold=0.3, max_detections=10)
        >>> detector.classes
        ['drone', 'bird', 'airplane', 'helicopter']
    """
    from danet.inference.loading import load as load_detector

    return load_detector(weights, device, **options)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _read_version()
    if name == "Detector":
        return importlib.import_module("danet.inference.detector").Detector
    if name == "Tracker":
        return importlib.import_module("danet.tracking.tracker").Tracker
    if name == "ops":
        return importlib.import_module("danet.ops")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("danet")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
