"""A container whose pid 1 is s6-svscan, as an image with s6-overlay has it.

Like the machine of lab.py it is a pair of mount and PID namespaces, but for its pid 1: the image's
entry point, which starts the container's command as its child and becomes s6-svscan.
"""
import contextlib
import ctypes
import os
import pty
import select
import shutil
import struct
import subprocess
import tempfile
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from harness import Result, is_alive, until
from lab import BOOT, Lab, ancestors, arguments_of, children_of, name_of, parent_of, pids, why_no_machine

SCAN = "/run/service"
SLUG = "hermes-web-ui"
PREFIX = "HERMES_WEBUI_"
SENTINEL = PREFIX + "S6_SUPERVISED_CHILD"
DEV = 1777      # an unprivileged user of the container
IDLE = ("tail", "-f", "/dev/null")
PROGRAMS = ("s6-svscan", "s6-svscanctl", "s6-supervise", "s6-svc", "s6-svstat", "s6-log",
            "s6-setuidgid", "s6-envdir")

# The entry point of the image. The container ends with the exit status of its command.
INIT = r"""#!/bin/sh
exec 3<&0
given=${PATH-}
PATH=/usr/bin:/bin
rm -f /run/s6/status
mkdir -p /run/s6/basedir /run/s6/container_environment "@SCAN@/.s6-svscan"
PATH=$given /usr/bin/awk 'BEGIN { for (name in ENVIRON) {
    file = "/run/s6/container_environment/" name; printf "%s", ENVIRON[name] >file; close(file) } }'
cat >"@SCAN@/.s6-svscan/finish" <<'END'
#!/bin/sh
[ ! -e /run/s6/status ] || read status </run/s6/status
exit "${status:-0}"
END
chmod +x "@SCAN@/.s6-svscan/finish"
(
    exec <&3 3<&-
    PATH=$given
    until /usr/bin/s6-svscanctl -a "@SCAN@" 2>/dev/null; do :; done
    # A shell without job control has its background ignore these two.
    /usr/bin/env --default-signal=INT,QUIT @AS@ "$@"
    echo $? >/run/s6/status
    exec /usr/bin/s6-svscanctl -t "@SCAN@"
) &
exec 3<&-
@CLEAR@ PATH=/command:/usr/local/bin:/usr/bin:/bin /usr/bin/s6-svscan -t0 -- "@SCAN@"
"""
# What gives a service the environment of its container.
WITH_CONTENV = """#!/bin/sh
exec /usr/bin/s6-envdir -I -- /run/s6/container_environment "$@"
"""
# What an image is made of; the folder of the machine stands first.
IMAGE = BOOT.partition("exec ")[0] + r"""
echo "dev:x:@DEV@:@DEV@::$HOME:/bin/sh" >>/etc/passwd
echo 'dev:x:@DEV@:' >>/etc/group
@PREPARE@
chown @OWNER@ /run
shift
exec @AS@ "$@"
"""
READ_ONLY = r"""
for place in @PLACES@; do mount --bind "$place" "$place"; done
for place in / /etc /usr /var; do mount -o remount,bind,ro "$place"; done
"""


def becoming(uid, *options):
    """Words that run a command as this user."""
    ids = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    return ["/usr/bin/setpriv", *ids, *options] if uid else []


def filled(text, **places):
    for name, value in places.items():
        text = text.replace("@{}@".format(name), str(value))
    return text


