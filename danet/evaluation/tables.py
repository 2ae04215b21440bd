"""The tables that ``danet evaluate`` prints."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from danet.evaluation.bootstrap import Estimate
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import RECALLS, Metrics, Operating, Result, recall_point

# Longer lists are left to metrics.json.
MOST_RECORDINGS = 40
FIGURES = ("precision", "recall", "F1")


def print_metrics(metrics: Metrics, console: Console) -> None:
    """Prints every table; figures in parentheses are 95 % intervals."""
    main = metrics.criteria[metrics.criterion].title
    title = f"{metrics.target}: {metrics.objects} objects in {metrics.images} images"
    console.print(_results(title, "criterion", metrics.criteria.values()))
    console.print(_results(f"{metrics.target} by size (sqrt of the box's area), {main}", "size", metrics.scales))
    if metrics.false_alarms:
        console.print(_false_alarms(metrics))
    if 0 < len(metrics.recordings) <= MOST_RECORDINGS and any(group.images > 1 for group in metrics.recordings):
        console.print(_recordings(metrics, main))
    if metrics.other_classes:
        console.print(_results(f"other classes, {main}", "class", metrics.other_classes))
    if metrics.groups > 1:
        console.print(f"In parentheses: 95 % intervals, bootstrap over {metrics.groups} {metrics.resampled}.")


def _results(title: str, first: str, results: Iterable[Result]) -> Table:
    table = _table(title, first, "objects", "AP", "score", *FIGURES, "hits", "false", "missed")
    for result in results:
        head = (result.title, str(result.objects), _text(result.ap))
        for point in (result.fixed, result.tuned):
            if point is not None:
                counts = (str(point.tp), str(point.fp), str(point.fn))
                table.add_row(*head, f"{point.threshold:.3f}", *_figures(point), *counts)
                head = ("", "", "")
    return table


def _false_alarms(metrics: Metrics) -> Table:
    """A row for each operating point, a column for each distractor."""
    points = {"fixed": "fixed", "tuned": "tuned"}
    points |= {recall_point(r, key): f"recall {r:.2f}, {CRITERIA[key].title}" for key in CRITERIA for r in RECALLS}
    headings = [f"{group.distractor}\n{group.images} images" for group in metrics.false_alarms]
    title = f"false {metrics.target} alarms an image, on images without a {metrics.target} that show"
    table = _table(title, "operating point", "score", *headings)
    for name, words in points.items():
        threshold = metrics.thresholds[name]
        if threshold is not None:
            rates = [_text(group.rates[name] or Estimate(None)) for group in metrics.false_alarms]
            table.add_row(words, f"{threshold:.3f}", *rates)
        elif name != "tuned":
            table.add_row(words, "not reached")
    return table


def _recordings(metrics: Metrics, main: str) -> Table:
    which = "fixed" if metrics.thresholds["tuned"] is None else "tuned"
    title = f"{metrics.target} by recording, {main}, score {metrics.thresholds[which]:.3f}"
    table = _table(title, "recording", "images", "objects", *FIGURES, "hits", "false", "missed")
    for group in metrics.recordings:
        point = getattr(group, which)
        counts = (str(point.tp), str(point.fp), str(point.fn))
        table.add_row(group.name, str(group.images), str(group.objects), *_figures(point), *counts)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(point: Operating) -> tuple[str, str, str]:
    return _text(point.precision), _text(point.recall), _text(point.f1)


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f}-{estimate.high:.2f})"
