"""The watchdogs of docs/supervisor.md: they restart what is sick, and leave alone what is stopped."""
import os
import plistlib
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

import servers
from harness import PYTHON, until
from lab import inner_pid, lab, needs  # noqa: F401
from page import block, commands, fill, table
from systemd_lab import UID, USER, Site, run
from test_page_commands import Reader

pytestmark = pytest.mark.once

SERVICE, TIMER = "hermes-web-ui-watchdog.service", "hermes-web-ui-watchdog.timer"
# It says that it is sick while there is a file `sick` beside it.
SICKLY = servers.small(
    "note()", "answer(listen(), lambda path: [http(b'{\"status\": \"degraded\"}', '503 X') "
    "if os.path.exists(os.path.join(here, 'sick')) else OK])")


def test_the_question_of_the_page_has_the_answers_of_the_page(app):
    app.serve(SICKLY)
    line, = commands("watchdog-check")

    def ask():
        done = subprocess.run(
            ["sh", "-c", fill(line, CHECKOUT=app.repo, PORT=app.port, STATE=app.state)],
            env=app.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=40)
        return done.returncode, bool(done.stdout)
    assert ask() == (3, True)
    app.start()
    assert ask() == (0, False)
    app.write("sick", "")
    assert ask() == (1, True)
    app.run("--stop")
    assert ask() == (3, True)
    written = table("## HTTP watchdog")
    assert [code for code, row in written.items() if row["the watchdog"].startswith("restarts")] == [
        "**1**"] and {"0", "3", "any other"} < set(written)


# -- systemd -----------------------------------------------------------------------------------


class Watched(Reader):
    """A reader whose service is that of a user without rights."""

    def __init__(self, systemd):
        self.systemd, self.user = systemd, None
        self.site = Site(systemd.folder / USER / "watched", UID)
        self.dropin = systemd.root / "etc/systemd/system" / (TIMER + ".d") / "test.conf"

    def fill(self, text):
        return fill(text, CHECKOUT=self.site.repo, PORT=self.site.port, STATE=self.site.state,
                    USER=USER)

    def install(self):
        """The unit that the user prints, and the watchdog of the page; the pid of the server."""
        printing, *others = commands("systemd-install")
        question, place = self.fill(printing).split(" > ")
        text = self.systemd.run("sh", "-c", question, user=USER)
        (self.systemd.root / place.lstrip("/")).write_text(text, encoding="utf-8")
        self.put(SERVICE)
        self.put(TIMER)
        for line in others:
            self.systemd.run("sh", "-c", line)
        return self.site.served()

    def look(self):
        """What the timer does once a minute; whether systemd has nothing to complain of."""
        said = self.systemd.systemctl("start", SERVICE, check=False, timeout=60)
        assert said == "" or "failed because the control process exited" in said
        return said == ""

    def hasten(self):
        """Let the timer elapse for the first time as soon as it is there."""
        self.dropin.parent.mkdir(exist_ok=True)
        self.dropin.write_text("[Timer]\nOnActiveSec=100ms\nAccuracySec=10ms\n")

    def close(self):
        self.systemd.systemctl("disable", "--now", TIMER, check=False)
        self.systemd.systemctl("stop", SERVICE, check=False)
        if self.dropin.exists():
            self.dropin.unlink()
        super().close()
        self.systemd.systemctl("daemon-reload")
        run("rm", "-r", self.site.folder)


@pytest.fixture
def watched(systemd):
    watched = Watched(systemd)
    try:
        yield watched
    finally:
        watched.close()


def test_systemd_restarts_what_is_sick_and_leaves_the_rest_alone(watched):
    pid = watched.install()
    assert watched.look() and watched.site.server() == pid, "it was well"
    os.kill(pid, signal.SIGSTOP)
    assert not watched.look(), "a restart does not go unnoticed"
    new = watched.site.served(other_than=pid)
    assert watched.main_pid() == inner_pid(new)
    assert watched.look()
    watched.type("systemd-stop")
    assert watched.look() and watched.site.is_gone() and not watched.site.answers()


def test_the_timer_of_systemd_looks_by_itself(watched):
    pid = watched.install()
    os.kill(pid, signal.SIGSTOP)
    watched.hasten()
    watched.type("watchdog-install")
    watched.site.served(other_than=pid)
    assert TIMER in watched.systemd.systemctl("list-timers")


