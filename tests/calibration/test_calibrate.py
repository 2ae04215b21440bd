import json
import shutil

import numpy as np
import pytest
import torch
from helpers import spread_scores

import danet
from danet.calibration.__main__ import main
from danet.checkpoint import load_tensors, save_weights
from danet.config import ModelConfig
from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.video_writer import VideoWriter
from danet.detect import main as detect
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.evaluation.evaluator import Evaluator
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.models import build_model
from danet.track import main as track
from danet.utils.errors import UserError
from danet.utils.image_io import write_image

FRAMES = ("--hits", "3", "--window", "5")
"""M of N with which the short clips of these tests have alarms."""
PER_HOUR = "12500"
"""The 2.4 seconds of footage in which alarms can begin show this rate with up to three false alarms."""


def write_clip(path, *, fps, seed, frames=20):
    rng = np.random.default_rng(seed)
    scene = rng.normal(90, 5, (96, 128))
    with VideoWriter(path, fps=fps) as writer:
        for index in range(frames):
            image = scene.copy()
            image[40:46, 40 + index : 48 + index] += 100
            writer.write(image.astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Weights whose scores spread over 0 to 1, and clips of 20 and 10 frames per second."""
    folder = tmp_path_factory.mktemp("calibrate")
    torch.manual_seed(0)
    model = spread_scores(build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"])))
    save_weights(folder / "nano.safetensors", model, {"camera": "north"})
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "a.avi", fps=20, seed=0)
    write_clip(folder / "clips" / "b.avi", fps=10, seed=1)
    return folder


def calibrate(project, out, *words):
    source = ["--negatives", str(project / "clips"), "--out", str(out), "--dtype", "float32"]
    return main([str(project / "nano.safetensors"), *source, *words])


def calibration(path):
    return CalibratedThresholds.from_metadata(danet.load(path).metadata)


@pytest.fixture(scope="module")
def calibrated(project):
    path = project / "nano-calibrated.safetensors"
    words = ["--false_alarms_per_hour", PER_HOUR, *FRAMES, "--json", str(project / "report.json"), "--quiet"]
    assert calibrate(project, path, *words) == 0
    return path


def count_alarms(project, weights, out, *words):
    words = ["--weights", str(weights), "--save_images", "false", "--dtype", "float32", "--out", str(out), *words]
    assert track([str(project / "clips"), *words, "--json", str(out / "figures.json")]) == 0
    return json.loads((out / "figures.json").read_text())["alarms"]


def test_tracking_the_same_footage_gives_the_false_alarms_that_were_counted(project, calibrated, tmp_path, capsys):
    found, report = calibration(calibrated), json.loads((project / "report.json").read_text())
    assert report["hours"] == pytest.approx((20 / 20 + 20 / 10) / 3600), "the clips have different frame rates"
    assert (
        found.false_alarms == 3 and found.supports_request and report["thresholds"]["alarm_score"] == found.alarm_score
    )
    assert count_alarms(project, calibrated, tmp_path / "a") == 3
    assert "(weights); danet calibrate counted 3 false alarms in" in capsys.readouterr().out
    lower = str(found.alarm_score - 0.02)
    assert count_alarms(project, calibrated, tmp_path / "b", "--alarm.score", lower) > 3
    printed = capsys.readouterr().out
    assert f"score from {lower} on (option)" in printed and "does not hold with your --alarm.score" in printed


def test_calibration_is_reproducible_and_changes_only_the_metadata(project, calibrated, tmp_path):
    again = tmp_path / "again.safetensors"
    assert calibrate(project, again, "--false_alarms_per_hour", PER_HOUR, *FRAMES, "--quiet") == 0
    assert calibration(again) == calibration(calibrated)
    before, _ = load_tensors(project / "nano.safetensors", "danet-weights-1")
    after, header = load_tensors(again, "danet-weights-1")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert header["metadata"]["camera"] == "north"


def test_short_footage_is_stored_with_a_warning(project, tmp_path, capsys):
    out = tmp_path / "short.safetensors"
    assert calibrate(project, out, "--batch", "4") == 0
    printed = capsys.readouterr()
    (warning,) = [line for line in printed.err.splitlines() if "warning" in line]
    assert (
        "the footage is too short to show at most 1 false alarms per hour: alarms can begin in 1.95 s of it, which "
        "shows at most 5531 with" in warning
    )
    assert "at least 3 h without false alarms are needed" in warning
    found = calibration(out)
    assert found.false_alarms == 0 and not found.supports_request and found.alarm_score >= 0.5
    assert found.detection_score >= 0.5
    assert "(chosen)" in printed.out and "highest scores: " in printed.out and str(out) in printed.out


def test_weights_are_calibrated_in_place_only_with_overwrite(project, tmp_path, capsys):
    weights = shutil.copy(project / "nano.safetensors", tmp_path / "w.safetensors")
    words = [str(weights), "--negatives", str(project / "clips" / "a.avi"), "--quiet", "--out", str(weights)]
    before = weights.read_bytes()
    assert main(words) == 2 and weights.read_bytes() == before
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and calibration(weights) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors"]


def test_detect_and_evaluate_use_the_score_unless_an_option_is_given(project, calibrated, tmp_path, capsys):
    score = calibration(calibrated).detection_score
    words = [str(project / "clips" / "a.avi"), "--weights", str(calibrated), "--save_images", "false"]
    words += ["--dtype", "float32"]
    assert detect([*words, "--out", str(tmp_path / "a")]) == 0
    assert f"score threshold: {score:g} (of the weights, which danet calibrate chose for" in capsys.readouterr().out
    assert json.loads((tmp_path / "a/boxes.json").read_text())["score_threshold"] == score
    assert detect([*words, "--out", str(tmp_path / "b"), "--score", "0.3"]) == 0
    assert "score threshold: 0.3 (--score)" in capsys.readouterr().out

    data = write_dataset(tmp_path / "data", videos=["a"], frames=2)
    evaluator = Evaluator(EvaluateOptions(str(calibrated), str(data), dtype="float32"))
    assert evaluator.threshold == score and "of the weights, which danet calibrate chose for" in evaluator.notes[-1]
    assert Evaluator(EvaluateOptions(str(calibrated), str(data), threshold=0.4, dtype="float32")).threshold == 0.4
    assert Evaluator(EvaluateOptions(str(project / "nano.safetensors"), str(data), dtype="float32")).threshold is None


def write_dataset(folder, videos, frames, names=("drone",)):
    folder.mkdir()
    records = []
    for video in videos:
        for index in range(frames):
            path = folder / f"{video}_{index}.png"
            image = np.random.default_rng(0).normal(90, 5, (96, 128))
            image[40:46, 40 + index : 48 + index] += 100
            write_image(path, image.astype(np.uint8))
            box = np.array([[40.0 + index, 40, 48 + index, 46]])
            records.append(ImageRecord(path, 128, 96, box, list(names), np.array([False]), video=video, frame=index))
    write_coco(folder / "data.json", records, list(names))
    return folder / "data.json"


def test_recall_is_measured_on_images_with_targets(project, tmp_path, capsys):
    data = write_dataset(tmp_path / "data", videos=["a", "b"], frames=8)
    words = ["--positives", str(data), "--fps", "20", "--json", str(tmp_path / "r.json")]
    assert calibrate(project, tmp_path / "w.safetensors", *words) == 0
    report = json.loads((tmp_path / "r.json").read_text())["positives"]
    assert 0 <= report["recall"]["drone"]["value"] <= 1 and report["alarms"]["videos"] == 2
    printed = capsys.readouterr().out
    assert "positives, single frames: recall " in printed and "of 2 videos with a target" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--negatives: none given"),
        (["--negatives", "missing.mp4"], "missing.mp4: no such file or folder"),
        (["--negatives", "{text}"], "text.mp4: not a readable image or video"),
        (["--negatives", "{clips}", "{clips}/a.avi"], "a.avi is given twice"),
        (["--negatives", "{clips}", "{clips}/../clips/a.avi"], "a.avi is given twice"),
        (["--negatives", "{clips}", "--hits", "19", "--window", "19"], "must be longer, got 20 frames on average"),
        (["--negatives", "{clips}", "--false_alarms_per_hour", "0"], "--false_alarms_per_hour must be positive, got 0"),
        (["--negatives", "{clips}", "--hits", "3"], "--hits and --window must be given together"),
        (["--negatives", "{clips}", "--hits", "6", "--window", "5"], "--hits must be at most --window (5), got 6"),
        (["--negatives", "{clips}", "--hits", "5", "--window", "10001"], "--window must be at most 10000, got 10001"),
        (["--negatives", "{clips}", "--classes", "plane"], "'plane' is no class of the model (drone, bird)"),
        (["--negatives", "{clips}", "--out", "{folder}/w.onnx"], "a weights file ends in .safetensors"),
        (["--negatives", "{clips}", "--json", "{folder}/nano-calibrated.safetensors"], "would be written twice"),
        (["--negatives", "{clips}", "--positives", "{birds}"], "must show drone, got bird"),
    ],
)  # fmt: skip
def test_invalid_input_is_one_line_and_writes_nothing(project, tmp_path, capfd, words, message):
    (tmp_path / "text.mp4").write_text("text")
    places = {"text": tmp_path / "text.mp4", "clips": project / "clips", "folder": tmp_path, "birds": "none"}
    if "{birds}" in words:
        places["birds"] = write_dataset(tmp_path / "birds", ["a"], 1, names=("bird",))
        words = [*words, "--classes", "drone"]
    weights = shutil.copy(project / "nano.safetensors", tmp_path / "nano.safetensors")
    assert main([str(weights), *(word.format(**places) for word in words), "--quiet"]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["nano.safetensors"]


def test_onnx_files_are_not_calibrated(project, tmp_path, capsys):
    (tmp_path / "w.onnx").touch()
    assert main([str(tmp_path / "w.onnx"), "--negatives", str(project / "clips")]) == 2
    assert "calibrate the weights and export them again" in capsys.readouterr().err


def test_damaged_footage_is_used_and_reported(project, tmp_path, capfd):
    clip = write_clip(tmp_path / "long.avi", fps=20, seed=0, frames=40)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    out = tmp_path / "w.safetensors"
    words = [str(project / "nano.safetensors"), "--negatives", str(clip), "--out", str(out), "--quiet"]
    assert main(words) == 1
    assert "long.avi" in capfd.readouterr().err and 0 < calibration(out).hours < 2 / 3600


@pytest.mark.parametrize(
    "change",
    [
        {"hits": 13},
        {"alarm_score": 1.5},
        {"detection_score": float("nan")},
        {"classes": []},
        {"hours": "3"},
        {"new": 1},
    ],
)
def test_thresholds_in_foreign_metadata_are_checked(change):
    stored = CalibratedThresholds(0.7, 0.6, 8, 12, ("drone",), 1.0, 3.5, 0, 0.86).to_metadata()["calibration"]
    with pytest.raises(UserError, match="metadata: calibration is not as danet calibrate writes it"):
        CalibratedThresholds.from_metadata({"calibration": {**stored, **change}})
    with pytest.raises(UserError, match="metadata: calibration"):
        CalibratedThresholds.from_metadata({"calibration": ["drone"]})
