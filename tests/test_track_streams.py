"""``danet track`` on streams and videos that misbehave: files that play and parse, a message, and no password."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from video_files import write_matroska

from danet.checkpoint import save_weights
from danet.config import ModelConfig
from danet.data.frame_sources import open_source
from danet.models import build_model
from danet.track import main

SENSITIVE = ["--tracker.high_score", "0.005", "--tracker.low_score", "0.001", "--tracker.neutral_score", "0.001"]
"""Options with which random weights give tracks."""
NO_JPEG = b"\xff\xd8" + bytes(200)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, build_model(ModelConfig(name="danet_nano", classes=["drone"])))
    return str(path)


def picture(index, size=(96, 128)):
    image = np.random.default_rng(0).normal(90, 5, size)
    image[40:46, 40 + index : 48 + index] += 100
    return image.clip(0, 255).astype(np.uint8)


def jpeg(index, size=(96, 128)):
    return cv2.imencode(".jpg", picture(index, size))[1].tobytes()


class Camera:
    """A network camera (Motion JPEG over HTTP) that sends these parts to the first reader, and refuses later ones.

    At the end it closes the connection, or keeps it open without sending anything (``stalls``).
    """

    def __init__(self, parts, *, stalls=False):
        end, left = threading.Event(), [list(parts)]

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if not left:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for part in left.pop():
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(part)}\r\n\r\n"
                    self.wfile.write(head.encode() + part + b"\r\n")
                    self.wfile.flush()
                    time.sleep(0.05)
                if stalls:
                    end.wait(60)

        self._end = end
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://user:s3cret@127.0.0.1:{self._server.server_port}/cam.mjpg?token=s3cret"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self.url

    def __exit__(self, *_):
        self._end.set()
        self._server.shutdown()
        self._server.server_close()


def check_files(out):
    """The records of tracks.jsonl; all files parse, belong together, and name no password."""
    records = [json.loads(line) for line in (out / "tracks.jsonl").read_text().splitlines()]
    numbers = [record["frame"] for record in records]
    assert numbers == sorted(set(numbers)), "every frame once, in order"
    times = [record["time"] for record in records]
    assert times == sorted(times)
    boxes = np.loadtxt(out / "cam.txt", delimiter=",", ndmin=2)
    assert boxes.shape[1] == 10 and set(boxes[:, 0].astype(int)) <= {number + 1 for number in numbers}
    shown = list(open_source(out / "cam.mp4"))
    assert len(shown) == len(records) and len({frame.image.shape for frame in shown}) == 1
    for path in out.rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes(), path.name
    return records


def test_stream_that_changes_size_and_breaks_gives_whole_files(weights, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("danet.data.video.RECONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr("danet.data.video.RECONNECT_INTERVAL_S", 0.05)
    parts = [*map(jpeg, range(10)), *(jpeg(index, (120, 160)) for index in range(10)), NO_JPEG, NO_JPEG]
    out = tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--video_format", "mp4", "--json", str(out / "run.json")]
    with Camera(parts) as url:
        assert main([url, *words, *SENSITIVE]) == 1
    records, run = check_files(out), json.loads((out / "run.json").read_text())
    assert len(records) == run["frames"] and 18 <= run["frames"] + run["dropped"] <= 22
    assert any(record["tracks"] for record in records)
    printed = capfd.readouterr()
    assert ": no image after frame " in printed.err and ": connection lost after frame " in printed.err
    assert "s3cret" not in printed.out + printed.err


def test_stream_that_stalls_can_be_stopped(weights, tmp_path):
    out = tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--video_format", "mp4", "--threads", "1", *SENSITIVE]
    with Camera(map(jpeg, range(12)), stalls=True) as url:
        command = [sys.executable, "-m", "danet", "track", url, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            path, deadline = out / "tracks.jsonl", time.monotonic() + 300
            count, unchanged = 0, 0
            while time.monotonic() < deadline and process.poll() is None and unchanged < 5:  # no frame for 5 seconds
                time.sleep(1.0)
                before, count = count, path.read_text().count("\n") if path.exists() else 0
                unchanged = unchanged + 1 if count and count == before else 0
            process.send_signal(signal.SIGINT)
            printed = "".join(process.communicate(timeout=120))
        finally:
            process.kill()
    assert process.returncode == 130 and "all files are complete" in printed, printed
    assert "s3cret" not in printed
    assert len(check_files(out)) == count


def test_video_that_jumps_in_time_keeps_its_times(weights, tmp_path):
    times = [*range(0, 400, 40), *range(30_000, 30_400, 40)]
    write_matroska(tmp_path / "cam.mkv", list(map(picture, range(20))), times, duration_ms=30_440)
    out = tmp_path / "out"
    words = ["--weights", weights, "--out", str(out), "--video_format", "mp4", "--quiet", *SENSITIVE]
    assert main([str(tmp_path / "cam.mkv"), *words]) == 0
    records = check_files(out)
    assert [record["time"] for record in records] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    parts = records[:10], records[10:]
    before, after = ({each["id"] for record in part for each in record["tracks"]} for part in parts)
    assert before and after and not before & after, "no track continues after 30 seconds"
