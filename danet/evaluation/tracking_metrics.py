"""Metrics of tracks: HOTA, CLEAR MOT (MOTA, identity switches, fragmentations) and IDF1.

- HOTA: Luiten et al., IJCV 2021, https://arxiv.org/abs/2009.07736. Mean over IoU 0.05, 0.10 ... 0.95.
- MOTA: Bernardin and Stiefelhagen, 2008, https://doi.org/10.1155/2008/246309.
- IDF1: Ristani et al., 2016, https://arxiv.org/abs/1609.01775.

Where these papers leave a choice, this module follows TrackEval, the code of the MOT Challenge; the tests compare both.
One difference: a frame without any track interrupts all targets here, while TrackEval leaves such frames out when it
counts fragmentations, so that a video with one target would have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from danet.boxes import iop, iou

HOTA_THRESHOLDS = np.arange(1, 20) * 0.05
EPSILON = np.finfo(float).eps


@dataclass(frozen=True)
class TrackedVideo:
    """The ground-truth tracks and the predicted tracks of one video with T frames.

    Attributes:
        truth_ids: T arrays, int ``[G]``: id of each ground-truth target in the frame.
        truth_boxes: T arrays ``[G, 4]`` (x0, y0, x1, y1) in pixels.
        ids: T arrays, int ``[K]``: id of each predicted track in the frame.
        boxes: T arrays ``[K, 4]``.
        name: of the video.

    Raises:
        ValueError: the lists differ in length, or a number occurs twice in a frame.
    """

    truth_ids: Sequence[np.ndarray]
    truth_boxes: Sequence[np.ndarray]
    ids: Sequence[np.ndarray]
    boxes: Sequence[np.ndarray]
    name: str = ""

    def __post_init__(self) -> None:
        lengths = {len(each) for each in (self.truth_ids, self.truth_boxes, self.ids, self.boxes)}
        if len(lengths) > 1:
            raise ValueError(f"TrackedVideo: all lists must have one entry per frame, got {sorted(lengths)}")
        for frame, ids in enumerate([*self.truth_ids, *self.ids]):
            if len(set(np.asarray(ids).tolist())) < len(ids):
                number = frame % max(len(self.ids), 1)
                raise ValueError(f"TrackedVideo: {self.name} frame {number} holds a number of a track twice")


@dataclass(frozen=True)
class TrackingCounts:
    """What the metrics are made of; the counts of several videos are added.

    Example:
        >>> box = np.array([[10.0, 10.0, 20.0, 20.0]])
        >>> video = TrackedVideo([np.array([1])] * 4, [box] * 4, [np.array([7])] * 4, [box] * 4)
        >>> counts = count_tracking(video)
        >>> counts.hota, counts.mota, counts.idf1
        (1.0, 1.0, 1.0)
    """

    hota_hits: np.ndarray  # [19], matches at each threshold
    association: np.ndarray  # [19], sum of the association accuracy over these matches
    hits: int  # CLEAR MOT, at the one threshold
    misses: int
    false_alarms: int
    switches: int
    fragmentations: int
    identity_hits: int
    objects: int  # boxes of the ground truth
    reported: int  # boxes of the tracks

    def __add__(self, other: "TrackingCounts") -> "TrackingCounts":
        return TrackingCounts(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple:
        """The counts in the order of the fields."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def detection_accuracies(self) -> np.ndarray:
        """DetA at each threshold ``[19]``."""
        return self.hota_hits / np.maximum(1, self.objects + self.reported - self.hota_hits)

    @property
    def association_accuracies(self) -> np.ndarray:
        """AssA at each threshold ``[19]``."""
        return self.association / np.maximum(1, self.hota_hits)

    @property
    def hota(self) -> float:
        """Higher order tracking accuracy, 0 to 1."""
        return float(np.sqrt(self.detection_accuracies * self.association_accuracies).mean())

    @property
    def mota(self) -> float:
        """Multiple object tracking accuracy; negative if there are more errors than objects."""
        return (self.hits - self.false_alarms - self.switches) / max(1, self.objects)

    @property
    def idf1(self) -> float:
        """F1 of the best assignment of whole tracks to whole true tracks, 0 to 1."""
        return 2 * self.identity_hits / max(1, self.objects + self.reported)

    @property
    def recall(self) -> float:
        """Share of the objects that a track covers."""
        return self.hits / max(1, self.objects)

    @property
    def precision(self) -> float:
        """Share of the boxes of tracks that cover an object."""
        return self.hits / max(1, self.reported)

    def to_json(self) -> dict[str, float | int]:
        """The metrics and the counts."""
        return {
            "hota": self.hota,
            "deta": float(self.detection_accuracies.mean()),
            "assa": float(self.association_accuracies.mean()),
            "mota": self.mota,
            "idf1": self.idf1,
            "recall": self.recall,
            "precision": self.precision,
            "identity_switches": self.switches,
            "fragmentations": self.fragmentations,
            "false_alarms": self.false_alarms,
            "misses": self.misses,
            "objects": self.objects,
        }


