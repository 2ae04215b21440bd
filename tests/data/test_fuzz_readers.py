"""Random changes to annotation files: every reader succeeds or raises UserError in one short line, and nothing else."""

import json
import random
import shutil

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco
from danet.data.importers.svanstrom import find_videos
from danet.data.importers.voc import Options, import_voc
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
# What mutations insert: values of other types, long numbers, syntax, control characters, bytes that are not UTF-8.
PIECES = [
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 5000, b"0.1", b'""', b"[]", b"{}", b"[" * 3000, b'"\\ud800"'),
    *(
        b"\x00",
        b"\xff",
        b"\x1b[2J",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b",",
        b":",
        b'"',
        b"'",
        b"<",
        b">",
        b"&",
        b"- ",
        b"*a",
    ),
    *(
        b"../",
        b"/",
        b"\\",
        b"x" * 300,
        b"<<",
        b"!!int ",
        b"%",
        b"@",
        b"#",
        b"&lt;",
        b"<!--",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
]


def mutate(text, seed):
    """Deletes, repeats, replaces or inserts a few pieces of a file."""
    rng = random.Random(seed)
    content = bytearray(text.encode())
    for _ in range(rng.choice([1, 1, 2, 4])):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([0, 1, 2, 8, 40]))
        kind = rng.randrange(4)
        if kind == 0:
            del content[start:end]
        elif kind == 1:
            content[start:start] = content[start:end] * rng.choice([1, 2, 50])
        elif kind == 2:
            content[start:end] = rng.choice(PIECES)
        else:
            content[start:start] = rng.choice(PIECES)
    return bytes(content)


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


READERS = {
    "coco": ("annotations.json", COCO, lambda folder: load_coco(folder / "annotations.json")),
    "data.yaml": ("data.yaml", YAML, lambda folder: load_coco(folder, split="train")),
    "label": ("labels/a.txt", LABEL, lambda folder: load_coco(folder / "data.yaml", split="train")),
    "list": ("list.txt", "images/a.png\n", lambda folder: load_coco(folder / "data.yaml", split="val")),
    "voc": ("labels/a.xml", VOC, read_voc),
    "splits.json": ("splits.json", SPLITS, find_videos),
}


@pytest.mark.parametrize("first", [0, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("reader", READERS)
def test_readers_survive_random_changes(folder, reader, first):
    name, text, read = READERS[reader]
    if reader in ("label", "list"):
        (folder / "data.yaml").write_text(YAML)
    outcomes = {"read": 0, "refused": 0}
    for seed in range(first, first + (150 if first == 0 else 5000)):
        (folder / name).write_bytes(mutate(text, seed))
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
        (folder / "annotations.json").write_bytes(mutate(COCO, seed))
        out = tmp_path_factory.mktemp("out")
        code = main(["import", "coco", str(folder / "annotations.json"), str(out / "set")])
        assert code in (0, 2)
        assert sorted(path.name for path in out.iterdir()) == (["set"] if code == 0 else []), seed
        assert not list(out.rglob(".*")) and capsys.readouterr().err.count("\n") <= 6
