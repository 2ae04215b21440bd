import csv
import functools
import http.server
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from tiff_files import encode_tiff

import danet
from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.frame_sources import open_source
from danet.data.video_writer import VideoWriter
from danet.detect import main
from danet.inference.video_format import choose_suffix
from danet.models import build_model

SUFFIX = choose_suffix()
"""Of annotated videos: .mp4 or .webm, by the codecs of OpenCV."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A danet_nano with random weights; its scores spread around 0.01."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"])))
    return str(path)


def scene(seed=0, size=(96, 128), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 5, size)
    image[40:46, 60:70] += 100
    return image.astype(dtype)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), scene(index))
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_folder_results_match_the_python_interface(weights, images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--weights", weights, "--out", str(out), "--score", "0.001", "--max_detections", "7", "--upscale", "1"]
    assert main([str(images), *arguments, "--json", str(tmp_path / "figures.json")]) == 0
    assert files(out) == ["boxes.csv", "boxes.json", "config.yaml", *(f"frames/{index}.png" for index in range(5))]

    detector = danet.load(weights, score_threshold=0.001, max_detections=7)
    table = rows(out / "boxes.csv")
    for index in range(5):
        path = images / f"{index}.png"
        found = detector(path)
        mine = [row for row in table if row["file"] == str(path)]
        assert len(mine) == len(found.scores) > 0
        boxes = [[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in mine]
        assert np.allclose(boxes, found.boxes, atol=0.01)
        assert np.allclose([float(row["score"]) for row in mine], found.scores, atol=1e-4)
        assert [row["class"] for row in mine] == [detector.classes[label] for label in found.labels]

    content = json.loads((out / "boxes.json").read_text())
    assert content["frames"] == 5 and content["classes"] == ["drone", "bird"]
    assert {row.pop("time") for row in content["boxes"]} == {None} and {row.pop("time") for row in table} == {""}
    assert [{key: str(value) for key, value in row.items()} for row in content["boxes"]] == table
    picture = cv2.imread(str(out / "frames" / "0.png"))
    assert picture.shape == (96, 128, 3) and not np.array_equal(picture[..., 0], picture[..., 2]), "boxes are drawn"

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == 5 and sum(figures["boxes"].values()) == len(table)
    assert 0 < figures["network_seconds"] <= figures["seconds"] and figures["batch"] == 1

    printed = capsys.readouterr().out
    assert "operators" in printed.splitlines()[0]
    assert f"5 frames, {len(table)} boxes" in printed and "frames/s" in printed
    assert re.search(r"per frame: reading [\d.]+ ms, network and decoding [\d.]+ ms, drawing and writing", printed)
    assert f"{out}/frames (5 images)" in printed and f"{out}/boxes.csv" in printed


def test_batch_and_threads_do_not_change_the_boxes(weights, images, tmp_path):
    cv2.imwrite(str(images / "2b.png"), scene(9, size=(64, 80)))
    common = ["--weights", weights, "--score", "0.001", "--max_detections", "5", "--quiet"]
    assert main([str(images), "--out", str(tmp_path / "one"), *common]) == 0
    assert main([str(images), "--out", str(tmp_path / "four"), "--batch", "4", "--threads", "1", *common]) == 0
    one, four = rows(tmp_path / "one" / "boxes.csv"), rows(tmp_path / "four" / "boxes.csv")
    assert len(one) == len(four) > 0
    assert [row["file"] for row in one] == [row["file"] for row in four]
    assert np.allclose([float(r["x0"]) for r in one], [float(r["x0"]) for r in four], atol=0.05)


def test_video_gives_an_annotated_video(weights, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, fps=12) as writer:
        for index in range(6):
            writer.write(scene(index))
    out = tmp_path / "out"
    arguments = ["--weights", weights, "--out", str(out), "--score", "0.001", "--max_detections", "3"]
    assert main([str(clip), *arguments, "--upscale", "2"]) == 0
    assert files(out) == ["boxes.csv", "boxes.json", f"clip{SUFFIX}", "config.yaml"]
    frames = list(open_source(out / f"clip{SUFFIX}"))
    assert len(frames) == 6 and frames[0].image.shape == (192, 256, 3)
    assert {row["frame"] for row in rows(out / "boxes.csv")} == set("012345")
    assert "18 boxes" in capsys.readouterr().out
    # Boxes are in pixels of the source, not of the enlarged video.
    assert max(float(row["x1"]) for row in rows(out / "boxes.csv")) <= 128


def test_folder_of_images_and_videos_and_a_pattern(weights, images, tmp_path, capfd):
    with VideoWriter(images / "clip.mp4", fps=20) as writer:
        for index in range(3):
            writer.write(scene(index))
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:900])
    (images / "stack.tif").write_bytes(encode_tiff([scene(index, dtype=np.uint16) for index in range(2)]))
    common = ["--weights", weights, "--score", "0.001", "--max_detections", "3", "--quiet"]
    common += ["--video_format", "mp4", "--upscale", "1"]
    out = tmp_path / "out"
    assert main([str(images), "--out", str(out), *common]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"{images}/1.png: not a readable image; it is skipped"
    pictures = [f"frames/{index}.png" for index in (0, 2, 3, 4)]
    assert files(out) == ["boxes.csv", "boxes.json", "clip.mp4", "config.yaml", *pictures, "stack.mp4"]
    # The picture of an image is that of the same name, although one in the middle is left out.
    for index in (2, 3, 4):
        shown = cv2.imread(str(out / "frames" / f"{index}.png"))
        assert np.mean(shown[..., 0] == scene(index)) > 0.5
    table = rows(out / "boxes.csv")
    assert len(table) == 3 * (4 + 3 + 2)
    assert {row["time"] for row in table if row["file"].endswith("clip.mp4")} == {"0.0", "0.05", "0.1"}
    assert {row["frame"] for row in table if row["file"].endswith("stack.tif")} == {"0", "1"}
    quoted = tmp_path / "quoted"
    assert main([str(images / "*.mp4"), "--out", str(quoted), *common]) == 0
    assert files(quoted) == ["boxes.csv", "boxes.json", "clip.mp4", "config.yaml"]
    assert capfd.readouterr().err == ""


def test_passwords_of_urls_are_neither_printed_nor_stored(weights, tmp_path, capfd):
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for index in range(3):
            writer.write(scene(index))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://user:s3cret@127.0.0.1:{server.server_port}/clip.mp4?token=s3cret"
    out = tmp_path / "out"
    common = ["--weights", weights, "--out", str(out), "--score", "0.001", "--max_detections", "3"]
    common += ["--video_format", "mp4"]
    assert main([url, *common]) == 0
    assert main([url.replace("clip", "none"), *common]) == 2
    assert main([url, *common, "--print_config", "--unknown", url]) == 2
    with pytest.raises(SystemExit):
        main([url, *common, "--print_config"])
    server.shutdown()
    printed = capfd.readouterr()
    assert "s3cret" not in printed.out + printed.err and "http://***@127.0.0.1" in printed.err
    assert files(out) == ["boxes.csv", "boxes.json", "clip.mp4", "config.yaml"]
    for name in ("boxes.csv", "boxes.json", "config.yaml"):
        content = (out / name).read_text()
        assert "s3cret" not in content and "/clip.mp4?token=***" in content


def test_16_bit_video_gives_the_boxes_of_its_frames(tmp_path):
    """A 14-bit sensor: the target is 600 counts above a sky of +-20, of which 8 bits would leave two levels."""
    frame = (8000 + np.random.default_rng(0).normal(0, 20, (96, 128))).astype(np.uint16)
    frame[40:46, 60:68] = 8600
    parameters = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.mkv"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 30.0, (128, 96), parameters
    )
    writer.write(frame)
    writer.release()
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    boxes = []
    for name in ("frame.png", "clip.mkv"):
        assert main([str(tmp_path / name), "--out", str(tmp_path / "out"), "--score", "0.05", "--quiet"]) == 0
        boxes.append([{**row, "file": "", "time": ""} for row in rows(tmp_path / "out" / "boxes.csv")])
    assert boxes[0] == boxes[1] and len(boxes[0]) > 0


def test_truncated_video_is_processed_and_reported(weights, tmp_path, capfd):
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (128, 96), isColor=False)
    for index in range(12):
        writer.write(scene(index))
    writer.release()
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    assert main([str(tmp_path / "cut.avi"), "--weights", weights, "--out", str(out), "--quiet"]) == 1
    count = len(list(open_source(out / f"cut{SUFFIX}")))
    assert 3 <= count < 12
    (line,) = capfd.readouterr().err.splitlines()
    assert "cut.avi: ends early" in line and f"frame {count} of 12" in line


def test_16_bit_and_jpeg_images_and_disabled_outputs(weights, tmp_path):
    cv2.imwrite(str(tmp_path / "raw.tif"), scene(dtype=np.uint16) * 4 + 8000)
    cv2.imwrite(str(tmp_path / "photo.jpg"), scene())
    sources = [str(tmp_path / "raw.tif"), str(tmp_path / "photo.jpg")]
    out = tmp_path / "out"
    assert main([*sources, "--weights", weights, "--out", str(out), "--upscale", "1", "--quiet"]) == 0
    assert files(out) == ["boxes.csv", "boxes.json", "config.yaml", "photo.jpg", "raw.png"]
    picture = cv2.imread(str(out / "raw.png"))
    assert picture[42:44, 62:68].min() > 200 and picture[:30].mean() < 120, "the hot target is bright, the sky is dark"
    bare = tmp_path / "bare"
    switches = ["--save_images", "false", "--save_json", "false", "--quiet"]
    assert main([*sources, "--weights", weights, "--out", str(bare), *switches]) == 0
    assert files(bare) == ["boxes.csv", "config.yaml"]


def test_equal_names_get_different_output_paths(weights, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), scene())
    cv2.imwrite(str(tmp_path / "a" / "x.bmp"), scene())
    out = tmp_path / "out"
    sources = [str(tmp_path / "a"), str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")]
    assert main([*sources, "--weights", weights, "--out", str(out), "--quiet"]) == 0
    assert files(out) == ["a/x.png", "a/x_2.png", "boxes.csv", "boxes.json", "config.yaml", "x.png", "x_2.png"]


def test_output_never_replaces_a_source(weights, images, capsys):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    assert main([str(images), "--weights", weights, "--out", str(images.parent)]) == 2
    assert "would replace the source" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_json_replaces_neither_the_weights_nor_the_boxes(weights, images, tmp_path, capsys):
    out = tmp_path / "out"
    base = ["--weights", weights, str(images / "0.png"), "--out", str(out), "--quiet", "--json"]
    assert main([*base, weights]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert main([*base, str(out / "boxes.json")]) == 2
    assert "boxes.json: would be written twice" in capsys.readouterr().err and not out.exists()
    assert main(base[:-1]) == 0
    assert main([*base, str(out / "boxes.json")]) == 2  # of the earlier run
    assert not (tmp_path / "out-2").exists() and json.loads((out / "boxes.json").read_text())["frames"]


def test_invalid_input_is_one_line_and_writes_nothing(weights, images, tmp_path, capfd):
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    cv2.imwrite(str(broken / "a.png"), scene())
    (broken / "b.png").write_bytes((broken / "a.png").read_bytes()[:40])
    (tmp_path / "clip.mp4").write_text("not a video")
    out = tmp_path / "out"
    cases = [
        ([str(images), "--weights", str(text)], "text.safetensors"),
        ([str(images), "--weights", str(tmp_path / "none.safetensors")], "none.safetensors"),
        ([str(tmp_path / "nowhere"), "--weights", weights], "nowhere"),
        ([str(empty), "--weights", weights], "empty: no images"),
        ([str(broken / "b.png"), "--weights", weights], "b.png"),
        ([str(tmp_path / "*.mkv"), "--weights", weights], "no file or folder matches"),
        ([str(images), "--weights", weights, "--max_pixels", "100"], "0.png: the image is too large"),
        ([str(images), "--weights", weights, "--max_pixels", "0"], "--max_pixels"),
        ([str(tmp_path / "clip.mp4"), "--weights", weights], "clip.mp4"),
        ([str(images), str(tmp_path / "clip.mp4"), "--weights", weights], "clip.mp4"),
        ([str(images), "--weights", weights, "--score", "7"], "--score"),
        ([str(images), "--weights", weights, "--scroe", "0.7"], "did you mean --score"),
        ([str(images), "--weights", weights, "--batch", "0"], "--batch"),
        ([str(images), "--weights", weights, "--upscale", "0"], "--upscale"),
        ([str(images), "--weights", weights, "--input_size", "8"], "--input_size"),
        ([str(images), "--weights", weights, "--device", "abacus"], "--device must be auto, cpu, cuda, cuda:N or N"),
    ]
    for arguments, expected in cases:
        assert main([*arguments, "--out", str(out)]) == 2, arguments
        captured = capfd.readouterr()
        assert len(captured.err.splitlines()) == 1 and expected in captured.err, (arguments, captured.err)
        assert not out.exists(), arguments


def test_input_size_matches_the_python_interface(weights, images, tmp_path):
    out = tmp_path / "out"
    options = ["--weights", weights, "--score", "0.001", "--quiet", "--out", str(out)]
    assert main([str(images / "0.png"), *options, "--input_size", "192", "256"]) == 0
    found = danet.load(weights, score_threshold=0.001, input_size=(192, 256))(images / "0.png")
    boxes = [[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in rows(out / "boxes.csv")]
    assert np.allclose(boxes, found.boxes, atol=0.01)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.long),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        pytest.param(signal.SIGHUP, 129, "stopped by SIGHUP", marks=pytest.mark.long),
    ],
)
def test_stop_signal_completes_the_outputs(weights, tmp_path, number, code, words):
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip) as writer:
        for index in range(1500):
            writer.write(scene(index % 7))
    out = tmp_path / "out"
    # Large images, so that the buffer of the encoder soon reaches the disk.
    options = ["--out", str(out), "--score", "0.001", "--max_detections", "2", "--threads", "1", "--upscale", "6"]
    command = [sys.executable, "-m", "danet.detect", str(clip), "--weights", weights, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not (out.exists() and any(p.stat().st_size > 10_000 for p in out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{words} after" in errors and "Traceback" not in errors
    assert files(out) == ["boxes.csv", "boxes.json", f"clip{SUFFIX}", "config.yaml"]
    frames = sum(1 for _ in open_source(out / f"clip{SUFFIX}"))
    assert 0 < frames < 1500
    content = json.loads((out / "boxes.json").read_text())
    assert frames == content["frames"] and len(content["boxes"]) == len(rows(out / "boxes.csv")) > 0


def test_importing_danet_loads_no_heavy_packages():
    code = "import sys, danet; print(danet.__version__, *(m for m in ('torch', 'cv2', 'numpy') if m in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": ""}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert printed.stdout.split() == [danet.__version__]


def test_saved_config_repeats_the_run_and_foreign_out_fails(weights, images, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["--weights", weights, "--score", "0.01", str(images / "0.png"), "--out", str(out), "--quiet"]) == 0
    assert main(["--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert files(again) == files(out) and rows(again / "boxes.csv") == rows(out / "boxes.csv")
    (again / "config.yaml").write_text("epochs: 3\n")
    for folder, words in ((again, "belongs to another command"), (images / "0.png", "is a file")):
        assert main(["--config", str(out / "config.yaml"), "--out", str(folder)]) == 2
        assert words in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_full_disk_completes_the_outputs(weights, tmp_path, monkeypatch, capfd):
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip) as writer:
        for index in range(8):
            writer.write(scene(index))
    free = iter([1 << 30] * 3 + [1 << 20] * 10)
    usage = type("Usage", (), {"free": property(lambda self: next(free))})()
    monkeypatch.setattr("danet.data.video_writer.shutil.disk_usage", lambda path: usage)
    out = tmp_path / "out"
    assert main([str(clip), "--weights", weights, "--out", str(out), "--score", "0.001", "--quiet"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"clip{SUFFIX}: the disk is full; the video ends after 3 frames" in line
    assert files(out) == ["boxes.csv", "boxes.json", f"clip{SUFFIX}", "config.yaml"]
    assert len(list(open_source(out / f"clip{SUFFIX}"))) == 3
    content = json.loads((out / "boxes.json").read_text())
    assert content["frames"] >= 3 and len(content["boxes"]) == len(rows(out / "boxes.csv")) > 0


def test_full_disk_completes_the_boxes(weights, images, tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    out = tmp_path / "out"
    options = ["--weights", weights, "--out", str(out), "--score", "0.001", "--max_detections", "20", "--quiet"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        assert main([str(images), *options, "--save_images", "false"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (line,) = capfd.readouterr().err.splitlines()
    assert "boxes.json: cannot be written (File too large)" in line
    assert files(out) == ["boxes.csv", "boxes.json", "config.yaml"]
    content = json.loads((out / "boxes.json").read_text())
    assert 0 < content["frames"] < 5 and len(content["boxes"]) == len(rows(out / "boxes.csv")) == 20 * content["frames"]


def test_earlier_results_are_not_replaced(weights, images, tmp_path, capsys):
    base = ["--weights", weights, str(images / "0.png")]
    out = tmp_path / "out"
    assert main([*base, "--out", str(out), "--quiet"]) == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    assert main([*base, "--out", str(out)]) == 0
    assert f"{out} holds an earlier run; the results go to {out}-2 (--overwrite replaces it)" in capsys.readouterr().out
    assert main([*base, "--out", str(out), "--quiet", "--score", "0.001"]) == 0
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert files(tmp_path / "out-2") == files(tmp_path / "out-3") == files(out)
    assert len(rows(tmp_path / "out-3" / "boxes.csv")) > 0
    assert main([*base, "--out", str(out), "--quiet", "--score", "0.001", "--overwrite"]) == 0
    assert not (tmp_path / "out-4").exists() and len(rows(out / "boxes.csv")) > 0


@pytest.mark.parametrize("table", ["csv", "json"])
def test_overwrite_removes_the_table_that_is_switched_off(weights, images, tmp_path, table):
    out = tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--no-save-images", "--quiet"]
    assert main([str(images / "0.png"), *words]) == 0
    assert main([str(images / "1.png"), *words, "--overwrite", f"--no-save-{table}"]) == 0
    other = {"csv": "json", "json": "csv"}[table]
    assert files(out) == [f"boxes.{other}", "config.yaml"]


def test_foreign_files_are_not_replaced(weights, images, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "0.png").write_text("mine")
    base = ["--weights", weights, str(images / "0.png"), "--quiet"]
    assert main([*base, "--out", str(folder)]) == 0
    assert (folder / "0.png").read_text() == "mine" and (tmp_path / "mine-2" / "0.png").exists()
    monkeypatch.chdir(folder)
    assert main([*base, "--out", "."]) == 2
    error = capsys.readouterr().err
    assert "--out .: holds an earlier run; --overwrite replaces it" in error and error.count("\n") == 1


def test_other_cameras_and_runs_without_boxes_are_explained(tmp_path, capsys):
    sky = np.random.default_rng(0).normal(90, 3, (512, 640)).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "sky.png"), sky)
    options = ["--out", str(tmp_path / "out"), "--save_images", "false"]
    assert main([str(tmp_path / "sky.png"), *options]) == 0
    printed = capsys.readouterr().out
    assert "frames of 640 x 512 pixels are scaled to 293 x 235" in printed and "--input_size native" in printed
    (advice,) = [line for line in printed.splitlines() if line.startswith("no boxes; try ")]
    assert all(word in advice for word in ("--score", "--polarity black", "--input_size native", "--classes all"))
    content = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert content["reported_classes"] == ["drone"] and len(content["classes"]) == 4
    arguments = ["--input_size", "native", "--polarity", "black", "--classes", "all"]
    assert main([str(tmp_path / "sky.png"), *options, *arguments]) == 0
    assert "are scaled to" not in capsys.readouterr().out
    for words, expected in (
        (["--input_size", "native", "64"], "--input_size must be native, or one or two integers"),
        (["--input_size", "99999"], "integers from 32 to 16384 pixels"),
        (["--polarity", "red"], "--polarity"),
        (["--classes", "plane"], "'plane' is no class of the model"),
    ):
        assert main([str(tmp_path / "sky.png"), *options, *words]) == 2
        assert expected in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_box_files_without_boxes_are_valid(weights, images, tmp_path):
    out = tmp_path / "out"
    assert main([str(images), "--weights", weights, "--out", str(out), "--score", "1", "--quiet"]) == 0
    assert json.loads((out / "boxes.json").read_text())["boxes"] == [] == rows(out / "boxes.csv")


@pytest.mark.parametrize("switches", [["--no-deploy"], ["--dtype", "float32", "--deploy", "true"], ["--threads", "1"]])
def test_deploy_dtype_and_threads_do_not_change_the_boxes(weights, images, tmp_path, switches):
    options = ["--weights", weights, "--score", "0.001", "--max_detections", "5", "--quiet"]
    results = []
    for name, more in (("a", []), ("b", switches)):
        assert main([str(images), "--out", str(tmp_path / name), *options, *more]) == 0
        results.append([float(row["x0"]) for row in rows(tmp_path / name / "boxes.csv")])
    assert len(results[0]) == 25 and np.allclose(*results, atol=0.05)


def test_frames_of_different_sizes_in_one_source(weights, images, tmp_path):
    cv2.imwrite(str(images / "2b.png"), scene(9, size=(64, 80)))
    out = tmp_path / "out"
    assert main([str(images), "--weights", weights, "--out", str(out), "--batch", "3", "--quiet"]) == 0
    # Small frames are enlarged so that their text is legible, at most four times.
    assert cv2.imread(str(out / "frames" / "2b.png")).shape == (256, 320, 3)
    assert cv2.imread(str(out / "frames" / "2.png")).shape == (384, 512, 3)


def test_wide_images_are_enlarged_less_and_those_that_cannot_be_written_are_skipped(weights, tmp_path, capfd):
    (tmp_path / "frames").mkdir()
    for name, width in (("1.jpg", 1500), ("2.jpg", 20_000), ("3.jpg", 1000)):
        cv2.imwrite(str(tmp_path / "frames" / name), np.full((40, width), 90, np.uint8))
    words = [str(tmp_path / "frames"), "--weights", weights, "--quiet"]
    assert main([*words, "--out", str(tmp_path / "auto")]) == 0
    shapes = [cv2.imread(str(tmp_path / "auto" / "frames" / f"{i}.jpg")).shape[:2] for i in (1, 2, 3)]
    assert shapes == [(80, 3000), (40, 20_000), (160, 4000)]
    assert main([*words, "--upscale", "4", "--out", str(tmp_path / "out")]) == 1
    assert [path.name for path in sorted((tmp_path / "out" / "frames").iterdir())] == ["1.jpg", "3.jpg"]
    assert (tmp_path / "out" / "boxes.json").exists()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("2.jpg: cannot be written; the format .jpg does not allow 80000 x 160 pixels; it is skipped")


def test_live_source_drops_frames_that_come_too_fast(weights, tmp_path, monkeypatch, capfd):
    pictures = iter([np.full((96, 128, 3), 90, np.uint8)] * 400)

    class Camera:
        def __init__(self, source):
            pass

        def isOpened(self):
            return True

        def read(self):
            picture = next(pictures, None)
            return picture is not None, picture

        def get(self, _):
            return 0.0

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr("danet.data.video.RECONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr("danet.data.video.RECONNECT_INTERVAL_S", 0.01)
    out = tmp_path / "out"
    assert main(["0", "--weights", weights, "--out", str(out)]) == 1
    content = json.loads((out / "boxes.json").read_text())
    printed = capfd.readouterr()
    assert content["frames"] + content["dropped"] == 400 and content["dropped"] > 0
    assert f"{content['dropped']} more frames were dropped" in printed.out
    assert "camera0: connection lost after frame 399" in printed.err


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from danet.config import ModelConfig
from danet.data.video import Frame, Video
from danet.inference.annotated_output import AnnotatedOutput
from danet.inference.box_files import BoxFiles
from danet.inference.detector import Detector
from danet.inference.stream import DetectionStream
from danet.models import build_model
from danet.utils.malloc import share_malloc_arena

out = Path(sys.argv[1])
count = int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))

class Generated(Video):
    def __init__(self):
        self.name, self.fps, self.live, self.total, self.trouble = "generated", 25.0, False, None, None
    def __iter__(self):
        rng = np.random.default_rng(0)
        for index in range(count):
            if index in (max(count // 10, 500), count - 1):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                print(pages * resource.getpagesize(), flush=True)
            yield Frame(self.name, index, rng.integers(60, 120, (64, 64), dtype=np.uint8))

model = build_model(ModelConfig(name="danet_nano"))
detector = Detector(model, score_threshold=0.0, max_detections=5)
share_malloc_arena()
source, stream = Generated(), DetectionStream(detector)
output = AnnotatedOutput(detector.classes, background=stream.has_free_core)
boxes = BoxFiles(out / "boxes.csv", out / "boxes.json", {}, detector.classes)
with boxes, output.open(source, [out / "clip.mp4"]) as write:
    for frame, detections in stream.run(source):
        boxes.add(frame, detections)
        write(frame, detections)
"""


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, os.cpu_count()])
@pytest.mark.parametrize("frames", [1000, pytest.param(20000, marks=pytest.mark.long)])
def test_memory_is_constant_in_long_runs(tmp_path, frames, threads):
    """Memory is compared with that after a tenth of the run, at least 500 frames; every frame has boxes and an image.

    With one thread, reading and writing overlap with the network; with all cores they alternate with it.
    """
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(frames), str(threads)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True).stdout
    before, after = map(int, printed.split())
    assert after - before < 5 << 20, (after - before) / 2**20
    assert len(rows(tmp_path / "boxes.csv")) == 5 * frames
