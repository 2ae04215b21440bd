"""Images and videos with the detections drawn into them."""

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from danet.boxes import Detections
from danet.data.frame_sources import ImageFiles
from danet.data.video import Frame, Video
from danet.data.video_writer import VideoWriter
from danet.inference.pipeline import SerialExecutor
from danet.inference.video_format import choose_codec
from danet.utils.drawing import draw_boxes, enlarge
from danet.utils.errors import UserError
from danet.utils.image_io import EncodingError, to_display, write_image

MAX_WAITING_IMAGES = 2
"""Images that wait to be drawn and written in the background."""

LEGIBLE_SIDE_PIXELS = 480
"""The shorter side of an annotated frame at which its text is legible."""

MAX_AUTO_UPSCALE = 4

MAX_AUTO_SIDE_PIXELS = 4096
"""The longer side of an annotated frame is not enlarged beyond this: formats have limits (16,384 pixels in H.264)."""


def auto_upscale(height: int, width: int) -> float:
    """The smallest whole enlargement of a frame at which its text is legible.

    It is at most MAX_AUTO_UPSCALE, and less for a long frame, see MAX_AUTO_SIDE_PIXELS.

    Example:
        >>> auto_upscale(256, 320), auto_upscale(1080, 1920), auto_upscale(100, 1280), auto_upscale(100, 6000)
        (2.0, 1.0, 3.0, 1.0)
    """
    limit = min(MAX_AUTO_UPSCALE, MAX_AUTO_SIDE_PIXELS // max(height, width))
    return float(max(min(math.ceil(LEGIBLE_SIDE_PIXELS / min(height, width)), limit), 1))


class AnnotatedOutput:
    """Writes the frames of sources with their detections: a video for a video, an image for an image.

    Attributes:
        paths: the files that were written, or begun.
        skipped: number of images that are too large for the format of their files; each is reported on stderr.
        seconds: time for drawing and writing.

    Args:
        classes: names of the labels.
        show_scores: whether the score is drawn beside the class name.
        upscale: enlargement of the frames, so that small targets and their text are easier to read; None chooses it
            for each frame by ``auto_upscale``.
        background: whether a thread of its own draws and writes.

    Example:
        >>> import danet, numpy, tempfile
        >>> from pathlib import Path
        >>> from danet.data.frame_sources import ImageFiles
        >>> from danet.data.video import Frame
        >>> detector, image = danet.load(), numpy.zeros((64, 96), numpy.uint8)
        >>> output = AnnotatedOutput(detector.classes)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with output.open(ImageFiles("a.png", [Path("a.png")]), [Path(folder) / "a.png"]) as write:
        ...         write(Frame("a.png", 0, image), detector(image))
        >>> [path.name for path in output.paths]
        ['a.png']
    """

    def __init__(
        self, classes: Sequence[str], *, show_scores: bool = True, upscale: float | None = 1.0, background: bool = False
    ) -> None:
        self.classes = classes
        self.show_scores = show_scores
        self.upscale = upscale
        self.paths: list[Path] = []
        self.skipped = 0
        self.seconds = 0.0
        self._depth = MAX_WAITING_IMAGES if background else 0

    @contextlib.contextmanager
    def open(self, source: ImageFiles | Video, paths: Sequence[Path]) -> Iterator[Callable[[Frame, Detections], None]]:
        """Yields a function that writes a frame of ``source``; the end of the block finishes its files.

        Args:
            paths: the video of a Video, or a file for each image, see ``output_paths``.

        Raises:
            UserError: a file cannot be written; DiskFullError if the rest of a video does not fit on the disk.
        """
        # Find the file of an image by its name, because images that cannot be read are left out.
        images = {} if isinstance(source, Video) else dict(zip(map(str, source.paths), paths, strict=True))
        with contextlib.ExitStack() as stack:
            video = None
            if isinstance(source, Video):
                self.paths.append(paths[0])
                video = stack.enter_context(VideoWriter(self.paths[-1], source.fps, choose_codec(self.paths[-1])))
            executor = stack.enter_context(SerialExecutor(depth=self._depth))

            def write(frame: Frame, detections: Detections) -> None:
                executor.submit(self._write, frame, detections, images[frame.name] if video is None else video)

            yield write

    def _write(self, frame: Frame, detections: Detections, target: Path | VideoWriter) -> None:
        started = time.perf_counter()
        annotated = self.draw(frame.image, detections)
        if isinstance(target, VideoWriter):
            target.write(annotated)
        else:
            try:
                write_image(target, annotated)
                self.paths.append(target)
            except EncodingError as error:
                self.skipped += 1
                print(f"{error}; it is skipped", file=sys.stderr)
        self.seconds += time.perf_counter() - started

    def draw(self, image: np.ndarray, detections: Detections) -> np.ndarray:
        """The frame with its detections: uint8 BGR ``[H * upscale, W * upscale, 3]``."""
        upscale = auto_upscale(*image.shape[:2]) if self.upscale is None else self.upscale
        return draw_boxes(
            enlarge(to_display(image), upscale),
            detections.boxes.numpy() * upscale,
            detections.scores.tolist() if self.show_scores else None,
            detections.labels.tolist(),
            self.classes,
        )


def output_paths(sources: Sequence[ImageFiles | Video], out: Path, *, video_suffix: str = ".mp4") -> list[list[Path]]:
    """Paths of the annotated files of each source: ``out/clip.mp4``, ``out/image.png`` or ``out/folder/image.png``.

    Equal names get the endings _2, _3 and so on. Raises UserError if a file would replace a source.
    """
    paths = _UniquePaths(sources, out)
    outputs = []
    for source in sources:
        if isinstance(source, Video):
            outputs.append([paths.add(out, source.stem, video_suffix)])
            continue
        name = Path(source.name)
        folder = out / name.resolve().name if name.is_dir() else out
        # JPEG stays JPEG; every other format becomes PNG, which every viewer shows.
        suffixes = [path.suffix if path.suffix.lower() in (".jpg", ".jpeg") else ".png" for path in source.paths]
        outputs.append([paths.add(folder, path.stem, end) for path, end in zip(source.paths, suffixes, strict=True)])
    return outputs


def source_paths(sources: Sequence[ImageFiles | Video], out: Path, *, suffix: str) -> list[Path]:
    """Path of a file about each source, such as its tracks: ``out/clip.txt``, or ``out/folder.txt`` for its images.

    Equal names get the endings _2, _3 and so on, also if a folder and a video share one. Raises UserError if a file
    would replace a source.

    Example:
        >>> folders = [ImageFiles(name, [Path(name, "1.png"), Path(name, "2.png")]) for name in ("a/x", "b/x")]
        >>> [path.name for path in source_paths(folders, Path("out"), suffix=".txt")]
        ['x.txt', 'x_2.txt']
    """
    paths = _UniquePaths(sources, out)
    return [paths.add(out, _source_stem(source), suffix) for source in sources]


def _source_stem(source: ImageFiles | Video) -> str:
    """Name of a source without suffix; images of several folders have the name of the folder that contains these."""
    if isinstance(source, Video):
        return source.stem
    if Path(source.name).is_dir():
        return Path(source.name).resolve().name or "images"
    if len(source.paths) == 1:
        return source.paths[0].stem
    return Path(os.path.commonpath([path.parent.resolve() for path in source.paths])).name or "images"


class _UniquePaths:
    """Gives every file a path of its own, which is not that of a source."""

    def __init__(self, sources: Sequence[ImageFiles | Video], out: Path) -> None:
        self._out = out
        self._taken: set[Path] = set()
        self._inputs = {Path(source.name).resolve() for source in sources if isinstance(source, Video)}
        self._inputs |= {
            path.resolve() for source in sources if isinstance(source, ImageFiles) for path in source.paths
        }

    def add(self, folder: Path, stem: str, suffix: str) -> Path:
        names = (f"{stem}{'' if n == 1 else f'_{n}'}{suffix}" for n in itertools.count(1))
        path = next(folder / name for name in names if folder / name not in self._taken)
        if path.resolve() in self._inputs:
            raise UserError(f"--out {self._out}: the result would replace the source {path}")
        self._taken.add(path)
        return path
