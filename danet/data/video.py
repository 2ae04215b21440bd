"""Reads frames from images, folders, videos, cameras and streams, and writes videos."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import atomic_path
from danet.utils.image_io import read_image, squeeze_grey, to_display
from danet.utils.native_messages import hide_native_messages

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"})
DEFAULT_FPS = 25.0
"""Frames per second of a source that does not state its frame rate."""
RECONNECT_TIMEOUT_S = 30.0
"""How long to wait for a camera or stream that gives no frames."""
RECONNECT_INTERVAL_S = 0.5
"""Time between two attempts to open it again."""
MIN_FREE_DISK_BYTES = 16 << 20
"""Free space at which a video is finished, so that its index still fits on the disk."""


class Frame(NamedTuple):
    """One image of a source."""

    name: str
    """Path of the image or video, URL of the stream, or ``camera0`` for camera 0."""
    index: int  # type: ignore[assignment]  # replaces tuple.index, which frames do not need
    """Frame number in the video, from 0; 0 for an image."""
    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""


class ImageFiles:
    """An iterable of Frames from image files.

    Attributes:
        name: the source as the user gave it.
        paths: the files in the order in which they are read.
        total: number of images.
    """

    def __init__(self, name: str, paths: Sequence[Path]):
        self.name = name
        self.paths = list(paths)

    @property
    def total(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        """Decodes all images once, to find a broken one before a long run.

        Raises:
            UserError: for the first image that cannot be decoded.
        """
        for path in self.paths:
            read_image(path)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            yield Frame(str(path), 0, read_image(path))


class Video:
    """An iterable of Frames from a video file, a camera or a stream; it can be iterated once.

    If a file ends before the number of frames that its header states, iteration stops after the last frame that can be
    decoded. If a camera or stream gives no frame, it is opened again for up to RECONNECT_TIMEOUT_S seconds. Both cases
    are reported on stderr; ``trouble`` states what is missing at the end.

    Args:
        source: path of a file, URL of a stream, or number of a camera.

    Attributes:
        total: number of frames that the file states; None if it is unknown, as for a camera.
        fps: frames per second; DEFAULT_FPS if it is unknown.
        live: whether the source is a camera or stream, whose frames are lost if they are not read in time.
        trouble: why frames are missing; None if none are.

    Raises:
        UserError: if the source cannot be opened or its first frame cannot be decoded.
    """

    def __init__(self, source: str | int):
        self.name = f"camera{source}" if isinstance(source, int) else source
        self.live = isinstance(source, int) or "://" in source
        self.trouble: str | None = None
        self._source = source
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            live = "no such camera" if isinstance(source, int) else "this stream cannot be opened"
            raise UserError(f"{source}: {live if self.live else 'not a readable image or video'}")
        self._first = self._read()
        if self._first is None:
            raise UserError(f"{self.name}: no frame of this video can be decoded")
        total = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = total if total > 0 and not self.live else None
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0.0 < fps <= 1000.0 else DEFAULT_FPS

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        image, self._first = self._first, None
        try:
            while image is not None:
                yield Frame(self.name, index, squeeze_grey(image))
                index += 1
                image = self._read()
                if image is None and self.live:
                    image = self._reconnect(index)
        finally:
            self._capture.release()
        if self.total is not None and index < self.total:
            self.trouble = f"ends early: frame {index} of {self.total} cannot be decoded"
            print(f"{self.name}: {self.trouble}", file=sys.stderr)

    def _read(self) -> np.ndarray | None:
        found, image = self._capture.read()
        return image if found else None

    def _reconnect(self, index: int) -> np.ndarray | None:
        """Opens a camera or stream again until it gives an image; None after RECONNECT_TIMEOUT_S seconds."""
        last, seconds = f"frame {index - 1}", f"{RECONNECT_TIMEOUT_S:.0f} s"
        print(f"{self.name}: no image after {last}, trying to reconnect for {seconds}", file=sys.stderr)
        start = time.monotonic()
        while time.monotonic() - start < RECONNECT_TIMEOUT_S:
            self._capture.release()
            time.sleep(RECONNECT_INTERVAL_S)
            self._capture = cv2.VideoCapture(self._source)
            image = self._read() if self._capture.isOpened() else None
            if image is not None:
                print(f"{self.name}: reconnected after {time.monotonic() - start:.1f} s", file=sys.stderr)
                return image
        self.trouble = f"connection lost after {last}"
        print(f"{self.name}: {self.trouble}", file=sys.stderr)
        return None


def open_source(source: str | os.PathLike) -> ImageFiles | Video:
    """Opens a source of frames.

    Args:
        source: an image, a folder of images (read in the order of their names), a video file, the URL of a stream, or
            the number of a camera.

    Raises:
        UserError: if the source does not exist, cannot be opened, or is a folder without images.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = cv2.imwrite(str(folder / "a.png"), np.zeros((48, 64), np.uint8))
        >>> [frame.image.shape for frame in open_source(folder)]
        [(48, 64)]
    """
    text = str(source)
    path = Path(text)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if not images:
            raise UserError(f"{text}: no images in this folder ({' '.join(sorted(IMAGE_SUFFIXES))})")
        return ImageFiles(text, images)
    if path.is_file():
        return ImageFiles(text, [path]) if path.suffix.lower() in IMAGE_SUFFIXES else Video(text)
    if text.isdecimal():
        return Video(int(text))
    if "://" in text:
        return Video(text)
    raise UserError(f"{text}: no such file or folder")


class DiskFullError(UserError):
    """The disk is full; the frames written so far are kept as a playable video."""


class VideoWriter:
    """Context manager that writes a video; the file appears when the ``with`` block ends.

    The video is also kept after Ctrl-C (KeyboardInterrupt) and a UserError such as DiskFullError, and plays up to the
    last frame written. After any other exception, or without a frame, no file is made.

    The first frame determines the size of the video and whether it is grey (``[H, W]``) or colour. Frames of another
    size are letterboxed. The codec needs even sizes: an odd one is padded with a black row or column.

    Args:
        path: the file, ending in ``.mp4``, or in ``.webm`` for VP8 and VP9.
        fps: frames per second.
        codec: the four characters by which OpenCV knows the codec, such as mp4v, avc1 (H.264) or VP80 (VP8).

    Raises:
        UserError: from ``write``, if the codec or the file cannot be opened.
        DiskFullError: from ``write``, if less than MIN_FREE_DISK_BYTES are free.

    Example:
        >>> path = getfixture("tmp_path") / "video.mp4"
        >>> with VideoWriter(path, fps=30) as video:
        ...     for _ in range(3):
        ...         video.write(np.zeros((48, 64), np.uint8))
        >>> open_source(path).total
        3
    """

    def __init__(self, path: str | os.PathLike, fps: float = DEFAULT_FPS, codec: str = "mp4v"):
        self.path = Path(path)
        self.fps = fps
        self.codec = codec
        self.frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._grey = False
        self._file = contextlib.ExitStack()

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
        writer.write(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if self._grey else picture)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None or (self.frames and issubclass(kind, (KeyboardInterrupt, UserError))):
            self._file.close()
        else:
            self._file.__exit__(kind, error, trace)

    def _open(self, first: np.ndarray) -> cv2.VideoWriter:
        height, width = first.shape[:2]
        temporary = self._file.enter_context(atomic_path(self.path))
        self._size = height + height % 2, width + width % 2
        self._grey = first.ndim == 2
        codec = cv2.VideoWriter.fourcc(*self.codec)
        with hide_native_messages():
            self._writer = cv2.VideoWriter(str(temporary), codec, self.fps, self._size[::-1], isColor=not self._grey)
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
