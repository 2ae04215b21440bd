"""The live preview: real HTTP clients read frames; slow ones and vanished ones never delay the video."""

import contextlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from danet.inference import live_preview
from danet.inference.live_preview import LivePreview, parse_address
from danet.utils.errors import UserError


def draw(image, found):
    return np.full((48, 64, 3), found, np.uint8)


@contextlib.contextmanager
def running(size=(48, 64)):
    """A preview that is fed with frames of rising grey values; yields it, and the longest call and number of frames."""
    stop, longest = threading.Event(), [0.0, 0]

    def feed():
        image = np.zeros(size, np.uint8)
        while not stop.is_set():
            started = time.perf_counter()
            preview.show(image, longest[1] % 256)
            longest[0] = max(longest[0], time.perf_counter() - started)
            longest[1] += 1
            time.sleep(0.005)

    with LivePreview("0", draw) as preview:
        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield preview, longest
        finally:
            stop.set()
            thread.join()


def read_frame(stream):
    length = 0
    while (line := stream.readline().strip()) or not length:
        if line.endswith(b"--"):
            return None
        if line.lower().startswith(b"content-length"):
            length = int(line.split(b":")[1])
    picture = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR)
    stream.readline()
    return picture


def test_several_clients_read_frames_that_change():
    with running() as (preview, _):
        streams = [urllib.request.urlopen(f"{preview.url}stream.mjpg", timeout=5) for _ in range(3)]
        assert all("multipart/x-mixed-replace" in stream.headers["Content-Type"] for stream in streams)
        values = [[int(read_frame(stream).mean()) for _ in range(3)] for stream in streams]
        assert all(len(set(each)) == 3 for each in values)
        picture = urllib.request.urlopen(f"{preview.url}frame.jpg", timeout=5).read()
        assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
    assert all(read_frame(stream) is None or stream.read() is not None for stream in streams), "the stream ends cleanly"


def test_page_and_unknown_paths():
    with LivePreview("0", draw) as preview:
        page = urllib.request.urlopen(preview.url).read()
        assert b'src="stream.mjpg"' in page and preview.url.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{preview.url}../etc/passwd")


def test_a_client_that_does_not_read_and_one_that_vanishes_delay_nothing():
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1200, 3)).astype(np.uint8)
    with running() as (preview, longest):
        preview._draw = lambda image, found: noise  # large pictures fill the buffers of the connection
        host, port = preview.url.removeprefix("http://").rstrip("/").split(":")
        lazy = socket.create_connection((host, int(port)))
        lazy.sendall(b"GET /stream.mjpg HTTP/1.1\r\n\r\n")
        vanished = socket.create_connection((host, int(port)))
        vanished.sendall(b"GET /stream.mjpg HTTP/1.1\r\n\r\n")
        vanished.recv(10)
        vanished.close()
        stream = urllib.request.urlopen(f"{preview.url}stream.mjpg", timeout=5)
        assert all(read_frame(stream).shape == (1000, 1200, 3) for _ in range(5))
        assert longest[0] < 0.5 and longest[1] > 20
        lazy.close()


def test_viewers_are_counted_and_limited(monkeypatch):
    monkeypatch.setattr(live_preview, "MAX_VIEWERS", 1)
    with running() as (preview, _):
        with urllib.request.urlopen(f"{preview.url}stream.mjpg", timeout=5) as stream:
            read_frame(stream)
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{preview.url}stream.mjpg", timeout=5)
        deadline = time.monotonic() + 5
        while preview._viewers and time.monotonic() < deadline:
            time.sleep(0.02)
        assert preview._viewers == 0 and preview._picture == b"", "nothing is compressed without a viewer"
        with urllib.request.urlopen(f"{preview.url}stream.mjpg", timeout=5) as stream:
            assert read_frame(stream) is not None


def test_frame_before_the_first_one_is_an_answer(monkeypatch):
    monkeypatch.setattr(live_preview, "TIMEOUT_S", 0.2)
    with LivePreview("0", draw) as preview, pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{preview.url}frame.jpg", timeout=5)


def test_end_disconnects_viewers_at_once():
    started = time.monotonic()
    with LivePreview("0", draw) as preview:
        connection = http.client.HTTPConnection(*preview.url.removeprefix("http://").rstrip("/").split(":"))
        connection.request("GET", "/stream.mjpg")
        response = connection.getresponse()
    assert response.read().endswith(b"--danet-frame--\r\n") and time.monotonic() - started < 3


def test_port_in_use_is_an_error():
    with LivePreview("0", draw) as preview:
        port = preview.url.rstrip("/").rpartition(":")[2]
        with pytest.raises(UserError, match=f"--serve: port {port} is in use at 127"):
            LivePreview(port, draw)
    LivePreview(port, draw)._server.server_close()  # the end of the block frees the port


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", "nothing"), ("host", "host"), ("70000", "70000"), ("user:secret@host:80", r"\*\*\*@host:80"), (":80", ":80"),
     ("http://user:secret@host:80", r"\*\*\*@host:80"), ("::1:80", "::1:80"), ("host:-1", "host:-1"), ("1e3", "1e3")],
)  # fmt: skip
def test_invalid_addresses_are_errors_without_secrets(text, shown):
    with pytest.raises(UserError, match=f"--serve: must be PORT or HOST:PORT .* got {shown}$") as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_unknown_host_is_an_error():
    with pytest.raises(UserError, match=r"--serve: cannot listen at 203\.0\.113\.7:0"):
        LivePreview("203.0.113.7:0", draw)
