import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detections import TRUTH, found, record

from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.data.loader import Batch
from danet.data.normalize import normalize
from danet.evaluate import main
from danet.evaluation import EvaluateOptions, evaluate
from danet.evaluation.metrics import choose_threshold, evaluate_predictions
from danet.evaluation.mistakes import Mistake, Mistakes, choose_by_size, find_mistakes
from danet.inference.coco_results import read_coco_results
from danet.losses import DetectionLoss
from danet.models import build_model
from danet.utils.errors import UserError

CLASSES = ["drone", "bird"]
NAMES = ("metrics.json", "predictions.json", "curves.csv", "pr_curve.png", "f1_confidence.png", "confusion_matrix.png")
SHEET, SIZES = "misses_and_false_alarms.png", "by_size.png"


def scene(rng, name, size):
    """Noise with a hot wide drone, a cold tall bird, or nothing, and the box of the object."""
    image = rng.normal(90, 5, size)
    y, x = rng.integers(4, size[0] - 20), rng.integers(4, size[1] - 20)
    width, height = (12, 8) if name == "drone" else (8, 12)
    if name is not None:
        image[y : y + height, x : x + width] += 100 if name == "drone" else -60
    return image.clip(0, 255).astype(np.uint8), (x, y, x + width, y + height)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A danet_nano trained on 360 scenes: good, not perfect."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    small = {"widths": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "neck_width": 16}
    model = build_model(ModelConfig(name="danet_nano", classes=CLASSES, **small)).train()
    loss = DetectionLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(45):
        scenes = [scene(rng, CLASSES[index % 2], (64, 64)) for index in range(8)]
        images = torch.from_numpy(np.stack([normalize(image) for image, _ in scenes]))
        boxes = [torch.tensor([box], dtype=torch.float32) for _, box in scenes]
        labels = [torch.tensor([index % 2]) for index in range(8)]
        batch = Batch(images, boxes, labels, [torch.tensor([False])] * 8)
        terms = loss(model(images), batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, model)
    return str(path)


