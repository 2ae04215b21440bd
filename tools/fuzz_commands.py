"""Runs danet commands with damaged files and wrong options: python tools/fuzz_commands.py --cases 2000 --seed 1

Every case copies a small valid input (annotations, weights, a run folder, an image, a video, options), changes it at
random, and runs a command that reads it in a process of its own. The command must do one of three things: succeed,
refuse its input with a short message and exit code 2, or report a fault of the machine with exit code 1. It fails the
case if it

- prints a traceback, or reports an unexpected error (the last handler of danet caught a bug),
- is ended by a signal, for example by a segmentation fault,
- uses more than 20 seconds of CPU time, or does not end,
- leaves a file in its output folder that cannot be read, or a temporary file,
- changes a file of its copy of the input outside its output folder,
- prints more than a few lines of errors, a very long line or an escape character, or refuses without a message, or
- uses more than 3 GB of memory.

The exit code is 0 only if no case fails. ``--keep FOLDER`` keeps the folders of failed cases.
"""

import contextlib
import csv
import dataclasses
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
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
from safetensors.torch import load_file

from danet.__main__ import COMMANDS
from danet.__main__ import main as danet
from danet.data.synthetic.synthesize import Options as SceneOptions
from danet.data.synthetic.synthesize import synthesize
from danet.utils import cli
from danet.utils.files import write_json

CPU_LIMIT_S = 20
CLOCK_LIMIT_S = 300
MEMORY_LIMIT_BYTES = 3 << 30
ADDRESS_SPACE_BYTES = 16 << 30
MAX_ERROR_LINES = 8
BUG_EXIT_CODE = 70
"""Exit code of a process that could not even call the command."""
MAX_LINE_CHARACTERS = 1500
PROBLEMS = ("traceback", "unexpected", "signal", "hang", "unreadable output", "outside", "messages", "memory")
"""Ways to fail, in the order of the table."""
COLUMNS = ("cases", "accepted", "refused", "fault", *PROBLEMS, "CPU s")


SMALL = [
    *("--model.name", "danet_nano", "--model.widths", "[8, 8, 16, 16]", "--model.depths", "[1, 1, 1, 1]"),
    *("--model.neck_width", "8", "--augmentation.crop", "64x64", "--workers", "0", "--epochs", "1"),
]
"""Options of a training with a very small network."""

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass
class Options:
    """Options of tools/fuzz_commands.py."""

    cases: int = 2000
    """Number of cases, divided equally among the kinds of input."""

    seed: int = 0
    """Seed of the changes."""

    kinds: list[str] = field(default_factory=list)
    """Kinds of input, by the first column of the table; by default all."""

    jobs: int = 2
    """Commands that run at the same time."""

    labels: str | None = None
    """Folder with IR_DRONE_*.mp4 and their .mat files, for the kind mat; without it that kind is left out."""

    keep: str | None = None
    """Folder for the failed cases."""

    json: str | None = None
    """Also write the table to this file."""


@dataclass
class Kind:
    """One kind of input.

    Args:
        name: first column of the table.
        source: folder of the valid input, which every case copies.
        file: the file in it that is changed; a pattern stands for one of the files that match it.
        commands: words after ``danet``; one of them is chosen. They run in the copy and write into ``../out``.
        mutations: one of them is chosen; none if the options are changed.
        writes: a folder of the input that the command may write into.
    """

    name: str
    source: str
    file: str
    commands: list[list[str]]
    mutations: tuple[Mutation, ...]
    writes: str | None = None


@dataclass
class Case:
    """A command that was started."""

    number: int
    kind: Kind
    folder: Path
    command: list[str]
    files_before: dict[str, tuple[int, int]]
    """The files of the case outside its output folder, as ``_snapshot`` returns them."""
    deadline: float


def main() -> int:
    # Not cli.run, which redirects the error output of this process: the commands must find it as in a shell.
    return run(cli.parse(Options, sys.argv[1:], prog="tools/fuzz_commands.py", about=run.__doc__ or ""))


