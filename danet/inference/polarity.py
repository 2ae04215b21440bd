"""Decides on the first frames of a camera whether it is white-hot or black-hot."""

from collections.abc import Callable
from typing import Literal

Polarity = Literal["white", "black"]
"""white: hot is bright, as in the training images. black: hot is dark; the frames are inverted for the network."""

FIRST_FRAMES = 8
"""Frames at the start of a camera for which both polarities are computed."""

EMPTY_FRAMES = 8
"""Successive frames without a target in the chosen polarity for which the other one is computed as well."""

EMPTY_INTERVAL = 16
"""After EMPTY_FRAMES such frames, the other polarity is computed only for every 16th frame without a target."""

DECIDED_INTERVAL = 64
"""The same once targets have decided the polarity: it then changes only if somebody switches the camera over."""

TARGET_SCORE = 0.5
"""Minimum score of a target that counts for a polarity."""

CERTAIN_SCORE = 0.7
"""After the decision, a frame is used in the other polarity only if a target there has at least this score. Among 621
real frames there was none in which a target in the wrong polarity reached it while the right polarity had no target."""

SCORE_MARGIN = 0.2
"""By how much the other polarity must score higher in a frame to be used for it."""

DECIDED = 1.0
"""A polarity is decided when the sums of the scores of the two polarities differ by this much: about two targets."""

MAX_DIFFERENCE = 2.0
"""Limit of the summed difference, so that the decision changes a few frames after a camera was switched to the other
polarity."""


class PolarityTracker:
    """Chooses the polarity of each frame of one camera by the score of the best target in it.

    The network runs in both polarities on the first frames. After these it runs in the polarity that found targets. The
    other one is computed again only for frames without a target, and more rarely while it finds none either: a
    black-hot camera without a target at first, or one that is switched over later, is still recognized. White-hot is
    assumed as long as no target is found.

    Attributes:
        frames: number of frames so far.
        told: the polarity about which the user was told last; None before the first message.

    Example:
        >>> tracker = PolarityTracker()
        >>> [tracker.choose({"white": 0.0, "black": 0.9}.__getitem__) for _ in range(3)], tracker.polarity
        (['black', 'black', 'black'], 'black')
    """

    def __init__(self) -> None:
        self.frames = 0
        self.told: Polarity | None = None
        self._difference = 0.0  # of the summed scores, positive for white
        self._empty_frames = 0

    @property
    def is_decided(self) -> bool:
        """Whether the frames so far decide the polarity."""
        return abs(self._difference) >= DECIDED

    @property
    def polarity(self) -> Polarity:
        """The polarity of the camera; white while it is not decided."""
        return "black" if self._difference <= -DECIDED else "white"

    def choose(self, best_score: Callable[[Polarity], float]) -> Polarity:
        """The polarity of the next frame.

        Args:
            best_score: returns the score of the best target of the frame in a polarity, 0 without a target; it is
                called only for the polarities that are needed.
        """
        chosen = self.polarity
        other: Polarity = "white" if chosen == "black" else "black"
        score = _zero_if_weak(best_score(chosen))
        self._empty_frames = 0 if score else self._empty_frames + 1
        self.frames += 1
        if self.frames > FIRST_FRAMES and (score or self._is_skipped()):
            return chosen
        other_score = _zero_if_weak(best_score(other))
        required = max(score + SCORE_MARGIN, CERTAIN_SCORE if self.is_decided else TARGET_SCORE)
        self._empty_frames = 0 if other_score else self._empty_frames
        difference = self._difference + (score - other_score) * (1 if chosen == "white" else -1)
        self._difference = min(max(difference, -MAX_DIFFERENCE), MAX_DIFFERENCE)
        return other if other_score >= required else chosen

    def _is_skipped(self) -> bool:
        """Whether the other polarity is not computed for a frame without a target."""
        interval = DECIDED_INTERVAL if self.is_decided else EMPTY_INTERVAL
        return self._empty_frames > EMPTY_FRAMES and self._empty_frames % interval > 0


def _zero_if_weak(score: float) -> float:
    return score if score >= TARGET_SCORE else 0.0
