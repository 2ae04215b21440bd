"""Training data: the dataset of samples, and the loader of batches in the order of an ``EpochSampler``.

A sample depends only on the seed, the epoch and its index, and the order of an epoch only on the seed and the epoch. So
a run sees the same data if it resumes at any step or uses another number of processes.
"""

import functools
import hashlib
import itertools
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from danet.data.batch_loader import BatchLoader
from danet.data.class_map import apply_class_map
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.data.data_options import Augmentation, DataSource
from danet.data.epoch_sampler import EpochSampler
from danet.data.image_record import annotation_bytes
from danet.data.normalize import intensity_range, normalize
from danet.data.scales import SizeRange
from danet.data.shared_records import SharedRecords
from danet.data.temporal import MissingFrames, align, choose_frames, extra_channels, to_grey
from danet.data.transforms import AnnotatedImage, vary_frame, warp_and_crop
from danet.utils.errors import UserError
from danet.utils.image_io import read_image
from danet.utils.malloc import trim_malloc
from danet.utils.threads import available_cores

DISTRACTOR = -1
"""Label of a box whose category is not a class of the model."""
MINIMUM_SIZE = 64
"""Minimum height and width of a training batch in pixels, so that batch norm has several cells in the last stage.

The stride of this stage is 32. In inference, ``danet.models.danet.MINIMUM_SIZE`` = 32 is enough.
"""


class Sample(NamedTuple):
    """One image as the network sees it, and its boxes."""

    image: Tensor
    """float32 [C, H, W], output of ``normalize``."""
    boxes: Tensor
    """float32 [M, 4] (x0, y0, x1, y1) in pixels."""
    labels: Tensor
    """int64 [M], index of the class, or DISTRACTOR (-1)."""
    ignore: Tensor
    """bool [M], True for ignore regions."""


class Batch(NamedTuple):
    """N samples: images padded to a common size, and lists with one tensor per image."""

    images: Tensor
    """float32 [N, C, H, W]."""
    boxes: list[Tensor]
    labels: list[Tensor]
    ignore: list[Tensor]

    def to(self, device: torch.device) -> "Batch":
        """Copies the batch to ``device``."""
        rest = ([t.to(device, non_blocking=True) for t in tensors] for tensors in self[1:])
        return Batch(self.images.to(device, non_blocking=True), *rest)


def load_source(source: DataSource | str, split: str = "train") -> list[ImageRecord]:
    """Reads a dataset and applies its class map.

    Args:
        source: the dataset; a path means ``DataSource(path)``.
        split: which part of a folder or a YOLO dataset with several splits, see ``load_coco``.

    Raises:
        UserError: if the dataset cannot be read or has no images, if the weight is negative or not finite, or if the
            class map contains a category that the dataset does not have.
    """
    if isinstance(source, str):
        source = DataSource(source)
    if not 0 <= source.weight < float("inf"):
        raise UserError(f"{source.path}: weight must be 0 or more, got {source.weight}")
    dataset = load_coco(source.path, split=split)
    if not dataset.records:
        raise UserError(f"{dataset.path}: no images")
    unknown = [name for name in source.class_map if name not in dataset.categories]
    if unknown:
        known = ", ".join(dataset.categories)
        raise UserError(f"{dataset.path}: class_map renames {unknown[0]!r}, which is not a category (it has: {known})")
    return [apply_class_map(record, source.class_map) for record in dataset.records]


def _select(source: DataSource, size_range: SizeRange, augmentation: Augmentation) -> list[ImageRecord]:
    """Reads a dataset and selects the images that are used to train on one size range."""
    accepted = [record for record in load_source(source) if size_range.accepts(record, augmentation.scale)]
    if not accepted:
        problem = f"no image has a {size_range.target} of scale {size_range}"
        raise UserError(f"{source.path}: {problem}; choose another scale or other edges")
    return accepted