class Container(Lab):
    """The project in a container of its own.

    owner: uid of pid 1; user: uid of its command, and of whoever enters it; contenv: whether the
    image has with-contenv; prepare: shell text that makes the image; writable: what can be written
    beside /run where the root folder is read-only ("home", "repo"), None where it is not.
    """

    def __init__(self, folder, owner=0, user=None, contenv=False, scan=SCAN, prepare="", writable=None):
        super().__init__(folder)
        self.owner, self.user = owner, owner if user is None else user
        self.contenv, self.scan, self.prepare, self.writable = contenv, scan, prepare, writable
        self.tracked, self.init = self.pid_of, None
        if self.user:
            self.env["PATH"] = "/usr/local/bin:/usr/bin:/bin"   # whatever lies below /root is root's

    @property
    def start_sh(self):
        return self.repo / "start.sh"

    # -- its life

    def boot(self, *command, env=None, terminal=False):
        """Run the container with this command; without one it waits for what enters it."""
        machine = self.folder / "machine"
        machine.mkdir()
        if self.user:
            self.give(self.home, self.repo)
        init = self.folder / "init"
        init.write_text(filled(INIT, SCAN=self.scan, CLEAR="exec env -i" if self.contenv else "exec env",
                               AS=" ".join(becoming(self.user) if self.user != self.owner else ())))
        init.chmod(0o755)
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--mount-proc",
                 "--kill-child", "sh", "-c", self.image(), "sh", machine]
        words += ["setsid", "--ctty"] if terminal else []
        words += [init] + list(command or IDLE)
        self.start_machine([str(word) for word in words], terminal, dict(self.env, **(env or {})))
        self.init = until(lambda: self.machine.poll() is not None or self.booted(), "there is a pid 1")
        return self

    def give(self, *paths):
        for path in paths:
            for entry in [path, *path.glob("**/*")]:
                os.chown(str(entry), self.user, self.user)

    def image(self):
        prepare = self.prepare
        if self.contenv:
            (self.folder / "with-contenv").write_text(WITH_CONTENV)
            prepare += "\ninstall -m 755 '{}' /usr/bin/with-contenv".format(self.folder / "with-contenv")
        if self.writable is not None:
            prepare += filled(READ_ONLY, PLACES=" ".join(str(getattr(self, name)) for name in self.writable))
        # Who becomes another user loses what ends it with its parent, see PR_SET_PDEATHSIG(2const).
        return filled(IMAGE, DEV=DEV, OWNER=self.owner, PREPARE=prepare,
                      AS=" ".join(becoming(self.owner, "--pdeathsig", "KILL")))

    def start_machine(self, words, terminal, env):
        keywords = dict(cwd=str(self.repo), env={name: str(value) for name, value in env.items()})
        if terminal:
            self.screen, slave = pty.openpty()
            self.machine = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, **keywords)
            os.close(slave)
            return
        with open(str(self.folder / "out.log"), "wb") as out, open(str(self.folder / "err.log"), "wb") as err:
            self.machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **keywords)

    def booted(self):
        found = children_of(self.machine.pid)
        return found[0] if found and name_of(found[0]) == "s6-svscan" else None

    def start(self, *words, env=None, **options):
        """Run the container with the project's command, and wait until its server is healthy."""
        self.boot("bash", self.start_sh, self.port, *words, env=env, **options)
        return self.settle()

    def exit_status(self):
        """That of the container, once it has ended."""
        until(lambda: self.machine.poll() is not None, "the container has ended")
        return self.machine.returncode

    def out(self):
        return (self.folder / "out.log").read_text("utf-8", "replace")

    def err(self):
        return (self.folder / "err.log").read_text("utf-8", "replace")

    def typed(self, text, wanted):
        """Type at the terminal of the container; what it shows until this is there."""
        os.write(self.screen, text.encode())
        shown = []

        def is_shown():
            if select.select([self.screen], [], [], 0.05)[0]:
                shown.append(os.read(self.screen, 65536).decode("utf-8", "replace"))
            return "\n" + wanted in "".join(shown)
        until(is_shown, "the terminal shows " + wanted)
        return "".join(shown)

    # -- who enters it

    def inside(self, *command, pid=None):
        """As docker exec has it: the parent is not to be seen from within."""
        return super().inside(*becoming(self.user), *command, pid=pid)

    def enter(self, *words, port=True, **options):
        """The project's command by docker exec, without a terminal; its Result."""
        number = (self.port,) if port is True else () if port is None else (port,)
        done = self.call("bash", self.start_sh, *number, *words, check=False, **options)
        return Result(done.returncode, done.stdout, done.stderr, None)

    def ask_root(self, *command):
        user, self.user = self.user, 0
        try:
            return self.ask(*command)
        finally:
            self.user = user

    # -- its slots

    def slot(self, instance="default"):
        return "{}/{}-{}".format(self.scan, SLUG, instance)

    def outside(self, path):
        """Path of a container's file for us."""
        return Path("/proc/{}/root{}".format(self.init, path))

    def stat_of(self, fields, instance="default"):
        return self.ask_root("s6-svstat", "-o", fields, self.slot(instance))

    def pid_of(self, instance="default"):
        pid = self.stat_of("pid", instance)
        return int(pid) if pid.isdigit() else 0

    def is_wanted(self, instance="default"):
        """Whether the slot is up, and meant to be."""
        return self.stat_of("up,wantedup", instance) == "true true"

    def slots(self):
        """What lies in the scan folder, hidden folders too."""
        return sorted(set(os.listdir(str(self.outside(self.scan)))) - {".s6-svscan"})

    def write_slot(self, name, run):
        """A service of somebody else, or of the test's own."""
        self.write_file("{}/.{}/run".format(self.scan, name), run, 0o755)
        self.call("mv", "{}/.{}".format(self.scan, name), "{}/{}".format(self.scan, name))
        self.call("s6-svscanctl", "-a", self.scan)

    # -- what runs in it

    def is_ours(self, pid):
        return b"/init" not in b" ".join(arguments_of(pid)[:2]) and super().is_ours(pid)

    def members(self):
        """Host pids of all that runs in the container, pid 1 too."""
        return [pid for pid in pids() if self.init in ancestors(pid) and is_alive(pid)]

    def heartbeats(self):
        """Host pids of the processes that keep the container alive in place of the launcher."""
        return [pid for pid in self.members() if arguments_of(pid)[1:] == [b"infinity"]]

    def pythons(self):
        """Host pids of all processes that are a Python."""
        return [pid for pid in self.members() if is_python(pid)]

    def is_supervised(self, pid, instance="default"):
        words = arguments_of(parent_of(pid))
        return words == [b"s6-supervise", os.path.basename(self.slot(instance)).encode()]

    def has_handed_over(self):
        """Assert that one server runs under s6, and nothing but a sleep is left of the launcher."""
        server, = self.servers()
        assert self.is_wanted() and self.is_supervised(server)
        heartbeat, = until(self.heartbeats, "the launcher has become a sleep")
        assert self.pythons() == [server] == self.ours(), self.processes()
        assert parent_of(parent_of(heartbeat)) == self.init
        return server


