"""Where time goes in a start: milestones of one traced start, seen by the kernel."""
import os
import re
import time

from bench.page import Table, ms
from bench.timing import now

CALLS = "execve,openat,flock,clone,clone3,vfork,bind,listen,connect,accept,accept4,exit_group"
LINE = re.compile(r"(\d+) +(\d+\.\d+) (\w+)\((.*)")
LAUNCHER, SERVER = "launcher", "server"


def read_events(text):
    """(pid, seconds, call, rest) of each system call that strace wrote down."""
    found = (LINE.match(line) for line in text.splitlines())
    return [(int(m.group(1)), float(m.group(2)), m.group(3), m.group(4)) for m in found if m]


def moment(events, call, part="", pid=None, after=0.0):
    """Seconds of the first event that fits, or None."""
    return next((at for who, at, name, rest in events if name in call.split("|")
                 and part in rest and pid in (None, who) and at >= after), None)


def milestones(events, detached):
    """[(lane, label, begin, end)] of one start, in seconds from its first execve."""
    first, begin = events[0][0], events[0][1]
    python = moment(events, "execve", '"-I", "-S"') or begin
    source = moment(events, "openat", "bootstrap.", after=python)      # or its bytecode
    config = moment(events, "openat", "bootstrap.cfg")
    lock = moment(events, "flock")
    served = moment(events, "execve", "tiny.py")
    script = moment(events, "openat", "tiny.py", after=served)
    listens = moment(events, "listen", after=served)
    rows = [(LAUNCHER, "bash finds Python", begin, python),
            (LAUNCHER, "Python starts", python, source),
            (LAUNCHER, "bootstrap.py and its modules", source, config),
            (LAUNCHER, "settings", config, lock)]
    if detached:
        spawn = moment(events, "clone|clone3|vfork", pid=first)
        end = moment(events, "exit_group", pid=first)
        rows += [(LAUNCHER, "plan, port, log", lock, spawn),
                 (LAUNCHER, "record, and waiting", spawn, listens),
                 (LAUNCHER, "health, owner, report", listens, end)]
    else:
        rows += [(LAUNCHER, "plan, port, record", lock, served)]
    rows += [(SERVER, "Python starts", served, script), (SERVER, "server.py listens", script, listens)]
    lost = [label for _, label, start, stop in rows if start is None or stop is None]
    if lost:
        raise SystemExit("bench: the trace does not show: " + ", ".join(lost))
    return [(lane, label, start - begin, stop - begin) for lane, label, start, stop in rows]


def trace(lab, case, words, detached):
    """The milestones of one start under strace, which stops at the calls of interest only."""
    path = case.path("trace")
    command = [lab.find("strace"), "-f", "-ttt", "--seccomp-bpf", "-s", "200", "-e",
               "trace=" + CALLS, "-o", path, "bash", "start.sh", case.port, *words]
    try:
        case.launch(command)
        deadline = now() + 20
        while now() < deadline:
            time.sleep(0.05)
            with open(path) if os.path.exists(path) else open(os.devnull) as file:
                events = read_events(file.read())
            if moment(events, "exit_group|listen", pid=events[0][0] if events else 0) if (
                    detached) else moment(events, "listen"):
                return milestones(events, detached)
    finally:
        case.end()
    raise SystemExit("bench: the traced start did not come to its end")


def measure_timeline(lab, quick):
    """The shortest of several traced starts in each mode: what tracing does is to add."""
    title = "Where time goes in a start"
    if not lab.find("strace"):
        return Table("timeline", title, ["strace is not installed"], [], {})
    figures, rows = {}, []
    for name, words, detached in (("foreground", ["--foreground"], False),
                                  ("detached", ["--detach"], True)):
        case = lab.case()
        found = [trace(lab, case, words, detached) for _ in range(7 if quick else 25)][1:]
        figures[name] = min(found, key=lambda rows: max(row[3] for row in rows))
        rows += [[name, lane, label, ms(start), ms(stop - start)]
                 for lane, label, start, stop in figures[name]]
    return Table("timeline", title, ["mode", "process", "what", "from", "takes"], rows, figures)
