"""cron, with the crontab of docs/supervisor.md: what it starts is detached."""
import os
import signal

import pytest

from harness import until
from lab import lab, needs  # noqa: F401

pytestmark = [pytest.mark.once, needs("cron", "crontab")]


def test_cron_starts_a_detached_server_and_keeps_it_alive(lab, proving, record_cell):
    with proving("cron", "detected"):
        lab.shell("rm -rf /etc/cron.d /etc/cron.hourly /etc/cron.daily; : >/etc/crontab;"
                  " rm -rf /var/spool/cron/crontabs/*")
        lab.write("crontab", lab.page("crontab", PATH=lab.env["PATH"]))
        lab.follow("cron-install")
        lab.spawn("cron", "-f")
        lab.tracked = None
        server = until(lab.alone, "one server runs, detached", 40)
        assert lab.status_inside()["mode"] == "detached"
        assert "HERMES_WEBUI_LAUNCH_ID" in lab.starts()[-1]["environ"]
    with proving("cron", "no orphan"):
        keep_alive = next(line.split(None, 5)[5] for line in lab.ask("crontab", "-l").splitlines()
                          if line.startswith("*"))
        before = len(lab.starts())
        lab.shell(keep_alive)
        assert until(lab.alone, "one server runs, detached") == server and len(lab.starts()) == before
        os.kill(server, signal.SIGKILL)
        until(lambda: not lab.servers(), "the server is gone")
        lab.shell(keep_alive)
        until(lambda: lab.alone([server]), "one server runs, detached")
        assert len(lab.starts()) == before + 1
    with proving("cron", "stops clean"):
        lab.follow("cron-stop")
        until(lab.is_clean, "nothing of ours runs")
    record_cell("cron", "detected", "detached")
    record_cell("cron", "10 kills", "one")
