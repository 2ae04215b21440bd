import base64
import json

import cv2
import numpy as np
import pytest

from danet.tracking.alarm_output import AlarmOutput
from danet.tracking.alarms import AlarmEvent
from danet.tracking.delivery import Delivery
from danet.utils.errors import UserError


def event(kind, number, level):
    crop = None if level is None else np.full((40, 50, 3), level, np.uint8)
    return AlarmEvent(kind, number, "a.mp4", 9, 0.3, 2, "drone", 0.8, (1.0, 2.0, 5.0, 4.0), None, 0.2, crop, "a")


def test_the_end_replaces_the_picture_of_the_start(tmp_path):
    received = []
    with AlarmOutput(tmp_path, [Delivery("list", received.append)]) as output:
        output.add([event("start", 1, 50), event("start", 2, 90)])
        picture = tmp_path / "alarms" / "1.png"
        assert cv2.imread(str(picture)).max() == 50 and output.path.read_text().count("\n") == 2
        output.add([event("end", 1, 200)])
        assert cv2.imread(str(picture)).min() == 200
    assert sorted(path.name for path in picture.parent.iterdir()) == ["1.png", "2.png"]
    lines = [json.loads(line) for line in output.path.read_text().splitlines()]
    assert [(line["event"], line["alarm"], line["crop"]) for line in lines] == [
        ("start", 1, "alarms/1.png"), ("start", 2, "alarms/2.png"), ("end", 1, "alarms/1.png"),
    ]  # fmt: skip
    messages = [json.loads(text) for text in received]
    pictures = [np.frombuffer(base64.b64decode(each.pop("crop_jpeg")), np.uint8) for each in messages]
    levels = [cv2.imdecode(data, cv2.IMREAD_COLOR).mean() for data in pictures]
    assert levels == pytest.approx([50, 90, 200], abs=2)
    assert messages == [{key: value for key, value in line.items() if key != "crop"} for line in lines]


def test_pictures_of_an_earlier_run_are_removed(tmp_path):
    (tmp_path / "alarms").mkdir()
    for name in ("1.png", "7.png", "map.png", "7.txt"):
        (tmp_path / "alarms" / name).touch()
    with AlarmOutput(tmp_path, []) as output:
        output.add([event("start", 1, 50)])
    assert sorted(path.name for path in (tmp_path / "alarms").iterdir()) == ["1.png", "7.txt", "map.png"]
    assert (tmp_path / "alarms/1.png").stat().st_size > 0


def test_event_without_a_picture(tmp_path):
    received = []
    with AlarmOutput(tmp_path, [Delivery("list", received.append)]) as output:
        output.add([event("start", 1, None)])
    assert "crop" not in json.loads(output.path.read_text()) and "crop_jpeg" not in json.loads(received[0])
    assert not (tmp_path / "alarms").exists()


def test_picture_that_cannot_be_written_is_an_error_and_no_event(tmp_path):
    (tmp_path / "alarms").write_text("a file in the place of the folder")
    with AlarmOutput(tmp_path, []) as output, pytest.raises(UserError, match="alarms"):
        output.add([event("start", 1, 50)])
    assert output.path.read_text() == ""
