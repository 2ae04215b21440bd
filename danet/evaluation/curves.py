"""The curves of an evaluation as numbers: ``curves.csv``, a row a score threshold."""

import csv
import os

import numpy as np

from danet.evaluation.metrics import Metrics
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, read_text

COLUMNS = ("criterion", "score", "precision", "recall", "f1")
# Of a curve's thousands of thresholds; more than a screen shows.
MOST_ROWS = 400


def write_curves(path: str | os.PathLike, metrics: Metrics) -> None:
    """Writes precision, recall and F1 over descending scores under every criterion, thinned to MOST_ROWS."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, result in metrics.criteria.items():
            line = result.curve
            values = np.stack([line.thresholds, line.precision, line.recall, line.f1])
            for row in values.T[_thinned(values)]:
                writer.writerow([name, *(f"{value:.5g}" for value in row)])


def _thinned(values: np.ndarray) -> np.ndarray:
    """Columns of ``values [4, K]`` at even distances along the curve.

    Not every so-manieth: of thousands of thresholds nearly all are low scores, and the curve's begin would be lost.
    """
    if values.shape[1] <= MOST_ROWS:
        return np.arange(values.shape[1])
    lengths = np.append(0.0, np.cumsum(np.abs(np.diff(np.nan_to_num(values))).sum(0)))
    return np.unique(np.searchsorted(lengths, np.linspace(0.0, lengths[-1], MOST_ROWS)))


def read_curves(path: str | os.PathLike) -> dict[str, dict[str, list[float]]]:
    """What ``write_curves`` wrote: the columns by criterion; undefined figures are NaN."""
    curves: dict[str, dict[str, list[float]]] = {}
    text = read_text(path)
    try:
        for row in csv.DictReader(text.splitlines()):
            columns = curves.setdefault(row["criterion"], {name: [] for name in COLUMNS[1:]})
            for name, values in columns.items():
                values.append(float(row[name]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the curves of an evaluation ({error})") from error
    return curves
