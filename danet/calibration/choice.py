"""Chooses thresholds for a rate of false alarms from what footage without targets gave."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from danet.calibration.footage import FalseAlarm, Footage, FramesOf
from danet.calibration.rates import allowed_count, upper_limit
from danet.tracking.alarm_options import DEFAULT_HITS, DEFAULT_SCORE, DEFAULT_WINDOW
from danet.utils.errors import UserError

CANDIDATES: tuple[FramesOf, ...] = ((DEFAULT_HITS, DEFAULT_WINDOW), (9, 15), (15, 25), (30, 50))
"""M of N that are tried, from early alarms to late ones (our decision)."""

MIN_WINDOWS = 5
"""Candidates need videos of so many windows on average: shorter ones end before an alarm can begin (our decision)."""

MIN_GAIN = 0.05
"""A later alarm is accepted if it lowers the score by at least this much (our decision)."""

MIN_SCORE = 0.1
"""The lowest score that is chosen; it is that of the detections of a tracker with default options."""

SCORE_STEP = 0.001
"""Scores are chosen in these steps."""

SCORE_MARGIN = 0.005
"""Smallest distance of a score to that of a false alarm below it. Between float32 and bfloat16, of which ``--dtype
auto`` chooses the faster one, scores of tracks differ by less."""


@dataclass(frozen=True)
class AlarmChoice:
    """The alarm thresholds of one M of N."""

    hits: int
    window: int
    score: float
    false_alarms: int
    """In the footage, at these thresholds."""
    at_most_per_hour: float
    """Upper limit of the rate, with 95 % confidence."""
    hours: float
    """Duration of the footage in which such alarms can begin, see ``Footage.hours_for``."""


def choose_alarm(footage: Footage, per_hour: float, candidates: Iterable[FramesOf]) -> list[AlarmChoice]:
    """The thresholds of alarms for each (hits, window); the one to use comes first.

    For each of them it is the lowest score with which the footage shows a rate of at most ``per_hour`` with 95 %
    confidence. If the footage is too short to show it, it is the lowest score without any false alarm, and at least the
    default. Of these, the first of ``candidates`` is used, unless a later one has a score that is lower by MIN_GAIN.
    Later ones count only if the videos last MIN_WINDOWS windows on average.

    Raises:
        UserError: there are more false alarms with a score of 1 than allowed, or the videos are too short for the
            first of ``candidates``.

    Example:
        >>> false_alarms = [FalseAlarm(0.8, "a.mp4", 3.0), FalseAlarm(0.55, "a.mp4", 9.0)]
        >>> footage = Footage(1, 108_000, 5.0, {(6, 10): false_alarms}, [])
        >>> [(choice.score, choice.false_alarms) for choice in choose_alarm(footage, 1.0, [(6, 10)])]
        [(0.555, 1)]
    """
    candidates = list(candidates)
    frames = footage.frames / max(footage.videos, 1)
    if not footage.hours_for(candidates[0][0]):
        hits, window = candidates[0]
        raise UserError(
            f"--negatives: the videos must be longer, got {frames:.0f} frames on average; they end before an alarm "
            f"after {hits} of {window} frames can begin"
        )
    usable = [pair for number, pair in enumerate(candidates) if number == 0 or MIN_WINDOWS * pair[1] <= frames]
    choices = [choice for pair in usable if (choice := _choose_score(footage, per_hour, pair)) is not None]
    if not choices:
        raise UserError(
            f"--negatives: no score gives at most {per_hour:g} false alarms per hour, because tracks of the footage "
            "have the score 1; check that it shows no targets"
        )
    best = choices[0]
    for choice in choices[1:]:
        if choice.score <= best.score - MIN_GAIN + 1e-9:
            best = choice
    return [best, *(choice for choice in choices if choice is not best)]


def choose_detection_score(footage: Footage, per_hour: float, *, pause: float) -> float:
    """The score threshold of detections in single frames for the same rate, see ``choose_alarm``.

    Detections that follow each other within ``pause`` seconds count as one false alarm.
    """
    allowed = allowed_count(per_hour, footage.hours)
    lowest = DEFAULT_SCORE if allowed is None else MIN_SCORE
    chosen = 1.0  # no detection has a higher score
    for score in np.arange(1.0 - SCORE_STEP, lowest - SCORE_STEP / 2, -SCORE_STEP):
        if footage.count_single(score - SCORE_MARGIN, pause=pause) > (allowed or 0):
            break
        chosen = round(float(score), 3)
    return chosen


def _choose_score(footage: Footage, per_hour: float, pair: FramesOf) -> AlarmChoice | None:
    found: Sequence[FalseAlarm] = footage.tracks[pair]  # by descending score
    hours = footage.hours_for(pair[0])
    allowed = allowed_count(per_hour, hours)
    score = DEFAULT_SCORE if allowed is None else MIN_SCORE
    if len(found) > (allowed or 0):
        excluded = found[allowed or 0].score
        if excluded >= 1:
            return None
        score = min(1.0, max(score, math.ceil((excluded + SCORE_MARGIN) / SCORE_STEP) * SCORE_STEP))
    score = round(score, 3)
    count = sum(alarm.score >= score for alarm in found)
    return AlarmChoice(*pair, score, count, upper_limit(count, hours), hours)
