"""Training samples: several datasets as one, augmentation, batches, and the order they come in.

A sample depends on (seed, epoch, index) alone and the order on (seed, epoch) alone, never on a worker
process or on what was loaded before. So a run can be continued at any step, split over any number of
processes, and still see the same data.
"""

import hashlib
import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from danet.data.class_map import apply_class_map
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.data.normalize import intensity_range, normalize
from danet.data.scales import ScaleBucket
from danet.data.shared_records import SharedRecords
from danet.data.transforms import Annotated, Augmentation, cut, vary_frame
from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.malloc import trim_malloc

DISTRACTOR = -1
MINIMUM_SIZE = 64


@dataclass
class DataSource:
    """A COCO dataset as a part of the training set."""

    path: str
    """COCO json, or a folder that holds annotations.json or exactly one json."""

    weight: float = 1.0
    """How often an epoch shows each image of this dataset: 1 once, 2 twice, 0.5 every other epoch or so."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names of categories; those renamed to "ignore" become regions that count neither way."""


class Sample(NamedTuple):
    """One image as the network sees it, and what is on it."""

    image: Tensor
    """float32 [C, H, W], normalised."""
    boxes: Tensor
    """float32 [M, 4] (x0, y0, x1, y1) in pixels."""
    labels: Tensor
    """int64 [M], index of the class, or -1 for a distractor."""
    ignore: Tensor
    """bool [M], regions in which nothing is learned."""


class Batch(NamedTuple):
    """N samples: images padded to one size, the rest as lists over the images."""

    images: Tensor
    """float32 [N, C, H, W]."""
    boxes: list[Tensor]
    labels: list[Tensor]
    ignore: list[Tensor]

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        rest = ([t.to(device, non_blocking=True) for t in tensors] for tensors in self[1:])
        return Batch(self.images.to(device, non_blocking=True), *rest)


def load_source(source: DataSource | str) -> list[ImageRecord]:
    """Reads a dataset and applies its class map. A bare path stands for a source without one."""
    if isinstance(source, str):
        source = DataSource(source)
    if not 0 <= source.weight < float("inf"):
        raise UserError(f"{source.path}: weight must be 0 or more, got {source.weight}")
    dataset = load_coco(source.path)
    if not dataset.records:
        raise UserError(f"{dataset.path}: no images")
    unknown = [name for name in source.class_map if name not in dataset.categories]
    if unknown:
        known = ", ".join(dataset.categories)
        raise UserError(f"{dataset.path}: class_map renames {unknown[0]!r}, which is no category (there are: {known})")
    return [apply_class_map(record, source.class_map) for record in dataset.records]


def _select(
    source: DataSource | str, records: Sequence[ImageRecord], bucket: ScaleBucket, augmentation: Augmentation
) -> list[ImageRecord]:
    """Selects the images that the bucket accepts."""
    accepted = [record for record in records if bucket.accepts(record, augmentation.scale)]
    if not accepted:
        path = source if isinstance(source, str) else source.path
        raise UserError(f"{path}: every image shows a {bucket.target}, none of them {bucket}")
    return accepted