def test_the_checkout_of_a_user_is_never_run_by_root(watched):
    watched.install()
    watched.site.start_sh.write_text('id -u >"{}/who"\nexit 1\n'.format(watched.site.state))
    watched.look()
    assert (watched.site.state / "who").read_text().split() == [str(UID)]


# -- launchd -----------------------------------------------------------------------------------


@pytest.fixture
def agent(app):
    """The watchdog of the page as launchd reads it; look() runs it, and says what launchctl heard."""
    app.serve(SICKLY)
    text = fill(block("local.hermes-web-ui-watchdog.plist"), CHECKOUT=app.repo, PORT=app.port,
                STATE=app.state)
    app.agent, heard = plistlib.loads(text.encode("utf-8")), app.folder / "heard"
    tool = app.folder / "launchctl"
    tool.write_text('#!/bin/sh\necho "$@" >>"{}"\n'.format(heard))
    tool.chmod(0o755)

    def look():
        environ = dict(app.agent["EnvironmentVariables"], HOME=str(app.home))
        environ["PATH"] = ":".join([str(app.folder), os.path.dirname(PYTHON), environ["PATH"]])
        heard.write_text("")
        subprocess.run(app.agent["ProgramArguments"], env=environ, cwd="/", timeout=40)
        return heard.read_text().splitlines()
    app.look = look
    return app


def test_launchd_restarts_what_is_sick_and_leaves_the_rest_alone(agent):
    assert agent.look() == [], "never started"
    agent.start()
    assert agent.look() == [], "it is well"
    agent.write("sick", "")
    label = plistlib.loads(agent.run("--unit", "launchd").out.encode())["Label"]
    assert agent.look() == ["kickstart -k gui/{}/{}".format(os.getuid(), label)]
    agent.run("--stop")
    assert agent.look() == [], "stopped on purpose"


def test_the_agent_of_launchd_is_what_the_page_says(agent):
    line, = commands("launchd-watchdog-install")
    assert line.endswith("/{}.plist".format(agent.agent["Label"]))
    assert subprocess.run(["bash", "-n", "-c", line], timeout=10).returncode == 0
    assert agent.agent["StartInterval"] == 60 and "KeepAlive" not in agent.agent


# -- cron --------------------------------------------------------------------------------------


def last_line(lab, name):
    """The command of the last line of a crontab on the page, with what it is given."""
    return lab.page(name).splitlines()[-1].split(None, 5)[5]


@pytest.fixture
def cronless(lab):
    """A machine whose cron has nothing to do yet, with a detached server."""
    lab.shell("rm -rf /etc/cron.d /etc/cron.hourly /etc/cron.daily; : >/etc/crontab;"
              " rm -rf /var/spool/cron/crontabs/*")
    lab.tracked = None
    lab.environ = {"HERMES_WEBUI_STATE_DIR": str(lab.state)}
    lab.begin = lambda: lab.call("bash", lab.repo / "start.sh", lab.port, env=lab.environ)
    lab.look = lambda name="watchdog.crontab": lab.shell(last_line(lab, name), env=lab.environ,
                                                         check=False)
    return lab


@needs("cron", "crontab")
def test_cron_restarts_what_is_sick(cronless):
    lab = cronless
    lab.begin()
    server = until(lab.alone, "one server runs, detached")
    os.kill(server, signal.SIGSTOP)
    lab.write("watchdog.crontab", lab.page("watchdog.crontab"))
    lab.call("crontab", lab.repo / "watchdog.crontab")
    lab.spawn("cron", "-f")
    until(lambda: lab.alone([server]), "a new server runs, detached", 100)


def test_cron_leaves_alone_what_is_well_or_stopped(cronless):
    lab = cronless
    assert lab.look().stdout == "" and lab.servers() == []
    lab.begin()
    server = until(lab.alone, "one server runs, detached")
    done = lab.look()
    assert lab.alone() == server and done.stdout + done.stderr == "", "nothing is mailed"
    lab.call("bash", lab.repo / "start.sh", lab.port, "--stop", env=lab.environ)
    done = lab.look()
    assert lab.is_clean() and done.stdout + done.stderr == "", "nothing is mailed"


def test_cron_may_keep_alive_and_watch_in_the_same_minute(cronless):
    lab = cronless
    lab.begin()
    server = until(lab.alone, "one server runs, detached")
    os.kill(server, signal.SIGKILL)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lab.look, ("crontab", "watchdog.crontab")))
    until(lambda: lab.alone([server]), "one new server runs, detached")
