"""Runs the detector and the tracker over footage without targets, and collects what could raise a false alarm."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from danet.boxes import Detections
from danet.data.frame_sources import ImageFiles
from danet.data.video import Frame, Video
from danet.inference.detector import Detector
from danet.inference.stream import DetectionStream
from danet.inference.tile_options import DEFAULT_TILE_EVERY
from danet.tracking.alarm_options import AlarmOptions
from danet.tracking.alarms import Alarms
from danet.tracking.tracker import DEFAULT_INTERVAL_S, Tracker
from danet.tracking.tracker_options import TrackerOptions
from danet.tracking.tracks import Tracks

FramesOf = tuple[int, int]
"""(hits, window) of ``AlarmOptions``."""

MAX_PAUSE_INTERVALS = 3.0
MAX_PAUSE_S = 1.0
"""A longer time between two frames, by both measures, is a pause of the recording and does not count as footage."""


class FalseAlarm(NamedTuple):
    """What raises a false alarm at every threshold up to ``score``."""

    score: float
    file: str
    seconds: float
    """Since the start of the video."""


class TopScores(Alarms):
    """Collects the largest score of each track while it meets all other conditions of an alarm.

    The number of alarms with the same options and a score of ``s`` is the number of ``found`` with a score of at least
    ``s``.

    Example:
        >>> from danet.tracking.tracks import Track, Tracks
        >>> scores = TopScores(AlarmOptions(hits=2, window=3))
        >>> for index, score in enumerate((0.9, 0.4, 0.6)):
        ...     track = Track(1, (0.0, 0.0, 4.0, 4.0), score, 0, "drone", (0.0, 0.0), True, 3, index / 30)
        ...     _ = scores.update(Tracks([track]), seconds=index / 30, file="a.mp4")
        >>> _ = scores.finish()
        >>> scores.found
        [FalseAlarm(score=0.6, file='a.mp4', seconds=0.0)]
    """

    def __init__(self, options: AlarmOptions) -> None:
        super().__init__(options)
        self.found: list[FalseAlarm] = []

    def _forget(self, number: int) -> list:
        watched = self._watched[number]
        if watched.qualified_score is not None:
            begin = max(0.0, watched.last_seen - watched.track.age)
            self.found.append(FalseAlarm(watched.qualified_score, self._place[0], round(begin, 3)))
        return super()._forget(number)


@dataclass
class SingleFrames:
    """The best score of a reported class in each frame of a video with such a detection."""

    file: str
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def false_alarms(self, score: float, *, pause: float) -> list[FalseAlarm]:
        """The false alarms of detections with scores above ``score``: those within ``pause`` seconds are one.

        Example:
            >>> found = SingleFrames("a.mp4", [0.0, 1.0, 9.0], [0.5, 0.7, 0.6])
            >>> [alarm.score for alarm in found.false_alarms(0.4, pause=2.0)]
            [0.7, 0.6]
        """
        alarms: list[FalseAlarm] = []
        last = -np.inf
        for seconds, mine in zip(self.seconds, self.scores, strict=True):
            if mine <= score:
                continue
            if abs(seconds - last) > pause:
                alarms.append(FalseAlarm(mine, self.file, seconds))
            elif mine > alarms[-1].score:
                alarms[-1] = alarms[-1]._replace(score=mine)
            last = seconds
        return alarms


@dataclass
class Footage:
    """What was found in footage without targets.

    Attributes:
        videos: number of sources.
        frames: number of frames.
        hours: duration of all frames.
        tracks: for each (hits, window), what raises an alarm of a track, see ``TopScores``.
        single: what single frames detect.
    """

    videos: int
    frames: int
    hours: float
    tracks: dict[FramesOf, list[FalseAlarm]]
    single: list[SingleFrames]

    def hours_for(self, hits: int) -> float:
        """Hours of the footage in which the alarm of a track can begin.

        No alarm can begin in the first frames of a video, because a track must be confirmed and then be detected in
        ``hits`` frames. In many short videos, counting these frames would make the rate of false alarms too low.

        Example:
            >>> Footage(10, 1400, 1.0, {}, []).hours_for(6)  # without 7 of 140 frames
            0.95
        """
        lead = hits - 1 + TrackerOptions().min_hits - 1
        return self.hours * max(0.0, 1.0 - lead * self.videos / max(self.frames, 1))

    def count_single(self, score: float, *, pause: float) -> int:
        """Number of false alarms of single frames with scores above ``score``."""
        return sum(len(each.false_alarms(score, pause=pause)) for each in self.single)


def watch(
    detector: Detector,
    sources: Sequence[ImageFiles | Video],
    frames_of: Iterable[FramesOf],
    *,
    batch: int = 1,
    tile_every: int = DEFAULT_TILE_EVERY,
    show_count: Callable[[int], None] = lambda count: None,
) -> Footage:
    """Detects and tracks in footage without targets as ``danet track`` does with the default options of the tracker.

    Args:
        detector: its ``score_threshold`` is the lowest score of ``SingleFrames``.
        sources: videos, and folders of images, of which each image counts ``DEFAULT_INTERVAL_S``.
        frames_of: (hits, window) for which alarms of tracks are collected.
        batch: images that go through the network at once.
        tile_every: see ``DetectionStream``.
        show_count: is called with the number of frames so far.
    """
    stream, tracker = DetectionStream(detector, batch=batch, tile_every=tile_every), Tracker()
    tracked = ((source.name, stream.track(source, tracker)) for source in sources)
    return collect(tracked, frames_of, show_count=show_count)


def collect(
    tracked: Iterable[tuple[str, Iterable[tuple[Frame, Detections, Tracks]]]],
    frames_of: Iterable[FramesOf],
    *,
    show_count: Callable[[int], None] = lambda count: None,
) -> Footage:
    """Like ``watch``, from what ``DetectionStream.track`` yields.

    Args:
        tracked: name of each source, and its frames with the detections and tracks of the reported classes.
        frames_of: (hits, window) for which alarms of tracks are collected.
        show_count: is called with the number of frames so far.
    """
    collectors = {pair: TopScores(AlarmOptions(hits=pair[0], window=pair[1])) for pair in frames_of}
    single: list[SingleFrames] = []
    total, frames = 0.0, 0
    for name, results in tracked:
        times: list[float] = []
        mine = SingleFrames(name)
        for frame, found, tracks in results:
            times.append(len(times) * DEFAULT_INTERVAL_S if frame.time is None else frame.time)
            for collector in collectors.values():
                collector.update(tracks, seconds=times[-1], file=frame.name, frame=len(times) - 1)
            _add(mine, times[-1], found)
            frames += 1
            show_count(frames)
        for collector in collectors.values():
            collector.finish()
        single.append(mine)
        total += duration(times)
    found_by_tracks = {pair: sorted(each.found, reverse=True) for pair, each in collectors.items()}
    return Footage(len(single), frames, total / 3600.0, found_by_tracks, single)


def duration(times: Sequence[float]) -> float:
    """Seconds of video from the times of its frames; pauses of the recording do not count.

    Example:
        >>> duration([0.0, 0.5, 1.0, 1.5]), duration([0.0, 0.5, 100.0, 100.5])
        (2.0, 1.5)
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return DEFAULT_INTERVAL_S * len(times)
    interval = float(np.median(steps))
    is_pause = steps > max(MAX_PAUSE_S, MAX_PAUSE_INTERVALS * interval)
    return float(steps[~is_pause].sum()) + interval


def _add(single: SingleFrames, seconds: float, found: Detections) -> None:
    if len(found):
        single.seconds.append(seconds)
        single.scores.append(float(found.scores.max()))
