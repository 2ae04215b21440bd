"""Terms of the overall loss (eq. 10)."""

from danet.losses.adcr import ADCR
from danet.losses.detection import DetectionLoss

__all__ = ["ADCR", "DetectionLoss"]
