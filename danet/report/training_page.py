"""The report of a folder that ``danet train`` wrote, finished or not, and of the evaluations inside it."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danet.data.loader import load_source
from danet.evaluation.plots import Line, line_figure
from danet.inference.loading import load
from danet.inference.predict import predict
from danet.report import pictures
from danet.report.evaluation_page import METRICS, evaluation_command, evaluation_lead, evaluation_sections
from danet.report.page import Block, Chart, Code, Grid, Page, Paragraph, Pictures, Section, Table
from danet.report.reproduce import command_line, configuration, saved_options
from danet.training.options import TrainOptions
from danet.training.run_folder import BEST, CONFIG, WEIGHTS
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text

STEPS, VALIDATIONS = "metrics.csv", "validation.csv"
TITLES = {"ap50": "AP50", "f1": "F1", "precision": "Precision", "recall": "Recall"}
NOT_LOSSES = ("step", "epoch", "lr", "loss", "grad_norm")
MAX_POINTS = 400
SCORE = 0.5
"""Score threshold of the validation, also used for the frames."""


def training_report(folder: Path, count: int) -> Page:
    """The report of a training's folder, with ``count`` validation frames if weights and data are still there."""
    options = saved_options(folder / CONFIG, TrainOptions)
    steps, validations = read_columns(folder / STEPS), read_columns(folder / VALIDATIONS)
    done, epoch = (int(steps[name][-1]) if steps else 0 for name in ("step", "epoch"))
    state = "Finished" if (folder / WEIGHTS).is_file() else f"In epoch {epoch} of {options.epochs}, not finished"
    data = ", ".join(each if isinstance(each, str) else each.path for each in options.data)
    classes = ", ".join(options.model.classes)
    lead = f"{options.model.name} with classes {classes}, trained on {data}. {state}, after {done:,} steps."
    tiles = []
    if validations:
        best = _best_row(validations)
        about = f"best epoch, {validations['epoch'][best]:.0f}"
        tiles += [(title, f"{validations[name][best]:.3f}", about) for name, title in TITLES.items()]
    if steps:
        last = steps["loss"][-_window(len(steps["loss"])) :]
        tiles.append(("Loss", f"{np.mean(last):.3f}", f"mean of the last {len(last)} steps"))
    note = "Run the command in a folder where the paths lead to the same files, with another --out or with --overwrite:"
    sections = [
        Section("Loss", _losses(steps)),
        Section("Validation", _validation(validations)),
        Section("Frames", _frames(folder, options, count)),
    ]
    config = configuration(command_line("danet train", options), folder / CONFIG, note)
    for inner in sorted(path.parent for path in folder.glob(f"*/{METRICS}")):
        metrics = read_json(inner / METRICS)
        sections.append(Section(f"{inner.name}: evaluation", [Paragraph(evaluation_lead(inner, metrics))]))
        sections += evaluation_sections(inner, metrics, f"{inner.name}: ")
        command = Code(evaluation_command(inner), "Command that evaluates")
        config += [Paragraph(f"The evaluation {inner.name}:"), command]
    sections.append(Section("Configuration", config))
    return Page("Training", folder.resolve().name, lead, tiles, sections)


