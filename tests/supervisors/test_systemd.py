"""systemd as it is, pid 1 of a container: what it tracks is the server, and nothing is left behind."""
import functools
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
from collections import namedtuple

import pytest

from harness import Terminal, until
from lab import holds, inner_pid
from page import block, commands, fill
from systemd_lab import UID, USER, Shells, Site, run

pytestmark = pytest.mark.once

SLUG = "hermes-web-ui"
Form = namedtuple("Form", "name dropin user tracks")
FORMS = (               # name, what it adds to the printed unit, whose manager, what MainPID is
    Form("Type=exec", "", None, "server"),
    Form("Type=simple", "Type=simple", None, "server"),
    Form("Type=notify", "@notify.conf", None, "server"),
    Form("a user unit", "", USER, "server"),
    Form("socket activation", "", None, "server"),
    Form("a #!/bin/bash script", "ExecStart=\nExecStart={script}", None, "server"),
    Form("a script without exec", "ExecStart=\nExecStart={waiting}", None, "shell"),
    Form("/bin/sh -c", "ExecStart=\nExecStart=/bin/sh -c 'bash \"{start}\" {words}'",
         None, "shell"),
    Form("before version 248", "UnsetEnvironment=SYSTEMD_EXEC_PID", None, "server"),
    Form("runuser -u", "User=\nExecStart=\nExecStart=runuser -u {user} -- bash \"{start}\" {words}",
         None, "shell"))
NUMBERS = itertools.count()
HASTE = "RestartSec=50ms\nEnvironment=PYTHONDONTWRITEBYTECODE=1\n"


class Unit:
    """A checkout as a service of its own name, with the file that --unit prints."""

    def __init__(self, systemd, name, form, flag):
        self.systemd, self.user, self.name = systemd, form.user, name
        runs_as_user = form.user or "runuser" in form.dropin
        self.site = Site(systemd.folder / (USER if runs_as_user else "root") / name,
                         UID if runs_as_user else None)
        self.form, self.flag = form, flag
        self.folder = (systemd.root / "etc/systemd/system" if not form.user else
                       self.systemd.folder / USER / ".config/systemd/user")
        self.sockets = []

    @functools.lru_cache(maxsize=None)
    def printed(self):
        """What `bash start.sh PORT --unit ...` says, and where it says it belongs."""
        text = self.systemd.run(
            "env", "HERMES_WEBUI_STATE_DIR={}".format(self.site.state), "bash", self.site.start_sh,
            self.site.port, "--unit", "systemd-user" if self.user else "systemd", user=self.user)
        assert "--foreground" in text and SLUG + ".service" in text
        return text

    def install(self, port=None, *lines):
        """The printed file, without the flag if that is the question, and the form's own lines."""
        text = self.printed()
        if not self.flag:
            text = text.replace(' "--foreground"', "")
            assert "--foreground" not in text
        port = port or self.site.port
        text = text.replace('"{}"'.format(self.site.port), '"{}"'.format(port))
        words = "{}{}".format(port, " --foreground" if self.flag else "")
        dropin = "[Service]\n{}\n".format(self.form.dropin.format(
            start=self.site.start_sh, words=words, user=USER, state=self.site.state, script=self.script("exec ", words),
            waiting=self.script("", words)))
        if self.form.dropin.startswith("@"):
            dropin = block(self.form.dropin[1:])
        self.write(self.name + ".service", text)
        self.write(self.name + ".service.d/10-form.conf", dropin)
        self.set(*lines)
        if self.form.name == "socket activation":
            self.write(self.name + ".socket", fill(block("hermes-web-ui.socket"),
                                                   PORT=self.site.port))
            self.sockets = [self.name + ".socket"]

    def script(self, how, words):
        path = self.site.folder / "start{}.bash".format(how.strip())
        path.write_text('#!/bin/bash\n{}bash "{}" {}\n'.format(how, self.site.start_sh, words)
                        + ("" if how else "exit $?\n"))
        path.chmod(0o755)
        return path

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def set(self, *lines):
        """Further lines of [Service]; every start is counted."""
        count = "ExecStartPre=/bin/sh -c 'echo >>\"{}\"'".format(self.site.folder / "starts")
        self.write(self.name + ".service.d/90-test.conf",
                   "[Service]\n{}{}\n{}\n".format(HASTE, count, "\n".join(lines)))
        self.systemctl("daemon-reload")

    def starts(self):
        """How often the service was started since the last look."""
        path = self.site.folder / "starts"
        if not path.exists():
            return 0
        count = len(path.read_text())
        path.unlink()
        return count

    def systemctl(self, *words, **options):
        return self.systemd.systemctl(*words, user=self.user, **options)

    def start(self):
        self.systemctl("start", *(self.sockets or [self.name]))
        if self.sockets:
            until(self.site.answers, "the first caller wakes the service")
        return self.site.served()

    def show(self, name):
        return self.systemctl("show", "-p", name, "--value", self.name).strip()

    def tracked(self):
        return int(self.show("MainPID"))

    def stop(self):
        self.systemctl("stop", *self.sockets, self.name)

    def close(self):
        self.systemctl("stop", *self.sockets, self.name, check=False)
        self.systemd.run("journalctl", "--no-pager", "-q", "-n", "40", "--user-unit" if self.user
                     else "-u", self.name, check=False)
        for name in [self.name + ".service"] + self.sockets:
            path = self.folder / name
            if path.exists():
                path.unlink()
        self.site.kill_all()


