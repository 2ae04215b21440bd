"""The report of a folder that ``danet ablate`` wrote."""

from pathlib import Path

from danet.evaluation.ablate_options import AblateOptions
from danet.evaluation.ablation import ablation_tables, describe
from danet.evaluation.curves import read_curves
from danet.evaluation.formatting import spread
from danet.evaluation.matching import CRITERIA
from danet.evaluation.plots import COLORS, Line, ablation_figure, line_figure
from danet.report.evaluation_page import CURVES
from danet.report.page import Block, Chart, Grid, Page, Section, Table
from danet.report.reproduce import command_line, configuration, saved_options
from danet.training.learning_curves import read_validations
from danet.utils.files import read_json

SUMMARY = "ablation.json"
METRICS = {"precision": "Precision", "recall": "Recall", "f1": "F1", "ap50": "AP50"}


def ablation_report(folder: Path) -> Page:
    """The report of an ablation's folder, with the results so far."""
    # Files of older versions lack some keys.
    summary = {"folds": None, "operators": ["compiled"], "runs": [], **read_json(folder / SUMMARY)}
    rows = summary["rows"]
    best = max(rows, key=lambda row: (row["figures"]["f1"] or {"mean": -1.0})["mean"])
    options = saved_options(folder / "config.yaml", AblateOptions)
    tiles = [
        (title, spread(best["figures"][name]).split(" ")[0], f"{best['name']}, the row with the highest F1")
        for name, title in METRICS.items()
    ]
    tables = [Table.of(table, (1,) if table.head[1] == "against" else ()) for table in ablation_tables(summary)]
    figure = Chart.of("Rows of the ablation", ablation_figure(summary), wide=True)
    command = command_line("danet ablate", options, ("val",), words="train")
    note = "With the same --out the command runs only what is missing; with another --out it starts from scratch:"
    sections = [
        Section("Results", [figure, *tables]),
        Section("Curves", _curves(folder, summary)),
        Section("Configuration", configuration(command, folder / "config.yaml", note)),
    ]
    return Page("Ablation", folder.resolve().name, f"{options.val}: {describe(summary)}", tiles, sections)


def _curves(folder: Path, summary: dict) -> list[Block]:
    """Precision-recall curves and validations of every row's first seed (in a cross-validation, of the first fold)."""
    precision_recall, validations = [], []
    folder = folder / "fold0" if summary["folds"] else folder
    which = f"Runs of the first seed{' in the first fold' if summary['folds'] else ''}"
    for color, row in enumerate(summary["rows"][: len(COLORS)]):  # more lines could not be distinguished
        run = folder / row["name"] / str(row["seeds"][0])
        curves = read_curves(run / "evaluate" / CURVES) if (run / "evaluate" / CURVES).is_file() else {}
        if curve := curves.get(summary["criterion"]):
            precision_recall.append(Line(row["name"], curve["recall"], curve["precision"], color))
        if columns := read_validations(run):
            validations.append(Line(row["name"], columns["epoch"], columns["ap50"], color))
    charts: list[Block] = []
    if precision_recall:
        figure = line_figure(precision_recall, "recall", "precision", xlim=(0, 1), ylim=(0, 1.02))
        note = f"{which}; {CRITERIA[summary['criterion']].title}."
        charts.append(Chart.of("Precision over recall", figure, note))
    if validations:
        figure = line_figure(validations, "epoch", "AP50", ylim=(0, 1.02), count=True)
        charts.append(Chart.of("AP50 on the validation images", figure, f"{which}."))
    return [Grid(charts)] if charts else []
