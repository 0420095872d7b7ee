"""A machine of its own for a real supervisor, and what every supervisor has to prove.

The machine is a pair of mount and PID namespaces: what is written below /etc, /usr, /var and /run
ends with it, and so does every process in it. The network is the host's.
"""
import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import servers
from harness import App, ROOT, free_port, get, is_alive, until
from page import block, commands, fill

CACHE = ROOT / ".test-venv" / "supervisors"
PERMANENT = (2, 78, 126, 127)   # exit codes that no restart can cure
FLAGS = pytest.mark.parametrize("flag", [
    pytest.param(True, id="with --foreground"), pytest.param(False, id="without a flag")])
INTERPRETERS = re.compile(r"(python|pypy)[\d.]*|sh|bash|dash|runuser")

BOOT = r"""
set -e
mount -t tmpfs -o mode=755 machine "$1"
for part in etc usr var; do
    mkdir -p "$1/$part/upper" "$1/$part/work"
    mount -t overlay overlay -o "lowerdir=/$part,upperdir=$1/$part/upper,workdir=$1/$part/work" "/$part"
done
mount -t tmpfs -o mode=755 run /run
# Who ignores SIGCHLD has no zombies, see wait(2).
exec env --ignore-signal=CHLD sleep infinity
"""


def needs(*programs):
    """Skip the tests of this module where a program is missing."""
    missing = [name for name in programs if not shutil.which(name, path=PATH)]
    return pytest.mark.skipif(bool(missing), reason="not installed: " + ", ".join(missing))


