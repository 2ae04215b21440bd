import numpy as np
import pytest
from onnx_files import detect, model

from danet.inference.onnx_adapter import OnnxAdapter, count_onnx_parameters, is_foreign
from danet.inference.onnx_adapter_options import OnnxAdapterOptions
from danet.utils.errors import UserError
from danet.utils.image_io import write_image

CLASSES = ["drone", "bird"]
ULTRALYTICS = {"author": "Ultralytics", "task": "detect", "names": "{0: 'drone', 1: 'bird'}", "imgsz": "[64, 64]"}
# Three predictions in the input of 64 x 64: two of one drone, and a bird.
CENTRES = np.array([[30, 30, 10, 8], [31, 30, 10, 8], [30, 30, 10, 8]], np.float32)
SCORES = np.array([[0.9, 0.1], [0.7, 0.0], [0.2, 0.6]], np.float32)
CORNERS = np.concatenate([CENTRES[:, :2] - CENTRES[:, 2:] / 2, CENTRES[:, :2] + CENTRES[:, 2:] / 2], axis=1)


@pytest.fixture
def frame(tmp_path):
    """A frame of 128 x 64 pixels, which is scaled by a half into an input of 64 x 64."""
    image = np.zeros((64, 128), np.uint8)
    image[20:40, 40:60] = 255
    write_image(tmp_path / "frame.png", image)
    return tmp_path / "frame.png"


def check(found):
    """The better drone and the bird, in pixels of the frame: scaled twice, without the 16 rows of padding."""
    assert found.names == ["drone", "bird"] and found.scores.tolist() == pytest.approx([0.9, 0.6], abs=1e-6)
    np.testing.assert_allclose(found.boxes, [[50, 20, 70, 36]] * 2, atol=1e-4)


def test_ultralytics_files_are_recognized(tmp_path, frame):
    dense = np.concatenate([CENTRES, SCORES], axis=1).T[None]
    adapter = OnnxAdapter(model(tmp_path / "a.onnx", [dense], ULTRALYTICS), OnnxAdapterOptions())
    assert adapter.layout == "yolo" and adapter.classes == CLASSES and is_foreign(tmp_path / "a.onnx")
    for found in detect(adapter, frame, frame):  # the batch size of the file is 1
        check(found)
    assert count_onnx_parameters(tmp_path / "a.onnx") == dense.size

    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, :2] = [[*CORNERS[0], 0.9, 0], [*CORNERS[2], 0.6, 1]]
    adapter = OnnxAdapter(model(tmp_path / "b.onnx", [rows], ULTRALYTICS), OnnxAdapterOptions())
    assert adapter.layout == "end_to_end"
    check(detect(adapter, frame)[0])


def test_layouts_give_the_same_detections(tmp_path, frame):
    confidence = np.array([[1.0], [1.0], [0.6]], np.float32)
    logits = np.log(SCORES.clip(1e-6, None) / (1 - SCORES.clip(1e-6, None)))
    best, labels = SCORES.max(axis=1)[[0, 2]], SCORES.argmax(axis=1)[[0, 2]]
    corner_and_size = np.concatenate([CORNERS[:, :2], CENTRES[:, 2:]], axis=1)
    with_objectness = np.concatenate([CENTRES, confidence, SCORES / confidence], axis=1)[None]
    cases = [
        ([np.concatenate([CENTRES, SCORES], axis=1)[None]], {"layout": "yolo"}),
        ([with_objectness], {"layout": "yolov5"}),
        ([CORNERS[None], SCORES[None]], {"layout": "boxes_scores"}),
        ([CENTRES[None] / 64, logits[None]], {"boxes": "cxcywh", "relative": True, "logits": True}),
        ([corner_and_size[None], SCORES.T[None]], {"boxes": "xywh"}),
        ([CORNERS[[0, 2]], labels + 1, best], {"layout": "boxes_scores_labels", "first_label": 1}),
        ([CORNERS[None, [0, 2]], best[None], labels[None]], {"layout": "boxes_scores_labels"}),
    ]
    for number, (outputs, options) in enumerate(cases):
        path = model(tmp_path / f"{number}.onnx", outputs)
        adapter = OnnxAdapter(path, OnnxAdapterOptions(**{"layout": "boxes_scores", **options}), class_names=CLASSES)
        check(detect(adapter, frame)[0])


