import math
import statistics

import pytest
import torch

from danet.config import ModelConfig
from danet.losses import DetectionLoss
from danet.losses.assignment import Targets, by_atss, by_centre, by_overlap
from danet.models import build_model
from danet.models.danet import Output

SIZE = (64, 96)
# The losses: of each head, and ATSS for the default one.
LOSSES = ["default", "atss", "paper"]


def make(loss: str, classes: int = 2):
    torch.manual_seed(0)
    names = [f"class{i}" for i in range(classes)]
    head = "paper" if loss == "paper" else "default"
    return build_model(ModelConfig(name="danet_nano", classes=names, head=head))


def targets(boxes, labels=None, ignore=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return [boxes], [labels], [ignore]


def assignment(loss: str, boxes, labels=None, ignore=None):
    model = make(loss)
    maps = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.head.strides]
    references = model.head.references(maps)
    return references, *assign(loss, model, references, maps, Targets(*targets(boxes, labels, ignore)))


def assign(loss, model, references, maps, boxes):
    if loss == "paper":
        return by_overlap(references, model.head.cell_sizes(maps), boxes)
    matched, sure, free = {"default": by_centre, "atss": by_atss}[loss](references, boxes)
    assert (matched[sure] >= 0).all()
    return matched, free & ~sure


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("side", [0.5, 1.0, 3.0, 5.0, 12.0, 23.9, 24.0, 50.0, 90.0])
@pytest.mark.parametrize("centre", [(20.0, 20.0), (21.3, 30.9), (48.0, 32.0), (0.4, 0.4)])
def test_every_box_is_answered_for(loss, side, centre):
    x, y = centre
    _, matched, _ = assignment(loss, [[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
    assert (matched == 0).sum() >= 1


@pytest.mark.parametrize("loss", LOSSES)
def test_tiny_boxes_side_by_side_both_are_answered_for(loss):
    for pair in (
        [[20, 20, 23, 23], [25, 20, 28, 23]],
        # Two boxes whose best anchor is the same one.
        [[25.9, 38.9, 29.9, 42.9], [30.9, 38.9, 34.9, 42.9]],
    ):
        _, matched, _ = assignment(loss, pair)
        assert (matched == 0).any() and (matched == 1).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("corner", [(20.0, 20.0), (20.7, 21.9), (22.2, 20.2)])
def test_an_ignore_region_smaller_than_a_cell_is_ignored_too(loss, corner):
    x, y = corner
    references, _, ignored = assignment(loss, [[x, y, x + 1.5, y + 1.5]], ignore=[True])
    nearest = (references[:, :2] - torch.tensor([x + 0.75, y + 0.75])).abs().amax(1) <= 2
    assert ignored[0, nearest].any()


def test_the_smaller_of_two_nested_boxes_wins_its_cells():
    references, matched, _ = assignment("default", [[10, 10, 30, 30], [18, 18, 22, 22]])
    holds_centre = (references == torch.tensor([22.0, 22.0, 4.0, 4.0])).all(1)
    assert matched[0, holds_centre].tolist() == [1]
    assert (matched[0] == 0).any()


def test_atss_is_what_its_paper_says():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 2, generator=generator) * torch.tensor([70.0, 40.0])
    side = 4 + 40 * torch.rand(5, 2, generator=generator) ** 2
    boxes = torch.cat([corner, corner + side], 1)
    references, matched, _ = assignment("atss", boxes.tolist())
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
    assert matched[0].tolist() == expected


def test_atss_with_padding_gives_each_image_what_it_gets_alone():
    many, one = [[10.0, 10, 30, 30], [12.0, 14, 24, 26], [60.0, 20, 80, 44]], [[40.0, 30, 52, 40]]
    references, alone, _ = assignment("atss", one)
    _, crowded, _ = assignment("atss", many)
    both = Targets(
        [torch.tensor(many), torch.tensor(one)], [torch.zeros(3, dtype=torch.long), torch.zeros(1, dtype=torch.long)],
        [torch.zeros(3, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)],
    )  # fmt: skip
    matched = by_atss(references, both).matched
    assert torch.equal(matched, torch.cat([crowded, alone]))


def test_atss_gives_a_box_between_the_centres_of_cells_the_finest_one():
    references, matched, _ = assignment("atss", [[24.2, 24.2, 25.4, 25.4]])  # centres lie at 22 and 26
    assert references[matched[0] == 0].tolist() == [[26.0, 26.0, 4.0, 4.0]]


def square_iou(reference, box):
    """Of a box and the square of eight strides about a cell's centre."""
    (x, y), half = reference[:2].tolist(), 4 * float(reference[2])
    x0, y0, x1, y1 = box.tolist()
    width, height = min(x + half, x1) - max(x - half, x0), min(y + half, y1) - max(y - half, y0)
    common = max(width, 0) * max(height, 0)
    return common / ((2 * half) ** 2 + (x1 - x0) * (y1 - y0) - common)


def test_distractors_and_ignored_boxes_have_no_positives():
    box = [20, 20, 32, 32]
    for loss in LOSSES:
        _, matched, ignored = assignment(loss, [box], labels=[-1])
        assert (matched < 0).all() and not ignored.any()
        references, matched, ignored = assignment(loss, [box], ignore=[True])
        assert (matched < 0).all()
        inside = ((references[:, :2] >= 20) & (references[:, :2] < 32)).all(1)
        assert ignored[0, inside].all() and ignored[0].sum() < 2 * inside.sum() + 16


def perfect_output(loss, model, box, label):
    """Logits and deltas a perfectly trained network would give for one box."""
    maps = [torch.zeros(1, 1, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.head.strides]
    references = model.head.references(maps)
    matched, _ = assign(loss, model, references, maps, Targets(*targets([box])))
    outputs = model.head.outputs
    positive = matched[0] >= 0
    truth = torch.tensor([box], dtype=torch.float32).expand(int(positive.sum()), 4)
    flat_logits, flat_deltas = torch.zeros(len(references), outputs), torch.zeros(len(references), 4)
    if loss != "paper":
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


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_predictions_cost_nothing_and_decode_to_the_box(loss):
    model = make(loss)
    box = [20.0, 22.0, 33.0, 30.0]
    output = perfect_output(loss, model, box, label=1)
    criterion = DetectionLoss(model, assignment="atss" if loss == "atss" else "centre")
    losses = criterion(output, *targets([box], labels=[1]))
    assert losses["cls"].item() < 1e-4 and losses["reg"].item() < 1e-4
    (detections,) = model.decode(output, score_threshold=0.5)
    assert len(detections.boxes) == 1 and detections.labels.tolist() == [1]
    assert torch.allclose(detections.boxes[0], torch.tensor(box), atol=1e-3)
    wrong = criterion(output, *targets([box], labels=[0]))
    assert wrong["cls"] > losses["cls"] + 1


@pytest.mark.parametrize("loss", LOSSES)
def test_images_without_targets_still_teach_background(loss):
    model = make(loss)
    images = torch.randn(2, 1, *SIZE)
    empty = ([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [torch.zeros(0, dtype=torch.bool)] * 2)
    losses = DetectionLoss(model, assignment="atss" if loss == "atss" else "centre")(model(images), *empty)
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
    output = perfect_output("paper", model, box, label=0)
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
