"""Random changes to files: every reader succeeds or raises UserError in one short line, and nothing else."""

import json
import random
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mutations import mutate_json, mutate_safetensors, mutate_text, mutate_words

from danet.checkpoint import load_weights, save_weights
from danet.config import ModelConfig
from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco
from danet.data.importers.svanstrom import find_videos
from danet.data.importers.voc import Options, import_voc
from danet.inference.export_description import describe, parse
from danet.models import build_model
from danet.report.reproduce import saved_options
from danet.training.learning_curves import read_steps
from danet.training.optimizer import average_weights
from danet.training.options import TrainOptions
from danet.training.state import Progress, TrainingState
from danet.utils import cli
from danet.utils.errors import UserError

COCO = json.dumps(
    {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30, "video": "v", "frame": 3, "recording": "r"},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.5, 2, 10, 5], "iscrowd": 0, "ignore": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [], "segmentation": [[1, 2, 8, 2, 8, 9]]},
        ],
        "categories": [{"id": 1, "name": "drone", "supercategory": "none"}, {"id": 2, "name": "bird"}],
    }
)
YAML = (
    "path: .\ntrain: images\nval: [images, list.txt]\ntest: none\nkpt_shape: [2, 3]\nnames:\n  0: drone\n  1: &a bird\n"
)
LABEL = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"
VOC = """<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.png</filename><size><width>40</width>
<height>30</height></size><object><name>drone</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>3.5</ymin>
<xmax>10</xmax><ymax>12</ymax></bndbox></object></annotation>"""
SPLITS = json.dumps(
    {
        "size_buckets_px": {"small": "sqrt(w*h) < 14", "large": "sqrt(w*h) >= 18"},
        "videos": [{"video": "IR_DRONE_001", "split": "train", "class": "drone", "recording": "r", "frames": 3}],
    }
)
STEPS_CSV = "step,epoch,lr,loss,cls,reg,grad_norm\n1,1,0.002,2.5757,1.0706,1.5050,58.7340\n2,1,0.0019,2.1,1.0,1.1,40\n"
CONFIG = ModelConfig(name="danet_nano", widths=[8, 8, 8, 8], depths=[1, 1, 1, 1], neck_width=8, groups=2)
TEXT, SYNTAX = (mutate_text, mutate_words), (mutate_text, mutate_words, mutate_json)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for path in ("a.png", "b.png", "images/a.png"):
        cv2.imwrite(str(tmp_path / path), np.full((30, 40), 90, np.uint8))
    (tmp_path / "list.txt").write_text("images/a.png\n")
    (tmp_path / "labels/a.txt").write_text(LABEL)
    return tmp_path


def read_voc(folder):
    try:
        import_voc(
            Options(source=str(folder), out=str(folder / "out"), images="images", annotations="labels", quiet=True)
        )
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def empty_state() -> TrainingState:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainingState(model, average_weights(model, 0.9), optimizer, torch.amp.GradScaler("cpu", enabled=True))


def small_weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_weights(f"{folder}/a.safetensors", build_model(CONFIG), {"step": 3, "validation": {"f1": 0.5}})
        return Path(folder, "a.safetensors").read_bytes()


def state_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        state = empty_state()
        state.model(torch.randn(4, 3)).square().sum().backward()
        state.optimizer.step()
        state.progress = Progress(6, 4, {"epoch": 2, "ap50": 0.5}, 3.5, 2)
        state.save(f"{folder}/a.safetensors", {"lr": 0.1, "data": "a"})
        return Path(folder, "a.safetensors").read_bytes()


def description() -> str:
    thresholds = {"score_threshold": 0.5, "iou_threshold": 0.5, "max_detections": 300}
    return json.dumps(
        describe(CONFIG, thresholds=thresholds, input_size=(64, 96), minimum_size=32, training={"step": 7})
    )


# For each format: the file, its content, its mutations, and a function that reads it.
READERS = {
    "coco": ("annotations.json", COCO, SYNTAX, lambda folder: load_coco(folder / "annotations.json")),
    "data.yaml": ("data.yaml", YAML, TEXT, lambda folder: load_coco(folder, split="train")),
    "label": ("labels/a.txt", LABEL, TEXT, lambda folder: load_coco(folder / "data.yaml", split="train")),
    "list": ("list.txt", "images/a.png\n", TEXT, lambda folder: load_coco(folder / "data.yaml", split="val")),
    "voc": ("labels/a.xml", VOC, TEXT, read_voc),
    "splits.json": ("splits.json", SPLITS, SYNTAX, find_videos),
    "weights": ("a.safetensors", small_weights, (mutate_safetensors,), lambda f: load_weights(f / "a.safetensors")),
    "state": (
        "b.safetensors",
        state_file,
        (mutate_safetensors,),
        lambda f: empty_state().load(f / "b.safetensors", {}),
    ),
    "onnx": ("a.json", description, SYNTAX, lambda f: parse((f / "a.json").read_text(errors="replace"), "a.onnx")),
    "log": ("metrics.csv", STEPS_CSV, TEXT, read_steps),
    "options": (
        "config.yaml",
        lambda: cli.dump(TrainOptions()),
        TEXT,
        lambda f: saved_options(f / "config.yaml", TrainOptions),
    ),
}


@pytest.mark.parametrize("first", [0, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("reader", READERS)
def test_readers_survive_random_changes(folder, reader, first):
    name, content, mutations, read = READERS[reader]
    if reader in ("label", "list"):
        (folder / "data.yaml").write_text(YAML)
    content = content() if callable(content) else content
    content = content.encode() if isinstance(content, str) else content
    outcomes = {"read": 0, "refused": 0}
    for seed in range(first, first + (200 if first == 0 else 2000)):
        rng = random.Random(seed)
        (folder / name).write_bytes(rng.choice(mutations)(content, rng))
        try:
            read(folder)
            outcomes["read"] += 1
        except UserError as error:
            message = str(error)
            message.encode()
            assert "\n" not in message and len(message) < 1000, seed
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}") from error
    assert min(outcomes.values()) > 3, outcomes


def test_import_of_a_changed_file_writes_all_or_nothing(folder, tmp_path_factory, capsys):
    for seed in range(60):
        rng = random.Random(seed)
        (folder / "annotations.json").write_bytes(rng.choice(SYNTAX)(COCO.encode(), rng))
        out = tmp_path_factory.mktemp("out")
        code = main(["import", "coco", str(folder / "annotations.json"), str(out / "set")])
        assert code in (0, 2)
        assert sorted(path.name for path in out.iterdir()) == (["set"] if code == 0 else []), seed
        assert not list(out.rglob(".*")) and capsys.readouterr().err.count("\n") <= 6
