"""Runs every command of the documentation in the order of a project, with few images and a small model."""

import importlib.util
import itertools
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenes import write_scenes
from test_docs import ROOT, commands

from danet.__main__ import main
from danet.data.coco_dataset import load_coco, write_coco

# The order in which commands run. A command belongs to the longest prefix that it starts with.
ORDER = (
    *("danet data import", "danet data inspect", "danet data split", "danet data inspect data/mine/fit.json"),
    *("danet data synthesize", "danet data split data/demo", "danet train --preset svanstrom --preset"),
    *("danet train --preset svanstrom --model.name", "danet train", "danet evaluate", "danet compare"),
    *("danet export", "danet detect", "danet calibrate", "danet track", "danet ablate", "danet report"),
)
SMALL = ("--model.name", "danet_nano", "--epochs", "1", "--batch", "4", "--augmentation.crop", "null")
# Options added to a command to make it fast, by prefix.
ADDED = {
    "danet data synthesize": ("--images", "8", "--val_images", "20", "--size", "64x64", "--video_frames", "4"),
    "danet train --weights shipped": (*SMALL[2:], "--overwrite"),  # the model is that of the weights
    "danet train": (*SMALL, "--overwrite"),
    "danet evaluate": ("--resamples", "20"),
    "danet compare": ("--resamples", "20"),
    "danet export": ("--overwrite",),
    "danet calibrate": ("--overwrite",),
    "danet ablate": SMALL,  # after the lone --, to danet train
}


def rank(command: str) -> int:
    return ORDER.index(max((begin for begin in ORDER if command.startswith(begin)), key=len))


def shorten(command: str) -> list[str]:
    """The words of a command, with the options that make it fast."""
    words = shlex.split(command)[1:]
    if words[0] == "ablate":
        at = words.index("--")
        words[at:at] = ["--seeds", "0", "--resamples", "20"]
    added = next((more for begin, more in ADDED.items() if command.startswith(begin)), ())
    return [*words, *(word for word in added if word != "--overwrite" or word not in words)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the files that the pages assume: videos, images with labels, benchmark results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number in range(6):
        for kind in ("images", "labels"):
            Path(f"FOLDER/{kind}/train").mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        cv2.imwrite(f"FOLDER/images/train/{number}.png", rng.integers(60, 90, (64, 80), np.uint8))
        Path(f"FOLDER/labels/train/{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    Path("FOLDER/data.yaml").write_text("train: images/train\nnames: [drone]\n")
    writer = cv2.VideoWriter("video.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 30, (96, 64))
    for number in range(60):  # `danet calibrate` needs videos that last longer than the delay of an alarm
        writer.write(np.random.default_rng(number).integers(60, 90, (64, 96, 3), np.uint8))
    writer.release()
    # Replaces the import of the real videos, which the tests of the importers read.
    for name, count in (("train", 16), ("val", 4)):
        four_classes(write_scenes(tmp_path / f"data/scenes_{name}", count, seed=count), f"data/ir/{name}.json")
    with_earlier_frames("data/ir/train.json", "data/train.json")
    results = sorted((ROOT / "benchmarks/results").rglob("*.json"))
    shutil.copy(next(path for path in results if '"dispatch_us"' in path.read_text()), "ops.json")
    return tmp_path


def four_classes(scenes: Path, path: str) -> None:
    """Moves a JSON of `write_scenes` to `path` and renames its birds to bird, airplane and helicopter in turn."""
    data = load_coco(scenes)
    birds = itertools.cycle(("bird", "airplane", "helicopter"))
    for record in data.records:
        record.names = [next(birds) if name == "bird" else name for name in record.names]
    write_coco(path, data.records, ["drone", "bird", "airplane", "helicopter"])
    scenes.unlink()


def with_earlier_frames(source: str, target: str) -> None:
    """Writes a dataset in which every image has another one as the frame 0.1, 0.5 and 1 s before it."""
    data = load_coco(source)
    files = [record.path for record in data.records]
    for record, earlier in zip(data.records, files[1:] + files[:1], strict=True):
        record.past = tuple((lag, earlier) for lag in (0.1, 0.5, 1.0))
    write_coco(target, data.records, ["drone", "bird", "airplane", "helicopter"])


@pytest.mark.long
def test_docs_commands_run(project, capsys):
    left_out = []
    tested_elsewhere = ("danet data import svanstrom", "danet export runs/ir/weights.safetensors --format aoti")
    tested_elsewhere += ("danet evaluate --tracks", "danet track rtsp")  # need annotated videos, and a camera
    for command in sorted(commands(), key=rank):
        if command.startswith(tested_elsewhere):  # need real videos or minutes of compiling
            left_out.append(command)
            continue
        if command.startswith("danet evaluate"):  # a few steps find no target: use longer trained weights
            if not Path("longer").exists():
                words = ["--data", "data/ir/train.json", "data/demo/train.json", "--out", "longer", *SMALL, "--quiet"]
                assert main(["train", *words, "--epochs", "60", "--lr", "0.003"]) == 0
            shutil.copy("longer/weights.safetensors", shlex.split(command)[2])
        if "openvino" in command and importlib.util.find_spec("openvino") is None:
            continue
        code = main(shorten(command))
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    assert all(any(command.startswith(begin) for command in left_out) for begin in tested_elsewhere)
