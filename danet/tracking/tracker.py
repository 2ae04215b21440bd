"""Follows targets through a video: turns the detections of single frames into tracks with stable ids.

Each frame takes these steps:

1. The motion of the camera moves all targets with the picture; a cut ends all of them (``camera_motion``).
2. A Kalman filter with constant velocity predicts every target (``kalman``).
3. Detections with a high score are assigned to targets, then those with a low score to the remaining targets, as in
   ByteTrack (Zhang et al., ECCV 2022, https://arxiv.org/abs/2110.06864), but by Mahalanobis distance instead of IoU
   (``association``).
4. A confirmed target without a detection, and a detection beyond its gate, still belong together if they are close and
   there is no other choice.
5. Each target has an evidence, which detections raise and misses lower: a sequential test as in Blackman and Popoli,
   Design and Analysis of Modern Tracking Systems, 1999, chapter 6. A target is reported once its evidence reaches a
   threshold (track before confirm). Its detections before, also those with low scores, are then found backwards in
   time and reported with it (``weak_detections``).
6. The class of a target is that with the largest sum of scores over the whole track.

The values of the options are our decision, set by hand on three tuning videos (IR_DRONE_043, IR_DRONE_045 and
IR_BIRD_028 of the Svanstrom dataset).
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from danet.boxes import Detections, area, intersection
from danet.data.video import Frame
from danet.tracking.association import assign, pair_costs
from danet.tracking.camera_motion import CameraMotion, Motion
from danet.tracking.kalman import KalmanFilter, States, to_boxes, to_measurements, warp
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.tracks import EarlierBox, Track, Tracks
from danet.tracking.weak_detections import WeakDetections

SCORE_WINDOW_FRAMES = 15
"""Frames over which the score of a track is averaged."""
TRAIL_POINTS = 64
"""Centres that a track remembers for drawing."""
MAX_SHARED_FRACTION = 0.8
"""If two boxes share more than this fraction of the smaller box, only the one with the higher score is used."""
MAX_TARGETS = 1000
"""Maximum number of targets that are followed at the same time; further detections begin no new target."""
DEFAULT_INTERVAL_S = 0.04
"""Time between two frames of a source that states none, such as a folder of images."""
INTERVAL_WEIGHT = 0.1
"""Weight of the newest interval in the running mean of the time between frames."""


@dataclass
class _Target:
    """What is known of one target beside its state."""

    evidence: float
    class_scores: np.ndarray
    """float64 ``[classes]``: sum of the scores of its detections by class."""
    box: tuple[float, float, float, float]
    """Box of the last detection."""
    first_seen: float
    """Time of the first detection, in seconds of the tracker's clock."""
    last_seen: float
    origin: np.ndarray
    """Centre of the first detection (x, y), moved with the camera."""
    id: int = 0
    """0 until the target is confirmed."""
    hits: int = 1
    recent: deque = field(default_factory=lambda: deque(maxlen=SCORE_WINDOW_FRAMES))
    """(score, label) of the detection of each of the last frames; (0, -1) without one."""
    trail: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    unconfirmed: deque = field(default_factory=lambda: deque(maxlen=TRAIL_POINTS))
    """(number of the frame, box, score) of each detection before the target is confirmed; empty once it is reported."""


