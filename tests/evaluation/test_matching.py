import pytest
from detections import CLASSES, TRUTH, found, record

from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, IGNORED, flatten, match


def outcomes(truth, prediction, criterion, **options):
    data = flatten([truth], [prediction], CLASSES)["drone"]
    return match(data, CRITERIA[criterion], **options).outcome.tolist()


# A 10 x 10 truth; the comments give intersection / union, intersection / detection area, centre distance.
@pytest.mark.parametrize(
    ("box", "hits"),
    [
        (TRUTH, {"iou50", "iou30", "iop50", "center3"}),
        ((100, 100, 110, 105), {"iou50", "iou30", "iop50", "center3"}),  # 50 / 100, inside, 2.5 px off
        ((100, 100, 110, 104.9), {"iou30", "iop50", "center3"}),  # 49 / 100, inside, 2.55 px off
        ((100, 100, 110, 104), {"iou30", "iop50"}),  # 40 / 100, centre exactly 3 px off: not less than 3
        ((104, 104, 106, 106), {"iop50", "center3"}),  # 4 / 100, inside, same centre
        ((105, 105, 115, 115), set()),  # 25 / 175 = 0.14, 25 / 100 inside, 7.1 px off
        ((94, 94, 116, 116), {"center3"}),  # 100 / 484 = 0.21 both ways, same centre
        ((105, 100, 115, 110), {"iou30", "iop50"}),  # 50 / 150 = 0.33, half inside, 5 px off
        ((95, 100, 115, 110), {"iou50", "iou30", "iop50", "center3"}),  # 100 / 200, half inside, same centre
        ((200, 200, 210, 210), set()),
    ],
)
def test_criteria_on_known_boxes(box, hits):
    accepted = {name for name in CRITERIA if outcomes(record([TRUTH]), found([box], [0.9]), name) == [HIT]}
    assert accepted == hits


def test_truth_is_matched_once_by_best_score():
    near = (101, 100, 111, 110)
    result = outcomes(record([TRUTH]), found([TRUTH, near, TRUTH], [0.5, 0.9, 0.4]), "iou50")
    assert result == [HIT, FALSE_ALARM, FALSE_ALARM]  # by descending score: `near` comes first and takes it


def test_detection_takes_the_better_truth():
    truths = [(100, 100, 110, 110), (103, 100, 113, 110)]
    data = flatten([record(truths)], [found([truths[1], truths[0]], [0.9, 0.8])], CLASSES)["drone"]
    assert match(data, CRITERIA["iou50"]).truth.tolist() == [1, 0]


def test_ignore_region_is_matched_repeatedly_and_ignored():
    region = (0, 0, 60, 60)
    boxes = [(10, 10, 20, 20), (30, 30, 40, 40), (55, 0, 65, 10), (59, 0, 69, 10), TRUTH]
    truth = record([region, TRUTH], ignore=[True, False])
    expected = [
        IGNORED,
        IGNORED,
        IGNORED,
        FALSE_ALARM,
        HIT,
    ]  # half of the third and a tenth of the fourth box are inside
    assert outcomes(truth, found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5]), "iou50") == expected
    # centre criterion: the centres of the third (60, 5) and fourth box are outside
    expected = [IGNORED, IGNORED, FALSE_ALARM, FALSE_ALARM, HIT]
    assert outcomes(truth, found(boxes, [0.9, 0.8, 0.7, 0.6, 0.5]), "center3") == expected


def test_object_inside_ignore_region_can_be_matched():
    truth = record([(90, 90, 120, 120), TRUTH], ignore=[True, False])
    assert outcomes(truth, found([TRUTH, TRUTH], [0.9, 0.8]), "iou50") == [HIT, IGNORED]


def test_ignore_region_applies_to_its_class_or_to_all():
    box = (10, 10, 20, 20)
    for name, expected in (("drone", IGNORED), ("ignore", IGNORED), ("bird", FALSE_ALARM)):
        truth = record([(0, 0, 60, 60)], [name], [True])
        assert outcomes(truth, found([box], [0.9]), "iou50") == [expected]


def test_other_class_or_image_does_not_match():
    assert outcomes(record([TRUTH], ["bird"]), found([TRUTH], [0.9]), "iou50") == [FALSE_ALARM]
    data = flatten([record(), record([TRUTH])], [found([TRUTH], [0.9]), found()], CLASSES)["drone"]
    assert match(data, CRITERIA["iou50"]).outcome.tolist() == [FALSE_ALARM]
