"""Images and videos with tracks drawn into them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from danet.inference.annotated_output import AnnotatedOutput, auto_upscale


class AnnotatedTracks(AnnotatedOutput):
    """Like ``AnnotatedOutput``, for ``Tracks`` instead of detections.

    Args:
        classes, options: see ``AnnotatedOutput``.
        show_trails: whether the path of each target over the last frames is drawn.

    Example:
        >>> from danet.tracking.tracks import Tracks
        >>> AnnotatedTracks(["drone"], upscale=2.0).draw(np.zeros((48, 64), np.uint8), Tracks()).shape
        (96, 128, 3)
    """

    def __init__(self, classes: Sequence[str], *, show_trails: bool = True, **options: Any) -> None:
        super().__init__(classes, **options)
        self.show_trails = show_trails

    def draw(self, image: np.ndarray, found: Any) -> np.ndarray:
        upscale = auto_upscale(*image.shape[:2]) if self.upscale is None else self.upscale
        return found.plot(image, scores=self.show_scores, upscale=upscale, trails=self.show_trails)
