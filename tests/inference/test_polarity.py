import pytest

from danet.inference.polarity import EMPTY_FRAMES, EMPTY_INTERVAL, FIRST_FRAMES, PolarityTracker


def run(tracker, frames):
    """Chooses for frames of (white score, black score); returns the choices and the polarities computed for each."""
    chosen, computed = [], []
    for white, black in frames:
        asked = []

        def score(polarity, white=white, black=black, asked=asked):
            asked.append(polarity)
            return {"white": white, "black": black}[polarity]

        chosen.append(tracker.choose(score))
        computed.append(len(set(asked)))
    return chosen, computed


@pytest.mark.parametrize(("scores", "expected"), [((0.9, 0.0), "white"), ((0.0, 0.9), "black"), ((0.8, 0.55), "white")])
def test_tracker_decides_on_the_first_frames_and_then_computes_one(scores, expected):
    tracker = PolarityTracker()
    chosen, computed = run(tracker, [scores] * 40)
    assert set(chosen) == {expected} and tracker.polarity == expected and tracker.is_decided
    assert computed == [2] * FIRST_FRAMES + [1] * (40 - FIRST_FRAMES)


def test_tracker_takes_white_without_targets_and_rarely_computes_black():
    tracker = PolarityTracker()
    chosen, computed = run(tracker, [(0.0, 0.3)] * 200)
    assert set(chosen) == {"white"} and not tracker.is_decided
    assert sum(computed) - 200 <= FIRST_FRAMES + EMPTY_FRAMES + 200 / EMPTY_INTERVAL + 1


def test_tracker_recognizes_a_black_hot_target_that_appears_late():
    tracker = PolarityTracker()
    run(tracker, [(0.0, 0.0)] * 500)
    chosen, _ = run(tracker, [(0.0, 0.8)] * 100)
    assert "white" in chosen[:EMPTY_INTERVAL]
    assert set(chosen[EMPTY_INTERVAL + 2 :]) == {"black"} and tracker.polarity == "black"


def test_tracker_follows_a_camera_that_is_switched_over():
    tracker = PolarityTracker()
    run(tracker, [(0.8, 0.0)] * 100)
    for scores, expected in (((0.0, 0.8), "black"), ((0.8, 0.0), "white")):
        chosen, _ = run(tracker, [scores] * 20)
        assert set(chosen) == {expected} and tracker.polarity == expected


def test_tracker_ignores_one_false_alarm_of_the_wrong_polarity():
    tracker = PolarityTracker()
    run(tracker, [(0.8, 0.0)] * 20 + [(0.0, 0.0)] * 3)
    chosen, _ = run(tracker, [(0.0, 0.65)])
    assert chosen == ["white"] and tracker.polarity == "white"


def test_after_the_decision_the_other_polarity_is_computed_every_64_frames():
    tracker = PolarityTracker()
    run(tracker, [(0.9, 0.0)] * 10)
    assert tracker.is_decided
    chosen, computed = run(tracker, [(0.0, 0.0)] * 264)
    assert sum(computed) - 264 == EMPTY_FRAMES + 4  # those without a target at first, then every 64th
    # The camera is switched over: a target in the other polarity is found within 64 frames, and then in every frame.
    chosen, _ = run(tracker, [(0.0, 0.9)] * 100)
    first = chosen.index("black")
    assert first < 64 and set(chosen[first:]) == {"black"}
