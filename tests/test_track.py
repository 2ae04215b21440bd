import csv
import functools
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import cv2
import numpy as np
import pytest
import torch

import danet
from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.frame_sources import open_source
from danet.data.video_writer import VideoWriter
from danet.evaluate import main as evaluate
from danet.models import build_model
from danet.track import main
from danet.tracking.tracker_options import TrackerOptions

SENSITIVE = {"high_score": 0.005, "low_score": 0.001, "neutral_score": 0.001, "confirm": 1.0}
"""Options with which the random weights of the tests give tracks: their scores spread around 0.01."""
SWITCHES = [word for name, value in SENSITIVE.items() for word in (f"--tracker.{name}", str(value))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"])))
    return str(path)


def write_clip(path, frames=8, size=(96, 128)):
    rng = np.random.default_rng(0)
    scene = rng.normal(90, 5, size)
    with VideoWriter(path, fps=20) as writer:
        for index in range(frames):
            image = scene.copy()
            image[40:46, 40 + index : 48 + index] += 100
            writer.write(image.astype(np.uint8))
    return path


def write_images(folder, frames):
    """A folder of images with a target that moves."""
    folder.mkdir(parents=True)
    scene = np.random.default_rng(0).normal(90, 5, (96, 128))
    for index in range(frames):
        image = scene.copy()
        image[40:46, 40 + index : 48 + index] += 100
        cv2.imwrite(str(folder / f"{index}.png"), image.astype(np.uint8))
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def mot(path):
    return np.loadtxt(path, delimiter=",", ndmin=2)


def test_files_match_each_other_and_the_python_interface(weights, tmp_path, capsys):
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    arguments = [
        str(clip),
        "--weights",
        weights,
        "--out",
        str(out),
        "--video_format",
        "mp4",
        "--upscale",
        "2",
        *SWITCHES,
    ]
    assert main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "alarms.jsonl", "clip.mp4", "clip.txt", "config.yaml", "tracks.csv", "tracks.jsonl",
    ]  # fmt: skip
    records = lines(out / "tracks.jsonl")
    assert [record["frame"] for record in records] == list(range(8))
    assert [record["time"] for record in records] == [index / 20 for index in range(8)]
    boxes = [(record["frame"], track) for record in records for track in record["tracks"]]
    assert len(boxes) > 5

    table = mot(out / "clip.txt")
    first = {track["id"]: frame for frame, track in reversed(boxes)}
    is_earlier = np.array([row[0] - 1 < first[int(row[1])] for row in table])
    assert is_earlier.any(), "the frames before a target was confirmed"
    table = table[~is_earlier]
    assert table[:, 0].astype(int).tolist() == [frame + 1 for frame, _ in boxes], "MOT counts frames from 1"
    assert table[:, 1].astype(int).tolist() == [track["id"] for _, track in boxes]
    corners = np.array([track["box"] for _, track in boxes])
    assert np.allclose(table[:, 2:6], np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), atol=0.011)
    assert np.all(table[:, 7:] == -1)
    with open(out / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), int(row["id"]), float(row["x0"])) for row in rows] == [
        (frame, track["id"], track["box"][0]) for frame, track in boxes
    ]
    assert {float(row["time"]) for row in rows} <= {index / 20 for index in range(8)}

    tracker = danet.Tracker(TrackerOptions(**SENSITIVE))
    triples = list(danet.load(weights, score_threshold=0.5).stream(clip, tracker=tracker))
    assert [tracks.to_dict() for _, _, tracks in triples] == [record["tracks"] for record in records]
    assert all(len(found) == 0 for _, found, _ in triples), "detections have scores above the detector's threshold"

    frames = list(open_source(out / "clip.mp4"))
    assert len(frames) == 8 and frames[0].image.shape == (192, 256, 3)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == 8 and sum(figures["targets"].values()) == len({track["id"] for _, track in boxes})
    printed = capsys.readouterr().out
    assert f"frames: 8, targets: {sum(figures['targets'].values())}" in printed and "tracking" in printed


