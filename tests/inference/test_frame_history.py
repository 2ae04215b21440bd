import numpy as np

from danet.data.video import Frame
from danet.inference.frame_history import MAX_FRAMES, FrameHistory


def frame(seconds, value=0):
    return Frame("a.mp4", 0, np.full((4, 4), value, np.uint8), time=seconds)


def test_history_returns_the_frames_at_the_lags():
    history = FrameHistory([0.1, 0.5])
    past = [history.add(frame(index / 30, index)) for index in range(40)]
    assert past[0] == {} and set(past[3]) == {0.1}
    for index in range(20, 40):
        assert abs(int(past[index][0.1][0, 0]) - (index - 3)) <= 1
        assert abs(int(past[index][0.5][0, 0]) - (index - 15)) <= 1


def test_history_keeps_a_bounded_number_of_frames_at_any_rate():
    history = FrameHistory([0.1, 1.0])
    for index in range(3000):
        past = history.add(frame(index / 1000, index % 251))
        assert len(history._frames) <= MAX_FRAMES
    assert set(past) == {0.1, 1.0}


def test_history_forgets_the_past_when_time_jumps_back():
    history = FrameHistory([0.5])
    for index in range(30):
        history.add(frame(index / 30))
    assert history.add(frame(0.0)) == {}
    assert history.add(frame(0.1)) == {}


def test_history_uses_no_frame_before_a_gap():
    history = FrameHistory([0.5])
    history.add(frame(0.0))
    assert history.add(frame(2.0)) == {}


def test_history_of_images_without_time_is_empty():
    history = FrameHistory([0.5])
    image = Frame("a.png", 0, np.zeros((4, 4), np.uint8))
    assert history.add(image) == {} and history.add(image) == {}
    assert FrameHistory([]).add(frame(0.0)) == {}
