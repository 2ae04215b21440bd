import math

import pytest
import torch
from assignment_cases import METHODS, SIZE, assign, empty_maps, ground_truth, make_model

from danet.data.loader import Batch
from danet.losses import DetectionLoss
from danet.models import Output


def make_loss(method, model):
    return DetectionLoss(model, assignment="atss" if method == "atss" else "centre")


def make_batch(boxes, labels=None, ignore=None):
    return Batch(torch.zeros(1, 1, *SIZE), *ground_truth(boxes, labels, ignore))


def perfect_output(method, model, box, label):
    """Logits and deltas of a perfectly trained network for one box."""
    references, box_index, _ = assign(method, [box])
    outputs = model.head.score_channels
    assigned = box_index[0] >= 0
    truth = torch.tensor([box], dtype=torch.float32).expand(int(assigned.sum()), 4)
    flat_logits, flat_deltas = torch.zeros(len(references), outputs), torch.zeros(len(references), 4)
    if method == "overlap":
        flat_logits[:, 0] = 20.0
        flat_logits[assigned, 0], flat_logits[assigned, label + 1] = 0.0, 20.0
        flat_deltas[assigned] = model.head.encode_boxes(truth, references[assigned])
    else:
        flat_logits[:] = -20.0
        flat_logits[assigned, label] = 20.0
        size, centre = truth[:, 2:] - truth[:, :2], (truth[:, 2:] + truth[:, :2]) / 2
        cells = references[assigned]
        flat_deltas[assigned] = torch.cat([(centre - cells[:, :2]) / cells[:, 2:], (size / cells[:, 2:]).log()], 1)
    per_position = len(model.head.reference_sizes(0))
    logits, deltas, start = [], [], 0
    for m in empty_maps(model):
        height, width = m.shape[2:]
        stop = start + height * width * per_position
        for flat, values, out in ((flat_logits, outputs, logits), (flat_deltas, 4, deltas)):
            out.append(flat[start:stop].reshape(1, height, width, per_position * values).permute(0, 3, 1, 2))
        start = stop
    return Output([], logits, deltas)


@pytest.mark.parametrize("method", METHODS)
def test_detection_loss_of_perfect_predictions_is_zero(method):
    model = make_model(method)
    box = [20.0, 22.0, 33.0, 30.0]
    output = perfect_output(method, model, box, label=1)
    criterion = make_loss(method, model)
    losses = criterion(output, make_batch([box], labels=[1]))
    assert losses["cls"].item() < 1e-4 and losses["reg"].item() < 1e-4
    (detections,) = model.decode(output, score_threshold=0.5)
    assert len(detections.boxes) == 1 and detections.labels.tolist() == [1]
    assert torch.allclose(detections.boxes[0], torch.tensor(box), atol=1e-3)
    wrong = criterion(output, make_batch([box], labels=[0]))
    assert wrong["cls"] > losses["cls"] + 1


@pytest.mark.parametrize("method", METHODS)
def test_detection_loss_trains_background_without_targets(method):
    model = make_model(method)
    images = torch.randn(2, 1, *SIZE)
    empty = ([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [torch.zeros(0, dtype=torch.bool)] * 2)
    losses = make_loss(method, model)(model(images), Batch(images, *empty))
    assert losses["cls"] > 0 and losses["reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_detection_loss_is_zero_in_ignore_regions():
    model = make_model("centre")
    output = model(torch.randn(1, 1, *SIZE))
    whole_image = [[0.0, 0.0, SIZE[1], SIZE[0]]]
    losses = DetectionLoss(model)(output, make_batch(whole_image, ignore=[True]))
    assert losses["cls"].item() == 0.0


def test_detection_loss_mines_three_negatives_per_positive():
    model = make_model("overlap")
    box = [20.0, 22.0, 33.0, 30.0]
    output = perfect_output("overlap", model, box, label=0)
    for logits in output.logits:
        logits.zero_()  # every anchor has a cross-entropy of log(3)
    losses = DetectionLoss(model)(output, make_batch([box], labels=[0]))
    assert losses["cls"].item() == pytest.approx(4 * math.log(3), rel=1e-5)
