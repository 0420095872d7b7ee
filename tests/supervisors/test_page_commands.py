"""docs/supervisor.md is followed to the letter: its commands for systemd and launchd."""
import json
import os
import plistlib
import re
import signal
import subprocess

import pytest

from harness import until
from lab import inner_pid
from page import block, commands, fill
from systemd_lab import UID, USER, Site, run

pytestmark = pytest.mark.once


class Reader:
    """Somebody who reads the page and types what it says."""

    def __init__(self, systemd, user=None):
        self.systemd, self.user = systemd, user
        self.site = Site(systemd.folder / (user or "root") / "reader", UID if user else None)

    def fill(self, text):
        return fill(text, CHECKOUT=self.site.repo, PORT=self.site.port, STATE=self.site.state,
                    USER=self.user or "root")

    def put(self, name):
        """Save a file of the page where its first comment wants it."""
        text = self.fill(block(name))
        place = self.systemd.root / re.match(r"# /(\S+)", text).group(1)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def type(self, name, **options):
        return [self.systemd.run("sh", "-c", self.fill(line), user=self.user, **options)
                for line in commands(name)]

    def status(self):
        line, = commands("diagnosis")
        return json.loads(self.systemd.run(
            "sh", "-c", "HERMES_WEBUI_STATE_DIR={} {} --json".format(
                self.site.state, self.fill(line)), user=self.user, check=False))

    def main_pid(self):
        scope = ("--user",) if self.user else ()
        return int(self.systemd.run("systemctl", *scope, "show", "-p", "MainPID", "--value",
                                    "hermes-web-ui", user=self.user))

    def close(self):
        for unit in ("hermes-web-ui-watchdog.timer", "hermes-web-ui.socket", "hermes-web-ui"):
            self.systemd.systemctl("disable", "--now", unit, user=self.user, check=False)
        folder = self.systemd.root / "etc/systemd/system"
        if (folder / "hermes-web-ui.service.d/notify.conf").exists():
            (folder / "hermes-web-ui.service.d/notify.conf").unlink()
        for name in ("hermes-web-ui.service", "hermes-web-ui.socket"):
            if (folder / name).exists():
                (folder / name).unlink()
        self.systemd.run("journalctl", "--no-pager", "-q", "-n", "30", "-u", "hermes-web-ui*",
                         check=False)
        self.site.kill_all()


@pytest.fixture
def reader(systemd):
    made = []

    def make(user=None):
        made.append(Reader(systemd, user))
        return made[-1]
    yield make
    for reader in made:
        reader.close()
        run("rm", "-r", reader.site.folder)


@pytest.mark.parametrize("user, name", [(None, "systemd"), (USER, "systemd-user")])
def test_the_commands_for_systemd_do_what_they_say(reader, user, name):
    reader = reader(user)
    reader.type(name + "-install")
    pid = reader.site.served()
    assert reader.main_pid() == inner_pid(pid)
    reader.type(name + "-reload")
    new = reader.site.served(other_than=pid)
    assert reader.main_pid() == inner_pid(new)
    assert "active (running)" in reader.type(name + "-logs")[0]
    reader.type(name + "-stop")
    assert reader.site.is_gone()


def test_the_drop_in_for_readiness_is_valid_as_it_stands(reader):
    reader = reader()
    reader.put("notify.conf")
    reader.type("systemd-install")
    assert reader.site.answers(), "the start came back before the server answered"
    shown = reader.systemd.systemctl("show", "-p", "Type,WatchdogUSec", "hermes-web-ui")
    assert "Type=notify" in shown and "WatchdogUSec=30s" in shown


def test_the_socket_is_held_while_the_service_is_restarted(reader):
    reader = reader()
    reader.type("systemd-install")
    reader.type("systemd-stop")
    reader.put("hermes-web-ui.socket")
    reader.systemd.systemctl("daemon-reload")
    reader.systemd.systemctl("enable", "--now", "hermes-web-ui.socket")
    assert not reader.site.processes()
    for _ in range(3):
        assert reader.site.answers(), "the first caller is served"
        reader.type("systemd-reload")


def test_the_diagnosis_tells_a_service_from_its_orphan(reader):
    reader = reader()
    assert reader.status()["state"] == "not running"
    reader.type("systemd-install")
    pid = reader.site.served()
    said = reader.status()
    assert (said["state"], said["pid"], said["supervisor"]) == ("running", inner_pid(pid), "systemd")
    assert said["parent"].startswith("pid 1 ")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert reader.status()["state"] == "wedged"
    finally:
        os.kill(pid, signal.SIGCONT)
    reader.type("systemd-stop")
    reader.site.is_gone()
    # A launcher that leaves a server behind: the loop at the top of the page, for real.
    reader.systemd.run(
        "systemd-run", "--unit=leaver", "--property=KillMode=process",
        "--setenv=HERMES_WEBUI_PORT={}".format(reader.site.port),
        "--setenv=HERMES_WEBUI_STATE_DIR={}".format(reader.site.state),
        "sh", "-c", 'setsid python3 "$0" & exit 0', reader.site.repo / "server.py")
    orphan = reader.site.served()
    until(lambda: reader.systemd.systemctl("is-active", "leaver", check=False).strip() != "active",
          "the launcher has ended")
    said = reader.status()
    assert (said["state"], said["pid"]) == ("orphan", None), said
    assert "kill {}".format(inner_pid(orphan)) in said["remedy"] and "--foreground" in said["remedy"]


@pytest.mark.parametrize("name", ["launchd-install", "launchd-reload", "launchd-logs", "launchd-stop"])
def test_the_commands_for_launchd_are_shell_and_name_the_printed_agent(app, name):
    text = fill(block(name), CHECKOUT=app.repo, PORT=app.port, STATE=app.state)
    assert subprocess.run(["bash", "-n"], input=text, encoding="utf-8", timeout=10).returncode == 0
    label = plistlib.loads(app.run("--unit", "launchd").out.encode())["Label"]
    assert all(label in line for line in text.splitlines() if "launchctl" in line)
