"""Exported files compute in other runtimes what the network computes in PyTorch, and describe how to use them."""

import importlib.util
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers import randomise_norms
from scenes import write_scenes

import danet
from danet.boxes import nms
from danet.checkpoint import load_weights, save_weights
from danet.config import ModelConfig
from danet.detect import main as detect
from danet.evaluate import main as evaluate
from danet.export import Predictions, export_onnx, verify
from danet.export.__main__ import main
from danet.export.deformable_sampling import deform_conv, sample_corners, sample_grid
from danet.export.network import BoxesAndScores
from danet.inference.calibrated_thresholds import CalibratedThresholds
from danet.models import DANet, build_model
from danet.ops import sdc

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LOW_SCORE = "0.2"
"""A score that some positions of the random network exceed, but most do not."""


def random_model(**options) -> DANet:
    """A small network with random weights in which every part has an effect."""
    torch.manual_seed(0)
    small = {"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "neck_width": 8, "classes": ["drone", "bird"]}
    model = build_model(ModelConfig(name="danet_nano", **{**small, **options})).eval()
    randomise_norms(model)
    for name, parameter in model.named_parameters():
        if "predictor" in name or "ffn.2" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for classify, regress in zip(model.head.classify, model.head.regress, strict=True):
        torch.nn.init.normal_(classify[-1].weight, std=0.2)
        torch.nn.init.normal_(regress[-1].weight, std=0.05)
        torch.nn.init.constant_(regress[-1].bias, 0.7)  # large enough to overlap
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, random_model(), {"step": 7})
    return path


@pytest.fixture(scope="module")
def exported(weights):
    """The weights as an ONNX file with NMS, written once by the command."""
    limits = ["--score", LOW_SCORE, "--iou", "0.4", "--max_detections", "40"]
    figures = weights.with_name("figures.json")
    assert main([str(weights), "--nms", *limits, "--quiet", "--json", str(figures)]) == 0
    written = json.loads(figures.read_text())
    assert written["format"] == "onnx" and 0 < written["boxes_pixels"] < 0.1 and written["scores"] < 1e-3
    return weights.with_suffix(".onnx")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "frames", 4, size=(75, 98))


@pytest.mark.parametrize("form", [sample_grid, sample_corners, deform_conv])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_sampling_functions_match_sdc(form, kernel_size):
    torch.manual_seed(0)
    N, C, G, H, W = 2, 6, 3, 5, 7
    taps = G * kernel_size**2
    # Large offsets, so that many samples lie at the border or outside.
    operands = torch.randn(N, C, H, W), 3 * torch.randn(N, 2 * taps, H, W), torch.randn(N, taps, H, W)
    expected = sdc(*operands, groups=G, kernel_size=kernel_size, padding=kernel_size // 2)
    torch.testing.assert_close(form(*operands, G, kernel_size), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"head": "paper", "acfa": False}, {"literal_acfa": True, "safem": False}])
