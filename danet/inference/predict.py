"""Runs a detector over a dataset and measures the time of each step."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from danet.boxes import Detections
from danet.data.coco_dataset import ImageRecord
from danet.data.temporal import choose_frames
from danet.inference.tiling import Tiling
from danet.utils.errors import UserError
from danet.utils.progress import track

T = TypeVar("T")


class DatasetDetector(Protocol):
    """What ``predict`` runs: a ``Detector`` or a ``LocalContrastDetector``."""

    device: torch.device

    @property
    def lags(self) -> Sequence[float]: ...
    def preprocess(self, images: list, past: list | None = None, /) -> tuple[torch.Tensor, list]: ...
    def forward(self, batch: torch.Tensor, geometry: list, /) -> tuple[Any, list]: ...
    def postprocess(self, output: Any, geometry: list, /) -> list[Detections]: ...


class FrameDetector(DatasetDetector, Protocol):
    """What a ``DetectionStream`` runs: a ``Detector``."""

    score_threshold: float
    reported_classes: list[str]
    tiling: Tiling | None

    def begin_source(self) -> None: ...
    def tell_missing_frames(self, lags: Sequence[float], /) -> None: ...
    def with_thresholds(self, *, score: float) -> "FrameDetector": ...
    def select(self, found: Detections, /) -> Detections: ...


@dataclass
class Speed:
    """Seconds of each step for ``images`` images, without the first batch of a run, which warms up."""

    images: int = 0
    read_and_preprocess: float = 0.0
    network: float = 0.0
    decode: float = 0.0

    def to_json(self, method: str) -> dict:
        """Milliseconds per image of each step, images per second with and without reading, and the ``method``."""
        if not self.images:
            return {"method": method, "images": 0}
        parts = {name: getattr(self, name) for name in ("read_and_preprocess", "network", "decode")}
        return {
            "method": method,
            "images": self.images,
            "milliseconds_per_image": {name: 1000.0 * seconds / self.images for name, seconds in parts.items()},
            "fps": self.images / sum(parts.values()),
            "fps_network_and_decode": self.images / (self.network + self.decode),
        }


def predict(
    detector: DatasetDetector, records: Sequence[ImageRecord], batch: int = 8, *, quiet: bool = False
) -> tuple[list[Detections], Speed]:
    """Detects in every image; up to ``batch`` successive images of equal size go through the network at once.

    Raises:
        UserError: an image cannot be read, or its size differs from the annotated size.

    Example:
        >>> import danet
        >>> predictions, speed = predict(danet.load(), [])
        >>> predictions, speed.images
        ([], 0)
    """
    predictions: list[Detections] = []
    speed = Speed()
    batches = list(batches_of_equal_size(records, batch, lambda record: (record.height, record.width)))
    for number, part in enumerate(track(batches, "detecting", quiet=quiet)):
        started = time.perf_counter()
        tensor, geometry = read_records(detector, part)
        ready = time.perf_counter()
        output = detector.forward(tensor, geometry)
        if detector.device.type == "cuda":
            torch.cuda.synchronize(detector.device)
        computed = time.perf_counter()
        predictions += detector.postprocess(*output)
        if number > 0:
            speed.images += len(part)
            speed.read_and_preprocess += ready - started
            speed.network += computed - ready
            speed.decode += time.perf_counter() - computed
    return predictions, speed


def read_records(detector: DatasetDetector, records: Sequence[ImageRecord]) -> tuple[torch.Tensor, list]:
    """Preprocesses the images of records of equal size.

    Raises:
        UserError: an image cannot be read, or its size differs from the annotated size.

    Example:
        >>> import danet, numpy
        >>> from danet.utils.image_io import write_image
        >>> path = getfixture("tmp_path") / "a.png"
        >>> write_image(path, numpy.zeros((48, 64), numpy.uint8))
        >>> record = ImageRecord(path, 64, 48, numpy.zeros((0, 4)), [], numpy.zeros(0, bool))
        >>> read_records(danet.load(input_size="native"), [record])[0].shape[2:]
        torch.Size([48, 64])
    """
    past = [choose_frames(record.past, detector.lags) for record in records]
    tensor, geometry = detector.preprocess([record.path for record in records], past)
    for record, (height, width, *_) in zip(records, geometry, strict=True):
        if (height, width) != (record.height, record.width):
            annotated = f"{record.width} x {record.height}"
            raise UserError(f"{record.path}: the image is {width} x {height}, its annotation says {annotated}")
    return tensor, geometry


def batches_of_equal_size(items: Iterable[T], batch: int, size: Callable[[T], tuple]) -> Iterator[list[T]]:
    """Up to ``batch`` successive images of equal ``size``: padding would make a result depend on the other images.

    Example:
        >>> list(batches_of_equal_size(["a", "b", "c", "de"], 2, size=lambda text: (len(text),)))
        [['a', 'b'], ['c'], ['de']]
    """
    for _, group in itertools.groupby(items, key=size):
        while part := list(itertools.islice(group, batch)):
            yield part
