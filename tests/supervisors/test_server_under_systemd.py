"""The reference server under the real systemd: its watchdog, and restarts that nobody notices."""
import contextlib
import itertools
import json
import os
import signal
import socket
import threading

import pytest

from harness import ROOT, get, until
from lab import inner_pid
from systemd_lab import Site

pytestmark = pytest.mark.once

NUMBERS = itertools.count()
SERVICE = """[Unit]
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=bash "{start}" {port} --foreground
Environment=HERMES_WEBUI_STATE_DIR={state} PYTHONDONTWRITEBYTECODE=1
Restart=always
RestartSec=50ms
WatchdogSec=2
LimitCORE=0
"""
SOCKET = "[Socket]\nListenStream=127.0.0.1:{port}\n"
# SIGUSR1 has the main thread stand still; every other thread goes on.
WEDGE = ("import signal, threading\n"
         "signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())\n")


class Service:
    """A checkout as a service of its own name, with or without a socket that systemd holds."""

    def __init__(self, systemd, with_socket):
        self.systemd, self.name = systemd, "served-{}".format(next(NUMBERS))
        self.site = Site(systemd.folder / "root" / self.name)
        (self.site.repo / "server.py").write_text(
            WEDGE + (ROOT / "server.py").read_text("utf-8"), "utf-8")
        self.units = [self.name + ".socket"] if with_socket else [self.name + ".service"]
        self.write(".service", SERVICE)
        if with_socket:
            self.write(".socket", SOCKET)
        systemd.systemctl("daemon-reload")
        systemd.systemctl("start", *self.units)

    def write(self, suffix, text):
        path = self.systemd.root / "etc/systemd/system" / (self.name + suffix)
        path.write_text(text.format(start=self.site.start_sh, port=self.site.port,
                                    state=self.site.state), encoding="utf-8")

    def show(self, name):
        return self.systemd.systemctl("show", "-p", name, "--value", self.name).strip()

    def journal(self):
        return self.systemd.run("journalctl", "--no-pager", "-q", "-o", "cat", "-u", self.name)

    def close(self):
        self.systemd.systemctl("stop", *self.units, self.name, check=False)
        print(self.journal()[-4000:])
        for suffix in (".service", ".socket"):
            with contextlib.suppress(FileNotFoundError):
                (self.systemd.root / "etc/systemd/system" / (self.name + suffix)).unlink()
        self.site.kill_all()


@pytest.fixture
def serve(systemd):
    made = []

    def make(with_socket=False):
        made.append(Service(systemd, with_socket))
        return made[-1]
    yield make
    for service in made:
        service.close()


def test_a_healthy_server_is_let_live_and_a_wedged_accept_loop_is_replaced(serve):
    service = serve()
    pid = service.site.served()
    pings = {service.show("WatchdogTimestampMonotonic")}
    until(lambda: pings.add(service.show("WatchdogTimestampMonotonic")) or len(pings) > 5,
          "several pings")
    assert service.site.server() == pid and service.show("NRestarts") == "0"
    assert service.show("StatusText") == "Serving 0 streams"
    os.kill(pid, signal.SIGUSR1)
    until(lambda: get(service.site.url + "health", timeout=0.2)[0] is None, "it hangs")
    new = service.site.served(other_than=pid)
    assert int(service.show("MainPID")) == inner_pid(new)
    assert service.show("NRestarts") == "1"
    assert "Failed with result 'watchdog'" in service.journal()
    assert set(service.site.processes()) == {new}


def test_twenty_restarts_under_socket_activation_lose_no_request(serve):
    service = serve(with_socket=True)
    askers = [Asker(service.site.port) for _ in range(3)]
    try:
        pids = {service.site.served()}
        for _ in range(20):
            counts = [asker.count for asker in askers]
            service.systemd.systemctl("restart", service.name)
            pids.add(service.site.served())
            until(lambda: all(asker.count > count + 2 for asker, count in zip(askers, counts)),
                  "everybody was answered")
    finally:
        for asker in askers:
            asker.over.set()
            asker.join(30)
    assert len(pids) == 21
    assert [asker.lost for asker in askers] == [[]] * 3


class Asker(threading.Thread):
    """Asks for health, one connection after the other, and keeps what was not answered."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.over, self.count, self.lost = port, threading.Event(), 0, []
        self.start()

    def run(self):
        while not self.over.is_set():
            try:
                assert json.loads(self.ask().decode())["status"] == "ok"
                self.count += 1
            except (OSError, ValueError, AssertionError) as error:
                self.lost.append(repr(error))

    def ask(self):
        """The body of one complete answer."""
        data = b""
        with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            for piece in iter(lambda: sock.recv(65536), b""):
                data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), data
        return body
