import math
import re
from xml.etree import ElementTree

import cv2
import pytest
from detections import CLASSES, random_case

from danet.evaluation.curves import thin_curves
from danet.evaluation.metrics import evaluate_predictions
from danet.evaluation.plots import PLOTS, Line, line_figure, to_svg, write_png


def paths(svg: str) -> list[str]:
    return [element.attrib["d"] for element in ElementTree.fromstring(svg).iter("path")]


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("plot", PLOTS[:2], ids=lambda plot: plot.file)
def test_plot_gives_png_and_small_svg(plot, tmp_path):
    records, predictions = random_case(0, images=200)
    metrics = evaluate_predictions(records, predictions, CLASSES, threshold=0.3, resamples=5)
    content, curves = metrics.to_json(), thin_curves(metrics)
    write_png(tmp_path / plot.file, plot.draw(content, curves))
    assert cv2.imread(str(tmp_path / plot.file)).shape == (750, 1050, 3)
    svg = to_svg(plot.draw(content, curves), plot.title)
    assert len(svg) < 60_000
    for words in ("drone: ", "IoU ≥ 0.5", "fixed score 0.500", "tuned score 0.300"):
        assert any(words in text for text in texts(svg))


@pytest.mark.parametrize("count", [1, 3, 13])
def test_confusion_plot_shows_counts_of_few_classes(count, tmp_path):
    plot = PLOTS[2]
    names = [f"<class {index}>" for index in range(count)]
    counts = [[100 * row + column for column in range(count + 1)] for row in range(count + 1)]
    matrix = {"threshold": 0.3, "criterion": "iou50", "counts": counts}
    matrix |= {"annotated": [*names, "(background)"], "detected": [*names, "(not detected)"]}
    write_png(tmp_path / plot.file, plot.draw({"confusion": matrix}, {}))
    assert cv2.imread(str(tmp_path / plot.file)).shape == (750, 1050, 3)
    shown = texts(to_svg(plot.draw({"confusion": matrix}, {}), plot.title))
    assert {*names, "(background)", "(not detected)", "score 0.300, IoU ≥ 0.5"} <= {*shown}
    assert ({str(value) for line in counts for value in line} <= {*shown}) == (count < 13)


def test_plot_without_detections_is_empty_but_drawn(tmp_path):
    records, _ = random_case(0, images=2)
    empty = [([], [], [])] * 2
    metrics = evaluate_predictions(records, empty, CLASSES, resamples=5)
    for plot in PLOTS:
        write_png(tmp_path / plot.file, plot.draw(metrics.to_json(), thin_curves(metrics)))
        assert cv2.imread(str(tmp_path / plot.file)).std() > 5


def test_svg_is_accessible_escaped_and_themed():
    svg = to_svg(
        line_figure([Line("<a>", [0, 1], [0, 1]), Line("$b$ & c", [0, 1], [1, 0], 1)], "x", "y"), 'title "<1>"'
    )
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'title "<1>"' and "width" not in root.attrib
    assert "&lt;a&gt;" in svg and "<a>" not in svg and "$b$ & c" in texts(svg)
    assert "currentColor" in svg and "var(--c1,#d55e00)" in svg and "#000000" not in svg
    assert "font-family" not in svg and "<style" not in svg and "http" not in svg and "#ffffff" not in svg


def test_lines_have_gaps_and_single_points_are_dots():
    gap = to_svg(line_figure([Line("", [0, 1, 2, 3, 4], [0, 1, math.nan, 1, math.inf])], "x", "y"), "gap")
    assert any(re.fullmatch(r"M \S+ \S+ L \S+ \S+ M \S+ \S+", path) for path in paths(gap))
    line = to_svg(line_figure([Line("", [0, 1], [0, 1])], "x", "y"), "line")
    dot = to_svg(line_figure([Line("", [1], [1])], "x", "y"), "dot")
    assert "C" not in "".join(paths(line)) and any("C" in path for path in paths(dot))  # the curves of a circle


def test_line_figure_ticks_are_plain_numbers():
    counted = texts(to_svg(line_figure([Line("", [0, 1, 2], [0, 1, 2])], "x", "y", xlim=(0, 2), count=True), "t"))
    assert counted[:3] == ["0", "1", "2"]
    logarithmic = texts(to_svg(line_figure([Line("", [0, 1], [8.0, 1200.0])], "x", "y", log="y"), "t"))
    assert {"10", "100", "1,000"} <= set(logarithmic)


def test_every_dot_shows_its_tip():
    dots = Line("a", [1.0, 30.0], [20.0, 90.0], dots=True, hollow=True, tips=["<case>: 20", "b"])
    svg = to_svg(line_figure([dots, Line("ceiling", [1, 30], [10, 90], -1)], "x", "y", log="xy"), "roofline")
    assert [title.text for title in ElementTree.fromstring(svg).iter("title")] == ["<case>: 20", "b"]
    assert "var(--card,#ffffff)" in svg
