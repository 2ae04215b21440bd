"""The report of what ``danet train`` wrote, finished or not, and of evaluations in its folder."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from danet.report import pictures
from danet.report.charts import Axis, Kind, Series, chart, span, top
from danet.report.evaluation_page import METRICS, evaluation_command, evaluation_lead, evaluation_sections
from danet.report.html import Html, Report, Section, code, grid, paragraph, table
from danet.report.reproduce import command_line, configuration, read_config, saved_options
from danet.training.options import TrainOptions
from danet.training.run_folder import CONFIG
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text

STEPS, VALIDATIONS = "metrics.csv", "validation.csv"
FIGURES = {"ap50": "AP50", "f1": "F1", "precision": "precision", "recall": "recall"}
NOT_LOSSES = ("step", "epoch", "lr", "loss", "grad_norm")
MOST_POINTS = 400
SCORE = 0.5
"""At which frames show boxes, as the validation counts them."""


def training_report(folder: Path, count: int) -> Report:
    """The report of a training's folder, with ``count`` validation frames where weights and data are at hand."""
    from danet.training.run_folder import WEIGHTS

    options = saved_options(folder / CONFIG, TrainOptions)
    steps, validations = read_columns(folder / STEPS), read_columns(folder / VALIDATIONS)
    finished = (folder / WEIGHTS).is_file()
    done = int(steps["step"][-1]) if steps else 0
    epoch = int(steps["epoch"][-1]) if steps else 0
    state = "Finished" if finished else f"In epoch {epoch} of {options.epochs}, not finished"
    data = ", ".join(each if isinstance(each, str) else each.path for each in options.data)
    classes = ", ".join(options.model.classes)
    lead = f"{options.model.name}, classes {classes}, on {data}. {state}, after {done:,} steps."
    tiles = []
    if validations:
        best = _best(validations)
        at = f"best epoch, {validations['epoch'][best]:.0f}"
        tiles += [
            (words[0].upper() + words[1:], f"{validations[name][best]:.3f}", at) for name, words in FIGURES.items()
        ]
    if steps:
        last = steps["loss"][-_window(len(steps["loss"])) :]
        tiles.append(("Loss", f"{np.mean(last):.3f}", f"mean of the last {len(last)} steps"))
    note = "Into another --out, or with --overwrite; in the folder where the paths lead to the same files:"
    sections = [
        Section("Loss", _losses(steps)),
        Section("Validation", _validation(validations)),
        Section("Frames", _frames(folder, options, count)),
    ]
    config = configuration(command_line("danet train", options), read_config(folder / CONFIG), note)
    for inner in evaluations(folder):
        figures = read_json(inner / METRICS)
        about = Section(f"{inner.name}: evaluation", [paragraph(evaluation_lead(inner, figures))])
        sections += [about, *evaluation_sections(inner, figures, f"{inner.name}: ")]
        config += [
            paragraph(f"The evaluation {inner.name}:"),
            code(evaluation_command(inner), "Command that evaluates"),
        ]
    sections.append(Section("Configuration", config))
    return Report("Training", folder.resolve().name, lead, tiles, sections)


def evaluations(folder: Path) -> list[Path]:
    """Folders of evaluations inside a run's."""
    return sorted(path.parent for path in folder.glob(f"*/{METRICS}"))


def read_columns(path: Path) -> dict[str, list[float]]:
    """A CSV file's columns of numbers; none for a file without rows, as at the start of a run."""
    rows = list(csv.DictReader(read_text(path).splitlines())) if path.is_file() else []
    try:
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not the figures of a training ({error})") from error


