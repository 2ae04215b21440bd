"""What a detector does with batches: preprocessing, the network in the right polarity, decoding."""

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from danet.boxes import Detections, area
from danet.data.image_domain import ImageDomain
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.inference.input_size import parse_input_size
from danet.inference.network_protocol import DeployableNetwork, Network
from danet.inference.polarity import TARGET_SCORE, Polarity, PolarityTracker
from danet.inference.preprocessing import Image, Placement, Preprocessor
from danet.inference.tile_options import DEFAULT_OVERLAP
from danet.inference.tiling import detect_in_tiles, parse_tiling
from danet.models import DANet
from danet.ops.common import dtype_name
from danet.utils.errors import UserError

DTYPE_NAMES = ("float32", "bfloat16", "float16")
DEFAULT_SCORE = 0.5
"""Score threshold of weights that ``danet calibrate`` has not calibrated."""

SUPPORTED_CLASSES = "supported_classes"
"""Key of the metadata under which the classes are listed that the weights detect reliably."""


class BatchDetector:
    """The base class of ``danet.inference.detector.Detector``, which states the arguments and attributes.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> detector = BatchDetector(build_model(ModelConfig(name="danet_nano")), score_threshold=0.9)
        >>> batch, geometry = detector.preprocess([torch.zeros(64, 96)])
        >>> len(detector.postprocess(*detector.forward(batch, geometry))[0])
        0
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
        dtype: torch.dtype | str = "auto",
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
        if max_detections < 1:
            raise ValueError(f"Detector: max_detections must be at least 1, got {max_detections}")
        network_dtype = parse_dtype(dtype)
        if polarity not in ("auto", "white", "black"):
            raise ValueError(f"Detector: polarity must be auto, white or black, got {polarity!r}")
        try:
            self.input_size = parse_input_size(input_size)
            self.tiling = parse_tiling(tile, overlap)
        except ValueError as error:
            raise ValueError(f"Detector: {error}") from None
        self.model: Network = (
            copy.deepcopy(model).eval().to(torch.float32 if network_dtype == "auto" else network_dtype)
            if not deploy and isinstance(model, DANet)
            else model.deploy(dtype=network_dtype)
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
        # Stays as it is if ``with_thresholds`` reports all classes: the unreliable ones would decide wrongly.
        self._decides_polarity = self._is_reported
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
        if self._tracker.is_decided and self._tracker.polarity != self._tracker.told:
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
        """The score of the best detection of a class that decides the polarity, 0 without one."""
        counts = self._decides_polarity.to(found.labels.device)[found.labels]
        return float(found.scores[counts].max()) if counts.any() else 0.0

    def _tell_polarity(self, tracker: PolarityTracker) -> None:
        is_first, tracker.told = tracker.told is None, tracker.polarity
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


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype | Literal["auto"]:
    """The dtype that a name of DTYPE_NAMES stands for; "auto" and a torch.dtype as they are.

    Example:
        >>> parse_dtype("bfloat16"), parse_dtype("auto")
        (torch.bfloat16, 'auto')
    """
    if dtype == "auto":
        return "auto"
    parsed = getattr(torch, dtype) if isinstance(dtype, str) and dtype in DTYPE_NAMES else dtype
    if not isinstance(parsed, torch.dtype):
        raise ValueError(f"Detector: dtype must be auto, {', '.join(DTYPE_NAMES)} or a torch.dtype, got {dtype!r}")
    return parsed
