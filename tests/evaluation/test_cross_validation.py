import dataclasses

import numpy as np
import pytest

from danet.evaluation.ablation import RunResult
from danet.evaluation.comparison import Outcome
from danet.evaluation.cross_validation import join_folds


def part(hits, false, objects, threshold, **changes) -> RunResult:
    """A result on one fold; ``hits`` and ``false`` are (score, image), scores descending."""
    outcome = Outcome(
        *(np.array([hit[i] for hit in hits], (float, int)[i]) for i in (0, 1)),
        *(np.array([alarm[i] for alarm in false], (float, int)[i]) for i in (0, 1)),
        np.array(objects),
        threshold,
    )
    result = RunResult("row", 3, "drone", threshold, 0.1, 0.2, 0.3, 0.4, 50.0, 7, 10, 60.0, "compiled", outcome)
    return dataclasses.replace(result, **changes)


def test_join_folds_at_their_own_thresholds():
    first = part([(0.9, 0), (0.7, 1)], [(0.65, 2), (0.2, 0)], [1, 1, 0], threshold=0.7)
    second = part([(0.5, 0), (0.3, 0)], [(0.45, 1)], [2, 0], threshold=0.4, ap50=0.8, steps=20, frames_per_second=None)
    result = join_folds([first, second])
    # At its own threshold the first fold has two hits and no false alarm, the second fold has one of each.
    assert result.precision == pytest.approx(3 / 4)
    assert result.recall == pytest.approx(3 / 4)
    assert result.f1 == pytest.approx(6 / 8)
    assert result.ap50 == pytest.approx(0.6) and result.frames_per_second is None
    assert (result.row, result.seed, result.threshold, result.steps) == ("row", 3, 0.5, 15)
    joined = result.outcome
    assert joined.objects.tolist() == [1, 1, 0, 2, 0]
    # 0.9 and 0.5 have 3.86 and 1.5 times the odds of their thresholds; image indices of the second fold start at 3.
    assert joined.hit_image.tolist() == [0, 3, 1, 3]
    assert joined.hit_scores == pytest.approx([27 / 34, 0.6, 0.5, 9 / 23])
    assert joined.false_image.tolist() == [4, 2, 0]
    assert (np.diff(joined.false_scores) < 0).all()


def test_join_folds_of_one_or_empty_folds():
    alone = part([(0.9, 0)], [(0.8, 1)], [1, 1], threshold=0.5)
    assert join_folds([alone]).outcome.hit_scores == pytest.approx(alone.outcome.hit_scores)
    empty = part([], [], [1], threshold=0.5)
    assert join_folds([alone, empty]).recall == pytest.approx(1 / 3)
    assert join_folds([empty]).precision is None and join_folds([empty]).f1 == 0