@pytest.fixture
def unit(systemd):
    """unit(form, flag): an installed service that is not started yet."""
    made = []

    def make(form, flag=False):
        name = "site-{}".format(next(NUMBERS))
        made.append(Unit(systemd, name, form, flag))
        made[-1].install()
        return made[-1]
    yield make
    for unit in made:
        unit.close()


def is_what_is_tracked(unit, pid):
    """Whether MainPID is the server, or for a waiting shell its parent."""
    main = unit.tracked()
    if unit.form.tracks == "server":
        return main == inner_pid(pid)
    parent = int(open("/proc/{}/stat".format(pid)).read().rpartition(")")[2].split()[1])
    return main in (inner_pid(parent), inner_pid(pid))


def is_alone(unit, pid):
    """Whether, but for what waits for the server, nothing of this checkout runs."""
    others = set(unit.site.processes()) - {pid}
    return not others or unit.form.tracks == "shell" and all(
        inner_pid(other) <= inner_pid(pid) and other < pid for other in others)


@pytest.mark.parametrize("flag", [False, True], ids=["by itself", "with --foreground"])
@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_systemd_tracks_the_server_and_brings_back_exactly_one(unit, proving, record_cell, form, flag):
    row = "systemd, " + form.name
    unit = unit(form, flag)
    with proving(row, *(() if flag else ("detected",))):
        pid = unit.start()
        assert unit.site.environ(pid).get("HERMES_WEBUI_LAUNCH_ID") is None, "it was detached"
    with proving(row, *(("tracked pid",) if form.tracks == "server" else ())):
        assert is_what_is_tracked(unit, pid)
    if form.tracks == "shell":
        record_cell(row, "tracked pid", "the shell that waits")
    with proving(row, "10 kills", "no orphan"):
        for _ in range(10):
            os.kill(pid, signal.SIGKILL)
            pid = unit.site.served(other_than=pid)
            assert is_what_is_tracked(unit, pid)
            assert is_alone(unit, pid), unit.site.processes()
    with proving(row, "stops clean"):
        unit.stop()
        assert unit.site.is_gone() and unit.show("ActiveState") == "inactive"


ERRORS = (              # exit code, the port in the command line, the variable that leads to it
    (2, "no-port", ""),
    (78, None, "HERMES_WEBUI_SERVER_CWD=/nowhere"),
    (126, None, "HERMES_WEBUI_PYTHON=/etc/passwd"),
    (127, None, "HERMES_WEBUI_PYTHON=/nowhere/python"))


@pytest.mark.parametrize("form, flag", [(form, False) for form in FORMS] + [(FORMS[0], True)],
                         ids=[form.name for form in FORMS] + ["with --foreground"])
