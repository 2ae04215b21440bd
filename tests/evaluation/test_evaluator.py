import json
from dataclasses import replace
from pathlib import Path

import pytest
from prediction_files import predicted, write_dataset, write_results, write_yolo

from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.coco_dataset import load_coco, write_coco
from danet.data.image_domain import ImageDomain
from danet.evaluate import main
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.evaluation.evaluator import Evaluator
from danet.evaluation.metrics import evaluate_predictions
from danet.inference.coco_results import read_coco_results
from danet.inference.detector import Detector
from danet.models import build_model
from danet.report.__main__ import main as report

CLASSES = ["drone", "bird"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Paths of evaluated images, of tuning images, and their results."""
    folder = tmp_path_factory.mktemp("data")
    paths = {name: write_dataset(folder / name, seed) for seed, name in enumerate(("val", "tune"))}
    return paths | {
        f"{name} results": write_results(folder / f"{name}_results.json", predicted(path, 5, 1.5))
        for name, path in paths.items()
    }


def read(path):
    return json.loads(Path(path).read_text())


def run(data, out, *arguments, **changes):
    paths = data | changes
    words = ["--predictions", paths["val results"], paths["val"], "--tune", paths["tune"]]
    words += ["--tune_predictions", paths["tune results"], "--resamples", "50", "--out", str(out)]
    return main([*words, *arguments])


def test_evaluate_predictions_of_another_program(data, tmp_path, capsys):
    assert run(data, tmp_path / "coco") == 0
    printed = capsys.readouterr().out
    assert "44 detections in 24 of 24 images" in " ".join(printed.split())
    assert "speed: not measured, because the predictions were read from a file" in printed
    metrics = read(tmp_path / "coco" / "metrics.json")
    dataset = load_coco(data["val"])
    found = read_coco_results(data["val results"], dataset, dataset.records, CLASSES)
    threshold = metrics["thresholds"]["tuned"]
    expected = evaluate_predictions(dataset.records, found, CLASSES, threshold=threshold, resamples=50).to_json()
    for key in ("criteria", "scales", "false_alarms", "videos"):
        assert metrics[key] == json.loads(json.dumps(expected[key])), key
    assert 0.5 < metrics["criteria"]["iou30"]["tuned"]["f1"]["value"] < 1 and metrics["classes"] == CLASSES
    # what was written can be evaluated again
    again = {"val results": str(tmp_path / "coco" / "predictions.json")}
    assert run(data, tmp_path / "again", "--quiet", **again) == 0
    assert read(tmp_path / "again" / "metrics.json")["criteria"] == metrics["criteria"]


def test_report_of_predictions_names_them(data, tmp_path):
    assert run(data, tmp_path, "--quiet") == 0
    assert report([str(tmp_path), "--quiet"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"{data['val results']} on 24 images" in page
    assert f"danet evaluate {data['val']}" in page and f"--predictions {data['val results']}" in page


def test_evaluate_yolo_files_like_coco_results(data, tmp_path):
    assert run(data, tmp_path / "coco", "--quiet") == 0
    files = {
        f"{name} results": write_yolo(tmp_path / name, data[name], read(data[f"{name} results"]))
        for name in ("val", "tune")
    }
    assert run(data, tmp_path / "yolo", "--quiet", "--class_names", "drone", "bird", **files) == 0
    coco, yolo = (read(tmp_path / name / "metrics.json") for name in ("coco", "yolo"))
    assert yolo["criteria"]["iou50"]["ap"] == pytest.approx(coco["criteria"]["iou50"]["ap"], abs=1e-6)
    assert [yolo["criteria"]["iou50"]["tuned"][name] for name in ("tp", "fp", "fn")] == [
        coco["criteria"]["iou50"]["tuned"][name] for name in ("tp", "fp", "fn")
    ]


def test_evaluate_predictions_with_stride_and_class_map(data, tmp_path):
    assert run(data, tmp_path, "--quiet", "--stride", "2", "--class_map", '{"bird": "drone"}') == 0
    metrics = read(tmp_path / "metrics.json")
    assert (metrics["images"], metrics["objects"], metrics["classes"]) == (12, 10, ["drone"])


def test_invalid_predictions_are_one_line(data, tmp_path, capsys):
    results = read(data["val results"])
    nan = write_results(tmp_path / "nan.json", [{**results[0], "score": float("nan")}])
    empty = write_results(tmp_path / "empty.json", [])
    cases = [
        (["--predictions", nan, data["val"]], "result 0: score must be a number from 0 to 1, got nan"),
        (["--predictions", "missing.json", data["val"]], "missing.json: no such file or folder"),
        (["--predictions", data["val results"]], "--data: a value is required"),
        (["--predictions", data["val results"], data["val"], "--weights", "local_contrast"], "give one of them"),
        (["--predictions", data["val results"], data["val"], "--tune", data["tune"]], "--tune_predictions"),
        (["local_contrast", data["val"], "--tune_predictions", empty], "needs --predictions and --tune"),
        (["--predictions", data["val results"], data["val"], "--target", "plane"], "not a class of the model"),
        (["--predictions", str(tmp_path), data["val"]], "give --class_names in the order of their numbers"),
        ([data["val"]], "--data: a value is required"),
    ]
    for words, message in cases:
        assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not (tmp_path / "out").exists()
    assert run(data, tmp_path / "out", "--quiet", **{"tune results": empty}) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "there are no detections with a score above 0.02" in lines[0] and "no threshold can be chosen" in lines[1]


def test_evaluate_uses_all_images_in_one_polarity(data, tmp_path, monkeypatch):
    # Weights for white-hot images of which a detector of a camera would choose the polarity by its first frames.
    model = build_model(ModelConfig(name="danet_nano", classes=CLASSES))
    save_weights(tmp_path / "w.safetensors", model, ImageDomain((64, 96), (64, 96)).to_metadata())
    inverted = []

    def run_network(detector, images, geometry, polarity):
        inverted.append(polarity == "black")
        return detector.model(images)

    monkeypatch.setattr(Detector, "_run", run_network)
    for polarity, expected in (("white", False), ("black", True)):
        options = EvaluateOptions(str(tmp_path / "w.safetensors"), data["val"], polarity=polarity, quiet=True)
        inverted.clear()
        Evaluator(options).predict()
        assert inverted == [expected] * len(inverted) and inverted
    assert EvaluateOptions().polarity == "white"


def test_evaluate_warns_of_images_without_earlier_frames(data, tmp_path, capsys):
    records = load_coco(data["val"]).records
    for index in range(5):
        records[index] = replace(records[index], past=((0.5, records[0].path),))
    some = tmp_path / "some.json"
    write_coco(some, records, CLASSES)
    weights = tmp_path / "lags.safetensors"
    save_weights(weights, build_model(ModelConfig(name="danet_nano", classes=CLASSES, lags=[0.5])))
    options = EvaluateOptions(str(weights), str(some), quiet=True)
    assert Evaluator(options).warnings == [
        f"{some}: of 24 images, 19 lack the earlier frame for lag 0.5 s; their input channels are zero; import the "
        "videos with --lags"
    ]
    assert main([str(weights), data["val"], "--out", str(tmp_path / "out"), "--quiet", "--resamples", "10"]) == 0
    assert "of 24 images, 24 lack the earlier frame for lag 0.5 s" in capsys.readouterr().err
