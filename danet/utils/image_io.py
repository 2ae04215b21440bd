"""Reading and writing image files, and images for display."""

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
    """Reads an image as stored: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Three equal channels come back as one. Raises UserError naming a missing or broken file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image")
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except cv2.error:  # a size beyond OpenCV's limits
        image = None
    if image is None:
        raise UserError(f"{path}: not a readable image")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: {image.dtype} images are not supported, only 8 and 16 bit")
    return squeeze_grey(image[..., :3] if image.ndim == 3 else image)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16, atomically, in the format of the suffix.

    Raises UserError naming the file if the suffix is no image's or the file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            written = cv2.imwrite(str(temporary), image)
        except cv2.error:
            raise UserError(f"{path}: not a name for an image; it must end in .png, .jpg or the like") from None
        if not written:
            raise UserError(f"{path}: cannot be written")


def squeeze_grey(image: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` with equal channels, as video decoders give for infrared, to ``[H, W]``."""
    if image.ndim == 2:
        return image
    first = cv2.extractChannel(image, 0)
    return first if image.shape[2] == 1 or np.array_equal(cv2.merge([first] * 3), image) else image


def to_display(image: np.ndarray) -> np.ndarray:
    """uint8 BGR ``[H, W, 3]`` for people: 8-bit as it is, 16-bit stretched over its 0.5 to 99.9 percentiles."""
    if image.dtype != np.uint8:
        low, high = percentiles(image, (0.5, 99.9))
        scaled = (image.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
        image = np.clip(scaled, 0, 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()


def percentiles(image: np.ndarray, which: tuple[float, ...]) -> list[float]:
    """Percentiles of an integer image by its histogram: exact and several times faster than sorting."""
    if image.dtype == np.uint8 and image.size < 1 << 24:  # up to which float32, OpenCV's choice, counts exactly
        rows = image.reshape(image.shape[0], -1)
        histogram = cv2.calcHist([rows], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    else:
        histogram = np.bincount(image.reshape(-1), minlength=2)
    cumulative = np.cumsum(histogram)
    ranks = [min(int(cumulative[-1] * p / 100.0), int(cumulative[-1]) - 1) for p in which]
    return [float(np.searchsorted(cumulative, rank, side="right")) for rank in ranks]
