import math
import statistics

import pytest
import torch
from assignment_cases import METHODS, assign

from danet.models.heads.assignment import Targets, assign_by_atss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [0.5, 1.0, 3.0, 5.0, 12.0, 23.9, 24.0, 50.0, 90.0])
@pytest.mark.parametrize("centre", [(20.0, 20.0), (21.3, 30.9), (48.0, 32.0), (0.4, 0.4)])
def test_assignment_covers_boxes_of_any_size(method, side, centre):
    x, y = centre
    _, box_index, _ = assign(method, [[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
    assert (box_index == 0).sum() >= 1


@pytest.mark.parametrize("method", METHODS)
def test_assignment_covers_adjacent_tiny_boxes(method):
    for pair in (
        [[20, 20, 23, 23], [25, 20, 28, 23]],
        # Two boxes with the same best anchor.
        [[25.9, 38.9, 29.9, 42.9], [30.9, 38.9, 34.9, 42.9]],
    ):
        _, box_index, _ = assign(method, pair)
        assert (box_index == 0).any() and (box_index == 1).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("corner", [(20.0, 20.0), (20.7, 21.9), (22.2, 20.2)])
def test_assignment_ignores_regions_smaller_than_a_cell(method, corner):
    x, y = corner
    references, _, ignored = assign(method, [[x, y, x + 1.5, y + 1.5]], ignore=[True])
    nearest = (references[:, :2] - torch.tensor([x + 0.75, y + 0.75])).abs().amax(1) <= 2
    assert ignored[0, nearest].any()


@pytest.mark.parametrize("method", METHODS)
def test_assignment_skips_distractors_and_ignore_regions(method):
    box = [20, 20, 32, 32]
    _, box_index, ignored = assign(method, [box], labels=[-1])
    assert (box_index < 0).all() and not ignored.any()
    references, box_index, ignored = assign(method, [box], ignore=[True])
    assert (box_index < 0).all()
    inside = ((references[:, :2] >= 20) & (references[:, :2] < 32)).all(1)
    assert ignored[0, inside].all() and ignored[0].sum() < 2 * inside.sum() + 16


def test_assign_by_centre_prefers_the_smaller_box():
    references, box_index, _ = assign("centre", [[10, 10, 30, 30], [18, 18, 22, 22]])
    holds_centre = (references == torch.tensor([22.0, 22.0, 4.0, 4.0])).all(1)
    assert box_index[0, holds_centre].tolist() == [1]
    assert (box_index[0] == 0).any()


def test_assign_by_atss_equals_its_paper():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 2, generator=generator) * torch.tensor([70.0, 40.0])
    side = 4 + 40 * torch.rand(5, 2, generator=generator) ** 2
    boxes = torch.cat([corner, corner + side], 1)
    references, box_index, _ = assign("atss", boxes.tolist())
    expected, best = [-1] * len(references), [-math.inf] * len(references)
    for number, box in enumerate(boxes):
        distance = [math.dist(r[:2], (box[:2] + box[2:]) / 2) for r in references]
        candidates = []
        for stride in (4, 8, 16, 32):
            level = [i for i, r in enumerate(references) if r[2] == stride]
            candidates += sorted(level, key=lambda i: distance[i])[:9]
        overlaps = {i: square_iou(references[i], box) for i in candidates}
        threshold = statistics.mean(overlaps.values()) + statistics.stdev(overlaps.values())
        for i, overlap in overlaps.items():
            inside = (references[i, :2] >= box[:2]).all() and (references[i, :2] < box[2:]).all()
            if overlap >= threshold and inside and overlap > best[i]:
                best[i], expected[i] = overlap, number
    assert set(expected) == {-1, 0, 1, 2, 3, 4}
    assert box_index[0].tolist() == expected


def square_iou(reference, box):
    """IoU of a box and the square of eight strides around a cell's centre."""
    (x, y), half = reference[:2].tolist(), 4 * float(reference[2])
    x0, y0, x1, y1 = box.tolist()
    width, height = min(x + half, x1) - max(x - half, x0), min(y + half, y1) - max(y - half, y0)
    common = max(width, 0) * max(height, 0)
    return common / ((2 * half) ** 2 + (x1 - x0) * (y1 - y0) - common)


def test_assign_by_atss_is_independent_of_padding():
    many, one = [[10.0, 10, 30, 30], [12.0, 14, 24, 26], [60.0, 20, 80, 44]], [[40.0, 30, 52, 40]]
    references, alone, _ = assign("atss", one)
    _, crowded, _ = assign("atss", many)
    both = Targets(
        [torch.tensor(many), torch.tensor(one)],
        [torch.zeros(3, dtype=torch.long), torch.zeros(1, dtype=torch.long)],
        [torch.zeros(3, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)],
    )
    box_index = assign_by_atss(references, both).box_index
    assert torch.equal(box_index, torch.cat([crowded, alone]))


def test_assign_by_atss_falls_back_to_the_finest_cell():
    # A box that contains no cell centre: those nearby are at 22 and 26.
    references, box_index, _ = assign("atss", [[24.2, 24.2, 25.4, 25.4]])
    assert references[box_index[0] == 0].tolist() == [[26.0, 26.0, 4.0, 4.0]]
