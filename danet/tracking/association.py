"""Assigns detections to predicted targets by the Mahalanobis distance of centres and sizes, not by IoU.

The IoU of two boxes of four pixels is zero as soon as the target moves by four pixels. The distance here is relative to
the uncertainty of the prediction and of the measurement, so that it also compares targets of a few pixels.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from danet.tracking.kalman import KalmanFilter, States


def pair_costs(kalman: KalmanFilter, states: States, measurements: np.ndarray, *, gate: float) -> np.ndarray:
    """Costs of pairs of N predicted states and M measurements ``[N, M]``; infinite for pairs outside of the gate.

    The cost is the negative logarithm of the likelihood of the measurement up to a constant: the squared Mahalanobis
    distances of centre and size, plus the log-determinant of the position covariance. Without the last term, a target
    whose position is uncertain would take detections away from a target whose position is well known.

    Args:
        kalman: the filter, which knows the noise of the measurements.
        states: predictions.
        measurements: ``[M, 4]``, see ``danet.tracking.kalman.to_measurements``.
        gate: largest squared distance of the centres, and of the sizes; both follow a chi-squared distribution with 2
            degrees of freedom if prediction and measurement belong together.

    Example:
        >>> kalman, boxes = KalmanFilter(), np.array([[10.0, 20.0, 1.4, 1.4], [40.0, 20.0, 1.4, 1.4]])
        >>> states = kalman.predict(kalman.initiate(boxes), 0.03)
        >>> np.isfinite(pair_costs(kalman, states, boxes + [1.0, 0.0, 0.1, 0.0], gate=13.8)).tolist()
        [[True, False], [False, True]]
    """
    centre, size = kalman.distances(states, measurements)
    spread = np.log(np.maximum(np.linalg.det(states.covariance[:, :2, :2]), 1e-12))
    return np.where((centre <= gate) & (size <= gate), centre + size + spread[:, None], np.inf)


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assigns rows to columns: as many pairs of finite cost as possible, and of those the smallest sum of costs.

    Args:
        costs: ``[N, M]``; infinite where a pair is not possible.

    Returns:
        Rows and columns of the pairs, int64 ``[P]`` each, by ascending row.

    Example:
        >>> assign(np.array([[1.0, 5.0], [2.0, np.inf], [np.inf, np.inf]]))
        (array([0, 1]), array([1, 0]))
    """
    possible = np.isfinite(costs)
    if not possible.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # Pairs that exclude each other form groups, which are solved one by one: the time of the solver grows with the
    # third power of the number of rows, and most groups have one pair.
    count = len(costs)
    rows, columns = np.nonzero(possible)
    if len(np.unique(rows)) == len(rows) and len(np.unique(columns)) == len(columns):
        return rows, columns
    nodes = count + costs.shape[1]
    graph = csr_matrix((np.ones(len(rows)), (rows, columns + count)), (nodes, nodes))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group[rows], kind="stable")
    found: list[tuple[int, int]] = []
    for pairs in np.split(order, np.flatnonzero(np.diff(group[rows][order])) + 1):
        if len(pairs) == 1:
            found.append((int(rows[pairs[0]]), int(columns[pairs[0]])))
            continue
        mine, theirs = np.unique(rows[pairs]), np.unique(columns[pairs])
        part = costs[np.ix_(mine, theirs)]
        finite = np.isfinite(part)
        # An impossible pair costs more than all possible pairs together, so that as many as possible are made.
        low, high = part[finite].min(), part[finite].max()
        limit = (high - low + 1.0) * (min(part.shape) + 1)
        chosen = linear_sum_assignment(np.where(finite, part - low, limit))
        found += [(int(mine[i]), int(theirs[j])) for i, j in zip(*chosen, strict=True) if finite[i, j]]
    pairs_found = np.array(sorted(found), np.int64).reshape(-1, 2)
    return pairs_found[:, 0], pairs_found[:, 1]
