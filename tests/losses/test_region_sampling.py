import numpy as np
import pytest
import torch

from danet.data.loader import Batch
from danet.losses.region_sampling import choose_regions

SIZE = (96, 128)


def spot(image, x, y, strength, side=5):
    """Adds a square spot around (x, y) to an image ``[1, H, W]``."""
    image[0, y - side // 2 : y + side // 2 + 1, x - side // 2 : x + side // 2 + 1] += strength


def choose(images, boxes, labels, ignore=None, target=0, ratio=3):
    boxes = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes]
    labels = [torch.tensor(each, dtype=torch.int64) for each in labels]
    ignore = [torch.zeros(len(each), dtype=torch.bool) if not ignore else ignore[i] for i, each in enumerate(labels)]
    return choose_regions(Batch(images, boxes, labels, ignore), target=target, ratio=ratio)


def overlapping(a, b):
    """Whether two boxes ``[4]`` overlap."""
    return bool((torch.minimum(a[2:], b[2:]) > torch.maximum(a[:2], b[:2])).all())


def centre(region):
    return ((region[:2] + region[2:]) / 2).tolist()


def test_negatives_are_distractors_then_peaks_then_random():
    torch.manual_seed(0)
    images = 0.05 * torch.randn(2, 1, *SIZE)
    drone, bird = [20, 20, 34, 30], [60, 60, 70, 66]
    spot(images[0], 27, 25, 5.0)  # the drone, the strongest peak
    spot(images[0], 100, 40, 3.0)
    spot(images[0], 90, 80, 2.0)
    # Expected: the bird of the other image, two peaks and two random regions.
    regions = choose(images, [[drone], [bird]], [[0], [-1]], ratio=5)
    assert regions.positives[0].tolist() == [drone] and len(regions.positives[1]) == 0
    assert regions.negatives[1].tolist() == [bird]
    found = regions.negatives[0]
    assert len(found) == 4
    assert centre(found[0]) == pytest.approx([100.5, 40.5], abs=1.1)
    assert centre(found[1]) == pytest.approx([90.5, 80.5], abs=1.1)
    for region in found:
        assert (region[2:] - region[:2]).tolist() == pytest.approx([14, 10], abs=1e-4)
        assert not overlapping(region, torch.tensor(drone))
        assert (region[:2] >= 0).all() and (region[2:] <= torch.tensor([128, 96])).all()
    assert len({tuple(region.tolist()) for region in found}) == 4


def test_excess_distractors_are_subsampled_at_random():
    images = torch.zeros(2, 1, *SIZE)
    birds = [[10 * i, 50, 10 * i + 8, 56] for i in range(9)]
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        regions = choose(images, [[[20, 20, 34, 30], *birds[:4]], birds[4:]], [[0, 1, 1, -1, -1], [1] * 5])
        found = [tuple(box) for each in regions.negatives for box in each.tolist()]
        assert len(found) == len(set(found)) == 3
        seen |= set(found)
    assert seen == {tuple(map(float, bird)) for bird in birds}


def test_other_classes_are_distractors():
    images = torch.zeros(1, 1, *SIZE)
    boxes = [[[20, 20, 34, 30], [60, 60, 70, 66], [90, 10, 99, 19]]]
    regions = choose(images, boxes, [[0, 2, 1]], target=2, ratio=2)
    assert regions.positives[0].tolist() == [boxes[0][1]]
    assert regions.negatives[0].tolist() == [boxes[0][0], boxes[0][2]]


def test_missing_negatives_are_split_over_the_positives():
    torch.manual_seed(0)
    images = torch.randn(3, 1, *SIZE)
    boxes = [[[20, 20, 34, 30], [60, 60, 66, 80]], [[5, 5, 12, 12]], [[50, 50, 58, 58]]]
    regions = choose(images, boxes, [[0, 0], [0], [1]])  # nine negatives: one labelled, eight to place
    assert [len(n) for n in regions.negatives] == [6, 2, 1]
    sizes = [tuple((region[2:] - region[:2]).round().int().tolist()) for region in regions.negatives[0]]
    assert sizes == [(14, 10)] * 3 + [(6, 20)] * 3
    assert regions.negatives[2].tolist() == boxes[2]


def test_ignore_regions_are_no_samples_and_stay_clear():
    torch.manual_seed(0)
    images = 0.05 * torch.randn(1, 1, *SIZE)
    spot(images[0], 100, 40, 5.0)
    boxes = [[[20, 20, 34, 30], [0, 0, 10, 10], [90, 30, 110, 50]]]
    ignore = [torch.tensor([False, True, True])]
    regions = choose(images, boxes, [[0, 0, -1]], ignore)
    assert regions.positives[0].tolist() == [boxes[0][0]]
    assert len(regions.negatives[0]) == 3
    assert not any(overlapping(region, torch.tensor(box)) for region in regions.negatives[0] for box in boxes[0])


def test_negatives_are_fewer_without_room_or_positives():
    images = torch.randn(1, 1, *SIZE)
    whole = [[0, 0, 128, 96]]
    assert len(choose(images, [whole], [[0]]).negatives[0]) == 0
    regions = choose(images, [whole], [[1]])
    assert len(regions.positives[0]) == len(regions.negatives[0]) == 0
    assert len(choose(images, [[]], [[]]).negatives[0]) == 0


def test_negatives_are_not_placed_on_padding():
    torch.manual_seed(0)
    images = torch.zeros(1, 1, *SIZE)
    images[..., :60, :60] = torch.randn(60, 60)
    for region in choose(images, [[[20, 20, 34, 30]]], [[0]], ratio=12).negatives[0]:
        assert (region[:2] < 60).all()


def test_choose_regions_depends_on_the_seed_alone():
    images = torch.ones(2, 1, *SIZE)  # without peaks
    arguments = images, [[[20, 20, 34, 30]], [[60, 60, 66, 80]]], [[0], [0]]

    def chosen(seed):
        torch.manual_seed(seed)
        return np.concatenate([each.numpy() for each in choose(*arguments, ratio=30).negatives])

    assert np.array_equal(chosen(3), chosen(3)) and not np.array_equal(chosen(3), chosen(4))
