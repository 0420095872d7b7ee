"""A real systemd, pid 1 of a container whose disk is this machine's with a throw-away layer on top.

The container shares the network, so its servers answer here; its pids are translated. One folder,
`systemd.folder`, is the same inside and outside: checkouts, state and logs live there.
"""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import ROOT, free_port, get, is_alive, until
from lab import CACHE, children_of, holds, inner_pid, name_of

USER, UID = "dev", 1777
# Services of the machine itself have no business in the container.
MASKED = ("podman-auto-update.timer podman-restart.service podman.service postgresql.service"
          " cron.service anacron.timer monit.service runit.service ssh.service nginx.service"
          " docker.service containerd.service redis-server.service apt-daily.timer"
          " apt-daily-upgrade.timer man-db.timer dpkg-db-backup.timer e2scrub_all.timer"
          " fstrim.timer logrotate.timer systemd-networkd.service systemd-resolved.service"
          " networking.service getty.target console-getty.service").split()
TARGET = """[Unit]
Requires=basic.target dbus.service systemd-user-sessions.service
After=basic.target dbus.service systemd-user-sessions.service
AllowIsolate=yes
"""
MOUNT = """
set -e
mount -t tmpfs -o size=512m,mode=755 systemd-lab "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" systemd-lab "$0/root"
cp -dR --remove-destination "$1/." "$0/root"
shift
exec "$@"
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not():
    """Why no systemd can run here, or ""."""
    if os.getuid() != 0:
        return "only root can boot a systemd in a container"
    for program, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux"), ("setpriv", "util-linux"),
                             ("/usr/bin/python3", "python3")):
        if not shutil.which(program):
            return "there is no {}: apt install {}".format(program, package)
    return ""


def run(*command, check=True, timeout=30, **options):
    """Run a command to its end; what it printed on stdout."""
    keywords = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    encoding="utf-8", errors="replace")
    keywords.update(options)
    done = subprocess.run([str(word) for word in command], timeout=timeout, **keywords)
    print("$", *command, "\n[{}]".format(done.returncode), done.stdout, flush=True)
    assert not check or done.returncode == 0, "{} failed:\n{}".format(command, done.stdout)
    return done.stdout


class Systemd:
    """The container; every method works from outside of it."""

    def __init__(self):
        CACHE.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="systemd-lab-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.layer = self.folder / "layer"
        self.nspawn = self.leader = None
        self.cgroups = set(cgroups())

    def boot(self):
        """Mount, boot, and wait until systemd says that it runs.

        All of it is in namespaces of its own, which end with us, whatever becomes of us.
        """
        self.layer.mkdir()
        self.furnish(self.folder / "furniture")
        with (self.folder / "console").open("wb") as console:
            self.nspawn = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork",
                 "--mount-proc", "--kill-child", "sh", "-c", MOUNT, str(self.layer),
                 str(self.folder / "furniture"), "systemd-nspawn", "-q", "-D", str(self.layer / "root"), "--register=no",
                 "--keep-unit", "--bind={0}:{0}:norbind".format(self.folder),
                 "--bind-ro={0}:{0}:norbind".format(CACHE), "--link-journal=no",
                 "--console=pipe", "--boot", "--", "--unit=lab.target"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={"PATH": PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
        self.leader = until(self.find_leader, "the container has a pid 1", 20)
        until(self.has_booted, "systemd has booted", 30)
        self.systemctl("start", "user@{}.service".format(UID))

    def furnish(self, layer):
        """What the layer adds to the machine's own disk."""
        units, linger = layer / "etc/systemd/system", layer / "var/lib/systemd/linger"
        for folder in (units, linger, self.folder / "root", self.folder / USER):
            folder.mkdir(parents=True)
        os.chown(str(self.folder / USER), UID, UID)
        (layer / "etc/machine-id").write_text("")
        (units / "lab.target").write_text(TARGET)
        for name in MASKED:
            (units / name).symlink_to("/dev/null")
        for name, line in (("passwd", "{0}:x:{1}:{1}::{2}:/bin/bash"), ("group", "{0}:x:{1}:"),
                           ("shadow", "{0}:*:19000:0:99999:7:::")):
            shutil.copy("/etc/" + name, str(layer / "etc"))
            with (layer / "etc" / name).open("a") as file:
                file.write(line.format(USER, UID, self.folder / USER) + "\n")
        (linger / USER).touch()

    @property
    def root(self):
        """The disk of the container as it is seen inside."""
        return Path("/proc/{}/root".format(self.leader))

    def find_leader(self):
        assert self.nspawn.poll() is None, (self.folder / "console").read_text(errors="replace")
        return next((pid for child in children_of(self.nspawn.pid) for pid in children_of(child)
                     if name_of(pid) == "systemd" and inner_pid(pid) == 1), None)

    def has_booted(self):
        asked = subprocess.run(self.command("systemctl", "is-system-running"), timeout=10,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return asked.stdout.strip() in (b"running", b"degraded")

    def command(self, *words, user=None):
        """The command line that runs these words inside."""
        inside = ["nsenter", "-t", self.leader, "-m", "-u", "-i", "-p", "-C", "-r", "-w",
                  "env", "-i", "PATH=" + PATH, "LANG=C.UTF-8"]
        if user:
            inside += ["runuser", "-u", user, "--", "env", "HOME={}".format(self.folder / user),
                       "XDG_RUNTIME_DIR=/run/user/{}".format(UID)]
        return [str(word) for word in (*inside, *words)]

    def run(self, *words, user=None, **options):
        return run(*self.command(*words, user=user), **options)

    def systemctl(self, *words, user=None, **options):
        scope = ("--user",) if user else ()
        return self.run("systemctl", *scope, "--no-pager", *words, user=user, **options)

    def close(self):
        """Power off and remove; by force where asking does not do."""
        if self.leader and self.nspawn.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # SIGRTMIN+4 asks for poweroff.target, see systemd(1).
                os.kill(self.leader, signal.SIGRTMIN + 4)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.nspawn.wait(timeout=5)
        if self.nspawn:
            self.nspawn.kill()
            self.nspawn.wait(timeout=10)
        if self.leader:
            until(lambda: not is_alive(self.leader), "the container has ended")
        shutil.rmtree(str(self.folder), ignore_errors=True)
        for folder in set(cgroups()) - self.cgroups:
            # Only what is empty can be removed, see cgroups(7).
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)


