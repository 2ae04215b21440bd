"""The public detector: an image in, boxes in the pixels of that image out."""

import contextlib
import copy
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from danet.boxes import Detections
from danet.data.frame_sources import open_sources
from danet.data.image_folder import IMAGE_SUFFIXES
from danet.data.video import Frame
from danet.inference.batch_detector import BatchDetector
from danet.inference.predict import batches_of_equal_size
from danet.inference.preprocessing import Image, read_pixels
from danet.inference.stream import DetectionStream, FrameTracker
from danet.inference.tile_options import DEFAULT_OVERLAP, DEFAULT_TILE_EVERY
from danet.inference.tiling import parse_tiling

LIST_BATCH = 8
"""Images of a list that go through the network at once."""


class Detector(BatchDetector):
    """A trained network with its preprocessing and its thresholds.

    Args:
        model: a trained DANet or an OnnxNetwork. The detector runs ``model.deploy()``; the model does not change.
        score_threshold: detections have higher scores than this; None for the value that ``danet calibrate`` has stored
            in the metadata, or 0.5 if there is none.
        iou_threshold: non-maximum suppression drops a detection if its IoU with one of a higher score exceeds this.
        max_detections: maximum number of detections per image.
        input_size: (height, width) in pixels that every image is letterboxed to, or one number for a square. "native"
            keeps the size of each image. None scales images to about the area of the training images, if the metadata
            states it and the images are larger or smaller by more than the weights tolerate; a log message says so
            once.
        tile: (height, width) in pixels of overlapping tiles into which larger images are cut, or one number for
            squares; None does not cut. An image that is cut keeps its size, or is scaled so that a tile fits into
            ``input_size``; an image that fits into one tile is detected as without tiles.
        overlap: minimum overlap of neighbouring tiles, as a fraction of their side, from 0 to 0.9. Targets that are
            larger than the overlap are joined from parts.
        polarity: "white" (hot is bright), "black" (hot is dark), or "auto", which decides on the first images and may
            change later, see ``PolarityTracker``. "auto" has no effect if the metadata states no polarity, or "any";
            images are then used as they are.
        classes: names of the classes to report, or "all"; by default those that the metadata names as supported.
        metadata: what the weights file stores beside the weights.
        dtype: dtype of the network: torch.float32, torch.bfloat16, torch.float16, their names, or "auto", which chooses
            between float32 and bfloat16, see ``DANet.deploy``. With ``deploy=False`` and for ONNX files, "auto" is
            float32.
        deploy: False runs a copy of the DANet that is not fused, for comparison.

    Attributes:
        dtype: dtype of the network.
        dtype_reason: why "auto" chose this dtype; empty if the caller chose it, and if there was no choice
            (``deploy=False``, ONNX files).
        notify: function that is called with a log level and a line of text when images are scaled, lack the earlier
            frames of ``lags``, or a polarity was decided; by default the logger of this module. Without a logging
            setup, Python prints only the warnings: that images are scaled, inverted, or lack earlier frames.

    Raises:
        ValueError: a threshold does not lie between 0 and 1, or polarity, input_size, tile or overlap has a value that
            is not listed above.
        UserError: the model has no class of a name in ``classes``, or the metadata are not valid.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> detector = Detector(build_model(ModelConfig(name="danet_nano")), score_threshold=0.9)
        >>> detector(np.zeros((64, 96), np.uint8)).boxes.shape
        torch.Size([0, 4])
    """

    @overload
    def __call__(self, image: np.ndarray | torch.Tensor, *, tile: Any = None, overlap: Any = None) -> Detections: ...
    @overload
    def __call__(self, image: str | os.PathLike | int, *, tile: Any = None, overlap: Any = None) -> Any: ...
    @overload
    def __call__(self, image: Sequence[Image], *, tile: Any = None, overlap: Any = None) -> list[Detections]: ...
    def __call__(
        self,
        image: Image | int | Sequence[Image],
        *,
        tile: Sequence[int] | int | None = None,
        overlap: float | None = None,
    ) -> Any:
        """Detects in an image, a list of images, or the file of an image, a video or a folder.

        Args:
            image: one of:

                - a path of an image, of a video or of a folder of images
                - an array ``[H, W]`` or ``[H, W, 3]`` (BGR), or a torch tensor ``[H, W]``, ``[1, H, W]`` or
                  ``[3, H, W]`` (RGB): uint8, uint16, other whole numbers from 0, or floats from 0 to 1
                - a list of these
                - an array ``[N, H, W, 3]`` or ``[N, H, W, 1]``, or a tensor ``[N, 3, H, W]`` or ``[N, 1, H, W]``
            tile, overlap: as for ``Detector``, for this call; None for those of the detector. Of a video, not every
                frame is searched completely, see ``tile_every`` of ``stream``.

        Returns:
            ``Detections`` on the CPU, with boxes in pixels of the image; for several images, for a video and for a
            folder a list with one element per image or frame.

        Raises:
            TypeError: the image has another type or dtype.
            ValueError: the array has another shape or no pixels; or the source is a camera or a stream, which does not
                end: use ``stream``.
            UserError: the file is missing or is not a readable image or video.

        Example:
            >>> import danet
            >>> detector = danet.load()
            >>> [len(found) for found in detector([np.zeros((64, 96), np.uint8), torch.zeros(3, 48, 64)])]
            [0, 0]
            >>> len(detector(np.zeros((480, 640), np.uint8), tile=320))
            0
        """
        if tile is not None or overlap is not None:
            return self.with_tiles(tile, overlap)(image)
        if isinstance(image, (str, os.PathLike, int)):
            return self._detect_path(image)
        if isinstance(image, (list, tuple)):
            return self._detect_list(image)
        if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
            return self._detect_list(list(image))
        return self._detect_list([image])[0]

    @overload
    def stream(
        self,
        source: str | os.PathLike | int,
        *,
        batch: int = 1,
        tracker: None = None,
        tile: Any = None,
        overlap: Any = None,
        tile_every: int = DEFAULT_TILE_EVERY,
    ) -> Generator[tuple[Frame, Detections], None, None]: ...
    @overload
    def stream(
        self,
        source: str | os.PathLike | int,
        *,
        batch: int = 1,
        tracker: FrameTracker,
        tile: Any = None,
        overlap: Any = None,
        tile_every: int = DEFAULT_TILE_EVERY,
    ) -> Generator[tuple[Frame, Detections, Any], None, None]: ...
    def stream(
        self,
        source: str | os.PathLike | int,
        *,
        batch: int = 1,
        tracker: FrameTracker | None = None,
        tile: Sequence[int] | int | None = None,
        overlap: float | None = None,
        tile_every: int = DEFAULT_TILE_EVERY,
    ) -> Generator[tuple, None, None]:
        """Detects in the frames of a video, a folder, a camera or a stream, one after the other.

        Frames are decoded ahead of the network, at most a few. A live source never waits: if its frames come faster
        than they are processed, the oldest ones are dropped. Closing the iterator closes the source.

        Args:
            source: a path, the URL of a stream, or the number of a camera.
            batch: frames that go through the network at once; 1 for a camera.
            tracker: a ``danet.Tracker``, to follow the targets from frame to frame.
            tile, overlap: as for ``Detector``, for this source; None for those of the detector.
            tile_every: with tiles, every so many frames of a video are searched completely, and the frames between
                only around the targets; 1 searches every frame completely.

        Yields:
            ``(frame, detections)``, with a tracker ``(frame, detections, tracks)``; ``frame.image`` holds the pixels,
            ``frame.time`` the seconds since the start.

        Raises:
            UserError: the source cannot be opened or a file is not readable.

        Example:
            >>> import danet, cv2
            >>> _ = cv2.imwrite(str(getfixture("tmp_path") / "a.png"), np.zeros((48, 64), np.uint8))
            >>> [len(found) for frame, found in danet.load().stream(getfixture("tmp_path"))]
            [0]
            >>> [tracks for _, _, tracks in danet.load().stream(getfixture("tmp_path"), tracker=danet.Tracker())]
            [Tracks(0)]
        """
        # Errors are raised here, not at the first frame.
        detector = self.with_tiles(tile, overlap) if tile is not None or overlap is not None else self
        stream = DetectionStream(detector, batch=batch, tile_every=tile_every)
        return self._stream(open_sources([str(source)]), stream, tracker)

    @staticmethod
    def _stream(sources: list, stream: DetectionStream, tracker: FrameTracker | None) -> Generator[tuple, None, None]:
        for source in sources:
            frames: Any = stream.run(source) if tracker is None else stream.track(source, tracker)
            with contextlib.closing(frames):
                yield from frames

    def with_thresholds(self, *, score: float) -> "Detector":
        """A detector with the same network that reports all classes, with scores above ``score``.

        Raises:
            ValueError: ``score`` does not lie between 0 and 1.

        Example:
            >>> import danet
            >>> detector = danet.load()
            >>> sensitive = detector.with_thresholds(score=0.1)
            >>> sensitive.score_threshold, sensitive.model is detector.model
            (0.1, True)
        """
        if not 0 <= score <= 1:
            raise ValueError(f"Detector: score must lie between 0 and 1, got {score}")
        other = copy.copy(self)
        other.score_threshold = score
        other.reported_classes = self.classes
        other._is_reported = torch.ones(len(self.classes), dtype=torch.bool)
        other.begin_source()
        return other

    def with_tiles(self, tile: Sequence[int] | int | None = None, overlap: float | None = None) -> "Detector":
        """A detector with the same network that cuts images into tiles; None keeps the value of this detector.

        Raises:
            ValueError: a value is not valid, or there are no tiles to overlap.

        Example:
            >>> import danet
            >>> danet.load().with_tiles(320).tiling
            Tiling(size=(320, 320), overlap=0.2)
        """
        if tile is None and self.tiling is None:
            raise ValueError(f"Detector: overlap needs tile, got overlap {overlap} without")
        own_size, own_overlap = self.tiling or (None, DEFAULT_OVERLAP)
        other = copy.copy(self)
        try:
            other.tiling = parse_tiling(own_size if tile is None else tile, own_overlap if overlap is None else overlap)
        except ValueError as error:
            raise ValueError(f"Detector: {error}") from None
        other.preprocessor = copy.copy(self.preprocessor)
        other.preprocessor.tiling = other.tiling
        return other

    def select(self, found: Detections) -> Detections:
        """Those of ``found`` that this detector reports: of its classes, with scores above its threshold.

        Example:
            >>> import danet
            >>> detector = danet.load(score_threshold=0.5)
            >>> len(detector.select(detector.with_thresholds(score=0.1)(np.zeros((64, 96), np.uint8))))
            0
        """
        return found[(found.scores > self.score_threshold) & self._is_reported[found.labels]]

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        """Detects in several images at once; if their sizes differ, the smaller ones are padded."""
        return self.postprocess(*self.forward(*self.preprocess(images))) if images else []

    def _detect_path(self, path: str | os.PathLike | int) -> Any:
        text = str(path)
        if not Path(text).exists() and (text.isdecimal() or "://" in text):
            raise ValueError(
                f"Detector: {text} is a camera or a stream, which does not end; "
                f"use `for frame, found in detector.stream({path!r}):`"
            )
        if Path(text).is_dir() or (Path(text).is_file() and Path(text).suffix.lower() not in IMAGE_SUFFIXES):
            return [found for _, found in self.stream(text)]
        return self._detect_list([text])[0]

    def _detect_list(self, images: Sequence[Any]) -> list[Detections]:
        """Detects in a list of any length; images of equal size that follow each other form batches."""
        results = []
        pairs = ((image, read_pixels(image)) for image in images)
        for part in batches_of_equal_size(pairs, LIST_BATCH, lambda pair: pair[1].shape[:2]):
            for (image, array), found in zip(part, self.batch([array for _, array in part]), strict=True):
                found.image = image if isinstance(image, (str, os.PathLike)) else array
                results.append(found)
        return results
