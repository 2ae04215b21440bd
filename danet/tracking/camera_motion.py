"""Motion of the camera between two frames, and cuts between shots.

Corners of the frame before are followed into this frame (Shi and Tomasi, CVPR 1994; Lucas and Kanade with image
pyramids), and a similarity (shift, rotation, scale) is fitted to them with RANSAC, so that targets that move on their
own do not count. Where there are too few corners, as in a clear sky, phase correlation gives the shift.
"""

from typing import NamedTuple

import cv2
import numpy as np

from danet.utils.image_io import to_display

WORKING_SIDE_PIXELS = 320
"""Frames are reduced until their longer side has at most this many pixels."""
MIN_SIDE_PIXELS = 16
"""The motion of smaller frames is not estimated."""
MAX_CORNERS = 80
MIN_INLIERS = 8
MIN_INLIER_FRACTION = 0.5
MIN_MOTION_PIXELS = 0.15
"""A smaller motion of all corners of the frame is noise of the estimate and counts as none."""
MAX_ZOOM = 1.25
"""Largest ratio of the scales of two successive frames; a larger one is a wrong fit."""
MAX_SHIFT_FRACTION = 0.35
"""Largest shift between two successive frames, as a fraction of the frame's side."""
MAX_RESIDUAL_RATIO = 0.9
"""A shift is used if it reduces the mean difference of the frames to less than this part."""
MIN_CORRELATION_RESPONSE = 0.1
"""Phase correlation with a lower peak (0 to 1) is not trusted."""
THUMBNAIL = (32, 26)
"""Width and height in pixels of the small pictures that are compared to recognize cuts."""
CUT_CORRELATION = 0.6
"""Two small pictures of a lower correlation may show different shots."""
CUT_DIFFERENCE = 10.0
"""Mean difference of the small pictures, of 256 grey levels, above which they may show different shots."""

STILL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class Motion(NamedTuple):
    """The motion of the picture from the frame before to this one."""

    matrix: np.ndarray
    """float64 ``[2, 3]``: maps a pixel (x, y, 1) of the frame before to the same point of the scene in this frame."""
    is_cut: bool = False
    """Whether this frame begins another shot; the matrix is then the identity."""


