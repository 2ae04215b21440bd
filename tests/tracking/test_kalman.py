import numpy as np
import pytest
from scipy.stats import chi2

from danet.tracking.kalman import KalmanFilter, States, to_boxes, to_measurements, warp


class PlainFilter:
    """The filter of one target, as textbooks write it: full matrices, an explicit inverse, and Joseph's form."""

    def __init__(self, options, measurement):
        self.options = options
        self.x = np.concatenate([measurement, [0.0, 0.0]])
        self.P = np.diag([*np.diag(self.noise(measurement)), options.speed**2, options.speed**2])

    def noise(self, measurement):
        size = np.sqrt(np.exp(measurement[2]) * np.exp(measurement[3]))
        centre = (self.options.centre_noise * size + self.options.centre_noise_pixels) ** 2
        return np.diag([centre, centre, self.options.size_noise**2, self.options.size_noise**2])

    def predict(self, t):
        F = np.eye(6)
        F[0, 4] = F[1, 5] = t
        q = self.options.speed_drift**2
        Q = np.zeros((6, 6))
        for position, velocity in ((0, 4), (1, 5)):
            Q[position, position] = q * t**3 / 3
            Q[position, velocity] = Q[velocity, position] = q * t**2 / 2
            Q[velocity, velocity] = q * t
        Q[2, 2] = Q[3, 3] = self.options.size_drift**2 * t
        self.x, self.P = F @ self.x, F @ self.P @ F.T + Q

    def update(self, z):
        H = np.eye(6)[:4]
        R = self.noise(self.x[:4])
        K = self.P @ H.T @ np.linalg.inv(H @ self.P @ H.T + R)
        self.x = self.x + K @ (z - H @ self.x)
        left = np.eye(6) - K @ H
        self.P = left @ self.P @ left.T + K @ R @ K.T

    def distances(self, z):
        gap = z - self.x[:4]
        S = self.P[:4, :4] + self.noise(self.x[:4])
        centre, size = (gap[i] @ np.linalg.inv(S[i, i]) @ gap[i] for i in (slice(0, 2), slice(2, 4)))
        return centre, size


def random_boxes(rng, count):
    corner, size = rng.uniform(0, 300, (count, 2)), rng.uniform(2, 40, (count, 2))
    return np.concatenate([corner, corner + size], 1)


def test_filter_equals_the_plain_reference():
    rng = np.random.default_rng(0)
    options = KalmanFilter()
    first = to_measurements(random_boxes(rng, 5))
    states = options.initiate(first)
    plain = [PlainFilter(options, z) for z in first]
    for step in range(40):
        seconds = rng.choice([0.0, 1 / 30, 0.04, 0.5])
        states = options.predict(states, seconds)
        for one in plain:
            one.predict(seconds)
        boxes = to_boxes(states.mean) + rng.normal(0, 1, (5, 4)) * [1, 1, 1.5, 1.5]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        measured = to_measurements(boxes)
        centre, size = options.distances(states, measured)
        expected = np.array([[one.distances(z) for z in measured] for one in plain])
        np.testing.assert_allclose(np.stack([centre, size], -1), expected, rtol=1e-7)
        if step % 4 != 3:
            states = options.update(states, measured)
            for one, z in zip(plain, measured, strict=True):
                one.update(z)
        np.testing.assert_allclose(states.mean, [one.x for one in plain], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(states.covariance, [one.P for one in plain], rtol=1e-6, atol=1e-7)


def test_prediction_in_two_steps_equals_one():
    options = KalmanFilter()
    states = options.initiate(to_measurements(np.array([[3.0, 4, 9, 8]])))
    once, twice = options.predict(states, 0.3), options.predict(options.predict(states, 0.1), 0.2)
    np.testing.assert_allclose(once.mean, twice.mean)
    np.testing.assert_allclose(once.covariance, twice.covariance)


def test_distances_of_simulated_targets_are_chi_squared():
    """If targets move and are measured as the filter assumes, 99 % of them lie in the 99 % gate."""
    rng = np.random.default_rng(1)
    options = KalmanFilter(centre_noise=0.0, centre_noise_pixels=1.0)
    count, seconds = 4000, 0.05
    truth = np.tile([100.0, 100.0, 2.0, 1.5, 0.0, 0.0], (count, 1))
    truth[:, 4:] = rng.normal(0, options.speed, (count, 2))

    def measure():
        return truth[:, :4] + rng.normal(0, 1, (count, 4)) * [1.0, 1.0, options.size_noise, options.size_noise]

    states = options.initiate(measure())
    template = options.predict(States(np.zeros((1, 6)), np.zeros((1, 6, 6))), seconds).covariance[0]
    for _ in range(5):
        truth[:, :2] += truth[:, 4:] * seconds
        truth += rng.multivariate_normal(np.zeros(6), template, count)
        states = options.predict(states, seconds)
        measured = measure()
        pairs = [options.distances(states.take([i]), measured[i : i + 1]) for i in range(0, count, 4)]
        inside = np.array([[centre[0, 0], size[0, 0]] for centre, size in pairs]) < chi2.ppf(0.99, 2)
        assert np.all(np.abs(inside.mean(0) - 0.99) < 0.012)
        states = options.update(states, measured)


def test_covariance_stays_positive_over_a_long_run():
    options = KalmanFilter()
    measured = to_measurements(np.array([[3.0, 4, 9, 8]]))
    states = options.initiate(measured)
    for _ in range(5000):
        states = options.update(options.predict(states, 1 / 30), measured)
    assert np.linalg.eigvalsh(states.covariance[0]).min() > 0
    assert np.array_equal(states.covariance[0], states.covariance[0].T)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_warp_turns_position_velocity_and_size(angle):
    scale = 1.25
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, [5.0, -2.0]])
    states = KalmanFilter().initiate(to_measurements(np.array([[10.0, 20, 14, 22]])))
    states.mean[:, 4:] = [3.0, 4.0]
    moved = warp(states, matrix)
    np.testing.assert_allclose(moved.mean[0, :2], linear @ [12.0, 21.0] + [5.0, -2.0])
    np.testing.assert_allclose(moved.mean[0, 4:], linear @ [3.0, 4.0])
    np.testing.assert_allclose(np.exp(moved.mean[0, 2:4]), np.array([4.0, 2.0]) * scale)
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    again = warp(moved, back)
    np.testing.assert_allclose(again.mean, states.mean, atol=1e-9)
    np.testing.assert_allclose(again.covariance, states.covariance, atol=1e-9)
