"""The order in which a training shows its images."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from danet.utils.errors import UserError


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """A batch sampler for ``DetectionDataset``: yields the batches of all epochs as lists of (epoch, index).

    An epoch draws ``weight * size`` images of every source, in a random order that depends only on seed and epoch. If
    this is no integer, it is rounded up or down at random, so that the mean over the epochs is right. Every batch has
    ``batch`` images, and every epoch has the same number of batches: the last incomplete batch of an epoch is left out,
    and an epoch with fewer images than a batch repeats them. In distributed training, rank r of W takes the images
    r, r + W, ... of each batch.

    Args:
        sizes: number of images of each source.
        weights: weight of each source, see ``DataSource``.
        batch: global batch size, images per step over all ranks.
        epochs: number of epochs.
        seed: seed of the order.
        rank, world_size: this process and the number of processes.
        start_step: number of batches to skip when a run resumes, counted from the start of epoch 0.

    Raises:
        UserError: if an epoch would have less than one image, or ``batch`` is not a positive multiple of
            ``world_size``.

    Example:
        >>> list(EpochSampler([4], [1.0], batch=2, epochs=1))
        [[(0, 3), (0, 1)], [(0, 0), (0, 2)]]
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
        # Rounded to 9 decimals, because 0.29 * 100 is 28.999999999999996.
        self.shares = np.array([round(weight * size, 9) for weight, size in zip(weights, sizes, strict=True)])
        images = math.floor(round(self.shares.sum(), 6))
        if not images:
            raise UserError("data: all weights are 0, or so small that no image is left")
        if batch < 1 or batch % world_size:
            raise UserError(f"batch must be a positive multiple of the number of processes ({world_size}), got {batch}")
        self.batch = batch
        self.steps_per_epoch = max(1, images // batch)
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
        """Returns the sample indices of all batches of an epoch, int64 ``[steps_per_epoch, batch]``.

        The sample with index i shows image ``i % len(dataset)``.
        """
        rng = np.random.default_rng([self.seed, epoch])
        total = sum(self.sizes)
        chosen, offset = [], 0
        # Repetitions of an image get other indices, and so another augmentation, see ``DetectionDataset``.
        for size, count in zip(self.sizes, self._counts(rng), strict=True):
            for repetition in range(-(-count // size)):
                permutation = rng.permutation(size)[: count - repetition * size]
                chosen.append(repetition * total + offset + permutation)
            offset += size
        shuffled = rng.permutation(np.concatenate(chosen))
        needed = self.steps_per_epoch * self.batch
        if needed > len(shuffled):  # fewer images than a batch: repeat them, with further indices
            passes = -(-needed // len(shuffled))
            rounds = total * int(shuffled.max() // total + 1)
            shuffled = np.concatenate([shuffled + number * rounds for number in range(passes)])
        return shuffled[:needed].reshape(self.steps_per_epoch, self.batch)

    def _counts(self, rng: np.random.Generator) -> list[int]:
        """Rounds the number of images of each source at random, to one of the two nearest integers.

        All sources use one random number (systematic sampling), so that their sum is rounded in the same way: it never
        lies below the number of images from which ``steps_per_epoch`` was computed.
        """
        whole = np.floor(self.shares)
        fractions = self.shares - whole
        if fractions.any():
            edges = np.floor(np.round(np.cumsum(fractions), 6) + rng.random())
            whole += np.diff(edges, prepend=0)
        return whole.astype(int).tolist()
