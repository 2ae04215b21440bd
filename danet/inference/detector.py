"""The public detector: an image in, boxes in the pixels of that image out."""

import contextlib
import copy
import functools
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch

from danet.boxes import Detections, area
from danet.data.frame_sources import open_sources
from danet.data.image_domain import ImageDomain
from danet.data.image_folder import IMAGE_SUFFIXES
from danet.data.video import Frame
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.inference.input_size import parse_input_size
from danet.inference.network_protocol import DeployableNetwork, Network
from danet.inference.polarity import TARGET_SCORE, Polarity, PolarityTracker
from danet.inference.predict import batches_of_equal_size
from danet.inference.preprocessing import Image, Placement, Preprocessor, read_pixels
from danet.inference.stream import DetectionStream, FrameTracker
from danet.inference.tile_options import DEFAULT_OVERLAP, DEFAULT_TILE_EVERY
from danet.inference.tiling import detect_in_tiles, parse_tiling
from danet.models import DANet
from danet.ops.common import dtype_name
from danet.utils.errors import UserError

DEFAULT_SCORE = 0.5
"""Score threshold of weights that ``danet calibrate`` has not calibrated."""

LIST_BATCH = 8
"""Images of a list that go through the network at once."""

SUPPORTED_CLASSES = "supported_classes"
"""Key of the metadata under which the classes are listed that the weights detect reliably."""


