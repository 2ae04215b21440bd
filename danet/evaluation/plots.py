"""Figures drawn with matplotlib: PNG files beside the results, and SVG pictures inside the pages of ``danet report``.

Every ``..._figure`` function returns a matplotlib ``Figure``; ``write_png`` and ``to_svg`` write it, so that a file and
a page show the same picture. Nothing here uses pyplot, which keeps global state and looks for a display.
"""

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from danet.evaluation.curves import Curves
from danet.evaluation.formatting import number, spread
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import ALL
from danet.utils.files import atomic_path

# Colors that color-blind readers can distinguish (after Okabe and Ito). Every line also has its own dashes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6a00", "#4b4f9c")
DASHES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 2, 1, 2, 1, 2)))
INK, HOLLOW, FAINT = "#000000", "#ffffff", "#666666"
# On a page these colors follow its style sheet, which knows whether the screen is light or dark.
PAGE_COLORS = {
    **{color: f"var(--c{index},{color})" for index, color in enumerate(COLORS)},
    **{INK: "currentColor", HOLLOW: f"var(--card,{HOLLOW})", FAINT: f"var(--soft,{FAINT})"},
}
# The shares of a confusion matrix, and its counts on light and on dark cells; these colors are the same on every page.
SHARES = LinearSegmentedColormap.from_list("shares", ["#f4f7fb", "#0b4f80"])
DARK_TEXT, HOLLOW_TEXT = "#101418", "#fefefe"
MAX_WRITTEN_CLASSES = 12
"""The counts of larger confusion matrices are not written into the figure."""
MARKERS = {"fixed": "o", "tuned": "D"}
# Large letters on a small figure: a phone shows the figure at about its own size.
WIDTH, HEIGHT, DPI = 5.0, 25 / 7, 210
STYLE: Any = {
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "grid.alpha": 0.35,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # letters stay text: small files that can be searched and read aloud
    "text.parse_math": False,  # a dollar sign in the name of a class is a dollar sign
}

Limits = tuple[float, float] | None


@dataclass(frozen=True)
class Plot:
    """A figure of an evaluation: the PNG file's name, the heading on a page, and the function that draws it."""

    file: str
    title: str
    draw: Callable[[dict, Curves], Figure]
    key: str = "criteria"
    """The key of ``metrics.json`` that is drawn; files of older versions may lack it."""


