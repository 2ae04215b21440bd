"""The results of an ablation: means over the seeds, differences between rows, and the table that shows them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from danet.evaluation.bootstrap import Estimate, resample
from danet.evaluation.comparison import Comparison, Outcome, common_recall, compare
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import ALL, images_by_distractor

CROSS_VALIDATED = (
    "Cross-validation: {} parts, each measured with runs trained on the others, at a score that a tenth of those "
    "chose; AP50 and frames/s are means over the parts."
)
FIGURES = ("precision", "recall", "f1", "ap50", "frames_per_second")


@dataclass(frozen=True)
class Result:
    """One run, measured. A figure is None where it is undefined."""

    row: str
    seed: int
    target: str
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    ap50: float | None
    frames_per_second: float | None
    parameters: int
    steps: int
    seconds: float
    """Spent in training steps and their validations."""
    operators: str
    outcome: Outcome
    thresholds: list[float] | None = None
    """Of the parts of a cross-validation, whose scores are shifted to make each of them ``threshold``."""

    def line(self) -> str:
        figures = (("P", self.precision), ("R", self.recall), ("F1", self.f1), ("AP50", self.ap50))
        shown = ", ".join(f"{name} {_number(value)}" for name, value in figures)
        return f"{shown} at score {self.threshold:.3f}, {self.steps} steps in {self.seconds / 60:.1f} minutes"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample; None for a single run) over the runs of a row."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class FalseAlarmRate:
    """False alarms an image of a row's runs at one recall; ``rate`` is None unless all of them reach it."""

    rate: Spread | None
    reached: int
    runs: int


@dataclass(frozen=True)
class Row:
    """The runs of one variant."""

    name: str
    seeds: list[int]
    figures: dict[str, Spread | None]
    parameters: int
    steps: int
    seconds: float
    highest_recall: float
    """That of the run that reaches least."""
    false_alarms: dict[str, FalseAlarmRate]
    """By distractor, at the wanted recall."""
    false_alarms_at_common_recall: dict[str, FalseAlarmRate]


@dataclass(frozen=True)
class Difference:
    """What a row has over another; over the seeds that both have."""

    row: str
    against: str
    seeds: list[int]
    comparison: Comparison