def test_images_are_scaled_as_the_options_say(tmp_path, frame):
    output = [np.zeros((1, 1, 6), np.float32)]
    path = model(tmp_path / "a.onnx", output, size=("H", "W"), batch="N")
    shared = {"layout": "end_to_end", "padding": 51}

    def batch(size=(64, 64), file=path, **options):
        adapter = OnnxAdapter(file, OnnxAdapterOptions(**shared, **options), class_names=CLASSES, input_size=size)
        return adapter.preprocess([frame])[0].numpy()[0]

    image = batch()
    assert image.shape == (3, 64, 64) and image[:, :16].max() == pytest.approx(0.2) and image[0, 30, 25] == 1
    assert batch(resize="corner")[0, 15, 25] == 1 and batch(resize="corner")[0, 33:].max() == pytest.approx(0.2)
    assert batch(resize="stretch")[0, 30, 25] == 1 and batch(resize="stretch")[0, 0, 0] == 0
    scaled = batch(divisor=1, mean=[55, 10, 5], std=[2])
    assert scaled[:, 30, 25].tolist() == [100, 122.5, 125]
    colour = np.zeros((64, 128, 3), np.uint8)
    colour[..., 2] = 255  # red
    write_image(frame, colour)
    assert batch()[:, 30, 25].tolist() == [1, 0, 0] and batch(colour="bgr")[:, 30, 25].tolist() == [0, 0, 1]
    assert batch(size="native").shape == (3, 64, 128)
    grey = model(tmp_path / "grey.onnx", output, channels=1)
    assert batch(size=None, file=grey).shape == (1, 64, 64)


@pytest.mark.parametrize("shape", [(1, 1300), (1300, 1)])
def test_image_of_one_row_or_column_keeps_a_pixel(tmp_path, shape):
    write_image(tmp_path / "thin.png", np.full(shape, 255, np.uint8))
    rows = np.zeros((1, 1, 6), np.float32)
    rows[0, 0] = [0, 0, 64, 64, 0.9, 0]
    adapter = OnnxAdapter(model(tmp_path / "a.onnx", [rows], ULTRALYTICS), OnnxAdapterOptions())
    (found,) = detect(adapter, tmp_path / "thin.png")
    assert found.boxes.tolist() == [[0, 0, shape[1], shape[0]]]
    assert adapter.preprocess([tmp_path / "thin.png"])[0].numpy().max() == 1


def test_unusable_files_are_one_line(tmp_path, frame):
    dense = np.concatenate([CENTRES, SCORES], axis=1).T[None]
    bad = dense.copy()
    bad[0, 4] = np.nan
    rows = np.array([[[*CORNERS[0], 0.9, 5]]], np.float32)
    cases = [
        ([dense], None, {}, {}, "does not state its classes; give --class_names"),
        ([dense], None, {}, {"class_names": CLASSES}, "was written neither by danet export nor by Ultralytics"),
        ([dense], ULTRALYTICS, {}, {"class_names": ["drone"]}, "layout yolo with 1 classes needs 5 values per box"),
        ([dense], ULTRALYTICS, {}, {"input_size": (64, 96)}, "has an input of 64 x 64, got"),
        ([dense], ULTRALYTICS, {"layout": "boxes_scores"}, {}, "layout boxes_scores needs 2 outputs, got 1"),
        ([bad], ULTRALYTICS, {}, {}, "a score is NaN or infinite"),
        ([dense * 10], ULTRALYTICS, {}, {}, "scores must lie between 0 and 1, got 6 to 9; --onnx.logits true"),
        ([dense / [[[64]] * 4 + [[1]] * 2]], ULTRALYTICS, {}, {}, "all boxes lie between 0 and 1 pixels"),
        (
            [rows],
            None,
            {"layout": "end_to_end"},
            {"class_names": CLASSES},
            "labels must number its 2 classes, got 5 to 5",
        ),
    ]
    for outputs, metadata, options, given, message in cases:
        path = model(tmp_path / "a.onnx", [np.asarray(each, np.float32) for each in outputs], metadata)
        with pytest.raises(UserError, match=message) as raised:
            detect(OnnxAdapter(path, OnnxAdapterOptions(**options), **given), frame)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"--onnx\.std must be one or three positive numbers"):
        OnnxAdapterOptions(std=[0.0])
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(UserError, match="cannot run it"):
        is_foreign(tmp_path / "text.onnx")
