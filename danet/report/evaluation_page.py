"""The report of what ``danet evaluate`` wrote."""

import math
from collections.abc import Iterable
from pathlib import Path

from danet.evaluate import EvaluateOptions, select_images
from danet.evaluation.curves import read_curves
from danet.evaluation.matching import CRITERIA
from danet.report import pictures
from danet.report.charts import Axis, Kind, Series, chart
from danet.report.html import Html, Report, Section, bars, facts, fold, grid, paragraph, table
from danet.report.reproduce import command_line, configuration, read_config, saved_options
from danet.utils.errors import UserError
from danet.utils.files import read_json

METRICS, CURVES = "metrics.json", "curves.csv"
SHEET, SIZES = "misses_and_false_alarms.png", "by_size.png"
MOST_ROWS = 15
"""Recordings of a table that is open from the start."""
POINTS = ("fixed", "tuned")
HEAD = ("objects", "AP", "score", "precision", "recall", "F1", "hits", "false", "missed")


def evaluation_report(folder: Path, count: int) -> Report:
    """The report of an evaluation's folder, with ``count`` frames where its data are at hand."""
    figures = read_json(folder / METRICS)
    result, point = _main(figures)
    options = saved_options(folder / "config.yaml", EvaluateOptions)
    speed = figures["speed"].get("fps")
    tiles = [
        ("F1", _short(point["f1"]), _interval(point["f1"])),
        ("Precision", _short(point["precision"]), _interval(point["precision"])),
        ("Recall", _short(point["recall"]), _interval(point["recall"])),
        ("AP", _short(result["ap"]), _interval(result["ap"])),
        *([("Speed", f"{speed:.1f}", "images/s, reading included")] if speed else []),
    ]
    note = "In the folder where the paths lead to the same files, this gives the same figures:"
    sections = [
        *evaluation_sections(folder, figures),
        Section("Frames", _frames(folder, options, figures, point["threshold"], count)),
        Section("Speed and software", _speed(figures)),
        Section("Configuration", configuration(evaluation_command(folder), read_config(folder / "config.yaml"), note)),
    ]
    return Report("Evaluation", folder.resolve().name, evaluation_lead(folder, figures), tiles, sections)


def evaluation_lead(folder: Path, figures: dict) -> str:
    """What was found by what in what, in a sentence."""
    options = saved_options(folder / "config.yaml", EvaluateOptions)
    _, point = _main(figures)
    return (
        f"{figures['objects']} objects {figures['target']} in {figures['images']} images of {options.data}, found by "
        f"{options.weights}. At score {point['threshold']:.3f}, right by {CRITERIA[figures['criterion']].title}."
    )


def evaluation_command(folder: Path) -> str:
    return command_line("danet evaluate", saved_options(folder / "config.yaml", EvaluateOptions), ("weights", "data"))


def evaluation_sections(folder: Path, figures: dict, prefix: str = "") -> list[Section]:
    """Curves, tables and mistakes; ``prefix`` tells the sections of several evaluations on one page apart."""
    return [
        Section(f"{prefix}Curves", _curves(folder, figures)),
        Section(f"{prefix}Figures", _tables(figures)),
        Section(f"{prefix}Hits and mistakes", _mistakes(folder, figures)),
    ]


def pr_series(folder: Path, criterion: str, name: str, color: int) -> list[Series]:
    """The P-R curve of an evaluation in a chart of several; nothing where it has none."""
    if not (folder / CURVES).is_file():
        return []
    curve = read_curves(folder / CURVES).get(criterion)
    return [Series(name, curve["recall"], curve["precision"], color)] if curve else []


