"""Reads and writes image files, and converts images for display."""

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import atomic_path
from danet.utils.image_header import (
    MINISWHITE,
    SEPARATE_PLANES,
    TiffPage,
    image_size,
    is_tiff,
    put_first,
    tiff_pages,
)

try:
    import cv2
except ImportError as error:
    raise ImportError(f"OpenCV (cv2) cannot be loaded ({error}); run `pip install opencv-python-headless`") from error

MAX_IMAGE_PIXELS = 1 << 26
"""Larger images are refused unless the caller raises the limit: a few kB can hold gigabytes of pixels."""

MAX_FILE_BYTES = (1 << 31) - 1
"""OpenCV decodes no larger buffer."""

_FLOAT_PERCENTILES = (1.0, 50.0, 99.0)
_FLOAT_SPANS = 4.0
"""``to_counts`` keeps the median +- 4 spans of the 1st to the 99th percentile, which is the range of ``normalize``."""


class EncodingError(UserError):
    """The format of an image file does not allow this image, for example because it is too large."""


class _SilentStderr:
    """Discards what C libraries print on stderr while it is entered: libpng and libjpeg have no log level.

    It does nothing unless OpenCV itself is silent. Several threads may have entered it at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and os.environ.get("OPENCV_LOG_LEVEL") == "SILENT":
                with contextlib.suppress(OSError):  # there is no stderr
                    self._saved = os.dup(2)
                    sink = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(sink, 2)
                    os.close(sink)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._saved is not None:
                os.dup2(self._saved, 2)
                os.close(self._saved)
                self._saved = None


silent_stderr = _SilentStderr()
"""The context manager around every decoder of this process."""


def quiet_opencv() -> None:
    """Silences the log lines of OpenCV and of its libraries in this process and in the processes it starts.

    Commands call this in ``main``, before the first video is opened, because they report a damaged image or frame in
    one line of their own. Log levels that the user has set (``OPENCV_LOG_LEVEL``, ``OPENCV_FFMPEG_LOGLEVEL``) stay.
    With ``OPENCV_LOG_LEVEL=SILENT`` the image readers of this module also silence libpng and libjpeg.

    Example:
        >>> quiet_opencv()
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    if "OPENCV_LOG_LEVEL" not in os.environ:
        os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # Give Python a stderr of its own, so that no line is lost in a thread while another one silences a decoder.
    with contextlib.suppress(OSError, AttributeError):  # there is no stderr, or a program has replaced it
        if sys.stderr.fileno() == 2:
            encoding, errors = sys.stderr.encoding, sys.stderr.errors
            sys.stderr = os.fdopen(os.dup(2), "w", 1, encoding, errors, closefd=False)


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Reads an image as viewers show it; an image with three equal channels is returned as grey.

    The EXIF orientation is applied, in a TIFF with the smallest value white the values are inverted, and an alpha
    channel is dropped. Values of 8 and 16 bits stay as they are; others are converted, see ``to_counts``.

    Args:
        path: the file.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Raises:
        UserError: if the file is missing, cannot be decoded, is too large, or is a TIFF with several pages.

    Example:
        >>> path = getfixture("tmp_path") / "a.png"
        >>> write_image(path, np.zeros((48, 64, 3), np.uint8))
        >>> read_image(path).shape
        (48, 64)
    """
    data = _read_file(Path(path))
    if not is_tiff(data):
        return _decode(path, data, None, max_pixels)
    pages = _pages(path, data)
    if len(pages) > 1:
        raise UserError(
            f"{path}: a TIFF with {len(pages)} pages where one image is needed; `danet detect` reads it as a video, "
            "or store each page in a file"
        )
    return _decode(path, data, pages[0], max_pixels)


def count_pages(path: str | os.PathLike) -> int:
    """Number of images in a file: the pages of a TIFF, without thumbnails and masks; 1 for every other file.

    Raises:
        UserError: the file is missing, or is a TIFF with damaged directories.

    Example:
        >>> path = getfixture("tmp_path") / "a.tif"
        >>> write_image(path, np.zeros((48, 64), np.uint16))
        >>> count_pages(path)
        1
    """
    data = _read_file(Path(path))
    return len(_pages(path, data)) if is_tiff(data) else 1


def read_pages(path: str | os.PathLike, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Iterator[np.ndarray]:
    """Yields the images of a file as ``read_image`` returns them, one at a time: the pages of a TIFF, or one image.

    Raises:
        UserError: as ``read_image``; the message names the page.

    Example:
        >>> path = getfixture("tmp_path") / "a.tif"
        >>> _ = cv2.imwritemulti(str(path), [np.zeros((48, 64), np.uint16)] * 3)
        >>> len(list(read_pages(path)))
        3
    """
    data = _read_file(Path(path))
    if not is_tiff(data):
        yield _decode(path, data, None, max_pixels)
        return
    pages = _pages(path, data)
    for number, page in enumerate(pages):
        name = f"{path}, page {number}" if len(pages) > 1 else path
        put_first(data, page)
        yield _decode(name, data, page, max_pixels)


def _read_file(path: Path) -> np.ndarray:
    """The content of a file as uint8 ``[N]``; a TIFF, which may hold a whole video, is mapped copy-on-write."""
    if not path.is_file():
        raise UserError(f"{path}: no such image")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: not a readable image; the file is empty")
        if path.suffix.lower() in (".tif", ".tiff"):
            return np.memmap(path, np.uint8, mode="c")
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _pages(path: str | os.PathLike, data: np.ndarray) -> list[TiffPage]:
    try:
        return tiff_pages(data)
    except UserError as error:
        raise UserError(f"{path}: not a readable image; {error}") from error


def _decode(name: str | os.PathLike, data: np.ndarray, page: TiffPage | None, max_pixels: int) -> np.ndarray:
    """Decodes an image, for a TIFF its first page, which is ``page``."""
    size = image_size(data) if page is None else (page.width, page.height)
    check_size(name, size, max_pixels)
    if data.size > MAX_FILE_BYTES:
        raise UserError(
            f"{name}: the file is too large, got {data.size} bytes, the limit is {MAX_FILE_BYTES}; split it"
        )
    try:
        with silent_stderr:
            image = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # the size exceeds OpenCV's limits
        image = None
    if image is None and page is not None:
        with silent_stderr:
            image = _decode_with_pillow(data)
    if image is None:
        raise UserError(f"{name}: not a readable image")
    check_size(name, image.shape[1::-1], max_pixels)
    if page is not None:
        image = _fix_tiff(name, image, page)
    return squeeze_grey(to_counts(image[..., :3] if image.ndim == 3 else image))


def check_size(name: str | os.PathLike, size: tuple[int, ...] | None, max_pixels: int) -> None:
    """Raises UserError if an image of ``size`` (width, height) in pixels has more than ``max_pixels``.

    Example:
        >>> check_size("a.png", (640, 512), MAX_IMAGE_PIXELS)
    """
    if size is not None and size[0] * size[1] > max_pixels:
        raise UserError(
            f"{name}: the image is too large, got {size[0]} x {size[1]} pixels, the limit is {max_pixels} pixels; "
            "cut it into parts, or raise the limit (danet detect --max_pixels)"
        )


def _decode_with_pillow(data: np.ndarray) -> np.ndarray | None:
    """Decodes a TIFF with the compressions that OpenCV does not read, such as Zstandard; None if Pillow cannot."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size has been checked, and damage ends in an error of ours
            opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data.tobytes())))
            image = np.asarray(opened.convert("RGB") if opened.mode in ("P", "RGBA", "CMYK", "YCbCr") else opened)
    except Exception:  # Pillow raises many kinds of errors on damaged files
        return None
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    return image if image.ndim == 2 else image[..., 2::-1] if image.shape[2] >= 3 else image[..., 0]


