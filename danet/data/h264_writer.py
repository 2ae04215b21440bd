"""Writes H.264 with PyAV, if it is installed: OpenCV's wheels contain no encoder for H.264."""

import contextlib
import functools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

MAX_FPS = 1000
MAX_SIDE_PIXELS = 16_384

CODEC = "libx264"
"""The name of the encoder, also as the ``codec`` of a ``VideoWriter``."""

OPTIONS = {"preset": "ultrafast", "crf": "23"}
"""At this preset the encoder takes about as long as OpenCV's MPEG-4 encoder and a tenth of the time of VP8."""


@functools.cache
def can_write_h264() -> bool:
    """Whether PyAV is installed and has the encoder; it is an optional dependency (``pip install 'danet[video]'``)."""
    try:
        import av
    except ImportError:
        return False
    return CODEC in av.codecs_available


class H264Writer:
    """Writes an MP4 file; has the methods of ``cv2.VideoWriter`` that ``VideoWriter`` uses.

    Args:
        path: the file.
        fps: frames per second, at most MAX_FPS.
        height, width: of all frames in pixels; both must be even, and at most MAX_SIDE_PIXELS.

    Raises:
        OSError: from any method, if the file cannot be written.
        ValueError: the encoder does not support this number of frames per second or this size, or reports an error.

    Example:
        >>> path = getfixture("tmp_path") / "video.mp4"
        >>> if can_write_h264():
        ...     writer = H264Writer(path, 25, 48, 64)
        ...     writer.write(np.zeros((48, 64), np.uint8))
        ...     writer.release()
        >>> path.exists() == can_write_h264()
        True
    """

    def __init__(self, path: str | os.PathLike, fps: float, height: int, width: int) -> None:
        import av

        if not 0 < fps <= MAX_FPS:  # the encoder would choose another number
            raise ValueError(f"{fps:g} frames/s are not between 0 and {MAX_FPS}")
        if max(height, width) > MAX_SIDE_PIXELS:
            raise ValueError(f"H.264 has at most {MAX_SIDE_PIXELS} pixels in a row or column, got {width} x {height}")
        self._av: Any = av
        self._container: Any = av.open(str(Path(path)), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = self._container.add_stream(CODEC, rate=rate, options=OPTIONS)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"  # browsers do not play grey video
        stream.codec_context.thread_count = 1  # the network needs the cores
        self._stream: Any = stream

    def write(self, image: np.ndarray) -> None:
        """Appends an image, uint8 ``[height, width]`` or ``[height, width, 3]`` (BGR)."""
        frame = self._av.VideoFrame.from_ndarray(image, format="gray" if image.ndim == 2 else "bgr24")
        with self._known_errors():
            self._container.mux(self._stream.encode(frame))

    def release(self) -> None:
        """Completes the file."""
        with self._known_errors():
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    @contextlib.contextmanager
    def _known_errors(self) -> Iterator[None]:
        """Raises ValueErrors instead of those errors of PyAV that are no subclasses of OSError."""
        try:
            yield
        except OSError:
            raise
        except self._av.error.FFmpegError as error:
            raise ValueError(error.strerror) from error
