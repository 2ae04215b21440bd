import json
import math
import time

import numpy as np
import pytest
from detections import CLASSES, TRUTH, found, random_case, record
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT
from danet.evaluation.metrics import choose_threshold, curve, evaluate_predictions, quick_metrics


def test_counts_at_known_thresholds():
    # 4 objects; scores 0.9 hit, 0.8 false, 0.5 hit, 0.3 hit
    records = [record([TRUTH, (10, 10, 20, 20)]), record([TRUTH, (50, 50, 60, 60)])]
    predictions = [found([TRUTH, (10, 10, 20, 20)], [0.9, 0.3]), found([(200, 200, 210, 210), TRUTH], [0.8, 0.5])]
    metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.2)
    at = metrics.criteria["iou50"].fixed
    assert (at.tp, at.fp, at.fn) == (2, 1, 2)
    assert (at.precision.value, at.recall.value) == pytest.approx((2 / 3, 0.5))
    assert at.f1.value == pytest.approx(4 / 7)
    assert metrics.criteria["iou50"].tuned.f1.value == pytest.approx(6 / 8)
    # precision envelope 1 up to recall 1/4, then 3/4 up to 3/4: 26 and 50 of the 101 points
    assert metrics.criteria["iou50"].ap.value == pytest.approx((26 * 1 + 50 * 0.75) / 101)
    assert metrics.thresholds["recall 0.90 iou50"] is None  # the highest recall is 3 / 4


def test_perfect_and_empty_predictions():
    records = [record([TRUTH]), record([(5, 5, 9, 9)]), record()]
    perfect = [found(r.boxes, [0.9] * len(r.boxes)) for r in records]
    good = evaluate_predictions(records, perfect, CLASSES).criteria["iou50"]
    assert (good.ap.value, good.fixed.f1.value, good.fixed.precision.value) == (1.0, 1.0, 1.0)
    nothing = evaluate_predictions(records, [found()] * 3, CLASSES, threshold=0.3)
    bad = nothing.criteria["iou50"]
    assert (bad.ap.value, bad.fixed.f1.value, bad.fixed.recall.value, bad.fixed.precision.value) == (
        0.0,
        0.0,
        0.0,
        None,
    )
    assert bad.fixed.fn == 2
    json.dumps(nothing.to_json(), allow_nan=False)


def test_metrics_without_images_or_objects_are_undefined():
    for records, predictions in (([], []), ([record()], [found()])):
        metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.3)
        assert metrics.criteria["iou50"].ap.value is None
        assert metrics.criteria["iou50"].fixed.f1.value is None
        json.dumps(metrics.to_json(), allow_nan=False)
        assert quick_metrics(records, predictions, CLASSES)["f1"] == 0.0
        assert choose_threshold(records, predictions, CLASSES)[0] is None


def test_predictions_need_one_entry_per_image():
    with pytest.raises(ValueError, match="2 images, 1 entries"):
        evaluate_predictions([record(), record()], [found()], CLASSES)


def test_size_ranges_ignore_other_sizes():
    small, large = (10, 10, 15, 15), (100, 100, 130, 130)
    stray = [(200, 200, 204, 204), (50, 200, 80, 230)]  # false alarms of 4 and of 30 pixels
    metrics = evaluate_predictions(
        [record([small, large])], [found([small, large, *stray], [0.9, 0.8, 0.7, 0.6])], CLASSES
    )
    counts = {s.name: (s.objects, s.fixed.tp, s.fixed.fp, s.fixed.fn) for s in metrics.scales}
    assert counts == {"small": (1, 1, 1, 0), "medium": (0, 0, 0, 0), "large": (1, 1, 1, 0)}
    assert [s.title for s in metrics.scales] == ["< 14 px", "14 to 18 px", "≥ 18 px"]


def test_size_ranges_are_half_open():
    exactly = (0, 0, 14, 14)
    metrics = evaluate_predictions([record([exactly])], [found([exactly], [0.9])], CLASSES)
    assert [s.objects for s in metrics.scales] == [0, 1, 0]


def test_false_alarms_by_distractor():
    bird = (30, 30, 40, 40)
    records = [
        record([bird], ["bird"]),
        record([bird], ["bird"]),
        record([bird, (60, 60, 80, 80)], ["bird", "airplane"]),
        record(),
        record([TRUTH, bird], ["drone", "bird"]),  # shows a drone, does not count
    ]
    predictions = [
        found([bird, (1, 1, 5, 5)], [0.95, 0.6]),
        found([bird], [0.3]),
        found([bird, bird], [0.8, 0.9], [0, 1]),  # the second one is labeled bird, correctly
        found(),
        found([TRUTH, bird], [0.7, 0.9]),
    ]
    metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.2)
    rates = {group.distractor: group for group in metrics.false_alarms}
    assert {name: group.images for name, group in rates.items()} == {
        "bird": 3, "airplane": 1, "(nothing)": 1, "(all)": 4,
    }  # fmt: skip
    points = ("fixed", "tuned", "recall 0.90 iou50", "recall 0.95 center3")
    values = {name: [group.rates[point].value for point in points] for name, group in rates.items()}
    # fixed 0.5, tuned 0.2, and 0.7 where both recalls are reached
    assert values["bird"] == pytest.approx([3 / 3, 4 / 3, 2 / 3, 2 / 3])
    assert values["airplane"] == [1, 1, 1, 1]
    assert values["(nothing)"] == [0, 0, 0, 0]
    assert values["(all)"] == pytest.approx([3 / 4, 4 / 4, 2 / 4, 2 / 4])


