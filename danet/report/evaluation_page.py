"""The report of a folder that ``danet evaluate`` wrote."""

from pathlib import Path

from danet.data.coco_dataset import load_coco
from danet.data.image_selection import select_images
from danet.evaluation.curves import read_curves
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.evaluation.evaluator import SIZE_SHEET, WORST_SHEET
from danet.evaluation.formatting import interval, number
from danet.evaluation.matching import CRITERIA
from danet.evaluation.plots import PLOTS
from danet.evaluation.tables import metric_tables
from danet.inference.coco_results import read_coco_results
from danet.report import pictures
from danet.report.page import Bars, Block, Chart, Facts, Fold, Grid, Page, Paragraph, Pictures, Section, Table
from danet.report.reproduce import command_line, configuration, saved_options
from danet.utils.errors import UserError
from danet.utils.files import read_json

METRICS, CURVES = "metrics.json", "curves.csv"
MAX_OPEN_ROWS = 15
"""Longer tables of recordings are folded."""


def evaluation_report(folder: Path, count: int) -> Page:
    """The report of an evaluation's folder, with ``count`` frames if its data are still there."""
    metrics = read_json(folder / METRICS)
    result, point = main_result(metrics)
    speed = metrics["speed"].get("fps")
    estimates = {"F1": point["f1"], "Precision": point["precision"], "Recall": point["recall"], "AP": result["ap"]}
    tiles = [(name, number(value["value"]), interval(value)) for name, value in estimates.items()]
    tiles += [("Speed", f"{speed:.1f}", "images/s, reading included")] if speed else []
    note = "Run in a folder where the paths lead to the same files, this command gives the same metrics:"
    sections = [
        *evaluation_sections(folder, metrics),
        Section("Frames", _frames(folder, metrics, point["threshold"], count)),
        Section("Speed and software", _speed(metrics)),
        Section("Configuration", configuration(evaluation_command(folder), folder / "config.yaml", note)),
    ]
    return Page("Evaluation", folder.resolve().name, evaluation_lead(folder, metrics), tiles, sections)


def evaluation_lead(folder: Path, metrics: dict) -> str:
    """What was evaluated on what, in a paragraph."""
    options = _options(folder)
    source = options.predictions or options.weights
    _, point = main_result(metrics)
    return (
        f"{source} on {metrics['images']} images of {options.data} with {metrics['objects']} objects of class "
        f"{metrics['target']}, at score {point['threshold']:.3f} and {CRITERIA[metrics['criterion']].title}."
    )


def evaluation_command(folder: Path) -> str:
    options = _options(folder)
    return command_line("danet evaluate", options, ("data",) if options.predictions else ("weights", "data"))


def evaluation_sections(folder: Path, metrics: dict, prefix: str = "") -> list[Section]:
    """Curves, tables and mistakes; ``prefix`` distinguishes the sections of several evaluations on one page."""
    return [
        Section(f"{prefix}Curves", _curves(folder, metrics)),
        Section(f"{prefix}Metrics", _tables(metrics)),
        Section(f"{prefix}Hits and mistakes", _mistakes(folder, metrics)),
    ]


def main_result(metrics: dict) -> tuple[dict, dict]:
    """The result under the chosen criterion, and its operating point: the tuned one if there is one."""
    result = metrics["criteria"][metrics["criterion"]]
    return result, result["tuned"] or result["fixed"]


def _options(folder: Path) -> EvaluateOptions:
    return saved_options(folder / "config.yaml", EvaluateOptions)


def _curves(folder: Path, metrics: dict) -> list[Block]:
    """The figures of ``PLOTS``; for older runs without curves.csv the PNG files that were drawn then."""
    if not (folder / CURVES).is_file():
        return [pictures.sheet(folder / plot.file, plot.title) for plot in PLOTS if (folder / plot.file).is_file()]
    curves = read_curves(folder / CURVES)
    if not curves:
        return [Paragraph("There are no detections and therefore no curves.")]
    return [Grid([Chart.of(plot.title, plot.draw(metrics, curves)) for plot in PLOTS if plot.key in metrics])]


def _tables(metrics: dict) -> list[Block]:
    blocks: list[Block] = []
    for subject, table in metric_tables(metrics).items():
        shown = Table.of(table)
        folded = subject == "recordings" and len(table.rows) > MAX_OPEN_ROWS
        blocks.append(Fold(shown.title, [shown]) if folded else shown)
    return blocks


def _mistakes(folder: Path, metrics: dict) -> list[Block]:
    _, point = main_result(metrics)
    at = f"at score {point['threshold']:.3f}, {CRITERIA[metrics['criterion']].title}"
    bars: list[Block] = []
    for kind, causes in metrics["mistakes"].items():
        rows = [(cause, count, str(count)) for cause, count in causes.items()]
        bars += [Bars(f"{kind.replace('_', ' ').capitalize()} by cause, {at}", rows)] if rows else []
    blocks: list[Block] = [Grid(bars)] if bars else [Paragraph(f"There are no mistakes {at}.")]
    colors = f"Annotated {metrics['target']} objects are blue, other objects grey, detections orange with their scores."
    sheets = {
        WORST_SHEET: f"The worst misses, then the false alarms with the highest scores, {at}. {colors}",
        SIZE_SHEET: "By size: hits with a median score, the worst misses, the false alarms with the highest scores, "
        f"{at}. {colors}",
    }
    found = {folder / name: caption for name, caption in sheets.items() if (folder / name).is_file()}
    return [*blocks, *(pictures.sheet(path, caption) for path, caption in found.items())]


def _frames(folder: Path, metrics: dict, threshold: float, count: int) -> list[Block]:
    """Some images with ground truth and detections; a line that says why if the data are missing."""
    if count == 0:
        return []
    options = _options(folder)
    try:
        data = load_coco(options.data, split="val")
        records = select_images(data, options.stride, options.class_map)
        classes = [metrics["target"], *(other["name"] for other in metrics["other_classes"])]
        found = read_coco_results(folder / "predictions.json", data, records, classes)
        chosen = pictures.choose_frames(records, count)
        shown = [pictures.frame(records[index], found[index], classes, threshold) for index in chosen]
    except UserError as error:
        return [pictures.missing(error)]
    about = f"Annotated boxes are blue; detections of all classes with a score of at least {threshold:.3f} are orange."
    return [Paragraph(about), Pictures(shown)]


def _speed(metrics: dict) -> list[Block]:
    speed = metrics["speed"]
    blocks: list[Block] = []
    if speed["images"]:
        rows = [(name.replace("_", " "), ms, f"{ms:.2f}") for name, ms in speed["milliseconds_per_image"].items()]
        blocks.append(Bars("Milliseconds per image", rows, f"{speed['images']} images: {speed['method']}."))
    return [*blocks, Facts(list(metrics["environment"].items()))]
