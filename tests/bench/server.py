#!/usr/bin/env python3
"""Puts server.py under load beside waitress and gunicorn: python3 tests/bench/server.py [--full]

wrk holds 64 connections on loopback and asks for /health as fast as it is answered. waitress and
gunicorn serve the same JSON with the same Python, one process and four threads each. The servers
take turns, so that a busy moment of the machine meets them all. Nothing is asserted about time; the
exit status is 1 where server.py answered with anything but 200 and 503, or dropped a connection.
"""
import argparse
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / ".test-venv" / "bench"
CONNECTIONS, PATIENCE = 64, 20.0
WSGI = """
BODY = open("answer.json", "rb").read()
FIELDS = [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))]

def app(environ, start_response):
    start_response("200 OK", FIELDS)
    return [BODY]
"""
REPORT = """
function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '\\n{"rate": %f, "p50_ms": %f, "p99_ms": %f, "answers": %d, "not_2xx": %d, "dropped": %d}',
        summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3,
        latency:percentile(99) / 1e3, summary.requests, e.status,
        e.connect + e.read + e.write + e.timeout))
end
"""
Server = namedtuple("Server", "name process port")


def fail(problem, remedy):
    sys.exit("bench: %s\n  %s" % (problem, remedy))


def install():
    """The Python of an environment that has the other servers."""
    python = TOOLS / "bin" / "python"
    wanted = ["-c", "import gunicorn, waitress"]
    if not python.exists() or subprocess.call([str(python), *wanted], stderr=subprocess.DEVNULL):
        print("bench: installing waitress and gunicorn into %s" % TOOLS, file=sys.stderr)
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", str(TOOLS)])
        subprocess.check_call([str(python), "-m", "pip", "install", "--quiet",
                               "--disable-pip-version-check", "waitress", "gunicorn"])
    return str(python)


def commands(python, folder):
    """{name: command line with a place for the port} of all servers."""
    return {
        "server.py": [python, str(ROOT / "server.py")],
        "waitress": [python, "-m", "waitress", "--listen=127.0.0.1:{port}", "--threads=4",
                     "wsgi:app"],
        "gunicorn": [python, "-m", "gunicorn", "--bind=127.0.0.1:{port}", "--workers=1",
                     "--threads=4", "--keep-alive=5", "--worker-tmp-dir", folder,
                     "wsgi:app"]}


def free_port():
    """A port nobody serves, from below the range that outgoing connections draw on."""
    while True:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def ask(port, path):
    """The body of an answer, bytes; raises OSError."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request("GET", path, headers={"Connection": "close"})
        return client.getresponse().read()
    finally:
        client.close()


@contextlib.contextmanager
def serving(name, command, folder):
    """A server that answers; it ends with its whole session."""
    port = free_port()
    with open(os.path.join(folder, name + ".log"), "wb") as log:
        process = subprocess.Popen(
            [word.format(port=port) for word in command], cwd=folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": folder, "HERMES_WEBUI_PORT": str(port)})
    try:
        await_answer(name, process, port, folder)
        yield Server(name, process, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_answer(name, process, port, folder):
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(port, "/health")
        if process.poll() is not None or time.monotonic() > end:
            log = Path(folder, name + ".log").read_text("utf-8", "replace")
            fail("%s does not answer" % name, log[-2000:].replace("\n", "\n  "))
        time.sleep(0.02)


def load(port, seconds, folder):
    """What wrk measured, dict."""
    done = subprocess.run(
        ["wrk", "--threads=2", "--connections=%d" % CONNECTIONS, "--duration=%ds" % seconds,
         "--script=%s/report.lua" % folder, "http://127.0.0.1:%d/health" % port],
        stdout=subprocess.PIPE, check=True, timeout=seconds + PATIENCE)
    return json.loads(done.stdout.decode().splitlines()[-1])


def take_turns(servers, rounds, seconds, folder):
    """{name: list of what wrk measured}; each round begins with another server."""
    turns = {server.name: [] for server in servers}
    for number in range(rounds):
        for server in servers[number % len(servers):] + servers[:number % len(servers)]:
            print("bench: round %d of %d, %s" % (number + 1, rounds, server.name), file=sys.stderr)
            load(server.port, 1, folder)
            turns[server.name].append(load(server.port, seconds, folder))
    return turns


def summarize(turns):
    """{name: figures}: medians of the rates and times, sums of the counts, ratio to server.py."""
    figures = {}
    for name, found in turns.items():
        figures[name] = {key: statistics.median(turn[key] for turn in found)
                         for key in ("rate", "p50_ms", "p99_ms")}
        figures[name].update((key, sum(turn[key] for turn in found))
                             for key in ("answers", "not_2xx", "dropped"))
    for found in figures.values():
        found["ratio"] = found["rate"] / figures["server.py"]["rate"]
    return figures


def statuses(port):
    """{status: how often server.py answered it}, by its own count."""
    text = ask(port, "/metrics").decode()
    return {int(code): int(count) for code, count in re.findall(
        r'^webui_responses_total\{code="(\d+)"\} (\d+)$', text, re.MULTILINE)}


def show(figures, told):
    row = "%-10s %12s %9s %9s %8s %8s %7s"
    print(row % ("server", "requests/s", "p50 ms", "p99 ms", "not 2xx", "dropped", "ratio"))
    for name, found in figures.items():
        print(row % (name, "%.0f" % found["rate"], "%.2f" % found["p50_ms"],
                     "%.2f" % found["p99_ms"], found["not_2xx"], found["dropped"],
                     "%.2f" % found["ratio"]))
    print("server.py answered: " + ", ".join("%d times %d" % (count, code)
                                             for code, count in sorted(told.items())))


def measure(rounds, seconds):
    """The figures of all servers, and how often server.py answered which status."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder, "wsgi.py").write_text(WSGI)
        Path(folder, "report.lua").write_text(REPORT)
        servers = []
        for name, command in commands(install(), folder).items():
            servers.append(stack.enter_context(serving(name, command, folder)))
            if name == "server.py":
                Path(folder, "answer.json").write_bytes(ask(servers[0].port, "/health"))
        figures = summarize(take_turns(servers, rounds, seconds, folder))
        return figures, statuses(servers[0].port)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--full", action="store_true", help="20 s for each turn, not 2")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each server")
    parser.add_argument("--json", metavar="PATH", help="write the figures to a file")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        fail("there is no wrk", "on Debian or Ubuntu: apt install wrk")
    rounds, seconds = options.rounds or (1 if options.full else 3), 20 if options.full else 2
    figures, told = measure(rounds, seconds)
    show(figures, told)
    if options.json:
        Path(options.json).write_text(json.dumps({
            "connections": CONNECTIONS, "seconds": seconds, "rounds": rounds,
            "python": sys.version.split()[0], "cpus": os.cpu_count(), "servers": figures,
            "statuses": told}, indent=1) + "\n")
    return int(bool(set(told) - {200, 503}) or figures["server.py"]["dropped"] > 0)


if __name__ == "__main__":
    sys.exit(main())