def test_groups_by_recording_and_video():
    records = [record([TRUTH], video=f"v{i}", recording=f"r{i // 2}") for i in range(4)]
    predictions = [found([TRUTH], [score]) for score in (0.9, 0.1, 0.9, 0.9)]
    metrics = evaluate_predictions(records, predictions, CLASSES)
    assert {g.name: (g.images, g.fixed.recall.value) for g in metrics.recordings} == {"r0": (2, 0.5), "r1": (2, 1.0)}
    assert len(metrics.videos) == 4


def test_best_f1_threshold():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    outcome = np.array([HIT, HIT, FALSE_ALARM, HIT, FALSE_ALARM])
    line = curve(scores, outcome, 3)
    threshold, f1 = line.best_f1()
    assert (threshold, f1) == pytest.approx((0.4, 6 / 7))  # keeps four, halfway between 0.6 and 0.2
    assert line.at(threshold)[2] == pytest.approx(f1)


def test_middle_of_best_threshold():
    # 100 hits from 0.9 down to 0.801, one false alarm at 0.3, one hit at 0.2, false alarms below
    scores = np.concatenate([0.9 - 0.001 * np.arange(100), [0.3, 0.2], 0.1 - 0.001 * np.arange(50)])
    outcome = np.array([HIT] * 100 + [FALSE_ALARM, HIT] + [FALSE_ALARM] * 50)
    line = curve(scores, outcome, 101)
    best = line.best_f1()[1]
    f1 = [line.at(threshold)[2] for threshold in scores]
    good = [s for s, value in zip(scores, f1, strict=True) if value >= best - 0.01]
    threshold, chosen = line.middle_of_best()
    below = max(s for s in scores if s < min(good))
    assert threshold == pytest.approx((max(good) + below) / 2)
    assert 0.3 < threshold < 0.6 and best - 0.01 <= chosen == line.at(threshold)[2]
    # without a worse threshold the range ends with the scores
    assert curve(np.array([0.9, 0.7]), np.array([HIT, HIT]), 2).middle_of_best() == (pytest.approx(0.35), 1.0)
    assert curve(np.array([0.9]), np.array([FALSE_ALARM]), 2).middle_of_best() == (None, 0.0)


def test_equal_scores_are_one_threshold():
    line = curve(np.array([0.5, 0.5, 0.5]), np.array([HIT, FALSE_ALARM, HIT]), 2)
    assert line.thresholds.tolist() == [0.5]
    assert line.average_precision() == pytest.approx(2 / 3)


def coco_average_precision(records, predictions, size_range=None):
    """AP at IoU 0.5 of each class by faster-coco-eval."""
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    images = [{"id": i, "width": 320, "height": 256, "file_name": f"{i}.png"} for i in range(len(records))]
    annotations, results = [], []
    for i, (truth, (boxes, scores, labels)) in enumerate(zip(records, predictions, strict=True)):
        for box, name, ignore in zip(truth.boxes.astype(float), truth.names, truth.ignore, strict=True):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": CLASSES.index(name),
                "bbox": xywh, "area": xywh[2] * xywh[3], "iscrowd": int(ignore),
            })  # fmt: skip
        for box, score, label in zip(boxes.astype(float), scores, labels, strict=True):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            results.append({"image_id": i, "category_id": int(label), "bbox": xywh, "score": float(score)})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    truth = faster_coco_eval.COCO({"images": images, "annotations": annotations, "categories": categories})
    evaluation = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(results), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [1, 10, 1000]
    if size_range is not None:
        evaluation.params.areaRng = [[edge**2 for edge in size_range]]
        evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[0, :, :, 0, -1]
    return {name: float(precision[:, index].mean()) for index, name in enumerate(CLASSES)}


@pytest.mark.parametrize("seed", range(5))
def test_ap50_equals_faster_coco_eval(seed):
    records, predictions = random_case(seed)
    expected = coco_average_precision(records, predictions)
    for name in CLASSES:
        ours = evaluate_predictions(records, predictions, CLASSES, target=name, resamples=1).criteria["iou50"].ap.value
        assert ours == pytest.approx(expected[name], abs=1e-6)
    quick = quick_metrics(records, predictions, CLASSES)["ap50"]
    assert quick == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


@pytest.mark.parametrize("index", range(3))
def test_ap50_by_size_equals_faster_coco_eval(index):
    records, predictions = random_case(7, images=150)
    bucket = evaluate_predictions(records, predictions, CLASSES, resamples=1).scales[index]
    size_range = [(0, 14), (14, 18), (18, 1e5)][index]
    assert bucket.objects > 20
    expected = coco_average_precision(records, predictions, size_range)["drone"]
    assert bucket.ap.value == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(list(CRITERIA)))