def dataset(folder, seed, count=24):
    """Images of two sizes in videos of four frames: drones, birds and nothing."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        name = ("drone", "drone", "bird", None)[index // 4 % 4]
        size = ((64, 96), (80, 72))[index // 8 % 2]
        image, box = scene(rng, name, size)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        names = [] if name is None else [name]
        boxes = np.array([box] if name else [], np.float32).reshape(-1, 4)
        video = f"{folder.name}-{index // 4}"
        ignore = np.zeros(len(names), bool)
        records.append(ImageRecord(path, size[1], size[0], boxes, names, ignore, video, index % 4, video))
    write_coco(folder / "annotations.json", records, CLASSES)
    return str(folder / "annotations.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data") / "val", 1)


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data") / "tune", 2)


@pytest.fixture(scope="module")
def evaluated(weights, data, tune, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = [weights, data, "--tune", tune, "--out", str(out), "--json", str(out / "again.json"), "--batch", "3"]
    assert main([*arguments, "--threads", "1"]) == 0
    return out


def read(path):
    return json.loads(path.read_text())


def test_evaluate_files_and_metrics(evaluated):
    names = {path.name for path in evaluated.iterdir()}
    assert names - {SHEET} == {*NAMES, SIZES, "again.json", "config.yaml"}
    metrics = read(evaluated / "metrics.json")
    assert metrics == read(evaluated / "again.json")
    assert set(metrics["criteria"]) == {"iou50", "iou30", "iop50", "center3"}
    for result in metrics["criteria"].values():
        for point in ("fixed", "tuned"):
            for name in ("precision", "recall", "f1"):
                assert set(result[point][name]) == {"value", "low", "high"}
    assert metrics["criteria"]["iou30"]["tuned"]["f1"]["value"] > 0.6  # the training succeeded
    assert (metrics["images"], metrics["objects"], metrics["groups"]) == (24, 16, 6)
    assert {group["distractor"]: group["images"] for group in metrics["false_alarms"]} == {
        "bird": 4, "(nothing)": 4, "(all)": 8,
    }  # fmt: skip
    assert [group["name"] for group in metrics["recordings"]] == [f"val-{i}" for i in range(6)]
    assert metrics["speed"]["images"] == 21  # all but the first batch of three
    assert metrics["speed"]["fps"] < metrics["speed"]["fps_network_and_decode"]


def test_evaluate_writes_plots(evaluated):
    for name in NAMES[3:]:
        image = cv2.imread(str(evaluated / name))
        assert image.shape == (750, 1050, 3)
        assert image.std() > 5


def test_threshold_depends_on_tuning_images_only(weights, data, tune, evaluated, tmp_path):
    chosen = read(evaluated / "metrics.json")["thresholds"]["tuned"]
    # the threshold from the predictions on the tuning images
    assert main([weights, tune, "--out", str(tmp_path), "--threads", "1", "--batch", "3", "--quiet"]) == 0
    records = load_coco(tune).records
    results = {}
    for item in read(tmp_path / "predictions.json"):
        results.setdefault(item["image_id"], []).append(item)
    predictions = []
    for image_id in range(1, len(records) + 1):
        items = results.get(image_id, [])
        boxes = [[*i["bbox"][:2], i["bbox"][0] + i["bbox"][2], i["bbox"][1] + i["bbox"][3]] for i in items]
        predictions.append(found(boxes, [i["score"] for i in items], [i["category_id"] - 1 for i in items]))
    assert chosen == pytest.approx(choose_threshold(records, predictions, CLASSES)[0], abs=1e-5)

    # other evaluated images do not change the threshold
    other = dataset(tmp_path / "other", 9, count=8)
    assert main([weights, other, "--tune", tune, "--out", str(tmp_path), "--threads", "1", "--batch", "3"]) == 0
    assert read(tmp_path / "metrics.json")["thresholds"]["tuned"] == chosen


def test_predictions_json_is_a_coco_result_file(evaluated, data):
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    truth = faster_coco_eval.COCO(data)
    results = truth.loadRes(str(evaluated / "predictions.json"))
    evaluation = faster_coco_eval.COCOeval_faster(truth, results, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    theirs = np.asarray(evaluation.eval["precision"])[0, :, 0, 0, -1].mean()
    assert read(evaluated / "metrics.json")["criteria"]["iou50"]["ap"]["value"] == pytest.approx(theirs, abs=1e-6)


def test_predictions_are_read_back(evaluated, data):
    dataset = load_coco(data)
    records = dataset.records[::2]
    predictions = read_coco_results(evaluated / "predictions.json", dataset, dataset.records, CLASSES)
    metrics = evaluate_predictions(dataset.records, predictions, CLASSES, resamples=10)
    stored = read(evaluated / "metrics.json")["criteria"]["iou30"]
    assert metrics.criteria["iou30"].fixed.f1.value == stored["fixed"]["f1"]["value"]
    assert metrics.criteria["iou30"].ap.value == pytest.approx(stored["ap"]["value"], abs=1e-3)
    assert sum(len(scores) for _, scores, _ in predictions) == len(read(evaluated / "predictions.json"))
    with pytest.raises(UserError, match="not the detections of"):  # detections of images that are not among the records
        read_coco_results(evaluated / "predictions.json", dataset, records, CLASSES)


def test_predictions_are_independent_of_batch_size(weights, data, evaluated, tmp_path):
    assert main([weights, data, "--out", str(tmp_path), "--batch", "1", "--quiet", "--threads", "1"]) == 0
    one, three = (read(folder / "predictions.json") for folder in (tmp_path, evaluated))
    assert len(one) == len(three)
    assert max(abs(a["score"] - b["score"]) for a, b in zip(one, three, strict=True)) < 1e-4


def test_evaluate_in_tiles(weights, data, evaluated, tmp_path):
    arguments = [weights, data, "--out", str(tmp_path), "--quiet", "--threads", "1"]
    assert main([*arguments, "--tile", "96"]) == 0
    assert read(tmp_path / "predictions.json") == read(evaluated / "predictions.json"), "all images fit into a tile"
    assert main([*arguments, "--tile", "64", "--overlap", "0.4"]) == 0
    best = {folder: {} for folder in (evaluated, tmp_path)}  # of each image, the box with the highest score
    for folder, boxes in best.items():
        for each in sorted(read(folder / "predictions.json"), key=lambda each: each["score"]):
            boxes[each["image_id"]] = np.array(each["bbox"])
    places = [(best[evaluated][key], box) for key, box in best[tmp_path].items() if key in best[evaluated]]
    same = [np.abs(whole[:2] + whole[2:] / 2 - tiled[:2] - tiled[2:] / 2).max() < 4 for whole, tiled in places]
    assert len(places) > 10 and np.mean(same) > 0.7, "tiles find the targets at the same places"


def test_evaluate_prints_tables_and_header(weights, data, tmp_path, capsys):
    assert main([weights, data, "--out", str(tmp_path), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("operators", "IoU ≥ 0.5", "centre < 3 px", "≥ 18 px", "val-3", "other classes", "bird", "images/s"):
        assert words in printed
    assert read(tmp_path / "metrics.json")["thresholds"]["tuned"] is None
    assert main([weights, data, "--out", str(tmp_path), "--threads", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_unreached_recall_is_null_and_printed(weights, tmp_path, capsys):
    folder = tmp_path / "blank"
    data = dataset(folder, 3, count=16)
    for index in range(8):  # drones are annotated on empty images
        image = cv2.imread(str(folder / f"{index}.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(folder / f"{index}.png"), np.full_like(image, 90))
    assert main([weights, data, "--out", str(tmp_path), "--threads", "1"]) == 0
    assert "not reached" in capsys.readouterr().out
    metrics = read(tmp_path / "metrics.json")
    assert metrics["thresholds"]["recall 0.95 iou50"] is None
    assert all(group["rates"]["recall 0.95 iou50"] is None for group in metrics["false_alarms"])
    assert metrics["criteria"]["iou50"]["fixed"]["fn"] == 8
    assert sum(metrics["mistakes"]["misses"].values()) == 8
    sheet = cv2.imread(str(tmp_path / SHEET))
    assert sheet.shape[1] > 2 * 224
    sizes = cv2.imread(str(tmp_path / SIZES))
    assert sizes.shape[0] > 3 * 224 and sizes.shape[1] > 6 * 224  # a row for each size, two of each kind


def test_evaluate_stride_and_class_map(weights, data, tmp_path):
    arguments = [weights, data, "--out", str(tmp_path), "--threads", "1", "--quiet"]
    assert main([*arguments, "--stride", "2", "--class_map", '{"bird": "drone"}', "--scale_edges", "5", "11"]) == 0
    metrics = read(tmp_path / "metrics.json")
    assert metrics["images"] == 12  # two of each video's four
    assert metrics["objects"] == 10  # 8 drones and 2 birds
    assert [scale["objects"] for scale in metrics["scales"]] == [0, 10, 0]  # sqrt(96) = 9.8 pixels


def test_evaluate_errors_are_one_line(weights, data, tune, tmp_path, capsys):
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    wrong_size = tmp_path / "wrong"
    wrong = dataset(wrong_size, 4, count=4)
    cv2.imwrite(str(wrong_size / "2.png"), np.zeros((40, 50), np.uint8))
    cases = [
        ([weights, "missing.json"], "missing.json"),
        (["missing.safetensors", data], "missing.safetensors"),
        ([str(text), data], "text.safetensors"),
        ([weights, data, "--tune", data], "shares 24 images"),
        ([weights, data, "--tune", tune, "--threshold", "0.5"], "exclude each other"),
        ([weights, data, "--threshold", "1.5"], "--threshold must lie between 0.02 and 1"),
        ([weights, data, "--target", "dron"], "not a class of the model (drone, bird)"),
        ([weights, data, "--class_map", '{"Target": "drone"}'], "'Target' is not a category"),
        ([weights, data, "--scale_edges", "18", "14"], "ascending"),
        ([weights, data, "--scale_edges", "[14, .nan]"], "ascending"),
        ([weights, data, "--seed", "-1"], "--seed must be 0 or more"),
        ([weights, data, "--device", "gpu"], "--device must be auto, cpu, cuda, cuda:N or N, got 'gpu'"),
        ([weights, data, "--device", "99"], "--device cuda:99: not available here"),
        ([weights, data, "--stride", "0"], "--stride must be at least 1"),
        ([weights, data, "--criterion", "iou75"], "--criterion"),
        ([weights, data, "--treshold", "0.5"], "did you mean --threshold"),
        ([weights, wrong], "2.png: the image is 50 x 40"),
        ([weights, data, "--tile", "8"], "--tile must be one or two integers from 32"),
        ([weights, data, "--overlap", "0.5"], "--overlap: needs --tile"),
        (
            ["local_contrast", data, "--target", "drone", "--tile", "64"],
            "local_contrast is another detector; omit --tile",
        ),
        (["--predictions", data, data, "--tile", "64"], "--tile: has no effect on --predictions"),
    ]
    for arguments, message in cases:
        out = tmp_path / "out"
        assert main([*arguments, "--out", str(out), "--quiet"]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not out.exists()


def test_warning_for_shared_recordings(weights, data, tmp_path, capsys):
    neighbours = dataset(tmp_path / "val", 5, count=8)  # other images, the same recording names
    arguments = [weights, data, "--tune", neighbours, "--out", str(tmp_path), "--threads", "1", "--quiet"]
    assert main(arguments) == 0
    assert "share 2 recordings, such as val-0" in capsys.readouterr().err


def test_warning_for_missing_target(weights, data, tmp_path, capsys):
    content = read(Path(data))
    for image in content["images"]:
        image["file_name"] = str(load_coco(data).path.parent / image["file_name"])
    birds = tmp_path / "birds.json"
    images = [image for image in content["images"] if image["recording"] == "val-2"]
    kept = {image["id"] for image in images}
    annotations = [item for item in content["annotations"] if item["image_id"] in kept]
    birds.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    assert main([weights, str(birds), "--out", str(tmp_path), "--threads", "1", "--quiet"]) == 0
    assert "shows no 'drone', only bird" in capsys.readouterr().err
    assert read(tmp_path / "metrics.json")["criteria"]["iou50"]["fixed"]["recall"]["value"] is None


def test_evaluate_fits_its_tables_to_80_columns(weights, data, tune, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([weights, data, "--tune", tune, "--out", str(tmp_path), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    tables = printed[: printed.index("misses at score")]
    assert max(map(len, tables.splitlines())) <= 80
    for words in ("IoU ≥ 0.5", "centre < 3 px", "recall 0.95, IoU ≥ 0.3", "val-3", "annotated", "(background)"):
        assert words in tables


def test_evaluate_from_python(weights, data, tune, tmp_path):
    evaluation = evaluate(EvaluateOptions(weights, data, tune=tune, out=str(tmp_path / "val"), threads=1, quiet=True))
    assert 0 < evaluation.content["criteria"]["iou50"]["tuned"]["f1"]["value"] <= 1
    assert not (tmp_path / "val").exists()
    written = tmp_path / "val" / "metrics.json"
    assert written in evaluation.write()
    stored = json.loads(written.read_text())
    assert stored["criteria"]["iou50"]["tuned"]["f1"] == evaluation.content["criteria"]["iou50"]["tuned"]["f1"]


def test_evaluate_runs_as_module():
    shown = subprocess.run(
        [sys.executable, "-m", "danet.evaluate", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "--tune" in shown and "default: 0.5" in " ".join(shown.split()) and "pixels" in shown


def test_find_mistakes_causes():
    bird = (30, 30, 40, 40)
    others = [(200, 100, 220, 120), (200, 200, 210, 210), (240, 30, 250, 40)]
    truth = record([TRUTH, bird, *others], ["drone", "bird", "drone", "drone", "drone"])
    predictions = found(
        [
            TRUTH,
            (101, 100, 111, 110),  # a duplicate
            (35, 30, 45, 40),  # on the bird
            (215, 100, 235, 120),  # overlaps the second drone
            (200, 201, 210, 211),  # on the third drone, low score
            (0, 200, 10, 210),  # on the background
        ],
        [0.9, 0.8, 0.7, 0.6, 0.1, 0.55],
    )
    mistakes = find_mistakes([truth], [predictions], CLASSES, target="drone", threshold=0.5)
    assert mistakes.causes() == {
        "misses": {"not found": 1, "low score": 1, "misplaced": 1},
        "false_alarms": {"duplicate": 1, "bird": 1, "misplaced": 1, "background": 1},
    }
    assert [round(m.score, 2) for m in mistakes.false_alarms] == [0.8, 0.7, 0.6, 0.55]
    assert mistakes.misses[0].box.tolist() == list(others[2])
    assert [hit.score for hit in mistakes.hits] == pytest.approx([0.9])
    assert mistakes.hits[0].box.tolist() == list(TRUTH)


def test_choose_by_size_selection():
    def mistakes(*of):
        """(image, side of the box, score)"""
        return [Mistake(image, np.array([0, 0, side, side]), score, "") for image, side, score in of]

    records = [record([], []) for _ in range(6)]
    for index, name in enumerate(("a", "a", "b", "c", "d", "e")):
        records[index].video = name
    shown = Mistakes(
        misses=mistakes((0, 20, None), (1, 25, None), (2, 30, None), (3, 5, None)),
        false_alarms=mistakes((4, 15, 0.9)),
        hits=mistakes((0, 15, 0.9), (2, 15, 0.52), (3, 15, 0.6), (4, 15, 0.55), (5, 14, 0.1)),
    )
    (small, of_small), (medium, of_medium), (large, of_large) = choose_by_size(records, shown, (14.0, 18.0))
    assert (small, medium, large) == ("< 14 px", "14 to 18 px", "from 18 px")
    images = [{what: [m.image for m in found] for what, found in of.items()} for of in (of_small, of_medium, of_large)]
    assert images == [
        {"hit": [], "miss": [3], "false alarm": []},
        {"hit": [4, 2], "miss": [], "false alarm": [4]},  # those nearest to the median, 0.55
        {"hit": [], "miss": [0, 2], "false alarm": []},  # 0 and 1 are of one video
    ]


def test_evaluate_replaces_none_of_its_inputs(evaluated, data, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(evaluated, out)
    own = dataset(tmp_path / "own", 1, count=8)
    predictions, elsewhere = out / "predictions.json", tmp_path / "elsewhere"
    words = ["--predictions", str(predictions), data, "--quiet"]
    tuned = ["--predictions", str(evaluated / "predictions.json"), data, "--tune", own]
    before = {path: path.read_bytes() for folder in (out, Path(own).parent) for path in folder.iterdir()}
    for arguments, changed in (
        ([*words, "--out", str(out)], predictions),
        ([*tuned, "--tune_predictions", str(predictions), "--out", str(out)], predictions),
        (["local_contrast", own, "--target", "drone", "--json", own, "--out", str(elsewhere)], own),
        (["local_contrast", str(Path(own).parent), "--json", own, "--out", str(elsewhere)], own),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert f"{changed}: is an input of this command" in error and error.count("\n") == 1, error
    assert main([*words, "--out", str(elsewhere), "--json", str(elsewhere / "predictions.json")]) == 2
    assert "predictions.json: would be written twice" in capsys.readouterr().err
    assert not elsewhere.exists()
    assert before == {path: path.read_bytes() for folder in (out, Path(own).parent) for path in folder.iterdir()}