@dataclass(frozen=True)
class Summary:
    """An ablation as far as it has got."""

    target: str
    criterion: str
    images: int
    objects: int
    resampled: str
    groups: int
    distractors: dict[str, int]
    """Images by what they show, none of them a target."""
    folds: int | None
    """Parts of a cross-validation."""
    recall: float
    """At which false alarms are counted."""
    common_recall: float
    """The same, or the highest that all runs reach."""
    operators: list[str]
    rows: list[Row]
    differences: list[Difference]
    runs: list[dict]

    def to_json(self) -> dict:
        return asdict(self)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which rows are compared: each with those that have one component less, and with the first."""
    parts = {name: frozenset(name.split("+")) - {"baseline"} for name in names}
    result = []
    for name in names:
        fewer = [other for other in names if parts[other] < parts[name] and len(parts[name] - parts[other]) == 1]
        result += [(name, other) for other in dict.fromkeys([*fewer, names[0]]) if other != name]
    return result


def summarise(
    results: Sequence[Result],
    records: Sequence,
    *,
    criterion: str,
    recall: float,
    resamples: int,
    folds: int | None = None,
) -> Summary:
    """Puts the results of runs on the same ``records`` together; a row has as many runs as there are results of it."""
    target = results[0].target
    draws = resample([record.video for record in records], resamples)
    shown = images_by_distractor(records, target)
    common = common_recall([result.outcome for result in results], recall)
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result.row, []).append(result)
    rows = [_row(name, runs, shown, recall, common) for name, runs in by_row.items()]
    empty = np.array([target not in record.names for record in records], bool)
    differences = []
    for name, other in pairs(list(by_row)):
        seeds = [run.seed for run in by_row[name] if run.seed in {each.seed for each in by_row[other]}]
        a, b = ([run.outcome for run in by_row[row] if run.seed in seeds] for row in (name, other))
        differences.append(Difference(name, other, seeds, compare(a, b, draws, recall=recall, images=empty)))
    return Summary(
        target=target,
        criterion=criterion,
        images=len(records),
        objects=int(results[0].outcome.objects.sum()),
        resampled=draws.unit,
        groups=draws.weights.shape[1],
        distractors={name: int(images.sum()) for name, images in shown.items()},
        folds=folds,
        recall=recall,
        common_recall=common,
        operators=sorted({result.operators for result in results}),
        rows=rows,
        differences=differences,
        runs=[{key: value for key, value in vars(result).items() if key != "outcome"} for result in results],
    )


def to_markdown(summary: Summary) -> str:
    """The tables as Markdown."""
    rule = CRITERIA[summary.criterion].title
    target, groups = summary.target, f"{summary.groups} {summary.resampled}"
    most = max(len(row.seeds) for row in summary.rows)
    text = [
        "# Ablation",
        f"{summary.objects} objects `{target}` in {summary.images} images"
        f"{f' of {groups}' if summary.resampled == 'videos' else ''}, right by {rule}; AP50 by "
        f"IoU ≥ 0.5. {f'Mean ± standard deviation over {most} seeds. ' if most > 1 else 'A single seed. '}"
        f"{' and '.join(summary.operators).capitalize()} operators."
        f"{f' {CROSS_VALIDATED.format(summary.folds)}' if summary.folds else ''}",
        _table(
            ["row", "seeds", "P", "R", "F1", "AP50", "frames/s", "parameters", "steps", "minutes"],
            [
                [
                    *(row.name, str(len(row.seeds))),
                    *(_spread(row.figures[name]) for name in FIGURES[:-1]),
                    _spread(row.figures["frames_per_second"], digits=1),
                    *(f"{row.parameters / 1e6:.2f} M", str(row.steps), f"{row.seconds / 60:.1f}"),
                ]
                for row in summary.rows
            ],
        ),
    ]
    if summary.distractors:
        text += _false_alarms(summary, summary.recall, "false_alarms")
        if summary.common_recall < summary.recall:
            text += _false_alarms(summary, summary.common_recall, "false_alarms_at_common_recall")
    if summary.differences:
        text += [
            "## Differences",
            f"Of the row to the other, 95 % intervals of a paired bootstrap over {groups}; false alarms on all images "
            f"without a {target}, at the recall given, which is the highest that all runs of both rows reach where "
            f"that is less than {summary.recall:g}.",
            _table(
                ["row", "against", "F1", "recall", "false alarms an image", "change"],
                [
                    [
                        *(each.row, each.against, _interval(each.comparison.f1), f"{each.comparison.recall:.3f}"),
                        _interval(each.comparison.false_alarms),
                        _interval(each.comparison.false_alarms_change, percent=True),
                    ]
                    for each in summary.differences
                ],
            ),
        ]
    return "\n\n".join(text) + "\n"


def _row(name: str, runs: list[Result], shown: dict[str, np.ndarray], recall: float, common: float) -> Row:
    def false_alarms(at: float) -> dict[str, FalseAlarmRate]:
        rates = {key: [run.outcome.false_alarms(at, images) for run in runs] for key, images in shown.items()}
        return {
            key: FalseAlarmRate(_spread_of(values), sum(value is not None for value in values), len(values))
            for key, values in rates.items()
        }

    return Row(
        name=name,
        seeds=[run.seed for run in runs],
        figures={figure: _spread_of([getattr(run, figure) for run in runs]) for figure in FIGURES},
        parameters=runs[0].parameters,
        steps=runs[0].steps,
        seconds=statistics.fmean(run.seconds for run in runs),
        highest_recall=min(run.outcome.highest_recall for run in runs),
        false_alarms=false_alarms(recall),
        false_alarms_at_common_recall=false_alarms(common),
    )


def _spread_of(values: Sequence[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return None
    return Spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


def _false_alarms(summary: Summary, recall: float, kind: str) -> list[str]:
    wanted = kind == "false_alarms"
    title = f"recall {recall:.2f}" if wanted else f"recall {recall:.3f}, the highest that all runs reach"
    columns = [f"{'all' if name == ALL else name} ({count} images)" for name, count in summary.distractors.items()]

    def cell(rate: FalseAlarmRate) -> str:
        if rate.rate is not None or rate.reached == rate.runs:
            return _spread(rate.rate)
        return "not reached" + (f" by {rate.runs - rate.reached} of {rate.runs}" if rate.reached else "")

    return [
        f"## False alarms at {title}",
        f"False {summary.target} alarms an image, on images without a {summary.target} that show:",
        _table(
            ["row", *columns],
            [[row.name, *(cell(rate) for rate in getattr(row, kind).values())] for row in summary.rows],
        ),
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _spread(spread: Spread | None, digits: int = 3) -> str:
    if spread is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def _interval(estimate: Estimate, *, percent: bool = False) -> str:
    def text(figure: float) -> str:
        return f"{100 * figure:+.0f} %" if percent else f"{figure:+.3f}"

    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return text(estimate.value)
    return f"{text(estimate.value)} ({text(estimate.low)} to {text(estimate.high)})"
