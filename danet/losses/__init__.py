"""Terms of the overall loss (section 3.3, eq. 10). All of them follow the protocol ``LossTerm``."""

from danet.losses.adcr import ADCR
from danet.losses.detection import DetectionLoss
from danet.losses.term import LossTerm

__all__ = ["ADCR", "DetectionLoss", "LossTerm"]