def test_systemd_gives_up_at_once_where_restarting_cannot_help(unit, proving, form, flag):
    """RestartPreventExitStatus= as it is printed; each start leaves a byte."""
    unit = unit(form, flag)
    with proving("systemd, " + form.name, "permanent error stops"):
        for code, port, variable in ERRORS:
            unit.install(port, "Environment=" + variable)
            unit.systemctl("start", unit.name, check=False)
            until(lambda: unit.show("ActiveState") == "failed", "the unit has failed")
            assert set(unit.show("ExecMainStatus,NRestarts").split()) == {str(code), "0"}
            assert unit.starts() == 1 and not unit.site.processes()


def test_a_unit_that_clears_the_environment_needs_the_flag(unit):
    """It leaves no evidence, so the server is detached and ends with its unit."""
    bare = Form("bare", 'ExecStart=\nExecStart=env -i PATH=/usr/bin:/bin HERMES_WEBUI_STATE_DIR={state}'
                ' bash "{start}" {words}\nRestart=no', None, "server")
    without = unit(bare)
    without.systemctl("start", without.name)
    until(lambda: without.show("ActiveState") == "inactive", "the launcher has ended")
    assert without.show("ExecMainStatus") == "0" and without.site.is_gone()
    flagged = unit(bare, True)
    assert is_what_is_tracked(flagged, flagged.start())


def test_systemd_tries_again_until_a_taken_port_is_free(unit):
    unit = unit(FORMS[0])
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", unit.site.port))
        holder.listen()
        unit.systemctl("start", unit.name, check=False)
        until(lambda: int(unit.show("NRestarts")) >= 2, "it was started again, twice")
        assert unit.show("ExecMainStatus") in ("0", "69")
    pid = unit.site.served()
    assert is_what_is_tracked(unit, pid) and is_alone(unit, pid)


def test_readiness_comes_from_the_server_and_its_variables_survive_the_exec(unit):
    unit = unit(FORMS[2])
    unit.systemctl("start", unit.name)
    assert unit.site.answers(), "systemctl start came back before the server answered"
    pid = unit.site.served()
    environ = unit.site.environ(pid)
    assert environ["NOTIFY_SOCKET"] == "/run/systemd/notify"
    assert environ["WATCHDOG_USEC"] == "30000000"
    assert environ["WATCHDOG_PID"] == environ["SYSTEMD_EXEC_PID"] == str(inner_pid(pid))
    assert unit.show("NotifyAccess") == "main" and unit.show("StatusText")


def test_a_server_that_hangs_is_ended_and_replaced_by_the_watchdog(unit):
    unit = unit(FORMS[2])
    unit.set("WatchdogSec=1", "TimeoutAbortSec=1")
    pid = unit.start()
    os.kill(pid, signal.SIGSTOP)
    new = unit.site.served(other_than=pid)
    assert is_what_is_tracked(unit, new) and is_alone(unit, new)


def test_a_server_that_was_never_ready_is_not_waited_for_in_vain(unit):
    """Type=notify and a permanent error: the failed start is reported, not timed out."""
    unit = unit(FORMS[2])
    unit.set("Environment=HERMES_WEBUI_PYTHON=/nowhere/python")
    said = unit.systemctl("start", unit.name, check=False)
    assert "failed" in said and unit.show("Result") == "exit-code"


def test_a_passed_socket_reaches_the_server(unit):
    unit = unit(FORMS[4])
    pid = unit.start()
    environ = unit.site.environ(pid)
    assert environ["LISTEN_PID"] == str(inner_pid(pid)) and environ["LISTEN_FDS"] == "1"
    assert os.readlink("/proc/{}/fd/3".format(pid)).startswith("socket:")
    assert holds(pid, unit.site.port)


def test_status_inside_names_the_supervisor_and_its_own_commands(unit):
    unit = unit(FORMS[0])
    pid = unit.start()
    said = json.loads(unit.systemd.run(
        "env", "HERMES_WEBUI_STATE_DIR={}".format(unit.site.state), "bash", unit.site.start_sh,
        unit.site.port, "--status", "--json"))
    assert (said["pid"], said["supervisor"], said["state"]) == (inner_pid(pid), "systemd", "running")
    refused = unit.systemd.run(
        "env", "HERMES_WEBUI_STATE_DIR={}".format(unit.site.state), "bash", unit.site.start_sh,
        unit.site.port, "--stop", check=False)
    assert "systemctl stop {}.service".format(unit.name) in refused
    assert unit.site.server() == pid