class Detector:
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
        dtype: dtype of the network: torch.float32, torch.bfloat16, torch.float16, or "auto", which chooses between
            float32 and bfloat16, see ``DANet.deploy``. With ``deploy=False`` and for ONNX files, "auto" is float32.
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

    def __init__(
        self,
        model: DeployableNetwork,
        *,
        score_threshold: float | None = None,
        iou_threshold: float = 0.5,
        max_detections: int = 300,
        input_size: Sequence[int] | int | Literal["native"] | None = None,
        tile: Sequence[int] | int | None = None,
        overlap: float = DEFAULT_OVERLAP,
        polarity: Polarity | Literal["auto"] = "auto",
        classes: Sequence[str] | None = None,
        metadata: dict | None = None,
        dtype: torch.dtype | Literal["auto"] = "auto",
        deploy: bool = True,
    ) -> None:
        self.metadata = metadata or {}
        self.calibration = CalibratedThresholds.from_metadata(self.metadata)
        """Thresholds that ``danet calibrate`` has stored; None if there are none."""
        if score_threshold is None:
            score_threshold = DEFAULT_SCORE if self.calibration is None else self.calibration.detection_score
        for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"Detector: {name} must lie between 0 and 1, got {value}")
        if polarity not in ("auto", "white", "black"):
            raise ValueError(f"Detector: polarity must be auto, white or black, got {polarity!r}")
        try:
            self.input_size = parse_input_size(input_size)
            self.tiling = parse_tiling(tile, overlap)
        except ValueError as error:
            raise ValueError(f"Detector: {error}") from None
        self.model: Network = (
            copy.deepcopy(model).eval().to(torch.float32 if dtype == "auto" else dtype)
            if not deploy and isinstance(model, DANet)
            else model.deploy(dtype=dtype)
        )
        self.device, self.dtype = model.device, self.model.dtype
        self.dtype_reason: str = getattr(self.model, "dtype_reason", "")
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.notify: Callable[[int, str], None] = logging.getLogger(__name__).log
        self.domain = ImageDomain.from_metadata(self.metadata)
        """The images that the weights were trained for; None if the metadata do not state them."""
        self.reported_classes = self._choose_classes(classes)
        """Names of the classes that are reported."""
        self._is_reported = torch.tensor([name in self.reported_classes for name in self.classes])
        is_known = self.domain is not None and self.domain.polarity != "any"
        self.polarity = "white" if polarity == "auto" and not is_known else polarity
        self.begin_source()
        self.preprocessor = Preprocessor(
            self.model.config,
            self.input_size,
            self.domain,
            tiling=self.tiling,
            notify=lambda level, text: self.notify(level, text),
        )

    @property
    def dtype_note(self) -> str:
        """One line about the dtype that "auto" chose, and why; empty if there was no choice."""
        return f"network in {dtype_name(self.dtype)}: {self.dtype_reason}" if self.dtype_reason else ""

    @property
    def classes(self) -> list[str]:
        """Names of all classes of the network; ``Detections.labels`` are indices into this list."""
        return self.model.config.classes

    def begin_source(self) -> None:
        """Forgets the polarity that "auto" has decided; call it before the images of another camera."""
        self._tracker = PolarityTracker() if self.polarity == "auto" else None
        self._told_polarity: Polarity | None = None

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
            tile, overlap: as for ``Detector``, for this call; None for those of the detector.

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

        Example:
            >>> import danet
            >>> detector = danet.load()
            >>> sensitive = detector.with_thresholds(score=0.1)
            >>> sensitive.score_threshold, sensitive.model is detector.model
            (0.1, True)
        """
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

    @property
    def lags(self) -> list[float]:
        """Seconds before an image of the earlier frames that the network compares it with."""
        return self.model.config.lags

    def preprocess(
        self, images: Sequence[Image], past: Sequence[Mapping[float, Image]] | None = None
    ) -> tuple[torch.Tensor, list[Placement]]:
        """Turns images into a batch ``[N, C, H, W]`` of float32 for ``forward``, see ``Preprocessor``."""
        return self.preprocessor(images, past)

    def tell_missing_frames(self, lags: Sequence[float]) -> None:
        """Calls ``notify`` once with a line about lags for which a source has no earlier frames."""
        self.preprocessor.tell_missing_frames(lags)

    @torch.inference_mode()
    def forward(self, batch: torch.Tensor, geometry: list) -> tuple[Any, list]:
        """Runs the network on its device; returns its output for ``postprocess``, and ``geometry`` unchanged."""
        images = self._to_device(batch)
        if self._tracker is None:
            return self._run(images, geometry, "black" if self.polarity == "black" else "white"), geometry
        polarity = self._tracker.polarity
        return _AutoOutput(images, geometry, polarity, self._run(images, geometry, polarity)), geometry

    @torch.inference_mode()
    def postprocess(self, output: Any, geometry: list) -> list[Detections]:
        """Applies thresholds and NMS, maps the boxes to pixels of the images and clips them; returns CPU tensors."""
        decoded = self._choose_polarities(output) if isinstance(output, _AutoOutput) else self._decode(output)
        return [self._finish(found, place) for found, place in zip(decoded, geometry, strict=True)]

    @property
    def chooses_polarity(self) -> bool:
        """Whether the polarity of each image depends on the images before it."""
        return self._tracker is not None

    @torch.inference_mode()
    def in_polarity(self, batch: torch.Tensor, geometry: list, polarity: Polarity) -> list[tuple[float, Detections]]:
        """The detections of each image in one polarity, and the score for ``choose_polarity``."""
        decoded = self._decode(self._run(self._to_device(batch), geometry, polarity))
        return [(self._best_score(found), self._finish(found, at)) for found, at in zip(decoded, geometry, strict=True)]

    def choose_polarity(self, best_score: Callable[[Polarity], float]) -> Polarity:
        """The polarity of the next image, see ``PolarityTracker.choose``; "auto" only."""
        assert self._tracker is not None
        chosen = self._tracker.choose(best_score)
        if self._tracker.is_decided and self._tracker.polarity != self._told_polarity:
            self._tell_polarity(self._tracker)
        return chosen

    def _to_device(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.to(self.device, self.model.input_dtype, memory_format=torch.channels_last)

    def _run(self, images: torch.Tensor, geometry: list[Placement], polarity: Polarity) -> Any:
        """The output of the network for ``_decode``; in tiles, the detections themselves."""
        # Normalized images have their median at 0, so that changing the sign swaps black-hot and white-hot.
        images = -images if polarity == "black" else images
        tiles = [place.tiles for place in geometry]
        if all(each is None for each in tiles):
            return self.model(images)

        # Decode the tiles as they are computed: the outputs of all tiles of a large frame would take much memory.
        def detect(part: torch.Tensor) -> list[Detections]:
            return self._decode(self.model(part))

        return _TileOutput(detect_in_tiles(images, tiles, detect, max_detections=self.max_detections))

    def _decode(self, output: Any) -> list[Detections]:
        """Detections of all classes in pixels of the network's input.

        Their scores are above score_threshold; with the polarity "auto" above TARGET_SCORE, if that is lower.
        """
        if isinstance(output, _TileOutput):
            return output.detections
        lowest = self.score_threshold if self._tracker is None else min(self.score_threshold, TARGET_SCORE)
        return self.model.decode(
            output,
            score_threshold=lowest,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
        )

    def _choose_polarities(self, output: "_AutoOutput") -> list[Detections]:
        """The detections of each image in the polarity that the tracker chooses for it."""
        assert self._tracker is not None
        # Decode at once: on a GPU, the next call of the network overwrites its output.
        decoded = {output.polarity: self._decode(output.output)}

        def detect(index: int, polarity: Polarity) -> Detections:
            if polarity not in decoded:
                decoded[polarity] = self._decode(self._run(output.images, output.geometry, polarity))
            return decoded[polarity][index]

        def best_score(index: int, polarity: Polarity) -> float:
            return self._best_score(detect(index, polarity))

        results = []
        for index, place in enumerate(output.geometry):
            # A frame in which no tile is searched does not count for the polarity.
            is_searched = place.tiles is None or len(place.tiles) > 0
            chosen = self.choose_polarity(functools.partial(best_score, index)) if is_searched else output.polarity
            results.append(detect(index, chosen))
        return results

    def _best_score(self, found: Detections) -> float:
        """The score of the best detection of a reported class, 0 without one."""
        is_reported = self._is_reported.to(found.labels.device)[found.labels]
        return float(found.scores[is_reported].max()) if is_reported.any() else 0.0

    def _tell_polarity(self, tracker: PolarityTracker) -> None:
        is_first, self._told_polarity = self._told_polarity is None, tracker.polarity
        is_black = tracker.polarity == "black"
        meaning = "black, frames are inverted" if is_black else "white, frames are not inverted"
        reason = f"as the first {tracker.frames} frames show" if is_first else f"changed at frame {tracker.frames}"
        self.notify(
            logging.WARNING if is_black else logging.INFO,
            f"polarity {meaning}, {reason}; --polarity white or black (polarity= in Python) sets it",
        )

    def _finish(self, found: Detections, placement: Placement) -> Detections:
        """Maps the boxes to pixels of the image, and selects the detections to report."""
        found = Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu(), self.classes)
        if len(found) == 0:
            return found
        found.boxes = placement.to_image(found.boxes)
        is_inside = area(found.boxes) > 0  # not boxes that lie in the padding
        return found[is_inside & (found.scores > self.score_threshold) & self._is_reported[found.labels]]

    def _choose_classes(self, classes: Sequence[str] | None) -> list[str]:
        """The classes to report."""
        if classes is None:
            supported = self.metadata.get(SUPPORTED_CLASSES, self.classes)
            return [name for name in self.classes if name in supported] or self.classes
        names = [classes] if isinstance(classes, str) else list(classes)
        if names == ["all"] and "all" not in self.classes:
            return self.classes
        for name in names:
            if name not in self.classes:
                raise UserError(f"classes: {name!r} is no class of the model ({', '.join(self.classes)}) and not 'all'")
        return names


class _AutoOutput(NamedTuple):
    """What ``forward`` returns while the polarity is chosen per image."""

    images: torch.Tensor
    geometry: list[Placement]
    polarity: Polarity
    output: Any


class _TileOutput(NamedTuple):
    """What the network detected in the tiles of each image."""

    detections: list[Detections]