PATH = os.pathsep.join([os.path.dirname(os.path.realpath(sys.executable)), "/usr/local/sbin",
                        "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])


# -- what is installed for the tests alone -----------------------------------------------------


@functools.lru_cache(maxsize=None)
def pypi(package):
    """Folder of the programs of a package from PyPI, in an environment of its own; or skip."""
    folder = CACHE / "{}-{}.{}".format(package, *sys.version_info[:2])
    install(folder, [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet",
             "--disable-pip-version-check", package])
    return folder / "bin"


@functools.lru_cache(maxsize=None)
def npm(package):
    """Folder of the programs of a package from npm; or skip."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = CACHE / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text("{}")
    install(folder, ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund",
                     "--loglevel=error", package])
    return folder / "node_modules" / ".bin"


@functools.lru_cache(maxsize=None)
def debian(*packages):
    """Paths of packages of this Debian, fetched but not installed; or skip."""
    if not shutil.which("apt-get"):
        pytest.skip("no apt-get to fetch {} with".format(packages[0]))
    folder = CACHE / packages[0]
    install(folder, ["sh", "-c", 'mkdir -p "$1" && cd "$1" && shift && exec apt-get download -qq "$@"',
                     "sh", str(folder), *packages])
    return sorted(folder.glob("*.deb"))


# Node brings certificates of its own, and trusts the system's only where it is told to.
CERTIFICATES = {"NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt"}


def install(folder, *steps):
    """Run the steps that fill a folder, once; skip the test where one fails."""
    done = folder / "complete"
    if done.exists():
        return
    trusted = CERTIFICATES if os.path.exists(CERTIFICATES["NODE_EXTRA_CA_CERTS"]) else {}
    for command in steps:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            outcome = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, encoding="utf-8", timeout=180,
                                     env=dict(trusted, **os.environ))
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip("cannot be installed: {}".format(error))
        if outcome.returncode:
            pytest.skip("cannot be installed: {}\n{}".format(shlex.join(command), outcome.stdout))
    done.write_text("")


# -- the machine -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def why_no_machine():
    """Why namespaces and overlays cannot be had here, or ""."""
    if os.getuid() != 0:
        return "a machine of its own needs root"
    if not all(map(shutil.which, ("unshare", "nsenter", "setpriv"))):
        return "unshare, nsenter or setpriv is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
                 BOOT.replace("sleep infinity", "true"), "sh", folder], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", timeout=30)
        except subprocess.TimeoutExpired:
            return "no namespaces here"
    return "no namespaces or overlays here: " + done.stderr if done.returncode else ""


class Lab(App):
    """The project on a machine of its own."""

    def __init__(self, folder):
        super().__init__(folder)
        self.repo.rename(folder / "checkout")
        self.repo = folder / "checkout"
        self.env.update(PATH=PATH, TERM="dumb")
        self.serve_noting()
        self.place = str(self.repo)     # where the checkout is for those who run it
        self.machine, self.tracked = None, lambda: None

    def serve_noting(self):
        """The project's own server, which first leaves a line about its start."""
        self.serve(servers.PRELUDE + "\nnote()\n\n" + (ROOT / "server.py").read_text("utf-8"))

    # -- life of the machine

    def boot(self):
        (self.folder / "machine").mkdir()
        self.machine = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork",
             "--mount-proc", "--kill-child", "sh", "-c", BOOT, "sh", str(self.folder / "machine")],
            stdin=subprocess.DEVNULL)
        self.init = until(lambda: self.machine.poll() is not None or self.booted(), "pid 1 sleeps")
        return self

    def booted(self):
        children = children_of(self.machine.pid)
        return children[0] if children and name_of(children[0]) == "sleep" else None

    def close(self):
        if self.machine:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.call("sh", "-c", "tail -n 50 /var/log/hermes-webui.log; ps -ef", check=False, timeout=10)
            self.machine.kill()
            self.machine.wait()
            until(lambda: not is_alive(self.init), "the machine has ended")
        for log in sorted(self.folder.glob("*.log")):
            print("== {}\n{}".format(log.name, log.read_bytes()[-6000:].decode("utf-8", "replace")))
        super().close()

    def on_path(self, folder):
        self.env["PATH"] = "{}:{}".format(folder, self.env["PATH"])

    def inside(self, *command, pid=None):
        return ["nsenter", "--target", str(pid or self.init), "--mount", "--pid", "--"] + [
            str(word) for word in command]

    def call(self, *command, env=None, timeout=60, check=True, quiet=False,
             inside=None, **options):
        """Run a command on the machine; its CompletedProcess."""
        done = subprocess.run(
            self.inside(*command, pid=inside), stdin=options.pop("stdin", subprocess.DEVNULL) if
            "input" not in options else None, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace", timeout=timeout, cwd=str(self.folder),
            env=dict(self.env, **(env or {})), **options)
        if not quiet:
            print("#", *command, "\n[{}]".format(done.returncode), done.stdout, done.stderr)
        assert not check or done.returncode == 0, done.stderr or done.stdout
        return done

    def ask(self, *command, **options):
        """What a command prints, for a question that is asked again and again."""
        return self.call(*command, check=False, quiet=True, **options).stdout.strip()

    def shell(self, text, **options):
        return self.call("sh", "-c", text, **options)

    def spawn(self, *command, log="supervisor.log", env=None):
        """Start a program that stays: a child of pid 1, as an init system would have it."""
        self.call("sh", "-c", 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 &', "sh",
                  self.folder / log, *command, env=env)

    def write_file(self, path, text, mode=0o644):
        self.call("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"', "sh",
                  path, "{:o}".format(mode), input=text)

    # -- the page

    def places(self, **values):
        return dict(dict(CHECKOUT=self.repo, PORT=self.port, USER="root", STATE=self.state), **values)

    def page(self, name, flag=True, **values):
        """A file of the page with its places filled; without --foreground where flag is False."""
        text = fill(block(name), **self.places(**values))
        if flag:
            return text
        assert "--foreground" in text, "{} has no --foreground to be left out".format(name)
        return re.sub(r""",?\s*"--foreground"|[ ]*--foreground""", "", text)

    def put(self, name, flag=True, mode=0o644, **values):
        """Write a file of the page to the path that its first comment names."""
        text = self.page(name, flag, **values)
        path = re.search(r"^(?:#|;|//) (/\S+)$", text, re.M).group(1)
        self.write_file(path, text, mode)
        return path

    def follow(self, name, check=True, **values):
        """Carry out the commands of the page, one after the other; what the last one printed."""
        done = None
        for line in commands(name):
            done = self.shell(fill(line, **self.places(**values)), check=check)
        return done.stdout

    def count_messages(self, name):
        """How often the launcher speaks in the log that the page shows; it may not be there yet."""
        return self.follow(name, check=False).count("bootstrap: ")

    # -- what runs

    def ours(self):
        """Host pids of the launchers and servers of this checkout, the shells around them too."""
        return [pid for pid in pids() if self.is_ours(pid) and is_alive(pid)]

    def is_ours(self, pid):
        words = arguments_of(pid)
        name = os.path.basename(words[0]).decode("utf-8", "replace")
        files = re.escape(os.fsencode(self.place)) + rb"/([\w-]+\.sh|bootstrap\.py|server\.py)"
        return bool(INTERPRETERS.fullmatch(name)) and any(re.search(files, word) for word in words)

    def servers(self, port=None):
        """Host pids of the server processes; all, or those that hold this port."""
        path = os.fsencode(os.path.join(self.place, "server.py"))
        found = [pid for pid in self.ours() if arguments_of(pid)[1:2] == [path]]
        return found if port is None else [pid for pid in found if holds(pid, port)]

    def orphans(self):
        """Our processes that nobody watches: children of the machine's pid 1."""
        return [pid for pid in self.ours() if parent_of(pid) == self.init and is_alive(pid)]

    def settled(self, after=()):
        """Whether one new server has the port, healthy, and is the one that the supervisor tracks.

        At every look there is at most one server, and no orphan.
        """
        running = self.servers()
        assert len(running) <= 1, "two servers at once: {}".format(running)
        assert self.orphans() == [], self.processes()
        if len(running) != 1 or running[0] in after or not holds(running[0], self.port):
            return None
        if self.tracked and self.tracked() != machine_pid(running[0]):
            return None
        return running[0] if self.answers() else None

    def alone(self, after=()):
        """The one server, new, healthy and detached, once its launcher has ended; else None."""
        running = self.servers()
        assert len(running) <= 1, "two servers at once: {}".format(running)
        if not running or running != self.ours() or running[0] in after:
            return None
        if not holds(running[0], self.port) or not self.answers():
            return None
        seen = not self.tracked or self.tracked() == machine_pid(running[0])
        return running[0] if seen else None

    def settle(self, after=(), seconds=30):
        return until(lambda: self.settled(after), "one new server has the port", seconds)

    def kill_repeatedly(self, times=10):
        """kill -9 the server, again and again; each time exactly one new one takes the port."""
        seen = [self.settle()]
        before = len(self.starts())
        for _ in range(times):
            os.kill(seen[-1], signal.SIGKILL)
            seen.append(self.settle(after=seen))
        assert len(self.starts()) == before + times

    def is_clean(self):
        """Whether nothing of ours runs and the port is free."""
        return not self.ours() and self.is_free()

    def status_inside(self, port=None, inside=None, state=None):
        """What --status says there; inside: host pid of a process whose namespaces count."""
        done = self.call("bash", self.repo / "start.sh", port or self.port, "--status", "--json",
                         env={"HERMES_WEBUI_STATE_DIR": str(state or self.state)}, check=False,
                         inside=inside)
        return json.loads(done.stdout)

    # -- what a start can meet

    def spoil(self, code):
        """Make each start of the launcher end with this exit code; places for the page to fill."""
        if code == 78:
            self.write("bootstrap.cfg", "[bootstrap]\nnonsense = 1\n")
        if code == 126:
            self.write(".env", "HERMES_WEBUI_PYTHON=/proc/version\n")
        if code == 127:
            self.write(".env", "HERMES_WEBUI_PYTHON=/nowhere/python\n")
        port = "none" if code == 2 else self.port
        done = self.call("bash", self.repo / "start.sh", port, "--foreground", check=False)
        assert done.returncode == code
        return {"PORT": port}

    def shapes(self, *more):
        """{shape: (port, command)}: ways in which a supervisor may come to start us."""
        found = {}
        for shape, line in dict(dict.fromkeys(more, SHAPES["execs"]), **SHAPES).items():
            port = free_port()
            script = self.write(shape + ".sh", "#!/bin/bash\nexport HERMES_WEBUI_STATE_DIR={}\n".format(
                shlex.quote(str(self.home / shape))) + line.format(
                    start=shlex.quote(str(self.repo / "start.sh")), port=port) + "\n")
            script.chmod(0o755)
            found[shape] = (port, str(script))
        self.home.chmod(0o777)
        self.repo.chmod(0o777)
        (self.repo / "starts").touch()
        (self.repo / "starts").chmod(0o666)
        return found

    def came_up(self, shapes):
        """Wait until each shape has its one server, in the foreground below its supervisor."""
        for shape, (port, _) in shapes.items():
            pid = until(lambda: self.servers(port), "{} has a server".format(shape), 30)
            assert len(pid) == 1
            until(lambda: get("http://127.0.0.1:{}/health".format(port))[0] == 200, shape)
        assert len(self.servers()) == len(shapes) and self.orphans() == []
        assert [pid for pid in self.ours() if b"bootstrap.py" in b" ".join(arguments_of(pid))] == []


