"""Writes videos."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from danet.data import h264_writer
from danet.data.h264_writer import H264Writer
from danet.data.video_decoder import DEFAULT_FPS
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, encodable_path, write_error
from danet.utils.image_io import silent_stderr, to_display

MIN_FREE_DISK_BYTES = 16 << 20
"""Free space at which a video is finished, so that its index still fits on the disk."""


class DiskFullError(UserError):
    """The disk is full; the frames written so far are kept as a playable video."""


class VideoWriter:
    """Context manager that writes a video; the file appears when the ``with`` block ends.

    The video is also kept after Ctrl-C (KeyboardInterrupt) and a UserError such as DiskFullError, and plays up to the
    last frame written. After any other exception, or without a frame, no file is made.

    The first frame determines the size of the video and whether it is grey (``[H, W]``) or colour. Frames of another
    size are centred on black; larger ones are shrunk first. The codec needs even sizes: an odd one is padded with a
    black row or column.

    Args:
        path: the file, ending in ``.mp4``, or in ``.webm`` for VP8 and VP9.
        fps: frames per second.
        codec: the four characters by which OpenCV knows the codec, such as mp4v, avc1 (H.264) or VP80 (VP8); or libx264
            for H.264 by PyAV, for files ending in ``.mp4``.

    Raises:
        UserError: from ``write`` and at the end of the block, if the codec or the file cannot be opened or written.
        DiskFullError: from ``write``, if less than MIN_FREE_DISK_BYTES are free.

    Example:
        >>> path = getfixture("tmp_path") / "video.mp4"
        >>> with VideoWriter(path, fps=30) as video:
        ...     for _ in range(3):
        ...         video.write(np.zeros((48, 64), np.uint8))
        >>> from danet.data.video import Video
        >>> Video(str(path)).total
        3
    """

    def __init__(self, path: str | os.PathLike, fps: float = DEFAULT_FPS, codec: str = "mp4v"):
        self.path = Path(path)
        self.fps = fps
        self.codec = codec
        self.frames = 0
        self._writer: cv2.VideoWriter | H264Writer | None = None
        self._size = (0, 0)
        self._grey = False
        self._pending_file = contextlib.ExitStack()

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, image: np.ndarray) -> None:
        """Appends an image ``[H, W]`` or ``[H, W, 3]`` (BGR), uint8 or uint16 (shown as ``to_display`` does)."""
        writer = self._writer or self._open(image)
        if shutil.disk_usage(self.path.parent).free < MIN_FREE_DISK_BYTES:
            raise DiskFullError(f"{self.path}: the disk is full; the video ends after {self.frames} frames")
        self.frames += 1
        picture = fit_picture(to_display(image), *self._size)
        # Write grey frames as grey: in a colour video, the codec's rounding would tint them.
        with self._naming_errors():
            writer.write(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if self._grey else picture)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self._writer is not None:
                with self._naming_errors():
                    self._writer.release()
        except UserError as failure:
            self._pending_file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        if kind is None or (self.frames and issubclass(kind, (KeyboardInterrupt, UserError))):
            self._pending_file.close()
        else:
            self._pending_file.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Raises UserErrors that name the file instead of the errors of PyAV; OpenCV raises none."""
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path}: the video cannot be written ({error})") from error

    def _open(self, first: np.ndarray) -> cv2.VideoWriter | H264Writer:
        height, width = first.shape[:2]
        temporary = self._pending_file.enter_context(atomic_path(self.path))
        name = self._pending_file.enter_context(encodable_path(temporary))
        self._size = height + height % 2, width + width % 2
        self._grey = first.ndim == 2
        if self.codec == h264_writer.CODEC:
            with self._naming_errors():
                self._writer = H264Writer(name, self.fps, *self._size)
            return self._writer
        codec = cv2.VideoWriter.fourcc(*self.codec)
        with silent_stderr:
            self._writer = cv2.VideoWriter(name, codec, self.fps, self._size[::-1], isColor=not self._grey)
        if not self._writer.isOpened():
            raise UserError(f"{self.path}: OpenCV cannot write this video here (codec {self.codec})")
        return self._writer


def fit_picture(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centres an image on a black canvas of the given size; a larger image is shrunk, a smaller one keeps its size.

    Args:
        image: uint8 ``[H, W, 3]`` (BGR).
        height, width: size of the canvas in pixels.

    Returns:
        uint8 ``[height, width, 3]``; ``image`` itself if it has this size.

    Example:
        >>> fit_picture(np.full((100, 50, 3), 255, np.uint8), 40, 40).shape
        (40, 40, 3)
    """
    if image.shape[:2] == (height, width):
        return image
    factor = min(1.0, width / image.shape[1], height / image.shape[0])
    if factor < 1.0:
        size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