def run(options: Options) -> int:
    """Runs danet commands with damaged files and wrong options."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    table: dict[str, Counter] = {}
    findings: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="danet-fuzz-") as name:
        root = Path(name)
        kinds = build_inputs(root / "inputs", options.labels)
        chosen = [kind for kind in kinds if not options.kinds or kind.name in options.kinds]
        import_commands()
        OPTION_NAMES.update(_option_names())
        check_inputs(chosen, root)
        running: dict[int, Case] = {}
        for number in range(options.cases):
            while len(running) >= options.jobs:
                _finish_one(running, table, findings, options.keep)
            kind = chosen[number % len(chosen)]
            pid, case = _start(number, kind, root, random.Random(f"{options.seed}/{number}"))
            running[pid] = case
        while running:
            _finish_one(running, table, findings, options.keep)
    _print_table(table)
    for finding in findings:
        print(f"case {finding['case']} ({finding['kind']}): {', '.join(finding['problems'])}\n  {finding['command']}")
        print(f"  {finding['message'][:600]}")
    if options.json is not None:
        rows = {name: {column: round(counts[column]) for column in COLUMNS} for name, counts in table.items()}
        write_json(options.json, {"cases": options.cases, "seed": options.seed, "table": rows, "findings": findings})
    return 1 if findings else 0


def import_commands() -> None:
    """Imports everything that the commands import, so that the process of a case starts at once."""
    for module, _ in COMMANDS.values():
        importlib.import_module(module)
    for module in ("danet.data.inspect", "danet.data.split", "danet.training.run", "danet.training.ablation_study"):
        importlib.import_module(module)
    for path in (Path(cli.__file__).parents[1]).rglob("*.py"):
        parts = path.relative_to(Path(cli.__file__).parents[2]).with_suffix("").parts
        if parts[-1] not in ("__main__", "__init__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(".".join(parts))
    for module in ("onnxruntime", "av", "matplotlib.pyplot", "faster_coco_eval", "matio", "rich.console"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def build_inputs(folder: Path, labels: str | None) -> list[Kind]:
    """Writes a valid input of every kind."""
    data = folder / "coco"
    synthesize(SceneOptions(str(data), images=3, val_images=2, size="64x64", video_frames=0, quiet=True))
    training = [
        *SMALL,
        "--epochs",
        "1",
        "--val_every",
        "1",
        "--batch",
        "2",
        "--threads",
        "1",
        "--save_every_steps",
        "1",
    ]
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
            writes=".",
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
            writes=".",
        ),
        Kind("run log", "run", "*.csv", [["report", ".", "--out", "../out/report.html"]], (mutate_text, mutate_words)),
        Kind(
            "evaluation",
            "evaluation",
            "*.json",
            [["report", ".", "--out", "../out/report.html"]],
            text_json,
        ),
        Kind("options", "options", "", option_commands(), ()),
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


def option_commands() -> list[list[str]]:
    """Short commands whose options are changed. ``danet export`` is left out: torch.export traces for half a minute."""
    train = ["train", "--data", "coco/train.json", "--out", "../out", "--quiet", *SMALL]
    ablate = "ablate coco/val.json --rows baseline --seeds 0 --out ../out -- --data coco/train.json"
    texts = [
        "detect a.png --out ../out",
        "evaluate run/weights.safetensors coco/val.json --out ../out",
        "data import coco coco/train.json ../out",
        "data inspect coco/train.json --sheet ../out/a.png",
        "data split coco/train.json --out_a ../out/a.json --out_b ../out/b.json",
        "data synthesize ../out --images 2 --val_images 1 --size 64x64",
        "report run --out ../out/report.html",
    ]
    trainings = [train, [*train, "--val", "coco/val.json", "--preset", "demo"], [*train, "--config", "recipe.yaml"]]
    return [*(text.split() for text in texts), *trainings, [*ablate.split(), *SMALL]]


def _change_options(command: list[str], rng: random.Random) -> list[str]:
    """Sets up to four options to random values, or changes the words of the command."""
    words = list(command)
    depth = 3 if words[:2] == ["data", "import"] else 2 if words[0] == "data" else 1
    names = OPTION_NAMES[" ".join(words[:depth])]
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
    # A training with an absurd number of steps is honest work: it ends at its time limit.
    return [*words, "--max_minutes", "0.02"] if words[0] == "train" else words


def _option_names() -> dict[str, list[str]]:
    """The options of each command, without those that would rightly read or write outside, or run for long."""
    from danet.data import inspect, split
    from danet.data.importers.coco import Options as CocoOptions
    from danet.detect import DetectOptions
    from danet.evaluation.ablate_options import AblateOptions
    from danet.evaluation.evaluate_options import EvaluateOptions
    from danet.report.__main__ import ReportOptions
    from danet.training.options import TrainOptions

    commands = {
        "train": TrainOptions,
        "detect": DetectOptions,
        "evaluate": EvaluateOptions,
        "data import coco": CocoOptions,
        "data inspect": inspect.Options,
        "data split": split.Options,
        "data synthesize": SceneOptions,
        "report": ReportOptions,
        "ablate": AblateOptions,
    }
    return {command: list(_names(kind)) for command, kind in commands.items()}


LEFT_OUT = {"out", "json", "out_a", "out_b", "sheet", "workers", "processes", "max_minutes", "images", "val_images"}
LEFT_OUT |= {"video_frames", "resume"}


def _names(kind: type, prefix: str = "") -> Iterator[str]:
    from danet.utils.typed_options import dataclass_type

    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        inner = dataclass_type(hints[each.name])
        if inner is not None:
            yield from _names(inner, f"{prefix}{each.name}.")
        elif prefix or each.name not in LEFT_OUT:
            yield prefix + each.name


OPTION_NAMES: dict[str, list[str]] = {}


def _start(number: int, kind: Kind, root: Path, rng: random.Random) -> tuple[int, Case]:
    """Copies and changes the input, and starts the command; returns its process id and the case."""
    folder = root / f"case{number}"
    work = folder / "work"
    shutil.copytree(root / "inputs" / kind.source, work)
    command = rng.choice(kind.commands)
    if kind.mutations:
        path = rng.choice(sorted(work.glob(kind.file)))
        path.write_bytes(_changed(path.read_bytes(), kind.mutations, rng))
        command = [path.name if word == "FILE" else word for word in command]
    else:
        command = _change_options(command, rng)
    files = _snapshot(folder, kind.writes)
    return _fork(command, work), Case(number, kind, folder, command, files, time.monotonic() + CLOCK_LIMIT_S)


def _fork(command: list[str], work: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _run_command(command, work)
    return pid


def check_inputs(kinds: list[Kind], root: Path) -> None:
    """Raises RuntimeError unless every command succeeds with the unchanged input: otherwise its cases test nothing."""
    for kind in kinds:
        files = [path.name for path in sorted((root / "inputs" / kind.source).glob(kind.file or "*"))]
        for command in kind.commands:
            for file in files if "FILE" in command else files[:1]:
                words = [file if word == "FILE" else word for word in command]
                folder = root / "check"
                shutil.copytree(root / "inputs" / kind.source, folder / "work")
                _, status = os.waitpid(_fork(words, folder / "work"), 0)
                if status != 0:
                    raise RuntimeError(f"{kind.name}: {words} fails: {(folder / 'stderr').read_text()}")
                shutil.rmtree(folder)


def _changed(content: bytes, mutations: tuple[Mutation, ...], rng: random.Random) -> bytes:
    for _ in range(100):
        changed = rng.choice(mutations)(content, rng)
        if changed != content:
            return changed
    raise RuntimeError("no mutation changes the file")


def _run_command(command: list[str], work: Path) -> None:
    """Runs a danet command in this process, with limits, and ends the process."""
    code = BUG_EXIT_CODE
    try:
        os.chdir(work)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, name in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_LIMIT_S, used + CPU_LIMIT_S + 5))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        try:
            code = danet(command)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _finish_one(running: dict[int, Case], table: dict[str, Counter], findings: list[dict], keep: str | None) -> None:
    """Waits for the next command that ends, and judges it."""
    late: set[int] = set()
    while True:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid in running:
            break
        for each, case in running.items():
            if time.monotonic() > case.deadline and each not in late:
                os.kill(each, signal.SIGKILL)
                late.add(each)
        time.sleep(0.002)
    case = running.pop(pid)
    code = os.waitstatus_to_exitcode(status)
    counts = table.setdefault(case.kind.name, Counter())
    counts["cases"] += 1
    counts["CPU s"] += usage.ru_utime + usage.ru_stime
    counts[{0: "accepted", 1: "fault", 2: "refused"}.get(code, "other")] += 1
    problems, message = judge(case, code, usage, late=pid in late)
    for problem in problems:
        counts[problem.partition(":")[0]] += 1
    if problems:
        record = {"case": case.number, "kind": case.kind.name, "problems": problems, "code": code, "message": message}
        findings.append({**record, "command": " ".join(f"{word[:60]!a}" for word in case.command)})
        if keep is not None:
            shutil.copytree(case.folder, Path(keep) / f"case{case.number}", dirs_exist_ok=True)
    shutil.rmtree(case.folder)


def judge(case: Case, code: int, usage: resource.struct_rusage, *, late: bool) -> tuple[list[str], str]:
    """What is wrong with the result of a command, by PROBLEMS, and the end of its error output."""
    errors = (case.folder / "stderr").read_bytes().decode(errors="replace")
    printed = errors + (case.folder / "stdout").read_bytes().decode(errors="replace")
    problems = []
    if "Traceback (most recent call last)" in printed:
        problems.append("traceback")
    if "this is a bug of DANet" in printed or (code not in (0, 1, 2) and code >= 0):
        problems.append("unexpected")
    if late or code == -signal.SIGXCPU:
        problems.append("hang")
    elif code < 0:
        problems.append(f"signal: {signal.Signals(-code).name}")
    lines = errors.splitlines()
    if len(lines) > MAX_ERROR_LINES or any(len(line) > MAX_LINE_CHARACTERS for line in lines) or "\x1b" in errors:
        problems.append(f"messages: {len(lines)} lines")
    if code == 2 and not lines:
        problems.append("messages: none")
    if usage.ru_maxrss * 1024 > MEMORY_LIMIT_BYTES:
        problems.append(f"memory: {usage.ru_maxrss / 1e6:.1f} GB")
    if code >= 0:
        written = [case.folder / "out"] + ([case.folder / "work" / case.kind.writes] if case.kind.writes else [])
        problems += [f"unreadable output: {each}" for folder in written for each in _unreadable(folder, case)]
    now = _snapshot(case.folder, case.kind.writes)
    changed = sorted(
        name for name in case.files_before.keys() | now.keys() if case.files_before.get(name) != now.get(name)
    )
    problems += [f"outside: {name}" for name in changed[:3]]
    return problems, errors[-1500:]


def _snapshot(folder: Path, writes: str | None) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files of a case outside its output folder."""
    left_out = {folder / "out", folder / "stdout", folder / "stderr"} | (
        {folder / "work" / writes} if writes else set()
    )
    files = {}
    for name, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if Path(name, each) not in left_out]
        for path in (Path(name, each) for each in names):
            if path not in left_out:
                files[str(path.relative_to(folder))] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return files


def _unreadable(folder: Path, case: Case) -> Iterator[str]:
    """Files of an output folder that are temporary or cannot be read; the changed input itself is not judged."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.name.startswith("."):
            yield f"temporary file {path.name}"
        elif path.is_file() and not (case.kind.writes and path.match(case.kind.file)):
            try:
                _read(path)
            except Exception as error:  # any problem is a finding
                yield f"{path.name} ({type(error).__name__}: {str(error)[:80]})"


def _read(path: Path) -> None:
    """Raises an exception if a file is not complete."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len({len(row) for row in rows}) <= 1
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix in (".png", ".jpg"):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
    elif path.suffix in (".mp4", ".webm"):
        assert cv2.VideoCapture(str(path)).read()[0]


def _print_table(table: dict[str, Counter]) -> None:
    print(f"| {'input':12} | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    total: Counter = Counter()
    for name, counts in table.items():
        total.update(counts)
        print(f"| {name:12} | {' | '.join(str(round(counts[column])) for column in COLUMNS)} |")
    print(f"| {'all':12} | {' | '.join(str(round(total[column])) for column in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
