"""The valid inputs of tools/fuzz_commands.py, the commands that read them, and random options."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from mutations import (
    mutate_bytes,
    mutate_image,
    mutate_json,
    mutate_matlab,
    mutate_onnx,
    mutate_safetensors,
    mutate_text,
    mutate_words,
)

from danet.data import inspect, split
from danet.data.importers.coco import Options as CocoOptions
from danet.data.synthetic.synthesize import Options as SceneOptions
from danet.data.synthetic.synthesize import synthesize
from danet.detect import DetectOptions
from danet.evaluation.ablate_options import AblateOptions
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.report.__main__ import ReportOptions
from danet.training.options import TrainOptions
from danet.utils.typed_options import dataclass_type, list_options

SMALL = [
    *("--model.name", "danet_nano", "--model.widths", "[8, 8, 16, 16]", "--model.depths", "[1, 1, 1, 1]"),
    *("--model.neck_width", "8", "--augmentation.crop", "64x64", "--workers", "0", "--epochs", "1"),
]
"""Options of a training with a very small network."""

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass
class Kind:
    """One kind of input.

    Args:
        name: first column of the table.
        source: folder of the valid input, which every case copies.
        file: the file in it that is changed; a pattern stands for one of the files that match it.
        commands: words after ``danet``; one of them is chosen. They run in the copy and write into ``../out``.
        mutations: one of them is chosen; none if the options of the commands are changed, by ``options``.
        options: the class of the options of each command.
        in_place: whether the commands may write into the copy of the input.
    """

    name: str
    source: str
    file: str
    commands: list[list[str]]
    mutations: tuple[Mutation, ...]
    options: tuple[type, ...] = ()
    in_place: bool = False


def build_inputs(folder: Path, labels: str | None) -> list[Kind]:
    """Writes a valid input of every kind."""
    data = folder / "coco"
    synthesize(SceneOptions(str(data), images=3, val_images=2, size="64x64", video_frames=0, quiet=True))
    training = [*SMALL, *["--val_every", "1", "--batch", "2", "--threads", "1", "--save_every_steps", "1"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}

    def command(*words: str) -> None:
        subprocess.run([sys.executable, "-W", "ignore", "-m", "danet", *words], check=True, cwd=folder, env=environment)

    command("train", *training, "--data", "coco/train.json", "--val", "coco/val.json", "--out", "run", "--quiet")
    shutil.copytree(data, folder / "run/coco")
    weights = "run/weights.safetensors"
    command("evaluate", weights, "coco/val.json", "--out", "evaluation", "--threads", "1", "--quiet")
    (folder / "weights").mkdir()
    shutil.copy(folder / weights, folder / "weights/a.safetensors")
    shutil.copy(next((data / "val").glob("*.png")), folder / "weights/a.png")
    shutil.copytree(data / "val", folder / "weights/val")
    shutil.copy(data / "val.json", folder / "weights")
    command("export", "weights/a.safetensors", "--out", "weights/a.onnx", "--quiet")
    _write_annotated_images(folder)
    _write_media(folder / "media")
    (folder / "options").mkdir()
    shutil.copytree(data, folder / "options/coco")
    shutil.copytree(folder / "run", folder / "options/run")
    shutil.copy(folder / "weights/a.png", folder / "options/a.png")
    (folder / "options/recipe.yaml").write_text(yaml.safe_dump({"epochs": 1, "batch": 2, "lr": 0.001, "workers": 0}))

    train = ["train", *training, "--val", "null", "--max_minutes", "0.02", "--out", "../out", "--quiet"]
    detect = ["detect", "--threads", "1", "--quiet", "--out", "../out"]
    text_json = (mutate_text, mutate_words, mutate_json, mutate_json)
    options = option_commands()
    kinds = [
        Kind(
            "COCO json",
            "coco",
            "train.json",
            [
                ["data", "import", "coco", "train.json", "../out"],
                ["data", "inspect", "train.json", "--sheet", "../out/sheet.png", "--json", "../out/counts.json"],
                ["data", "split", "train.json", "--out_a", "../out/a.json", "--out_b", "../out/b.json"],
                [*train, "--data", "train.json"],
            ],
            text_json,
        ),
        Kind(
            "YOLO yaml",
            "yolo",
            "data.yaml",
            [
                ["data", "import", "yolo", ".", "../out"],
                ["data", "inspect", "data.yaml"],
                [*train, "--data", "data.yaml"],
            ],
            (mutate_text, mutate_words),
        ),
        Kind(
            "YOLO label",
            "yolo",
            "labels/*.txt",
            [["data", "import", "yolo", "data.yaml", "../out"]],
            (mutate_text, mutate_words),
        ),
        Kind("VOC xml", "voc", "*.xml", [["data", "import", "voc", ".", "../out"]], (mutate_text, mutate_words)),
        Kind(
            "masks", "masks", "masks/*.png", [["data", "import", "masks", ".", "../out"]], (mutate_bytes, mutate_image)
        ),
        Kind(
            "image",
            "media",
            "image*",
            [[*detect, "FILE"], [*detect, "."], ["data", "inspect", "media.json", "--sheet", "../out/sheet.png"]],
            (mutate_bytes, mutate_image),
        ),
        Kind("video", "media", "video*", [[*detect, "FILE"]], (mutate_bytes,)),
        Kind(
            "weights",
            "weights",
            "a.safetensors",
            [
                [*detect, "a.png", "--weights", "a.safetensors"],
                ["evaluate", "a.safetensors", "val.json", "--threads", "1", "--quiet", "--out", "../out"],
                [*train, "--data", "val.json", "--weights", "a.safetensors"],
            ],
            (mutate_safetensors,),
        ),
        Kind("ONNX", "weights", "a.onnx", [[*detect, "a.png", "--weights", "a.onnx"]], (mutate_onnx,)),
        Kind(
            "state",
            "run",
            "last.safetensors",
            [["train", "--resume", ".", "--epochs", "2", "--max_minutes", "0.02", "--quiet"]],
            (mutate_safetensors,),
            in_place=True,
        ),
        Kind(
            "run config",
            "run",
            "config.yaml",
            [
                ["train", "--resume", ".", "--max_minutes", "0.02", "--quiet"],
                ["report", ".", "--out", "../out/report.html"],
                ["train", "--config", "config.yaml", "--max_minutes", "0.02", "--out", "../out", "--quiet"],
            ],
            (mutate_text, mutate_words),
            in_place=True,
        ),
        Kind("run log", "run", "*.csv", [["report", ".", "--out", "../out/report.html"]], (mutate_text, mutate_words)),
        Kind(
            "evaluation",
            "evaluation",
            "*.json",
            [["report", ".", "--out", "../out/report.html"]],
            text_json,
        ),
        Kind("options", "options", "", [words for _, words in options], (), tuple(kind for kind, _ in options)),
    ]
    (folder / "benchmark").mkdir()
    for path in (Path(__file__).parents[1] / "benchmarks/results/amd-epyc-avx512").glob("*.json"):
        shutil.copy(path, folder / "benchmark")
    report = ["report", "FILE", "--out", "../out/report.html"]
    kinds.append(Kind("benchmark", "benchmark", "[do]*.json", [report], text_json))
    if labels is not None:
        (folder / "matlab").mkdir()
        for path in sorted(Path(labels).glob("IR_DRONE_*.mp4"))[:1]:
            for file in (path, path.with_name(f"{path.stem}_LABELS.mat")):
                shutil.copy(file, folder / "matlab")
        words = ["data", "import", "svanstrom", ".", "../out", "--stride", "20"]
        kinds.append(Kind("mat", "matlab", "*.mat", [words], (mutate_matlab,)))
    return kinds


def _write_annotated_images(folder: Path) -> None:
    """A YOLO, a VOC and a mask dataset of the same two images."""
    images = sorted((folder / "coco/train").glob("*.png"))[:2]
    for name in ("yolo/images", "yolo/labels", "voc", "masks/images", "masks/masks"):
        (folder / name).mkdir(parents=True)
    text = "path: .\ntrain: images\nval: [images, list.txt]\ntest:\nnames:\n  0: drone\n  1: &a bird\nalias: *a\n"
    (folder / "yolo/data.yaml").write_text(text)
    (folder / "yolo/list.txt").write_text(f"images/{images[0].name}\n")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:28, 30:42] = 255
    for path in images:
        for place in ("yolo/images", "voc", "masks/images"):
            shutil.copy(path, folder / place)
        label = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"
        (folder / "yolo/labels" / f"{path.stem}.txt").write_text(label)
        (folder / "voc" / f"{path.stem}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>{path.name}</filename>'
            "<size><width>64</width><height>64</height></size><object><name>drone</name><difficult>0</difficult><bndbox><xmin>1</xmin>"
            "<ymin>3.5</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object></annotation>"
        )
        cv2.imwrite(str(folder / "masks/masks" / path.name), mask)


def _write_media(folder: Path) -> None:
    """Images and videos of several formats, and an annotation file of the images."""
    folder.mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (48, 64)).astype(np.uint8)
    for suffix in (".png", ".jpg", ".bmp", ".pgm", ".webp", ".tif"):
        cv2.imwrite(str(folder / f"image{suffix}"), np.dstack([grey] * 3) if suffix in (".webp", ".jpg") else grey)
    cv2.imwrite(str(folder / "image16.png"), grey.astype(np.uint16) * 200)
    cv2.imwrite(str(folder / "image32.tif"), grey.astype(np.float32) / 7)
    for name, codec in (("video.mp4", "mp4v"), ("video.avi", "MJPG"), ("video.mkv", "FFV1")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*codec), 30, (64, 48), isColor=False)
        for shift in range(4):
            writer.write(np.roll(grey, shift))
        writer.release()
    images = [
        {"id": i, "file_name": p.name, "width": 64, "height": 48} for i, p in enumerate(sorted(folder.glob("image*")))
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "drone"}]}
    (folder / "media.json").write_text(json.dumps(content))


# fmt: off
VALUES = [
    "", " ", "0", "1", "-1", "2", "0.5", "-0.5", "1e999", "nan", "inf", "1" + "0" * 30, "9" * 5000, "1e-320", "0x10",
    "null", "true", "no", "None", "[]", "[1,2]", "[[[", "{}", "{a: b}", "{", "- a", "&a [*a]", "!!python/none", "a b",
    "a,b", "1,2,3", "64x64", "0x0", "99999999x99999999", "-5x5", "a.png", "coco", "coco/train.json", "run", "missing",
    "run/weights.safetensors", "/dev/null", "/", "~", "../../escaped", "http://127.0.0.1:9/a.mp4",
    "file:///etc/hostname", "drone", "ünï", "\x1b[31m", "a\nb", "[/red]", "\udc80", "x" * 5000, "--score", "-h", "=",
    "cuda", "cuda:99", "all",
]
# fmt: on
"""What options are set to."""
PLAIN_VALUES = ["0", "1", "2", "0.5", "0.9", "true", "64x64", "a.png", "drone", "auto", "coco/val.json"]
"""Values of which many are valid."""


LEFT_OUT = {"out", "json", "out_a", "out_b", "sheet", "workers", "processes", "max_minutes", "images", "val_images"}
LEFT_OUT |= {"video_frames", "resume"}
"""Options that may write outside the output folder, or that only make a command slow."""


def option_commands() -> list[tuple[type, list[str]]]:
    """Short commands whose options are changed, with the class of their options.

    ``danet export`` is left out: torch.export traces a network for half a minute.
    """
    train = ["train", "--data", "coco/train.json", "--out", "../out", "--quiet", *SMALL]
    ablate = "ablate coco/val.json --rows baseline --seeds 0 --out ../out -- --data coco/train.json"
    texts = {
        "detect a.png --out ../out": DetectOptions,
        "evaluate run/weights.safetensors coco/val.json --out ../out": EvaluateOptions,
        "data import coco coco/train.json ../out": CocoOptions,
        "data inspect coco/train.json --sheet ../out/a.png": inspect.Options,
        "data split coco/train.json --out_a ../out/a.json --out_b ../out/b.json": split.Options,
        "data synthesize ../out --images 2 --val_images 1 --size 64x64": SceneOptions,
        "report run --out ../out/report.html": ReportOptions,
    }
    trainings = [train, [*train, "--val", "coco/val.json", "--preset", "demo"], [*train, "--config", "recipe.yaml"]]
    commands: list[tuple[type, list[str]]] = [(options, text.split()) for text, options in texts.items()]
    commands += [(TrainOptions, words) for words in trainings]
    return [*commands, (AblateOptions, [*ablate.split(), *SMALL])]


def change_options(options: type, command: list[str], rng: random.Random) -> list[str]:
    """Sets up to four options to random values, or changes the words of the command."""
    words = list(command)
    names = [each.name for each in list_options(options) if each.name not in LEFT_OUT and not dataclass_type(each.hint)]
    at = words.index("--") if "--" in words else len(words)
    for _ in range(rng.choice([1, 1, 2, 4])):
        change = rng.random()
        if change < 0.1:  # a misspelt name
            words[at:at] = [f"--{rng.choice(names)[:-1]}", rng.choice(VALUES)]
        elif change < 0.2:  # another word, or one too many or too few
            place = rng.randrange(1, len(words) + 1)
            words[place : place + rng.choice([0, 1])] = rng.choice([[], [rng.choice(VALUES)]])
        else:
            values = PLAIN_VALUES if rng.random() < 0.5 else VALUES
            words[at:at] = [f"--{rng.choice(names)}", *rng.choices(values, k=rng.choice([0, 1, 1, 1, 2]))]
    # A very large number of steps is valid input, so that the time of every training is limited.
    return [*words, "--max_minutes", "0.02"] if words[0] == "train" else words
