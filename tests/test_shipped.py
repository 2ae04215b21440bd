"""The weights in the package: what they say of themselves, and that code and weights have not drifted apart."""

import hashlib
import json

import cv2
import numpy as np

import danet
from danet.checkpoint import SHIPPED
from danet.data.coco_dataset import load_coco
from danet.detect import main
from danet.evaluation.metrics import evaluate_predictions
from danet.inference.predict import predict

FRAMES = "7f75347f3271290eb46aa1061c59b3e40ea4eab2acd26d9eaf7f4f44e6010b3f"
"""SHA-256 of the frames that are looked at, one after the other."""
F1 = 0.919
"""Of drones in these frames at IoU 0.5 and score 0.5, when the weights were made."""


def test_the_file_is_small_and_says_where_it_comes_from():
    assert SHIPPED.stat().st_size < 8e6
    detector = danet.load()
    assert detector.classes == ["drone", "bird", "airplane", "helicopter"]
    about = detector.metadata
    assert {"command", "data", "split", "seed", "figures"} <= set(about)
    assert about["figures"]["iou30"]["f1"]["value"] > 0.92


def test_danet_detect_needs_no_weights(tmp_path):
    picture = tmp_path / "sky.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).normal(90, 3, (96, 128)).clip(0, 255).astype(np.uint8))
    assert main([str(picture), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "boxes.json").read_text())["classes"] == danet.load().classes


def test_its_f1_is_what_it_was(real_data):
    records = load_coco(real_data / "svanstrom-ir-frames" / "val.json").records[::2]
    digest = hashlib.sha256(b"".join(record.path.read_bytes() for record in records))
    assert digest.hexdigest() == FRAMES, "other frames than those that F1 was measured on"
    detector = danet.load(score_threshold=0.05)
    metrics = evaluate_predictions(records, predict(detector, records, quiet=True)[0], detector.classes, resamples=10)
    found = metrics.criteria["iou50"].fixed
    assert abs(found.f1.value - F1) < 0.01, found
