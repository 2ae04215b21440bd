"""danet.load and Detector: detections must not depend on batching, padding or letterboxing."""

import importlib

import cv2
import numpy as np
import pytest
import torch

import danet
from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.image_domain import ImageDomain
from danet.data.normalize import intensity_range, normalize
from danet.data.transforms import letterbox
from danet.data.video_writer import VideoWriter
from danet.inference.detector import Detector
from danet.models import DANet, build_model
from danet.utils.errors import UserError


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


def test_dtype_may_be_a_name(model):
    assert Detector(model, dtype="float32").dtype == torch.float32
    for wrong in ("float64", "half", 32):
        with pytest.raises(ValueError, match="dtype must be auto, float32, bfloat16, float16 or a"):
            Detector(model, dtype=wrong)


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


def test_input_size_is_one_or_two_sides(model):
    sizes = {64: (64, 64), (64, 96): (64, 96), np.int64(64): (64, 64), "native": "native", None: None}
    assert [Detector(model, input_size=given).input_size for given in sizes] == list(sizes.values())
    assert Detector(model, input_size=[64, 96]).input_size == (64, 96)
    for wrong in ("large", (64,) * 3, (64, 8), (64.0, 96.0), 0, 31, -64, ("64", "96"), {}, 64.5):
        with pytest.raises(ValueError, match="Detector: input_size must be"):
            Detector(model, input_size=wrong)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((64, 64), 21.5, np.float32), "floats from 0 to 1, or whole numbers from 0 to 65535, got 21.5 to 21.5"),
        (np.zeros((3, 64, 64), np.uint8), r"an image must be \[H, W\] or \[H, W, 3\], got \[3, 64, 64\]"),
        (np.zeros((0, 64), np.uint8), r"got \[0, 64\]"),
        (b"frame.png", "an image must be a path, a numpy array, a torch tensor or a Pillow image, got bytes"),
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


DOMAIN = ImageDomain((64, 96), (64, 96), (0.8, 1.25)).to_metadata()
"""Metadata of weights that were trained on white-hot images of 64 x 96 pixels."""


def with_metadata(model, metadata, **options) -> Detector:
    detector = Detector(model, metadata=metadata, **{"score_threshold": 0.0, "max_detections": 20} | options)
    detector.lines = []
    detector.notify = lambda level, line: detector.lines.append(line)
    return detector


def assert_scaled(found, expected, factor):
    assert torch.allclose(found.boxes, expected.boxes * factor, atol=1e-3 * factor)
    assert torch.allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_images_are_scaled_to_the_trained_size(model, detector, factor):
    small = frame(64, 96)
    # Enlarging by repetition and averaging again gives the same image.
    large = small.repeat(factor, axis=0).repeat(factor, axis=1)
    fitting = with_metadata(model, DOMAIN, polarity="white")
    assert_scaled(fitting(large), detector(small), factor)
    fitting(large), fitting(small)
    (line,) = fitting.lines
    assert line.startswith(f"frames of {96 * factor} x {64 * factor} pixels are scaled to 96 x 64,")
    assert "--input_size native" in line
    native = with_metadata(model, DOMAIN, polarity="white", input_size="native")
    assert_same(native(large), detector(large))
    assert native.lines == []
    sized = with_metadata(model, DOMAIN, polarity="white", input_size=(64, 96))
    assert_same(sized(small), detector(small))


def test_images_of_the_trained_scale_are_not_resampled(model, detector):
    fitting = with_metadata(model, DOMAIN, polarity="white")
    for size in ((64, 96), (60, 90), (70, 100), (96, 64)):
        assert_same(fitting(frame(*size)), detector(frame(*size)))
    assert fitting.lines == []


def test_polarity_black_inverts_the_image(model, detector):
    image = frame(64, 96)
    inverted = with_metadata(model, DOMAIN, polarity="black")(255 - image)
    assert len(inverted) > 0 and torch.allclose(inverted.scores, detector(image).scores, atol=0.02)
    assert torch.allclose(inverted.boxes[:5], detector(image).boxes[:5], atol=1.0)


