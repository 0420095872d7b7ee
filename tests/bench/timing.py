"""What every measurement is made with: start, watch, weigh and end real processes."""
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import namedtuple

POLL = 0.0004       # seconds between two questions for health
PATIENCE = 30.0     # seconds after which a start counts as failed
now = time.monotonic

Sample = namedtuple("Sample", "healthy returned cpu beside code")
Sample.__doc__ = """One start. healthy, returned: seconds from its begin, None where it was not
seen; cpu: seconds of all its processes until it was healthy; beside: bytes (PSS) of all but the
server; code: exit code of what was started, None while it runs."""


def free_port():
    """A port nobody serves, from below the range that outgoing connections draw on."""
    while True:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            return port


def median(values):
    """The median of the values that are there, or None."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def ratio(value, base):
    return value / base if value is not None and base else None


def ask_health(port):
    """Pid (int, 0 where it is not told) of the server that says ok on the port, or None."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as stream:
        stream.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        for piece in iter(lambda: stream.recv(4096), b""):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if b'"ok"' not in body:
        return None
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return int(fields.get(b"Pid", b"0"))


def read_bytes(path):
    """Content of a file of /proc, b"" where the process is gone or not ours."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def cpu_of(pid):
    """Seconds that the threads of a process have run (proc(5), schedstat)."""
    tasks = []
    with contextlib.suppress(OSError):
        tasks = os.listdir("/proc/%d/task" % pid)
    rows = (read_bytes("/proc/%d/task/%s/schedstat" % (pid, task)).split() for task in tasks)
    return sum(int(row[0]) for row in rows if row) / 1e9


def pss_of(pid):
    """Bytes of memory that are a process's own share (proc(5), smaps_rollup)."""
    for line in read_bytes("/proc/%d/smaps_rollup" % pid).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Running:
    """A started command, and a thread that notes its end and the CPU it used."""

    def __init__(self, command, **options):
        keywords = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL, start_new_session=True)
        keywords.update(options)
        self.code = self.returned = None
        self.cpu = 0.0
        self.begin = now()
        self.process = subprocess.Popen(command, **keywords)
        self.thread = threading.Thread(target=self.wait, daemon=True)
        self.thread.start()

    def wait(self):
        _, status, usage = os.wait4(self.process.pid, 0)
        self.returned = now()
        self.cpu = usage.ru_utime + usage.ru_stime
        self.code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.process.returncode = self.code

    def await_return(self, seconds=PATIENCE):
        """Exit code, or None where it still runs."""
        self.thread.join(seconds)
        return self.code


class Case:
    """A folder and a port in which one thing is started again and again.

    Whatever is started here carries the folder in its environment, and is found and ended by it.
    """

    def __init__(self, folder, **environ):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.mark = ("BENCH_CASE=%s" % folder).encode()
        self.env = dict(environ, HOME=folder, PORT=str(self.port), BENCH_CASE=folder)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def launch(self, command, env=(), **options):
        everything = {name: str(value) for name, value in dict(self.env, **dict(env)).items()}
        return Running([str(word) for word in command], cwd=self.folder, env=everything, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def processes(self):
        """Pids of all that was started here and still runs."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and
                self.mark in read_bytes("/proc/%s/environ" % name).split(b"\0")]

    def end(self):
        """End every process of this case, by its pid."""
        deadline = now() + PATIENCE
        for pids in iter(self.processes, []):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if now() > deadline:
                raise SystemExit("bench: these processes do not end: %s" % pids)
            time.sleep(0.002)

    def start(self, command, returns=False, env=(), patience=PATIENCE):
        """Start the command, wait until it is healthy and has returned; a Sample."""
        try:
            running = self.launch(command, env)
            server = await_health(self.port, running, patience, returns)
            healthy = now() - running.begin if server is not None else None
            if returns:
                running.await_return(patience)
            pids = self.processes()
            cpu = running.cpu + sum(map(cpu_of, pids))
            beside = sum(pss_of(pid) for pid in pids if pid != server) if server else None
            returned = running.returned - running.begin if running.returned else None
            return Sample(healthy, returned, cpu, beside, running.code)
        finally:
            self.end()


def await_health(port, running, patience, returns, pause=POLL):
    """Pid of the server once it says ok; None at the time limit, or where its starter failed."""
    while now() < running.begin + patience:
        server = ask_health(port)
        if server is not None:
            return server
        if running.code is not None and not (returns and running.code == 0):
            return None
        time.sleep(pause)
    return None
