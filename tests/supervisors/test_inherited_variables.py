"""Whoever merely inherited a supervisor's variables is not tracked: the prompt comes back."""
import json
import os
import shlex
import shutil
import subprocess

import pytest

from harness import Terminal, free_port, is_alive, until
from systemd_lab import PATH, Shells, Site, run

pytestmark = pytest.mark.once

TOLD = ("SYSTEMD_EXEC_PID INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET WATCHDOG_USEC LISTEN_FDS"
        " XPC_SERVICE_NAME SUPERVISOR_ENABLED").split()
BASH = ("bash", "--noprofile", "--norc", "-i")
EMULATOR = ("python3", "-c", "import pty, sys; pty.spawn(sys.argv[1:])") + BASH
SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM yes
PermitRootLogin prohibit-password
"""


# -- shells -----------------------------------------------------------------------------------


class Screen:
    """A shell that is typed into through a FIFO, and seen in a file."""

    def __init__(self, folder):
        self.keys, self.screen = folder / "keys", folder / "screen"
        os.mkfifo(str(self.keys))
        self.screen.touch()
        self.keyboard = os.open(str(self.keys), os.O_RDWR)

    def type(self, text):
        os.write(self.keyboard, text.encode())

    @property
    def text(self):
        return self.screen.read_bytes().decode("utf-8", "replace")

    def read(self, wanted):
        return until(lambda: self.text if wanted in self.text else "", wanted + " is shown", 30)

    def close(self):
        os.close(self.keyboard)


class Pane:
    """A shell in the one window of a tmux server."""

    def __init__(self, systemd, socket):
        self.systemd, self.socket = systemd, socket

    def tmux(self, *words):
        return subprocess.check_output(self.systemd.command("tmux", "-S", self.socket, *words),
                                       timeout=10).decode("utf-8", "replace")

    def type(self, text):
        self.tmux("send-keys", "-l", text)

    @property
    def text(self):
        return self.tmux("capture-pane", "-pJ", "-S", "-")

    def read(self, wanted):
        return until(lambda: self.text if wanted in self.text else "", wanted + " is shown", 30)

    def close(self):
        pass


@pytest.fixture
def place(systemd, request):
    """A place for a shell in the container; what it starts as a unit ends with the test."""
    place = Place(systemd)
    yield place
    place.close()


class Place:
    def __init__(self, systemd):
        self.name = "shell-{}".format(len(os.listdir(str(systemd.folder / "root"))))
        self.systemd, self.site = systemd, Site(systemd.folder / "root" / self.name)
        self.terminals, self.screens = Shells(), []

    def unit(self, *words, options=()):
        self.systemd.run("systemd-run", "--unit=" + self.name, "--property=SendSIGHUP=yes",
                         *options, *words)

    def emulator(self):
        return self.screen(*EMULATOR)

    def script(self):
        return self.screen("script", "-qfc", " ".join(BASH), "/dev/null")

    def screen(self, *program):
        """A unit whose main process has a shell on a terminal that it made."""
        self.screens.append(Screen(self.site.folder))
        self.unit("/bin/sh", "-c", 'exec 0<>"$0/keys" >"$0/screen"; exec "$@"', self.site.folder,
                  *program)
        return self.screens[-1]

    def main_process(self):
        """A person's shell that is itself the main process of a unit."""
        return Terminal(self.terminals, self.systemd.command(
            "systemd-run", "--unit=" + self.name, "--property=SendSIGHUP=yes", "--pty", *BASH), {})

    def tmux(self):
        if not shutil.which("tmux"):
            pytest.skip("there is no tmux")
        socket = self.site.folder / "tmux"
        self.unit("tmux", "-S", socket, "-f", "/dev/null", "new-session", "-d", *BASH,
                  options=("--service-type=forking",))
        return Pane(self.systemd, socket)

    def ssh(self, *words):
        """Command that logs in, to a real sshd that is a unit."""
        for program in ("/usr/sbin/sshd", "ssh", "ssh-keygen"):
            if not shutil.which(program):
                pytest.skip("there is no {}".format(program))
        folder, port = self.site.folder, free_port()
        for name in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder))
        self.unit("/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config",
                  options=("--property=RuntimeDirectory=sshd",))
        until(lambda: run("ssh-keyscan", "-p", port, "127.0.0.1", check=False,
                          stderr=subprocess.DEVNULL), "sshd answers")
        return ["ssh", "-F", "none", "-i", str(folder / "user"), "-p", str(port),
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "BatchMode=yes", *words[:-1], "root@127.0.0.1", words[-1]]

    def login(self):
        return Terminal(self.terminals, self.ssh("-tt", " ".join(BASH)), {})

    def scope(self):
        return Terminal(self.terminals, self.ssh(
            "-tt", "systemd-run --scope --unit={}-scope {}".format(self.name, " ".join(BASH))), {})

    def close(self):
        for unit in (self.name, self.name + "-scope.scope"):
            self.systemd.systemctl("kill", "--signal=SIGKILL", unit, check=False)
            self.systemd.systemctl("stop", unit, check=False)
        self.systemd.run("journalctl", "--no-pager", "-q", "-n", "30", "-u", self.name, check=False)
        for screen in self.screens:
            screen.close()
        self.site.kill_all()
        self.terminals.close()


