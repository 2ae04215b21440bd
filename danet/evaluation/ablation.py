"""The results of an ablation: means over the seeds, differences between rows, and their tables."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from danet.evaluation.bootstrap import resample
from danet.evaluation.comparison import Comparison, Outcome, common_recall, compare
from danet.evaluation.formatting import difference, number, spread
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import images_by_distractor
from danet.evaluation.tables import Row, Table, shown_on

CROSS_VALIDATED = (
    "Cross-validation: {} folds, each evaluated with runs trained on the others, at a score threshold chosen on a "
    "tenth of their images; AP50 and frames/s are means over the folds."
)
RATIOS = ("precision", "recall", "f1")
METRICS = (*RATIOS, "ap50", "frames_per_second")


@dataclass(frozen=True)
class RunResult:
    """The metrics of one evaluated run; None where undefined. Fields are keys of ``ablation.json``."""

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
    """Time of the training steps and validations."""
    operators: str
    outcome: Outcome
    thresholds: list[float] | None = None
    """In a cross-validation the thresholds of the folds, whose scores are shifted to make each ``threshold``."""

    def line(self) -> str:
        metrics = (("P", self.precision), ("R", self.recall), ("F1", self.f1), ("AP50", self.ap50))
        shown = ", ".join(f"{name} {number(value)}" for name, value in metrics)
        return f"{shown} at score {self.threshold:.3f}, {self.steps} steps in {self.seconds / 60:.1f} minutes"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the runs of a row; the deviation is None for a single run."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class FalseAlarmRate:
    """False alarms per image of a row's runs at one recall; ``rate`` is None unless all runs reach the recall."""

    rate: Spread | None
    reached: int
    runs: int


@dataclass(frozen=True)
class Variant:
    """The runs of one row of the ablation."""

    name: str
    seeds: list[int]
    figures: dict[str, Spread | None]
    parameters: int
    steps: int
    seconds: float
    highest_recall: float
    """The lowest of the highest recalls of the runs."""
    false_alarms: dict[str, FalseAlarmRate]
    """By distractor, at the requested recall."""
    false_alarms_at_common_recall: dict[str, FalseAlarmRate]


@dataclass(frozen=True)
class Difference:
    """A row compared with another one, over the seeds that both have."""

    row: str
    against: str
    seeds: list[int]
    comparison: Comparison