@np.errstate(all="ignore")
def _fix_tiff(name: str | os.PathLike, image: np.ndarray, page: TiffPage) -> np.ndarray:
    """Corrects what the decoders do not handle, or refuses the image.

    Raises:
        UserError: the decoder has lost bits, or mixes up the channels.
    """
    if page.planes == SEPARATE_PLANES and page.channels > 1 and page.bits > 8:
        raise UserError(f"{name}: separate planes of {page.bits} bits are not supported; store the TIFF in one plane")
    if page.bits > 8 and image.dtype == np.uint8:
        layout = f"{page.channels} channels of {page.bits} bits"
        raise UserError(f"{name}: a TIFF with {layout} is not supported; store it with 1 channel")
    if page.photometric == MINISWHITE and page.bits > 8:  # the decoders invert 8 bits themselves
        unsigned = image.dtype.kind == "u"
        return np.iinfo(image.dtype).max - image if unsigned else -image.astype(np.float64)
    return image


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an image in the format of the suffix; the file is replaced only when it is complete.

    Args:
        path: the file.
        image: ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16.

    Raises:
        UserError: if the suffix is not that of an image format, or the file cannot be written; EncodingError if the
            format does not allow the size of the image.

    Example:
        >>> write_image(getfixture("tmp_path") / "a.png", np.zeros((48, 64), np.uint16))
    """
    suffix = Path(path).suffix.encode("ascii", "replace").decode()  # OpenCV crashes at names that are not UTF-8
    try:
        with silent_stderr:
            encoded, data = cv2.imencode(suffix, image)
    except cv2.error:
        raise UserError(f"{path}: not a name for an image; it must end in .png, .jpg or the like") from None
    if not encoded:
        raise EncodingError(
            f"{path}: cannot be written; the format {suffix} does not allow {image.shape[1]} x {image.shape[0]} pixels"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


@np.errstate(all="ignore")  # infinite values are clipped
def to_counts(image: np.ndarray) -> np.ndarray:
    """Converts values of any type to those of an 8-bit or 16-bit sensor; uint8 and uint16 stay as they are.

    int8 and int16 are shifted to start at 0. Other types, such as temperatures in float32, are scaled to uint16 so that
    ``normalize`` gives the same result as for the original values: the median becomes 32768, and 8192 is the difference
    of the 99th and the 1st percentile. NaN becomes the median.

    Args:
        image: ``[H, W]`` or ``[H, W, C]`` of an integer, float or bool type.

    Example:
        >>> to_counts(np.array([[-10.0, 20.0, np.nan, 20.0, 50.0]]))
        array([[28545, 32768, 32768, 32768, 36991]], dtype=uint16)
    """
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype in (np.int8, np.int16):
        unsigned = np.dtype(f"u{image.dtype.itemsize}")
        return image.view(unsigned) ^ unsigned.type(1 << (8 * image.dtype.itemsize - 1))
    values = image.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.full(image.shape, 1 << 15, np.uint16)
    low, middle, high = np.percentile(finite, _FLOAT_PERCENTILES)
    span = max(high - low, np.spacing(max(abs(low), abs(high))))
    scaled = (values - middle) * ((1 << 15) / _FLOAT_SPANS / span) + (1 << 15)
    return np.clip(np.rint(np.nan_to_num(scaled, nan=1 << 15)), 0, 65535).astype(np.uint16)


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
