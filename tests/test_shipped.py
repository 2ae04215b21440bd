"""The weights in the package: their metadata, and that their F1 has not changed."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

import danet
from danet.boxes import iop
from danet.data.coco_dataset import load_coco
from danet.data.image_domain import ImageDomain
from danet.detect import main
from danet.evaluation.metrics import evaluate_predictions
from danet.inference.predict import predict
from danet.models import build_model
from danet.models.summary import count_flops, count_parameters
from danet.utils.shipped_weights import SHIPPED_FOLDER, shipped_names

FRAMES = "7f75347f3271290eb46aa1061c59b3e40ea4eab2acd26d9eaf7f4f44e6010b3f"
"""SHA-256 of the evaluated frames, one after the other."""


@dataclass(frozen=True)
class Shipped:
    """What is known about a weights file of the package."""

    tensors: str
    """SHA-256 of all bytes of the file after its header."""
    bytes: float
    """Maximum size of the file."""
    pixel_scale: tuple[float, float]
    """Magnifications at which it detects as well as at 1."""
    f1: float
    """F1 of drones in the frames at IoU 0.5 and score 0.5 when the weights were made."""
    f1_iou30: float
    """Minimum F1 on the validation videos, at IoU 0.3 and the tuned score."""


FILES = {
    "danet_s_wide": Shipped(
        tensors="b712026ff8dc14cd60565b067d43f390c32c21b3eadb4cf5fcd2c14dc9b8cbf1",
        bytes=8e6,
        pixel_scale=(0.7, 1.1),
        f1=0.929,
        f1_iou30=0.95,
    ),
    "danet_nano": Shipped(
        tensors="7e82704e830129df7f5f01ce28e9b13d5e605bb933d5f2247da4e0ed8029a41b",
        bytes=1e6,
        pixel_scale=(0.7, 1.1),
        f1=0.945,
        f1_iou30=0.93,
    ),
    "danet_s": Shipped(
        tensors="25d61fc7dc0dc3ab1b47d917eea1da83a29a0d540261c2604bcb28637ed934eb",
        bytes=8e6,
        pixel_scale=(0.8, 1.05),
        f1=0.919,
        f1_iou30=0.92,
    ),
}


@pytest.fixture(params=FILES)
def name(request):
    return request.param


def path_of(name):
    return SHIPPED_FOLDER / f"{name}.safetensors"


def test_every_file_of_the_package_is_tested():
    assert shipped_names() == sorted(FILES)


def test_shipped_weights_are_small_and_have_metadata(name):
    assert path_of(name).stat().st_size < FILES[name].bytes
    detector = danet.load(name)
    assert detector.classes == ["drone", "bird", "airplane", "helicopter"]
    about = detector.metadata
    assert {"command", "data", "split", "seed", "figures"} <= set(about)
    assert about["figures"]["iou30"]["f1"]["value"] > FILES[name].f1_iou30


def test_shipped_weights_state_what_they_were_trained_for(name):
    detector = danet.load(name)
    assert detector.domain == ImageDomain((256, 320), (256, 320), FILES[name].pixel_scale)
    assert detector.polarity == "auto" and detector.reported_classes == ["drone"]
    data = path_of(name).read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert hashlib.sha256(tensors).hexdigest() == FILES[name].tensors


def double(image):
    return cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    ("scale", "change"),
    [
        (1.5, lambda image: cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR)),
        (2.0, double),
        (0.5, lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)),
        (1.0, lambda image: 255 - image),
        (2.0, lambda image: 255 - double(image)),
    ],
    ids=["1.5x", "2x", "halved", "inverted", "2x and inverted"],
)
def test_shipped_weights_find_the_drones_of_other_cameras(real_data, name, scale, change):
    records = load_coco(real_data / "svanstrom-ir-frames" / "val.json").records
    shown = [record for record in records if record.names == ["drone"]][::16]
    detector = danet.load(name)
    hits = []
    for record in shown:
        found = detector(change(cv2.imread(str(record.path), cv2.IMREAD_GRAYSCALE))).numpy()
        hits.append(len(found) > 0 and bool((iop(found.boxes / scale, record.boxes) > 0.5).any()))
    assert len(shown) == 8 and sum(hits) >= 7


def test_detect_uses_shipped_weights_by_default(tmp_path):
    picture = tmp_path / "sky.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).normal(90, 3, (96, 128)).clip(0, 255).astype(np.uint8))
    assert main([str(picture), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "boxes.json").read_text())["classes"] == danet.load().classes


def test_shipped_weights_f1_is_unchanged(real_data, name):
    records = load_coco(real_data / "svanstrom-ir-frames" / "val.json").records[::2]
    digest = hashlib.sha256(b"".join(record.path.read_bytes() for record in records))
    assert digest.hexdigest() == FRAMES, "the frames are not those on which F1 was measured"
    detector = danet.load(name, score_threshold=0.05)
    metrics = evaluate_predictions(records, predict(detector, records, quiet=True)[0], detector.classes, resamples=10)
    found = metrics.criteria["iou50"].fixed
    assert abs(found.f1.value - FILES[name].f1) < 0.01, found


def test_model_card_states_the_file_and_its_figures(name):
    """docs/models.md agrees with the file and its metadata."""
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    table, *cards = page.split("\n## ")
    card = next(card for card in cards if card.startswith(f"`{name}`"))
    data = path_of(name).read_bytes()
    assert hashlib.sha256(data).hexdigest() in card
    assert f"{len(data):,} bytes" in card
    detector = danet.load(name)
    model = build_model(detector.model.config)
    assert f"| {count_parameters(model) / 1e6:.2f} M | {count_flops(model) / 1e9:.1f} |" in table
    figures = detector.metadata["figures"]
    assert f"the tuned threshold {figures['score']:.3f}" in " ".join(card.lower().split())
    tuned = [f"{figures[criterion]['f1']['value']:.3f}" for criterion in ("iou30", "iou50")]
    assert f"| {' / '.join(tuned)} | {figures['false_alarms']['(all)']['value']:.3f} | in the package |" in table
    for title, criterion in {"IoU 0.3": "iou30", "IoU 0.5": "iou50", "center < 3 px": "center3"}.items():
        parts = [figures[criterion][part] for part in ("precision", "recall", "f1")]
        cells = [f"{part['value']:.3f} ({part['low']:.3f}-{part['high']:.3f})" for part in parts]
        assert f"| {title} | {' | '.join(cells)} |" in card
    assert f"The default threshold of `danet.load()` is {detector.score_threshold:g};" in " ".join(card.split())
    alarms = figures["false_alarms"]["(all)"]
    assert f"{alarms['value']:.3f} ({alarms['low']:.3f}-{alarms['high']:.3f}) false alarms" in card