def prove_tracking(lab, proving, name):
    """The server is the tracked process, before a reload and after it; a stop leaves nothing.

    name: of the supervisor as the table has it; its commands on the page start with it in lower case.
    """
    commands_of = name.lower()
    with proving(name, "detected", "tracked pid"):
        first = lab.settle()
        report = lab.status_inside()
        assert (report["mode"], report["supervisor"], report["state"]) == (
            "foreground", name, "running")
        lab.follow(commands_of + "-reload")
        lab.settle(after=[first])
        lab.follow(commands_of + "-logs")
    with proving(name, "stops clean"):
        lab.follow(commands_of + "-stop")
        until(lab.is_clean, "nothing of ours runs")


def prove_revival(lab, proving, name):
    """Each killed server is replaced by exactly one."""
    with proving(name, "10 kills", "no orphan"):
        lab.kill_repeatedly()


def prove_one_start(lab, logs):
    """The launcher ran once, said why it cannot start, and no server was started."""
    until(lambda: lab.count_messages(logs), "the log says what is wrong")
    assert lab.count_messages(logs) == 1 and lab.starts() == []


SHAPES = {
    "execs": "exec bash {start} {port}",
    "does-not-exec": "bash {start} {port}\nexit $?",
    "sh-c": "sh -c 'bash {start} {port}; exit $?'; exit $?",
    "runuser": "exec runuser -u nobody -- env PATH=/usr/bin:/bin bash {start} {port}",
}


