"""Shows the annotated frames of a running command in a web browser: Motion JPEG over HTTP.

The video never waits for a viewer. The command only stores its newest frame; one thread draws and compresses it, and
each viewer has a thread that sends the newest picture. A slow viewer therefore gets fewer frames, and one that takes no
data for TIMEOUT_S is disconnected.
"""

import errno
import http.server
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from danet.utils.errors import UserError
from danet.utils.urls import mask_url

LOOPBACK = "127.0.0.1"
MAX_FPS = 15.0
"""Maximum number of frames per second that are shown."""
MAX_SIDE_PIXELS = 1280
"""Larger frames are reduced for viewers."""
JPEG_QUALITY = 80
MAX_VIEWERS = 16
"""Further viewers get the status 503."""
TIMEOUT_S = 5.0
"""A viewer whose connection takes no data for this time is disconnected. If no new frame comes for this time, the last
one is sent again."""
BOUNDARY = "danet-frame"
PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>DANet live preview</title>
<style>body{margin:0;background:#111;color:#bbb;font:14px sans-serif;text-align:center}
img{max-width:100%;max-height:94vh;margin-top:1vh}</style></head>
<body><img src="stream.mjpg" alt="annotated frames"></body></html>
"""

Draw = Callable[[np.ndarray, Any], np.ndarray]


class LivePreview:
    """Context manager that serves the annotated frames of a command at ``/``, ``/stream.mjpg`` and ``/frame.jpg``.

    Args:
        address: ``PORT`` or ``HOST:PORT`` (an IPv6 host in brackets). Without a host, only programs on this machine can
            connect. Port 0 chooses a free one.
        draw: draws the detections or tracks into a frame: uint8 BGR.

    Attributes:
        url: of the page.

    Raises:
        UserError: the address is not valid, or the port is in use.

    Example:
        >>> import urllib.request
        >>> with LivePreview("0", lambda image, found: image) as preview:
        ...     page = urllib.request.urlopen(preview.url).read()
        >>> b"stream.mjpg" in page
        True
    """

    def __init__(self, address: str, draw: Draw) -> None:
        host, port = parse_address(address)
        self._draw = draw
        self._changed = threading.Condition()
        self._newest: tuple[np.ndarray, Any] | None = None
        """The frame that is to be compressed next, and its detections or tracks."""
        self._picture, self._number = b"", 0
        self._viewers = 0
        self._is_closed = False
        try:
            self._server = _Server(host, port, self)
        except (OSError, OverflowError, UnicodeError) as error:
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise UserError(f"--serve: port {port} is in use at {host}; give another one, or 0 for any") from None
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--serve: cannot listen at {shown} ({reason}); give another HOST:PORT") from None
        port = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True),
            threading.Thread(target=self._compress, daemon=True),
        ]

    def __enter__(self) -> "LivePreview":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def show(self, image: np.ndarray, found: Any) -> None:
        """Offers the next frame; returns at once, and does nothing without viewers.

        Args:
            image: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16; it must not change afterwards.
            found: what ``draw`` draws into it.
        """
        if self._viewers == 0:
            return
        with self._changed:
            self._newest = image, found
            self._changed.notify_all()

    def _compress(self) -> None:
        """Draws and compresses the newest frame, again and again."""
        while True:
            started = time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._is_closed)
                if self._is_closed or self._newest is None:
                    return
                (image, found), self._newest = self._newest, None
            picture = self._draw(image, found)
            scale = MAX_SIDE_PIXELS / max(picture.shape[:2])
            if scale < 1:
                picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            with self._changed:
                self._picture, self._number = encoded.tobytes(), self._number + 1
                self._changed.notify_all()
            time.sleep(max(0.0, started + 1 / MAX_FPS - time.monotonic()))

    def enter_viewer(self) -> bool:
        """Counts a viewer; False if there are too many."""
        with self._changed:
            if self._viewers >= MAX_VIEWERS or self._is_closed:
                return False
            self._viewers += 1
            return True

    def leave_viewer(self) -> None:
        """Counts a viewer out; without viewers, no frame is compressed and the last one is forgotten."""
        with self._changed:
            self._viewers -= 1
            if self._viewers == 0:
                self._newest, self._picture = None, b""

    def wait(self, number: int) -> tuple[bytes, int] | None:
        """Waits up to TIMEOUT_S for a JPEG whose number is not ``number``.

        Returns the newest JPEG and its number: after the timeout the same one again, or no bytes if there has been no
        frame yet. Returns None once the preview is closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or (self._number != number and bool(self._picture)), TIMEOUT_S
            )
            return None if self._is_closed else (self._picture, self._number)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, preview: LivePreview) -> None:
        self.preview = preview
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socket.socket.bind(self.socket, self.server_address)  # HTTPServer would ask the name server for the host's name
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: viewers vanish at any time."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT_S
    server_version, sys_version = "danet", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._send(200, "text/html; charset=utf-8", PAGE)
        elif path not in ("/stream.mjpg", "/frame.jpg"):
            self._send(404, "text/plain", b"not found\n")
        elif not self.server.preview.enter_viewer():
            self._send(503, "text/plain", b"too many viewers\n")
        else:
            try:
                if path == "/frame.jpg":
                    self._send_frame()
                else:
                    self._send_frames()
            except OSError:  # the viewer has vanished, or is too slow
                self.close_connection = True
            finally:
                self.server.preview.leave_viewer()

    def _send_frame(self) -> None:
        """One picture, the next one that is compressed."""
        newest = self.server.preview.wait(self.server.preview._number)
        if newest is None or not newest[0]:
            self._send(503, "text/plain", b"no frame yet\n")
        else:
            self._send(200, "image/jpeg", newest[0])

    def _send_frames(self) -> None:
        """Pictures until the end of the command."""
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.close_connection = True
        number = -1
        while (newest := self.server.preview.wait(number)) is not None:
            picture, number = newest
            if picture:
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")
        self.wfile.write(f"--{BOUNDARY}--\r\n".encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``PORT`` or ``HOST:PORT``.

    Raises:
        UserError: ``text`` has another form.

    Example:
        >>> parse_address("8080"), parse_address("0.0.0.0:80"), parse_address("[::1]:80")
        (('127.0.0.1', 8080), ('0.0.0.0', 80), ('::1', 80))
    """
    host, colon, port = text.rpartition(":")
    host = host if colon else LOOPBACK
    is_plain = not set(host) & set("/@?#") and (":" not in host or (host[:1] == "[" and host[-1:] == "]"))
    if not is_plain or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        shown = mask_url(text if "://" in text else f"http://{text}").removeprefix("http://")
        raise UserError(f"--serve: must be PORT or HOST:PORT with a port up to 65535, got {shown or 'nothing'}")
    return host.strip("[]"), int(port)