def _losses(steps: dict[str, list[float]]) -> list[Html]:
    if not steps:
        return [paragraph("No step is recorded yet.")]
    x = Axis("step", 0.0, max(steps["step"][-1], 1.0), step=1.0)
    total = _smooth(steps["loss"])
    terms = [name for name in steps if name not in NOT_LOSSES]
    # A first step far above the rest must not press all others to the ground.
    ceiling = top([*total, *np.percentile(np.nan_to_num(steps["loss"]), [99])])
    lines = [_series("", steps["step"], steps["loss"], 0, "faint"), _series("total", steps["step"], total, 0)]
    lines += [_series(name, steps["step"], _smooth(steps[name]), 1 + index) for index, name in enumerate(terms)]
    norms = [value for value in steps["grad_norm"] if math.isfinite(value) and value > 0]
    charts = [chart("Loss and its terms", lines, x, Axis("loss", 0.0, ceiling), _about(steps["step"]))]
    rate = [_series("", steps["step"], steps["lr"], 0)]
    small = [chart("Learning rate", rate, x, Axis("learning rate", 0.0, top(steps["lr"])))]
    if norms:
        low, high = span(norms)
        lines = [_series("", steps["step"], steps["grad_norm"], 0, "faint")]
        lines.append(_series("", steps["step"], _smooth(steps["grad_norm"]), 0))
        small.append(chart("Norm of the gradient before clipping", lines, x, Axis("norm", low, high, log=True)))
    return [*charts, grid(*small)]


def _validation(validations: dict[str, list[float]]) -> list[Html]:
    if not validations:
        return []
    epochs, best = validations["epoch"], _best(validations)
    x = Axis("epoch", 0.0, max(epochs[-1], 1.0), step=1.0)
    names = {name: words for name, words in FIGURES.items() if name in validations}
    lines = [_series(words, epochs, validations[name], index) for index, (name, words) in enumerate(names.items())]
    lines += [Series("", [epochs[best]], [validations[name][best]], index, "dots") for index, name in enumerate(names)]
    about = f"At score {SCORE} and IoU 0.5, AP50 over all scores. Dots: the best epoch, whose weights are kept."
    columns = [name for name in validations if name not in ("step", "epoch")]
    rows = [
        (f"{epoch:.0f}" + (" (best)" if row == best else ""), *(f"{validations[name][row]:.3f}" for name in columns))
        for row, epoch in enumerate(epochs)
    ]
    titles = [FIGURES.get(name, name.replace("_", " ").replace("f1", "F1")) for name in columns]
    shown = table("Validation by epoch", ("epoch", *titles), rows)
    return [chart("Figures on the validation images", lines, x, Axis("value", 0.0, 1.0), about), shown]


def _frames(folder: Path, options: TrainOptions, count: int) -> list[Html]:
    """Some validation images with what the weights so far find; a line that says why where that cannot be."""
    import danet
    from danet.data.loader import load_source
    from danet.inference.predict import predict
    from danet.training.run_folder import BEST, WEIGHTS

    weights = next((folder / name for name in (WEIGHTS, BEST) if (folder / name).is_file()), None)
    if count == 0 or options.val is None or weights is None:
        return []
    try:
        records = load_source(options.val)
        shown = [records[index] for index in pictures.chosen(records, count)]
        found, _ = predict(danet.load(weights, "cpu", score_threshold=SCORE), shown, 1, quiet=True)
        figures = [
            pictures.frame(record, each, options.model.classes, SCORE)
            for record, each in zip(shown, found, strict=True)
        ]
    except UserError as error:
        return [pictures.missing(error)]
    about = f"Validation images with what {weights.name} finds at score {SCORE} (orange) and annotated boxes (blue)."
    return [paragraph(about), pictures.frames(figures)]


def _best(validations: dict[str, list[float]]) -> int:
    """The row of the highest AP50, of equals the last: the one whose weights are kept."""
    return max(range(len(validations["ap50"])), key=lambda row: (validations["ap50"][row], row))


def _window(count: int) -> int:
    return max(1, count // 40)


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a fortieth of the run around every step, of what is finite."""
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    width = np.ones(_window(len(values)))
    sums = np.convolve(np.where(finite, numbers, 0.0), width, "same")
    counts = np.convolve(finite, width, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist()


def _about(steps: Sequence[float]) -> str:
    window = _window(len(steps))
    return f"Mean of {window} steps; faint: single steps." if window > 1 else ""


def _series(name: str, x: Sequence[float], y: Sequence[float], color: int, kind: Kind = "line") -> Series:
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return Series(name, [x[index] for index in kept], [y[index] for index in kept], color, kind)
