"""danet.load and Detector: detections must not depend on batching, padding or letterboxing."""

import importlib

import cv2
import numpy as np
import pytest
import torch

import danet
from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.normalize import intensity_range, normalize
from danet.data.transforms import letterbox
from danet.inference.detector import Detector
from danet.models import DANet, build_model


@pytest.fixture(scope="module")
def model() -> DANet:
    torch.manual_seed(0)
    return build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"]))


@pytest.fixture(scope="module")
def detector(model) -> Detector:
    return Detector(model, score_threshold=0.0, max_detections=20)


def frame(height: int, width: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width)).astype(dtype)


def assert_same(a, b, atol=1e-3):
    assert len(a.boxes) == len(b.boxes) > 0
    assert torch.allclose(a.boxes, b.boxes, atol=atol) and torch.allclose(a.scores, b.scores, atol=1e-4)
    assert torch.equal(a.labels, b.labels)


def test_load_restores_the_saved_weights_and_metadata(detector, tmp_path):
    torch.manual_seed(1)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone"]))
    save_weights(tmp_path / "w.safetensors", model, {"note": "x"})
    loaded = danet.load(tmp_path / "w.safetensors", score_threshold=0.0, max_detections=20)
    assert loaded.classes == ["drone"] and loaded.metadata == {"note": "x"}
    image = frame(64, 96)
    assert_same(loaded(image), Detector(model, score_threshold=0.0, max_detections=20)(image))


def test_batch_agrees_with_single_calls(detector):
    images = [frame(64, 96, seed) for seed in range(3)]
    for together, image in zip(detector.batch(images), images, strict=True):
        assert_same(together, detector(image))


def test_boxes_are_clipped_to_images_of_different_sizes(detector):
    images = [frame(20, 30), frame(64, 96), frame(75, 51)]
    for found, image in zip(detector.batch(images), images, strict=True):
        height, width = image.shape
        assert found.boxes.shape == (len(found.scores), 4)
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_paths_arrays_and_bit_depths_agree(detector, tmp_path):
    image = frame(64, 96)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    expected = detector(image)
    assert_same(detector(str(tmp_path / "a.png")), expected)
    assert_same(detector(np.repeat(image[..., None], 3, axis=2)), expected)
    assert_same(detector(image.astype(np.uint16) * 64), expected, atol=1e-2)


def test_input_size_does_not_change_box_coordinates(detector, model):
    image = cv2.resize(frame(16, 24), (96, 64), interpolation=cv2.INTER_CUBIC)
    fitted = Detector(model, score_threshold=0.0, max_detections=20, input_size=(160, 192))
    found = fitted(image)
    # The network's own detections in the letterboxed image, normalized by the image before the letterbox.
    large, _, (scale, (x, y)) = letterbox(image, np.zeros((0, 4), np.float32), (160, 192))
    tensor = torch.from_numpy(normalize(large, 1, intensity_range(image)))[None]
    (raw,) = detector.model.decode(detector.model(tensor), score_threshold=0.0, max_detections=20)
    expected = (raw.boxes - torch.tensor([x, y, x, y])) / scale
    expected = torch.minimum(expected.clamp(min=0), torch.tensor([96.0, 64.0, 96.0, 64.0]))
    expected = expected[((expected[:, 2:] - expected[:, :2]) > 0).all(1)]
    assert scale == 2.0 and y > 0
    assert len(found.boxes) > 5 and torch.allclose(found.boxes, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64), np.float32), "an image must be uint8 or uint16, got float32"),
        (np.zeros((3, 64, 64), np.uint8), r"an image must be \[H, W\] or \[H, W, 3\], got \[3, 64, 64\]"),
        (np.zeros((0, 64), np.uint8), r"got \[0, 64\]"),
        (torch.zeros(64, 64), "an image must be a path or a numpy array, got Tensor"),
    ],
)
def test_invalid_images_are_errors(detector, image, message):
    with pytest.raises((TypeError, ValueError), match=message):
        detector(image)


def test_invalid_thresholds_are_errors(model):
    with pytest.raises(ValueError, match="score_threshold must lie between 0 and 1"):
        Detector(model, score_threshold=1.5)


def test_empty_batch(detector):
    assert detector.batch([]) == []


def test_public_names_are_loaded_on_first_use():
    assert danet.Detector is Detector and danet.ops is importlib.import_module("danet.ops")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = danet.nothing


def test_detector_does_not_change_the_model(detector):
    model = build_model(ModelConfig(name="danet_nano")).train()
    Detector(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
