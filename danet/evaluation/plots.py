"""Curves of an evaluation and the bars of an ablation as PNG files, in colours that colour-blind people tell apart."""

import os
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import ALL, Metrics, Result
from danet.utils.files import atomic_path

if TYPE_CHECKING:  # an evaluation draws without what an ablation needs
    from danet.evaluation.ablation import Spread, Summary

# Okabe and Ito; every line has its own dashes as well.
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
MARKERS = {"fixed": "o", "tuned": "D"}
FAINT = "#666666"


def plot_pr_curves(path: str | os.PathLike, metrics: Metrics) -> None:
    """Precision against recall under every criterion, with the reported operating points as marks."""
    figure, axes = _figure("recall", "precision")
    for result, (color, dashes) in zip(metrics.criteria.values(), STYLES, strict=True):
        line = result.curve
        label = f"{result.title}   AP {_text(result.ap.value)}"
        axes.plot(line.recall, line.precision, dashes, color=color, label=label)
        for name, marker in MARKERS.items():
            point = getattr(result, name)
            if point is not None and None not in (point.precision.value, point.recall.value):
                axes.plot(point.recall.value, point.precision.value, marker, color=color, markeredgecolor="black")
    for name, marker in MARKERS.items():
        if metrics.thresholds[name] is not None:
            label = f"{name} score {metrics.thresholds[name]:.3f}"
            axes.plot([], [], marker, color="white", markeredgecolor="black", label=label)
    axes.set_title(f"{metrics.target}: {metrics.objects} objects, {metrics.images} images")
    axes.legend(loc="lower left")
    _save(path, figure)


def plot_f1_curves(path: str | os.PathLike, metrics: Metrics) -> None:
    """F1 against the score threshold under every criterion, with the reported thresholds as vertical lines."""
    figure, axes = _figure("score threshold", "F1")
    for result, (color, dashes) in zip(metrics.criteria.values(), STYLES, strict=True):
        axes.plot(*_f1_steps(result), dashes, color=color, label=result.title)
    for name, gaps in (("fixed", (0, (1, 3))), ("tuned", (0, (6, 2)))):
        value = metrics.thresholds[name]
        if value is not None:
            axes.axvline(value, color=FAINT, linewidth=1.2, linestyle=gaps, label=f"{name} score {value:.3f}")
    axes.set_title(f"{metrics.target}: {metrics.objects} objects, {metrics.images} images")
    axes.legend(loc="lower center")
    _save(path, figure)


def plot_ablation(path: str | os.PathLike, summary: "Summary") -> None:
    """Of every row F1, AP50 and false alarms (where images without a target show something else): a dot a run, a bar at
    the mean, a line of one standard deviation to both sides."""
    panels: dict[str, tuple[list[Spread | None], list[list[float]]]] = {}
    for title, name in (("F1", "f1"), ("AP50", "ap50")):
        runs = [[run[name] for run in summary.runs if run["row"] == row.name] for row in summary.rows]
        panels[title] = (
            [row.figures[name] for row in summary.rows],
            [[v for v in each if v is not None] for each in runs],
        )
    if summary.distractors:
        rates = [row.false_alarms_at_common_recall[ALL].rate for row in summary.rows]
        panels[f"false alarms an image\nat recall {summary.common_recall:.2f}"] = (rates, [[] for _ in rates])

    figure = Figure(figsize=(3.0 * len(panels), 1.4 + 0.45 * len(summary.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, (spreads, dots)), (color, _) in zip(every, panels.items(), STYLES, strict=False):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for place, (spread, values) in enumerate(zip(spreads, dots, strict=True)):
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.5, markeredgewidth=0)
            if spread is None:
                continue
            axes.errorbar(spread.mean, place, xerr=spread.deviation, color=color)
            axes.plot(spread.mean, place, "|", color=color, markersize=18, markeredgewidth=3)
            axes.annotate(f"{spread.mean:.3f}", (spread.mean, place - 0.32), ha="center", fontsize=8)
    every[0].set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    every[0].set_ylim(len(summary.rows) - 0.5, -0.7)
    figure.suptitle(
        f"{summary.target}, {CRITERIA[summary.criterion].title}; mean and deviation of the runs", fontsize=9
    )
    _save(path, figure)


def _f1_steps(result: Result) -> tuple[list[float], list[float]]:
    """Threshold and F1, ascending, from 0 (everything kept) to 1 (nothing kept)."""
    thresholds, f1 = result.curve.thresholds[::-1].tolist(), result.curve.f1[::-1].tolist()
    if not thresholds:
        return [0.0, 1.0], [0.0, 0.0]
    return [0.0, *thresholds, thresholds[-1], 1.0], [f1[0], *f1, 0.0, 0.0]


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    # No pyplot: it would keep global state and pick a display.
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(path: str | os.PathLike, figure: Figure) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