class CameraMotion:
    """Estimates the motion between successive frames of one source.

    Example:
        >>> scene = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (200, 260), np.uint8), (0, 0), 2)
        >>> camera = CameraMotion()
        >>> camera.estimate(scene[:160, :200]).is_cut
        False
        >>> camera.estimate(scene[3 : 163, 5:205]).matrix[:, 2].round(1).tolist()  # all moves left and up
        [-5.0, -3.0]
    """

    def __init__(self) -> None:
        self._grey: np.ndarray | None = None
        self._thumbnail: np.ndarray | None = None
        self._shape: tuple[int, ...] = ()
        self._window: np.ndarray | None = None

    def estimate(self, image: np.ndarray) -> Motion:
        """Compares a frame with the frame before.

        Args:
            image: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16.

        Returns:
            The motion; none for the first frame. A frame of another size begins another shot.
        """
        shape = image.shape[:2]
        step = -(-max(shape) // WORKING_SIDE_PIXELS)
        grey = _to_grey(image)
        if step > 1:
            grey = cv2.resize(grey, (max(shape[1] // step, 1), max(shape[0] // step, 1)), interpolation=cv2.INTER_AREA)
        thumbnail = cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, thumbnail_before, shape_before = self._grey, self._thumbnail, self._shape
        self._grey, self._thumbnail, self._shape = grey, thumbnail, shape
        if before is None or thumbnail_before is None:
            return Motion(STILL)
        if shape_before != shape:
            return Motion(STILL, is_cut=True)
        matrix = self._fit(before, grey)
        # Recognize cuts: move the previous frame with the camera, and compare its thumbnail with the current one.
        if matrix is not None and not np.array_equal(matrix, STILL):
            moved = cv2.warpAffine(before, matrix, grey.shape[::-1], flags=cv2.INTER_NEAREST, borderValue=-1)
            covered = cv2.warpAffine(np.full_like(before, 255), matrix, grey.shape[::-1], flags=cv2.INTER_NEAREST)
            thumbnail_before = cv2.resize(moved, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
            mask = cv2.resize(covered, THUMBNAIL, interpolation=cv2.INTER_AREA) == 255
        else:
            mask = np.ones(thumbnail.shape, bool)
        if mask.sum() >= mask.size // 4 and _is_other_shot(thumbnail_before[mask], thumbnail[mask]):
            return Motion(STILL, is_cut=True)
        if matrix is None:
            return Motion(STILL)
        matrix = matrix.copy()
        matrix[:, 2] = _shift_at_full_size(matrix, step)
        return Motion(matrix)

    def _fit(self, before: np.ndarray, grey: np.ndarray) -> np.ndarray | None:
        """The similarity from ``before`` to ``grey``; None if none can be trusted."""
        if min(grey.shape) < MIN_SIDE_PIXELS:
            return None
        corners = cv2.goodFeaturesToTrack(before, MAX_CORNERS, 0.02, 8, blockSize=5)
        if corners is not None and len(corners) >= MIN_INLIERS:
            moved, found, _ = cv2.calcOpticalFlowPyrLK(
                before, grey, corners, np.zeros_like(corners), winSize=(13, 13), maxLevel=3
            )
            is_found = found[:, 0] == 1
            if is_found.sum() >= MIN_INLIERS:
                matrix, inliers = cv2.estimateAffinePartial2D(
                    corners[is_found], moved[is_found], ransacReprojThreshold=1.0, maxIters=200
                )
                if matrix is not None and inliers.sum() >= max(MIN_INLIERS, MIN_INLIER_FRACTION * len(corners)):
                    return _checked(matrix, grey.shape)
        # At half the size, phase correlation takes a tenth of the time, and is as exact as a shift of a sky needs.
        half, half_before = _half(grey), _half(before)
        if self._window is None or self._window.shape != half.shape:
            self._window = cv2.createHanningWindow(half.shape[::-1], cv2.CV_32F)
        (x, y), response = cv2.phaseCorrelate(half_before, half, self._window)
        if response < MIN_CORRELATION_RESPONSE:
            return None
        shift = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
        size = half.shape[::-1]
        inside = cv2.warpAffine(np.ones_like(half), shift, size) > 0.5
        after = np.abs(cv2.warpAffine(half_before, shift, size) - half)[inside]
        # Reject the shift if it does not make the frames more similar, as in frames that contain only noise.
        if not len(after) or after.mean() > MAX_RESIDUAL_RATIO * np.abs(half_before - half)[inside].mean():
            return None
        return _checked(np.array([[1.0, 0.0, 2 * x], [0.0, 1.0, 2 * y]]), grey.shape)


def _half(image: np.ndarray) -> np.ndarray:
    """The image at half the size, float32, with mean 0: the window would turn a mean into a pattern of both frames."""
    size = image.shape[1] // 2, image.shape[0] // 2
    half = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return half - half.mean()


def _to_grey(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return image if image.dtype == np.uint8 else to_display(image)[..., 0]


def _checked(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The matrix; the identity for a motion that is only noise; None if no camera moves so between two frames."""
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    height, width = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    motion = corners @ matrix.T - corners[:, :2]
    if not 1 / MAX_ZOOM <= scale <= MAX_ZOOM or np.any(np.abs(motion) > MAX_SHIFT_FRACTION * max(shape)):
        return None
    return STILL if np.abs(motion).max() < MIN_MOTION_PIXELS else matrix


def _shift_at_full_size(matrix: np.ndarray, step: int) -> np.ndarray:
    """The shift of a matrix that was estimated on frames reduced by ``step``, in pixels of the full frame.

    A pixel of the reduced frame has its centre at ``step * x + (step - 1) / 2``.
    """
    offset = (step - 1) / 2
    return step * matrix[:, 2] + offset - matrix[:, :2] @ [offset, offset]


def _is_other_shot(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether two small pictures, of the same pixels ``[K]`` each, show different scenes.

    A change of brightness or contrast alone, as by the automatic gain of a thermal camera, keeps the correlation.
    """
    difference = float(np.abs(before - now).mean())
    if difference < CUT_DIFFERENCE:
        return False
    deviations = before - before.mean(), now - now.mean()
    power = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    if power < len(before):  # both are nearly uniform: only their brightness differs
        return False
    return float((deviations[0] * deviations[1]).sum()) / power < CUT_CORRELATION
