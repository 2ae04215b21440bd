"""`danet report`: content of the pages, valid HTML, and the width of a phone in a real browser."""

import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detections import found, record
from scenes import write_scenes

from danet.data.loader import DataSource
from danet.data.transforms import Augmentation
from danet.evaluate import main as evaluate
from danet.evaluation.ablate_options import AblateOptions
from danet.evaluation.curves import MAX_POINTS, read_curves, thin_curves, write_curves
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.evaluation.metrics import evaluate_predictions
from danet.report.__main__ import main
from danet.report.page import Chart, Page, Paragraph, Section, Table
from danet.report.reproduce import command_line
from danet.train import main as train
from danet.training.options import AdcrOptions, DistillOptions, TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OPERATORS, DETECTOR = RESULTS / "amd-epyc-avx512/operators.json", RESULTS / "amd-epyc-avx512/detector.json"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class ParsedPage(HTMLParser):
    """The elements of a page; raises AssertionError if they are not properly nested."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name in ("td", "th"):
            self.cells.append("")
        if name not in ("meta", "img"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def check(path: Path) -> ParsedPage:
    """Checks that hold for every report."""
    page = ParsedPage(path)
    assert page.source.startswith("<!DOCTYPE html>") and len(page.source) < 5e6
    assert not page.all("script") and not page.all("link")
    assert "http:" not in page.source and "https:" not in page.source
    assert "url(" not in page.source.replace("url(#", "")  # only parts of the page itself
    assert [image["src"][:23] for image in page.all("img")] == ["data:image/jpeg;base64,"] * len(page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(picture.get("aria-label") or picture.get("aria-hidden") for picture in page.all("svg"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    anchors = [section["id"] for section in page.all("section")]
    assert [link["href"] for link in page.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert len(set(anchors)) == len(anchors) > 0
    assert len(page.all("table")) == len(page.all("caption"))
    return page


def only_error(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("danet report: error: ")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    # A name that would be markup without escaping.
    return str(write_scenes(tmp_path_factory.mktemp("data") / "<b>&amp;'scenes'", 6))


@pytest.fixture(scope="module")
def training(scenes, tmp_path_factory):
    """A training of four steps with an evaluation in its folder."""
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("runs") / "run <i>1</i>"
    small = ["--model.name", "danet_nano", "--model.classes", "drone", "bird", "--augmentation.crop", "64x64"]
    words = [*small, "--data", scenes, "--val", scenes, "--epochs", "2", "--batch", "3", "--threads", "1", "--quiet"]
    assert train([*words, "--out", str(out)]) == 0
    tune = str(write_scenes(out.parent / "tune", 4, seed=1))
    words = [
        "local_contrast",
        scenes,
        "--tune",
        tune,
        "--target",
        "drone",
        "--out",
        str(out / "val"),
    ]  # finds something
    assert evaluate([*words, "--resamples", "20", "--threads", "1", "--quiet"]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def reports(training, tmp_path_factory):
    """One page of each kind: path by kind."""
    folder = tmp_path_factory.mktemp("reports")
    given = {"training": training, "evaluation": training / "val", "operators": OPERATORS, "detector": DETECTOR}
    paths = {kind: folder / f"{kind}.html" for kind in given}
    for kind, run in given.items():
        assert main([str(run), "--out", str(paths[kind]), "--frames", "3", "--quiet"]) == 0
    return paths


def test_training_page_content(training, reports):
    page = check(reports["training"])
    for words in (
        "Loss and its terms",
        "Learning rate",
        "Validation by epoch",
        "2 (best)",
        "val: Curves",
        "by size",
        "local_contrast on",
        "first training samples, augmented",
        "Confusion matrix",
    ):
        assert words in page.text
    assert "Finished, after 4 steps" in page.text and "run <i>1</i>" in page.text
    assert len([image for image in page.all("img") if "shows" in image["alt"]]) == 3
    assert "<b>" not in page.source and "<i>1" not in page.source  # file names are escaped
    assert "danet evaluate local_contrast" in page.text
    command = page.text[page.text.index("danet train") :].partition("All options")[0]
    words = shlex.split(command.replace("\\\n", " "))[2:]
    saved = cli.parse(TrainOptions, ["--config", str(training / "config.yaml")])
    assert cli.parse(TrainOptions, words) == saved and saved.epochs == 2


def test_pictures_are_enlarged_by_a_click(reports):
    """Without a script: an open <details> element shows its picture in full size."""
    for kind in ("training", "evaluation"):
        page = check(reports[kind])
        zooms = [
            attributes for name, attributes in page.elements if name == "details" and attributes.get("class") == "zoom"
        ]
        assert len(zooms) == len(page.all("img")) > 3
        assert ".zoom[open] img { width: calc(1.5 * var(--width)); max-width: none; }" in page.source
        assert all(image["style"] == f"--width: {image['width']}px" for image in page.all("img"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.csv", "step,epoch,lr,loss,cls,grad_norm\ninf,1,0.1,2,1,3\n"),
        ("metrics.csv", "step,epoch,lr,loss,cls,grad_norm\n1,1,0.1\n"),
        ("metrics.csv", "1,1,0.1,2,1,3\n2,1,0.1,2,1,3\n"),
        ("metrics.csv", f"step,epoch,lr,loss,grad_norm\n1,1,0.1,2,{'9' * 200_000}\n"),
        ("validation.csv", "4,2,0.1,0.2,0.3,0.4,0.5,0.6,0.7\n"),
        ("validation.csv", "step,epoch,ap50\n4,2,0.1\n"),
        ("config.yaml", "val: " + "[" * 3000),
        ("val/metrics.json", "[]"),
        ("val/metrics.json", '{"criterion": []}'),
        ("val/metrics.json", "[" * 100_000),
        ("val/curves.csv", f"criterion,score\niou50,{'9' * 200_000}\n"),
    ],
)
def test_report_of_damaged_files_is_one_line(training, tmp_path, capsys, name, text):
    shutil.copytree(training, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    assert main([str(tmp_path / "run"), "--frames", "0", "--quiet"]) == 2
    error = only_error(capsys)
    assert str(tmp_path / "run") in error and len(error) < 700
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("value", ["1e-320", "1e308"])
def test_report_of_extreme_numbers(training, tmp_path, value):
    shutil.copytree(training, tmp_path / "run")
    for name in ("metrics.csv", "validation.csv"):
        head, *rows = (training / name).read_text().splitlines()
        rows = [",".join([*row.split(",")[:2], *[value] * (head.count(",") - 1)]) for row in rows]
        (tmp_path / "run" / name).write_text("\n".join([head, *rows, ""]))
    assert main([str(tmp_path / "run"), "--frames", "0", "--quiet"]) == 0
    check(tmp_path / "run" / "report.html")


def test_report_json_option(training, tmp_path, capsys):
    page, told = tmp_path / "page.html", tmp_path / "page.json"
    assert main([str(training), "--out", str(page), "--frames", "0", "--json", str(told)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    written = json.loads(told.read_text())
    assert written["page"] == str(page) and written["title"] and written["bytes"] == page.stat().st_size


def test_evaluation_page_content(training, reports):
    page = check(reports["evaluation"])
    figures = json.loads((training / "val" / "metrics.json").read_text())
    for words in (
        "Precision over recall",
        "F1 over the score",
        "objects in 6 images",
        "Drone by size",
        "IoU ≥ 0.3, tuned",
        "by cause",
    ):
        assert words in page.text
    assert f"{figures['criteria']['iou50']['fixed']['f1']['value']:.3f}" in page.text
    assert len([image for image in page.all("img") if "shows" in image["alt"]]) == 3
    assert any("worst misses" in image["alt"] for image in page.all("img"))
    command = page.text[page.text.index("danet evaluate") :].partition("All options")[0]
    words = shlex.split(command.replace("\\\n", " "))[2:]
    parsed = cli.parse(EvaluateOptions, words, positionals=["weights", "data"])
    assert parsed == cli.parse(EvaluateOptions, ["--config", str(training / "val" / "config.yaml")])


def test_operator_benchmark_page_content(reports):
    page = check(reports["operators"])
    for words in ("arithmetic intensity", "sdc, backward", "grid_sample", "19.0 ×", "AMD EPYC", "AVX-512", "86.9 GB/s"):
        assert words in page.text
    content = json.loads(OPERATORS.read_text())
    assert (
        page.text.count(" FLOP per byte") == len(content["cases"]) + 1
    )  # a text under the mouse per dot, and the axis
    assert "python -m benchmarks.ops --json operators.json" in page.text


def test_detector_benchmark_page_content(reports):
    page = check(reports["detector"])
    for words in ("torch.compile", "2.19 ×", "backbone.stem", "34.3 ms", "--sizes 256x320 512x640", "--calls 60"):
        assert words in page.text


def test_ablation_page_content(tmp_path, training):
    options = AblateOptions("val.json", ["--data", "a b.json"], rows=["baseline", "safem"], seeds=[0], out="abl")
    (tmp_path / "config.yaml").write_text(cli.dump(options))
    spread = {"mean": 0.5, "deviation": None}
    rate = {"rate": None, "reached": 0, "runs": 1}
    row = {
        **{"seeds": [0], "parameters": 2e5, "steps": 4, "seconds": 60.0, "false_alarms": {"bird": rate}},
        "false_alarms_at_common_recall": {"bird": rate},
        "figures": dict.fromkeys(("precision", "recall", "f1", "ap50"), spread) | {"frames_per_second": None},
    }
    change = {"value": -0.02, "low": -0.1, "high": 0.05}
    comparison = {"f1": change, "recall": 0.9, "false_alarms": {"value": None, "low": None, "high": None}}
    summary = {
        **{"target": "drone", "criterion": "iou50", "images": 6, "objects": 9, "resampled": "images", "groups": 6},
        **{"distractors": {"bird": 1}, "recall": 0.9, "common_recall": 0.9},
        "rows": [{**row, "name": "baseline"}, {**row, "name": "safem"}],
        "runs": [{"row": name, "f1": 0.5, "ap50": 0.5} for name in ("baseline", "safem")],
        "differences": [{"row": "safem", "against": "baseline", "seeds": [0], "comparison": comparison}],
    }
    (tmp_path / "ablation.json").write_text(json.dumps(summary))
    shutil.copytree(training / "val", tmp_path / "safem" / "0" / "evaluate")
    assert main([str(tmp_path), "--quiet"]) == 0
    page = check(tmp_path / "report.html")
    for words in ("-0.020 (-0.100 to +0.050)", "not reached", "bird, 1 image", "0.20 M", "mean and standard deviation"):
        assert words in page.text
    compared = page.cells.index("-0.020 (-0.100 to +0.050)")
    assert page.cells[compared - 2 : compared] == ["safem", "baseline"]
    assert "-- --data 'a b.json'" in page.text
    assert "Precision over recall" in page.text


def test_training_page_without_steps_or_data(training, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    saved = cli.parse(TrainOptions, ["--config", str(training / "config.yaml")])
    saved.val = "gone.json"
    (run / "config.yaml").write_text(cli.dump(saved))
    (run / "metrics.csv").write_text("")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = check(run / "report.html")
    assert "No step is recorded yet" in page.text and "not finished" in page.text

    (run / "metrics.csv").write_text("step,epoch,lr,loss,cls,grad_norm\n1,1,0.1,nan,1.5,inf\n2,1,0.1,2.5,1.5,0\n")
    shutil.copy(training / "weights.safetensors", run)
    assert main([str(run), "--quiet"]) == 0
    assert "No frames are shown: gone.json: no such file." in check(run / "report.html").text


def test_evaluation_page_of_older_run_without_curves(training, tmp_path):
    shutil.copytree(training / "val", tmp_path / "val")
    (tmp_path / "val" / "curves.csv").unlink()
    figures = json.loads((tmp_path / "val" / "metrics.json").read_text())
    rates = {
        name: None if value is None else {"value": 0.5, "low": None} for name, value in figures["thresholds"].items()
    }
    figures["false_alarms"] = [{"distractor": "<bird>", "images": 1, "rates": rates}]
    point = figures["criteria"]["iou50"]["tuned"]
    figures["recordings"] = [{"name": "<first>", "images": 6, "objects": 7, "tuned": point, "fixed": point}]
    figures["other_classes"] = figures["scales"][:1]
    (tmp_path / "val" / "metrics.json").write_text(json.dumps(figures))
    assert main([str(tmp_path / "val"), "--frames", "0", "--quiet"]) == 0
    page = check(tmp_path / "val" / "report.html")
    assert [image["alt"] for image in page.all("img")][:2] == ["Precision over recall", "F1 over the score threshold"]
    for words in ("False drone alarms per image", "<bird>, 1 image", "by recording", "<first>", "Other classes"):
        assert words in page.text


def test_report_errors_are_one_line(training, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    changed = {"machine": {}, "ceilings": {}, "cases": [{"operator": "sdc"}]}
    changed_file = tmp_path / "changed.json"
    changed_file.write_text(json.dumps(changed))
    shutil.copytree(training / "val", tmp_path / "val")
    (tmp_path / "val" / "metrics.json").write_text("{}")
    out = tmp_path / "other.json" / "x.html"
    cases = [
        ([tmp_path / "nothing"], f"{tmp_path / 'nothing'}: no such file or folder"),
        ([tmp_path], f"{tmp_path}: not a run; has none of the files metrics.csv (danet train)"),
        ([tmp_path / "other.json"], f"{tmp_path / 'other.json'}: not the results of benchmarks.ops or benchmarks."),
        ([tmp_path / "broken.json"], f"{tmp_path / 'broken.json'}: not valid JSON"),
        ([changed_file], f"{changed_file}: not in the format that danet writes (KeyError"),
        ([tmp_path / "val"], f"{tmp_path / 'val'}: not in the format that danet writes"),
        ([OPERATORS, "--frames", "-1"], "--frames must be 0 or more, got -1"),
        ([OPERATORS, "--out", out], f"{out}: cannot be written"),
        ([changed_file, "--out", changed_file], f"{changed_file}: is an input of this command"),
        ([tmp_path / "val", "--json", tmp_path / "val/metrics.json"], f"{tmp_path / 'val/metrics.json'}: is an input"),
    ]
    for words, message in cases:
        assert main([str(word) for word in words]) == 2
        assert only_error(capsys).startswith(message)
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    ("options", "defaults"),
    [
        (TrainOptions(), TrainOptions),
        (
            TrainOptions(
                data=["a b.json", DataSource("c", 2.0, {"Target": "drone's"})],
                val=DataSource("-v.json"),
                weights="-strange",
                augmentation=Augmentation(crop=None, flip=0.0),
                adcr=AdcrOptions(weight=0.1, literal=True),
                distill=DistillOptions(small="s.safetensors"),
                scale_edges=(10.0, 20.5),
                lr=1e-5,
                tensorboard=True,
            ),
            TrainOptions,
        ),
        (
            EvaluateOptions("w", "d", class_map={"a": "ignore"}, scale_edges=[], input_size=[64, 96], deploy=False),
            EvaluateOptions,
        ),
    ],
)
def test_command_line_gives_the_same_options(options, defaults):
    words = shlex.split(command_line("danet it", options).replace("\\\n", " "))[2:]
    assert cli.parse(defaults, words) == options


def test_curves_are_thinned_and_read_back(tmp_path):
    rng = np.random.default_rng(0)
    truths = [[(10, 10, 20, 20)], [(30, 30, 42, 40)]]
    many = [rng.uniform(0, 90, (900, 2)) for _ in truths]
    boxes = [np.concatenate([true, np.hstack([each, each + 9])]) for true, each in zip(truths, many, strict=True)]
    predictions = [found(each, [0.9, *rng.uniform(0.02, 0.1, 900)]) for each in boxes]
    metrics = evaluate_predictions([record(each, ["drone"]) for each in truths], predictions, ["drone"], resamples=5)
    write_curves(tmp_path / "curves.csv", thin_curves(metrics))
    curves = read_curves(tmp_path / "curves.csv")
    assert set(curves) == set(metrics.criteria)
    for name, curve in curves.items():
        assert len(curve["score"]) <= MAX_POINTS < len(metrics.criteria[name].curve.thresholds)
        assert (curve["score"][0], curve["recall"][0], curve["precision"][0]) == (0.9, 1.0, 1.0)
        assert curve["precision"][-1] == pytest.approx(metrics.criteria[name].curve.precision[-1], rel=1e-4)
    (tmp_path / "curves.csv").write_text("criterion,score\niou50,x\n")
    with pytest.raises(UserError, match="not the curves of an evaluation"):
        read_curves(tmp_path / "curves.csv")


def test_page_escapes_text():
    table = Table("<a>", ("<b>", "<c>"), [("<d>", "<e>")], "<f>")
    blocks = [table, Paragraph('<g> & "'), Chart("<h>", "<svg></svg>", "<i>")]
    page = Page("k", "<t>", "<l>", [("<n>", "<v>", "<x>")], [Section("<s>", blocks), Section("empty")])
    text = page.html("<z>")
    assert not re.search(r"<[a-np-z]>", text.replace("<p>", "")) and text.count("&lt;") == 19
    assert "&lt;g&gt; &amp; &#34;" in text and "<svg></svg>" in text and "empty" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("kind", ["training", "evaluation", "operators", "detector"])
def test_page_fits_the_screen_in_a_browser(reports, kind, tmp_path):
    """The widths of a phone and a desktop, in frames side by side: a window is never narrower than 500 pixels."""
    widths = (390, 1280)
    # Pictures that are loaded only when they are scrolled to would count as missing; an end tag would end the script.
    source = json.dumps(reports[kind].read_text().replace("loading=", "data-loading=")).replace("</", "<\\/")
    frames = "".join(
        f'<iframe style="width: {width}px; height: 3000px; border: 0; flex: none"></iframe>' for width in widths
    )
    script = (
        "for (const frame of document.querySelectorAll('iframe')) { frame.onload = () => { "
        "const page = frame.contentDocument; "
        "const missing = [...page.images].filter(image => !image.complete || !image.naturalWidth).length; "
        "frame.title = [page.documentElement.scrollWidth, frame.contentWindow.innerWidth, missing].join(' ') }; "
        f"frame.srcdoc = {source} }}"
    )
    host, picture = tmp_path / "host.html", tmp_path / "page.png"
    host.write_text(f'<!DOCTYPE html><body style="margin: 0; display: flex">{frames}<script>{script}</script>')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={sum(widths)},3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"--screenshot={picture}", host.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    sizes = re.findall(r'title="(\d+) (\d+) (\d+)"', done.stdout)
    assert len(sizes) == len(widths), done.stderr
    for width, (content, window, missing) in zip(widths, sizes, strict=True):
        assert int(content) <= int(window) == width and missing == "0"
    shown = cv2.imread(str(picture))
    assert all(part.std() > 5 for part in np.split(shown, [widths[0]], axis=1))  # not empty
