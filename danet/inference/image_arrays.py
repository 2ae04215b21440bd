"""Images as people have them in Python: numpy arrays, torch tensors and Pillow images of several types."""

import cv2
import numpy as np
import torch
from torch import Tensor

UINT8_MAX = 255
UINT16_MAX = 65535


def to_image(image: object) -> np.ndarray:
    """Converts an image to the arrays of DANet: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16.

    - A numpy array is ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` in BGR order, as OpenCV reads it.
    - A torch tensor is ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]`` in RGB order, as torchvision reads it.
    - A Pillow image is grey or RGB.

    Whole numbers from 0 to 65535, also as floats, are sensor counts. Floats from 0 to 1 are multiplied by 255 if the
    results are whole numbers, and by 65535 if they are finer, as those of a sensor of more than 8 bits. All other
    values have no known scale and are an error: a wrong guess would give no detections instead of a message.

    Raises:
        TypeError: the object is no image, or its values are neither counts nor floats from 0 to 1.
        ValueError: the shape is not that of an image, or it has no pixels.

    Example:
        >>> to_image(torch.full((1, 48, 64), 0.5)).shape, int(to_image(np.full((2, 2), 0.5))[0, 0])
        ((48, 64), 32768)
    """
    if isinstance(image, Tensor):
        array, reverse = _from_tensor(image), True
    elif isinstance(image, np.ndarray):
        array, reverse = image, False
    elif type(image).__module__.partition(".")[0] == "PIL":
        array, reverse = _from_pillow(image), True
    else:
        raise TypeError(
            f"Detector: an image must be a path, a numpy array, a torch tensor or a Pillow image, got "
            f"{type(image).__name__}; give several images as a list"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"Detector: an image must be [H, W] or [H, W, 3], got {list(array.shape)}{_advice(array)}")
    counts = _to_counts(array)
    return cv2.cvtColor(counts, cv2.COLOR_RGB2BGR) if reverse and counts.ndim == 3 else counts


def _from_tensor(tensor: Tensor) -> np.ndarray:
    """The values of a tensor with its channels last."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3) else array


def _from_pillow(image: object) -> np.ndarray:
    """The values of a Pillow image; palettes and transparency are resolved."""
    mode = getattr(image, "mode", "")
    if mode not in ("L", "RGB", "F") and not mode.startswith("I"):
        image = image.convert("L" if mode in ("1", "LA", "La") else "RGB")  # type: ignore[attr-defined]
    return np.asarray(image)


def _to_counts(array: np.ndarray) -> np.ndarray:
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind not in "iuf":
        raise TypeError(f"Detector: an image must hold integers or floats, got {array.dtype}; give uint8 or uint16")
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled = array.astype(np.float64) * UINT8_MAX
        counts = np.rint(scaled)
        rounding = UINT8_MAX * float(np.finfo(array.dtype).eps)  # of whole numbers that were divided by 255
        if np.abs(scaled - counts).max() <= max(rounding, 0.01):
            return counts.astype(np.uint8)
        return np.rint(array.astype(np.float64) * UINT16_MAX).astype(np.uint16)
    # Comparisons are False for NaN.
    if not (low >= 0 and high <= UINT16_MAX) or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
        raise TypeError(
            f"Detector: an image of {array.dtype} must hold floats from 0 to 1, or whole numbers from 0 to "
            f"{UINT16_MAX}, got {low:g} to {high:g}; convert it, such as to uint16 counts of 0.01 degrees"
        )
    return array.astype(np.uint8 if high <= UINT8_MAX else np.uint16)


def _advice(array: np.ndarray) -> str:
    if array.ndim == 3 and array.shape[0] in (1, 3):
        return "; move the channels to the end, as image.transpose(1, 2, 0)"
    return "; give several images as a list" if array.ndim == 4 else ""
