"""Choice and sampling of the regions that ADCR compares: targets (positives) and distractors (negatives)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danet.boxes import inside, overlaps
from danet.data.loader import Batch
from danet.losses.local_contrast import find_peaks, local_contrast, significance
from danet.utils import distributed

MIN_SIGNIFICANCE = 5.0
"""Contrast of an evident distractor, in standard deviations above the mean contrast of its image."""

CELLS = (3, 7, 15)
"""Cell sides in pixels for ``local_contrast``: fewer than its default, which takes half the time."""

PEAKS_PER_IMAGE = 64
"""Contrast peaks per image that are considered; many of them lie on boxes."""

RANDOM_TRIES = 20
"""Random positions that are tried for a region."""


class Regions(NamedTuple):
    """Regions to compare, on the CPU; lists over the images of a batch."""

    positives: list[Tensor]
    """float32 ``[P_i, 4]`` in pixels, the targets."""
    negatives: list[Tensor]
    """float32 ``[Q_i, 4]`` in pixels, distractors and the regions that replace missing ones."""


def choose_regions(batch: Batch, *, target: int, ratio: int) -> Regions:
    """Chooses the positives and negatives of a batch (section 3.1.3 of the DANet paper).

    Positives are all boxes of the target class. The batch gets ``ratio`` negatives per positive, first from the boxes
    of all other labels in all of its images. Excess distractors are subsampled at random. Missing negatives are split
    evenly over the positives and placed in the positive's image at the positive's size, without overlap with any box:
    first on local-contrast peaks, then at random positions. Where there is no room, negatives remain missing.

    Ignored boxes are neither positives nor negatives, and no region is placed on them.

    With several processes, the batch is that of all of them: image j of rank r is image r + j * W of W * N images (as
    ``danet.data.epoch_sampler.EpochSampler`` distributes them), and the choice equals that of a single process. Random
    numbers come from torch's generator on rank 0.

    Args:
        batch: the batch of this process, its images as the network sees them.
        target: label of the target class.
        ratio: negatives per positive.

    Example:
        >>> box, label, ignore = torch.tensor([[8.0, 8, 20, 18]]), torch.tensor([0]), torch.tensor([False])
        >>> regions = choose_regions(Batch(torch.rand(1, 1, 64, 64), [box], [label], [ignore]), target=0, ratio=3)
        >>> regions.negatives[0].shape
        torch.Size([3, 4])
    """
    images = batch.images
    boxes, labels, ignore = ([value.cpu() for value in values] for values in batch[1:])
    positive = [(label == target) & ~skip for label, skip in zip(labels, ignore, strict=True)]
    distractor = [(label != target) & ~skip for label, skip in zip(labels, ignore, strict=True)]
    positives = [box[chosen].float() for box, chosen in zip(boxes, positive, strict=True)]
    distractors = [box[chosen].float() for box, chosen in zip(boxes, distractor, strict=True)]
    own_images, counts, seed = _gather_counts(
        [(len(p), len(d)) for p, d in zip(positives, distractors, strict=True)], images.device
    )

    # Subsample excess distractors of the whole batch.
    total, labelled = counts.sum(0).tolist()
    before = counts.cumsum(0) - counts  # positives and distractors in the images before each one
    wanted = ratio * total
    taken = torch.ones(labelled, dtype=torch.bool)
    if labelled > wanted:
        taken[np.random.default_rng(seed).permutation(labelled)[wanted:]] = False
    missing = max(0, wanted - labelled)  # 0 without positives

    # Split missing negatives over the positives.
    negatives = []
    needs: dict[int, list[int]] = {}  # image -> number of negatives to place for each of its positives
    for image, index in enumerate(own_images):
        first, first_distractor = before[index].tolist()
        negatives.append(distractors[image][taken[first_distractor : first_distractor + len(distractors[image])]])
        each = [missing // total + (first + i < missing % total) for i in range(len(positives[image]))]
        if any(each):
            needs[image] = each

    # Place them.
    if needs:
        for (image, each), peaks in zip(needs.items(), _contrast_peaks(images[list(needs)]), strict=True):
            rng = np.random.default_rng([seed, own_images[image]])
            regions = _place_negatives(images[image], positives[image], each, boxes[image], peaks, rng)
            negatives[image] = torch.cat([negatives[image], *(region[None] for region in regions)])
    return Regions(positives, negatives)


def sample_regions(features: Tensor, regions: list[Tensor], stride: int, size: int) -> Tensor:
    """Samples regions of a feature map bilinearly at ``size x size`` positions; the map's border values extend outward.

    Args:
        features: ``[N, C, H, W]``.
        regions: for every image ``[M_i, 4]`` in pixels of the network's input.
        stride: pixels per position of the map.
        size: positions per side.

    Returns:
        ``[sum M_i, C, size, size]``, image by image.

    Example:
        >>> features = torch.ones(2, 8, 16, 16)
        >>> sample_regions(features, [torch.tensor([[8.0, 8, 20, 18]]), torch.zeros(0, 4)], stride=4, size=7).shape
        torch.Size([1, 8, 7, 7])
    """
    counts = [len(r) for r in regions]
    corners = torch.stack([F.pad(r, (0, 0, 0, max(counts) - len(r))) for r in regions]).to(features)
    steps = (torch.arange(size, device=features.device, dtype=features.dtype) + 0.5) / size
    x, y = (
        corners[:, :, axis, None] + (corners[:, :, axis + 2] - corners[:, :, axis])[..., None] * steps
        for axis in (0, 1)
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1).flatten(1, 2)
    height, width = features.shape[2:]
    grid = grid * grid.new_tensor([2 / (width * stride), 2 / (height * stride)]) - 1
    sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
    sampled = sampled.unflatten(2, (max(counts), size)).transpose(1, 2)
    return torch.cat([of_image[:count] for of_image, count in zip(sampled, counts, strict=True)])


def _gather_counts(counts: list[tuple[int, int]], device: torch.device) -> tuple[list[int], Tensor, int]:
    """Exchanges what a choice over the batches of all processes needs.

    Args:
        counts: positives and distractors of every image of this process.

    Returns:
        Indices of this process's images in the whole batch, the counts of all its images, and a common seed.
    """
    rank, world = distributed.rank(), distributed.world_size()
    own_images = list(range(rank, len(counts) * world, world))
    shared = torch.zeros(len(counts) * world + 1, 2, dtype=torch.int64)
    shared[own_images] = torch.tensor(counts)
    seed = int(torch.randint(2**31, ()))
    shared[-1, 0] = seed if rank == 0 else 0
    shared = distributed.total(shared.to(device)).cpu()
    return own_images, shared[:-1], int(shared[-1, 0])


@torch.no_grad()
def _contrast_peaks(images: Tensor) -> list[Tensor]:
    """Centres ``[K, 2]`` (x, y) of the significant contrast peaks of each image, strongest first."""
    contrast, _ = local_contrast(images, CELLS)
    values, y, x = (found.cpu() for found in find_peaks(significance(contrast), PEAKS_PER_IMAGE))
    return [torch.stack([x[i], y[i]], dim=1)[v > MIN_SIGNIFICANCE] + 0.5 for i, v in enumerate(values)]


def _place_negatives(
    image: Tensor, positives: Tensor, counts: list[int], boxes: Tensor, peaks: Tensor, rng: np.random.Generator
) -> list[Tensor]:
    """Regions ``[4]`` in an image ``[C, H, W]``, for every positive ``counts`` of its size, clear of ``boxes``."""
    limits = torch.tensor(image.shape[:0:-1], dtype=torch.float32)
    placed: list[Tensor] = []
    for box, count in zip(positives, counts, strict=True):
        extent = (box[2:] - box[:2]).clamp(min=1.0).minimum(limits)
        on_peaks = _place(peaks, extent, limits)
        clear = ~overlaps(on_peaks[:, None], boxes).any(1)
        for _ in range(count):
            # Skip peaks inside placed regions: one object may have several peaks.
            free = clear.clone()
            for region in placed:
                free &= ~inside(peaks, region)
            if free.any():
                placed.append(on_peaks[free][0])
                continue
            anywhere = _place(torch.from_numpy(rng.random((RANDOM_TRIES, 2), np.float32)) * limits, extent, limits)
            anywhere = anywhere[~overlaps(anywhere[:, None], boxes).any(1)]
            placed += next(([region] for region in anywhere if not _is_padding(image, region)), [])
    return placed


def _place(centres: Tensor, extent: Tensor, limits: Tensor) -> Tensor:
    """Regions ``[K, 4]`` of size ``extent [2]`` around ``centres [K, 2]``, shifted into the image."""
    corners = (centres - extent / 2).clamp(min=0.0).minimum(limits - extent)
    return torch.cat([corners, corners + extent], dim=1)


def _is_padding(image: Tensor, region: Tensor) -> bool:
    """Whether the region shows only padding, which is 0."""
    x0, y0, x1, y1 = (int(value) for value in region)
    return not image[:, y0 : y1 + 1, x0 : x1 + 1].any()