@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (2, 1, 75, 51)])
def test_standard_operators_match_the_network(options, shape):
    model = random_model(**options)
    images = torch.randn(shape)
    with torch.no_grad():
        output = model(images)
        expected = model.head.boxes(output.deltas), model.head.scores(output.logits)
        found = BoxesAndScores(model, sample_grid)(images)
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_onnx_accepts_any_batch_and_image_size(tmp_path):
    network = Predictions(random_model(head="paper", acfa=False, literal_softmax=True)).eval()
    path = tmp_path / "network.onnx"
    names = [f"{kind}{level}" for kind in ("logits", "deltas") for level in range(4)]
    export_onnx(network, torch.randn(2, 1, 64, 96), path, names=names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    for shape in ((2, 1, 64, 96), (1, 1, 97, 65), (3, 1, 32, 32)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = network(images)
        for result, plain in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(result), plain, rtol=1e-3, atol=1e-4)


def test_onnx_file_operators_size_and_description(exported, weights):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert next(entry.version for entry in model.opset_import if entry.domain == "") == 22
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("DeformConv") == 10 and operators.count("NonMaxSuppression") == 1
    sizes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
             for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
    assert sizes["images"] == ["N", 1, "H", "W"] and sizes["boxes"][::2] == ["N", 4] and sizes["scores"][2] == 2
    # The file holds each weight once: the parameters of the fused network and a few constants.
    fused = load_weights(weights)[0].fused()
    parameters = sum(p.numel() for p in fused.parameters())
    parameters += sum(b.numel() for name, b in fused.named_buffers() if name.endswith((".weight", ".bias")))
    stored = sum(np.prod(tensor.dims, dtype=int) for tensor in model.graph.initializer)
    assert stored < parameters + 1500

    description = json.loads({entry.key: entry.value for entry in model.metadata_props}["danet"])
    assert description["classes"] == ["drone", "bird"] and description["training"] == {"step": 7}
    assert (
        description["preprocessing"]["percentiles"] == [1.0, 50.0, 99.0]
        and description["preprocessing"]["input_size"] is None
    )
    assert description["thresholds"] == {"score_threshold": 0.2, "iou_threshold": 0.4, "max_detections": 40}


def test_onnx_detections_match_the_weights(exported, weights, frames):
    paths = sorted(frames.parent.glob("*.png"))
    limits = {"score_threshold": float(LOW_SCORE), "iou_threshold": 0.4, "max_detections": 40}
    plain, other = danet.load(weights, **limits), danet.load(exported)
    assert other.classes == plain.classes and other.metadata == {"step": 7}
    tiny = cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE)[:20, :31]
    both = other.batch([*paths, tiny]), plain.batch([*paths, tiny])
    assert sum(len(found.scores) for found in both[0]) > 20
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.1)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)
        assert torch.equal(found.labels, expected.labels)
    fitted = [danet.load(path, **limits, input_size=(128, 160))(paths[0]) for path in (weights, exported)]
    assert (fitted[0].boxes - fitted[1].boxes).abs().max() < 0.1
    assert len(danet.load(exported, score_threshold=1.0)(paths[0]).scores) == 0


def test_onnx_outputs_match_on_real_frames(exported, weights, real_data):
    paths = sorted((real_data / "svanstrom-ir-frames" / "val").glob("*.jpg"))[::400][:2]
    assert paths
    plain, other = danet.load(weights, score_threshold=float(LOW_SCORE), iou_threshold=0.4), danet.load(exported)
    for path in paths:
        tensor, geometry = plain.preprocess([path])
        output = plain.forward(tensor, geometry)[0]
        with torch.inference_mode():
            head = plain.model.network.head
            expected = head.boxes(output.deltas), head.scores(output.logits)
        boxes, scores = other.forward(tensor, geometry)[0]
        assert (boxes - expected[0]).abs().max() < 0.1 and (scores - expected[1]).abs().max() < 1e-3