def is_python(pid):
    try:
        return os.path.basename(os.readlink("/proc/{}/exe".format(pid))).startswith("python")
    except OSError:
        return False


Event = namedtuple("Event", "folder name made")


@contextlib.contextmanager
def watching(folder):
    """What appears in a folder, and in the folders made there: a growing list of Events (inotify(7)).

    made: True for what is made or written under its name, False for what is moved there complete.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch, events, over = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), [], threading.Event()
    made, moved, names = 0x100 | 0x2, 0x80, {}      # IN_CREATE | IN_MODIFY, IN_MOVED_TO

    def add(path, name):
        names[libc.inotify_add_watch(watch, os.fsencode(str(path)), made | moved)] = name

    def read():
        while select.select([watch], [], [], 0.05)[0] or not over.is_set():
            with contextlib.suppress(BlockingIOError):
                data = os.read(watch, 65536)
                while data:
                    number, mask, _, length = struct.unpack_from("iIII", data)
                    name = data[16:16 + length].rstrip(b"\0").decode()
                    events.append(Event(names[number], name, bool(mask & made)))
                    if mask & 0x40000000 and not names[number]:     # IN_ISDIR
                        add(folder / name, name)
                    data = data[16 + length:]
    add(folder, "")
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield events
    finally:
        over.set()
        thread.join()
        os.close(watch)


@pytest.fixture
def s6():
    """s6(**options): a Container that is not booted yet."""
    if why_no_machine():
        pytest.skip(why_no_machine())
    made = []

    def make(**options):
        folder = Path(tempfile.mkdtemp(prefix="lab-"))
        folder.chmod(0o755)
        made.append(Container(folder, **options))
        return made[-1]
    yield make
    for container in made:
        container.close()
        shutil.rmtree(str(container.folder))
