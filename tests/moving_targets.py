"""Simulated detections of moving targets, with known identities, for tests of the tracker."""

import numpy as np
import torch

from danet.boxes import Detections

CLASSES = ["drone", "bird"]


def detections(centres, *, size=(6.0, 4.0), scores=None, labels=None):
    """Detections with boxes of one size at centres ``[M, 2]``; the scores are 0.8 and the class is drone by default."""
    centres = np.asarray(centres, np.float64).reshape(-1, 2)
    half = np.asarray(size) / 2
    boxes = torch.tensor(np.concatenate([centres - half, centres + half], 1), dtype=torch.float32)
    scores = torch.full((len(centres),), 0.8) if scores is None else torch.as_tensor(scores, dtype=torch.float32)
    labels = torch.zeros(len(centres), dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    return Detections(boxes, scores, labels, CLASSES)


def straight(starts, velocities, times):
    """Centres ``[T, M, 2]`` of M targets with constant velocities (pixels per second) at T times (seconds)."""
    starts, velocities = np.asarray(starts, np.float64), np.asarray(velocities, np.float64)
    return starts + np.asarray(times, np.float64)[:, None, None] * velocities


def follow(tracker, centres, times, *, noise=0.3, present=None, seed=0, **options):
    """Runs the tracker over detections at ``centres`` ``[T, M, 2]`` with noise.

    Args:
        present: bool ``[T, M]``, which targets are detected in which frame; by default all.

    Returns:
        For each frame, the id that lies nearest to each target, within 8 pixels; 0 without one, and -1 where two
        targets are so close that the nearest does not tell them apart: int64 ``[T, M]``.
    """
    rng = np.random.default_rng(seed)
    result = np.zeros(centres.shape[:2], np.int64)
    for index, (places, seconds) in enumerate(zip(centres, times, strict=True)):
        seen = np.ones(len(places), bool) if present is None else present[index]
        found = detections((places + rng.normal(0, noise, places.shape))[seen], **options)
        tracks = tracker.update(found[rng.permutation(len(found))], seconds=float(seconds))
        centres_now = np.array([track.centre for track in tracks]).reshape(-1, 2)
        gaps = np.hypot(*(places[:, None] - centres_now).transpose(2, 0, 1))
        for target, row in enumerate(gaps):
            if len(row) and row.min() < 8:
                result[index, target] = tracks[int(row.argmin())].id
        between = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) + np.where(np.eye(len(places)), np.inf, 0)
        result[index, between.min(1) < 4 * noise] = -1
    return result
