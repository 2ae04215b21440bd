"""Wrong options for the boxes of an ONNX file end in an error that names them."""

import numpy as np
import pytest
import torch
from onnx_files import detect, model

from danet.inference.onnx_adapter import OnnxAdapter
from danet.inference.onnx_adapter_options import OnnxAdapterOptions
from danet.inference.onnx_box_check import MIN_BOXES, BoxCheck
from danet.utils.errors import UserError
from danet.utils.image_io import write_image

SIDE = 256


def corners(count=40, seed=0, min_side=4.0, max_side=24.0):
    """Corners of random boxes in an input of 256 x 256, float32 ``[count, 4]``."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(min_side, max_side, (count, 2))
    begin = rng.uniform(0, 1, (count, 2)) * (SIDE - sides)
    return np.concatenate([begin, begin + sides], axis=1).astype(np.float32)


def encode(boxes, kind, *, relative):
    begin, end = boxes[:, :2], boxes[:, 2:]
    sides = end - begin
    parts = {"xyxy": (begin, end), "xywh": (begin, sides), "cxcywh": (begin + sides / 2, sides)}[kind]
    return np.concatenate(parts, axis=1) / np.float32(SIDE if relative else 1)


def decode(tmp_path, boxes, kind, options, *, relative):
    """The detections in an image of 256 x 256 of a file that gives ``boxes`` as ``kind``."""
    write_image(tmp_path / "frame.png", np.zeros((SIDE, SIDE), np.uint8))
    scores = np.full((1, len(boxes), 1), 0.5, np.float32)
    path = model(tmp_path / "a.onnx", [encode(boxes, kind, relative=relative)[None], scores], size=(SIDE, SIDE))
    adapter = OnnxAdapter(path, OnnxAdapterOptions(layout="boxes_scores", **options), class_names=["drone"])
    return detect(adapter, tmp_path / "frame.png")[0]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("kind", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("sides", [(4.0, 24.0), (1.5, 3.0), (200.0, 250.0)])
def test_right_options_are_accepted(tmp_path, kind, relative, sides):
    boxes = corners(min_side=sides[0], max_side=sides[1])
    found = decode(tmp_path, boxes, kind, {"boxes": kind, "relative": relative}, relative=relative)
    assert len(found) > 0
    distances = np.abs(found.boxes.numpy()[:, None] - boxes[None]).max(axis=2)
    assert distances.min(axis=1).max() < 0.01


@pytest.mark.parametrize(
    ("stored", "relative", "options", "message"),
    [
        ("cxcywh", False, {"boxes": "xyxy"}, "have no area with --onnx.boxes xyxy; the file probably needs --onnx"),
        ("xywh", False, {"boxes": "xyxy"}, "have no area with --onnx.boxes xyxy; the file probably needs --onnx"),
        ("xyxy", False, {"boxes": "cxcywh"}, "look like two corners and not like --onnx.boxes cxcywh"),
        ("xyxy", False, {"boxes": "xywh"}, "look like two corners and not like --onnx.boxes xywh"),
        ("xyxy", True, {"boxes": "cxcywh", "relative": True}, "look like two corners and not like --onnx.boxes cxcywh"),
        ("xyxy", False, {"relative": True}, "outside of the input with --onnx.relative true; the file probably needs"),
        ("cxcywh", False, {"boxes": "cxcywh", "relative": True}, "outside of the input with --onnx.relative true"),
        ("xyxy", True, {}, "all boxes lie between 0 and 1 pixels; --onnx.relative true"),
    ],
)
def test_wrong_options_are_named(tmp_path, stored, relative, options, message):
    with pytest.raises(UserError) as raised:
        decode(tmp_path, corners(), stored, options, relative=relative)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_relative_boxes_that_exceed_the_input_are_recognized(tmp_path):
    """One box at the border exceeds 1, so that the values alone do not show that they are relative."""
    boxes = corners()
    boxes[0] = [SIDE - 10, 10, SIDE + 4, 20]
    with pytest.raises(UserError, match=r"40 of 40 boxes are smaller than a pixel with --onnx\.relative false"):
        decode(tmp_path, boxes, "xyxy", {}, relative=True)


def test_a_few_implausible_boxes_are_accepted():
    check = BoxCheck("a.onnx", "xyxy", relative=False)
    bad, good = torch.tensor([[50.0, 50, 40, 60]]), torch.tensor([[40.0, 40, 50, 60]])
    for _ in range(MIN_BOXES - 1):
        check.add(bad, bad, (64, 64))
    check.add(good, good, (64, 64))
    with pytest.raises(UserError, match=r"a\.onnx: 10 of 11 boxes have no area"):
        for _ in range(MIN_BOXES):
            check.add(bad, bad, (64, 64))
