"""Kalman filter of the centre and size of targets, for many targets at once.

The state of a target is (x, y, a, b, vx, vy): its centre in pixels, the natural logarithms of its width and height in
pixels, and the velocity of the centre in pixels per second. A measurement is a box as (x, y, a, b). The velocity is
constant except for white noise of the acceleration; width and height are random walks (Bar-Shalom, Li and Kirubarajan,
Estimation with Applications to Tracking and Navigation, 2001, chapter 6). The logarithm makes an error of the size
relative: one pixel is much for a target of four pixels and little for one of a hundred. The values of the noise are our
decision, set by hand on videos that are used neither for training nor for validation.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

STATE_SIZE = 6
MEASUREMENT_SIZE = 4


class States(NamedTuple):
    """The states of N targets."""

    mean: np.ndarray
    """float64 ``[N, 6]``."""
    covariance: np.ndarray
    """float64 ``[N, 6, 6]``."""

    def take(self, indices: np.ndarray | list[int]) -> "States":
        """The states of some of the targets."""
        return States(self.mean[indices], self.covariance[indices])


def to_measurements(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes ``[N, 4]`` (x0, y0, x1, y1) in pixels to measurements (x, y, log width, log height).

    Example:
        >>> to_measurements(np.array([[10.0, 10.0, 14.0, 12.0]])).round(2).tolist()
        [[12.0, 11.0, 1.39, 0.69]]
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, np.log(sizes)], 1)


def to_boxes(mean: np.ndarray) -> np.ndarray:
    """Converts states ``[N, 6]`` or measurements ``[N, 4]`` to boxes ``[N, 4]`` (x0, y0, x1, y1) in pixels.

    Example:
        >>> to_boxes(to_measurements(np.array([[10.0, 10.0, 14.0, 12.0]]))).round(6).tolist()
        [[10.0, 10.0, 14.0, 12.0]]
    """
    half = np.exp(np.minimum(mean[:, 2:4], 20.0)) / 2
    return np.concatenate([mean[:, :2] - half, mean[:, :2] + half], 1)


@dataclass(frozen=True)
class KalmanFilter:
    """A Kalman filter with constant velocity, see the description of this module.

    Args:
        centre_noise: standard deviation of a measured centre, as a fraction of the target's size, which is the square
            root of width times height.
        centre_noise_pixels: what is added to it, in pixels.
        size_noise: standard deviation of the measured log width and log height.
        size_drift: standard deviation by which they change within one second.
        speed: standard deviation of the velocity of a new target, in pixels per second.
        speed_drift: standard deviation by which each component of the velocity changes within one second, in pixels per
            second.

    Example:
        >>> kalman = KalmanFilter()
        >>> states = kalman.initiate(to_measurements(np.array([[10.0, 10.0, 14.0, 12.0]])))
        >>> for x in (12.0, 14.0, 16.0):  # two pixels per frame, 25 frames per second
        ...     states = kalman.predict(states, 0.04)
        ...     states = kalman.update(states, to_measurements(np.array([[x, 10.0, x + 4, 12.0]])))
        >>> abs(states.mean[0, 4] - 50.0) < 5  # pixels per second
        np.True_
    """

    centre_noise: float = 0.06
    centre_noise_pixels: float = 0.5
    size_noise: float = 0.2
    size_drift: float = 0.5
    speed: float = 150.0
    speed_drift: float = 150.0

    def initiate(self, measurements: np.ndarray) -> States:
        """Starts states at measurements ``[N, 4]``, with velocity 0."""
        count = len(measurements)
        mean = np.zeros((count, STATE_SIZE))
        mean[:, :MEASUREMENT_SIZE] = measurements
        covariance = np.zeros((count, STATE_SIZE, STATE_SIZE))
        covariance[:, range(MEASUREMENT_SIZE), range(MEASUREMENT_SIZE)] = self._measurement_variance(measurements)
        covariance[:, [4, 5], [4, 5]] = self.speed**2
        return States(mean, covariance)

    def predict(self, states: States, seconds: float) -> States:
        """Predicts the states after ``seconds``, at least 0."""
        transition = np.eye(STATE_SIZE)
        transition[[0, 1], [4, 5]] = seconds
        noise = np.zeros((STATE_SIZE, STATE_SIZE))
        # White noise of the acceleration, integrated over the step.
        noise[[0, 1], [0, 1]] = self.speed_drift**2 * seconds**3 / 3
        noise[[0, 1, 4, 5], [4, 5, 0, 1]] = self.speed_drift**2 * seconds**2 / 2
        noise[[4, 5], [4, 5]] = self.speed_drift**2 * seconds
        noise[[2, 3], [2, 3]] = self.size_drift**2 * seconds
        return States(states.mean @ transition.T, transition @ states.covariance @ transition.T + noise)

    def distances(self, states: States, measurements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared Mahalanobis distances ``[N, M]`` between N predicted states and M measurements.

        Returns:
            The distance of the centres, which follows a chi-squared distribution with 2 degrees of freedom if state and
            measurement belong together, and that of the sizes, likewise.
        """
        variance = self._measurement_variance(states.mean[:, :MEASUREMENT_SIZE])
        gaps = measurements[None] - states.mean[:, None, :MEASUREMENT_SIZE]
        parts = []
        for first in (0, 2):
            index = slice(first, first + 2)
            innovation = states.covariance[:, index, index].copy()
            innovation[:, [0, 1], [0, 1]] += variance[:, index]
            gap = gaps[..., index]
            parts.append(np.einsum("nmi,nij,nmj->nm", gap, np.linalg.inv(innovation), gap))
        return parts[0], parts[1]

    def update(self, states: States, measurements: np.ndarray) -> States:
        """Corrects N states by one measurement each, ``[N, 4]``."""
        mean, covariance = states
        innovation = covariance[:, :MEASUREMENT_SIZE, :MEASUREMENT_SIZE].copy()
        diagonal = range(MEASUREMENT_SIZE)
        innovation[:, diagonal, diagonal] += self._measurement_variance(mean[:, :MEASUREMENT_SIZE])
        # gain = covariance H' innovation^-1, computed as the solution of a linear system
        gain = np.linalg.solve(innovation, covariance[:, :MEASUREMENT_SIZE]).transpose(0, 2, 1)
        gap = (measurements - mean[:, :MEASUREMENT_SIZE])[..., None]
        corrected = covariance - gain @ innovation @ gain.transpose(0, 2, 1)
        # Keep the covariance symmetric, because rounding errors would add up over hours.
        return States(mean + (gain @ gap)[..., 0], (corrected + corrected.transpose(0, 2, 1)) / 2)

    def _measurement_variance(self, measurements: np.ndarray) -> np.ndarray:
        """Variances ``[N, 4]`` of measurements ``[N, 4]`` by the size of their targets."""
        size = np.exp(np.minimum(measurements[:, 2:4].mean(1), 20.0))
        variance = np.full((len(measurements), MEASUREMENT_SIZE), self.size_noise**2)
        variance[:, :2] = (self.centre_noise * size + self.centre_noise_pixels)[:, None] ** 2
        return variance


def warp(states: States, matrix: np.ndarray) -> States:
    """Moves states with the picture, when the camera has moved.

    Args:
        states: N states.
        matrix: float64 ``[2, 3]``, maps a pixel of the frame before to the same point of the scene in this frame.

    Example:
        >>> states = KalmanFilter().initiate(np.array([[10.0, 20.0, 1.0, 1.0]]))
        >>> warp(states, np.array([[1.0, 0.0, 5.0], [0.0, 1.0, -3.0]])).mean[0, :2].tolist()
        [15.0, 17.0]
    """
    linear = matrix[:, :2]
    turn = np.eye(STATE_SIZE)
    turn[:2, :2] = turn[4:, 4:] = linear
    mean = states.mean @ turn.T
    mean[:, :2] += matrix[:, 2]
    mean[:, 2:4] += np.log(max(abs(np.linalg.det(linear)), 1e-6)) / 2
    return States(mean, turn @ states.covariance @ turn.T)
