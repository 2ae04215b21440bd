"""Tables of an evaluation or an ablation as plain text, for the terminal, Markdown files and ``danet report``."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from danet.evaluation.formatting import estimate, number
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import RECALLS, recall_point

MAX_RECORDINGS = 40
"""Recordings listed in the terminal; metrics.json and the report have all of them."""
RATIOS = {"precision": "precision", "recall": "recall", "f1": "F1"}
COUNTS = {"tp": "hits", "fp": "false", "fn": "missed"}


@dataclass(frozen=True)
class Row:
    """The first column's ``label``, the operating point where several rows share the label, and the other cells."""

    label: str
    cells: tuple[str, ...]
    point: str = ""


@dataclass(frozen=True)
class Table:
    """A title, the headings of all columns, and rows; ``note`` explains the values."""

    title: str
    head: tuple[str, ...]
    rows: list[Row]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.head, ("---",) * len(self.head), *((row.label, *row.cells) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def metric_tables(metrics: dict) -> dict[str, Table]:
    """The tables of an evaluation by subject, without those that would be empty.

    Args:
        metrics: the content of ``metrics.json``.
    """
    target, criterion = metrics["target"], CRITERIA[metrics["criterion"]].title
    note = ""
    if metrics["groups"] > 1:
        note = f"In parentheses: 95 % intervals, bootstrap over {metrics['groups']} {metrics['resampled']}."
    title = f"{target}: {metrics['objects']} objects in {metrics['images']} images"
    tables = {
        "criteria": _results(title, "criterion", metrics["criteria"].values(), note),
        "sizes": _results(f"{target} by size (sqrt of the box's area), {criterion}", "size", metrics["scales"]),
    }
    if metrics["false_alarms"]:
        tables["false_alarms"] = _false_alarms(metrics)
    if any(group["images"] > 1 for group in metrics["recordings"]):
        tables["recordings"] = _recordings(metrics, criterion)
    if metrics["other_classes"]:
        tables["other_classes"] = _results(f"other classes, {criterion}", "class", metrics["other_classes"])
    return tables


def _results(title: str, first: str, results: Iterable[dict], note: str = "") -> Table:
    rows = []
    for result in results:
        head = str(result["objects"]), estimate(result["ap"])
        points = {name: result[name] for name in ("fixed", "tuned") if result[name] is not None}
        for name, point in points.items():
            cells = (*head, f"{point['threshold']:.3f}", *(estimate(point[ratio]) for ratio in RATIOS))
            counts = (str(point[count]) for count in COUNTS)
            rows.append(Row(result["title"], (*cells, *counts), name if len(points) > 1 else ""))
    return Table(title, (first, "objects", "AP", "score", *RATIOS.values(), *COUNTS.values()), rows, note)


def _false_alarms(metrics: dict) -> Table:
    """A row per operating point, a column per distractor."""
    points = {"fixed": "fixed score", "tuned": "tuned score"}
    points |= {recall_point(r, key): f"recall {r:.2f}, {CRITERIA[key].title}" for key in CRITERIA for r in RECALLS}
    groups, rows = metrics["false_alarms"], []
    for name, label in points.items():
        threshold = metrics["thresholds"][name]
        if threshold is not None:
            rows.append(Row(label, (f"{threshold:.3f}", *(estimate(group["rates"][name]) for group in groups))))
        elif name != "tuned":
            rows.append(Row(label, ("not reached", *[""] * len(groups))))
    target = metrics["target"]
    title = f"false {target} alarms per image, on images without a {target}, by what they show"
    columns = (shown_on(group["distractor"], group["images"]) for group in groups)
    return Table(title, ("operating point", "score", *columns), rows)


def _recordings(metrics: dict, criterion: str) -> Table:
    which = "fixed" if metrics["thresholds"]["tuned"] is None else "tuned"
    title = f"{metrics['target']} by recording, {criterion}, score {metrics['thresholds'][which]:.3f}"
    rows = []
    for group in metrics["recordings"]:
        point = group[which]
        ratios, counts = (number(point[name]["value"]) for name in RATIOS), (str(point[name]) for name in COUNTS)
        rows.append(Row(group["name"], (str(group["images"]), str(group["objects"]), *ratios, *counts)))
    return Table(title, ("recording", "images", "objects", *RATIOS.values(), *COUNTS.values()), rows)


def shown_on(distractor: str, images: int) -> str:
    """Heading of a column of false alarms: the distractor and the number of images that show it."""
    return f"{distractor.strip('()')}, {images} image{'' if images == 1 else 's'}"


def print_metrics(metrics: dict, console: Console) -> None:
    """Prints the tables of an evaluation; a label shared by several rows is printed once."""
    for subject, table in metric_tables(metrics).items():
        if subject == "recordings" and len(table.rows) > MAX_RECORDINGS:
            continue
        shown = RichTable(title=table.title, title_justify="left", title_style="bold", header_style="")
        shown.add_column(table.head[0])
        for name in table.head[1:]:
            shown.add_column(name.replace(", ", "\n"), justify="right", no_wrap=True)
        last = None
        for row in table.rows:
            repeated = row.point and row.label == last  # the row before has the same objects and AP
            shown.add_row("" if repeated else row.label, *("", "", *row.cells[2:]) if repeated else row.cells)
            last = row.label
        console.print(shown)
    if note := metric_tables(metrics)["criteria"].note:
        console.print(note)