def test_images_of_a_folder_are_one_video(weights, tmp_path):
    folder, out = tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    for index in range(5):
        size = (96, 128) if index < 4 else (64, 80)  # the last frame has another size
        cv2.imwrite(str(folder / f"{index}.png"), np.full(size, 90 + index, np.uint8))
    assert main([str(folder), "--weights", weights, "--out", str(out), "--quiet", *SWITCHES]) == 0
    records = lines(out / "tracks.jsonl")
    assert [(record["frame"], record["time"]) for record in records] == [(index, None) for index in range(5)]
    assert (out / "frames.txt").is_file() and len(list((out / "frames").iterdir())) == 5


def test_damaged_video_gives_complete_files_and_exit_code_1(weights, tmp_path, capfd):
    clip, out = write_clip(tmp_path / "clip.avi", frames=30), tmp_path / "out"
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 2 // 3])
    code = main([str(clip), "--weights", weights, "--out", str(out), "--quiet", "--video_format", "mp4", *SWITCHES])
    records = lines(out / "tracks.jsonl")
    assert code == 1 and 0 < len(records) < 30
    assert len(list(open_source(out / "clip.mp4"))) == len(records) and len(mot(out / "clip.txt"))
    assert "clip.avi" in capfd.readouterr().err


def test_killed_process_leaves_readable_files(weights, tmp_path):
    clip, out = write_clip(tmp_path / "clip.mp4", frames=600), tmp_path / "out"
    words = [str(clip), "--weights", weights, "--out", str(out), "--quiet", "--threads", "1", *SWITCHES]
    process = subprocess.Popen([sys.executable, "-m", "danet", "track", *words])
    try:
        deadline = time.monotonic() + 120
        path = out / "tracks.jsonl"
        while time.monotonic() < deadline and not (path.exists() and path.read_text().count("\n") > 20):
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    records = lines(path)
    assert 20 < len(records) <= 600 and [record["frame"] for record in records] == list(range(len(records)))
    table = mot(out / "clip.txt")
    assert table.shape[1] == 10 and table[-1, 0] <= len(records)


def test_passwords_of_urls_are_neither_printed_nor_stored(weights, tmp_path, capfd):
    write_clip(tmp_path / "clip.mp4", frames=3)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://user:s3cret@127.0.0.1:{server.server_port}/clip.mp4?token=s3cret"
    out = tmp_path / "out"
    assert main([url, "--weights", weights, "--out", str(out), "--save_images", "false", *SWITCHES]) == 0
    server.shutdown()
    printed = capfd.readouterr()
    assert "s3cret" not in printed.out + printed.err
    for path in out.iterdir():
        assert "s3cret" not in path.read_text(), path.name
    assert "/clip.mp4?token=***" in (out / "tracks.jsonl").read_text()


def test_results_of_another_run_are_not_replaced(weights, tmp_path, capsys):
    clip, out = write_clip(tmp_path / "clip.mp4", frames=3), tmp_path / "out"
    arguments = [str(clip), "--weights", weights, "--out", str(out), "--save_images", "false"]
    assert main(arguments) == 0 and main(arguments) == 0
    assert (tmp_path / "out-2" / "tracks.jsonl").is_file()
    assert "the results go to" in capsys.readouterr().out


def test_overwrite_names_the_files_of_other_sources_that_stay(weights, tmp_path, capsys):
    first, second = (write_clip(tmp_path / f"{name}.mp4", frames=3) for name in "ab")
    words = ["--weights", weights, "--out", str(tmp_path / "out"), "--overwrite", *SWITCHES]
    assert main([str(first), *words]) == 0 and "does not replace" not in capsys.readouterr().out
    before = (tmp_path / "out" / "a.txt").read_bytes()
    assert main([str(first), *words]) == 0 and "does not replace" not in capsys.readouterr().out
    assert main([str(second), *words]) == 0
    assert "out keeps files that this run does not replace: 2, such as" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.txt").read_bytes() == before and (tmp_path / "out" / "b.txt").is_file()
    assert {record["file"] for record in lines(tmp_path / "out" / "tracks.jsonl")} == {str(second)}


