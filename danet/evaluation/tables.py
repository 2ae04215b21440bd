"""Tables of an evaluation or an ablation as plain text, for the terminal, Markdown files and ``danet report``."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from danet.evaluation.formatting import estimate, number
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import RECALLS, recall_point

MAX_RECORDINGS = 40
"""Recordings listed in the terminal; metrics.json and the report have all of them."""
RATIOS = {"precision": "precision", "recall": "recall", "f1": "F1"}
COUNTS = {"tp": "hits", "fp": "false", "fn": "missed"}
MAX_CONFUSED_CLASSES = 12
"""A confusion matrix with more columns is only in metrics.json and in its figure."""
MAX_LABEL_CELLS = 30
"""Columns of the terminal that the first column of a table takes at most; longer labels go on in the next line."""
SEPARATOR_CELLS, TIGHT_SEPARATOR_CELLS = 3, 1
"""Columns of the terminal between two columns of a table, with lines and without them."""


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
    confusion = metrics.get("confusion")  # files of older versions have none
    if confusion and len(confusion["annotated"]) > 2 and len(confusion["detected"]) <= MAX_CONFUSED_CLASSES:
        tables["confusion"] = _confusion(confusion)
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


def _confusion(matrix: dict) -> Table:
    """The confusion matrix: a row per annotated class, a column per detected class."""
    rows = [
        Row(name, tuple(map(str, counts))) for name, counts in zip(matrix["annotated"], matrix["counts"], strict=True)
    ]
    title = f"confusion matrix, {CRITERIA[matrix['criterion']].title}, score {matrix['threshold']:.3f}"
    return Table(
        title,
        ("annotated", *(f"as {name}" if name[0] != "(" else name.strip("()") for name in matrix["detected"])),
        rows,
    )


def shown_on(distractor: str, images: int) -> str:
    """Heading of a column of false alarms: the distractor and the number of images that show it."""
    return f"{distractor.strip('()')}, {images} image{'' if images == 1 else 's'}"


def print_metrics(metrics: dict, console: Console) -> None:
    """Prints the tables of an evaluation; a label shared by several rows is printed once."""
    tables = metric_tables(metrics)
    for subject, table in tables.items():
        if subject != "recordings" or len(table.rows) <= MAX_RECORDINGS:
            print_table(table, console)
    if note := tables["criteria"].note:
        console.print(note)


def print_table(table: Table, console: Console) -> None:
    """Prints a table in the width of the console, without losing a column.

    If the table is too wide, intervals go below their values, then the lines between the columns and the zeros before
    decimal points of intervals are left out, and at last the columns are divided over several tables that all begin
    with the first column.
    """
    rows = _without_repetition(table.rows)
    stacked = [[re.sub(r"^(\S+) \((.*)\)$", r"\1\n\2", cell) for cell in row] for row in rows]
    short = [[re.sub(r"(?<=[\n–])0\.", ".", cell) if "\n" in cell else cell for cell in row] for row in stacked]
    head = [table.head[0], *(name.replace(", ", "\n") for name in table.head[1:])]
    for cells, gap in ((rows, SEPARATOR_CELLS), (stacked, SEPARATOR_CELLS), (short, TIGHT_SEPARATOR_CELLS)):
        parts = _divide([head, *cells], gap, console.width)
        if len(parts) == 1:
            break
    for columns in parts:
        console.print(_rich_table(table.title, [[row[index] for index in columns] for row in [head, *cells]], gap))


def _without_repetition(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of all rows; where a label is repeated, it and the number of objects and the AP are left out."""
    last, result = None, []
    for row in rows:
        repeated = row.point and row.label == last
        result.append(["", "", "", *row.cells[2:]] if repeated else [row.label, *row.cells])
        last = row.label
    return result


def _divide(lines: Sequence[Sequence[str]], gap: int, width: int) -> list[list[int]]:
    """Indices of the columns of each part of a table, so that no part is wider than ``width``, each with column 0."""
    widths = [
        max(cell_len(part) for line in lines for part in line[index].split("\n")) for index in range(len(lines[0]))
    ]
    first = min(widths[0], MAX_LABEL_CELLS)
    edge = SEPARATOR_CELLS + 1 if gap == SEPARATOR_CELLS else 0  # a line and a space on both sides
    parts, used = [[0]], first + edge
    for index in range(1, len(widths)):
        if used + gap + widths[index] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = first + edge
        parts[-1].append(index)
        used += gap + widths[index]
    return parts


def _rich_table(title: str, lines: Sequence[Sequence[str]], gap: int) -> RichTable:
    """A table of ``lines``, the first of which is the head. Names are plain text: brackets in them are no markup."""
    tight = gap == TIGHT_SEPARATOR_CELLS
    shown = RichTable(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD if tight else box.HEAVY_HEAD,
        padding=(0, 0) if tight else (0, 1),
        pad_edge=not tight,
        show_edge=not tight,
    )
    shown.add_column(Text(lines[0][0]), max_width=MAX_LABEL_CELLS, overflow="fold")
    for name in lines[0][1:]:
        shown.add_column(Text(name), justify="right", no_wrap=True)
    for line in lines[1:]:
        shown.add_row(*map(Text, line))
    return shown