def read_columns(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file of numbers; empty for a file without rows, as at the start of a run.

    Raises UserError if a value is no number.
    """
    rows = list(csv.DictReader(read_text(path).splitlines())) if path.is_file() else []
    try:
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not the metrics of a training ({error})") from error


def _losses(steps: dict[str, list[float]]) -> list[Block]:
    if not steps:
        return [Paragraph("No step is recorded yet.")]
    x, total = steps["step"], _smooth(steps["loss"])
    terms = [name for name in steps if name not in NOT_LOSSES]
    # An outlier, such as the first step, must not flatten all other values.
    highest = np.nanmax([*total, *np.percentile(np.nan_to_num(steps["loss"]), [99])])
    lines = [_line("", x, steps["loss"], 0, faint=True), _line("total", x, total, 0)]
    lines += [_line(name, x, _smooth(steps[name]), 1 + index) for index, name in enumerate(terms)]
    window = _window(len(x))
    note = f"Mean of {window} steps; faint: single steps." if window > 1 else ""
    charts: list[Block] = []
    charts.append(_chart("Loss and its terms", lines, "step", "loss", note=note, ylim=(0, 1.05 * (highest or 1))))
    charts.append(_chart("Learning rate", [_line("", x, steps["lr"], 0)], "step", "learning rate"))
    norms = steps["grad_norm"]
    if any(math.isfinite(value) and value > 0 for value in norms):
        lines = [_line("", x, norms, 0, faint=True), _line("", x, _smooth(norms), 0)]
        charts.append(_chart("Norm of the gradient before clipping", lines, "step", "norm", log="y"))
    return [Grid(charts)]


def _validation(validations: dict[str, list[float]]) -> list[Block]:
    if not validations:
        return []
    epochs, best = validations["epoch"], _best_row(validations)
    names = [name for name in TITLES if name in validations]
    lines = [_line(TITLES[name], epochs, validations[name], index) for index, name in enumerate(names)]
    lines += [Line("", [epochs[best]], [validations[name][best]], index) for index, name in enumerate(names)]
    note = f"At score {SCORE} and IoU 0.5; AP50 over all scores. Dots mark the best epoch, whose weights are kept."
    columns = [name for name in validations if name not in ("step", "epoch")]
    rows = [
        (f"{epoch:.0f}" + (" (best)" if row == best else ""), *(f"{validations[name][row]:.3f}" for name in columns))
        for row, epoch in enumerate(epochs)
    ]
    titles = [TITLES.get(name, name.replace("_", " ").replace("f1", "F1")) for name in columns]
    chart = _chart("Metrics on the validation images", lines, "epoch", "value", note=note, ylim=(0, 1.02))
    return [Grid([chart, Table("Validation by epoch", ("epoch", *titles), rows)])]


def _frames(folder: Path, options: TrainOptions, count: int) -> list[Block]:
    """Some validation images with detections of the current weights; a line that says why if that is impossible."""
    weights = next((folder / name for name in (WEIGHTS, BEST) if (folder / name).is_file()), None)
    if count == 0 or options.val is None or weights is None:
        return []
    try:
        records = load_source(options.val, "val")
        shown = [records[index] for index in pictures.choose_frames(records, count)]
        found, _ = predict(load(weights, "cpu", score_threshold=SCORE), shown, 1, quiet=True)
        classes = options.model.classes
        frames = [pictures.frame(*each, classes, SCORE) for each in zip(shown, found, strict=True)]
    except UserError as error:
        return [pictures.missing(error)]
    about = f"Validation images: annotated boxes are blue, detections of {weights.name} at score {SCORE} are orange."
    return [Paragraph(about), Pictures(frames)]


def _chart(title: str, lines: list[Line], x: str, y: str, *, note: str = "", **options: Any) -> Chart:
    return Chart.of(title, line_figure(lines, x, y, count=True, **options), note)


def _best_row(validations: dict[str, list[float]]) -> int:
    """The row with the highest AP50, the last of equal ones: its weights are kept."""
    return max(range(len(validations["ap50"])), key=lambda row: (validations["ap50"][row], row))


def _window(count: int) -> int:
    return max(1, count // 40)


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over a fortieth of the run, of the finite values."""
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    width = np.ones(_window(len(values)))
    sums = np.convolve(np.where(finite, numbers, 0.0), width, "same")
    counts = np.convolve(finite, width, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist()


def _line(name: str, x: Sequence[float], y: Sequence[float], color: int, *, faint: bool = False) -> Line:
    """A line of at most MAX_POINTS points."""
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return Line(name, [x[index] for index in kept], [y[index] for index in kept], color, faint)
