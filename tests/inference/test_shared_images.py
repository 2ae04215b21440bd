"""danet evaluate and danet detect in two processes of torchrun, compared with one process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from prediction_files import write_dataset

import danet
from danet.checkpoint import SHIPPED
from danet.data.frame_sources import open_source
from danet.data.video import Video
from danet.data.video_writer import VideoWriter
from danet.detect import main as detect
from danet.evaluate import main as evaluate
from danet.inference.shared_sources import SharedSources
from danet.inference.stream import DetectionStream
from danet.inference.video_format import choose_suffix
from danet.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def torchrun(*words, check=True):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, "-m", *words], env=environment, timeout=200, capture_output=True, text=True)
    # On a busy machine, a process sometimes aborts with this message, in about one of ten runs with torch 2.13. The
    # cause is not known; the callers check that all results are written.
    is_known_abort = "terminate called without an active exception" in result.stderr
    assert result.returncode == 0 or is_known_abort or not check, result.stderr
    return result


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def frames(folder, count, black=False):
    folder.mkdir(parents=True)
    for index in range(count):
        image = np.random.default_rng(index).normal(90, 4, (96, 128))
        if index % 4 != 3:
            image[40:48, 60:72] += -60 if black else 80
        cv2.imwrite(str(folder / f"{index:02d}.png"), image.clip(0, 255).astype(np.uint8))


def test_evaluate_in_two_processes_gives_the_same_metrics(tmp_path):
    data, tune = (write_dataset(tmp_path / name, seed) for seed, name in enumerate(("val", "tune")))
    words = [str(SHIPPED), data, "--tune", tune, "--batch", "3", "--threads", "1", "--resamples", "20"]
    words += ["--input_size", "native", "--criterion", "center3"]
    assert evaluate([*words, "--out", str(tmp_path / "one"), "--quiet"]) == 0
    shown = torchrun("danet.evaluate", *words, "--out", str(tmp_path / "two")).stdout
    assert shown.count("danet evaluate:") == 1 and "times of 2 processes" in shown.replace("\n", " ")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "two"))
    assert one == two and len(one) > 10
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for key in ("criteria", "thresholds", "scales", "videos", "false_alarms", "mistakes", "confusion"):
        assert one[key] == two[key], key
    assert two["speed"]["images"] == 18  # all but the first batch of both processes


def test_detect_in_two_processes_gives_the_same_boxes(tmp_path):
    frames(tmp_path / "white", 13)
    frames(tmp_path / "black", 12, black=True)
    (tmp_path / "white" / "04.png").write_bytes(b"broken")
    for name in ("a", "b", "c"):
        with VideoWriter(tmp_path / "clips" / f"{name}.mp4", fps=10) as writer:
            for index in range(4):
                image = np.random.default_rng(ord(name)).normal(90, 4, (96, 128)).clip(0, 255).astype(np.uint8)
                image[30:38, 20 + 8 * index : 32 + 8 * index] = 180
                writer.write(image)
    sources = [str(tmp_path / name) for name in ("white", "clips", "black")]
    words = [*sources, "--score", "0.1", "--classes", "all", "--threads", "1"]
    words += ["--upscale", "1", "--input_size", "native"]
    assert detect([*words, "--out", str(tmp_path / "one"), "--quiet"]) == 1  # an image is left out
    run = torchrun("danet.detect", *words, "--out", str(tmp_path / "two"), check=False)
    assert run.returncode == 1 and run.stderr.count("04.png: not a readable image; it is skipped") == 1
    assert "36 frames" in run.stdout and run.stdout.count("boxes.csv") == 1
    one, two = rows(tmp_path / "one" / "boxes.csv"), rows(tmp_path / "two" / "boxes.csv")
    assert one == two and {Path(row["file"]).parent.name for row in one} == {"white", "clips", "black"}
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        if name.endswith((".png", choose_suffix())):  # videos differ in the random id of their container
            pairs = zip(*(open_source(tmp_path / folder / name) for folder in ("one", "two")), strict=True)
            assert all(np.array_equal(first.image, second.image) for first, second in pairs), name
    again = torchrun("danet.detect", *words[1:], "--out", str(tmp_path / "two"), "--no-save_images")
    assert files(tmp_path / "two-2") == ["boxes.csv", "boxes.json", "config.yaml"], again.stderr


def test_shared_sources_refuse_a_camera():
    camera = Video.__new__(Video)
    camera.live, camera.name = True, "camera0"
    stream = DetectionStream(danet.load())
    with pytest.raises(UserError, match="camera0: a live source cannot be shared by several processes"):
        SharedSources(stream, [camera], [[]], None, iter, max_pixels=1000)
