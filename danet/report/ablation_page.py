"""The report of what ``danet ablate`` wrote."""

from pathlib import Path

from danet.ablate import AblateOptions
from danet.evaluation.ablation import CROSS_VALIDATED
from danet.evaluation.matching import CRITERIA
from danet.report.charts import SERIES, Axis, Series, chart
from danet.report.evaluation_page import pr_series, shown_on
from danet.report.html import Html, Report, Section, grid, table
from danet.report.reproduce import command_line, configuration, read_config, saved_options
from danet.report.training_page import VALIDATIONS, read_columns
from danet.utils.files import read_json

SUMMARY = "ablation.json"
FIGURES = {"precision": "precision", "recall": "recall", "f1": "F1", "ap50": "AP50"}


def ablation_report(folder: Path) -> Report:
    """The report of an ablation's folder, as far as the ablation has got."""
    summary = {"folds": None, **read_json(folder / SUMMARY)}  # None: written before there were any
    rows = summary["rows"]
    best = max(rows, key=lambda row: (row["figures"]["f1"] or {"mean": -1.0})["mean"])
    seeds = max(len(row["seeds"]) for row in rows)
    options = saved_options(folder / "config.yaml", AblateOptions)
    lead = (
        f"{len(rows)} variants of one recipe, {seeds} seed{'s' if seeds > 1 else ''} each; {summary['objects']} "
        f"objects {summary['target']} in {summary['images']} images of {options.val}"
        f"{' and of the training data' if summary['folds'] else ''}, right by "
        f"{CRITERIA[summary['criterion']].title}, AP50 by IoU ≥ 0.5."
    )
    if summary["folds"]:
        lead += f" {CROSS_VALIDATED.format(summary['folds'])}"
    tiles = [
        (words[0].upper() + words[1:], _spread(best["figures"][name]).split(" ")[0], f"{best['name']}, the highest F1")
        for name, words in FIGURES.items()
    ]
    command = command_line("danet ablate", options, ("val",), words="train")
    note = "Again in the same --out it only goes on where something is missing; with another it starts anew:"
    sections = [
        Section("Variants", [_variants(rows), *_false_alarms(summary)]),
        Section("Differences", _differences(summary)),
        Section("Curves", _curves(folder, summary)),
        Section("Configuration", configuration(command, read_config(folder / "config.yaml"), note)),
    ]
    return Report("Ablation", folder.resolve().name, lead, tiles, sections)


def _variants(rows: list[dict]) -> Html:
    head = ("variant", "seeds", *FIGURES.values(), "frames/s", "parameters", "steps", "minutes")
    cells = [
        (
            row["name"],
            str(len(row["seeds"])),
            *(_spread(row["figures"][name]) for name in FIGURES),
            _spread(row["figures"]["frames_per_second"], 1),
            f"{row['parameters'] / 1e6:.2f} M",
            str(row["steps"]),
            f"{row['seconds'] / 60:.1f}",
        )
        for row in rows
    ]
    return table("Variants", head, cells, "Mean ± standard deviation over the seeds.")


def _false_alarms(summary: dict) -> list[Html]:
    if not summary["distractors"]:
        return []
    target, parts = summary["target"], []
    kinds = {"false_alarms": summary["recall"]}
    if summary["common_recall"] < summary["recall"]:
        kinds["false_alarms_at_common_recall"] = summary["common_recall"]
    shown = [shown_on(name, images) for name, images in summary["distractors"].items()]
    for kind, recall in kinds.items():
        which = "" if kind == "false_alarms" else ", the highest that all runs reach"
        rows = [(row["name"], *(_rate(rate) for rate in row[kind].values())) for row in summary["rows"]]
        title = f"False {target} alarms an image at recall {recall:.3f}{which}, on images without a {target} that show"
        parts.append(table(title, ("variant", *shown), rows))
    return parts


def _differences(summary: dict) -> list[Html]:
    rows = []
    for each in summary["differences"]:
        comparison = each["comparison"]
        values = (_change(comparison["f1"]), f"{comparison['recall']:.3f}", _change(comparison["false_alarms"]))
        rows.append((f"{each['row']} against {each['against']}", *values))
    note = (
        f"In parentheses: 95 % intervals, paired bootstrap over {summary['groups']} {summary['resampled']}. False "
        f"alarms on all images without a {summary['target']}, at the recall given."
    )
    head = ("variant", "F1", "recall", "false alarms an image")
    return [table("What a variant has over another", head, rows, note)] if rows else []


def _curves(folder: Path, summary: dict) -> list[Html]:
    """P-R curves and validations of every variant's first seed (of the first part, in a cross-validation)."""
    pr, validations, last = [], [], 1.0
    folder = folder / "fold0" if summary["folds"] else folder
    which = "first seed, part 0" if summary["folds"] else "first seed"
    for color, row in enumerate(summary["rows"][:SERIES]):  # more lines cannot be told apart
        run = folder / row["name"] / str(row["seeds"][0])
        pr += pr_series(run / "evaluate", summary["criterion"], row["name"], color)
        if columns := read_columns(run / VALIDATIONS):
            validations.append(Series(row["name"], columns["epoch"], columns["ap50"], color))
            last = max(last, columns["epoch"][-1])
    unit = (0.0, 1.0)
    about = f"Of the {which}; right by {CRITERIA[summary['criterion']].title}."
    charts = []
    if pr:
        charts.append(chart("Precision over recall", pr, Axis("recall", *unit), Axis("precision", *unit), about))
    if validations:
        x = Axis("epoch", 0.0, last, step=1.0)
        charts.append(chart("AP50 on the validation images", validations, x, Axis("AP50", *unit), f"Of the {which}."))
    return [grid(*charts)] if charts else []


def _spread(spread: dict | None, digits: int = 3) -> str:
    if spread is None:
        return "-"
    deviation = "" if spread["deviation"] is None else f" ± {spread['deviation']:.{digits}f}"
    return f"{spread['mean']:.{digits}f}{deviation}"


def _change(estimate: dict) -> str:
    """A difference with its interval, with signs."""
    if estimate["value"] is None:
        return "-"
    interval = "" if estimate["low"] is None else f" ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
    return f"{estimate['value']:+.3f}{interval}"


def _rate(rate: dict) -> str:
    if rate["rate"] is not None or rate["reached"] == rate["runs"]:
        return _spread(rate["rate"])
    return "not reached" + (f" by {rate['runs'] - rate['reached']} of {rate['runs']}" if rate["reached"] else "")
