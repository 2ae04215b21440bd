"""Writes H.264 with PyAV, if it is installed: OpenCV's wheels contain no encoder for H.264."""

import functools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

MAX_FPS = 1000

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
        height, width: of all frames in pixels; both must be even.

    Raises:
        OSError: from any method, if the file cannot be written.
        ValueError: the encoder does not support this number of frames per second or this size.

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
        self._container.mux(self._stream.encode(frame))

    def release(self) -> None:
        """Completes the file."""
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()
