import json
from pathlib import Path

import cv2
import pytest
from prediction_files import predicted, write_dataset, write_results

from danet.compare import main
from danet.evaluate import main as evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Paths of two datasets, and the folders of two evaluations: one of good detections, one of worse ones."""
    folder = tmp_path_factory.mktemp("data")
    paths = {name: write_dataset(folder / name, seed) for seed, name in enumerate(("val", "tune"))}
    for name, jitter in (("good", 0.5), ("worse", 3.0)):
        files = [
            write_results(folder / f"{name}_{key}.json", predicted(paths[key], 5, jitter)) for key in ("val", "tune")
        ]
        words = ["--predictions", files[0], paths["val"], "--tune", paths["tune"], "--tune_predictions", files[1]]
        paths[name] = str(folder / name)
        assert evaluate([*words, "--out", paths[name], "--quiet", "--resamples", "100"]) == 0
    return paths


def read(path):
    return json.loads(path.read_text())


def test_compare_folders_and_files(data, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    words = [data["good"], f"bad={data['worse']}", "local_contrast", "--target", "drone", "--threads", "1"]
    assert main([*words, "--resamples", "100", "--out", str(out), "--json", str(report)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "Differences" in captured.out and "local_contrast" in captured.out
    content = read(report)
    assert [row["name"] for row in content["detectors"]] == ["good", "bad", "local_contrast"]
    assert content == read(out / "comparison.json") and content["data"] == data["val"]

    # Every row has the metrics of its evaluation, and every difference is that of two rows.
    good, bad, _ = content["detectors"]
    metrics = read(tmp_path.parent / data["worse"] / "metrics.json")
    assert bad["f1_iou50"] == metrics["criteria"]["iou50"]["tuned"]["f1"]
    assert bad["ap_iou30"] == metrics["criteria"]["iou30"]["ap"]
    assert bad["threshold"] == metrics["thresholds"]["tuned"]
    for row, each in zip(content["detectors"][1:], content["differences"], strict=True):
        for name in ("f1_iou30", "f1_iou50", "ap_iou30", "ap_iou50"):
            assert each[name]["value"] == pytest.approx(row[name]["value"] - good[name]["value"], abs=1e-6)
            assert each[name]["low"] <= each[name]["value"] <= each[name]["high"]
    assert content["differences"][0]["f1_iou50"]["high"] < 0  # jitter of 3 pixels is worse for certain

    text = (out / "comparison.md").read_text()
    assert "| bad | good |" in text and "paired bootstrap over 6 videos" in text
    picture = cv2.imread(str(out / "pr_curves.png"))
    assert picture.shape[1] == 1050 and picture.std() > 5
    # the folder of the file's own evaluation can be compared again, with the same result
    again = [data["good"], f"bad={data['worse']}", str(out / "local_contrast"), "--resamples", "100", "--quiet"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    repeated = read(tmp_path / "again" / "comparison.json")
    assert repeated["differences"] == content["differences"]


@pytest.mark.parametrize(("recall", "needs_the_last_drone"), [("0.95", False), ("0.954", True)])
def test_compare_counts_false_alarms_at_exactly_the_requested_recall(tmp_path, recall, needs_the_last_drone):
    """The evaluations store the rates at recall 0.95, which 20 of the 21 drones reach."""
    data = write_dataset(tmp_path / "val", 0, count=37)
    for name, lowest in (("good", 0.5), ("worse", 0.06)):
        results = predicted(data, 5, 0.0)
        results[0]["score"] = lowest  # of a drone; at 0.06 it is below nearly all false alarms
        words = ["--predictions", write_results(tmp_path / f"{name}.json", results), data, "--resamples", "10"]
        assert evaluate([*words, "--out", str(tmp_path / name), "--quiet"]) == 0
    words = [str(tmp_path / "good"), str(tmp_path / "worse"), "--recall", recall, "--resamples", "10", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    content = read(tmp_path / "out/comparison.json")
    good, worse = (row["false_alarms"]["value"] for row in content["detectors"])
    assert content["differences"][0]["false_alarms"]["value"] == pytest.approx(worse - good)
    assert good < 0.8 and (worse > 0.8) == needs_the_last_drone
    assert f"false alarms per image, recall {recall} |" in (tmp_path / "out/comparison.md").read_text()


def test_compare_with_itself_has_no_difference(data, tmp_path):
    words = [f"a={data['good']}", f"b={data['good']}", "--resamples", "100", "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0
    (each,) = read(tmp_path / "comparison.json")["differences"]
    for name in ("f1_iou30", "ap_iou50", "false_alarms"):
        assert each[name] == {"value": 0, "low": 0, "high": 0}


def test_compare_reports_a_detector_that_finds_nothing(data, tmp_path, capsys):
    blank = write_results(tmp_path / "blank.json", [])
    out = tmp_path / "blank"
    assert evaluate(["--predictions", blank, data["val"], "--out", str(out), "--quiet", "--resamples", "100"]) == 0
    capsys.readouterr()
    words = [data["good"], str(out), "--out", str(tmp_path / "out"), "--quiet", "--resamples", "50"]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "blank: it has no tuned threshold; its metrics are those at score 0.5" in error and error.count("\n") == 1
    assert "| blank | 0.500 (fixed) | - | 0.000 (0.00–0.00) |" in (tmp_path / "out" / "comparison.md").read_text()
    assert read(tmp_path / "out" / "comparison.json")["differences"][0]["f1_iou50"]["high"] < 0


def without_a_box(content):
    del content["annotations"][0]


def with_a_moved_box(content):
    content["annotations"][0]["bbox"][0] += 1


def with_another_class(content):
    content["annotations"][0]["category_id"] = content["categories"][1]["id"]


def without_an_image(content):
    removed = content["images"].pop()
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != removed["id"]]


def with_another_video(content):
    content["images"][0]["video"] = "another"


@pytest.mark.parametrize("part", ["val", "tune"])
@pytest.mark.parametrize(
    "change", [without_a_box, with_a_moved_box, with_another_class, without_an_image, with_another_video]
)
def test_compare_refuses_evaluations_of_another_state_of_the_data(tmp_path, capsys, change, part):
    paths = {name: write_dataset(tmp_path / name, seed) for seed, name in enumerate(("val", "tune"))}
    folders = []
    for number in range(2):
        results = {
            key: write_results(tmp_path / f"{number}_{key}.json", predicted(path, number, 1.0)[:20])
            for key, path in paths.items()
        }
        words = ["--predictions", results["val"], paths["val"], "--tune", paths["tune"]]
        words += ["--tune_predictions", results["tune"], "--out", str(tmp_path / f"run{number}")]
        assert evaluate([*words, "--quiet", "--resamples", "10"]) == 0
        folders.append(str(tmp_path / f"run{number}"))
        if number == 0:
            content = read(Path(paths[part]))
            change(content)
            Path(paths[part]).write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*folders, "--out", str(tmp_path / "out"), "--quiet", "--resamples", "10"]) == 2
    error = capsys.readouterr().err
    assert f"run0/metrics.json: {paths[part]} has changed since this evaluation: it has 2" in error
    assert error.count("\n") == 1


def test_compare_accepts_evaluations_from_another_working_directory(data, tmp_path, monkeypatch, capsys):
    """The evaluations state relative paths, which do not exist where they are compared."""
    paths = {name: write_dataset(tmp_path / "project/data" / name, seed) for seed, name in enumerate(("val", "tune"))}
    monkeypatch.chdir(tmp_path / "project")
    folders = []
    for number in range(2):
        results = {key: write_results(tmp_path / f"{key}.json", predicted(paths[key], number, 0.5)) for key in paths}
        words = ["--predictions", results["val"], "data/val/annotations.json", "--out", str(tmp_path / f"run{number}")]
        words += ["--tune", "data/tune/annotations.json", "--tune_predictions", results["tune"]]
        assert evaluate([*words, "--quiet", "--resamples", "10"]) == 0
        folders.append(str(tmp_path / f"run{number}"))
    monkeypatch.chdir(tmp_path)
    words = [*folders, "--out", str(tmp_path / "out"), "--quiet", "--resamples", "10", "--tune", paths["tune"]]
    assert main([*words, "--data", paths["val"]]) == 0
    content = read(tmp_path / "out/comparison.json")
    assert (content["data"], content["tune"]) == (paths["val"], paths["tune"])
    # Other data is refused by its content.
    assert main([*words, "--data", data["tune"]]) == 2
    error = capsys.readouterr().err
    assert f"--data of this evaluation is data/val/annotations.json, but {data['tune']} is compared" in error


def test_compare_keeps_the_folder_of_another_command(data, tmp_path, capsys):
    """The folder of the second detector is that of a training run; the first one is not evaluated either."""
    config = tmp_path / "runs/first/config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("epochs: 12\n")
    (tmp_path / "first.safetensors").touch()
    words = ["local_contrast", str(tmp_path / "first.safetensors"), "--data", data["val"], "--target", "drone"]
    assert main([*words, "--out", str(tmp_path / "runs"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error == f"danet compare: error: {config}: belongs to another command; give another --out\n"
    assert config.read_text() == "epochs: 12\n" and [path.name for path in config.parents[1].iterdir()] == ["first"]


def test_compare_errors_are_one_line(data, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", 3)
    cases = [
        ([data["good"]], "--detectors: name two or more, got 1"),
        ([data["good"], data["good"]], "two have the same name"),
        (["a.safetensors", "b.safetensors"], "--data: a value is required"),
        (
            [data["good"], str(tmp_path)],
            "metrics.json: no such file; give a weights file or a folder of danet evaluate",
        ),
        ([data["good"], "missing.safetensors"], "missing.safetensors: no such file"),
        ([data["good"], data["worse"], "--data", other], "--data of this evaluation is"),
        ([data["good"], data["worse"], "--criterion", "iou30"], "--criterion of this evaluation is iou50, but iou30"),
        ([data["good"], data["worse"], "--target", "bird"], "it is about the class 'drone', not about 'bird'"),
        ([data["good"], data["worse"], "--recall", "2"], "--recall must lie between 0 and 1"),
    ]
    for words, message in cases:
        assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_compare_replaces_none_of_its_inputs(data, tmp_path, capsys):
    before = {path: path.read_bytes() for path in Path(data["good"]).parent.rglob("*.json")}
    out = Path(data["good"]).parent
    for words, message in (
        ([data["good"], data["worse"], "--json", f"{data['good']}/predictions.json"], "is an input of this command"),
        ([data["good"], data["worse"], "--json", data["val"], "--data", str(out / "val")], "is an input"),
        ([f"first={data['good']}", "good=local_contrast", "--out", str(out)], "metrics.json: is an input"),
    ):
        assert main(["--out", str(tmp_path / "out"), *words, "--quiet"]) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert before == {path: path.read_bytes() for path in out.rglob("*.json")}