def test_overwrite_removes_the_tables_that_are_switched_off(weights, tmp_path):
    first, second = (write_clip(tmp_path / f"{name}.mp4", frames=3) for name in "ab")
    out = tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--no-save-images", "--no-save-mot", "--quiet"]
    assert main([str(first), *words]) == 0
    assert (out / "tracks.csv").is_file() and (out / "tracks.jsonl").is_file()
    assert main([str(second), *words, "--overwrite", "--no-save-csv", "--no-save-jsonl"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["alarms.jsonl", "config.yaml"]


def test_sources_of_equal_names_have_texts_of_their_own(weights, tmp_path, capsys):
    """A video, the images of two folders and one image are all named "clip"; the folders differ in their lengths."""
    (tmp_path / "a").mkdir()
    clip, image = write_clip(tmp_path / "a" / "clip.mp4", frames=3), tmp_path / "a" / "clip.png"
    cv2.imwrite(str(image), np.full((96, 128), 90, np.uint8))
    folders = [tmp_path / "b" / "clip", tmp_path / "c" / "clip"]
    for folder, frames in zip(folders, (5, 7), strict=True):
        write_images(folder, frames)
    sources, out = [str(clip), *map(str, folders), str(image)], tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--save_images", "false", *SWITCHES]
    assert main([*sources, *words]) == 0
    texts = [out / name for name in ("clip.txt", "clip_2.txt", "clip_3.txt", "clip_4.txt")]
    assert sorted(out.glob("*.txt")) == texts
    assert [int(mot(path)[-1, 0]) for path in texts[:3]] == [3, 5, 7], "the last frame with a track"
    assert [line.strip() for line in capsys.readouterr().out.splitlines() if line.endswith(".txt")] == list(
        map(str, texts)
    )


def test_texts_of_folders_and_patterns_are_named_after_the_folder(weights, tmp_path):
    for name in ("flight.01", "flight.02"):
        write_images(tmp_path / name, 3)
    write_images(tmp_path / "single", 1)
    out = tmp_path / "runs" / "out"
    sources = [str(tmp_path / "flight.01"), str(tmp_path / "flight.02" / "*.png"), str(tmp_path / "single")]
    assert main([*sources, "--weights", weights, "--out", str(out), "--quiet"]) == 0
    assert sorted(path.name for path in out.glob("*.txt")) == ["flight.01.txt", "flight.02.txt", "single.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing is written beside the folder"


@pytest.mark.parametrize("earlier", ["frames.txt", "alarms/1.png"])
def test_results_of_a_folder_are_not_replaced(weights, tmp_path, earlier):
    write_images(tmp_path / "frames", 2)
    path = tmp_path / "out" / earlier
    path.parent.mkdir(parents=True)
    path.write_text("earlier")
    words = [str(tmp_path / "frames"), "--weights", weights, "--out", str(tmp_path / "out"), "--save_images", "false"]
    assert main([*words, "--quiet"]) == 0
    assert path.read_text() == "earlier" and (tmp_path / "out-2" / "frames.txt").is_file()
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_files_with_other_names_are_no_earlier_run(weights, tmp_path):
    write_images(tmp_path / "frames", 2)
    path = tmp_path / "out" / "frames" / "0.txt"  # a label file, for example
    path.parent.mkdir(parents=True)
    path.write_text("label")
    words = [str(tmp_path / "frames"), "--weights", weights, "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 0
    assert path.read_text() == "label" and (tmp_path / "out" / "frames.txt").is_file()


def test_invalid_options_are_one_line(tmp_path, capfd):
    clip = write_clip(tmp_path / "clip.mp4", frames=2)
    assert main([str(clip), "--tracker.high_score", "2", "--out", str(tmp_path / "out")]) == 2
    assert "high_score must lie between 0 and 1, got 2" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--target_size", "--focal_px"])
def test_distance_needs_both_options(tmp_path, capfd, option):
    clip = write_clip(tmp_path / "clip.mp4", frames=2)
    assert main([str(clip), option, "2", "--out", str(tmp_path / "out")]) == 2
    assert "--target_size and --focal_px must be given together" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_distances_and_files_that_are_switched_off(weights, tmp_path):
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    off = [word for name in ("save_images", "save_mot", "save_csv") for word in (f"--{name}", "false")]
    words = [str(clip), "--weights", weights, "--out", str(out), "--quiet", *off, *SWITCHES]
    assert main([*words, "--target_size", "0.35", "--focal_px", "1200"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["alarms.jsonl", "config.yaml", "tracks.jsonl"]
    tracks = [track for record in lines(out / "tracks.jsonl") for track in record["tracks"]]
    widths = np.array([track["box"][2] - track["box"][0] for track in tracks])
    assert len(tracks) > 5 and np.allclose([track["distance"] for track in tracks], 0.35 * 1200 / widths, rtol=0.02)


def test_alarms_are_written_with_pictures_and_delivered(weights, tmp_path, capsys):
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    clip, out = write_clip(tmp_path / "clip.mp4", frames=10), tmp_path / "out"
    alarm = ["--alarm.hits", "2", "--alarm.window", "4", "--alarm.score", "0.001"]
    url = ["--webhook", f"http://127.0.0.1:{server.server_port}/?token=s3cret"]
    arguments = [str(clip), "--weights", weights, "--out", str(out), "--save_images", "false", *SWITCHES, *alarm, *url]
    assert main(arguments) == 0
    server.shutdown()
    events = lines(out / "alarms.jsonl")
    starts = [event for event in events if event["event"] == "start"]
    assert len(starts) == len(events) / 2 > 0, "every alarm ends with the video"
    assert {path.name for path in (out / "alarms").iterdir()} == {f"{event['alarm']}.png" for event in starts}
    assert [{**event, "crop": 0} for event in events] == [
        {**{name: value for name, value in event.items() if name != "crop_jpeg"}, "crop": 0} for event in received
    ]
    assert all(len(event["crop_jpeg"]) > 100 for event in received)
    assert f"alarms: {len(starts)}" in capsys.readouterr().out
    assert "s3cret" not in (out / "config.yaml").read_text()


def test_alarms_in_a_folder_of_images_are_found_by_the_evaluation(weights, tmp_path):
    """One image is damaged: the others keep the numbers of their places in the folder."""
    folder, out = write_images(tmp_path / "frames", 8), tmp_path / "out"
    (folder / "1.png").write_bytes(b"damaged")
    alarm = ["--alarm.hits", "2", "--alarm.window", "4", "--alarm.score", "0.001"]
    words = [str(folder), "--weights", weights, "--out", str(out), "--save_images", "false", "--quiet"]
    assert main([*words, *SWITCHES, *alarm]) == 1, "an image is missing"
    assert [record["frame"] for record in lines(out / "tracks.jsonl")] == [0, 2, 3, 4, 5, 6, 7]
    starts = [event for event in lines(out / "alarms.jsonl") if event["event"] == "start"]
    assert starts and {event["source"] for event in starts} == {"frames"}
    assert all(event["file"] == str(folder / f"{event['frame']}.png") for event in starts)

    truth = np.array([[40, 40, 48, 46]], np.float32)
    paths = [folder / f"{index}.png" for index in range(8)]
    records = [
        ImageRecord(path, 128, 96, truth, ["drone"], np.zeros(1, bool), "frames", index)
        for index, path in enumerate(paths)
    ]
    write_coco(tmp_path / "val.json", records, ["drone"])
    metrics = tmp_path / "metrics.json"
    assert evaluate(["--tracks", str(out), str(tmp_path / "val.json"), "--json", str(metrics), "--quiet"]) == 0
    first = min(event["frame"] for event in starts if event["class"] == "drone")
    assert json.loads(metrics.read_text())["first_alarms"] == {"frames": first / 30}


@pytest.mark.parametrize("kind", ["video", "images", "stack"])
def test_alarm_rules_that_cannot_occur_are_one_line(weights, tmp_path, capfd, kind):
    source, out = tmp_path / "source", tmp_path / "out"
    if kind == "images":
        write_images(source, 2)
    elif kind == "stack":
        source = source.with_suffix(".tif")
        cv2.imwritemulti(str(source), [np.zeros((96, 128), np.uint8)] * 2)
    else:
        source = write_clip(source.with_suffix(".mp4"), frames=2)
    zones = tmp_path / "zones.yaml"
    zones.write_text("[[[130, 10], [150, 10], [150, 30]]]")
    arguments = [str(source), "--weights", weights, "--out", str(out)]
    assert main([*arguments, "--alarm.zones", str(zones)]) == 2
    printed = capfd.readouterr()
    assert "zone 1 must overlap the frames (128 x 96 pixels), but lies outside" in printed.err
    assert main([*arguments, "--alarm.classes", "[plane]"]) == 2
    assert "'plane' is no class of the model (drone, bird)" in capfd.readouterr().err
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and not out.exists()


def test_tiles(weights, tmp_path, capsys):
    """With a tile as large as the frame, tiles change nothing; with smaller ones, the whole frame is searched."""
    clip = write_clip(tmp_path / "clip.avi", frames=6)
    words = ["--weights", weights, "--video_format", "mp4", "--save_images", "false", *SWITCHES]
    runs = {
        "whole": [],
        "large": ["--tile", "128"],
        "small": ["--tile", "64", "80", "--tile_every", "2"],
    }
    for name, tile in runs.items():
        assert main([str(clip), *words, *tile, "--out", str(tmp_path / name)]) == 0
    records = {name: lines(tmp_path / name / "tracks.jsonl") for name in runs}
    assert records["whole"] == records["large"] and any(record["tracks"] for record in records["small"])
    assert "one of 2 frames of a video is searched completely" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tile", "8"], "--tile must be one or two integers from 32 to"),
        (["--tile", "64", "--overlap", "1"], r"--overlap must lie between 0 and 0\.9, got 1"),
        (["--overlap", "0.5"], "--overlap: needs --tile"),
        (["--tile_every", "3"], "--tile_every: needs --tile"),
        (["--tile", "64", "--tile_every", "0"], "--tile_every must be at least 1, got 0"),
    ],
)
def test_invalid_tiles_are_one_line(weights, tmp_path, words, message, capsys):
    assert (
        main([str(write_clip(tmp_path / "clip.avi", 1)), "--weights", weights, "--out", str(tmp_path / "o"), *words])
        == 2
    )
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_preview_serves_frames_while_the_command_runs(weights, tmp_path):
    """A real client reads annotated frames of a running command; Ctrl-C ends both."""
    clip = write_clip(tmp_path / "clip.mp4", frames=1000)
    words = [
        str(clip),
        "--weights",
        weights,
        "--out",
        str(tmp_path / "out"),
        "--serve",
        "0",
        "--threads",
        "1",
        *SWITCHES,
    ]
    command = [sys.executable, "-u", "-m", "danet", "track", *words, "--save_images", "false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("live preview at "))
        with urllib.request.urlopen(line.split()[-1] + "stream.mjpg", timeout=60) as stream:
            start = stream.read(4096)
            assert start.startswith(b"--danet-frame\r\nContent-Type: image/jpeg") and b"\xff\xd8" in start
            process.send_signal(signal.SIGINT)
            assert stream.read().endswith(b"--danet-frame--\r\n")
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "all files are complete" in error, error


def test_preview_port_in_use_is_one_line(weights, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        clip = write_clip(tmp_path / "clip.mp4", frames=1)
        assert main([str(clip), "--weights", weights, "--out", str(tmp_path / "out"), "--serve", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"--serve: port {port} is in use" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