def test_counts_and_bounds_of_metrics(seed, images, criterion):
    records, predictions = random_case(seed, images)
    metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.3, resamples=20, criterion=criterion)
    for result in metrics.criteria.values():
        for at in (result.fixed, result.tuned):
            assert at.tp + at.fn == result.objects
            for estimate in (at.precision, at.recall, at.f1, result.ap):
                assert estimate.value is None or 0.0 <= estimate.value <= 1.0
            if None not in (at.precision.value, at.recall.value) and at.tp:
                low, high = sorted((at.precision.value, at.recall.value))
                assert low - 1e-12 <= at.f1.value <= high + 1e-12
    objects = sum(s.objects for s in metrics.scales)
    assert objects == metrics.objects
    assert metrics.criteria["iou30"].fixed.tp >= metrics.criteria["iou50"].fixed.tp


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_metrics_are_independent_of_order(seed, random):
    records, predictions = random_case(seed, 8)
    order = list(range(len(records)))
    random.shuffle(order)
    shuffled = []
    for index in order:
        inner = np.array(random.sample(range(len(predictions[index][1])), len(predictions[index][1])), int)
        shuffled.append(tuple(values[inner] for values in predictions[index]))
    before = evaluate_predictions(records, predictions, CLASSES, threshold=0.3, resamples=1).to_json()
    after = evaluate_predictions([records[i] for i in order], shuffled, CLASSES, threshold=0.3, resamples=1).to_json()
    for metrics in (before, after):
        for estimate in _estimates(metrics):
            estimate.pop("low")
            estimate.pop("high")
    assert before == after


def _estimates(value):
    if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _estimates(item)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_additional_false_alarm_never_helps(seed):
    records, predictions = random_case(seed, 6, crowds=False)
    before = evaluate_predictions(records, predictions, CLASSES, resamples=1).criteria["iou50"]
    boxes, scores, labels = predictions[0]
    worse = (np.vstack([boxes, [[300, 240, 310, 250]]]), np.append(scores, 0.99), np.append(labels, 0))
    after = evaluate_predictions(records, [worse, *predictions[1:]], CLASSES, resamples=1).criteria["iou50"]
    assert after.fixed.fp == before.fixed.fp + 1
    if before.objects:
        assert after.ap.value <= before.ap.value
        assert after.fixed.f1.value <= before.fixed.f1.value


def test_curve_agrees_with_counts():
    records, predictions = random_case(3)
    for threshold in (0.1, 0.5, 0.77):
        result = evaluate_predictions(records, predictions, CLASSES, fixed=threshold, resamples=1).criteria["iou50"]
        at = result.fixed
        assert result.curve.at(threshold) == pytest.approx((at.precision.value, at.recall.value, at.f1.value))


def test_threshold_for_recall_is_the_highest():
    records, predictions = random_case(4, crowds=False)
    line = evaluate_predictions(records, predictions, CLASSES, resamples=1).criteria["iou50"].curve
    threshold = line.threshold_for_recall(0.5)
    assert line.at(threshold)[1] >= 0.5 > line.at(math.nextafter(threshold, 1))[1]
    assert line.threshold_for_recall(1.1) is None


def test_other_classes_are_reported():
    records, predictions = random_case(5)
    metrics = evaluate_predictions(records, predictions, CLASSES, resamples=10)
    bird = evaluate_predictions(records, predictions, CLASSES, target="bird", resamples=10)
    assert [r.name for r in metrics.other_classes] == ["bird"]
    assert metrics.other_classes[0].ap.value == bird.criteria["iou50"].ap.value


def test_quick_metrics_agree_with_full_metrics():
    records, predictions = random_case(6)
    predictions = [(boxes, scores, np.zeros_like(labels)) for boxes, scores, labels in predictions]
    quick = quick_metrics(records, predictions, ["drone"])
    full = evaluate_predictions(records, predictions, ["drone"], resamples=1)
    at = full.criteria["iou50"].fixed
    assert quick["ap50"] == pytest.approx(full.criteria["iou50"].ap.value)
    assert (quick["precision"], quick["recall"], quick["f1"]) == pytest.approx(
        (at.precision.value, at.recall.value, at.f1.value)
    )
    assert quick["f1_iou30"] == pytest.approx(full.criteria["iou30"].fixed.f1.value)
    _, f1 = choose_threshold(records, predictions, ["drone"])
    assert quick["best_f1"] - 0.01 <= f1 <= quick["best_f1"]


def test_metrics_speed():
    records, predictions = random_case(0, images=2000, detections=300, videos=100)
    started = time.process_time()
    quick_metrics(records, predictions, CLASSES)
    assert time.process_time() - started < 3.0  # 0.3 s on an idle core
    evaluate_predictions(records, predictions, CLASSES, threshold=0.3)
    assert time.process_time() - started < 10.0  # 1 s
