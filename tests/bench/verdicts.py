"""Who says "ready" although the server does not serve."""
import os
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from bench import cases
from bench.page import Table
from bench.timing import now

PATIENCE = 8.0      # seconds in which a tool has to say something
READY = "says READY"
STRANGER = r"""
import socket, sys, time
port, kind = int(sys.argv[1]), sys.argv[2]
listener = socket.socket()
listener.bind(("127.0.0.1", port))
if kind != "bound":
    listener.listen(64)
print("ready", flush=True)
while kind in ("bound", "silent"):
    time.sleep(60)
status, body = ("200 OK", b'{"status": "ok"}') if kind == "ok" else ("404 Not Found", b"")
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status.encode(), len(body), body))
    connection.close()
"""
FAILURES = (
    ("dies", "dies at once"), ("ok", "taken: answers ok"), ("404", "taken: answers 404"),
    ("silent", "taken: silent"), ("bound", "taken: only bound"))


def verdict(lab, way, failure):
    """What a person is told by one way to start in one failure: a short text."""
    case = lab.case()
    stranger = None
    env = {"TINY_DIES": "1"} if failure == "dies" else {}
    try:
        if failure != "dies":
            stranger = subprocess.Popen(
                [lab.python, "-c", STRANGER, str(case.port), failure], stdout=subprocess.PIPE)
            stranger.stdout.readline()
        *before, last = way.ask(lab, case) if way.ask else [way.start(lab, case)]
        case.env.update(env)
        for command in before:
            case.launch(command)
            await_control(case)
        code = case.launch(last).await_return(PATIENCE)
        return "says nothing" if code is None else READY if code == 0 else "exit %d" % code
    finally:
        if stranger:
            stranger.kill()
            stranger.wait()
            stranger.stdout.close()
        case.end()


def await_control(case):
    """Wait until a supervisor takes commands: its socket or its status is there."""
    deadline = now() + 10
    places = [case.path("control"), case.path("service", "supervise", "status")]
    while now() < deadline and not any(map(os.path.exists, places)):
        time.sleep(0.01)


def measure_verdicts(lab, quick):
    """Every way in every failure, several at a time: nothing is timed here."""
    ways = [way for way in cases.WAYS if not lab.missing(way) and way not in cases.FLOOR]
    jobs = [(way, key) for way in ways for key, _ in FAILURES]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: verdict(lab, *job), jobs))
    figures = {way.name: {} for way in ways}
    for (way, key), text in zip(jobs, found):
        figures[way.name][key] = text
    rows = [[name] + [row[key] for key, _ in FAILURES] + [str(Counter(row.values())[READY])]
            for name, row in figures.items()]
    return Table("verdicts", "Who says ready although its server does not serve", [
        "start"] + [text for _, text in FAILURES] + ["false"], rows, figures)