def test_detect_and_evaluate_accept_an_onnx_file(exported, weights, frames, tmp_path, capsys):
    tables = []
    for path, limits in ((weights, ["--score", LOW_SCORE, "--iou", "0.4", "--max_detections", "40"]), (exported, [])):
        out = tmp_path / path.suffix
        words = ["--weights", str(path), *limits, "--out", str(out), "--save_images", "false", "--quiet"]
        assert detect([str(frames.parent), *words]) == 0
        content = json.loads((out / "boxes.json").read_text())
        assert content["score_threshold"] == 0.2 and content["iou_threshold"] == 0.4
        tables.append(content["boxes"])
    assert len(tables[0]) == len(tables[1]) > 0
    for mine, other in zip(*tables, strict=True):
        assert mine["file"] == other["file"] and mine["class"] == other["class"]
        assert all(abs(mine[side] - other[side]) < 0.1 for side in ("x0", "y0", "x1", "y1"))
    out = str(tmp_path / "figures")
    assert evaluate([str(exported), str(frames), "--resamples", "2", "--out", out, "--quiet"]) == 0
    capsys.readouterr()
    for words, expected in (
        (["--dtype", "bfloat16"], "float32"),
        (["--no-deploy"], "fused"),
    ):
        assert detect([str(frames.parent), "--weights", str(exported), "--out", str(tmp_path / "no"), *words]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1


@pytest.mark.long
def test_exported_file_has_the_thresholds_of_calibrated_weights(tmp_path, capsys):
    thresholds = CalibratedThresholds(0.625, 0.6, 8, 12, ("drone",), 1.0, 3.5, 0, 0.86)
    save_weights(tmp_path / "small.safetensors", random_model(), thresholds.to_metadata())
    assert main([str(tmp_path / "small.safetensors")]) == 0
    assert "score threshold 0.625 (of the weights, which danet calibrate chose" in capsys.readouterr().out
    detector = danet.load(tmp_path / "small.onnx")
    assert detector.score_threshold == 0.625 and detector.calibration == thresholds


def test_load_rejects_foreign_and_broken_onnx_files(exported, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    foreign, older = tmp_path / "foreign.onnx", tmp_path / "older.onnx"
    model = onnx.load(exported)
    description = json.loads(model.metadata_props[0].value)
    description["preprocessing"]["clip"] = 3.0
    model.metadata_props[0].value = json.dumps(description)
    onnx.save(model, older)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    for path, expected in (
        (tmp_path / "none.onnx", "no such file"),
        (text, "cannot run it"),
        (foreign, "not a file written by danet export"),
        (older, "preprocesses images differently"),
    ):
        with pytest.raises(danet.utils.errors.UserError, match=expected) as raised:
            danet.load(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_load_rejects_onnx_files_with_other_contents(exported, tmp_path):
    """The description and the graph must fit each other, and the outputs must be numbers."""
    path = tmp_path / "bad.onnx"

    def error(change_description=None, change_model=None):
        model = onnx.load(exported)
        entry = next(item for item in model.metadata_props if item.key == "danet")
        content = json.loads(entry.value)
        for change, value in ((change_description, content), (change_model, model)):
            if change is not None:
                change(value)
        entry.value = json.dumps(content)
        onnx.save(model, path)
        with pytest.raises(danet.utils.errors.UserError, match=r"bad\.onnx: ") as raised:
            danet.load(path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def add_class(content):
        content["classes"].append("plane")
        content["model"]["classes"].append("plane")

    def fill_with_nan(model):
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 4:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))

    assert "it has no 'model'" in error(lambda content: content.pop("model"))
    assert "input_size is not valid" in error(lambda content: content["preprocessing"].update(input_size=[10**9] * 2))
    assert "its inputs or outputs are not those described" in error(add_class)
    assert "its outputs are NaN or infinite" in error(None, fill_with_nan)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda boxes, scores, selected: boxes[0, 7].add_(0.2), r"the box at \(\d+, \d+\) differs .* 0.2 pixel"),
        (lambda boxes, scores, selected: scores[-1, 5].sub_(0.002), r"the score at \(\d+, \d+\) differs .* 0.002"),
        (lambda boxes, scores, selected: scores[0, 0].fill_(torch.nan), "the score at .* differs .* nan"),
        (lambda boxes, scores, selected: selected[0, 2].add_(1), r"NMS selects \d+ boxes, other boxes than the"),
    ],
)
def test_compare_names_the_difference(monkeypatch, change, expected):
    model = random_model()
    network = BoxesAndScores(model, sample_grid)
    thresholds = {"score_threshold": 0.1, "iou_threshold": 0.05, "max_detections": 300}
    # Few positions, so that all of them are candidates of NMS.
    monkeypatch.setattr(verify, "SYNTHETIC_BATCHES", ((2, (64, 64)),))

    def run(images, change=None):
        with torch.no_grad():
            boxes, scores = network(images)
        selected = []
        for i in range(len(boxes)):
            candidates = (scores[i].amax(1) > 0.1).nonzero()[:, 0]
            kept = candidates[nms(boxes[i, candidates], scores[i, candidates].amax(1), 0.05)]
            assert 0 < len(kept) < len(candidates)
            selected += [[i, 0, place] for place in kept.tolist()]
        results = [boxes, scores, torch.tensor(selected)]
        if change is not None:
            change(*results)
        return results

    options = {"input_size": None, "thresholds": thresholds}
    found = verify.compare(run, model, verify.synthetic_batches(), **options)
    assert found.images == 2 and found.boxes < 1e-3 and found.scores < 1e-5
    with pytest.raises(danet.utils.errors.UserError, match=f"a synthetic scene of 64x64: .*{expected}"):
        verify.compare(lambda images: run(images, change), model, verify.synthetic_batches(), **options)


