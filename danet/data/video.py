"""Reads frames from images, folders, videos, cameras and streams, and writes videos."""

import contextlib
import glob
import os
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from danet.data.video_decoder import DEFAULT_FPS, Decoder, count_packets, open_decoder
from danet.utils.errors import UserError
from danet.utils.files import atomic_path
from danet.utils.image_io import (
    MAX_IMAGE_PIXELS,
    check_size,
    count_pages,
    read_image,
    read_pages,
    silent_stderr,
    squeeze_grey,
    to_display,
)
from danet.utils.urls import mask_url

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv"}
    | {".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""Files of a folder that are opened as videos; a file that is named itself may have any suffix."""
RECORDED_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""A URL that ends so is a recording and not a camera, even if its length is unknown."""
RECONNECT_TIMEOUT_S = 30.0
"""How long to wait for a camera or stream that gives no frames."""
RECONNECT_INTERVAL_S = 0.5
"""Time between two attempts to open it again."""
MIN_FREE_DISK_BYTES = 16 << 20
"""Free space at which a video is finished, so that its index still fits on the disk."""
END_TOLERANCE_FRAMES = 2.5
"""The last frame counts as the end of a file if it lies at most this many frame durations before the stated end."""


class Frame(NamedTuple):
    """One image of a source."""

    name: str
    """Path of the image or video, URL of the stream without passwords, or ``camera0`` for camera 0."""
    index: int  # type: ignore[assignment]  # replaces tuple.index, which frames do not need
    """Frame number in the video, from 0; 0 for an image."""
    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""
    time: float | None = None
    """Seconds from the start of the video, as its container states it; for a camera or stream, since its first frame.
    None for an image."""


class ImageFiles:
    """An iterable of Frames from image files.

    If there are several files, one that cannot be read is reported on stderr and skipped.

    Attributes:
        name: the source as the user gave it.
        paths: the files in the order in which they are read.
        total: number of images.
        trouble: how many images or files cannot be read; None if there is none.

    Args:
        max_pixels: larger images are refused.
    """

    def __init__(self, name: str, paths: Sequence[Path], *, max_pixels: int = MAX_IMAGE_PIXELS):
        self.name = name
        self.paths = list(paths)
        self.trouble: str | None = None
        self._max_pixels = max_pixels

    @property
    def total(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        """Decodes images until one is readable, to find wrong input before a long run.

        Raises:
            UserError: no image can be decoded; the message is that of the first one.
        """
        first: UserError | None = None
        for path in self.paths:
            try:
                read_image(path, max_pixels=self._max_pixels)
                return
            except UserError as error:
                first = first or error
        if first is not None:
            raise first

    def __iter__(self) -> Iterator[Frame]:
        broken = 0
        for path in self.paths:
            try:
                image = read_image(path, max_pixels=self._max_pixels)
            except UserError as error:
                if len(self.paths) == 1:
                    raise
                broken += 1
                self.trouble = f"{broken} of {len(self.paths)} images cannot be read"
                print(f"{error}; it is skipped", file=sys.stderr)
                continue
            yield Frame(str(path), 0, image)


class Video:
    """An iterable of Frames from a video file, a camera or a stream; only a file can be iterated again.

    If the rest of a file cannot be decoded, iteration stops after the last frame that can. If a camera or stream gives
    no frame, it is opened again for up to RECONNECT_TIMEOUT_S seconds. Both cases are reported on stderr; ``trouble``
    states what is missing at the end.

    Args:
        source: path of a file, URL of a file or a stream, or number of a camera.
        max_pixels: a video with larger frames is refused.

    Attributes:
        total: number of frames that the file states; None if it is unknown, as for a camera. In a file with a variable
            frame rate it is an estimate.
        fps: frames per second; DEFAULT_FPS if it is unknown.
        live: whether the source is a camera or stream, whose frames are lost if they are not read in time. The URL of a
            file is not live: it states its length, or ends in a suffix of RECORDED_SUFFIXES.
        trouble: why frames are missing; None if none are.

    Raises:
        UserError: if the source cannot be opened or its first frame cannot be decoded.
    """

    def __init__(self, source: str | int, *, max_pixels: int = MAX_IMAGE_PIXELS):
        is_camera = isinstance(source, int)
        is_url = "://" in str(source)
        self.name = f"camera{source}" if is_camera else mask_url(str(source))
        self.trouble: str | None = None
        self._source = source
        decoder = open_decoder(source)
        if decoder is None:
            cannot_open = "no such camera" if is_camera else "this stream cannot be opened"
            problem = cannot_open if is_camera or is_url else "not a readable image or video"
            raise UserError(f"{mask_url(str(source))}: {problem}")
        first = decoder.read()
        if first is None:
            decoder.close()
            raise UserError(f"{self.name}: no frame of this video can be decoded")
        check_size(self.name, first.shape[1::-1], max_pixels)
        self.total = None if is_camera else decoder.total or None
        is_recorded = not is_camera and Path(_url_path(str(source))).suffix.lower() in RECORDED_SUFFIXES
        self.live = (is_camera or is_url) and self.total is None and not is_recorded
        self.fps = decoder.fps
        self._opened: tuple[Decoder, np.ndarray] | None = (decoder, first)
        if not is_camera and not is_url:  # of a folder with hundreds of videos only one is open at a time
            decoder.close()
            self._opened = None

    @property
    def stem(self) -> str:
        """A name for files about this video: that of the file without its suffix, or of the last part of the URL."""
        if "://" not in self.name:
            return Path(self.name).stem
        host, _, path = _url_path(self.name).rstrip("/").partition("/")
        name = Path(path).stem if path else host.rpartition("@")[2]
        return re.sub(r"[^\w.-]+", "_", name).strip("._") or "stream"

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        decoder, image = self._opened or self._reopen()
        self._opened = None
        started, seconds, longest_gap = time.monotonic(), 0.0, 0.0
        video_start = max(0.0, decoder.container_time() - decoder.time())
        try:
            while image is not None:
                now = time.monotonic() - started if self.live else decoder.time() or index / self.fps
                longest_gap = max(longest_gap, now - seconds)
                seconds = now
                yield Frame(self.name, index, squeeze_grey(image), seconds)
                index += 1
                image = decoder.read()
                if image is None and self.live:
                    decoder.close()
                    decoder, image = self._reconnect(decoder, index)
        finally:
            decoder.close()
        # Compare the time of the last frame with the stated end: the last frame may be shown as long as the longest
        # frame before it.
        if self.total is not None and index < self.total:
            tolerance = max(END_TOLERANCE_FRAMES / self.fps, longest_gap)
            self._report_missing(index, is_at_end=seconds + video_start + tolerance >= decoder.duration)

    def _reopen(self) -> tuple[Decoder, np.ndarray | None]:
        decoder = open_decoder(self._source, quiet=True)
        if decoder is None:
            raise UserError(f"{self.name}: this video cannot be opened again")
        return decoder, decoder.read()

    def _report_missing(self, count: int, *, is_at_end: bool) -> None:
        """Sets ``trouble`` if frames are missing of a file of which ``count`` frames were decoded.

        The number of frames that a container states is an estimate in Matroska and WebM, and too large if the frame
        rate varies. The file is complete if the last frame is at its stated end and every packet gave a frame (if
        packets can be counted).
        """
        problem = f"ends early: frame {count} of {self.total} cannot be decoded"
        if is_at_end:
            expected = count_packets(str(self._source)) if "://" not in self.name else None
            if expected is None or count >= expected:
                return
            problem = f"{expected - count} of {expected} frames cannot be decoded"
        self.trouble = problem
        print(f"{self.name}: {problem}", file=sys.stderr)

    def _reconnect(self, decoder: Decoder, index: int) -> tuple[Decoder, np.ndarray | None]:
        """Opens a camera or stream again until it gives an image; the image is None after RECONNECT_TIMEOUT_S."""
        last, seconds = f"frame {index - 1}", f"{RECONNECT_TIMEOUT_S:.0f} s"
        print(f"{self.name}: no image after {last}, trying to reconnect for {seconds}", file=sys.stderr)
        start = time.monotonic()
        while time.monotonic() - start < RECONNECT_TIMEOUT_S:
            time.sleep(RECONNECT_INTERVAL_S)
            opened = open_decoder(self._source, quiet=True)
            if opened is None:
                continue
            if (image := opened.read()) is not None:
                print(f"{self.name}: reconnected after {time.monotonic() - start:.1f} s", file=sys.stderr)
                return opened, image
            opened.close()
        self.trouble = f"connection lost after {last}"
        print(f"{self.name}: {self.trouble}", file=sys.stderr)
        return decoder, None


class ImageStack(Video):
    """An iterable of Frames from the pages of a TIFF, which is read as a video without times.

    Args:
        path: a TIFF with several pages.
        max_pixels: larger pages are refused.

    Raises:
        UserError: the first page cannot be decoded. If another one cannot be decoded, iteration ends, with a line on
            stderr and in ``trouble``.
    """

    def __init__(self, path: str | os.PathLike, *, max_pixels: int = MAX_IMAGE_PIXELS):
        self.name = str(path)
        self.live, self.trouble = False, None
        self.total, self.fps = count_pages(path), DEFAULT_FPS
        self._max_pixels = max_pixels
        next(read_pages(path, max_pixels=max_pixels))

    def __iter__(self) -> Iterator[Frame]:
        index = -1
        try:
            for index, image in enumerate(read_pages(self.name, max_pixels=self._max_pixels)):
                yield Frame(self.name, index, image)
        except UserError as error:
            self.trouble = f"ends early: page {index + 1} of {self.total} cannot be decoded"
            print(f"{error}; the rest of the file is skipped", file=sys.stderr)


class SourceList:
    """An iterable of the Frames of several sources, one after the other, such as the images and videos of a folder.

    Attributes:
        name: the folder or pattern as the user gave it.
        parts: the sources.
        total: number of frames of all sources; None if it is unknown for one of them.
        trouble: why frames of the first source with missing frames are missing; None if none are.
    """

    live = False

    def __init__(self, name: str, parts: Iterable["ImageFiles | Video"]):
        self.name = name
        self.parts = list(parts)

    @property
    def total(self) -> int | None:
        totals = [part.total for part in self.parts]
        return None if None in totals else sum(count or 0 for count in totals)

    @property
    def trouble(self) -> str | None:
        return next((f"{part.name}: {part.trouble}" for part in self.parts if part.trouble is not None), None)

    def __iter__(self) -> Iterator[Frame]:
        for part in self.parts:
            yield from part


def open_source(source: str | os.PathLike, *, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageFiles | Video | SourceList:
    """Opens a source of frames.

    Args:
        source: an image, a video, a folder of images and videos, a pattern of files such as ``clips/*.mp4``, the URL of
            a stream or a file, or the number of a webcam. Images are read in the order of their names, before videos.
        max_pixels: larger images and videos are refused.

    Raises:
        UserError: if the source is missing, unreadable, or a folder without images and videos; see also ``Video``.

    Example:
        >>> folder = getfixture("tmp_path") / "frames"
        >>> folder.mkdir()
        >>> _ = cv2.imwrite(str(folder / "a.png"), np.zeros((48, 64), np.uint8))
        >>> [frame.image.shape for frame in open_source(folder)]
        [(48, 64)]
    """
    text = str(source)
    if text.lower().startswith("file://"):
        text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    path = Path(text)
    if path.is_dir():
        return _open_files(text, [file for file in path.iterdir() if _is_media(file)], max_pixels)
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return Video(text, max_pixels=max_pixels)
        return _open_files(text, [path], max_pixels)
    if text.isdecimal():
        return Video(int(text), max_pixels=max_pixels)
    if "://" in text:
        return Video(text, max_pixels=max_pixels)
    if glob.has_magic(text):
        return _open_pattern(text, max_pixels)
    raise UserError(f"{text}: no such file or folder")


def open_sources(
    sources: Iterable[str | os.PathLike], *, max_pixels: int = MAX_IMAGE_PIXELS
) -> list[ImageFiles | Video]:
    """Opens several sources, see ``open_source``.

    The images of a folder become one source, and each of its videos another one.

    Example:
        >>> folder = getfixture("tmp_path") / "clips"
        >>> folder.mkdir()
        >>> _ = cv2.imwrite(str(folder / "a.png"), np.zeros((48, 64), np.uint8))
        >>> [source.total for source in open_sources([folder, f"{folder}/*.png"])]
        [1, 1]
    """
    opened: list[ImageFiles | Video] = []
    for source in sources:
        found = open_source(source, max_pixels=max_pixels)
        opened += found.parts if isinstance(found, SourceList) else [found]
    return opened


def _url_path(url: str) -> str:
    """Host and path of a URL, without its scheme and parameters."""
    return re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]


def _is_media(path: Path) -> bool:
    is_media = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return is_media and not path.name.startswith(".") and not path.is_dir()


def _open_pattern(pattern: str, max_pixels: int) -> ImageFiles | Video | SourceList:
    """Opens the files and folders that match a pattern; ``**`` stands for any number of folders."""
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = [path for path in found if _is_media(path)]
    if "**" not in Path(pattern).parts:
        files += [file for folder in found if folder.is_dir() for file in folder.iterdir() if _is_media(file)]
    if not found:
        raise UserError(f"{pattern}: no file or folder matches this pattern")
    return _open_files(pattern, files, max_pixels)


def _open_files(name: str, files: Sequence[Path], max_pixels: int) -> ImageFiles | Video | SourceList:
    """Opens images and videos; of several files, those that cannot be opened are reported and skipped."""
    images: list[Path] = []
    videos: list[Video] = []
    errors: list[UserError] = []
    for path in sorted(set(files)):
        suffix = path.suffix.lower()
        try:
            if suffix in (".tif", ".tiff") and count_pages(path) > 1:
                videos.append(ImageStack(path, max_pixels=max_pixels))
            elif suffix in IMAGE_SUFFIXES:
                images.append(path)
            else:
                videos.append(Video(str(path), max_pixels=max_pixels))
        except UserError as error:
            errors.append(error)
    parts: list[ImageFiles | Video] = [ImageFiles(name, images, max_pixels=max_pixels)] if images else []
    parts += videos
    if not parts and errors:
        raise errors[0]
    if not parts:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{name}: no images in this folder, and no videos (images are {suffixes})")
    for problem in errors:
        print(f"{problem}; it is skipped", file=sys.stderr)
        parts[0].trouble = f"{len(errors)} files cannot be read"
    return parts[0] if len(parts) == 1 else SourceList(name, parts)


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
        writer.write(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if self._grey else picture)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None or (self.frames and issubclass(kind, (KeyboardInterrupt, UserError))):
            self._pending_file.close()
        else:
            self._pending_file.__exit__(kind, error, trace)

    def _open(self, first: np.ndarray) -> cv2.VideoWriter:
        height, width = first.shape[:2]
        temporary = self._pending_file.enter_context(atomic_path(self.path))
        self._size = height + height % 2, width + width % 2
        self._grey = first.ndim == 2
        codec = cv2.VideoWriter.fourcc(*self.codec)
        with silent_stderr:
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
