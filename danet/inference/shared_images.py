"""Shares the images of a detection out over the processes that ``torchrun`` started.

The results are those of one process: batches hold the same images, and where a detector chooses the polarity of a
camera by the images before, every process repeats this choice for all images in their order.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar, cast

from danet.boxes import Detections
from danet.data.coco_dataset import ImageRecord
from danet.inference.detector import Detector
from danet.inference.loading import choose_device
from danet.inference.polarity import FIRST_FRAMES, TARGET_SCORE, Polarity
from danet.inference.predict import DatasetDetector, Speed, batches_of_equal_size, predict, read_records
from danet.utils import distributed
from danet.utils.progress import track

T = TypeVar("T")
Candidates = dict[Polarity, tuple[float, Detections]]
"""The detections of an image by polarity, each with the score of the best one."""


def own_parts(parts: Sequence[T]) -> list[tuple[int, T]]:
    """The parts of this process, with their indices: every N-th one with N processes.

    Example:
        >>> own_parts(["a", "b"])
        [(0, 'a'), (1, 'b')]
    """
    world = distributed.world_size()
    return list(enumerate(parts))[distributed.rank() :: world]


def merge_parts(own: Sequence[tuple[int, T]]) -> list[T]:
    """The results of all parts in their order, from the results of each process.

    Example:
        >>> merge_parts([(0, "a"), (1, "b")])
        ['a', 'b']
    """
    merged = dict(item for items in distributed.gather_objects(list(own)) for item in items)
    return [merged[index] for index in sorted(merged)]


def is_shared() -> bool:
    """Whether there are several processes.

    Example:
        >>> is_shared()
        False
    """
    return distributed.world_size() > 1


class SharedOptions(Protocol):
    """The options of a command that ``torchrun`` may start in several processes."""

    weights: Any
    device: str
    quiet: bool


Options = TypeVar("Options", bound=SharedOptions)


@contextmanager
def shared_run(options: Options) -> Iterator[Options]:
    """Joins the processes that ``torchrun`` started, and yields the options for this one.

    Each process gets the device of its local rank, and only the first one prints. An error in one process ends all,
    see ``danet.utils.distributed.shared_errors``. Without ``torchrun``, the options are yielded unchanged.

    Example:
        >>> from danet.evaluation.evaluate_options import EvaluateOptions
        >>> with shared_run(EvaluateOptions("a.safetensors", "val.json", device="cpu")) as options:
        ...     print(options.device, options.quiet)
        cpu False
    """
    with (
        distributed.process_group(choose_device(options.device, options.weights)) as device,
        distributed.shared_errors(),
    ):
        if is_shared():
            quiet = options.quiet or distributed.rank() > 0
            options = replace(cast(Any, options), device=str(device), quiet=quiet)
        yield options


def find_candidates(detector: Detector, tensor: Any, geometry: list, first: int) -> list[Candidates]:
    """The detections of a batch in the polarities that ``choose_candidates`` will probably need.

    Args:
        detector: one that chooses the polarity.
        tensor, geometry: of ``detector.preprocess``.
        first: index of the batch's first image in its source.
    """
    white = detector.in_polarity(tensor, geometry, "white")
    found: list[Candidates] = [{"white": each} for each in white]
    if first < FIRST_FRAMES or any(score < TARGET_SCORE for score, _ in white):
        for each, black in zip(found, detector.in_polarity(tensor, geometry, "black"), strict=True):
            each["black"] = black
    return found


def choose_candidates(
    detector: Detector, candidates: Sequence[Candidates], compute: Callable[[int, Polarity], tuple[float, Detections]]
) -> list[Detections]:
    """Chooses the polarity of every image of a source in order, as one process does.

    Args:
        detector: one that chooses the polarity.
        candidates: of every image.
        compute: returns a candidate that is missing, from the index of the image and the polarity.
    """
    results = []
    for index, each in enumerate(candidates):

        def best_score(polarity: Polarity, index: int = index, each: Candidates = each) -> float:
            if polarity not in each:
                each[polarity] = compute(index, polarity)
            return each[polarity][0]

        results.append(each[detector.choose_polarity(best_score)][1])
    return results


def predict_shared(
    detector: DatasetDetector, records: Sequence[ImageRecord], batch: int = 8, *, quiet: bool = False
) -> tuple[list[Detections], Speed]:
    """As ``predict``, with the batches shared out over the processes; each process gets the results of all images.

    The times are summed over the processes, and decoding counts as a part of the network's time.

    Example:
        >>> import danet
        >>> predict_shared(danet.load(), [])[0]
        []
    """
    if not is_shared():
        return predict(detector, records, batch, quiet=quiet)
    batches = list(batches_of_equal_size(records, batch, lambda record: (record.height, record.width)))
    starts = [0, *itertools.accumulate(map(len, batches))]
    speed = Speed()
    own: list[tuple[int, list[Any]]] = []
    chooses = isinstance(detector, Detector) and detector.chooses_polarity
    for index, part in track(own_parts(batches), "detecting", quiet=quiet):
        started = time.perf_counter()
        tensor, geometry = read_records(detector, part)
        ready = time.perf_counter()
        if isinstance(detector, Detector) and chooses:
            own.append((index, find_candidates(detector, tensor, geometry, starts[index])))
        else:
            own.append((index, detector.postprocess(*detector.forward(tensor, geometry))))
        if len(own) > 1:
            speed.images += len(part)
            speed.read_and_preprocess += ready - started
            speed.network += time.perf_counter() - ready
    found: list[Any] = [each for part in merge_parts(own) for each in part]
    if isinstance(detector, Detector) and chooses:

        def compute(image: int, polarity: Polarity) -> tuple[float, Detections]:
            index = next(index for index in range(len(batches)) if starts[index + 1] > image)
            return detector.in_polarity(*read_records(detector, batches[index]), polarity)[image - starts[index]]

        found = choose_candidates(detector, found, compute)
    times = distributed.gather_objects(speed)
    total = Speed(*(sum(getattr(each, name) for each in times) for name in vars(speed)))
    return found, total