@pytest.fixture
def lab():
    if why_no_machine():
        pytest.skip(why_no_machine())
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    folder.chmod(0o755)
    lab = Lab(folder)
    try:
        yield lab.boot()
    finally:
        lab.close()
        shutil.rmtree(str(folder))


def ancestors(pid):
    """The process itself, its parent, and so on."""
    while pid:
        yield pid
        pid = parent_of(pid)


# -- processes ---------------------------------------------------------------------------------


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def arguments_of(pid):
    try:
        return Path("/proc/{}/cmdline".format(pid)).read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return [b""]


def status_of(pid, field):
    """A field of /proc/PID/status as a list of words; empty where the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/{}/status".format(pid)).read_text(errors="replace").splitlines():
            if line.startswith(field + ":"):
                return line.split(":", 1)[1].split()
    return []


def name_of(pid):
    return " ".join(status_of(pid, "Name"))


def parent_of(pid):
    return next(map(int, status_of(pid, "PPid")), None)


def children_of(pid):
    return [child for child in pids() if parent_of(child) == pid]


def inner_pid(pid):
    """The pid that a process has in its innermost namespace."""
    return next((int(number) for number in reversed(status_of(pid, "NSpid"))), None)


def machine_pid(pid):
    """The pid that a process has on its machine, whatever namespaces lie below."""
    return next(map(int, status_of(pid, "NSpid")[1:]), None)


def holds(pid, port):
    """Whether a process has a listening socket on this port open."""
    sockets = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            sockets.add("socket:[{}]".format(fields[9]))
    with contextlib.suppress(OSError):
        for descriptor in os.listdir("/proc/{}/fd".format(pid)):
            with contextlib.suppress(OSError):
                if os.readlink("/proc/{}/fd/{}".format(pid, descriptor)) in sockets:
                    return True
    return False