@pytest.mark.parametrize("metadata", [{}, ImageDomain((64, 96), (64, 96), polarity="any").to_metadata()])
def test_polarity_auto_needs_weights_of_one_polarity(model, detector, metadata):
    automatic = with_metadata(model, metadata)
    assert automatic.polarity == "white"
    assert_same(automatic(frame(64, 96)), detector(frame(64, 96)))


def test_limits_are_checked(model, detector):
    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        Detector(model, max_detections=0)
    with pytest.raises(ValueError, match="score must lie between 0 and 1, got 5"):
        detector.with_thresholds(score=5)


def test_calls_with_tiles_tell_about_scaling_once(model):
    detector = with_metadata(model, DOMAIN)
    told = []
    detector.notify = lambda level, text: told.append(text)
    for _ in range(3):
        detector(frame(256, 384), tile=64)
        detector(frame(256, 384))
    assert len(told) == 1 and "are scaled to" in told[0]


def test_only_supported_classes_are_reported(model, detector):
    image = frame(64, 96)
    everything = detector(image)
    assert {"drone", "bird"} == set(everything.names)
    metadata = {"supported_classes": ["drone"]}
    default = with_metadata(model, metadata)
    assert default.classes == ["drone", "bird"] and default.reported_classes == ["drone"]
    assert_same(default(image), everything[everything.labels == 0])
    for classes, expected in (("all", everything), (["bird"], everything[everything.labels == 1])):
        assert_same(with_metadata(model, metadata, classes=classes)(image), expected)
    with pytest.raises(UserError, match=r"'plane' is no class of the model \(drone, bird\)"):
        with_metadata(model, metadata, classes=["plane"])


def test_detector_accepts_lists_batches_and_tensors(detector, tmp_path):
    images = [frame(64, 96, seed) for seed in range(3)] + [frame(48, 64)]
    cv2.imwrite(str(tmp_path / "a.png"), images[0])
    expected = [detector(image) for image in images]
    cases = (
        images,
        tuple(images),
        [tmp_path / "a.png", torch.from_numpy(images[1])[None], images[2] / 255, images[3]],
    )
    for case in cases:
        found = detector(case)
        assert isinstance(found, list) and len(found) == 4
        for mine, other in zip(found, expected, strict=True):
            assert_same(mine, other)
    for batch in (torch.from_numpy(np.stack(images[:3])[:, None]), np.stack(images[:3])[..., None].repeat(3, axis=3)):
        for mine, other in zip(detector(batch), expected, strict=False):
            assert_same(mine, other)
    assert detector([]) == []
    assert str(detector(tmp_path / "a.png").image) == str(tmp_path / "a.png")


def test_detector_accepts_folders_and_videos(detector, tmp_path):
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame(64, 96, index))
    found = detector(tmp_path)
    assert [len(each) for each in found] == [20] * 3
    assert_same(found[1], detector(frame(64, 96, 1)))
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for index in range(4):
            writer.write(frame(64, 96, index))
    found = detector(str(tmp_path / "clip.mp4"))
    assert len(found) == 4 and all(len(each) == 20 for each in found)
    pairs = list(detector.stream(tmp_path / "clip.mp4"))
    assert [each.index for each, _ in pairs] == [0, 1, 2, 3]
    assert_same(pairs[2][1], detector(pairs[2][0].image))
    for source in ("0", 0, "rtsp://camera/1"):
        with pytest.raises(ValueError, match=r"which does not end; use `for frame, found in detector.stream"):
            detector(source)
    with pytest.raises(UserError, match=r"none\.png: no such"):
        detector(tmp_path / "none.png")


def test_load_chooses_the_device_as_the_command_does(monkeypatch):
    assert danet.load().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises((RuntimeError, AssertionError, UserError)):  # chosen, and not there
        danet.load()


@pytest.fixture(scope="module")
def temporal() -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(name="danet_nano", classes=["drone"], lags=[0.1, 0.5], local_contrast=True)
    return Detector(build_model(config), score_threshold=0.0, max_detections=20)