# -- what has to hold -------------------------------------------------------------------------


def command(site):
    return "HERMES_WEBUI_STATE_DIR={} bash {} {}".format(
        shlex.quote(str(site.state)), shlex.quote(str(site.start_sh)), site.port)


def ignored(text):
    """The lines that say that a variable is not believed."""
    return [line for line in text.splitlines() if "is ignored" in line]


def is_told(text, variable):
    """Whether one line, and only one, names the variable and the way to the foreground."""
    lines = ignored(text)
    return len(lines) == 1 and variable in lines[0] and "--foreground" in lines[0]


def is_detached(site, pid):
    """Whether the server leads a session of its own and was told of no supervisor."""
    assert os.getsid(pid) == pid
    return [name for name in TOLD if name in site.environ(pid)] == []


def answer_at(shell, site, row, variable, proving, record_cell):
    """Start at a shell's prompt, and see what comes of it."""
    shell.read("bash-")
    with proving(row, "prompt returned"):
        shell.type(command(site) + "; echo BACK-$?\n")
        shell.read("BACK-0")
        shell.type("echo STILL-$((40+2))\n")
        shell.read("STILL-42")
    with proving(row, "detached"):
        pid = site.served()
        assert is_detached(site, pid)
    if variable:
        with proving(row, "line printed"):
            assert is_told(shell.text, variable), shell.text
    else:
        assert ignored(shell.text) == [], shell.text
        record_cell(row, "line printed", "nothing to say")
    return pid


@pytest.mark.parametrize("row, shell, variable", [
    pytest.param("terminal emulator that is a unit", "emulator", "SYSTEMD_EXEC_PID", id="emulator"),
    pytest.param("script(1) in a unit", "script", "SYSTEMD_EXEC_PID", id="script"),
    pytest.param("tmux server started by a unit", "tmux", "SYSTEMD_EXEC_PID", id="tmux"),
    pytest.param("systemd-run --pty shell", "main_process", "SYSTEMD_EXEC_PID", id="systemd-run"),
    pytest.param("systemd-run --scope shell", "scope", "INVOCATION_ID", id="scope"),
    pytest.param("ssh session, sshd is a unit", "login", None, id="ssh")])
def test_a_shell_inside_a_unit_gets_its_prompt_back(place, proving, record_cell, row, shell, variable):
    shell = getattr(place, shell)()
    answer_at(shell, place.site, row, variable, proving, record_cell)


RUNNER = """
import json, subprocess, sys, time
done = subprocess.run(["bash", "-e", "-c", sys.argv[1]], stdin=subprocess.DEVNULL,
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
with open(sys.argv[2], "w") as file:
    json.dump([done.returncode, done.stdout.decode()], file)
time.sleep(3600)
"""


def test_a_job_of_a_runner_that_is_a_unit_ends(place, proving):
    """Its output goes through a pipe; a foreign SYSTEMD_EXEC_PID is enough."""
    row, report = "CI runner that is a unit, no terminal", place.site.folder / "report"
    place.unit("python3", "-c", RUNNER, command(place.site), report)
    with proving(row, "prompt returned"):
        until(lambda: report.exists() and report.read_text(), "the job has ended", 40)
        code, text = json.loads(report.read_text())
        assert code == 0, text
    with proving(row, "detached"):
        assert is_detached(place.site, place.site.served())
    with proving(row, "line printed"):
        assert is_told(text, "SYSTEMD_EXEC_PID"), text


def test_a_runner_whose_output_is_the_journal_is_not_believed_either(place):
    """JOURNAL_STREAM is true of the output of such a job; SYSTEMD_EXEC_PID knows better."""
    place.unit("python3", "-c", "import subprocess, sys, time;"
               "open(sys.argv[2], 'w').write(str(subprocess.call(['bash', '-c', sys.argv[1]])));"
               "time.sleep(3600)", command(place.site), place.site.folder / "report")
    report = place.site.folder / "report"
    until(lambda: report.exists() and report.read_text() == "0", "the job has ended", 40)
    assert is_detached(place.site, place.site.served())


