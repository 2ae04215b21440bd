"""Metrics of alarms: the delay until a target raises an alarm, and the number of false alarms per hour of video."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from danet.evaluation.bootstrap import Estimate, resample


@dataclass(frozen=True)
class AlarmedVideo:
    """The alarms of one video.

    Attributes:
        name: of the video.
        category: class of the objects that it shows.
        seconds: its duration.
        alarms: times of its alarms, ascending, in seconds since its first frame with a target; since its start if it
            shows none.
        has_target: whether it shows the class that raises alarms; its alarms are then not false.
    """

    name: str
    category: str
    seconds: float
    alarms: tuple[float, ...]
    has_target: bool


def first_alarm_delays(videos: Sequence[AlarmedVideo]) -> dict[str, float | None]:
    """Seconds from the first target to the first alarm of each video with a target; None without an alarm.

    Example:
        >>> first_alarm_delays([AlarmedVideo("a", "drone", 10.0, (0.4, 7.0), True)])
        {'a': 0.4}
    """
    return {video.name: video.alarms[0] if video.alarms else None for video in videos if video.has_target}


def summarize_alarms(
    videos: Sequence[AlarmedVideo], *, within: float = 1.0, share: float = 0.9, resamples: int = 1000
) -> dict:
    """Probability of detection, time to alarm and false alarms, with 95 % intervals by bootstrap over the videos.

    Args:
        videos: with and without targets.
        within: seconds in which the first alarm must come.
        share: of the videos with a target, for ``delay_of_share``.
        resamples: of the bootstrap.

    Returns:
        ``detected``: number of videos with a target and an alarm within the time; ``probability``: their share;
        ``median_delay``: of the videos with a target and an alarm; ``delay_of_share``: see the function of this name,
        with ``share``; ``false_alarms``: for each distractor class, and for
        ``any``, the numbers of alarms, of videos with an alarm and of all videos, and the alarms per hour.

    Example:
        >>> videos = [AlarmedVideo("a", "drone", 10.0, (0.4,), True), AlarmedVideo("b", "bird", 360.0, (3.0,), False)]
        >>> summary = summarize_alarms(videos)
        >>> summary["detected"], summary["false_alarms"]["bird"]["per_hour"].value
        (1, 10.0)
    """
    targets = [video for video in videos if video.has_target]
    others = [video for video in videos if not video.has_target]
    is_soon = np.array([bool(video.alarms) and video.alarms[0] <= within for video in targets], float)
    delays = [video.alarms[0] for video in targets if video.alarms]
    groups: dict[str, list[AlarmedVideo]] = {}
    for video in others:
        groups.setdefault(video.category, []).append(video)
    if others:
        groups["any"] = others
    return {
        "videos": len(targets),
        "within_seconds": within,
        "detected": int(is_soon.sum()),
        "probability": _ratio(targets, is_soon, np.ones(len(targets)), resamples),
        "median_delay": float(np.median(delays)) if delays else None,
        "delay_of_share": {"share": share, **delay_of_share(targets, share, resamples=resamples)},
        "false_alarms": {name: _count_false_alarms(group, resamples) for name, group in groups.items()},
    }


def delay_of_share(videos: Sequence[AlarmedVideo], share: float, *, resamples: int = 1000) -> dict[str, float | None]:
    """Seconds until at least ``share`` of the videos have raised an alarm: the time to alarm at a fixed probability.

    Args:
        videos: all of them show a target.
        share: more than 0, at most 1.
        resamples: of the bootstrap over the videos.

    Returns:
        ``value`` in seconds, and its 95 % interval ``low`` and ``high``. Each of them is None where fewer videos than
        ``share`` ever raise an alarm. All are None without videos; with one video, there is no interval.

    Example:
        >>> delays = (0.2, 0.3, 0.4, 9.0)
        >>> videos = [AlarmedVideo(str(delay), "drone", 10.0, (delay,), True) for delay in delays]
        >>> delay_of_share(videos, 0.75)["value"], delay_of_share(videos, 0.9)["value"]
        (0.4, 9.0)
    """
    if not videos:
        return {"value": None, "low": None, "high": None}
    delays = np.array([video.alarms[0] if video.alarms else np.inf for video in videos])
    order = np.argsort(delays, kind="stable")
    weights = resample([video.name for video in videos], resamples).weights
    counts = np.concatenate([np.ones((1, len(videos))), weights])[:, order].cumsum(1)
    # The first video, in the order of the delays, with which the share is reached.
    found = delays[order][(counts >= share * len(videos) - 1e-6).argmax(1)]
    samples = np.sort(found[1:])
    ends = samples[int(0.025 * len(samples))], samples[int(np.ceil(0.975 * len(samples))) - 1]
    low, high = ends if len(videos) > 1 else (np.inf, np.inf)
    named = {"value": found[0], "low": low, "high": high}
    return {name: float(seconds) if np.isfinite(seconds) else None for name, seconds in named.items()}


def _count_false_alarms(videos: Sequence[AlarmedVideo], resamples: int) -> dict:
    counts = np.array([len(video.alarms) for video in videos], float)
    hours = np.array([video.seconds for video in videos]) / 3600.0
    return {
        "alarms": int(counts.sum()),
        "videos_with_alarm": int((counts > 0).sum()),
        "videos": len(videos),
        "per_hour": _ratio(videos, counts, hours, resamples),
    }


def _ratio(videos: Sequence[AlarmedVideo], numerator: np.ndarray, denominator: np.ndarray, resamples: int) -> Estimate:
    if not len(videos):
        return Estimate(None)
    return resample([video.name for video in videos], resamples).ratio(numerator, denominator)