def count_tracking(video: TrackedVideo, *, threshold: float = 0.5) -> TrackingCounts:
    """Compares the tracks of a video with the ground truth.

    Args:
        video: the tracks.
        threshold: smallest IoU of a match for CLEAR MOT and IDF1; HOTA uses its own 19 thresholds.
    """
    truth_index, truths = _number(video.truth_ids)
    track_index, tracks = _number(video.ids)
    similarities = [
        iou(np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4))
        for a, b in zip(video.truth_boxes, video.boxes, strict=True)
    ]
    frames = list(zip(truth_index, track_index, similarities, strict=True))
    truth_count, track_count = np.zeros(truths), np.zeros(tracks)
    for mine, theirs, _ in frames:
        truth_count[mine] += 1
        track_count[theirs] += 1
    hota_hits, association = _count_hota(frames, truth_count, track_count)
    hits, switches, fragmentations = _count_clear(frames, truths, threshold)
    objects, reported = int(truth_count.sum()), int(track_count.sum())
    return TrackingCounts(
        hota_hits=hota_hits,
        association=association,
        hits=hits,
        misses=objects - hits,
        false_alarms=reported - hits,
        switches=switches,
        fragmentations=fragmentations,
        identity_hits=_count_identity(frames, truth_count, track_count, threshold),
        objects=objects,
        reported=reported,
    )


