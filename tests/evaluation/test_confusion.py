import numpy as np
import pytest
from detections import CLASSES, found, random_case, record

from danet.evaluation.confusion import BACKGROUND, NOTHING_DETECTED, confusion_matrix
from danet.evaluation.metrics import evaluate_predictions


def test_confusion_matrix_counts():
    boxes = [(10, 10, 20, 20), (40, 10, 50, 20), (70, 10, 80, 20), (100, 10, 110, 20), (130, 10, 140, 20)]
    image = record(boxes, ["drone", "bird", "kite", "drone", "drone"])
    detections = found(
        [
            boxes[0],  # a drone as a drone
            boxes[0],  # the same drone as a bird, with a higher score: a false alarm
            boxes[1],  # a bird as a drone
            boxes[2],  # a kite, which the model does not know, as a drone
            boxes[3],  # a drone, below the threshold
            (200, 100, 210, 110),  # the background as a bird
        ],
        [0.8, 0.9, 0.7, 0.7, 0.4, 0.6],
        [0, 1, 0, 0, 0, 1],
    )
    matrix = confusion_matrix([image], [detections], CLASSES)
    assert matrix.annotated == ["drone", "bird", "kite", BACKGROUND]
    assert matrix.detected == ["drone", "bird", NOTHING_DETECTED]
    assert matrix.counts == [[1, 0, 2], [1, 0, 0], [1, 0, 0], [0, 2, 0]]


def test_confusion_matrix_leaves_out_ignore_regions():
    image = record([(10, 10, 20, 20), (40, 10, 90, 60)], ["drone", "ignore"], [False, True])
    other = record([(10, 10, 20, 20)], ["kite"], [True])
    detections = found([(10, 10, 20, 20), (50, 20, 60, 30)], [0.8, 0.9])
    matrix = confusion_matrix([image, other], [detections, found()], CLASSES)
    assert matrix.annotated == ["drone", "bird", BACKGROUND]
    assert matrix.counts == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("criterion", ["iou50", "center3"])
@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_agrees_with_the_metrics(seed, criterion):
    records, predictions = random_case(seed)
    for target, label in zip(CLASSES, (0, 1), strict=True):
        metrics = evaluate_predictions(
            records, predictions, CLASSES, target=target, fixed=0.4, criterion=criterion, resamples=2
        )
        counts, point = np.array(metrics.confusion.counts), metrics.criteria[criterion].fixed
        assert metrics.confusion.threshold == 0.4
        assert counts[label, label] == point.tp
        assert counts[label].sum() == point.tp + point.fn  # all objects of the class
        assert counts[:, label].sum() == point.tp + point.fp  # all detections of the class


def test_confusion_matrix_without_detections():
    matrix = confusion_matrix([record([(1, 1, 9, 9)])], [([], [], [])], ["drone"])
    assert matrix.counts == [[0, 1], [0, 0]]