def moving_frames(count: int) -> list[np.ndarray]:
    frames = [frame(64, 96) // 8 + 100 for _ in range(count)]
    for index, image in enumerate(frames):
        image[30:34, 10 + 2 * index : 14 + 2 * index] = 220
    return frames


def test_earlier_frames_change_the_network_input(temporal):
    frames = moving_frames(20)
    tensor = temporal.preprocess([frames[15]] * 3, [{}, {0.1: frames[12]}, {0.1: frames[12], 0.5: frames[0]}])[0]
    assert tensor.shape == (3, 5, 64, 96)
    assert torch.equal(tensor[0], temporal.preprocess([frames[15]])[0][0])
    assert torch.equal(tensor[:, :2], tensor[:1, :2].expand(3, -1, -1, -1))
    assert tensor[:, 2].amax((1, 2)).tolist()[0] == 0 and tensor[1, 2].max() > 1 and not tensor[1, 3].any()
    assert torch.equal(tensor[1, 2], tensor[2, 2]) and tensor[2, 3, 32, 41] > 1
    assert torch.equal(tensor[1, 4], tensor[1, 2]) and tensor[2, 4, 32, 41] > 1
    assert len(temporal(frames[15])) == 20


def test_earlier_frames_of_another_size_or_dtype_are_not_used(temporal):
    frames = moving_frames(2)
    others = [frames[0][:-1], frames[0].astype(np.uint16)]
    tensor = temporal.preprocess([frames[1]] * 2, [{0.1: other} for other in others])[0]
    assert not tensor[:, 2].any()


def test_stream_compares_frames_with_earlier_ones(temporal, tmp_path):
    frames = moving_frames(20)
    with VideoWriter(tmp_path / "a.mkv", 30.0) as video:
        for image in frames:
            video.write(image)
    streamed = list(temporal.stream(tmp_path / "a.mkv", batch=4))
    assert len(streamed) == 20
    decoded = [each.image for each, _ in streamed]
    past = [{lag: decoded[i - step] for lag, step in ((0.1, 3), (0.5, 15)) if i >= step} for i in range(20)]
    for index in (0, 3, 19):
        expected = temporal.postprocess(*temporal.forward(*temporal.preprocess([decoded[index]], [past[index]])))[0]
        assert_same(streamed[index][1], expected)
    # The same frame as a single image gives other scores: the earlier frames have an effect.
    assert not torch.equal(streamed[19][1].scores, temporal(decoded[19]).scores)


def notices_of(lags, detect) -> list[str]:
    """The lines about missing earlier frames that a detector with these lags gives during ``detect``."""
    fresh = Detector(build_model(ModelConfig(name="danet_nano", lags=lags)))
    lines: list[str] = []
    fresh.notify = lambda level, line: lines.append(line)
    detect(fresh)
    return [line for line in lines if "earlier" in line]


def test_missing_earlier_frames_are_told_once(tmp_path):
    frames = moving_frames(8)
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frames[index])

    def detect_images(fresh):
        fresh(frames[0])
        fresh([frames[0], frames[1]])
        list(fresh.stream(tmp_path))

    (line,) = notices_of([0.1, 0.5], detect_images)
    assert "the frames 0.1, 0.5 s earlier" in line and "these input channels are zero" in line
    assert len(notices_of([0.1], lambda fresh: list(fresh.stream(tmp_path)))) == 1
    assert notices_of([], detect_images) == []


def test_missing_earlier_frames_of_a_video_depend_on_its_frame_rate(tmp_path):
    for rate in (4.0, 30.0):
        with VideoWriter(tmp_path / f"{rate:g}.mkv", rate) as video:
            for image in moving_frames(8):
                video.write(image)
    (line,) = notices_of([0.1, 0.5], lambda fresh: list(fresh.stream(tmp_path / "4.mkv")))
    assert "the frames 0.1 s earlier" in line
    assert notices_of([0.1, 0.5], lambda fresh: list(fresh.stream(tmp_path / "30.mkv"))) == []
