import numpy as np
import pytest

from danet.data.temporal import LAG_TOLERANCE
from danet.data.video import Frame
from danet.inference.frame_history import FRAMES_PER_LAG, FrameHistory


def frame(seconds, value=0, name="a.mp4"):
    return Frame(name, 0, np.full((4, 4), value, np.uint8), time=seconds)


def test_history_returns_the_frames_at_the_lags():
    history = FrameHistory([0.1, 0.5, 1.0])
    past = [history.add(frame(index / 30, index)) for index in range(60)]
    assert past[0] == {} and set(past[3]) == {0.1}
    for index in range(30, 60):
        assert {lag: int(image[0, 0]) for lag, image in past[index].items()} == {
            0.1: index - 3,
            0.5: index - 15,
            1.0: index - 30,
        }


@pytest.mark.parametrize("rate", [8, 25, 60, 400])
@pytest.mark.parametrize("lags", [[0.25], [0.125, 10.0], [10.0, 0.5, 2.0], [0.3, 0.31, 30.0]])
def test_history_finds_a_frame_for_every_lag_at_any_rate(rate, lags):
    history = FrameHistory(lags)
    for index in range(int(rate * 1.5 * max(lags))):
        past = history.add(Frame("a.mp4", index, np.array([[index]]), time=index / rate))
        # A frame exists for each lag that has passed; it is the nearest one, up to the interval between kept frames.
        assert set(past) >= {lag for lag in lags if index >= lag * rate}
        for lag, image in past.items():
            error = abs((index - image[0, 0]) / rate - lag)
            interval = lag / FRAMES_PER_LAG + 1 / rate
            assert error <= (interval / 2 if index >= lag * rate else LAG_TOLERANCE * lag)


def test_history_keeps_a_bounded_number_of_frames_at_any_rate():
    history = FrameHistory([0.1, 1.0])
    for index in range(3000):
        past = history.add(frame(index / 1000, index % 251))
        assert max(map(len, history._frames.values())) <= FRAMES_PER_LAG + 2
    assert set(past) == {0.1, 1.0}


def test_history_forgets_the_past_when_time_jumps_back():
    history = FrameHistory([0.5])
    for index in range(30):
        history.add(frame(index / 30))
    assert history.add(frame(0.0)) == {}
    assert history.add(frame(0.1)) == {}


def test_history_forgets_the_frames_of_another_source():
    """Also if the times of the next video do not jump back, and across an image between two videos."""
    history = FrameHistory([0.5])
    history.add(frame(0.0, name="a.mp4"))
    history.add(frame(0.0, name="b.mp4"))
    assert history.add(frame(0.5, 7, name="c.mp4")) == {}
    assert history.add(Frame("a.png", 0, np.zeros((4, 4), np.uint8))) == {}
    assert history.add(frame(1.0, name="c.mp4")) == {}
    assert set(history.add(frame(1.5, name="c.mp4"))) == {0.5}


def test_history_uses_no_frame_before_a_gap():
    history = FrameHistory([0.5])
    history.add(frame(0.0))
    assert history.add(frame(2.0)) == {}


def test_history_of_images_without_time_is_empty():
    history = FrameHistory([0.5])
    image = Frame("a.png", 0, np.zeros((4, 4), np.uint8))
    assert history.add(image) == {} and history.add(image) == {}
    assert history.missing == [0.5]
    assert FrameHistory([]).add(frame(0.0)) == {}


def test_history_lists_lags_that_the_frame_rate_cannot_give():
    history = FrameHistory([0.1, 0.5])
    missing = []
    for index in range(6):
        history.add(frame(index / 4))
        missing.append(history.missing)
    assert missing == [[], [0.1], [0.1], [0.1], [0.1], [0.1]]


def test_colour_frames_are_kept_in_grey():
    """Of a 4K camera, the frames of one second take 250 MB in grey and 750 MB in colour."""
    history = FrameHistory([0.1, 0.5])
    for index in range(20):
        past = history.add(Frame("a.mp4", index, np.full((8, 8, 3), index, np.uint8), index / 20))
    assert [(frame.shape, frame[0, 0]) for frame in past.values()] == [((8, 8), 17), ((8, 8), 9)]
    kept = {id(frame) for frames in history._frames.values() for _, frame in frames}
    assert len(kept) <= 12, "lags share their frames"