def test_export_does_not_write_a_file_that_differs(weights, tmp_path, monkeypatch, capsys):
    from danet.export import formats

    def write(network, images, path, description):
        path.write_text(json.dumps(description))

    wrong = lambda images: [torch.zeros(len(images), 1, size) for size in (4, 2)]  # noqa: E731
    other = formats.Format(".onnx", "Wrong", write, lambda path: (wrong, json.loads(path.read_text())), sample_grid)
    monkeypatch.setitem(formats.FORMATS, "onnx", other)
    assert main([str(weights), "--out", str(tmp_path / "w.onnx")]) == 2
    error = capsys.readouterr().err
    assert "w.onnx: not written, the results of Wrong differ: a synthetic scene" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_reports_invalid_input_in_one_line(weights, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "there.onnx").write_text("kept")
    (tmp_path / "folder.onnx").mkdir()
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((32, 64), np.uint8))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    place = ["--out", str(out / "w.onnx")]
    for arguments, expected in (
        ([str(tmp_path / "none.safetensors"), *place], "none.safetensors: no such file"),
        ([str(tmp_path / "there.onnx"), *place], "not a readable safetensors file"),
        ([*place], "weights"),
        ([str(weights), "--format", "tflite", *place], "--format"),
        ([str(weights), "--format", "torch-export", *place], "ends in .pt2"),
        ([str(weights), "--format", "aoti", "--out", str(out / "w.pt2")], "ends in .aoti.pt2"),
        ([str(weights), "--format", "openvino", "--out", str(out / "w.xml")], "pip install openvino"),
        ([str(weights), "--format", "aoti", "--nms"], "--nms"),
        ([str(weights), "--out", str(tmp_path / "there.onnx")], "exists already; --overwrite"),
        ([str(weights), "--out", str(tmp_path / "folder.onnx"), "--overwrite"], "is a folder"),
        ([str(weights), "--out", str(tmp_path / "there.onnx" / "w.onnx")], "is a file"),
        ([str(weights), "--frames", str(tmp_path / "no.png"), *place], "no.png"),
        ([str(weights), "--score", "2", *place], "--score"),
        ([str(weights), "--max_detections", "0", *place], "--max_detections"),
        ([str(weights), "--input_size", "9", *place], "--input_size"),
        ([str(weights), "--json", str(weights), *place], "small.safetensors: is an input of this command"),
        ([str(weights), "--json", str(out / "w.onnx"), *place], "w.onnx: would be written twice"),
        ([str(weights), "--input_size", "32", "--format", "aoti"], "--input_size: aoti needs at least 33"),
        ([str(weights), "--frames", str(tmp_path / "small.png"), "--format", "aoti"], "small.png: smaller than 33"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1, (arguments, error)
        assert not out.exists(), arguments
    assert (tmp_path / "there.onnx").read_text() == "kept"


ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module() if sys.argv[2] == "graph" else None
run = program or torch._inductor.aoti_load_package(sys.argv[1])
torch.save(run(torch.load(sys.argv[3])), sys.argv[4])
assert not any(name.split(".")[0] == "danet" for name in sys.modules)
"""


@pytest.mark.long
@pytest.mark.parametrize(("format", "kind"), [("torch-export", "graph"), ("aoti", "code")])
def test_torch_files_run_without_danet(weights, tmp_path, format, kind):
    path = tmp_path / "network.aoti.pt2"  # a valid suffix of both formats
    assert main([str(weights), "--format", format, "--out", str(path), "--quiet"]) == 0
    images = torch.randn(3, 1, 67, 90)
    torch.save(images, tmp_path / "images.pt")
    words = [str(path), kind, str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ALONE, *words], cwd=tmp_path, env=environment, check=True)
    model = load_weights(weights)[0]
    with torch.no_grad():
        expected = BoxesAndScores(model, sample_grid)(images)
    for found, plain in zip(torch.load(tmp_path / "out.pt"), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.long
def test_openvino_outputs_match(weights, tmp_path, capsys):
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "network.xml"
    assert main([str(weights), "--format", "openvino", "--out", str(path), "--nms", "--score", LOW_SCORE]) == 0
    assert "network.bin" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["network.bin", "network.xml"]
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.randn(3, 1, 67, 90)
    with torch.no_grad():
        expected = BoxesAndScores(load_weights(weights)[0], sample_grid)(images)
    results = compiled(images.numpy())
    for name, plain in zip(("boxes", "scores"), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(results[name]), plain, rtol=1e-4, atol=1e-3)
