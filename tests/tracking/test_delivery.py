import http.server
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest

from danet.tracking import delivery
from danet.tracking.delivery import Delivery, mqtt, webhook
from danet.utils.errors import UserError


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_RETRY_S", 0.01)


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


class Receiver(http.server.ThreadingHTTPServer):
    """A web server that keeps what it gets, and refuses the first ``refused`` requests."""

    def __init__(self, refused=0, host="127.0.0.1", handler=None):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), handler or Handler)
        self.refused, self.bodies, self.authorizations = refused, [], []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorizations.append(self.headers.get("Authorization"))
        is_refused = self.server.refused > 0
        if is_refused:
            self.server.refused -= 1
        else:
            self.server.bodies.append(json.loads(body))
        self.send_response(503 if is_refused else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_webhook_delivers_in_order_and_repeats_what_failed(capfd):
    server = Receiver(refused=3)
    with webhook(f"http://127.0.0.1:{server.server_port}/alarm?token=s3cret") as sender:
        for number in range(5):
            sender.put({"alarm": number})
        wait_for(lambda: sender.delivered == 5)
    server.shutdown()
    assert server.bodies == [{"alarm": number} for number in range(5)]
    first, second = capfd.readouterr().err.splitlines()
    assert "not delivered, trying again (HTTP Error 503" in first and "delivered again" in second
    assert "s3cret" not in first + second


def test_webhook_that_does_not_exist_delays_nothing(capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port on which nobody listens
        sender = webhook(f"http://user:s3cret@127.0.0.1:{closed.getsockname()[1]}/")
        sender._patience = 0.2
        started = time.monotonic()
        with sender:
            for number in range(delivery.MAX_WAITING + 50):
                sender.put({"alarm": number})
            assert time.monotonic() - started < 5
        assert time.monotonic() - started < 15
    assert sender.delivered == 0 and sender.dropped >= 50
    printed = capfd.readouterr().err
    assert "could not be delivered" in printed and "s3cret" not in printed


def test_password_of_a_webhook_is_sent_only_as_authorization():
    seen = []

    class Protected(Handler):
        def do_POST(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if self.headers.get("Authorization") else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="alarms"')
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Protected)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with webhook(f"http://user:pa%20ss@127.0.0.1:{server.server_port}/x") as sender:
        sender.put({})
        wait_for(lambda: sender.delivered == 1)
    server.shutdown()
    assert seen[-1] == ("/x", "Basic dXNlcjpwYSBzcw==")  # user:pa ss


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_is_not_delivered(code, capfd):
    """The server answers a GET at the other address, but a message is lost there."""

    class Redirecting(Handler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Location", "/elsewhere?token=s3cret")
            self.end_headers()

        def do_GET(self):
            self.server.bodies.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = Receiver(handler=Redirecting)
    sender = webhook(f"http://127.0.0.1:{server.server_port}/alarm")
    sender._patience = 0.5
    with sender:
        sender.put({"alarm": 1})
    server.shutdown()
    assert (sender.delivered, sender.dropped, server.bodies) == (0, 1, [])
    first, last = capfd.readouterr().err.splitlines()
    assert f"not delivered, trying again (HTTP Error {code}" in first and "could not be delivered: 1" in last
    if code != 308 or sys.version_info >= (3, 11):  # before, urllib does not know 308, and gives no other address
        address = f"http://127.0.0.1:{server.server_port}/elsewhere?token=***"
        assert f"the receiver redirects to {address}; give that URL to --webhook" in first


@pytest.fixture
def ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("needs IPv6")
    return "::1"


@pytest.mark.parametrize("user", ["", "user:pass@"])
def test_webhook_of_an_ipv6_address(ipv6, user):
    server = Receiver(host=ipv6)
    with webhook(f"http://{user}[{ipv6}]:{server.server_port}/x") as sender:
        sender.put({"alarm": 1})
        wait_for(lambda: sender.delivered == 1)
    server.shutdown()
    assert server.bodies == [{"alarm": 1}]


class SmallBroker(socketserver.ThreadingTCPServer):
    """Accepts MQTT connections, and confirms and keeps the messages of clients that publish."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self, host):
        super().__init__((host, 0), BrokerHandler)
        self.messages = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class BrokerHandler(socketserver.StreamRequestHandler):
    def handle(self):
        while header := self.rfile.read(1):
            length = shift = 0
            while True:  # the length has 7 bits in each byte
                byte = self.rfile.read(1)[0]
                length, shift = length | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
            body = self.rfile.read(length)
            if header[0] >> 4 == 1:  # CONNECT
                self.wfile.write(b"\x20\x02\x00\x00")
            elif header[0] >> 4 == 3:  # PUBLISH: topic, packet id, message
                end = 2 + int.from_bytes(body[:2], "big")
                self.wfile.write(b"\x40\x02" + body[end : end + 2])
                self.server.messages.append((body[2:end].decode(), json.loads(body[end + 2 :])))


@pytest.mark.parametrize("address", ["[{host}]:{port}", "mqtt://user:pass@[{host}]:{port}"])
def test_mqtt_broker_of_an_ipv6_address(ipv6, address):
    pytest.importorskip("paho.mqtt", reason="needs pip install paho-mqtt")
    broker = SmallBroker(ipv6)
    with mqtt(address.format(host=ipv6, port=broker.server_address[1]), "danet/alarms") as sender:
        sender.put({"alarm": 1})
        wait_for(lambda: sender.delivered == 1)
    broker.shutdown()
    assert broker.messages == [("danet/alarms", {"alarm": 1})]
    assert sender._name == f"mqtt [{ipv6}]:{broker.server_address[1]}"


@pytest.mark.parametrize("url", ["ftp://host/x", "mqtt://host", "host/x"])
def test_webhook_of_another_scheme_is_refused(url):
    with pytest.raises(UserError, match="--webhook: must be a URL of http or https, got"):
        webhook(url)


NO_ADDRESSES = ["http://", "http://host:99999/", "http://u:p@host:99999/", "http://host:0", "http://[::1/"]


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_webhook_with_an_invalid_host_or_port_is_refused(url):
    with pytest.raises(UserError, match=r"--webhook: must have a host \(IPv6 in brackets\) and, if any, a port"):
        webhook(url)


def test_oldest_messages_are_dropped_when_the_receiver_is_stuck():
    stuck, received = threading.Event(), []

    def send(text):
        stuck.wait(20)
        received.append(json.loads(text))

    with Delivery("test", send) as sender:
        for number in range(delivery.MAX_WAITING + 20):
            sender.put(number)
        stuck.set()
        wait_for(lambda: received and received[-1] == delivery.MAX_WAITING + 19)
    assert sender.dropped >= 19 and len(received) == delivery.MAX_WAITING + 20 - sender.dropped


@pytest.fixture
def broker(tmp_path):
    """Starts Debian's mosquitto on a free port; its path may be given as MOSQUITTO."""
    pytest.importorskip("paho.mqtt", reason="needs pip install paho-mqtt")
    program = os.environ.get("MOSQUITTO") or shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("needs the MQTT broker mosquitto (apt install mosquitto)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    running = []

    def start():
        running.append(subprocess.Popen([program, "-c", str(tmp_path / "broker.conf")], stderr=subprocess.DEVNULL))

    start()
    yield port, start, running
    for process in running:
        process.kill()
        process.wait()


def test_mqtt_delivers_to_a_broker_and_survives_its_restart(broker):
    from paho.mqtt import client as paho

    port, start, running = broker
    received = []

    def listen():
        listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
        listener.on_connect = lambda client, *_: client.subscribe("danet/alarms", qos=1)
        subscribed = threading.Event()
        listener.on_subscribe = lambda *_: subscribed.set()
        listener.on_message = lambda _client, _data, message: received.append(json.loads(message.payload))
        for _ in range(500):
            try:
                listener.connect("127.0.0.1", port)
                break
            except OSError:
                time.sleep(0.05)
        listener.loop_start()
        assert subscribed.wait(30)
        return listener

    first = listen()
    with mqtt(f"127.0.0.1:{port}", "danet/alarms") as sender:
        sender.put({"alarm": 1})
        wait_for(lambda: received == [{"alarm": 1}])
        first.loop_stop()
        running[0].kill()
        running[0].wait()
        sender.put({"alarm": 2})
        time.sleep(0.3)
        start()
        second = listen()
        wait_for(lambda: sender.delivered == 2)
        sender.put({"alarm": 3})
        wait_for(lambda: {"alarm": 3} in received)
    second.loop_stop()


@pytest.mark.parametrize("address", ["http://host", "user:s3cret@host"])
def test_broker_of_another_form_is_refused(address):
    pytest.importorskip("paho.mqtt", reason="needs pip install paho-mqtt")
    with pytest.raises(UserError, match="--mqtt: must be HOST, HOST:PORT or") as caught:
        mqtt(address, "danet/alarms")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["host:0x", "host:99999", "host:0", ":1883", "::1", "[::1", "mqtt://u:s3cret@host:99999"]
)
def test_broker_with_an_invalid_host_or_port_is_refused(address):
    pytest.importorskip("paho.mqtt", reason="needs pip install paho-mqtt")
    with pytest.raises(UserError, match=r"--mqtt: must have a host \(IPv6 in brackets\) and, if any, a port") as caught:
        mqtt(address, "danet/alarms")
    assert "s3cret" not in str(caught.value)
