"""Reads and writes image files, and converts images for display."""

import os
from pathlib import Path

import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import atomic_path

try:
    import cv2
except ImportError as error:
    raise ImportError(f"OpenCV (cv2) cannot be loaded ({error}); run `pip install opencv-python-headless`") from error


def quiet_opencv() -> None:
    """Silences the log lines of OpenCV and of its FFmpeg in this process and in the processes it starts.

    Commands call this in ``main``, before the first video is opened, because they report a damaged image or frame in
    one line of their own. Log levels that the user has set (``OPENCV_LOG_LEVEL``, ``OPENCV_FFMPEG_LOGLEVEL``) stay.

    Example:
        >>> quiet_opencv()
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    if "OPENCV_LOG_LEVEL" not in os.environ:
        os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image with its stored values; an image with three equal channels is returned as grey.

    Returns:
        ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Raises:
        UserError: if the file is missing, cannot be decoded, or has another dtype.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> write_image(path, np.zeros((48, 64, 3), np.uint8))
        >>> read_image(path).shape
        (48, 64)
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image")
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except cv2.error:  # the size exceeds OpenCV's limits
        image = None
    if image is None:
        raise UserError(f"{path}: not a readable image")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: {image.dtype} images are not supported; convert it to 8 or 16 bits")
    return squeeze_grey(image[..., :3] if image.ndim == 3 else image)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an image in the format of the suffix; the file is replaced only when it is complete.

    Args:
        path: the file.
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Raises:
        UserError: if the suffix is not that of an image format, or the file cannot be written.

    Example:
        >>> write_image(getfixture("tmp_path") / "a.png", np.zeros((48, 64), np.uint16))
    """
    with atomic_path(path) as temporary:
        try:
            written = cv2.imwrite(str(temporary), image)
        except cv2.error:
            raise UserError(f"{path}: not a name for an image; it must end in .png, .jpg or the like") from None
        if not written:
            raise UserError(f"{path}: cannot be written")


def squeeze_grey(image: np.ndarray) -> np.ndarray:
    """Converts ``[H, W, 3]`` with equal channels, as video decoders return for infrared, to ``[H, W]``.

    Example:
        >>> squeeze_grey(np.zeros((48, 64, 3), np.uint8)).shape
        (48, 64)
    """
    if image.ndim == 2:
        return image
    first = cv2.extractChannel(image, 0)
    return first if image.shape[2] == 1 or np.array_equal(cv2.merge([first] * 3), image) else image


def to_display(image: np.ndarray) -> np.ndarray:
    """Converts an image to 8-bit BGR; a 16-bit image is stretched from its 0.5 to its 99.9 percentile.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Returns:
        A new image, uint8 ``[H, W, 3]``.

    Example:
        >>> to_display(np.full((48, 64), 9000, np.uint16)).shape
        (48, 64, 3)
    """
    if image.dtype != np.uint8:
        low, high = percentiles(image, (0.5, 99.9))
        scaled = (image.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
        image = np.clip(scaled, 0, 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()


def percentiles(image: np.ndarray, which: tuple[float, ...]) -> list[float]:
    """Returns percentiles of a uint8 or uint16 image; its histogram gives them several times faster than sorting.

    Example:
        >>> percentiles(np.arange(200, dtype=np.uint8).reshape(10, 20), (0, 50))
        [0.0, 100.0]
    """
    if image.dtype == np.uint8 and image.size < 1 << 24:  # OpenCV counts in float32, exact up to this size
        rows = image.reshape(image.shape[0], -1)
        histogram = cv2.calcHist([rows], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    else:
        histogram = np.bincount(image.reshape(-1), minlength=2)
    cumulative = np.cumsum(histogram)
    ranks = [min(int(cumulative[-1] * p / 100.0), int(cumulative[-1]) - 1) for p in which]
    return [float(np.searchsorted(cumulative, rank, side="right")) for rank in ranks]