def _curves(folder: Path, figures: dict) -> list[Html]:
    """P-R and F1 under every criterion, with dots at the scores reported; pictures of them in older runs."""
    if not (folder / CURVES).is_file():
        drawn = {"pr_curve.png": "Precision over recall", "f1_confidence.png": "F1 over the score"}
        return [pictures.sheet(folder / name, words) for name, words in drawn.items() if (folder / name).is_file()]
    curves = read_curves(folder / CURVES)
    pr, f1 = [], []
    for color, (key, result) in enumerate(figures["criteria"].items()):
        curve = curves.get(key)
        if curve is None:
            continue
        pr.append(Series(f"{result['title']}, AP {_short(result['ap'])}", curve["recall"], curve["precision"], color))
        f1.append(Series(result["title"], curve["score"], curve["f1"], color))
        marks: tuple[tuple[Kind, str], ...] = (("dots", "fixed"), ("rings", "tuned"))
        for kind, name in marks:
            point = result[name]
            if point and None not in (point["precision"]["value"], point["recall"]["value"]):
                at = f"{result['title']}, {name} score {point['threshold']:.3f}"
                x, y = point["recall"]["value"], point["precision"]["value"]
                pr.append(Series("", [x], [y], color, kind, [at]))
                f1.append(Series("", [point["threshold"]], [point["f1"]["value"]], color, kind, [at]))
    if not pr:
        return [paragraph("Nothing was found: there are no curves.")]
    scores = [f"filled: the fixed score {figures['thresholds']['fixed']:.3f}"]
    if figures["thresholds"]["tuned"] is not None:
        scores.append(f"hollow: the one chosen on other images, {figures['thresholds']['tuned']:.3f}")
    about = f"Dots, {'; '.join(scores)}."
    unit = (0.0, 1.0)
    return [
        grid(
            chart("Precision over recall", pr, Axis("recall", *unit), Axis("precision", *unit), about),
            chart("F1 over the score", f1, Axis("score threshold", *unit), Axis("F1", *unit), about),
        )
    ]


def _tables(figures: dict) -> list[Html]:
    target, title = figures["target"], CRITERIA[figures["criterion"]].title
    note = f"In parentheses: 95 % intervals, bootstrap over {figures['groups']} {figures['resampled']}."
    parts = [
        _results(f"{target} by criterion", "criterion", figures["criteria"].values(), note),
        _results(f"{target} by size (square root of the box's area), {title}", "size", figures["scales"]),
    ]
    if figures["false_alarms"]:
        parts.append(_false_alarms(figures))
    if figures["other_classes"]:
        parts.append(_results(f"Other classes, {title}", "class", figures["other_classes"]))
    if any(group["images"] > 1 for group in figures["recordings"]):
        parts.append(_recordings(figures, title))
    return parts


def _results(caption: str, first: str, results: Iterable[dict], note: str = "") -> Html:
    rows = []
    for result in results:
        for name in POINTS:
            point = result[name]
            if point is not None:
                # Every row says whose it is: on a phone little more than this column is seen.
                title = result["title"] if result["tuned"] is None else f"{result['title']}, {name}"
                values = (estimate(point[figure]) for figure in ("precision", "recall", "f1"))
                counts = (str(point[count]) for count in ("tp", "fp", "fn"))
                score = f"{point['threshold']:.3f}"
                rows.append((title, str(result["objects"]), estimate(result["ap"]), score, *values, *counts))
    return table(caption, (first, *HEAD), rows, note)


def _false_alarms(figures: dict) -> Html:
    """A row for each operating point, a column for each distractor."""
    groups, rows = figures["false_alarms"], []
    for name, threshold in figures["thresholds"].items():
        kind, _, key = name.rpartition(" ")
        words = f"{kind}, {CRITERIA[key].title}" if key in CRITERIA else f"{name} score"
        if threshold is not None:
            rows.append((words, f"{threshold:.3f}", *(estimate(group["rates"][name]) for group in groups)))
        elif name not in POINTS:
            rows.append((words, "not reached", *([""] * len(groups))))
    head = ("operating point", "score", *(shown_on(group["distractor"], group["images"]) for group in groups))
    target = figures["target"]
    return table(f"False {target} alarms an image, on images without a {target} that show", head, rows)


