from pathlib import Path

import numpy as np
import pytest

from danet.data.image_record import MAX_BOXES_PER_IMAGE, MAX_CATEGORIES, Repairs, check_categories, make_record
from danet.utils.errors import UserError


def test_make_record_clips_drops_and_counts():
    boxes = [(1, 2, 5, 6), (-3, 5, 7, 15), (41, 5, 44, 8), (5, 5, 5, 8), (30, 20, 40.005, 30), *[(1, 2, 5, 6)] * 2]
    names = ["drone"] * 6 + ["bird"]
    repairs = Repairs()
    record = make_record(Path("a.png"), (40, 30), boxes, names, repairs=repairs, place="a.txt")
    np.testing.assert_array_equal(record.boxes, [[1, 2, 5, 6], [0, 5, 7, 15], [30, 20, 40, 30], [1, 2, 5, 6]])
    assert record.boxes.dtype == np.float32 and record.ignore.tolist() == [False] * 4
    assert record.names == ["drone", "drone", "drone", "bird"]
    assert repairs.lines() == [
        "1 boxes changed: clipped to the image, the first: a.txt",
        "1 boxes dropped: outside the image, the first: a.txt",
        "1 boxes dropped: no area, the first: a.txt",
        "1 boxes dropped: exact duplicates of another box, the first: a.txt",
    ]


def test_make_record_keeps_equal_boxes_with_another_flag():
    boxes, flags = [(1, 2, 5, 6)] * 2, [False, True]
    record = make_record(Path("a.png"), (40, 30), boxes, ["drone"] * 2, ignore=flags, repairs=Repairs())
    assert record.ignore.tolist() == flags


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_make_record_refuses_what_is_not_finite(value):
    with pytest.raises(UserError, match=r"a\.png: a box has a coordinate that is not finite"):
        make_record(Path("a.png"), (40, 30), [(1, 2, value, 6)], ["drone"], repairs=Repairs())


def test_limits_name_the_place():
    boxes = np.zeros((MAX_BOXES_PER_IMAGE + 1, 4))
    with pytest.raises(UserError, match=r"a\.png: 100001 boxes in one image; the limit is 100000"):
        make_record(Path("a.png"), (40, 30), boxes, ["drone"] * len(boxes), repairs=Repairs())
    with pytest.raises(UserError, match=r"data\.yaml: there are 10001 categories; the limit is 10000"):
        check_categories([f"c{i}" for i in range(MAX_CATEGORIES + 1)], "data.yaml")
