"""Precision and recall per frame of boxes with scores, at many thresholds."""

import numpy as np

from danet.boxes import iou

Point = dict[str, float]
"""``threshold``, and the ``recall`` and ``precision`` there."""


class RecallCurve:
    """Counts at each of 900 thresholds of the score, from 0.1 to 0.999.

    Args:
        min_iou: smallest IoU at which a box covers an object.

    Example:
        >>> curve = RecallCurve(0.3)
        >>> box = np.array([[0.0, 0.0, 4.0, 4.0]])
        >>> curve.add([(box, np.array([0.7])), (box + 9, np.array([0.4]))], [box, box])
        >>> curve.find(precision=0.9)["recall"]
        0.5
    """

    def __init__(self, min_iou: float) -> None:
        self.min_iou = min_iou
        self.thresholds = np.linspace(0.1, 0.999, 900)
        self.hits, self.reported, self.objects = np.zeros(900), np.zeros(900), 0

    def add(self, frames: list[tuple[np.ndarray, np.ndarray]], truth: list[np.ndarray]) -> None:
        """Adds a video: boxes ``[K, 4]`` and scores ``[K]`` of each frame, and its objects ``[G, 4]``.

        The boxes are matched to the objects by descending score.
        """
        for (boxes, scores), truths in zip(frames, truth, strict=True):
            self.objects += len(truths)
            overlap = iou(boxes.reshape(-1, 1, 4), truths.reshape(1, -1, 4))
            free = np.ones(len(truths), bool)
            for index in np.argsort(-scores, kind="stable"):
                is_above = scores[index] > self.thresholds
                self.reported += is_above
                best = np.where(free, overlap[index], -1) if len(truths) else np.zeros(0)
                if len(best) and best.max() >= self.min_iou:
                    free[best.argmax()] = False
                    self.hits += is_above

    def find(self, *, precision: float) -> Point | None:
        """The point with the largest recall among those with at least this precision; None if there is none."""
        reaches = self.hits >= precision * np.maximum(self.reported, 1)
        return self._point(int(np.where(reaches, self.hits, -1).argmax())) if reaches.any() else None

    def at(self, threshold: float) -> Point:
        """The point at the threshold that is nearest to ``threshold``."""
        return self._point(int(np.abs(self.thresholds - threshold).argmin()))

    def _point(self, index: int) -> Point:
        return {
            "threshold": float(self.thresholds[index]),
            "recall": float(self.hits[index] / max(self.objects, 1)),
            "precision": float(self.hits[index] / max(self.reported[index], 1)),
        }