Frames = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def _count_hota(frames: Frames, truth_count: np.ndarray, track_count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matches and sums of association accuracy at each threshold ``[19]``."""
    # First align whole tracks over the video: matches in a frame prefer tracks that fit in the other frames too.
    together = np.zeros((len(truth_count), len(track_count)))
    for mine, theirs, similarity in frames:
        denominator = similarity.sum(0)[None] + similarity.sum(1)[:, None] - similarity
        share = np.divide(similarity, denominator, out=np.zeros_like(similarity), where=denominator > EPSILON)
        together[np.ix_(mine, theirs)] += share
    union = truth_count[:, None] + track_count[None] - together
    alignment = np.divide(together, union, out=np.zeros_like(together), where=union > 0)
    matches = np.zeros((len(HOTA_THRESHOLDS), *together.shape))
    for mine, theirs, similarity in frames:
        rows, columns = linear_sum_assignment(-alignment[np.ix_(mine, theirs)] * similarity)
        is_hit = similarity[rows, columns] >= HOTA_THRESHOLDS[:, None] - EPSILON
        for level, hit in enumerate(is_hit):
            matches[level, mine[rows[hit]], theirs[columns[hit]]] += 1
    accuracy = matches / np.maximum(1, truth_count[:, None] + track_count[None] - matches)
    return matches.sum((1, 2)), (matches * accuracy).sum((1, 2))


def _count_clear(frames: Frames, truths: int, threshold: float) -> tuple[int, int, int]:
    """Hits, identity switches and fragmentations."""
    last = np.full(truths, -1)  # the track of each target when it was matched last
    before = np.full(truths, -1)  # its track in the frame before
    starts = np.zeros(truths, np.int64)
    hits = switches = 0
    for mine, theirs, similarity in frames:
        # Where a target still has the track of the frame before, keep it.
        scores = similarity + 1000.0 * (theirs[None] == before[mine][:, None])
        scores[similarity < threshold - EPSILON] = 0.0
        rows, columns = linear_sum_assignment(-scores)
        found = scores[rows, columns] > EPSILON
        matched, tracks = mine[rows[found]], theirs[columns[found]]
        switches += int(((last[matched] >= 0) & (last[matched] != tracks)).sum())
        hits += len(matched)
        # A frame in which the target is absent interrupts it too, as in TrackEval.
        starts[matched[before[matched] < 0]] += 1
        last[matched] = tracks
        before[:] = -1
        before[matched] = tracks
    return hits, switches, int((starts[starts > 0] - 1).sum())


def _count_identity(frames: Frames, truth_count: np.ndarray, track_count: np.ndarray, threshold: float) -> int:
    """Boxes that are matched when each true track is assigned to at most one track, so that most boxes match."""
    overlaps = np.zeros((len(truth_count), len(track_count)))
    for mine, theirs, similarity in frames:
        rows, columns = np.nonzero(similarity >= threshold)
        overlaps[mine[rows], theirs[columns]] += 1
    return int(overlaps[linear_sum_assignment(-overlaps)].sum())


def _number(ids: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Replaces numbers by indices from 0; returns them by frame, and how many there are."""
    known = np.unique(np.concatenate([np.asarray(each, np.int64) for each in ids])) if len(ids) else np.zeros(0)
    return [np.searchsorted(known, np.asarray(each, np.int64)) for each in ids], len(known)


def drop_ignored(video: TrackedVideo, regions: Sequence[np.ndarray], *, threshold: float = 0.5) -> TrackedVideo:
    """Removes the boxes of tracks in ignore regions, which then count neither as true nor as false positives.

    A box is removed if it covers no object and its intersection with a region is at least ``threshold`` of its area.
    This is COCO's rule for crowd regions, which the detection metrics use, and TrackEval's for KITTI.

    Args:
        video: its true boxes hold no ignore regions.
        regions: for each frame the ignore regions ``[R, 4]`` in pixels.
        threshold: also the smallest IoU at which a box covers an object.

    Example:
        >>> none, box, region = np.zeros((0, 4)), np.array([[10.0, 10, 20, 20]]), np.array([[0.0, 0, 50, 50]])
        >>> video = TrackedVideo([np.zeros(0)], [none], [np.array([7])], [box])
        >>> count_tracking(video).false_alarms, count_tracking(drop_ignored(video, [region])).false_alarms
        (1, 0)
    """
    ids, boxes = [], []
    for truth, numbers, found, ignored in zip(video.truth_boxes, video.ids, video.boxes, regions, strict=True):
        shared = iop(found.reshape(-1, 1, 4), ignored.reshape(1, -1, 4)).max(1, initial=0.0)
        is_kept = (shared < threshold - EPSILON) | (shared <= EPSILON)
        # Keep boxes that cover an object, each at most one.
        overlap = iou(truth.reshape(-1, 1, 4), found.reshape(1, -1, 4))
        overlap[overlap < threshold - EPSILON] = 0.0
        rows, columns = linear_sum_assignment(-overlap)
        is_kept[columns[overlap[rows, columns] > EPSILON]] = True
        ids.append(numbers[is_kept])
        boxes.append(found[is_kept])
    return replace(video, ids=ids, boxes=boxes)


def link_truth(
    boxes: Sequence[np.ndarray], *, frames: Sequence[int] | None = None, max_jump: float = 2.0
) -> list[np.ndarray]:
    """Assigns track ids to the boxes of a video whose annotations have none (our decision).

    A box continues one of the annotated frame before if their centres differ by at most ``max_jump`` sizes (square root
    of width times height, the larger of both) for each frame between the two; the assignment with the smallest sum of
    distances is used. Any other box begins a new target, also after an annotated frame without it.

    Args:
        boxes: for each annotated frame the boxes of one class ``[G, 4]`` in pixels.
        frames: number of each annotated frame in the video; None if every frame is annotated.
        max_jump: see above.

    Returns:
        For each annotated frame int64 ``[G]``.

    Raises:
        ValueError: ``frames`` and ``boxes`` differ in length, or the frame numbers do not ascend.

    Example:
        >>> first, second = np.array([[0.0, 0, 4, 4], [50, 50, 54, 54]]), np.array([[51.0, 50, 55, 54]])
        >>> [ids.tolist() for ids in link_truth([first, second])]
        [[1, 2], [2]]
    """
    numbers = list(range(len(boxes)) if frames is None else frames)
    if len(numbers) != len(boxes):
        raise ValueError(f"link_truth: frames must have one entry per frame, got {len(numbers)} for {len(boxes)}")
    gaps = np.diff(numbers, prepend=numbers[:1])
    if (gaps[1:] < 1).any():
        again = numbers[1 + int(np.flatnonzero(gaps[1:] < 1)[0])]
        raise ValueError(f"link_truth: frame numbers must ascend, got {again} again or too late")
    newest, result = 0, []
    previous, previous_ids = np.zeros((0, 4)), np.zeros(0, np.int64)
    for frame, gap in zip(boxes, gaps.tolist(), strict=True):
        # Widen the gate by the gap, because a target moves on in the frames between two annotated ones.
        gate = max_jump * gap
        current = np.asarray(frame, np.float64).reshape(-1, 4)
        ids = np.zeros(len(current), np.int64)
        centres = [(each[:, :2] + each[:, 2:]) / 2 for each in (previous, current)]
        sizes = [np.sqrt(np.prod(each[:, 2:] - each[:, :2], axis=1)) for each in (previous, current)]
        distance = np.hypot(*(centres[0][:, None] - centres[1][None]).transpose(2, 0, 1))
        distance = distance / np.maximum(np.maximum(sizes[0][:, None], sizes[1][None]), 1e-6)
        rows, columns = linear_sum_assignment(np.where(distance <= gate, distance, 1e6))
        for row, column in zip(rows, columns, strict=True):
            if distance[row, column] <= gate:
                ids[column] = previous_ids[row]
        new = np.flatnonzero(ids == 0)
        ids[new] = np.arange(newest + 1, newest + 1 + len(new))
        newest += len(new)
        result.append(ids)
        previous, previous_ids = current, ids
    return result
