import math

import pytest
import torch

from danet.config import ModelConfig
from danet.losses import DetectionLoss
from danet.losses.detection import AnchorFreeLoss, AnchorLoss, Targets
from danet.models import build_model
from danet.models.detector import Output

SIZE = (64, 96)


def make(head: str, classes: int = 2):
    torch.manual_seed(0)
    names = [f"class{i}" for i in range(classes)]
    return build_model(ModelConfig(name="danet_nano", classes=names, head=head))


def targets(boxes, labels=None, ignore=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return [boxes], [labels], [ignore]


def assignment(head: str, boxes, labels=None, ignore=None):
    model = make(head)
    loss = (AnchorFreeLoss if head == "default" else AnchorLoss)(model.head)
    maps = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.head.strides]
    references = model.head.references(maps)
    return references, *assign(loss, references, maps, Targets(*targets(boxes, labels, ignore)))


def assign(loss, references, maps, boxes):
    if isinstance(loss, AnchorLoss):
        return loss.assign(references, loss.head.cell_sizes(maps), boxes)
    matched, sure, free = loss.assign(references, boxes)
    assert (matched[sure] >= 0).all()
    return matched, free & ~sure


@pytest.mark.parametrize("head", ["default", "paper"])
@pytest.mark.parametrize("side", [0.5, 1.0, 3.0, 5.0, 12.0, 23.9, 24.0, 50.0, 90.0])
@pytest.mark.parametrize("centre", [(20.0, 20.0), (21.3, 30.9), (48.0, 32.0), (0.4, 0.4)])
def test_every_box_is_answered_for(head, side, centre):
    x, y = centre
    _, matched, _ = assignment(head, [[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
    assert (matched == 0).sum() >= 1


@pytest.mark.parametrize("head", ["default", "paper"])
def test_tiny_boxes_side_by_side_both_are_answered_for(head):
    for pair in (
        [[20, 20, 23, 23], [25, 20, 28, 23]],
        # Two boxes whose best anchor is the same one.
        [[25.9, 38.9, 29.9, 42.9], [30.9, 38.9, 34.9, 42.9]],
    ):
        _, matched, _ = assignment(head, pair)
        assert (matched == 0).any() and (matched == 1).any()


@pytest.mark.parametrize("head", ["default", "paper"])
@pytest.mark.parametrize("corner", [(20.0, 20.0), (20.7, 21.9), (22.2, 20.2)])
def test_an_ignore_region_smaller_than_a_cell_is_ignored_too(head, corner):
    x, y = corner
    references, _, ignored = assignment(head, [[x, y, x + 1.5, y + 1.5]], ignore=[True])
    nearest = (references[:, :2] - torch.tensor([x + 0.75, y + 0.75])).abs().amax(1) <= 2
    assert ignored[0, nearest].any()


def test_the_smaller_of_two_nested_boxes_wins_its_cells():
    references, matched, _ = assignment("default", [[10, 10, 30, 30], [18, 18, 22, 22]])
    holds_centre = (references == torch.tensor([22.0, 22.0, 4.0, 4.0])).all(1)
    assert matched[0, holds_centre].tolist() == [1]
    assert (matched[0] == 0).any()


def test_distractors_and_ignored_boxes_have_no_positives():
    box = [20, 20, 32, 32]
    for head in ("default", "paper"):
        _, matched, ignored = assignment(head, [box], labels=[-1])
        assert (matched < 0).all() and not ignored.any()
        references, matched, ignored = assignment(head, [box], ignore=[True])
        assert (matched < 0).all()
        inside = ((references[:, :2] >= 20) & (references[:, :2] < 32)).all(1)
        assert ignored[0, inside].all() and ignored[0].sum() < 2 * inside.sum() + 16


def perfect_output(model, box, label):
    """Logits and deltas a perfectly trained network would give for one box."""
    maps = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.head.strides]
    references = model.head.references(maps)
    default = model.config.head == "default"
    loss = (AnchorFreeLoss if default else AnchorLoss)(model.head)
    matched, _ = assign(loss, references, maps, Targets(*targets([box])))
    outputs = model.head.outputs
    positive = matched[0] >= 0
    truth = torch.tensor([box], dtype=torch.float32).expand(int(positive.sum()), 4)
    flat_logits, flat_deltas = torch.zeros(len(references), outputs), torch.zeros(len(references), 4)
    if default:
        flat_logits[:] = -20.0
        flat_logits[positive, label] = 20.0
        size, centre = truth[:, 2:] - truth[:, :2], (truth[:, 2:] + truth[:, :2]) / 2
        anchors = references[positive]
        flat_deltas[positive] = torch.cat(
            [(centre - anchors[:, :2]) / anchors[:, 2:], (size / anchors[:, 2:]).log()], 1
        )
    else:
        flat_logits[:, 0] = 20.0
        flat_logits[positive, 0], flat_logits[positive, label + 1] = 0.0, 20.0
        flat_deltas[positive] = model.head.encode(truth, references[positive])
    per_cell = len(model.head.reference_sizes(0))
    logits, deltas, start = [], [], 0
    for m in maps:
        height, width = m.shape[2:]
        stop = start + height * width * per_cell
        for flat, values, out in ((flat_logits, outputs, logits), (flat_deltas, 4, deltas)):
            out.append(flat[start:stop].reshape(1, height, width, per_cell * values).permute(0, 3, 1, 2))
        start = stop
    return Output([], logits, deltas)


@pytest.mark.parametrize("head", ["default", "paper"])
def test_perfect_predictions_cost_nothing_and_decode_to_the_box(head):
    model = make(head)
    box = [20.0, 22.0, 33.0, 30.0]
    output = perfect_output(model, box, label=1)
    losses = DetectionLoss(model)(output, *targets([box], labels=[1]))
    assert losses["cls"].item() < 1e-4 and losses["reg"].item() < 1e-4
    (detections,) = model.decode(output, score_threshold=0.5)
    assert len(detections.boxes) == 1 and detections.labels.tolist() == [1]
    assert torch.allclose(detections.boxes[0], torch.tensor(box), atol=1e-3)
    wrong = DetectionLoss(model)(output, *targets([box], labels=[0]))
    assert wrong["cls"] > losses["cls"] + 1


@pytest.mark.parametrize("head", ["default", "paper"])
def test_images_without_targets_still_teach_background(head):
    model = make(head)
    images = torch.randn(2, 1, *SIZE)
    empty = ([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [torch.zeros(0, dtype=torch.bool)] * 2)
    losses = DetectionLoss(model)(model(images), *empty)
    assert losses["cls"] > 0 and losses["reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_nothing_is_learned_in_an_ignore_region():
    model = make("default")
    output = model(torch.randn(1, 1, *SIZE))
    everything = [[0.0, 0.0, SIZE[1], SIZE[0]]]
    losses = DetectionLoss(model)(output, *targets(everything, ignore=[True]))
    assert losses["cls"].item() == 0.0


def test_hard_negatives_are_three_a_positive():
    model = make("paper")
    box = [20.0, 22.0, 33.0, 30.0]
    output = perfect_output(model, box, label=0)
    for logits in output.logits:
        logits.zero_()  # every anchor now costs log(3)
    losses = DetectionLoss(model)(output, *targets([box], labels=[0]))
    assert losses["cls"].item() == pytest.approx(4 * math.log(3), rel=1e-5)


def test_focal_matches_its_definition():
    from danet.losses.detection import _focal

    p, t = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([1.0, 0.0, 1.0])
    expected = torch.tensor(
        [-0.25 * 0.1**2 * math.log(0.9), -0.75 * 0.9**2 * math.log(0.1), -0.25 * 0.8**2 * math.log(0.2)]
    )
    assert torch.allclose(_focal(p.logit(), t, 0.25, 2.0), expected, atol=1e-6)
