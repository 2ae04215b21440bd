import json
import re

import numpy as np
import pytest
from detections import record

from danet.evaluation.ablate_options import TABLE_2
from danet.evaluation.ablation import RunResult, pairs, summarize, to_markdown
from danet.evaluation.comparison import Outcome

DRONES = 8
RECORDS = [record([(10, 10, 20, 20)], video=f"d{i // 2}") for i in range(DRONES)]
RECORDS += [record([(10, 10, 20, 20)], [name], video=f"{name}{i // 2}") for name in ("bird", "plane") for i in range(4)]


def result(row, seed, hits, alarms, f1):
    """A run that finds the first ``hits`` drones and has false alarms with these scores on the birds."""
    run = Outcome(
        np.linspace(0.9, 0.8, hits),
        np.arange(hits),
        np.array(alarms),
        DRONES + np.arange(len(alarms)) % 4,
        np.array([1] * DRONES + [0] * 8),
        0.5,
    )
    figures = {"precision": 0.9, "recall": hits / DRONES, "f1": f1, "ap50": None if hits == 0 else 0.5}
    others = {"frames_per_second": 20.0 + seed, "parameters": 3_880_000, "steps": 100, "seconds": 60.0}
    return RunResult(row, seed, "drone", 0.5, **figures, **others, operators="compiled", outcome=run)


def table(text, title):
    """The cells of the table below a heading, by row."""
    lines = text[text.index(title) :].split("\n\n")
    rows = next(part.strip() for part in lines if part.startswith("| row"))
    return [line.strip("| ").split(" | ") for line in rows.split("\n")]


def test_pairs_of_rows():
    assert pairs(["baseline", "safem", "safem+acfa", "safem+acfa+adcr"]) == [
        ("safem", "baseline"),
        ("safem+acfa", "safem"),
        ("safem+acfa", "baseline"),
        ("safem+acfa+adcr", "safem+acfa"),
        ("safem+acfa+adcr", "baseline"),
    ]
    found = pairs(TABLE_2)
    assert ("safem+acfa+adcr+sskd", "safem+acfa+adcr") in found and ("safem+acfa+adcr+sskd", "safem+acfa+sskd") in found
    assert len(found) == len(set(found))
    assert pairs(["wide", "deep"]) == [("deep", "wide")]


def test_summary_means_deviations_and_differences():
    runs = [result("baseline", s, 8, [0.85, 0.85], 0.8 + s / 10) for s in (0, 1)]
    runs += [result("adcr", s, 8, [0.85], 0.9) for s in (0, 1)]
    summary = summarize(runs, RECORDS, criterion="iou50", recall=0.9, resamples=100)
    baseline, adcr = summary.rows
    assert baseline.figures["f1"].mean == pytest.approx(0.85)
    assert baseline.figures["f1"].deviation == pytest.approx(0.1 / 2**0.5)
    assert baseline.false_alarms["bird"].rate.mean == 0.5 and adcr.false_alarms["bird"].rate.mean == 0.25
    assert baseline.false_alarms["plane"].rate.mean == 0.0 and baseline.false_alarms["(all)"].rate.mean == 0.25
    assert summary.distractors == {"bird": 4, "plane": 4, "(all)": 8}
    (difference,) = summary.differences
    assert (difference.row, difference.against, difference.seeds) == ("adcr", "baseline", [0, 1])
    assert difference.comparison.false_alarms.value == -0.125
    assert difference.comparison.false_alarms_change.value == -0.5

    text = to_markdown(summary)
    rows = table(text, "# Ablation")
    assert rows[2] == [
        *("baseline", "2", "0.900 ± 0.000", "1.000 ± 0.000", "0.850 ± 0.071", "0.500 ± 0.000"),
        *("20.5 ± 0.7", "3.88 M", "100", "1.0"),
    ]
    assert table(text, "## False alarms at recall 0.90")[3] == [
        *("adcr", "0.250 ± 0.000", "0.000 ± 0.000", "0.125 ± 0.000"),
    ]
    cells = table(text, "## Differences")[2]
    assert cells[:2] == ["adcr", "baseline"] and cells[3:] == ["0.900", *cells[4:]]
    assert re.fullmatch(r"-0\.125 \(-0\.\d{3} to [+-]0\.\d{3}\)", cells[4]) and cells[5].startswith("-50 % (")
    json.dumps(summary.to_json(), allow_nan=False)


def test_unreached_recall_is_reported_and_replaced():
    runs = [result("baseline", 0, 8, [0.85], 0.9), result("adcr", 0, 6, [0.85, 0.1], 0.8)]
    runs += [result("baseline", 1, 8, [0.85], 0.9), result("adcr", 1, 8, [0.1], 0.8)]
    runs += [result("sskd", 0, 7, [], 0.8)]
    summary = summarize(runs, RECORDS, criterion="iou50", recall=0.9, resamples=20)
    text = to_markdown(summary)
    wanted = table(text, "## False alarms at recall 0.90")
    assert wanted[2][1] == "0.250 ± 0.000"
    assert wanted[3][1:] == ["not reached by 1 of 2"] * 3
    assert wanted[4][1:] == ["not reached"] * 3
    common = table(text, "## False alarms at recall 0.750, the highest that all runs reach")
    assert common[3][1] == "0.125 ± 0.177" and common[4][1] == "0.000"
    rows = {(cells[0], cells[1]): cells for cells in table(text, "## Differences")[2:]}
    assert rows["adcr", "baseline"][3] == "0.750" and rows["sskd", "baseline"][3] == "0.875"
    assert summary.rows[1].highest_recall == 0.75


def test_run_without_detections_is_in_the_table():
    runs = [result("baseline", 0, 8, [0.85], 0.9), result("adcr", 0, 0, [], 0.0)]
    summary = summarize(runs, RECORDS, criterion="iou50", recall=0.9, resamples=20)
    text = to_markdown(summary)
    assert table(text, "# Ablation")[3][3:6] == ["0.000", "0.000", "-"]
    assert table(text, "## Differences")[2][2].startswith("-0.") or "-1.000" in table(text, "## Differences")[2][2]
    json.dumps(summary.to_json(), allow_nan=False)
    assert runs[1].line() == "P 0.900, R 0.000, F1 0.000, AP50 - at score 0.500, 100 steps in 1.0 minutes"
