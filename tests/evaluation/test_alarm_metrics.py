import numpy as np
import pytest

from danet.evaluation.alarm_metrics import AlarmedVideo, delay_of_share, first_alarm_delays, summarize_alarms


def videos():
    drones = [AlarmedVideo(f"d{i}", "drone", 10.0, times, True) for i, times in enumerate([(0.2,), (2.0, 3.0), ()])]
    birds = [AlarmedVideo(f"b{i}", "bird", 90.0, times, False) for i, times in enumerate([(1.0, 2.0, 50.0), ()])]
    return [*drones, *birds, AlarmedVideo("a", "airplane", 180.0, (), False)]


def test_summary_counts_videos_and_alarms():
    summary = summarize_alarms(videos(), within=1.0)
    assert (summary["videos"], summary["detected"], summary["median_delay"]) == (3, 1, pytest.approx(1.1))
    assert summary["probability"].value == pytest.approx(1 / 3)
    assert first_alarm_delays(videos()) == {"d0": 0.2, "d1": 2.0, "d2": None}
    found = summary["false_alarms"]
    assert found["bird"] | {"per_hour": 0} == {"alarms": 3, "videos_with_alarm": 1, "videos": 2, "per_hour": 0}
    assert found["bird"]["per_hour"].value == pytest.approx(60.0)
    assert found["airplane"]["per_hour"].value == 0 and found["airplane"]["per_hour"].low is None, "one video"
    assert found["any"]["per_hour"].value == pytest.approx(30.0)


def test_interval_is_that_of_drawing_videos():
    """Two of four videos have an alarm: the share in resamples follows a binomial distribution."""
    group = [AlarmedVideo(str(i), "drone", 10.0, (0.1,) if i % 2 else (), True) for i in range(4)]
    estimate = summarize_alarms(group, resamples=4000)["probability"]
    rng = np.random.default_rng(5)
    low, high = np.percentile(rng.binomial(4, 0.5, 4000) / 4, [2.5, 97.5])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, low, high)


def with_delays(*delays):
    return [AlarmedVideo(f"d{i}", "drone", 10.0, () if d is None else (d,), True) for i, d in enumerate(delays)]


def test_time_to_alarm_of_a_share_of_the_videos():
    group = with_delays(0.5, None, 0.2, 1.5, 0.3)
    values = [delay_of_share(group, share)["value"] for share in (0.1, 0.2, 0.21, 0.6, 0.8, 0.81, 1.0)]
    assert values == [0.2, 0.2, 0.3, 0.5, 1.5, None, None]
    assert summarize_alarms(group, share=0.6)["delay_of_share"]["value"] == 0.5
    assert delay_of_share(with_delays(0.4), 0.9) == {"value": 0.4, "low": None, "high": None}, "one video"


def test_interval_of_the_time_to_alarm_is_that_of_drawing_videos():
    """The largest of ten drawn delays is 10 with probability 1 - 0.9^10 = 0.65, and below 7 with probability 0.006."""
    interval = delay_of_share(with_delays(*range(1, 11)), 1.0, resamples=4000)
    assert interval == {"value": 10.0, "low": 7.0, "high": 10.0}
    never = delay_of_share(with_delays(*range(1, 10), None), 0.9, resamples=4000)
    assert never["value"] == 9.0 and never["low"] < 9.0 and never["high"] is None, "0.26 of the draws miss two videos"


def test_no_videos():
    summary = summarize_alarms([])
    assert summary["delay_of_share"] == {"share": 0.9, "value": None, "low": None, "high": None}
    assert summary["detected"] == 0 and summary["probability"].value is None and summary["false_alarms"] == {}
