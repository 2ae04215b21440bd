"""The weights in the package: their metadata, and that their F1 has not changed."""

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
"""SHA-256 of the evaluated frames, one after the other."""
F1 = 0.919
"""F1 of drones in these frames at IoU 0.5 and score 0.5 when the weights were made."""


def test_shipped_weights_are_small_and_have_metadata():
    assert SHIPPED.stat().st_size < 8e6
    detector = danet.load()
    assert detector.classes == ["drone", "bird", "airplane", "helicopter"]
    about = detector.metadata
    assert {"command", "data", "split", "seed", "figures"} <= set(about)
    assert about["figures"]["iou30"]["f1"]["value"] > 0.92


def test_detect_uses_shipped_weights_by_default(tmp_path):
    picture = tmp_path / "sky.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).normal(90, 3, (96, 128)).clip(0, 255).astype(np.uint8))
    assert main([str(picture), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "boxes.json").read_text())["classes"] == danet.load().classes


def test_shipped_weights_f1_is_unchanged(real_data):
    records = load_coco(real_data / "svanstrom-ir-frames" / "val.json").records[::2]
    digest = hashlib.sha256(b"".join(record.path.read_bytes() for record in records))
    assert digest.hexdigest() == FRAMES, "the frames are not those on which F1 was measured"
    detector = danet.load(score_threshold=0.05)
    metrics = evaluate_predictions(records, predict(detector, records, quiet=True)[0], detector.classes, resamples=10)
    found = metrics.criteria["iou50"].fixed
    assert abs(found.f1.value - F1) < 0.01, found
