import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet import boxes as B


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 20], dim=1)


def test_overlap_measures_by_hand():
    a = torch.tensor([0.0, 0.0, 4.0, 4.0])
    b = torch.tensor([[2.0, 2.0, 4.0, 6.0], [10.0, 10.0, 11.0, 11.0], [0.0, 0.0, 4.0, 4.0]])
    assert torch.allclose(B.iou(a, b), torch.tensor([4 / 20, 0.0, 1.0]))
    assert torch.allclose(B.iop(a, b), torch.tensor([4 / 16, 0.0, 1.0]))
    # GIoU of disjoint boxes: minus the empty share of the hull.
    assert torch.allclose(B.giou(a, b[1]), torch.tensor(-(121 - 17) / 121))
    assert torch.allclose(B.giou(a, a), torch.tensor(1.0))
    assert B.intersection(a, b).tolist() == [4, 0, 16]
    assert B.overlaps(a, b).tolist() == [True, False, True]
    assert torch.allclose(B.centre_distance(a, b), torch.tensor([5**0.5, (2 * 8.5**2) ** 0.5, 0.0]))


def test_iou_of_all_pairs():
    a, b = random_boxes(5, 0), random_boxes(7, 1)
    pairs = B.iou(a[:, None], b)
    assert pairs.shape == (5, 7)
    assert all(pairs[i, j] == B.iou(a[i], b[j]) for i in range(5) for j in range(7))


@pytest.mark.parametrize("name", ["intersection", "iou", "iop", "giou", "centre_distance", "overlaps"])
def test_pair_functions_agree_in_numpy_and_torch(name):
    function = getattr(B, name)
    a, b = random_boxes(30, 2).double(), random_boxes(30, 3).double()
    found = function(a.numpy()[:, None], b.numpy())
    assert isinstance(found, np.ndarray) and found.shape == (30, 30)
    assert np.array_equal(found, function(a[:, None], b).numpy())


@pytest.mark.parametrize("name", ["area", "size", "centres", "xywh_to_xyxy", "xyxy_to_xywh"])
def test_box_functions_agree_in_numpy_and_torch(name):
    function = getattr(B, name)
    boxes = random_boxes(30, 4)
    found = function(boxes.numpy())
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, function(boxes).numpy(), rtol=2e-7)  # square roots may differ in the last bit


def test_empty_boxes_have_no_overlap():
    empty = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert B.iou(empty, empty) == B.iop(empty, torch.tensor([0.0, 0.0, 9.0, 9.0])) == 0
    assert B.overlaps(empty, torch.tensor([0.0, 0.0, 9.0, 9.0]))
    assert not B.overlaps(empty, torch.tensor([3.0, 0.0, 9.0, 9.0]))


def test_area_and_size_of_inverted_boxes_are_zero():
    boxes = torch.tensor([[4.0, 0.0, 2.0, 9.0], [4.0, 9.0, 2.0, 0.0], [0.0, 0.0, 9.0, 4.0]])
    assert B.area(boxes).tolist() == [0, 0, 36]
    assert B.size(boxes).tolist() == [0, 0, 6]


def test_box_formats_convert_both_ways():
    boxes = random_boxes(20, 5)
    assert torch.allclose(B.xywh_to_xyxy(B.xyxy_to_xywh(boxes)), boxes)
    assert torch.allclose(B.centred_boxes(B.centres(boxes), B.xyxy_to_xywh(boxes)[:, 2:]), boxes)


def test_inside_is_half_open():
    box = torch.tensor([2.0, 3.0, 5.0, 7.0])
    points = torch.tensor([[2.0, 3.0], [4.9, 6.9], [5.0, 4.0], [3.0, 7.0], [1.9, 4.0]])
    assert B.inside(points, box).tolist() == [True, True, False, False, False]


def test_clip_keeps_what_is_in_the_image():
    boxes = torch.tensor([[-3.0, 2.0, 50.0, 9.0], [5.0, 5.0, 6.0, 6.0], [60.0, -9.0, 70.0, -4.0]])
    clipped = B.clip(boxes, 20, 40)
    assert clipped.tolist() == [[0, 2, 40, 9], [5, 5, 6, 6], [40, 0, 40, 0]]
    assert np.array_equal(B.clip(boxes.numpy(), 20, 40), clipped.numpy())


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(B.iou(boxes[i], boxes[j]).item() <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_nms_equals_the_greedy_loop(count, seed, threshold):
    boxes = random_boxes(count, seed)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1))
    assert B.nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


def test_nms_of_a_chain():
    # Each box overlaps the next: greedy suppression keeps every other one, which takes many rounds.
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_select_leaves_out_predictions_with_nan(dtype):
    """In every dtype, and with gradients; ties go to the first class."""
    boxes = torch.arange(16.0).reshape(4, 4) * 10
    nan = float("nan")
    scores = torch.tensor([[nan, 0.9], [0.9, nan], [0.5, 0.5], [0.25, 0.75]], dtype=dtype, requires_grad=True)
    found = B.select(boxes.__getitem__, scores, score_threshold=0.25, iou_threshold=0.5, max_detections=10)
    assert found.labels.tolist() == [1, 0] and found.scores.tolist() == [0.75, 0.5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nms_accepts_every_dtype(dtype):
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [20, 20, 28, 28]], dtype=dtype)
    for scores in (torch.tensor([0.6, 0.9, 0.5], dtype=dtype), torch.tensor([2, 3, 1], dtype=torch.uint8)):
        assert B.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert B.nms(boxes.requires_grad_(), torch.tensor([0.6, 0.9, 0.5]), 0.5).tolist() == [1, 2]
    assert B.nms(boxes[:0], torch.zeros(0), 0.5).tolist() == []


def test_nms_of_infinite_boxes_prints_nothing(recwarn):
    boxes = torch.tensor([[0.0, 0, float("inf"), 8], [0, 0, float("inf"), 8], [float("nan")] * 4])
    assert set(B.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()) >= {0}
    assert not recwarn.list
