"""The curves of a training: losses over the steps, and metrics over the epochs, from the CSV files of a run."""

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from danet.evaluation.plots import Line, line_figure, write_png
from danet.training.run_folder import LOSS_CURVES, STEPS, VALIDATION_CURVES, VALIDATIONS
from danet.utils.errors import UserError
from danet.utils.files import read_text

TITLES = {"ap50": "AP50", "f1": "F1", "precision": "Precision", "recall": "Recall"}
"""Metrics of a validation that are drawn, with their names."""
STEP_COLUMNS = ("step", "epoch", "lr", "loss", "grad_norm")
VALIDATION_COLUMNS = ("step", "epoch", *TITLES)
MAX_POINTS = 400
SMALLEST, LARGEST = 1e-30, 1e30
"""Values beyond these are drawn as 0 and as gaps: matplotlib cannot place ticks on such axes."""
MIN_INTERVAL_S = 60.0
"""Seconds between two drawings of the curves during a run."""
MAX_DRAWING_SHARE = 0.02
"""Maximum share of the training time that the drawing takes; a long run draws less often."""
Columns = dict[str, list[float]]


class CurvePictures:
    """Draws the curves of a run from time to time, see ``write_curve_pictures``.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = time.monotonic() + MIN_INTERVAL_S

    def draw_if_due(self) -> None:
        """Draws the curves if the last drawing was long enough ago."""
        if time.monotonic() >= self._next:
            self.draw()

    def draw(self) -> None:
        """Draws the curves."""
        started = time.monotonic()
        write_curve_pictures(self.folder)
        duration = time.monotonic() - started
        self._next = time.monotonic() + max(MIN_INTERVAL_S, duration / MAX_DRAWING_SHARE)


def read_steps(folder: Path) -> Columns:
    """The columns of ``metrics.csv``, see ``read_columns``."""
    return read_columns(folder / STEPS, STEP_COLUMNS)


def read_validations(folder: Path) -> Columns:
    """The columns of ``validation.csv``, see ``read_columns``."""
    return read_columns(folder / VALIDATIONS, VALIDATION_COLUMNS)


def read_columns(path: Path, required: Sequence[str]) -> Columns:
    """The columns of a CSV file of numbers; empty for a file without rows, as at the start of a run, or without a file.

    Raises UserError if a required column is missing, a value is no number, or a step or epoch is not finite.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.csv"
        >>> _ = path.write_text("step,loss\\n1,0.5\\n2,0.25\\n")
        >>> read_columns(path, ["step", "loss"])
        {'step': [1.0, 2.0], 'loss': [0.5, 0.25]}
    """
    text = read_text(path) if path.is_file() else ""
    if "\n" not in text:
        return {}
    try:
        # A running or killed training may leave an incomplete last line.
        head, *rows = csv.reader(line for line in text.splitlines(keepends=True) if line.endswith("\n"))
        missing = [name for name in required if name not in head]
        if missing:
            raise ValueError(f"has no column {missing[0]}")
        values = [[float(value) for value in row] for row in rows if len(row) == len(head)]
        if len(values) < len(rows):
            raise ValueError(f"a row has not {len(head)} values")
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: not the metrics of a training ({str(error)[:200]})") from error
    if not values:
        return {}
    columns = {name: list(column) for name, column in zip(head, zip(*values, strict=True), strict=True)}
    for name in ("step", "epoch"):
        if not all(0 <= value < 2**53 for value in columns.get(name, [])):
            raise UserError(f"{path}: not the metrics of a training ({name} must be a number of at least 0)")
    return columns


def loss_figure(steps: Columns) -> Figure:
    """The total loss and its terms over the steps, averaged over ``window`` steps; single steps are faint."""
    x, loss = steps["step"], drawable(steps["loss"])
    total = smooth(loss)
    # An outlier, such as the first step, must not flatten all other values.
    highest = np.nanmax([*total, *np.percentile(np.nan_to_num(loss), [99])])
    lines = [curve("", x, loss, 0, faint=True), curve("total", x, total, 0)]
    terms = [name for name in steps if name not in STEP_COLUMNS]
    lines += [curve(name, x, smooth(steps[name]), 1 + index) for index, name in enumerate(terms)]
    return line_figure(lines, "step", "loss", ylim=(0, 1.05 * (float(highest) or 1.0)), count=True)


def validation_figure(validations: Columns) -> Figure:
    """The metrics over the epochs; dots mark the best epoch."""
    epochs, best = validations["epoch"], best_row(validations)
    names = [name for name in TITLES if name in validations]
    lines = [curve(TITLES[name], epochs, validations[name], index) for index, name in enumerate(names)]
    lines += [Line("", [epochs[best]], [validations[name][best]], index) for index, name in enumerate(names)]
    return line_figure(lines, "epoch", "value", ylim=(0, 1.02), count=True)


def write_curve_pictures(folder: Path) -> None:
    """Draws the curves of a run into its folder; a file without rows gives no picture."""
    if steps := read_steps(folder):
        write_png(folder / LOSS_CURVES, loss_figure(steps))
    if validations := read_validations(folder):
        write_png(folder / VALIDATION_CURVES, validation_figure(validations))


def best_row(validations: Columns) -> int:
    """The row with the highest AP50, the last of equal ones: its weights are kept."""
    return max(range(len(validations["ap50"])), key=lambda row: (validations["ap50"][row], row))


def drawable(values: Sequence[float]) -> list[float]:
    """The values with NaN where matplotlib cannot draw them, and 0 for those that are nearly 0."""
    return [
        math.nan if not abs(value) <= LARGEST else 0.0 if abs(value) < SMALLEST else float(value) for value in values
    ]


def window(count: int) -> int:
    """Number of steps over which curves are averaged: a fortieth of the run."""
    return max(1, count // 40)


def smooth(values: Sequence[float]) -> list[float]:
    """Moving average over ``window`` steps, of the finite values."""
    numbers = np.asarray(drawable(values))
    finite = np.isfinite(numbers)
    width = np.ones(window(len(values)))
    sums = np.convolve(np.where(finite, numbers, 0.0), width, "same")
    counts = np.convolve(finite, width, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist()


def curve(name: str, x: Sequence[float], y: Sequence[float], color: int, *, faint: bool = False) -> Line:
    """A line of at most MAX_POINTS points."""
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return Line(name, [x[index] for index in kept], drawable([y[index] for index in kept]), color, faint)