@dataclass(frozen=True)
class Summary:
    """The results of an ablation so far; fields are keys of ``ablation.json``."""

    target: str
    criterion: str
    images: int
    objects: int
    resampled: str
    groups: int
    distractors: dict[str, int]
    """Number of images without a target by what they show."""
    folds: int | None
    """Number of folds of a cross-validation."""
    recall: float
    """Requested recall of the false alarms."""
    common_recall: float
    """``recall``, or the highest recall that all runs reach if that is lower."""
    operators: list[str]
    rows: list[Variant]
    differences: list[Difference]
    runs: list[dict]

    def to_json(self) -> dict:
        return asdict(self)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of rows to compare: each row with those that lack one of its components, and with the first row.

    Example:
        >>> pairs(["baseline", "safem", "safem+acfa"])
        [('safem', 'baseline'), ('safem+acfa', 'safem'), ('safem+acfa', 'baseline')]
    """
    parts = {name: frozenset(name.split("+")) - {"baseline"} for name in names}
    result = []
    for name in names:
        fewer = [other for other in names if parts[other] < parts[name] and len(parts[name] - parts[other]) == 1]
        result += [(name, other) for other in dict.fromkeys([*fewer, names[0]]) if other != name]
    return result


def summarize(
    results: Sequence[RunResult],
    records: Sequence,
    *,
    criterion: str,
    recall: float,
    resamples: int,
    folds: int | None = None,
) -> Summary:
    """Summarizes runs on the same ``records``; the runs of a row have the same ``row``."""
    target = results[0].target
    draws = resample([record.video for record in records], resamples)
    shown = images_by_distractor(records, target)
    common = common_recall([result.outcome for result in results], recall)
    by_row: dict[str, list[RunResult]] = {}
    for result in results:
        by_row.setdefault(result.row, []).append(result)
    rows = [_variant(name, runs, shown, recall, common) for name, runs in by_row.items()]
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


def describe(summary: dict) -> str:
    """What was measured on what, in a paragraph. ``summary`` is the content of ``ablation.json``."""
    videos = f" of {summary['groups']} videos" if summary["resampled"] == "videos" else ""
    seeds = max(len(row["seeds"]) for row in summary["rows"])
    folds = f" {CROSS_VALIDATED.format(summary['folds'])}" if summary["folds"] else ""
    return (
        f"{summary['objects']} objects of class {summary['target']} in {summary['images']} images{videos}; detections "
        f"are matched by {CRITERIA[summary['criterion']].title}, for AP50 by IoU ≥ 0.5. "
        f"{f'Mean ± standard deviation over {seeds} seeds. ' if seeds > 1 else 'A single seed. '}"
        f"{' and '.join(summary['operators']).capitalize()} operators.{folds}"
    )


def ablation_tables(summary: dict) -> list[Table]:
    """The tables of an ablation: all rows, false alarms, and differences between rows.

    Args:
        summary: the content of ``ablation.json``.
    """
    rows = []
    for row in summary["rows"]:
        means = (spread(row["figures"][name], 1 if name == "frames_per_second" else 3) for name in METRICS)
        cost = (f"{row['parameters'] / 1e6:.2f} M", str(row["steps"]), f"{row['seconds'] / 60:.1f}")
        rows.append(Row(row["name"], (str(len(row["seeds"])), *means, *cost)))
    head = ("row", "seeds", "P", "R", "F1", "AP50", "frames/s", "parameters", "steps", "minutes")
    tables = [Table("Ablation", head, rows)]
    if summary["distractors"]:
        tables.append(_false_alarms(summary, "false_alarms", f"recall {summary['recall']:.2f}"))
        if summary["common_recall"] < summary["recall"]:
            recall = f"recall {summary['common_recall']:.3f}, the highest that all runs reach"
            tables.append(_false_alarms(summary, "false_alarms_at_common_recall", recall))
    if summary["differences"]:
        tables.append(_differences(summary))
    return tables


def _false_alarms(summary: dict, kind: str, recall: str) -> Table:
    def cell(rate: dict) -> str:
        if rate["rate"] is not None or rate["reached"] == rate["runs"]:
            return spread(rate["rate"])
        return "not reached" + (f" by {rate['runs'] - rate['reached']} of {rate['runs']}" if rate["reached"] else "")

    target = summary["target"]
    columns = (shown_on(name, images) for name, images in summary["distractors"].items())
    rows = [Row(row["name"], tuple(cell(rate) for rate in row[kind].values())) for row in summary["rows"]]
    note = f"False {target} alarms per image, on images without a {target}, by what they show."
    return Table(f"False alarms at {recall}", ("row", *columns), rows, note)


def _differences(summary: dict) -> Table:
    rows = []
    for each in summary["differences"]:
        comparison = each["comparison"]
        change = comparison.get("false_alarms_change", {"value": None})  # absent in files of older versions
        f1, recall = difference(comparison["f1"]), f"{comparison['recall']:.3f}"
        alarms = (difference(comparison["false_alarms"]), difference(change, percent=True))
        rows.append(Row(each["row"], (each["against"], f1, recall, *alarms)))
    note = (
        f"Row minus compared row, with 95 % intervals of a paired bootstrap over {summary['groups']} "
        f"{summary['resampled']}. False alarms are counted on all images without a {summary['target']} at the given "
        f"recall: {summary['recall']:g}, or the highest recall that all runs of both rows reach if that is lower."
    )
    return Table("Differences", ("row", "against", "F1", "recall", "false alarms per image", "change"), rows, note)


def to_markdown(summary: Summary) -> str:
    """The tables of an ablation as Markdown."""
    content = summary.to_json()
    rows, *others = ablation_tables(content)
    text = [f"# {rows.title}", describe(content), rows.markdown()]
    for table in others:
        text += [f"## {table.title}", table.note, table.markdown()]
    return "\n\n".join(text) + "\n"


def _variant(name: str, runs: list[RunResult], shown: dict[str, np.ndarray], recall: float, common: float) -> Variant:
    def false_alarms(at: float) -> dict[str, FalseAlarmRate]:
        rates = {key: [run.outcome.false_alarms(at, images) for run in runs] for key, images in shown.items()}
        return {
            key: FalseAlarmRate(_spread_of(values), sum(value is not None for value in values), len(values))
            for key, values in rates.items()
        }

    return Variant(
        name=name,
        seeds=[run.seed for run in runs],
        figures={metric: _spread_of([getattr(run, metric) for run in runs]) for metric in METRICS},
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
