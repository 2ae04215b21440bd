"""Opens the sources of frames: images, folders, patterns of files, videos, cameras and streams."""

import contextlib
import glob
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from danet.data.image_folder import IMAGE_SUFFIXES, image_size
from danet.data.video import Frame, Video
from danet.data.video_decoder import DEFAULT_FPS
from danet.utils.errors import UserError
from danet.utils.image_io import MAX_IMAGE_PIXELS, count_pages, read_image, read_pages

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv"}
    | {".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""Files of a folder that are opened as videos; a file that is named itself may have any suffix."""


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

    def frame_sizes(self) -> Iterator[tuple[int, int]]:
        """Yields (width, height) of each readable image in pixels."""
        for path in self.paths:
            with contextlib.suppress(UserError):
                yield image_size(path)

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
        self.size = next(read_pages(path, max_pixels=max_pixels)).shape[1::-1]

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
            a stream or a file, or the number of a webcam. Images are read before videos, each in the order of their
            names, in which numbers count as such: 2.png comes before 10.png.
        max_pixels: larger images and videos are refused.

    Raises:
        UserError: if the source is missing, unreadable, or a folder without images and videos; see also ``Video``.

    Example:
        >>> import numpy as np
        >>> from danet.utils.image_io import write_image
        >>> folder = getfixture("tmp_path") / "frames"
        >>> folder.mkdir()
        >>> write_image(folder / "a.png", np.zeros((48, 64), np.uint8))
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
        >>> import numpy as np
        >>> from danet.utils.image_io import write_image
        >>> folder = getfixture("tmp_path") / "clips"
        >>> folder.mkdir()
        >>> write_image(folder / "a.png", np.zeros((48, 64), np.uint8))
        >>> [source.total for source in open_sources([folder, f"{folder}/*.png"])]
        [1, 1]
    """
    opened: list[ImageFiles | Video] = []
    for source in sources:
        found = open_source(source, max_pixels=max_pixels)
        opened += found.parts if isinstance(found, SourceList) else [found]
    return opened


def _is_media(path: Path) -> bool:
    is_media = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return is_media and not path.name.startswith(".") and not path.is_dir()


def _natural_order(path: Path) -> tuple:
    """A key that sorts paths by their names, and the numbers in these by value: a2.png lies before a10.png.

    A point is a decimal point only after 9 or 10 digits, as in a time in seconds since 1970 (1700000000.25). Otherwise
    it separates two numbers: 1.10 comes after 1.9.
    """
    parts = (re.split(r"((?<![0-9])[0-9]{9,10}\.[0-9]+|[0-9]+)", part) for part in path.with_suffix("").parts)
    # Every second piece is a number.
    return [[Decimal(piece) if i % 2 else piece for i, piece in enumerate(pieces)] for pieces in parts], path


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
    for path in sorted(set(files), key=_natural_order):
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
