"""Options of the tracker; importing this loads neither torch nor OpenCV."""

from dataclasses import dataclass

from danet.utils.errors import UserError, check_values


@dataclass(frozen=True)
class TrackerOptions:
    """Options of a ``Tracker``. Raises UserError for a value out of range.

    Example:
        >>> TrackerOptions(high_score=0.6).low_score
        0.1
    """

    high_score: float = 0.4
    """Score of detections that are assigned first, and that may begin a target."""

    low_score: float = 0.1
    """Score of detections that may continue a target; detections with a lower score are not used."""

    neutral_score: float = 0.15
    """A detection with this score neither raises nor lowers the evidence of a target."""

    miss: float = 0.4
    """Amount that each frame without a detection subtracts from the evidence of a confirmed target."""

    tentative_miss: float = 1.0
    """Amount that each frame without a detection subtracts from the evidence of a target that is not confirmed yet."""

    confirm: float = 4.0
    """Evidence at which a target is reported, at most `max_evidence`."""

    max_evidence: float = 12.0
    """Largest evidence of a target."""

    min_hits: int = 3
    """Number of detections before a target is reported."""

    max_gap: float = 1.0
    """Seconds without a detection after which a target ends, at least three frame intervals. It ends earlier if its
    evidence reaches 0."""

    coast: float = 0.2
    """Seconds without a detection during which a target is reported at its predicted place."""

    gate: float = 16.0
    """Largest squared Mahalanobis distance between prediction and detection, of the centres and of the sizes: 16
    excludes one in 3000 detections of a target that moves as the filter assumes."""

    max_jump: float = 2.5
    """Largest distance, in sizes of the target (square root of width times height), to a detection beyond the gate that
    still continues a target if there is no other choice."""

    camera_motion: bool = True
    """Estimate the motion of the camera and recognize cuts."""

    def __post_init__(self) -> None:
        scores = ["high_score", "low_score", "neutral_score"]
        check_values(self, scores, "lie between 0 and 1", lambda value: 0 <= value <= 1)
        positive = ["miss", "tentative_miss", "confirm", "max_evidence", "max_gap", "gate"]
        check_values(self, positive, "be positive", lambda value: value > 0)
        check_values(self, ["coast", "max_jump"], "be 0 or more", lambda value: value >= 0)
        check_values(self, ["min_hits"], "be at least 1", lambda value: value >= 1)
        if self.confirm > self.max_evidence:
            raise UserError(
                f"confirm must be at most max_evidence ({self.max_evidence:g}), got {self.confirm:g}; no target would "
                "be reported"
            )