@dataclass(frozen=True)
class Line:
    """A line of ``line_figure``, or single dots; ``tips`` are texts under the mouse, one per dot.

    A line without a ``name`` is not in the legend. ``color`` is an index into COLORS, -1 for black.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    faint: bool = False
    dots: bool = False
    hollow: bool = False
    tips: Sequence[str] = ()


@matplotlib.rc_context(STYLE)
def precision_recall_figure(metrics: dict, curves: Curves) -> Figure:
    """Precision over recall under every criterion, with markers at the reported operating points.

    Args:
        metrics: the content of ``metrics.json``.
        curves: of the same evaluation (``danet.evaluation.curves``).
    """
    figure, axes = _new_figure("recall", "precision")
    for index, (key, result) in enumerate(metrics["criteria"].items()):
        curve = curves.get(key, {"recall": [], "precision": []})
        label = f"{result['title']}, AP {number(result['ap']['value'])}"
        axes.plot(curve["recall"], curve["precision"], linestyle=DASHES[index], color=COLORS[index], label=label)
        for name, marker in MARKERS.items():
            point = result[name]
            if point is not None and None not in (point["precision"]["value"], point["recall"]["value"]):
                _mark(axes, marker, point["recall"]["value"], point["precision"]["value"], COLORS[index])
    for name, marker in MARKERS.items():
        value = metrics["thresholds"][name]
        if value is not None:
            _mark(axes, marker, math.nan, math.nan, HOLLOW, label=f"{name} score {value:.3f}")
    return _finish(figure, axes, metrics)


@matplotlib.rc_context(STYLE)
def f1_figure(metrics: dict, curves: Curves) -> Figure:
    """F1 over the score threshold under every criterion, with vertical lines at the reported thresholds.

    Arguments as ``precision_recall_figure`` takes them.
    """
    figure, axes = _new_figure("score threshold", "F1")
    for index, (key, result) in enumerate(metrics["criteria"].items()):
        steps = _f1_steps(curves.get(key, {"score": [], "f1": []}))
        axes.plot(*steps, linestyle=DASHES[index], color=COLORS[index], label=result["title"])
    for name, dashes in (("fixed", (0, (1, 3))), ("tuned", (0, (6, 2)))):
        value = metrics["thresholds"][name]
        if value is not None:
            axes.axvline(value, color=FAINT, linewidth=1.2, linestyle=dashes, label=f"{name} score {value:.3f}")
    return _finish(figure, axes, metrics)


@matplotlib.rc_context(STYLE)
def confusion_figure(metrics: dict, _: Curves) -> Figure:
    """The confusion matrix: a row per annotated class, colored by the share of the row, with the counts.

    Args:
        metrics: the content of ``metrics.json``.
    """
    matrix = metrics["confusion"]
    counts = np.array(matrix["counts"], float)
    figure, axes = _new_figure("detected as", "annotated as", None, None)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    small = max(counts.shape) > MAX_WRITTEN_CLASSES
    style: dict[str, Any] = {"fontsize": 6} if small else {}
    axes.set_xticks(range(counts.shape[1]), matrix["detected"], rotation=90 if small else 20, **style)
    axes.set_yticks(range(counts.shape[0]), matrix["annotated"], **style)
    if not small:  # more numbers would overlap
        for row, column in np.ndindex(*counts.shape):
            color = HOLLOW_TEXT if shares[row, column] > 0.5 else DARK_TEXT
            axes.text(column, row, f"{counts[row, column]:,.0f}", color=color, ha="center", va="center")
    axes.set_title(f"score {matrix['threshold']:.3f}, {CRITERIA[matrix['criterion']].title}")
    return figure


PLOTS = (
    Plot("pr_curve.png", "Precision over recall", precision_recall_figure),
    Plot("f1_confidence.png", "F1 over the score threshold", f1_figure),
    Plot("confusion_matrix.png", "Confusion matrix", confusion_figure, "confusion"),
)
"""The figures that ``danet evaluate`` writes and ``danet report`` shows."""


@matplotlib.rc_context(STYLE)
def ablation_figure(summary: dict) -> Figure:
    """F1, AP50 and false alarms of every row: a dot per run, a tick at the mean, a line of one standard deviation.

    False alarms are counted on images without a target that show something else, and only where there are such images.

    Args:
        summary: the content of ``ablation.json``.
    """
    rows = summary["rows"]
    panels = {}
    for title, name in (("F1", "f1"), ("AP50", "ap50")):
        runs = [run for run in summary["runs"] if run[name] is not None]
        dots = [[run[name] for run in runs if run["row"] == row["name"]] for row in rows]
        panels[title] = [row["figures"][name] for row in rows], dots
    if summary["distractors"]:
        all_images = ALL if ALL in summary["distractors"] else next(iter(summary["distractors"]))
        rates = [row["false_alarms_at_common_recall"][all_images]["rate"] for row in rows]
        panels[f"false alarms per image\nat recall {summary['common_recall']:.2f}"] = rates, [[] for _ in rates]

    figure = Figure(figsize=(2.4 * len(panels) + 1, 1.2 + 0.45 * len(rows)))
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, (means, dots)), color in zip(all_axes, panels.items(), COLORS, strict=False):
        axes.set_xlabel(title)
        axes.grid(visible=False, axis="y")
        for place, (mean, values) in enumerate(zip(means, dots, strict=True)):
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.5, markeredgewidth=0)
            if mean is not None:
                axes.errorbar(mean["mean"], place, xerr=mean["deviation"], color=color)
                axes.plot(mean["mean"], place, "|", color=color, markersize=14, markeredgewidth=3)
                text = spread({**mean, "deviation": None})
                axes.annotate(text, (mean["mean"], place - 0.28), ha="center", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.margins(x=0.2)
    all_axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    all_axes[0].set_ylim(len(rows) - 0.5, -0.7)
    criterion = CRITERIA[summary["criterion"]].title
    figure.suptitle(f"{summary['target']}, {criterion}; mean and standard deviation of the runs", fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def detectors_figure(lines: dict[str, dict | None], points: Sequence[dict], comparison: dict) -> Figure:
    """Precision over recall of several detectors, with markers at their operating points (Fig. 4 of the paper).

    Args:
        lines: the columns ``recall`` and ``precision`` by the name of the detector; None without detections.
        points: the operating point of each, as ``metrics.json`` has it.
        comparison: the content of ``comparison.json``.
    """
    figure, axes = _new_figure("recall", "precision", height=HEIGHT + 0.12 * len(lines))
    for index, ((name, line), point) in enumerate(zip(lines.items(), points, strict=True)):
        # More lines than colors: the same color returns with other dashes.
        turn, color = divmod(index, len(COLORS))
        style: dict[str, Any] = {"color": COLORS[color], "linestyle": DASHES[(color + turn) % len(DASHES)]}
        columns = line or {"recall": [], "precision": []}
        axes.plot(columns["recall"], columns["precision"], label=name, **style)
        if None not in (point["precision"]["value"], point["recall"]["value"]):
            _mark(axes, "D", point["recall"]["value"], point["precision"]["value"], COLORS[color])
    axes.set_title(f"{comparison['target']}, {CRITERIA[comparison['criterion']].title}")
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def line_figure(
    lines: Sequence[Line],
    x: str,
    y: str,
    *,
    xlim: Limits = None,
    ylim: Limits = None,
    log: str = "",
    count: bool = False,
    height: float = HEIGHT,
) -> Figure:
    """Lines and dots over a common axis; values that are not finite leave a gap, a line of one point becomes a dot.

    Args:
        x, y: labels of the axes.
        log: the logarithmic axes: "", "y" or "xy".
        count: the horizontal axis counts something: whole numbers only.
        height: of the figure, in inches.
    """
    figure, axes = _new_figure(x, y, xlim, ylim, height)
    for line in lines:
        index = line.color % len(COLORS)
        style: dict[str, Any] = {"color": INK if line.color < 0 else COLORS[index], "linestyle": DASHES[index]}
        if line.color < 0 or line.faint:
            style |= {"linewidth": 0.8, "alpha": 0.35, "linestyle": "-"} if line.faint else {"linestyle": "-"}
        values = [value if math.isfinite(value) else math.nan for value in line.y]
        if line.dots or len(line.x) == 1:
            style |= {"marker": "o", "linestyle": "none", "markerfacecolor": HOLLOW if line.hollow else style["color"]}
        axes.plot(line.x, values, label=line.name or "_", **style)
        for at_x, at_y, tip in zip(line.x, values, line.tips, strict=False):
            axes.plot(at_x, at_y, gid=f"tip:{tip}", **style)  # each dot on its own, with a text under the mouse
    for name in log:
        axes.set(**{f"{name}scale": "log"})
        _plain_log_ticks(getattr(axes, f"{name}axis"))
    if count:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend(figure, axes)
    return figure


def write_png(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a figure as a PNG file of 1050 pixels per WIDTH inches."""
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE):
        figure.savefig(temporary, dpi=DPI)


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an ``<svg>`` element for a page: transparent, without fonts, in the colors of the page.

    ``title`` is read aloud by screen readers. Where an artist has the ``gid`` "tip:TEXT", the text is shown under the
    mouse. All text is escaped.
    """
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # ids differ between the figures of a page
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # in HTML, svg elements have no namespace prefix
        element.text, element.tail = (part if part and part.strip() else None for part in (element.text, element.tail))
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            tip = attributes.pop("id", "")
            if tip.startswith("tip:"):
                ElementTree.SubElement(element, "title").text = tip.removeprefix("tip:")
        for name in ("d", "x", "y", "transform", "viewBox"):
            if name in attributes:
                short = re.sub(r"\d+\.\d{2,}", lambda value: f"{float(value[0]):.1f}", attributes[name])
                attributes[name] = " ".join(short.split())
        if "style" in attributes:
            style = [part for part in attributes["style"].split("; ") if not part.startswith("font-family")]
            attributes["style"] = "; ".join(style)
            for color, variable in PAGE_COLORS.items():
                attributes["style"] = attributes["style"].replace(color, variable)
        element.attrib = attributes
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag in ("style", "metadata")]:
            parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def _new_figure(
    x: str, y: str, xlim: Limits = (0, 1), ylim: Limits = (0, 1.02), height: float = HEIGHT
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.set(**{name: limits for name, limits in (("xlim", xlim), ("ylim", ylim)) if limits is not None})
    return figure, axes


def _plain_log_ticks(axis: matplotlib.axis.Axis) -> None:
    """Ticks such as 2, 10 and 50 on a logarithmic axis, without powers as exponents."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value >= 1e-4 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, marker: str, x: float, y: float, color: str, label: str = "_") -> None:
    axes.plot([x], [y], marker, color=color, markeredgecolor=INK, markersize=6, label=label)


def _finish(figure: Figure, axes: Axes, metrics: dict) -> Figure:
    axes.set_title(f"{metrics['target']}: {metrics['objects']} objects, {metrics['images']} images")
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend below the axes, where it covers no line; none for a single line."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _f1_steps(curve: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Threshold and F1, ascending, from 0 (everything kept) to 1 (nothing kept)."""
    thresholds, f1 = curve["score"][::-1], curve["f1"][::-1]
    if not thresholds:
        return [0.0, 1.0], [0.0, 0.0]
    return [0.0, *thresholds, thresholds[-1], 1.0], [f1[0], *f1, 0.0, 0.0]
