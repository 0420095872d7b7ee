"""What the tests share: a copy of the project that is launched for real, and the end of all it started."""
import contextlib
import fcntl
import http.client
import json
import os
import pty
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import namedtuple
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import servers

ROOT = Path(__file__).resolve().parent.parent
# The interpreter itself, not the tests' environment around it: what an operator would have.
PYTHON = os.path.realpath(sys.executable)
# Root reads and writes everything; without these two capabilities it is an operator like any other.
AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()

Result = namedtuple("Result", "code out err seconds")


def until(question, what, seconds=20):
    """The first true answer to the question, or a failed test once the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail("after {} s still not true: {}".format(seconds, what))
        time.sleep(0.005)


def free_port():
    """A port nobody serves, from below the range that outgoing connections draw on."""
    while True:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            return port


def has_ipv6():
    """Whether ::1 can be bound."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def is_alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path("/proc/{}/stat".format(pid)).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def get(url, timeout=5):
    """The status and the body that the server answers, or (None, b"") where nothing does."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def refused(result, code, *words):
    """Assert the shape of every failure: one line says what is wrong, an indented one what to do."""
    assert (result.code, result.out) == (code, ""), result.err
    lines = result.err.splitlines()
    start = max(n for n, line in enumerate(lines) if line.startswith("bootstrap: "))
    message = lines[start:]
    own = [line for line in message if not line.startswith("  | ")]
    assert len(own) == 2 and own[1].startswith("  ") and own[1].strip(), result.err
    assert "Traceback" not in "".join(line for line in lines if not line.startswith("  | "))
    for word in words:
        assert str(word) in "\n".join(message), "{!r} is not in:\n{}".format(word, result.err)


class App:
    """The project in a folder of its own, with an environment of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.repo = folder / "my chëckout"
        self.home = folder / "home"
        self.state = self.home / ".hermes" / "webui"
        self.port = free_port()
        self.env = {"HOME": str(self.home), "PATH": os.pathsep.join(
            [os.path.dirname(PYTHON), "/usr/local/bin", "/usr/bin", "/bin"])}
        self.launched = []
        self.home.mkdir()
        self.repo.mkdir()
        for name in ("bootstrap.py", "start.sh"):
            shutil.copy(str(ROOT / name), str(self.repo))
        self.serve(servers.OK)

    def __call__(self, source, *words, **options):
        """Launch a server that is this source text."""
        self.serve(source)
        return self.launch(*words, **options)

    def serve(self, source):
        (self.repo / "server.py").write_text(source, encoding="utf-8")

    def serve_for_real(self):
        shutil.copy(str(ROOT / "server.py"), str(self.repo))

    def write(self, name, content):
        """A file of the repository, from text or bytes."""
        path = self.repo / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    def configure(self, **keys):
        """A bootstrap.cfg that keeps this project's names, with these keys on top."""
        rows = {"name": "Hermes Web UI", "env_prefix": "HERMES_WEBUI_", "health": "/health",
                "state_dir": self.state}
        rows.update(keys)
        text = "".join("{} = {}\n".format(*row) for row in rows.items() if row[1] is not None)
        return self.write("bootstrap.cfg", "[bootstrap]\n" + text)

    def command(self, *words, by=None, under=(), port=True):
        """The command line; `by` is another launcher than bootstrap.py, `under` runs before it."""
        launcher = by or (PYTHON, self.repo / "bootstrap.py")
        number = (self.port,) if port is True else () if port is None else (port,)
        return [str(word) for word in (*under, *launcher, *number, *words)]

    def launch(self, *words, env=None, by=None, under=(), port=True, **options):
        """Start the launcher; None in `env` takes a variable away."""
        everything = dict(self.env, **(env or {}))
        keywords = dict(
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace", cwd=str(self.folder),
            env={name: str(value) for name, value in everything.items() if value is not None})
        keywords.update(options)
        command = self.command(*words, by=by, under=under, port=port)
        self.launched.append(subprocess.Popen(command, **keywords))
        return self.launched[-1]

    def run(self, *words, timeout=40, **options):
        """Start the launcher and wait for its end."""
        began = time.monotonic()
        return self.result(self.launch(*words, **options), timeout, began)

    def result(self, process, timeout=40, began=None):
        out, err = process.communicate(timeout=timeout)
        seconds = time.monotonic() - began if began else None
        print("$", *process.args, "\n[{}]".format(process.returncode), out, err)
        return Result(process.returncode, out, err, seconds)

    def start(self, *words, **options):
        """A detached start that must succeed; returns the pid of the server."""
        result = self.run(*words, **options)
        assert (result.code, result.out) == (0, self.url + "\n"), result.err
        return self.pid()

    def plan(self, *words, **options):
        """What --print-plan says, as an object."""
        result = self.run("--print-plan", "--json", *words, **options)
        assert result.code == 0, result.err
        return json.loads(result.out)

    def status(self, *words, **options):
        """What --status says, as an object that also holds the exit code."""
        result = self.run("--status", "--json", *words, **options)
        return dict(json.loads(result.out), code=result.code)

    @property
    def url(self):
        return "http://127.0.0.1:{}/".format(self.port)

    def pid(self):
        return self.starts()[-1]["pid"]

    def starts(self):
        """What each start of the small servers wrote about itself, the oldest first."""
        try:
            lines = (self.repo / "starts").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def started(self):
        """Wait until the server says where it stands."""
        return until(self.starts, "the server has started")[-1]

    def file(self, suffix):
        """A state file of this port: lock, log, log.1, record."""
        return self.state / "bootstrap-{}.{}".format(self.port, suffix)

    def answers(self):
        """Whether the server says ok."""
        status, body = get(self.url + "health")
        return status == 200 and json.loads(body.decode()).get("status") == "ok"

    def is_free(self):
        """Whether the port can be bound, as a server does it."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    def processes(self):
        """pid and command of each live process whose environment names this folder."""
        mark = os.fsencode(str(self.folder)) + b"/"
        found = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                here = Path("/proc", entry)
                if mark in (here / "environ").read_bytes() and is_alive(entry):
                    found[int(entry)] = (here / "cmdline").read_bytes().replace(b"\0", b" ").decode(
                        "utf-8", "replace").strip()
        return found

    def is_gone(self):
        """Assert that nothing started from here runs any more."""
        assert self.processes() == {}
        return True

    def stranger(self, source):
        """A process of somebody else."""
        self.launched.append(subprocess.Popen(
            [PYTHON, "-c", source, str(self.port)], env={"PATH": "/nowhere"},
            stdout=subprocess.PIPE, encoding="utf-8"))
        return self.launched[-1]

    def foreign(self, source):
        """A process of somebody else on our port, ready as soon as it says so."""
        process = self.stranger(source)
        assert process.stdout.readline() == "ready\n"
        return process

    def terminal(self, *words, **options):
        return Terminal(self, words, options)

    def close(self):
        """End everything, and leave the log for the report of a failing test."""
        for process in self.launched:
            process.kill()
            process.wait()
            for stream in filter(None, (process.stdout, process.stderr)):
                stream.close()
        until(lambda: not self.kill_all(), "all processes of the test have ended")
        for log in sorted(self.folder.glob("**/bootstrap-*.log")):
            print("== {}\n{}".format(log.name, log.read_bytes()[-4000:].decode("utf-8", "replace")))

    def kill_all(self):
        found = self.processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found


class Terminal:
    """The launcher on a terminal of its own: in the foreground of a session that it controls."""

    def __init__(self, app, words, options):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""
        self.process = app.launch(
            *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options)
        os.close(slave)

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, wanted=None, seconds=30):
        """Collect the screen until it shows the wanted text, or until the terminal is let go."""
        deadline = time.monotonic() + seconds
        while wanted is None or wanted not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                pytest.fail("the terminal shows only: " + self.text)
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # EIO: nobody holds the other side any more
                piece = b""
            if not piece:
                break
            self.text += piece.decode("utf-8", "replace")
        return self.text

    def finish(self):
        """The exit code, and all that was shown."""
        text = self.read()
        os.close(self.master)
        code = self.process.wait(timeout=30)
        print("$", *self.process.args, "\n[{}]".format(code), text)
        return code, text
