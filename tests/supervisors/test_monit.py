"""monit, with the file of docs/supervisor.md: it wants a daemon, and a start program that ends."""
import os
import re
import signal

import pytest

from harness import until
from lab import lab, needs  # noqa: F401

pytestmark = [pytest.mark.once, needs("monit")]
MONITRC = """set daemon 1
set httpd unixsocket /run/monit.socket
    allow root:root
set pidfile /run/monit.pid
set statefile /run/monit.state
set idfile /run/monit.id
include /etc/monit/conf.d/*
"""


def install(lab):
    lab.tracked = lambda: tracked(lab)
    lab.shell("rm -rf /etc/monit/conf.d")
    lab.put("monit.conf")
    lab.write_file("/etc/monit/monitrc", MONITRC, 0o600)
    lab.spawn("monit", "-I")
    until(lambda: lab.call("monit", "status", check=False, quiet=True).returncode == 0, "monit answers")
    lab.follow("monit-install")


def tracked(lab):
    found = re.search(r"^ *pid +(\d+)$", lab.ask("monit", "-B", "status", "hermes-webui"), re.M)
    return int(found.group(1)) if found else 0


def detached(lab, after=()):
    """The one server, healthy, detached and seen by monit, once its launcher has ended."""
    return until(lambda: lab.alone(after), "one server runs, detached", 40)


def test_monit_gets_a_daemon_and_starts_a_killed_one_again(lab, proving, record_cell):
    with proving("monit", "detected"):
        install(lab)
        seen = [detached(lab)]
        report = lab.status_inside()
        assert (report["mode"], report["supervisor"]) == ("detached", None)
    with proving("monit", "10 kills"):
        for _ in range(10):
            os.kill(seen[-1], signal.SIGKILL)
            seen.append(detached(lab, seen))
        assert len(lab.starts()) == 11
    with proving("monit", "stops clean"):
        lab.follow("monit-reload")
        detached(lab, seen)
        assert "bootstrap" not in lab.follow("monit-logs")
        lab.follow("monit-stop")
        until(lab.is_clean, "nothing of ours runs")
    record_cell("monit", "detected", "detached")
