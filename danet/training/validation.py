"""The validation images of a training, and the metrics of a network on them."""

import functools
from collections.abc import Callable, Sequence

import torch

from danet.data.coco_dataset import ImageRecord
from danet.data.image_domain import ImageDomain
from danet.data.loader import fingerprint_of
from danet.evaluation.metrics import quick_metrics
from danet.inference.detector import Detector
from danet.inference.predict import predict
from danet.models import DANet

BATCH = 8
"""Images per batch."""
CHUNK = 64
"""Images between two checks for a stop signal."""
SCORE_THRESHOLD = 0.05
"""Only detections with a higher score enter the metrics."""


class Validation:
    """Validation images.

    Args:
        records: the images; empty if the training has none.
        classes: names of the network's classes.

    Example:
        >>> bool(Validation([], ["drone"]))
        False
    """

    def __init__(self, records: Sequence[ImageRecord], classes: Sequence[str]) -> None:
        self.records = records
        self.classes = list(classes)

    def __bool__(self) -> bool:
        """Whether there are images."""
        return len(self.records) > 0

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of images and a hash of them, see ``fingerprint_of``."""
        return fingerprint_of(self.records, with_past=True)

    def measure(self, model: DANet, domain: ImageDomain, before_chunk: Callable[[], bool]) -> dict[str, float] | None:
        """The metrics of a network, see ``quick_metrics``.

        It computes in float32 on every machine, so that a run can be resumed on another one with the same result.

        Args:
            model: the network; it does not change.
            domain: the images that it is trained for. As in ``danet evaluate``, images of another scale are scaled.
            before_chunk: called before every ``CHUNK`` images; if it returns False, the result is None.
        """
        metadata = domain.to_metadata()
        detector = Detector(
            model, metadata=metadata, score_threshold=SCORE_THRESHOLD, polarity="white", dtype=torch.float32
        )
        detections = []
        for start in range(0, len(self.records), CHUNK):
            if not before_chunk():
                return None
            detections += predict(detector, self.records[start : start + CHUNK], BATCH, quiet=True)[0]
        return quick_metrics(self.records, detections, self.classes)
