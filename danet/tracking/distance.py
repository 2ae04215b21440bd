"""Distance of a target from the size of its box, where its true size and the focal length of the camera are known."""

import math
from dataclasses import dataclass

from danet.tracking.tracks import Track
from danet.utils.errors import check_values


@dataclass(frozen=True)
class DistanceEstimator:
    """Estimates distances by the pinhole model: distance = focal length in pixels * width / width in pixels.

    The uncertainty is that of the box's width in the Kalman filter. It does not know how tightly the detector draws
    boxes and from which side the target is seen: use the width of a box at a known distance to set ``target_size``.

    Args:
        target_size: width of the target in metres.
        focal_px: focal length in pixels of the frame: focal length in mm / pixel pitch in mm.

    Raises:
        UserError: a value is not positive.

    Example:
        >>> track = Track(3, (10.0, 10.0, 14.0, 12.0), 0.8, 0, "drone", (0.0, 0.0), True, 9, 0.3, width_error=0.1)
        >>> distance, error = DistanceEstimator(target_size=0.35, focal_px=1200.0).estimate(track)
        >>> round(distance, 3), round(error, 3)
        (105.0, 10.5)
    """

    target_size: float
    focal_px: float

    def __post_init__(self) -> None:
        names = ["target_size", "focal_px"]
        check_values(self, names, "be positive", lambda value: 0 < value < math.inf, prefix="--")

    def estimate(self, track: Track) -> tuple[float, float]:
        """Distance of a track and its standard deviation, in metres."""
        width = max(track.box[2] - track.box[0], 1e-3)
        distance = self.focal_px * self.target_size / width
        return distance, distance * track.width_error
