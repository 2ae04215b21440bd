"""Delivers alarms to other programs, by webhook and MQTT, without ever delaying the video."""

import contextlib
import json
import queue
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from danet.utils.errors import UserError
from danet.utils.urls import mask_url, mask_urls

MAX_WAITING = 256
"""Maximum number of messages that wait while a receiver does not answer; if more arrive, the oldest are dropped."""
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 30.0
"""The time between two attempts begins with FIRST_RETRY_S and doubles up to MAX_RETRY_S."""
TIMEOUT_S = 10.0
"""How long one attempt may take."""
MQTT_PORT = 1883


class Delivery:
    """Context manager whose thread hands messages to a receiver in order, and repeats what failed with back-off.

    Attributes:
        delivered, dropped: number of messages.

    Args:
        name: of the receiver in messages.
        send: delivers one text; raises any exception if that failed.
        patience: seconds that the end of the ``with`` block waits for messages that are still to be delivered.

    Example:
        >>> with Delivery("list", [].append) as delivery:
        ...     delivery.put({"event": "start"})
        >>> delivery.delivered
        1
    """

    def __init__(self, name: str, send: Callable[[str], object], *, patience: float = 5.0) -> None:
        self.delivered = self.dropped = 0
        self._name, self._send, self._patience = name, send, patience
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._stopped = threading.Event()
        # A daemon: a receiver that does not answer must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Delivery":
        self._thread.start()
        return self

    def put(self, message: dict[str, Any]) -> None:
        """Adds a message; returns at once."""
        self._put(json.dumps(message))

    def __exit__(self, *_: object) -> None:
        self._put(None)
        self._thread.join(self._patience)
        self._stopped.set()
        left = sum(item is not None for item in list(self._queue.queue)) + self._thread.is_alive()
        if left:
            self.dropped += left
            print(f"{self._name}: events that could not be delivered: {left}", file=sys.stderr)

    def _put(self, item: str | None) -> None:
        while True:
            try:
                return self._queue.put_nowait(item)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
                    self.dropped += 1

    def _run(self) -> None:
        while (text := self._queue.get()) is not None and not self._stopped.is_set():
            self._deliver(text)

    def _deliver(self, text: str) -> None:
        """Sends until it succeeds; says once that it fails, and once that it works again."""
        wait, is_told = FIRST_RETRY_S, False
        while not self._stopped.is_set():
            try:
                self._send(text)
            except Exception as error:  # whatever a library raises, the video goes on
                if not is_told:
                    reason = mask_urls(str(error) or type(error).__name__)
                    print(f"{self._name}: not delivered, trying again ({reason})", file=sys.stderr)
                    is_told = True
                self._stopped.wait(wait)
                wait = min(2 * wait, MAX_RETRY_S)
            else:
                self.delivered += 1
                if is_told:
                    print(f"{self._name}: delivered again", file=sys.stderr)
                return


def webhook(url: str) -> Delivery:
    """Delivers by HTTP POST of JSON to a URL, which may hold a user name and a password.

    Raises:
        UserError: the URL is not of http or https, or its port is not valid.

    Example:
        >>> webhook("ftp://host/x")
        Traceback (most recent call last):
        danet.utils.errors.UserError: --webhook: must be a URL of http or https, got ftp://host/x
    """
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"--webhook: must be a URL of http or https, got {mask_url(url)}")
    parts = _split_url("--webhook", url)
    headers = {"Content-Type": "application/json", "User-Agent": "danet"}
    if parts.username is not None:
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        manager.add_password(None, url, user, password)
        opener = urllib.request.build_opener(_RefuseRedirects, urllib.request.HTTPBasicAuthHandler(manager))
    else:
        opener = urllib.request.build_opener(_RefuseRedirects)

    def send(text: str) -> None:
        request = urllib.request.Request(url, text.encode(), headers, method="POST")
        with opener.open(request, timeout=TIMEOUT_S) as response:
            response.read(1 << 16)

    return Delivery(f"webhook {mask_url(url)}", send)


def mqtt(address: str, topic: str) -> Delivery:
    """Delivers to an MQTT broker, with quality of service 1 (at least once).

    Args:
        address: ``host``, ``host:port`` or ``mqtt://user:password@host:port``; an IPv6 host is in brackets.
        topic: of the messages.

    Raises:
        UserError: paho-mqtt is not installed, or the address is not valid.
    """
    try:
        from paho.mqtt import client as paho
    except ImportError as error:
        raise UserError(f"--mqtt needs paho-mqtt: pip install 'danet[mqtt]' ({error})") from error
    url = address if "://" in address else f"mqtt://{address}"
    parts = _split_url("--mqtt", url)
    is_plain_user = "@" in address and "://" not in address  # it would not be recognized as a secret elsewhere
    if parts.scheme not in ("mqtt", "mqtts") or is_plain_user:
        raise UserError(f"--mqtt: must be HOST, HOST:PORT or mqtt://USER:PASSWORD@HOST:PORT, got {mask_url(url)}")
    host, port = parts.hostname or "", parts.port or MQTT_PORT
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.connect_timeout = TIMEOUT_S
    if parts.username is not None:
        client.username_pw_set(urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))
    if parts.scheme == "mqtts":
        client.tls_set()

    def send(text: str) -> None:
        if not client.is_connected():
            client.loop_stop()
            client.connect(host, port, keepalive=30)
            client.loop_start()
            deadline = time.monotonic() + TIMEOUT_S
            while not client.is_connected():
                if time.monotonic() > deadline:
                    raise TimeoutError("the broker does not accept the connection")
                time.sleep(0.02)
        message = client.publish(topic, text, qos=1)
        message.wait_for_publish(TIMEOUT_S)
        if not message.is_published():
            raise TimeoutError("the broker does not confirm the message")

    return Delivery(f"mqtt {f'[{host}]' if ':' in host else host}:{port}", send)


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: the request that follows it would be a GET without the message."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        reason = f"the receiver redirects to {mask_url(newurl)}; give that URL to --webhook"
        raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)


def _split_url(option: str, url: str) -> urllib.parse.SplitResult:
    """The parts of a URL, which has a host; raises UserError if the host or the port is not valid."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0
    except ValueError:  # an open bracket, or a port above 65535
        is_valid = False
    if not is_valid:
        expected = "must have a host (IPv6 in brackets) and, if any, a port from 1 to 65535"
        raise UserError(f"{option}: {expected}, got {mask_url(url)}")
    return parts
