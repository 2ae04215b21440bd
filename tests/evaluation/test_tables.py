import re
from io import StringIO

import numpy as np
import pytest
from detections import CLASSES, random_case
from rich.cells import cell_len
from rich.console import Console

from danet.evaluation.metrics import evaluate_predictions
from danet.evaluation.tables import Row, Table, metric_tables, print_metrics, print_table


@pytest.fixture(scope="module")
def metrics():
    records, predictions = random_case(0, images=300)
    for index, each in enumerate(records):
        each.recording = f"IR_DRONE_{index % 4:03}"
    return evaluate_predictions(records, predictions, CLASSES, threshold=0.3, resamples=50).to_json()


def printed(draw, width):
    file = StringIO()
    draw(Console(file=file, width=width, highlight=False))
    text = file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    return text


@pytest.mark.parametrize("width", [80, 120, 150])
def test_metrics_keep_all_cells_at_any_width(metrics, width):
    text = printed(lambda console: print_metrics(metrics, console), width)
    for table in metric_tables(metrics).values():
        assert table.title in re.sub(r"\s+", " ", text)
        for row in table.rows:
            assert row.label in text
            for cell in row.cells:
                assert cell.split(" (")[0] in text
    assert ("(0." in text) == (width == 150)


def test_metrics_at_80_columns_are_one_table_each(metrics):
    text = printed(lambda console: print_metrics(metrics, console), 80)
    assert len(re.findall(r"criterion +objects +AP +score +precision +recall +F1 +hits +false +missed", text)) == 1


def test_wide_tables_are_divided(metrics):
    head = ("class", *(f"detected as class {index}" for index in range(9)))
    table = Table("t", head, [Row(f"class {row}", tuple(f"{row}.{column}" for column in range(9))) for row in range(3)])
    text = printed(lambda console: print_table(table, console), 60)
    assert text.count("class 2\n") == 0 and len(re.findall(r"^class 2 ", text, re.M)) > 1
    for row, column in np.ndindex(3, 9):
        assert f"{row}.{column}" in text


def test_long_labels_go_on_in_the_next_line():
    table = Table("t", ("recording", "images"), [Row("a" * 70, ("5",)), Row("[red]b[/nothing]", ("6",))])
    text = printed(lambda console: print_table(table, console), 80)
    assert text.count("a") - text.count("images") >= 70 and "[red]b[/nothing]" in text


def test_confusion_table(metrics):
    table = metric_tables(metrics)["confusion"]
    assert table.head == ("annotated", "as drone", "as bird", "not detected")
    assert [row.label for row in table.rows] == ["drone", "bird", "(background)"]
    assert "confusion" not in metric_tables({**metrics, "confusion": None})