def cgroups():
    """The control groups at the top, where systemd-nspawn leaves two of its own."""
    return [str(path) for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd",
                                   "/sys/fs/cgroup/unified")
            for name in ("payload", "supervisor") for path in [Path(root, name)] if path.is_dir()]


@pytest.fixture(scope="session")
def systemd():
    """The booted container, one for all tests."""
    if why_not():
        pytest.skip(why_not())
    systemd = Systemd()
    try:
        try:
            systemd.boot()
        except (AssertionError, OSError, subprocess.SubprocessError,
                pytest.fail.Exception) as error:
            pytest.skip("no systemd can be booted here: {}".format(error))
        yield systemd
    finally:
        systemd.close()


class Site:
    """A checkout of the project, served under supervision; it is told apart by its folder."""

    def __init__(self, folder, owner=None, repo="my chëckout"):
        self.folder = Path(str(folder))
        self.repo = self.folder / repo
        self.state = self.folder / "state"
        self.port = free_port()
        for path in (self.folder, self.repo, self.state):
            path.mkdir(parents=True)
        for name in ("bootstrap.py", "start.sh", "server.py"):
            shutil.copy(str(ROOT / name), str(self.repo))
        if owner:
            for path in (self.folder, self.repo, self.state):
                os.chown(str(path), owner, owner)

    @property
    def start_sh(self):
        return self.repo / "start.sh"

    @property
    def url(self):
        return "http://127.0.0.1:{}/".format(self.port)

    def answers(self):
        """Whether the server is healthy."""
        status, body = get(self.url + "health", timeout=2)
        return status == 200 and json.loads(body.decode()).get("status") == "ok"

    def processes(self):
        """Command line by pid of each live process that was started for this checkout."""
        mark, found = os.fsencode(str(self.folder)) + b"/", {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                command = Path("/proc", entry, "cmdline").read_bytes()
                if mark in command + Path("/proc", entry, "environ").read_bytes():
                    if is_alive(entry):
                        found[int(entry)] = command.rstrip(b"\0").replace(b"\0", b" ").decode(
                            "utf-8", "replace")
        return found

    def servers(self):
        """The pids of ours that listen on the port; there is never more than one."""
        pids = [pid for pid in self.processes() if holds(pid, self.port)]
        assert len(pids) < 2, "several listen: {}".format(self.processes())
        return pids

    def server(self, other_than=None):
        """The pid of the one healthy server, or None."""
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", self.port)) != 0:
                return None
        pids = [pid for pid in self.servers() if pid != other_than]
        return pids[0] if pids and self.answers() else None

    def served(self, other_than=None, seconds=30):
        """Wait for the healthy server."""
        return until(lambda: self.server(other_than), "a new server answers", seconds)

    def environ(self, pid):
        """What a process was started with."""
        text = Path("/proc/{}/environ".format(pid)).read_bytes().decode("utf-8", "replace")
        return dict(pair.partition("=")[::2] for pair in text.split("\0") if pair)

    def is_gone(self, seconds=20):
        """Wait until nothing of this checkout runs."""
        until(lambda: not self.processes(), "nothing of it runs any more", seconds)
        return True

    def kill_all(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Shells:
    """Starts what harness.Terminal runs: a program on a terminal, with an environment of its own."""

    def __init__(self, env=None):
        self.env, self.launched = env or {"PATH": PATH}, []

    def launch(self, *words, **options):
        self.launched.append(subprocess.Popen(
            [str(word) for word in words], env=self.env, cwd="/", **options))
        return self.launched[-1]

    def close(self):
        for process in self.launched:
            process.kill()
            process.wait(timeout=10)