def _recordings(figures: dict, title: str) -> Html:
    which = "fixed" if figures["thresholds"]["tuned"] is None else "tuned"
    rows = []
    for group in figures["recordings"]:
        point = group[which]
        values = (_short(point[name]) for name in ("precision", "recall", "f1"))
        counts = (str(point[name]) for name in ("tp", "fp", "fn"))
        rows.append((group["name"], str(group["images"]), str(group["objects"]), *values, *counts))
    head = ("recording", "images", "objects", "precision", "recall", "F1", "hits", "false", "missed")
    score = figures["thresholds"][which]
    caption = f"{figures['target']} by recording, {title}, score {score:.3f}"
    shown = table(caption, head, rows)
    return fold(caption, shown) if len(rows) > MOST_ROWS else shown


def _mistakes(folder: Path, figures: dict) -> list[Html]:
    _, point = _main(figures)
    at = f"at score {point['threshold']:.3f}, {CRITERIA[figures['criterion']].title}"
    parts = [
        bars(f"{words} by cause, {at}", [(cause, count, str(count)) for cause, count in causes.items()])
        for words, causes in (
            ("Misses", figures["mistakes"]["misses"]),
            ("False alarms", figures["mistakes"]["false_alarms"]),
        )
        if causes
    ]
    parts = [grid(*parts)] if parts else [paragraph(f"None {at}.")]
    colours = f"Annotated {figures['target']} blue, other objects grey, detections orange with their scores."
    if (folder / SHEET).is_file():
        caption = f"The worst misses, then the false alarms of highest score, {at}. {colours}"
        parts.append(pictures.sheet(folder / SHEET, caption))
    if (folder / SIZES).is_file():
        caption = f"By size: hits of middling score, the worst misses, false alarms of highest score, {at}. {colours}"
        parts.append(pictures.sheet(folder / SIZES, caption))
    return parts


def _frames(folder: Path, options: EvaluateOptions, figures: dict, threshold: float, count: int) -> list[Html]:
    """Some images with truth and detections; without the data, a line that says so."""
    from danet.data.coco_dataset import load_coco
    from danet.inference.coco_results import read_coco_results

    if count == 0:
        return []
    try:
        data = load_coco(options.data)
        records = select_images(data, options)
        classes = [figures["target"], *(other["name"] for other in figures["other_classes"])]
        found = read_coco_results(folder / "predictions.json", data, records, classes)
        shown = [
            pictures.frame(records[index], found[index], classes, threshold)
            for index in pictures.chosen(records, count)
        ]
    except UserError as error:
        return [pictures.missing(error)]
    about = f"Annotated boxes blue, detections of score {threshold:.3f} and more orange, all classes."
    return [paragraph(about), pictures.frames(shown)]


def _speed(figures: dict) -> list[Html]:
    speed, parts = figures["speed"], []
    if speed["images"]:
        rows = [(name.replace("_", " "), ms, f"{ms:.2f}") for name, ms in speed["milliseconds_per_image"].items()]
        parts.append(bars("Milliseconds an image", rows, f"{speed['images']} images: {speed['method']}."))
    parts.append(facts(figures["environment"].items()))
    return parts


def _main(figures: dict) -> tuple[dict, dict]:
    """The result under the chosen criterion, and its operating point: the tuned one, if there is one."""
    result = figures["criteria"][figures["criterion"]]
    return result, result["tuned"] or result["fixed"]


def shown_on(distractor: str, images: int) -> str:
    """The head of a column of false alarms."""
    return f"{distractor.strip('()')}, {images} image{'' if images == 1 else 's'}"


def estimate(value: dict | None) -> str:
    """A figure with its interval."""
    interval = _interval(value)
    return f"{_short(value)} ({interval})" if interval else _short(value)


def _short(value: dict | None) -> str:
    figure = None if value is None else value["value"]
    return "-" if figure is None or math.isnan(figure) else f"{figure:.3f}"


def _interval(value: dict | None) -> str:
    return "" if value is None or value["low"] is None else f"{value['low']:.2f}–{value['high']:.2f}"
