import math

import numpy as np
import pytest
from detections import CLASSES, TRUTH, found, random_case, record

from danet.evaluation.bootstrap import resample
from danet.evaluation.comparison import Outcome, common_recall, compare, detection_outcome
from danet.evaluation.metrics import ALL, evaluate_predictions, images_by_distractor, recall_point


@pytest.fixture(scope="module")
def case():
    records, predictions = random_case(3, images=60, crowds=False)
    run = detection_outcome(records, predictions, CLASSES, target="drone", criterion="iou30", threshold=0.4)
    return records, predictions, run


def test_outcome_metrics_equal_those_of_evaluate(case):
    records, predictions, run = case
    metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.4, criterion="iou30", resamples=200)
    draws = resample([each.video for each in records], 200)
    value, samples = run.f1(draws)
    expected = metrics.criteria["iou30"].tuned.f1
    assert value == expected.value
    assert np.percentile(samples, [2.5, 97.5]).tolist() == pytest.approx([expected.low, expected.high], abs=1e-6)

    curve = metrics.criteria["iou30"].curve
    assert run.highest_recall == curve.recall[-1]
    shown = images_by_distractor(records, "drone")
    assert list(shown) == [group.distractor for group in metrics.false_alarms]
    for group in metrics.false_alarms:
        rate = group.rates[recall_point(0.90, "iou30")]
        assert run.false_alarms(0.9, shown[group.distractor]) == (None if rate is None else rate.value)
    assert run.false_alarms(0.5, shown[ALL]) > 0
    assert run.false_alarms(1.0, shown[ALL]) is None and run.false_alarms(0.5, np.zeros(60, bool)) is None


def test_resampled_false_alarms_equal_those_of_resampled_images(case):
    records, predictions, run = case
    draws = resample([each.video for each in records], 30, 1)
    images = images_by_distractor(records, "drone")[ALL]
    for recall in (0.5, 0.95 * run.highest_recall, 1.0):
        samples = run.resampled_false_alarms(recall, images, draws)
        for weights, sample in zip(draws.weights.astype(int)[:, draws.groups], samples, strict=True):
            drawn = np.repeat(np.arange(len(records)), weights)
            again = detection_outcome(
                [records[i] for i in drawn],
                [predictions[i] for i in drawn],
                CLASSES,
                target="drone",
                criterion="iou30",
                threshold=0.4,
            )
            expected = again.false_alarms(recall, images[drawn])
            if expected is None:  # recall not reached: all detections count
                expected = images[drawn][again.false_image].sum() / images[drawn].sum()
            assert sample == pytest.approx(expected)


def worse(predictions, rng):
    """The same detections with the scores of about 30 % lowered."""
    result = []
    for boxes, scores, labels in predictions:
        lowered = np.where(rng.random(len(scores)) < 0.3, scores * 0.2, scores)
        result.append((boxes, lowered.astype(np.float32), labels))
    return result


def test_paired_interval_is_narrower(case):
    """The difficulty of a video, which both share, cancels out."""
    records, predictions, run = case
    draws = resample([each.video for each in records], 400)
    images = images_by_distractor(records, "drone")[ALL]
    same = compare([run], [run], draws, recall=0.5, images=images)
    assert (same.f1.value, same.f1.low, same.f1.high) == (0.0, 0.0, 0.0)
    assert (same.false_alarms.value, same.false_alarms_change.value) == (0.0, 0.0)

    other = worse(predictions, np.random.default_rng(0))
    other = detection_outcome(records, other, CLASSES, target="drone", criterion="iou30", threshold=0.4)
    pair = compare([run], [other], draws, recall=0.5, images=images)
    assert pair.f1.value == pytest.approx(run.f1(draws)[0] - other.f1(draws)[0])
    assert pair.f1.low < pair.f1.value < pair.f1.high
    apart = np.subtract(run.f1(draws)[1], np.random.default_rng(1).permutation(other.f1(draws)[1]))
    assert pair.f1.high - pair.f1.low < 0.8 * np.subtract(*np.percentile(apart, [97.5, 2.5]))
    ours, theirs = (each.false_alarms(0.5, images) for each in (run, other))
    assert pair.false_alarms.value == pytest.approx(ours - theirs)
    assert pair.false_alarms_change.value == pytest.approx(ours / theirs - 1)
    # The means of several runs are compared.
    both = compare([run, other], [other], draws, recall=0.5, images=images)
    assert both.f1.value == pytest.approx(pair.f1.value / 2)


def test_compare_at_highest_common_recall():
    box = np.array(TRUTH)
    records = [record([box], video=f"v{i}") for i in range(4)] + [record(video="v4"), record(video="v5")]
    alarm = found([box], [0.3])

    def run(hits):
        predictions = [found([box], [0.9 - 0.1 * i]) if i < hits else found() for i in range(4)] + [alarm, found()]
        return detection_outcome(records, predictions, ["drone"], target="drone", criterion="iou50", threshold=0.5)

    draws = resample([each.video for each in records], 50)
    images = np.array([False] * 4 + [True] * 2)
    assert [run(hits).highest_recall for hits in (4, 2, 0)] == [1.0, 0.5, 0.0]
    assert common_recall([run(4), run(3)], 0.9) == 0.75 and common_recall([run(4)], 0.9) == 0.9
    comparison = compare([run(4)], [run(2), run(3)], draws, recall=0.9, images=images)
    assert comparison.recall == 0.5
    assert comparison.false_alarms.value == 0.0  # all false alarms score lower than the hits
    nothing = compare([run(4)], [run(0)], draws, recall=0.9, images=images)
    assert nothing.recall == 0.0 and nothing.false_alarms.value is None and nothing.f1.value == 1.0
    assert math.isnan(Outcome(*(np.zeros(0),) * 4, np.zeros(3, int), 0.5).highest_recall)