class Tracker:
    """Follows the targets of one source after the other; numbers of targets are never used again.

    Args:
        options: see ``TrackerOptions``.
        kalman: the filter.
        classes: names of the classes to report, or None for all. The class is decided over the track, so that
            detections of the other classes count too.

    Attributes:
        cuts: number of cuts between shots so far.

    Example:
        >>> import torch
        >>> tracker = Tracker(TrackerOptions(camera_motion=False))
        >>> for index in range(5):
        ...     box = torch.tensor([[10.0 + 3 * index, 20.0, 14.0 + 3 * index, 23.0]])
        ...     found = Detections(box, torch.tensor([0.8]), torch.tensor([0]), ["drone"])
        ...     tracks = tracker.update(found, seconds=index / 30)
        >>> tracks
        Tracks(1: 1 drone 0.80 at (22.0, 20.0, 26.0, 23.0))
    """

    def __init__(
        self,
        options: TrackerOptions | None = None,
        *,
        kalman: KalmanFilter | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.options = options or TrackerOptions()
        self.kalman = kalman or KalmanFilter()
        self.classes = None if classes is None else list(classes)
        self.cuts = 0
        self._ids: Iterator[int] = itertools.count(1)
        self._targets: list[_Target] = []
        self._states = self.kalman.initiate(np.zeros((0, 4)))
        self._weak = WeakDetections(self.kalman, gate=self.options.gate, frames=TRAIL_POINTS)
        self.begin_source()

    @property
    def score_threshold(self) -> float:
        """The lowest score of a detection that the tracker uses."""
        return self.options.low_score

    @property
    def followed_boxes(self) -> np.ndarray:
        """Boxes of all targets in the last frame, float64 ``[M, 4]``, also of those that are not confirmed yet."""
        return to_boxes(self._states.mean)

    def begin_source(self, classes: Sequence[str] | None = None) -> None:
        """Ends all targets; call it before the frames of another source.

        Args:
            classes: names of the classes to report in this source, if the tracker was made without.
        """
        self._reported = classes if self.classes is None else self.classes
        self._camera = CameraMotion() if self.options.camera_motion else None
        self._end_targets()
        self._clock = 0.0
        self._frame = 0
        self._source_time: float | None = None
        self._interval: float | None = None

    def update_frame(self, frame: Frame, detections: Detections) -> Tracks:
        """Like ``update``, for a frame of a source."""
        return self.update(detections, seconds=frame.time, image=frame.image)

    def update(
        self,
        detections: Detections,
        *,
        seconds: float | None = None,
        image: np.ndarray | None = None,
        motion: Motion | None = None,
    ) -> Tracks:
        """Takes the detections of the next frame.

        Args:
            detections: of all classes, with all scores from ``score_threshold`` on.
            seconds: time of the frame; None for DEFAULT_INTERVAL_S after the frame before. Where the time does not
                increase, as after a new connection to a camera, the usual interval is assumed.
            image: the frame, from which the motion of the camera is estimated; None for a still camera.
            motion: the motion of the camera, if it is known.

        Returns:
            The confirmed targets of this frame.
        """
        elapsed = self._advance_clock(seconds)
        self._frame += 1
        if motion is None and image is not None and self._camera is not None:
            motion = self._camera.estimate(image)
        if motion is not None and motion.is_cut:
            self.cuts += 1
            self._end_targets()
        self._drop_ended()  # before a target takes a detection after a long pause
        self._predict(elapsed, motion)

        boxes, scores, labels = (
            np.asarray(values, np.float64) for values in (detections.boxes, detections.scores, detections.labels)
        )
        usable = np.isfinite(boxes).all(1) & (scores >= self.options.low_score) if len(scores) else np.zeros(0, bool)
        boxes, scores, labels = boxes[usable], scores[usable], labels[usable].astype(np.int64)
        single = _without_duplicates(boxes, scores)
        boxes, scores, labels = boxes[single], scores[single], labels[single]
        measurements = to_measurements(boxes)
        is_high = scores >= self.options.high_score
        free_targets, free = np.arange(len(self._targets)), np.ones(len(scores), bool)
        pairs: list[tuple[int, int]] = []
        for level in (is_high, ~is_high):
            candidates = np.flatnonzero(level & free)
            costs = pair_costs(
                self.kalman, self._states.take(free_targets), measurements[candidates], gate=self.options.gate
            )
            rows, columns = assign(costs)
            pairs += zip(free_targets[rows].tolist(), candidates[columns].tolist(), strict=True)
            free[candidates[columns]] = False
            free_targets = np.delete(free_targets, rows)

        jumps = self._find_jumps(free_targets, np.flatnonzero(free & is_high), measurements, labels)
        for index, found in jumps:
            moved = self.kalman.initiate(measurements[found : found + 1])
            self._states.mean[index], self._states.covariance[index] = moved.mean[0], moved.covariance[0]
            free[found] = False
        pairs += jumps
        free_targets = np.setdiff1d(free_targets, [index for index, _ in jumps])

        classes = detections.classes or []
        self._correct(pairs, boxes, measurements, scores, labels)
        for missed in free_targets:
            target = self._targets[missed]
            target.evidence -= self.options.miss if target.id else self.options.tentative_miss
            target.recent.append((0.0, -1))
        self._drop_ended()
        self._weak.add(self._frame, elapsed, motion, boxes[free & ~is_high], scores[free & ~is_high])
        begins = np.flatnonzero(free & is_high)[: max(0, MAX_TARGETS - len(self._targets))]
        self._begin(begins, boxes, measurements, scores, labels, len(classes))
        self._confirm()
        return self._report(classes)

    def _advance_clock(self, seconds: float | None) -> float:
        """Seconds since the frame before, on a clock that never stands still or goes back."""
        before, self._source_time = self._source_time, seconds
        if seconds is not None and before is not None and math.isfinite(seconds) and seconds > before:
            elapsed = seconds - before
            if self._interval is None:
                self._interval = elapsed
            elif elapsed < self.options.max_gap:
                self._interval += INTERVAL_WEIGHT * (elapsed - self._interval)
        elif before is None and seconds is not None:
            elapsed = 0.0  # the first frame
        else:
            elapsed = DEFAULT_INTERVAL_S if self._interval is None else self._interval
        self._clock += elapsed
        return elapsed

    def _predict(self, elapsed: float, motion: Motion | None) -> None:
        if not self._targets:
            return
        if motion is not None:
            self._states = warp(self._states, motion.matrix)
            for target in self._targets:
                target.origin = motion.matrix @ [*target.origin, 1.0]
                target.trail = target.trail @ motion.matrix[:, :2].T + motion.matrix[:, 2]
        self._states = self.kalman.predict(self._states, elapsed)

    def _find_jumps(
        self, targets: np.ndarray, candidates: np.ndarray, measurements: np.ndarray, labels: np.ndarray
    ) -> list[tuple[int, int]]:
        """Pairs of a confirmed target and a detection of its class beyond the gate that can only belong together.

        A target jumps where the camera was jerked, and at a cut between two shots of the same scene.
        """
        confirmed = np.array([index for index in targets if self._targets[index].id], np.int64)
        if not len(confirmed) or not len(candidates):
            return []
        places, found = self._states.mean[confirmed, :4], measurements[candidates]
        size = np.exp(np.maximum(places[:, None, 2:].mean(2), found[None, :, 2:].mean(2)))
        distance = np.hypot(*(places[:, None, :2] - found[None, :, :2]).transpose(2, 0, 1))
        classes = np.array([self._targets[index].class_scores.argmax() for index in confirmed])
        is_near = (distance <= self.options.max_jump * size) & (classes[:, None] == labels[candidates])
        alone = is_near & (is_near.sum(0) == 1)[None] & (is_near.sum(1) == 1)[:, None]
        return [(int(confirmed[row]), int(candidates[column])) for row, column in np.argwhere(alone)]

    def _correct(
        self,
        pairs: list[tuple[int, int]],
        boxes: np.ndarray,
        measurements: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        if not pairs:
            return
        mine, theirs = map(list, zip(*pairs, strict=True))
        corrected = self.kalman.update(self._states.take(mine), measurements[theirs])
        self._states.mean[mine], self._states.covariance[mine] = corrected
        for index, found in pairs:
            target, score = self._targets[index], float(scores[found])
            target.evidence = min(target.evidence + self._gain(score), self.options.max_evidence)
            _add_score(target, score, int(labels[found]))
            target.box, target.last_seen = _as_box(boxes[found]), self._clock
            target.hits += 1
            if target.id == 0:
                target.unconfirmed.append((self._frame, target.box, score))
            target.trail = np.vstack([target.trail, measurements[found, :2]])[-TRAIL_POINTS:]

    def _gain(self, score: float) -> float:
        """What a detection adds to the evidence: the logarithm of its odds, relative to those of the neutral score."""
        return float(np.clip(_log_odds(score) - _log_odds(self.options.neutral_score), -1.0, 3.0))

    def _drop_ended(self) -> None:
        """Forgets targets that have been missing for too long, or whose evidence is used up."""
        gap = max(self.options.max_gap, 3 * (self._interval or 0.0))
        kept = [
            index
            for index, target in enumerate(self._targets)
            if self._clock - target.last_seen <= gap and target.evidence > 0.0
        ]
        if len(kept) < len(self._targets):
            self._targets = [self._targets[index] for index in kept]
            self._states = self._states.take(kept)

    def _begin(
        self,
        chosen: np.ndarray,
        boxes: np.ndarray,
        measurements: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        class_count: int,
    ) -> None:
        if not len(chosen):
            return
        started = self.kalman.initiate(measurements[chosen])
        self._states = States(*(np.concatenate(both) for both in zip(self._states, started, strict=True)))
        for index in chosen:
            target = _Target(
                evidence=max(self._gain(float(scores[index])), self.options.miss),
                class_scores=np.zeros(max(class_count, int(labels.max()) + 1)),
                box=_as_box(boxes[index]),
                first_seen=self._clock,
                last_seen=self._clock,
                origin=measurements[index, :2],
                trail=measurements[index : index + 1, :2],
            )
            target.unconfirmed.append((self._frame, target.box, float(scores[index])))
            _add_score(target, float(scores[index]), int(labels[index]))
            self._targets.append(target)

    def _confirm(self) -> None:
        for target in self._targets:
            is_proven = target.evidence >= self.options.confirm and target.hits >= self.options.min_hits
            if target.id == 0 and is_proven:
                target.id = next(self._ids)
                # Prepend its weak detections, from the newest to the oldest, as far as there is room.
                first, box, _ = target.unconfirmed[0]
                weak = self._weak.trace(first, box)[::-1]
                target.unconfirmed.extendleft(weak[: TRAIL_POINTS - len(target.unconfirmed)])

    def _report(self, classes: Sequence[str]) -> Tracks:
        reported = []
        predicted = to_boxes(self._states.mean)
        for index, target in enumerate(self._targets):
            if target.id == 0 or self._clock - target.last_seen > self.options.coast:
                continue
            label = int(target.class_scores.argmax())
            name = classes[label] if label < len(classes) else str(label)
            if self._reported is not None and name not in self._reported:
                continue
            earlier = tuple(
                EarlierBox(self._frame - frame, box, score)
                for frame, box, score in target.unconfirmed
                if frame < self._frame
            )
            target.unconfirmed.clear()  # report them once
            is_detected = target.last_seen == self._clock
            mean = self._states.mean[index]
            reported.append(
                Track(
                    id=target.id,
                    box=target.box if is_detected else _as_box(predicted[index]),
                    score=sum(score for score, which in target.recent if which == label) / len(target.recent),
                    label=label,
                    name=name,
                    velocity=(float(mean[4]), float(mean[5])),
                    is_detected=is_detected,
                    hits=target.hits,
                    age=self._clock - target.first_seen,
                    trail=tuple(map(tuple, target.trail.tolist())),
                    displacement=float(np.hypot(*(mean[:2] - target.origin))),
                    earlier=earlier,
                    width_error=float(np.sqrt(self._states.covariance[index, 2, 2])),
                )
            )
        return Tracks(sorted(reported, key=lambda track: track.id), classes)

    def _end_targets(self) -> None:
        self._targets = []
        self._weak.clear()
        self._states = self.kalman.initiate(np.zeros((0, 4)))


def _without_duplicates(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of the detections that remain if boxes suppress others with a lower score.

    The criterion is the intersection divided by the area of the smaller box. With IoU instead, a tight and a loose box
    of the same target would both remain.
    """
    order = np.argsort(-scores, kind="stable")
    shared = intersection(boxes[order][:, None], boxes[order])
    size = area(boxes[order])
    covers = shared > MAX_SHARED_FRACTION * np.maximum(np.minimum(size[:, None], size), 1e-9)
    kept: list[int] = []
    for index in range(len(order)):
        if not covers[index, kept].any():
            kept.append(index)
    return np.sort(order[kept])


def _log_odds(score: float) -> float:
    score = min(max(score, 1e-3), 1 - 1e-3)
    return math.log(score / (1 - score))


def _add_score(target: _Target, score: float, label: int) -> None:
    target.recent.append((score, label))
    if label >= len(target.class_scores):
        target.class_scores = np.pad(target.class_scores, (0, label + 1 - len(target.class_scores)))
    target.class_scores[label] += score


def _as_box(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(side) for side in box)
    return x0, y0, x1, y1
