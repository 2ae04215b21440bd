"""Detects in the sources of ``danet detect`` with the processes that ``torchrun`` started."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.boxes import Detections
from danet.data.frame_sources import ImageFiles
from danet.data.video import Frame, Video
from danet.inference.annotated_output import AnnotatedOutput
from danet.inference.detector import Detector
from danet.inference.predict import batches_of_equal_size
from danet.inference.shared_images import choose_candidates, find_candidates, own_parts
from danet.inference.stream import DetectionStream
from danet.utils import distributed
from danet.utils.errors import UserError
from danet.utils.image_io import read_image

Found = tuple[Frame, Any]
"""A frame without pixels, and its detections or its candidates in both polarities."""


class SharedSources:
    """Shares sources out over the processes: the images of a folder one by one, and videos as a whole.

    Every process writes the annotated files of its own share. The frames and detections of all processes are collected
    at the end, in the order in which one process finds them.

    Args:
        stream: the detector.
        sources, paths: the sources and the annotated files of each.
        output: writes the annotated files; None writes none.
        interrupt: wraps an iterator, and raises KeyboardInterrupt from it after a stop signal.
        max_pixels: larger images are refused.

    Attributes:
        has_failed_peer: whether frames are missing because of an error of another process, which prints it.

    Raises:
        UserError: a source is a camera or a stream, which cannot be shared.
    """

    def __init__(
        self,
        stream: DetectionStream,
        sources: Sequence[ImageFiles | Video],
        paths: Sequence[Sequence[Path]],
        output: AnnotatedOutput | None,
        interrupt: Callable[[Iterable], Iterator],
        *,
        max_pixels: int,
    ) -> None:
        live = [source.name for source in sources if isinstance(source, Video) and source.live]
        if live:
            raise UserError(
                f"{live[0]}: a live source cannot be shared by several processes; start one without torchrun"
            )
        assert isinstance(stream.detector, Detector)
        self._stream, self._detector, self._output = stream, stream.detector, output
        self._sources, self._paths, self._interrupt = sources, paths, interrupt
        self._max_pixels = max_pixels
        self.has_failed_peer = False

    def run(self) -> Generator[tuple[Frame, Detections], None, None]:
        """Yields the frames of all sources with their detections, without pixels, in every process.

        After the frames that were processed before it, an exception is raised again: a KeyboardInterrupt, or an error
        of a source or an annotated file. The other processes then end as usual, with ``has_failed_peer``.
        """
        own: list[dict[int, Found]] = [{} for _ in self._sources]
        failure: KeyboardInterrupt | UserError | OSError | None = None
        try:
            self._detect(own)
        except (KeyboardInterrupt, UserError, OSError) as error:
            failure = error
        troubles = [source.trouble for source in self._sources]
        shares = distributed.gather_objects((own, troubles, isinstance(failure, Exception)))
        self.has_failed_peer = any(has_failed for _, _, has_failed in shares) and not isinstance(failure, Exception)
        for number, source in enumerate(self._sources):
            source.trouble = next((share[1][number] for share in shares if share[1][number] is not None), None)
            merged = {index: found for share in shares for index, found in share[0][number].items()}
            frames = [merged[index] for index in sorted(merged)]
            if isinstance(source, ImageFiles):
                frames = self._finish_images(
                    source, self._paths[number], frames, {f.name for f, _ in own[number].values()}
                )
            yield from frames
        if failure is not None:
            raise failure

    def _detect(self, own: list[dict[int, Found]]) -> None:
        """Fills in the frames of this process by source and position."""
        videos = 0
        for number, source in enumerate(self._sources):
            if isinstance(source, ImageFiles):
                for index, found in self._interrupt(self._detect_images(source)):
                    own[number][index] = found
                continue
            videos += 1
            if videos % distributed.world_size() != distributed.rank():
                continue
            frames = enumerate(self._stream.run(source))
            if self._output is None:
                for index, (frame, detections) in self._interrupt(frames):
                    own[number][index] = _without_pixels(frame), detections
                continue
            with self._output.open(source, self._paths[number]) as write:
                for index, (frame, detections) in self._interrupt(frames):
                    write(frame, detections)
                    own[number][index] = _without_pixels(frame), detections

    def _detect_images(self, source: ImageFiles) -> Iterator[tuple[int, Found]]:
        """The images of this process; an unreadable one of several is reported and left out."""
        size = self._stream.batch
        parts = [list(enumerate(source.paths))[start : start + size] for start in range(0, len(source.paths), size)]
        for _, part in own_parts(parts):
            frames = []
            for index, path in part:
                try:
                    image = read_image(path, max_pixels=self._max_pixels)
                except UserError as error:
                    if len(source.paths) == 1:
                        raise
                    source.trouble = f"some of {len(source.paths)} images cannot be read"
                    print(f"{error}; it is skipped", file=sys.stderr)
                    continue
                frames.append((index, Frame(str(path), 0, image)))
            for batch in batches_of_equal_size(frames, size, lambda item: item[1].image.shape[:2]):
                tensor, geometry = self._detector.preprocess([frame.image for _, frame in batch])
                if self._detector.chooses_polarity:
                    results: list[Any] = find_candidates(self._detector, tensor, geometry, batch[0][0])
                else:
                    results = self._detector.postprocess(*self._detector.forward(tensor, geometry))
                for (index, frame), found in zip(batch, results, strict=True):
                    yield index, (_without_pixels(frame), found)

    def _finish_images(
        self, source: ImageFiles, paths: Sequence[Path], frames: list[Found], mine: set[str]
    ) -> list[tuple[Frame, Detections]]:
        """Chooses the polarity of all images, and writes the annotated images of this process."""
        detector = self._detector
        if detector.chooses_polarity:
            detector.begin_source()

            def compute(index: int, polarity: Any) -> tuple[float, Detections]:
                image = read_image(frames[index][0].name, max_pixels=self._max_pixels)
                return detector.in_polarity(*detector.preprocess([image]), polarity)[0]

            chosen = choose_candidates(detector, [candidates for _, candidates in frames], compute)
            frames = [(frame, found) for (frame, _), found in zip(frames, chosen, strict=True)]
        if self._output is not None:
            with self._output.open(source, paths) as write:
                for frame, detections in frames:
                    if frame.name in mine:
                        image = read_image(frame.name, max_pixels=self._max_pixels)
                        write(frame._replace(image=image), detections)
        return frames


def _without_pixels(frame: Frame) -> Frame:
    return frame._replace(image=np.zeros((0, 0), np.uint8))
