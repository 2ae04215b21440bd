"""Terms of the overall loss (eq. 10)."""

from danet.losses.detection import DetectionLoss

__all__ = ["DetectionLoss"]
