import numpy as np
import pytest

from danet.calibration.footage import TopScores, duration
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.tracks import Track, Tracks


def random_frames(seed, frames=200):
    """Frames with up to four tracks, whose scores vary and which are missed at times."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0.2, 0.9, 8)
    for index in range(frames):
        first = 4 * (index // 100)  # others after a cut
        tracks = [
            Track(number + 1, (0.0, 0.0, 4.0, 4.0), float(np.clip(rng.normal(levels[number], 0.1), 0, 1)), 0, "drone",
                  (0.0, 0.0), bool(rng.random() < 0.6), 5, 0.5)
            for number in range(first, first + 4) if rng.random() < 0.8
        ]  # fmt: skip
        yield index / 30, Tracks(tracks)


@pytest.mark.parametrize("pair", [(1, 1), (3, 5), (6, 10)])
def test_alarms_at_every_score_are_the_tracks_with_at_least_this_score(pair):
    options = {"hits": pair[0], "window": pair[1], "end": 0.1}
    top = TopScores(AlarmOptions(**options))
    for seconds, tracks in random_frames(0):
        top.update(tracks, seconds=seconds)
    top.finish()
    assert len({alarm.score for alarm in top.found}) > 5
    for score in np.linspace(0.1, 1.0, 46):
        alarms = Alarms(AlarmOptions(score=float(score), **options))
        for seconds, tracks in random_frames(0):
            alarms.update(tracks, seconds=seconds)
        assert alarms.started == sum(alarm.score >= score for alarm in top.found), score


def test_duration_counts_frames_and_not_pauses():
    assert duration([index / 25 for index in range(250)]) == pytest.approx(10.0)
    assert duration([0.0, 0.04, 0.08, 3600.0, 3600.04]) == pytest.approx(0.16)
    assert duration([0.0, 2.0, 4.0, 6.0]) == pytest.approx(8.0), "a slow camera has no pauses"
    assert duration([]) == 0.0 and duration([0.0]) == pytest.approx(0.04)
