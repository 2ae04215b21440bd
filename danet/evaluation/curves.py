"""Precision, recall and F1 over the score threshold: ``curves.csv`` of an evaluation."""

import csv
import os

import numpy as np

from danet.evaluation.metrics import Metrics
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, read_text

COLUMNS = ("score", "precision", "recall", "f1")
MAX_POINTS = 400
"""Points kept per curve. A curve has thousands of thresholds, more than a screen has pixels."""

Curves = dict[str, dict[str, list[float]]]
"""Columns ``score``, ``precision``, ``recall`` and ``f1`` by criterion, at descending scores."""


def thin_curves(metrics: Metrics) -> Curves:
    """The curves of all criteria, each thinned to at most MAX_POINTS points; criteria without detections are absent."""
    curves: Curves = {}
    for name, result in metrics.criteria.items():
        line = result.curve
        values = np.stack([line.thresholds, line.precision, line.recall, line.f1])
        if values.shape[1]:
            kept = values[:, _evenly_spaced(values)]
            curves[name] = {column: row.tolist() for column, row in zip(COLUMNS, kept, strict=True)}
    return curves


def _evenly_spaced(values: np.ndarray) -> np.ndarray:
    """Indices of the columns of ``values`` ``[4, K]`` at even distances along the curve.

    Taking every n-th column would lose the beginning of the curve: nearly all thresholds are low scores.
    """
    if values.shape[1] <= MAX_POINTS:
        return np.arange(values.shape[1])
    lengths = np.append(0.0, np.cumsum(np.abs(np.diff(np.nan_to_num(values))).sum(0)))
    return np.unique(np.searchsorted(lengths, np.linspace(0.0, lengths[-1], MAX_POINTS)))


def write_curves(path: str | os.PathLike, curves: Curves) -> None:
    """Writes the curves as CSV, one row per criterion and score threshold."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["criterion", *COLUMNS])
        for name, columns in curves.items():
            for row in zip(*columns.values(), strict=True):
                writer.writerow([name, *(f"{value:.5g}" for value in row)])


def read_curves(path: str | os.PathLike) -> Curves:
    """Reads a file of ``write_curves``; undefined values are NaN.

    Raises UserError if the file is missing or has other columns.
    """
    curves: Curves = {}
    text = read_text(path)
    try:
        for row in csv.DictReader(text.splitlines()):
            columns = curves.setdefault(row["criterion"], {name: [] for name in COLUMNS})
            for name, values in columns.items():
                values.append(float(row[name]))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: not the curves of an evaluation ({str(error)[:200]})") from error
    return curves
