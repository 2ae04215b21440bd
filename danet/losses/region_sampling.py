"""What the contrastive loss compares: the regions of a batch that show the target, and those that look like it."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danet.losses.local_contrast import find_peaks, local_contrast, significance
from danet.utils import distributed

EVIDENT = 5.0
"""Standard deviations above the image's mean contrast from which a spot is an evident distractor."""

CELLS = (3, 7, 15)
"""Fewer than the detector's: twice as fast, and any spot will do."""

SPOTS = 64
"""Spots looked at in an image: many lie on the boxes."""

TRIES = 20
"""Places tried for a random region."""


class Regions(NamedTuple):
    """Boxes of a batch, on the CPU; lists over the images."""

    positives: list[Tensor]
    """float32 ``[P_i, 4]``, the targets."""
    negatives: list[Tensor]
    """float32 ``[Q_i, 4]``, distractors and what stands in for them."""


def choose_regions(
    images: Tensor, boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor], *, target: int, ratio: int
) -> Regions:
    """Chooses positive and negative samples in a batch (section 3.1.3).

    Positives are all boxes of the target's class. Of the negatives, ``ratio`` for every positive, the first are the
    boxes of all other labels, wherever in the batch they are; where these are more, chance decides. What then lacks
    is shared out evenly to the positives, and each finds regions of its own size in its own image, clear of all
    boxes: first on the spots of the strongest local contrast, then at random. Where there is no room, none.

    With several processes the batch is that of all, image j of rank r being image r + j * W of it (as
    ``danet.data.loader.EpochSampler`` deals them out, equally many to each), and the choice is the one that a single
    process would make. The random numbers are those of torch on rank 0.

    Args:
        images: ``[N, C, H, W]`` as the network sees them. boxes, labels, ignore: lists over the images of ``[M, 4]``
            pixels, int64 ``[M]`` and bool ``[M]``; ignored boxes are neither, and nothing is chosen on them.
        target: the label of the target.
    """
    boxes, labels, ignore = ([value.cpu() for value in values] for values in (boxes, labels, ignore))
    positive = [(label == target) & ~skip for label, skip in zip(labels, ignore, strict=True)]
    distractor = [(label != target) & ~skip for label, skip in zip(labels, ignore, strict=True)]
    positives = [box[chosen].float() for box, chosen in zip(boxes, positive, strict=True)]
    distractors = [box[chosen].float() for box, chosen in zip(boxes, distractor, strict=True)]
    ours, counts, seed = _share([(len(p), len(d)) for p, d in zip(positives, distractors, strict=True)], images.device)

    total, labelled = counts.sum(0).tolist()
    before = counts.cumsum(0) - counts  # positives and distractors in the images before each
    wanted = ratio * total
    taken = torch.ones(labelled, dtype=torch.bool)
    if labelled > wanted:
        taken[np.random.default_rng(seed).permutation(labelled)[wanted:]] = False
    missing = max(0, wanted - labelled)  # 0 without positives

    negatives = []
    needs: dict[int, list[int]] = {}  # image -> how many each of its positives has to find
    for image, place in enumerate(ours):
        first, first_distractor = before[place].tolist()
        negatives.append(distractors[image][taken[first_distractor : first_distractor + len(distractors[image])]])
        each = [missing // total + (first + i < missing % total) for i in range(len(positives[image]))]
        if any(each):
            needs[image] = each
    if needs:
        for (image, each), spots in zip(needs.items(), _spots(images[list(needs)]), strict=True):
            rng = np.random.default_rng([seed, ours[image]])
            regions = _find(images[image], positives[image], each, boxes[image], spots, rng)
            negatives[image] = torch.cat([negatives[image], *(region[None] for region in regions)])
    return Regions(positives, negatives)


def sample_regions(features: Tensor, regions: list[Tensor], stride: int, size: int) -> Tensor:
    """Regions of a feature map resampled to ``size x size`` positions, bilinearly, from its border on constant.

    Args:
        features: ``[N, C, H, W]``. regions: a list over the images of ``[M_i, 4]``, pixels of the network's input.
        stride: pixels that a position of the map covers.

    Returns:
        ``[sum M_i, C, size, size]``, image after image.
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


def _share(counts: list[tuple[int, int]], device: torch.device) -> tuple[list[int], Tensor, int]:
    """Places of this process's images in the whole batch, the counts of all its images, and a seed for all."""
    rank, world = distributed.rank(), distributed.world_size()
    ours = list(range(rank, len(counts) * world, world))
    shared = torch.zeros(len(counts) * world + 1, 2, dtype=torch.int64)
    shared[ours] = torch.tensor(counts)
    seed = int(torch.randint(2**31, ()))
    shared[-1, 0] = seed if rank == 0 else 0
    shared = distributed.total(shared.to(device)).cpu()
    return ours, shared[:-1], int(shared[-1, 0])


@torch.no_grad()
def _spots(images: Tensor) -> list[Tensor]:
    """Centres ``[K, 2]`` (x, y) of the evident spots of each image, the strongest first."""
    contrast, _ = local_contrast(images, CELLS)
    values, y, x = (found.cpu() for found in find_peaks(significance(contrast), SPOTS))
    return [torch.stack([x[i], y[i]], dim=1)[v > EVIDENT] + 0.5 for i, v in enumerate(values)]


def _find(
    image: Tensor, positives: Tensor, counts: list[int], boxes: Tensor, spots: Tensor, rng: np.random.Generator
) -> list[Tensor]:
    """Regions ``[4]`` of the positives' sizes in an image ``[C, H, W]``, so many for each positive."""
    limits = torch.tensor(image.shape[:0:-1], dtype=torch.float32)
    found: list[Tensor] = []
    for box, count in zip(positives, counts, strict=True):
        extent = (box[2:] - box[:2]).clamp(min=1.0).minimum(limits)
        on_spots = _place(spots, extent, limits)
        clear = ~_overlap(on_spots, boxes)
        for _ in range(count):
            # Several spots may lie on one thing.
            fresh = clear & ~_inside(spots, found)
            if fresh.any():
                found.append(on_spots[fresh][0])
                continue
            anywhere = _place(torch.from_numpy(rng.random((TRIES, 2), np.float32)) * limits, extent, limits)
            anywhere = anywhere[~_overlap(anywhere, boxes)]
            found += next(([region] for region in anywhere if _shows_anything(image, region)), [])
    return found


def _place(centres: Tensor, extent: Tensor, limits: Tensor) -> Tensor:
    """Regions ``[K, 4]`` of a size around ``centres [K, 2]``, moved into the image."""
    corners = (centres - extent / 2).clamp(min=0.0).minimum(limits - extent)
    return torch.cat([corners, corners + extent], dim=1)


def _overlap(regions: Tensor, boxes: Tensor) -> Tensor:
    """Whether regions ``[K, 4]`` share anything with any of ``boxes [M, 4]``: bool ``[K]``."""
    apart = (boxes[:, :2] >= regions[:, None, 2:]) | (boxes[:, 2:] <= regions[:, None, :2])
    return ~apart.any(2).all(1)


def _inside(points: Tensor, regions: list[Tensor]) -> Tensor:
    """Whether points ``[K, 2]`` lie in any of the regions: bool ``[K]``."""
    inside = torch.zeros(len(points), dtype=torch.bool)
    for region in regions:
        inside |= ((points >= region[:2]) & (points < region[2:])).all(1)
    return inside


def _shows_anything(image: Tensor, region: Tensor) -> bool:
    """Whether the region is more than padding, which is 0."""
    x0, y0, x1, y1 = (int(value) for value in region)
    return bool(image[:, y0 : y1 + 1, x0 : x1 + 1].any())
