import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet import boxes as B


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 20], dim=1)


def test_overlaps_by_hand():
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[2.0, 2.0, 4.0, 6.0], [10.0, 10.0, 11.0, 11.0], [0.0, 0.0, 4.0, 4.0]])
    assert torch.allclose(B.iou(a, b), torch.tensor([[4 / 20, 0.0, 1.0]]))
    assert torch.allclose(B.iop(a, b), torch.tensor([[4 / 16, 0.0, 1.0]]))
    # GIoU of disjoint boxes: minus the empty share of the hull.
    assert torch.allclose(B.giou(a, b[1:2]), torch.tensor([-(121 - 17) / 121]))
    assert torch.allclose(B.giou(a, a), torch.tensor([1.0]))


def test_empty_boxes_overlap_nothing():
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert B.iou(empty, empty).item() == 0
    assert B.iop(empty, torch.tensor([[0.0, 0.0, 9.0, 9.0]])).item() == 0


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(B.iou(boxes[i : i + 1], boxes[j : j + 1]).item() <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_nms_equals_the_greedy_loop(count, seed, threshold):
    boxes = random_boxes(count, seed)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1))
    assert B.nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


def test_nms_of_a_chain():
    # Each box covers the next: greedy keeps every other one, which takes many rounds to settle.
    x = torch.arange(30.0)
    boxes = torch.stack([x, torch.zeros(30), x + 2.5, torch.ones(30)], dim=1)
    scores = torch.linspace(1, 0.1, 30)
    assert B.nms(boxes, scores, 0.4).tolist() == list(range(0, 30, 2))


def test_select_takes_the_best_class_and_obeys_its_limits():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0]])
    scores = torch.tensor([[0.2, 0.9], [0.8, 0.1], [0.3, 0.05]])
    found = B.select(boxes.__getitem__, scores, score_threshold=0.1, iou_threshold=0.5, max_detections=10)
    assert found.labels.tolist() == [1, 0]
    assert torch.allclose(found.scores, torch.tensor([0.9, 0.3]))
    one = B.select(boxes.__getitem__, scores, score_threshold=0.1, iou_threshold=0.5, max_detections=1)
    assert len(one.boxes) == 1
    none = B.select(boxes.__getitem__, scores, score_threshold=0.95, iou_threshold=0.5, max_detections=10)
    assert none.boxes.shape == (0, 4) and none.labels.dtype == torch.int64
