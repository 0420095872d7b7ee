"""Real servers, raw sockets and a real browser for the tests of server.py."""
import base64
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

SERVER = pathlib.Path(__file__).resolve().parent.parent / "server.py"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


def until(question, seconds=20, what="it"):
    """The first truthy answer of `question()`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = question()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError("%s did not happen within %s s" % (what, seconds))


def free_port(host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


class Running:
    """One server process: where it listens, what it wrote, and ways to ask it."""

    def __init__(self, folder, host="127.0.0.1", port=None, code=None, python=sys.executable,
                 tls=None, wait=True, preexec=None, pass_fds=(), under=(), **environment):
        self.host, self.port, self.tls, self.folder = host, port or free_port(host), tls, folder
        self.state, self.home = folder / "state", folder / "hermes"
        self.log = tempfile.TemporaryFile()
        settings = {"PATH": os.environ["PATH"], "HOME": str(folder), "HERMES_HOME": str(self.home),
                    "HERMES_WEBUI_STATE_DIR": str(self.state), "HERMES_WEBUI_HOST": host,
                    "HERMES_WEBUI_PORT": str(self.port), **environment}
        command = [*under, python, *([str(SERVER)] if code is None else ["-c", code])]
        self.process = subprocess.Popen(
            command, env=settings, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            cwd=str(SERVER.parent), preexec_fn=preexec, pass_fds=pass_fds)
        try:
            if wait:
                until(self.answers, what="the server's first answer")
        except BaseException:
            self.end()
            raise

    @property
    def url(self):
        return "http://%s:%d/" % (self.host, self.port)

    def answers(self):
        assert self.process.poll() is None, self.output()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/health")[0] in (200, 503)

    def output(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def connect(self, timeout=20):
        sock = socket.create_connection((self.host, self.port), timeout)
        return self.tls.wrap_socket(sock, server_hostname="localhost") if self.tls else sock

    def get(self, path, method="GET", timeout=20, **headers):
        """Status, headers (lower case) and body of one request."""
        client = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        if self.tls:
            client = http.client.HTTPSConnection(self.host, self.port, timeout=timeout,
                                                 context=self.tls)
        try:
            client.request(method, path, headers={"Connection": "close", **headers})
            answer = client.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, fields, answer.read()
        finally:
            client.close()

    def json(self, path):
        return json.loads(self.get(path)[2])

    def raw(self, data, timeout=20):
        """Everything the server says to these bytes until it closes."""
        with self.connect(timeout) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            return read_all(sock)

    def stop(self, seconds=20):
        """End it by SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self):
        """Make sure that nothing of it is left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def start(tmp_path):
    """Starts servers that end with the test."""
    started = []

    def launch(**options):
        started.append(Running(tmp_path, **options))
        return started[-1]
    yield launch
    for running in started:
        running.end()


def read_all(sock):
    """What comes until the other side closes, bytes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while True:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    return data


def statuses(data):
    """The status codes in a raw answer, list of int."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", data)]


class Events:
    """A client of /api/events."""

    def __init__(self, server):
        self.sock = server.connect()
        self.sock.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.data = b""
        self.read_until(b"\r\n\r\n")

    def read_until(self, mark):
        """Bytes up to `mark`, which is thrown away."""
        while mark not in self.data:
            piece = self.sock.recv(65536)
            assert piece, "the stream ended"
            self.data += piece
        found, _, self.data = self.data.partition(mark)
        return found

    def status(self):
        """The next status event, dict."""
        self.read_until(b"event: status\ndata: ")
        return json.loads(self.read_until(b"\n\n").decode())


class Browser:
    """Chromium, driven over --remote-debugging-pipe: JSON messages with a NUL behind each."""

    def __init__(self, folder, width=1000, height=900, dark=False, script=True):
        to_browser, self.out = os.pipe()
        self.inp, from_browser = os.pipe()

        def plumb():
            fds = os.dup(to_browser), os.dup(from_browser)
            os.dup2(fds[0], 3)
            os.dup2(fds[1], 4)
        self.process = subprocess.Popen(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--user-data-dir=%s" % folder,
             "--remote-debugging-pipe", "about:blank"],
            preexec_fn=plumb, pass_fds=(3, 4), start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.buffer, self.session, self.faults = 0, b"", None, []
        try:
            self.attach(width, height, dark)
            self.call("Emulation.setScriptExecutionDisabled", value=not script)
        except BaseException:
            self.end()
            raise

    def attach(self, width, height, dark):
        """Take over the first page, with a screen of this size and theme."""
        page = until(lambda: [target for target in self.call("Target.getTargets")["targetInfos"]
                              if target["type"] == "page"])[0]
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"],
                                 flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def call(self, method, **params):
        """The result of one DevTools command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.inp, 1 << 20)
            assert piece, "the browser ended"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message.decode())
        entry = message.get("params", {}).get("entry", {})
        if message.get("method") == "Runtime.exceptionThrown" or (
                entry.get("level") == "error" and entry.get("source") != "network"):
            self.faults.append(message["params"])
        return message

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, expression):
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True)["result"].get("value")

    def sees(self, text, seconds=20):
        until(lambda: text in (self.run("document.body && document.body.innerText") or ""), seconds,
              "%r in the page" % text)

    def text(self, id):
        """What an element shows."""
        return self.run("document.getElementById(%r).innerText" % id)

    def rows(self, id):
        """What a table shows, list of lists of str."""
        return self.run("[...document.getElementById(%r).rows].map("
                        "row => [...row.cells].map(cell => cell.innerText))" % id)

    def drawn(self, id):
        """The outline of an element of a drawing."""
        return self.run("document.getElementById(%r).getAttribute('d')" % id) or ""

    def shoot(self):
        """A picture of the whole page, PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot",
                                          captureBeyondViewport=True)["data"])

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.out)
        os.close(self.inp)