class DetectionDataset(Dataset):
    """A map-style dataset of the augmented images of several sources.

    ``dataset[epoch, index]`` is a ``Sample`` of image ``index % len(dataset)``; images are numbered over all sources.
    Different indices of one image give different augmentations, so that an epoch can contain an image several times.
    ``dataset[index]`` is the sample of epoch 0. It raises IndexError if there is no image with this number.

    Args:
        sources: the datasets. Boxes of a category that is not in ``classes`` get the label DISTRACTOR.
        classes: names of the model's classes.
        channels: channels of the images, 1 or 3.
        lags: seconds of the earlier frames whose differences to the image are further channels, see
            ``danet.data.temporal``; zero where a record lists no such frame.
        local_contrast: whether the local contrast is a further channel.
        augmentation: random changes of the samples; None changes nothing.
        seed: seed of the augmentation.
        cache_bytes: maximum memory for decoded images, which are kept for the next epochs, in each loader process.
        size_range: train on targets of one size range only, see ``SizeRange``; None trains on all sizes.

    Raises:
        UserError: if a source cannot be read or has no image for ``size_range``, or if the sources with a weight above
            0 have no box of a class (ignore regions do not count). From ``dataset[...]``: if an image is unreadable or
            its size differs from the json.

    Example:
        >>> from danet.data.coco_dataset import write_coco
        >>> path = getfixture("tmp_path") / "a.png"
        >>> _ = cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))
        >>> record = ImageRecord(path, 64, 48, np.array([[10, 10, 22, 18]]), ["drone"], np.array([False]))
        >>> write_coco(path.with_suffix(".json"), [record], ["drone"])
        >>> DetectionDataset([str(path.parent)], ["drone"])[0].boxes
        tensor([[10., 10., 22., 18.]])
    """

    def __init__(
        self,
        sources: Sequence[DataSource | str],
        classes: Sequence[str],
        *,
        channels: int = 1,
        lags: Sequence[float] = (),
        local_contrast: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        size_range: SizeRange | None = None,
    ) -> None:
        self.classes = list(classes)
        self.channels = channels
        self.lags = tuple(lags)
        self.local_contrast = local_contrast
        self.augmentation = augmentation or Augmentation.off()
        self.size_range = size_range
        parts = [DataSource(source) if isinstance(source, str) else source for source in sources]
        loaded = [_select(part, size_range, self.augmentation) if size_range else load_source(part) for part in parts]
        self.sizes = [len(records) for records in loaded]
        self.weights = [part.weight for part in parts]
        self.seed = seed
        self.free_cache_bytes = cache_bytes
        """Memory that the cache may still use in this process."""
        self._cache: dict[Path, np.ndarray] = {}

        # Images of sources with weight 0 are neither shown nor used as donors of pasted objects.
        self._used_indices = np.flatnonzero(np.repeat(np.array(self.weights) > 0, self.sizes))
        used = [r for records, weight in zip(loaded, self.weights, strict=True) if weight > 0 for r in records]
        present = {name for r in used for name, skip in zip(r.names, r.ignore, strict=True) if not skip}
        self.records = SharedRecords(itertools.chain.from_iterable(loaded))
        missing = [name for name in self.classes if name not in present]
        if missing:
            known = ", ".join(sorted(present)) or "no boxes"
            raise UserError(f"model.classes: the training data has no box named {missing[0]!r} (it has: {known})")
        self.missing_past = MissingFrames((r.past for r in used), self.lags)
        """Counts the used images that lack an earlier frame."""

    def __len__(self) -> int:
        """Returns the number of images in all sources."""
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, self._check_index(key))
        rng = np.random.default_rng([self.seed, epoch, index])
        donor = self._load(int(rng.choice(self._used_indices))) if self.augmentation.copy_paste else None
        frame = vary_frame(self._load(index % len(self), rng), rng, self.augmentation, donor)
        intensities = intensity_range(frame.image)
        if self.lags or self.local_contrast:
            frame = frame._replace(extra=self._extra_channels(frame, intensities.span))
        image, boxes, labels, ignore, _, extra = self._crop(frame, rng)
        normalized = normalize(image, self.channels, intensities)
        if extra is not None:
            normalized = np.concatenate([normalized, extra])
        return Sample(*map(torch.from_numpy, (normalized, boxes, labels, ignore)))

    def fingerprint(self) -> str:
        """Returns a text that changes with the images and the weights of the sources.

        Of the images, the names, order, sizes and annotations count; with lags, also the names and ages of earlier
        frames.
        """
        start = repr((self.sizes, self.weights)).encode()
        return fingerprint_of(self.records, start, with_past=bool(self.lags))

    def used_records(self) -> Iterator[ImageRecord]:
        """The images of the sources with a weight above 0."""
        return (self.records[int(index)] for index in self._used_indices)

    def _crop(self, frame: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        """Warps and crops a frame; with a size range, targets of other sizes become ignore regions."""
        if self.size_range is None:
            return warp_and_crop(frame, rng, self.augmentation)
        target = self.classes.index(self.size_range.target)
        augmentation = self.size_range.limit_scale(frame, frame.labels == target, self.augmentation, rng)
        sample = warp_and_crop(frame, rng, augmentation)
        other = (sample.labels == target) & ~self.size_range.contains(sample.boxes)
        return sample._replace(ignore=sample.ignore | other)

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a dataset of {len(self)} images")
        return index % len(self)

    def _load(self, index: int, rng: np.random.Generator | None = None) -> AnnotatedImage:
        """An image with its boxes; with ``rng``, also with its earlier frames unless they are left out at random."""
        record = self.records[index]
        labels = [self.classes.index(name) if name in self.classes else DISTRACTOR for name in record.names]
        image = self._load_image(record.path, record)
        past: tuple[tuple[float, np.ndarray], ...] = ()
        if self.lags and rng is not None and rng.random() >= self.augmentation.past_dropout:
            past = self._load_past(image, record)
        return AnnotatedImage(image, record.boxes, np.array(labels, np.int64), record.ignore, past)

    def _load_past(self, image: np.ndarray, record: ImageRecord) -> tuple[tuple[float, np.ndarray], ...]:
        """The earlier frames of a record for each lag, aligned with its image."""
        grey, span = to_grey(image), intensity_range(image).span
        frames = []
        for lag, path in choose_frames(record.past, self.lags).items():
            aligned = align(to_grey(self._load_image(path, record)), grey, span)
            if aligned is not None:
                frames.append((lag, aligned))
        return tuple(frames)

    def _extra_channels(self, frame: AnnotatedImage, span: float) -> np.ndarray:
        past = dict(frame.past)
        frames = [past.get(lag) for lag in self.lags]
        return extra_channels(frame.image, frames, span, with_local_contrast=self.local_contrast)

    def _load_image(self, path: Path, record: ImageRecord) -> np.ndarray:
        """Reads an image of a record: its own, or an earlier frame, which has the same size."""
        is_cached = path in self._cache
        image = self._cache[path] if is_cached else read_image(path)
        if image.shape[:2] != (record.height, record.width):
            stored = f"{image.shape[1]} x {image.shape[0]}"
            raise UserError(f"{path}: is {stored} pixels, its json says {record.width} x {record.height}")
        if is_cached:
            return image
        if self.channels == 1 and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # one channel makes the augmentation three times as fast
        if self.free_cache_bytes >= image.nbytes:
            self.free_cache_bytes -= image.nbytes
            self._cache[path] = image
        return image


def fingerprint_of(records: Iterable[ImageRecord], start: bytes = b"", *, with_past: bool = False) -> str:
    """The number of images, and a hash of their names, order, sizes and annotations.

    Args:
        records: the images.
        start: further data that the hash depends on.
        with_past: the hash also depends on the names and ages of earlier frames.

    Example:
        >>> fingerprint_of([])
        '0 images, e3b0c44298fc'
    """
    digest, count = hashlib.sha256(start), 0
    for record in records:
        count += 1
        digest.update(annotation_bytes(record))
        if with_past:
            digest.update(repr([(age, path.name) for age, path in record.past]).encode())
    return f"{count} images, {digest.hexdigest()[:12]}"


def collate(samples: Sequence[Sample]) -> Batch:
    """Makes a batch: pads images at the right and bottom to the largest height and width, at least MINIMUM_SIZE.

    The value of the padding is 0, which is the median of a normalized image. In distributed training each process pads
    its own part of the batch; padding equals that of a single process only if all images have one size, as crops do.

    Example:
        >>> empty = torch.zeros(0)
        >>> collate([Sample(torch.ones(1, 70, 90), empty, empty, empty)] * 2).images.shape
        torch.Size([2, 1, 70, 90])
    """
    height, width = (max(MINIMUM_SIZE, *(s.image.shape[axis] for s in samples)) for axis in (1, 2))
    images = torch.zeros(len(samples), samples[0].image.shape[0], height, width)
    for padded, sample in zip(images, samples, strict=True):
        padded[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(images, [s.boxes for s in samples], [s.labels for s in samples], [s.ignore for s in samples])


def make_loader(
    dataset: DetectionDataset,
    sampler: EpochSampler,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    worker_start: Callable[[], object] | None = None,
) -> BatchLoader:
    """Makes a DataLoader that yields the ``Batch`` of every step; batches do not depend on the number of workers.

    If there are workers, this process is prepared for their fork: OpenCV uses one thread from here on, and free heap
    memory is returned to the system.

    Args:
        dataset, sampler: the samples and their order.
        workers: number of worker processes; 0 loads in this process.
        pin_memory: put batches into pinned memory for a faster copy to a GPU.
        worker_start: called in every worker process when it starts.
    """
    if workers:
        cv2.setNumThreads(1)  # a worker would wait forever for threads of OpenCV that exist only in its parent
        trim_malloc()  # workers inherit the heap, free memory included
    return BatchLoader(
        dataset,
        collate,
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=functools.partial(_start_worker, worker_start),
        pin_memory=pin_memory,
    )


def _start_worker(start: Callable[[], object] | None, _: int) -> None:
    """Prepares a worker process, and calls ``start`` in it.

    The worker ignores Ctrl-C and hang-ups, which a terminal sends to all processes: the parent reacts to them and ends
    its workers. SIGTERM ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if start is not None:
        start()


def default_workers(processes: int = 1) -> int:
    """Returns the number of workers for each of the training processes.

    It is half of the cores that may be used, divided by the processes, at most 8; 0 with fewer than 4 cores.
    """
    cores = available_cores()
    return 0 if cores < 4 else min(8, cores // 2 // processes)
