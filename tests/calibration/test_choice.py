import numpy as np
import pytest

from danet.calibration.choice import MIN_SCORE, choose_alarm, choose_detection_score
from danet.calibration.footage import FalseAlarm, Footage, SingleFrames
from danet.calibration.rates import allowed_count, hours_needed, upper_limit
from danet.utils.errors import UserError

PAIR = (6, 10)


def footage(scores, hours=10.0, more=None, single=(), frames=300):
    """Footage of which tracks have these scores with 6 of 10 frames, and other scores with other M of N (`more`).

    Alarms of 6 of 10 frames can begin in `hours` of it: in all frames but the first 7.
    """
    tracks = {
        pair: [FalseAlarm(score, "a.mp4", 0.0) for score in sorted(each, reverse=True)]
        for pair, each in {PAIR: scores, **(more or {})}.items()
    }
    return Footage(1, frames, hours * frames / (frames - 7) + 1e-9, tracks, list(single))


@pytest.mark.parametrize(("count", "limit"), [(0, 2.996), (1, 4.744), (5, 10.513), (10, 16.962)])
def test_upper_limit_agrees_with_tables_of_poisson_limits(count, limit):
    """One-sided 95 % limits of a Poisson mean (Garwood 1936)."""
    assert upper_limit(count, 1.0) == pytest.approx(limit, abs=1e-3)
    assert upper_limit(count, 4.0) == pytest.approx(limit / 4, abs=1e-3)


def test_footage_without_false_alarms_must_be_as_long_as_the_rule_of_three_says():
    assert hours_needed(1.0) == pytest.approx(3.0, abs=0.01)
    assert allowed_count(1.0, 2.99) is None and allowed_count(1.0, 3.0) == 0 and allowed_count(1.0, 4.75) == 1


def test_high_rates_are_computed_at_once():
    assert allowed_count(1e9, 10.0) > 9.99e9


def test_score_is_the_lowest_with_the_allowed_number_of_false_alarms():
    (choice,) = choose_alarm(footage([0.9, 0.8, 0.7, 0.6, 0.3], hours=6.5), 1.0, [PAIR])  # 2 are allowed
    assert choice.score == pytest.approx(0.705) and choice.false_alarms == 2
    assert choice.at_most_per_hour <= 1.0


def test_equal_scores_are_all_excluded_or_all_counted():
    (choice,) = choose_alarm(footage([0.9, 0.7, 0.7, 0.7], hours=6.5), 1.0, [PAIR])
    assert choice.score == pytest.approx(0.705) and choice.false_alarms == 1


def test_quiet_footage_gives_the_lowest_score_if_it_is_long_and_the_default_if_it_is_short():
    assert choose_alarm(footage([], hours=3.0), 1.0, [PAIR])[0].score == MIN_SCORE
    short = choose_alarm(footage([0.4], hours=2.9), 1.0, [PAIR])[0]
    assert short.score == 0.5 and short.at_most_per_hour > 1.0


def test_short_footage_gives_no_false_alarm():
    (choice,) = choose_alarm(footage([0.8, 0.3], hours=1.0), 1.0, [PAIR])
    assert choice.score == pytest.approx(0.805) and choice.false_alarms == 0


def test_later_alarms_are_chosen_only_if_they_lower_the_score():
    later = (15, 25)
    lower = choose_alarm(footage([0.8], hours=3.0, more={later: [0.7]}), 1.0, [PAIR, later])
    assert [(each.hits, each.score) for each in lower] == [(15, 0.705), (6, 0.805)]
    similar = choose_alarm(footage([0.8], hours=3.0, more={later: [0.78]}), 1.0, [PAIR, later])
    assert [each.hits for each in similar] == [6, 15]
    short_videos = footage([0.8], hours=3.0, more={later: []}, frames=124)
    assert [each.hits for each in choose_alarm(short_videos, 1.0, [PAIR, later])] == [6], (
        "they end before 15 of 25 frames"
    )


def test_the_first_frames_of_each_video_do_not_count_as_footage():
    """In 100 videos of 30 frames, alarms of 6 of 10 frames begin in 23 frames; with them all, 3 hours would suffice."""
    (choice,) = choose_alarm(Footage(100, 3000, 3.0, {PAIR: []}, []), 1.0, [PAIR])
    assert choice.hours == pytest.approx(2.3) and choice.at_most_per_hour == pytest.approx(2.996 / 2.3, abs=1e-3)
    assert choice.score == 0.5, "the footage is too short"


def test_videos_that_end_before_an_alarm_can_begin_are_an_error():
    with pytest.raises(UserError, match=r"must be longer, got 7 frames on average; they end before .* 6 of 10 frames"):
        choose_alarm(Footage(100, 700, 3.0, {PAIR: []}, []), 1.0, [PAIR])
    assert choose_alarm(Footage(100, 800, 3.0, {PAIR: []}, []), 1.0, [PAIR])


def test_false_alarms_of_the_score_one_are_an_error():
    with pytest.raises(UserError, match="--negatives: no score gives at most 1 false alarms per hour"):
        choose_alarm(footage([1.0], hours=3.0), 1.0, [PAIR])


@pytest.mark.parametrize("hours", [3.0, 10.0, 40.0])
def test_chosen_score_keeps_the_rate_on_other_footage(hours):
    """The claim: with at least 95 % confidence, the true rate above the chosen score is at most the requested one."""
    rng, per_hour, true_rate = np.random.default_rng(0), 1.0, 5.0  # of all false alarms, whose scores are uniform
    held = []
    for _ in range(400):
        scores = rng.uniform(size=rng.poisson(true_rate * hours)).tolist()
        score = choose_alarm(footage(scores, hours), per_hour, [PAIR])[0].score
        held.append(true_rate * (1.0 - score) <= per_hour)
    assert np.mean(held) > 0.94


def test_detections_within_the_pause_are_one_false_alarm():
    found = SingleFrames("a.mp4", [0.0, 1.5, 3.0, 9.0], [0.4, 0.6, 0.5, 0.3])
    assert [alarm.score for alarm in found.false_alarms(0.2, pause=2.0)] == [0.6, 0.3]
    assert [alarm.score for alarm in found.false_alarms(0.45, pause=2.0)] == [0.6]
    assert [alarm.score for alarm in found.false_alarms(0.35, pause=1.0)] == [0.4, 0.6, 0.5]


def test_score_of_single_frames_excludes_the_detections_of_short_footage():
    found = [SingleFrames("a.mp4", [0.0, 9.0], [0.8, 0.6]), SingleFrames("b.mp4")]
    assert choose_detection_score(footage([], hours=1.0, single=found), 1.0, pause=2.0) == pytest.approx(
        0.805, abs=2e-3
    )
    allowed_one = choose_detection_score(footage([], hours=4.8, single=found), 1.0, pause=2.0)
    assert allowed_one == pytest.approx(0.605, abs=2e-3)


def test_score_of_single_frames_is_one_if_no_other_is_high_enough():
    found = [SingleFrames("a.mp4", [0.0], [0.9999])]
    assert choose_detection_score(footage([], hours=1.0, single=found), 1.0, pause=2.0) == 1.0
