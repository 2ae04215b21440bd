"""The report of a folder that ``danet train`` wrote, finished or not, and of the evaluations inside it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danet.data.loader import load_source
from danet.evaluation.plots import Line, line_figure
from danet.inference.loading import load
from danet.inference.predict import predict
from danet.report import pictures
from danet.report.evaluation_page import METRICS, evaluation_command, evaluation_lead, evaluation_sections
from danet.report.page import Block, Chart, Code, Grid, Page, Paragraph, Pictures, Section, Table
from danet.report.reproduce import command_line, configuration, saved_options
from danet.training.learning_curves import (
    TITLES,
    Columns,
    best_row,
    curve,
    drawable,
    loss_figure,
    read_steps,
    read_validations,
    smooth,
    validation_figure,
    window,
)
from danet.training.options import TrainOptions
from danet.training.run_folder import BEST, CONFIG, LABELS, SAMPLES, WEIGHTS
from danet.utils.errors import UserError
from danet.utils.files import read_json

SCORE = 0.5
"""Score threshold of the validation, also used for the frames."""


def training_report(folder: Path, count: int) -> Page:
    """The report of a training's folder, with ``count`` validation frames if weights and data are still there."""
    options = saved_options(folder / CONFIG, TrainOptions)
    steps, validations = read_steps(folder), read_validations(folder)
    done, epoch = (int(steps[name][-1]) if steps else 0 for name in ("step", "epoch"))
    state = "Finished" if (folder / WEIGHTS).is_file() else f"In epoch {epoch} of {options.epochs}, not finished"
    data = ", ".join(each if isinstance(each, str) else each.path for each in options.data)
    classes = ", ".join(options.model.classes)
    lead = f"{options.model.name} with classes {classes}, trained on {data}. {state}, after {done:,} steps."
    tiles = []
    if validations:
        best = best_row(validations)
        about = f"best epoch, {validations['epoch'][best]:g}"
        tiles += [(title, f"{validations[name][best]:.3f}", about) for name, title in TITLES.items()]
    if steps:
        last = steps["loss"][-window(len(steps["loss"])) :]
        tiles.append(("Loss", f"{np.mean(last):.3f}", f"mean of the last {len(last)} steps"))
    note = "Run the command in a folder where the paths lead to the same files, with another --out or with --overwrite:"
    sections = [
        Section("Loss", _losses(steps)),
        Section("Validation", _validation(validations)),
        Section("Frames", _frames(folder, options, count)),
        Section("Training data", _training_data(folder)),
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


def _losses(steps: Columns) -> list[Block]:
    if not steps:
        return [Paragraph("No step is recorded yet.")]
    x, averaged = steps["step"], window(len(steps["step"]))
    note = f"Mean of {averaged} steps; faint: single steps." if averaged > 1 else ""
    charts: list[Block] = [Chart.of("Loss and its terms", loss_figure(steps), note)]
    charts.append(_chart("Learning rate", [curve("", x, steps["lr"], 0)], "step", "learning rate"))
    norms = drawable(steps["grad_norm"])
    if any(math.isfinite(value) and value > 0 for value in norms):
        lines = [curve("", x, norms, 0, faint=True), curve("", x, smooth(norms), 0)]
        charts.append(_chart("Norm of the gradient before clipping", lines, "step", "norm", log="y"))
    return [Grid(charts)]


def _validation(validations: Columns) -> list[Block]:
    if not validations:
        return []
    best = best_row(validations)
    note = f"At score {SCORE} and IoU 0.5; AP50 over all scores. Dots mark the best epoch, whose weights are kept."
    columns = [name for name in validations if name not in ("step", "epoch")]
    rows = [
        (f"{epoch:g}" + (" (best)" if row == best else ""), *(f"{validations[name][row]:.3f}" for name in columns))
        for row, epoch in enumerate(validations["epoch"])
    ]
    titles = [TITLES.get(name, name.replace("_", " ").replace("f1", "F1")) for name in columns]
    chart = Chart.of("Metrics on the validation images", validation_figure(validations), note)
    return [Grid([chart, Table("Validation by epoch", ("epoch", *titles), rows)])]


def _training_data(folder: Path) -> list[Block]:
    """The pictures that the training wrote at its start; runs of older versions have none."""
    captions = {
        SAMPLES: "The first training samples, augmented as the network sees them, with their boxes.",
        LABELS: "The annotated boxes of the training data, before augmentation.",
    }
    return [pictures.sheet(folder / name, caption) for name, caption in captions.items() if (folder / name).is_file()]


def _frames(folder: Path, options: TrainOptions, count: int) -> list[Block]:
    """Some validation images with detections of the current weights; a line that says why if that is impossible."""
    weights = next((folder / name for name in (WEIGHTS, BEST) if (folder / name).is_file()), None)
    if count == 0 or options.val is None or weights is None:
        return []
    try:
        records = load_source(options.val, "val")
        shown = [records[index] for index in pictures.choose_frames(records, count)]
        found, _ = predict(load(weights, "cpu", score_threshold=SCORE, dtype=torch.float32), shown, 1, quiet=True)
        classes = options.model.classes
        frames = [pictures.frame(*each, classes, SCORE) for each in zip(shown, found, strict=True)]
    except UserError as error:
        return [pictures.missing(error)]
    about = f"Validation images: annotated boxes are blue, detections of {weights.name} at score {SCORE} are orange."
    return [Paragraph(about), Pictures(frames)]


def _chart(title: str, lines: list[Line], x: str, y: str, *, note: str = "", **options: Any) -> Chart:
    return Chart.of(title, line_figure(lines, x, y, count=True, **options), note)