# -- systemd-run ------------------------------------------------------------------------------


class Errand:
    """A checkout that a command line starts, as it stands on the page."""

    def __init__(self, systemd, name, flag):
        self.systemd, self.name = systemd, name
        self.site = Site(systemd.folder / "root" / name)
        self.shells, self.flag = Shells(), flag

    def command(self, line):
        """The words of a line of the page, without the flag if that is the question."""
        words = shlex.split(fill(line, CHECKOUT=shlex.quote(str(self.site.repo)),
                                 PORT=self.site.port, UNIT=self.name, STATE=self.site.state))
        assert words[-1] == "--foreground"
        return self.systemd.command(*(words if self.flag else words[:-1]))

    def tracked(self):
        return int(self.systemd.systemctl("show", "-p", "MainPID", "--value", self.name))

    def close(self):
        self.systemd.systemctl("stop", self.name, check=False)
        self.systemd.run("journalctl", "--no-pager", "-q", "-n", "40", "-u", self.name, check=False)
        self.site.kill_all()
        self.shells.close()


@pytest.fixture
def errand(systemd):
    made = []

    def make(flag):
        made.append(Errand(systemd, "errand-{}".format(len(os.listdir(str(systemd.folder / "root")))), flag))
        return made[-1]
    yield make
    for errand in made:
        errand.close()


def line_of(name, word):
    """The one command of a block of the page that has this word."""
    found = [line for line in commands(name) if word in line.split()]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("flag", [False, True], ids=["by itself", "with --foreground"])
def test_systemd_run_tracks_the_server(errand, proving, flag):
    row, errand = "systemd-run", errand(flag)
    with proving(row, *(() if flag else ("detected",))):
        run(*errand.command(line_of("systemd-run", "--property=Restart=always")))
        pid = errand.site.served()
    with proving(row, "tracked pid"):
        assert errand.tracked() == inner_pid(pid)
    with proving(row, "10 kills", "no orphan"):
        for _ in range(10):
            os.kill(pid, signal.SIGKILL)
            pid = errand.site.served(other_than=pid)
            assert errand.tracked() == inner_pid(pid) and set(errand.site.processes()) == {pid}
    with proving(row, "stops clean"):
        errand.systemd.systemctl("stop", errand.name)
        assert errand.site.is_gone()
    for code, _, variable in ERRORS[1:]:
        with proving(row, "permanent error stops"):
            words = errand.command(line_of("systemd-run", "--property=Restart=always"))
            place = words.index("systemd-run") + 1
            run(*words[:place], "--setenv=" + variable, *words[place:], check=False)
            until(lambda: errand.systemd.systemctl(
                "show", "-p", "ActiveState", "--value", errand.name).strip() == "failed",
                "the unit has failed")
            shown = errand.systemd.systemctl("show", "-p", "ExecMainStatus,NRestarts", errand.name)
            assert "ExecMainStatus={}\n".format(code) in shown and "NRestarts=0" in shown
            errand.systemd.systemctl("reset-failed", errand.name)


@pytest.mark.parametrize("flag", [False, True], ids=["by itself", "with --foreground"])
@pytest.mark.parametrize("how", ["--pipe", "--pty"])
def test_systemd_run_in_front_of_a_person_is_the_server_too(errand, proving, how, flag):
    """It is the main process of its unit, even on a terminal."""
    row, errand = "systemd-run " + how, errand(flag)
    command = errand.command(line_of("systemd-run", how))
    with proving(row, *(() if flag else ("detected",))):
        if how == "--pty":
            Terminal(errand.shells, command, {})
        else:
            errand.shells.launch(*command, stdin=subprocess.DEVNULL)
        pid = errand.site.served()
    with proving(row, "tracked pid"):
        assert errand.tracked() == inner_pid(pid)
    with proving(row, "no orphan", "stops clean"):
        errand.systemd.systemctl("stop", errand.name)
        assert errand.site.is_gone()
        until(lambda: errand.shells.launched[0].poll() is not None, "systemd-run has ended")
