import itertools

import numpy as np
import pytest

from danet.tracking.association import assign, pair_costs
from danet.tracking.kalman import KalmanFilter


def best_by_trial(costs):
    """Tries every assignment: most pairs first, then the smallest sum."""
    rows, columns = costs.shape
    best = (0, 0.0)
    for count in range(1, min(rows, columns) + 1):
        for chosen in itertools.combinations(range(rows), count):
            for places in itertools.permutations(range(columns), count):
                total = costs[list(chosen), list(places)].sum()
                if np.isfinite(total) and (best[0] < count or total < best[1]):
                    best = (count, total)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_assignment_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    costs = rng.normal(0, 10, (rng.integers(1, 5), rng.integers(1, 6)))
    costs[rng.random(costs.shape) < 0.4] = np.inf
    rows, columns = assign(costs)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns) and np.all(np.diff(rows) > 0)
    count, total = best_by_trial(costs)
    assert len(rows) == count and costs[rows, columns].sum() == pytest.approx(total)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 2)])
def test_nothing_to_assign(shape):
    rows, columns = assign(np.full(shape, np.inf))
    assert len(rows) == len(columns) == 0


def test_gate_excludes_other_places_and_other_sizes():
    kalman = KalmanFilter()
    box = np.array([[50.0, 50.0, np.log(8), np.log(4)]])
    states = kalman.update(kalman.predict(kalman.initiate(box), 1 / 30), box)
    candidates = box + np.array([[0, 0, 0, 0], [30, 0, 0, 0], [0, 0, np.log(8), 0], [1, 1, 0.2, -0.2]])
    assert np.isfinite(pair_costs(kalman, states, candidates, gate=13.8)).tolist() == [[True, False, False, True]]


def test_precise_prediction_is_preferred_to_a_vague_one():
    kalman = KalmanFilter()
    boxes = np.array([[50.0, 50.0, 1.5, 1.5], [52.0, 50.0, 1.5, 1.5]])
    states = kalman.initiate(boxes)
    states.covariance[1, :2, :2] *= 400  # a target that has been missing for a while
    costs = pair_costs(kalman, states, np.array([[50.5, 50.0, 1.5, 1.5]]), gate=13.8)
    assert costs[0, 0] < costs[1, 0]