class DetectionDataset(Dataset):
    """Several sources as one set of samples.

    ``dataset[epoch, index]`` is a ``Sample``. An index counts images over all sources; beyond the last
    image it starts over, so that repetitions of an image within an epoch are augmented differently.
    ``dataset[index]`` is the image in epoch 0, and an IndexError beyond the last image.

    Args:
        sources: where the images come from. A category that is not among ``classes`` is a distractor.
        classes: names of the model's classes; each must have a box in some source of a weight above 0.
        channels: channels of the network's input.
        augmentation: how samples are varied.
        seed: of the augmentation.
        cache_bytes: decoded images are kept in memory until they fill this much.
        bucket: take the images and boxes of one scale, see ``ScaleBucket``; None takes all.
    """

    def __init__(
        self,
        sources: Sequence[DataSource | str],
        classes: Sequence[str],
        *,
        channels: int = 1,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        bucket: ScaleBucket | None = None,
    ) -> None:
        self.classes = list(classes)
        self.channels = channels
        self.augmentation = augmentation or Augmentation.off()
        self.bucket = bucket
        loaded = [load_source(source) for source in sources]
        if bucket is not None:
            pairs = zip(sources, loaded, strict=True)
            loaded = [_select(source, records, bucket, self.augmentation) for source, records in pairs]
        self.sizes = [len(records) for records in loaded]
        self.weights = [1.0 if isinstance(source, str) else source.weight for source in sources]
        self.seed = seed
        self.cache_bytes = cache_bytes
        self._cache: dict[int, np.ndarray] = {}

        self._shown = np.flatnonzero(np.repeat(np.array(self.weights) > 0, self.sizes))
        shown = (r for records, weight in zip(loaded, self.weights, strict=True) if weight > 0 for r in records)
        present = {name for r in shown for name, skip in zip(r.names, r.ignore, strict=True) if not skip}
        self.records = SharedRecords(itertools.chain.from_iterable(loaded))
        del loaded, shown
        trim_malloc()  # before loader processes inherit it
        missing = [name for name in self.classes if name not in present]
        if missing:
            known = ", ".join(sorted(present)) or "no boxes"
            raise UserError(f"model.classes: the training data has no box named {missing[0]!r} (it has: {known})")

    def __len__(self) -> int:
        """Images in all sources."""
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, self._checked(key))
        rng = np.random.default_rng([self.seed, epoch, index])
        donor = self._annotated(int(rng.choice(self._shown))) if self.augmentation.copy_paste else None
        frame = vary_frame(self._annotated(index % len(self)), rng, self.augmentation, donor)
        image, boxes, labels, ignore = self._cut(frame, rng)
        return Sample(
            torch.from_numpy(normalize(image, self.channels, intensity_range(frame.image))),
            torch.from_numpy(boxes),
            torch.from_numpy(labels),
            torch.from_numpy(ignore),
        )

    def fingerprint(self) -> str:
        """Changes with the images' names, their annotations, the sources' order and weights."""
        digest = hashlib.sha256(repr((self.sizes, self.weights)).encode())
        for r in self.records:
            digest.update(repr((r.path.name, r.width, r.height, r.names)).encode())
            digest.update(r.boxes.tobytes() + r.ignore.tobytes())
        return f"{len(self)} images, {digest.hexdigest()[:12]}"

    def _cut(self, frame: Annotated, rng: np.random.Generator) -> Annotated:
        if self.bucket is None:
            return cut(frame, rng, self.augmentation)
        target = self.classes.index(self.bucket.target)
        sample = cut(frame, rng, self.bucket.limit_scale(frame, frame.labels == target, self.augmentation, rng))
        other = (sample.labels == target) & ~self.bucket.contains(sample.boxes)
        return sample._replace(ignore=sample.ignore | other)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a dataset of {len(self)} images")
        return index % len(self)

    def _annotated(self, index: int) -> Annotated:
        record = self.records[index]
        labels = [self.classes.index(name) if name in self.classes else DISTRACTOR for name in record.names]
        return Annotated(self._image(index), record.boxes, np.array(labels, np.int64), record.ignore)

    def _image(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        record = self.records[index]
        image = read_image(record.path)
        if image.shape[:2] != (record.height, record.width):
            stored = f"{image.shape[1]} x {image.shape[0]}"
            raise UserError(f"{record.path}: is {stored} pixels, its json says {record.width} x {record.height}")
        if self.channels == 1 and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # before augmentation, which then has a third of the work
        if self.cache_bytes >= image.nbytes:
            self.cache_bytes -= image.nbytes
            self._cache[index] = image
        return image


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads the images at the right and bottom with 0, the normalised median, to the largest of the batch.

    At least to MINIMUM_SIZE: on less, the deepest stage has too few positions for batch norm.
    Each process pads to the largest image of its own part of the batch, so that several processes do
    exactly what one does only with images of one size, such as crops.
    """
    height, width = (max(MINIMUM_SIZE, *(s.image.shape[axis] for s in samples)) for axis in (1, 2))
    images = torch.zeros(len(samples), samples[0].image.shape[0], height, width)
    for padded, sample in zip(images, samples, strict=True):
        padded[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(images, [s.boxes for s in samples], [s.labels for s in samples], [s.ignore for s in samples])


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The batches of all epochs, as lists of (epoch, index) for ``DetectionDataset``.

    An epoch shows ``round(weight * size)`` images of every source in an order that only seed and epoch
    decide, cut into batches of exactly ``batch`` images: the last incomplete batch is left out, and
    fewer images than a batch are repeated. Rank r of W takes every W-th image of a batch from the r-th
    on, so that the ranks' parts make up the batch of a single process.

    Args:
        sizes, weights: of the sources, see ``DataSource``.
        batch: images a step over all ranks, a multiple of ``world_size``.
        epochs: how many to produce.
        start_step: batches already done, counted from the start of epoch 0.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        batch: int,
        epochs: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        self.sizes = list(sizes)
        self.counts = [round(weight * size) for weight, size in zip(weights, sizes, strict=True)]
        if not sum(self.counts):
            raise UserError("data: all weights are 0, or so small that no image is left")
        if batch < 1 or batch % world_size:
            raise UserError(f"batch must be a positive multiple of the {world_size} processes, got {batch}")
        self.batch = batch
        self.steps_per_epoch = max(1, sum(self.counts) // batch)
        self.total_steps = epochs * self.steps_per_epoch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first_batch = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.total_steps // self.steps_per_epoch):
            order = self.order(epoch)
            for batch in order[first_batch:, self.rank :: self.world_size].tolist():
                yield [(epoch, index) for index in batch]
            first_batch = 0

    def order(self, epoch: int) -> np.ndarray:
        """Image indices of all batches of an epoch, int64 ``[steps_per_epoch, batch]``."""
        rng = np.random.default_rng([self.seed, epoch])
        total = sum(self.sizes)
        chosen, offset = [], 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            for repetition in range(-(-count // size)):
                permutation = rng.permutation(size)[: count - repetition * size]
                chosen.append(repetition * total + offset + permutation)
            offset += size
        shuffled = rng.permutation(np.concatenate(chosen))
        return np.resize(shuffled, (self.steps_per_epoch, self.batch))


def make_loader(
    dataset: DetectionDataset, sampler: EpochSampler, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Yields the ``Batch`` of every step of ``sampler``, the same for any number of worker processes."""
    if workers:
        # A forked process waits forever for OpenCV's threads, which exist only in its parent.
        cv2.setNumThreads(1)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=pin_memory,
    )


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent finishes its step and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def default_workers(processes: int = 1) -> int:
    """Loader processes for each of ``processes`` training processes: none where cores are few, at most 8."""
    cores = os.cpu_count() or 1
    return 0 if cores < 4 else min(8, cores // 2 // processes)
