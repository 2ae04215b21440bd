"""Frames in from images, folders, videos and webcams; annotated videos out."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import atomic_path
from danet.utils.image_io import read_image, squeeze_grey, to_display

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"})
DEFAULT_FPS = 25.0
RETURN = 30.0
"""Seconds that a camera may be away; RETRY of them between attempts to open it."""
RETRY = 0.5
RESERVE = 16 << 20
"""Bytes left free on a disk: a video is finished while there is room for its index."""


class Frame(NamedTuple):
    """One image of a source."""

    name: str
    """Path of the image or video, ``camera0`` for a webcam."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a frame for
    """Frame number in the video from 0; 0 for an image."""
    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""


class ImageFiles:
    """The images of a folder in the order of their names, or a single image. Iterates over Frames."""

    def __init__(self, name: str, paths: Sequence[Path]):
        self.name = name
        self.paths = list(paths)

    @property
    def total(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        """Raises UserError naming the first image that cannot be decoded: better now than in an hour."""
        for path in self.paths:
            read_image(path)

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            yield Frame(str(path), 0, read_image(path))


class Video:
    """A video file, a webcam or a stream. Iterates over Frames, once.

    A file that ends before the number of frames it announces gives what decodes. A camera that goes away is waited for,
    up to RETURN seconds. Both are told in a line on stderr, and ``trouble`` says what is missing at the end.

    Attributes:
        total: number of frames the file announces; None for a webcam or where it is unknown.
        fps: frames a second; DEFAULT_FPS where it is unknown.
        live: a webcam or a stream, which does not wait for whoever reads it.
        trouble: why frames are missing; None if all came.
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
                    image = self._come_back(index)
        finally:
            self._capture.release()
        if self.total is not None and index < self.total:
            self.trouble = f"ends early: frame {index} of {self.total} cannot be decoded"
            print(f"{self.name}: {self.trouble}", file=sys.stderr)

    def _read(self) -> np.ndarray | None:
        found, image = self._capture.read()
        return image if found else None

    def _come_back(self, index: int) -> np.ndarray | None:
        """The next image of a camera or stream that gave none."""
        print(f"{self.name}: no picture after frame {index - 1}, waiting {RETURN:.0f} s for it", file=sys.stderr)
        gone = time.monotonic()
        while time.monotonic() - gone < RETURN:
            self._capture.release()
            time.sleep(RETRY)
            self._capture = cv2.VideoCapture(self._source)
            image = self._read() if self._capture.isOpened() else None
            if image is not None:
                print(f"{self.name}: back after {time.monotonic() - gone:.1f} s", file=sys.stderr)
                return image
        self.trouble = f"gone after frame {index - 1}"
        print(f"{self.name}: {self.trouble}", file=sys.stderr)
        return None


def open_source(source: str | os.PathLike) -> ImageFiles | Video:
    """Opens an image, a folder of images, a video file, a stream (a URL) or, for a number that is no file, a webcam.

    Raises UserError naming the source if there is nothing to read.
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
    """What was written up to here is kept."""


class VideoWriter:
    """Writes an MP4 video (codec mp4v) that appears under its name when the ``with`` block ends.

    Ctrl-C and a full disk finish it too, so that what was recorded plays; any other exception leaves nothing behind.
    The first frame sets size and colour (``[H, W]``: a grey video); frames of another size are letterboxed
    to it. Odd sizes get one black row or column, since the codec would cut one off. Without a frame no
    file is made.

    Args:
        path: the file, ending in ``.mp4``.
        fps: frames a second.

    Raises:
        UserError: naming ``path``, if the codec or the file cannot be opened.
        DiskFullError: from ``write``, with RESERVE bytes left.
    """

    def __init__(self, path: str | os.PathLike, fps: float = DEFAULT_FPS):
        self.path = Path(path)
        self.fps = fps
        self.frames = 0
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._grey = False
        self._file = contextlib.ExitStack()

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, image: np.ndarray) -> None:
        """Appends an image ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""
        writer = self._writer or self._open(image)
        if shutil.disk_usage(self.path.parent).free < RESERVE:
            raise DiskFullError(f"{self.path}: the disk is full; the video ends after {self.frames} frames")
        self.frames += 1
        picture = fit_picture(to_display(image), *self._size)
        # As colour, the codec's rounding would tint grey frames.
        writer.write(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if self._grey else picture)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None or issubclass(kind, (KeyboardInterrupt, DiskFullError)):
            self._file.close()
        else:
            self._file.__exit__(kind, error, trace)

    def _open(self, first: np.ndarray) -> cv2.VideoWriter:
        height, width = first.shape[:2]
        temporary = self._file.enter_context(atomic_path(self.path))
        self._size = height + height % 2, width + width % 2
        self._grey = first.ndim == 2
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(temporary), codec, self.fps, self._size[::-1], isColor=not self._grey)
        if not self._writer.isOpened():
            raise UserError(f"{self.path}: OpenCV cannot write MP4 video here (codec mp4v)")
        return self._writer


def fit_picture(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fits a BGR image into ``height`` x ``width``: shrunk if too large, never enlarged, centred on black."""
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