def test_a_scope_without_a_terminal_has_the_server_in_its_foreground(place):
    """INVOCATION_ID with nothing against it: a wrong guess may cost a prompt, never a loop."""
    line = "systemd-run --scope --unit={}-scope {}".format(place.name, "bash -c " + shlex.quote(
        command(place.site)))
    client = place.terminals.launch(*place.ssh(line), stdin=subprocess.DEVNULL)
    pid = place.site.served()
    assert client.poll() is None
    main = place.site.environ(pid)
    assert "INVOCATION_ID" in main and "SYSTEMD_EXEC_PID" not in main
    place.systemd.systemctl("stop", place.name + "-scope.scope")
    until(lambda: not is_alive(pid) and client.poll() is not None, "the scope has ended")


def test_a_command_sent_into_the_container_detaches(place):
    """nsenter, docker exec, machinectl shell: nobody inside would start it again."""
    done = place.systemd.run("env", "INVOCATION_ID=1", "bash", "-c", command(place.site))
    assert ignored(done) == []
    assert is_detached(place.site, place.site.served())


# -- variables that were exported or left behind ----------------------------------------------


@pytest.fixture
def here(tmp_path):
    """A checkout on this machine, with shells that have a given environment."""
    here = Here(tmp_path)
    yield here
    here.site.kill_all()
    here.terminals.close()


class Here:
    def __init__(self, folder):
        self.site = Site(folder / "site")
        self.terminals = Shells({"PATH": PATH, "HOME": str(folder)})

    def shell(self, **variables):
        self.terminals.env.update(variables)
        return Terminal(self.terminals, BASH, {})

    def start(self, **variables):
        self.terminals.env.update(variables, HERMES_WEBUI_STATE_DIR=str(self.site.state))
        return self.terminals.launch(
            "bash", self.site.start_sh, self.site.port, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


LEFT = (                # what it is, variable, value, whether it is believed without a terminal
    ("INVOCATION_ID exported by hand", "INVOCATION_ID", "b9bd5ac1ab4f4a2d8a4a6b2e9d1c0f37", True),
    ("NOTIFY_SOCKET left over", "NOTIFY_SOCKET", "/run/systemd/notify", True),
    ("JOURNAL_STREAM of another output", "JOURNAL_STREAM", "9:34565", True),
    ("XPC_SERVICE_NAME, an inherited label", "XPC_SERVICE_NAME", "com.example.editor", True),
    ("XPC_SERVICE_NAME=0", "XPC_SERVICE_NAME", "0", None),
    ("XPC_SERVICE_NAME=application.*", "XPC_SERVICE_NAME",
     "application.com.apple.Terminal.1152921500311879701", None),
    ("SUPERVISOR_ENABLED exported by hand", "SUPERVISOR_ENABLED", "1", True),
    ("SYSTEMD_EXEC_PID of another process", "SYSTEMD_EXEC_PID", "1", False))
IDS = [case[0] for case in LEFT]


@pytest.mark.parametrize("row, variable, value, believed", LEFT, ids=IDS)
def test_a_variable_alone_does_not_cost_a_person_the_prompt(
        here, proving, record_cell, row, variable, value, believed):
    shell = here.shell(**{variable: value})
    answer_at(shell, here.site, row, None if believed is None else variable, proving, record_cell)


@pytest.mark.parametrize("row, variable, value, believed", LEFT, ids=IDS)
def test_without_a_terminal_only_what_can_be_disproved_is_not_believed(
        here, row, variable, value, believed):
    process = here.start(**{variable: value})
    pid = here.site.served()
    if believed:
        assert pid == process.pid and here.site.environ(pid)[variable] == value
        return
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and is_detached(here.site, pid)
    assert is_told(text, variable) if believed is False else ignored(text) == []


def test_the_line_goes_away_when_the_operator_says_what_is_wanted(here):
    for words, foreground in (("--detach", False), ("--foreground", True)):
        here.terminals.env.update(INVOCATION_ID="1", HERMES_WEBUI_STATE_DIR=str(here.site.state))
        process = here.terminals.launch(
            "bash", here.site.start_sh, here.site.port, words, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
        pid = here.site.served()
        assert (pid == process.pid) == foreground
        here.site.kill_all()
        assert ignored(process.communicate(timeout=20)[1]) == []
        here.site.is_gone()
