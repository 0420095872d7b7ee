"""Real containers by podman and runc whose pid 1 is s6-svscan: docs/supervisor.md on s6-overlay."""
import json
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from harness import free_port, is_alive, until
from lab import PATH, Lab, ancestors, arguments_of, inner_pid, needs, parent_of, pids, status_of, why_no_machine
from page import commands, fill
from s6_lab import INIT, PROGRAMS, SCAN, SLUG, WITH_CONTENV, filled
from test_containers import (
    BASE, CONTAINERS_CONF, ROOTS, STORAGE_CONF, Container, base_image, control_groups, is_over, is_removed)

pytestmark = [pytest.mark.once, needs("podman", "runc", "conmon", *PROGRAMS)]
ROW = "podman, s6-svscan as pid 1"
SLOT = SCAN + "/" + SLUG + "-default"
NOBODY = 65534
FILES = {
    "contenv": "COPY init /init\nCOPY with-contenv /command/with-contenv\n",
    "plain": "COPY init /init\n"}


class Engine(Lab):
    """A machine with podman and, from one small image, two whose entry point makes s6-svscan pid 1."""

    def prepare(self):
        self.write_file("/etc/containers/containers.conf", CONTAINERS_CONF.format(
            path=PATH, volumes=", ".join('"{0}:{0}:ro"'.format(root) for root in ROOTS)))
        self.write_file("/etc/containers/storage.conf", STORAGE_CONF)
        self.shell('ln -sf "$(command -v podman)" /usr/local/bin/docker')
        self.call("podman", "import", base_image(self), BASE)
        self.env["BUILDAH_FORMAT"] = "docker"   # the one that knows a HEALTHCHECK
        self.tracked = None
        self.serve_for_real()                   # which writes nothing beside itself
        Container(self)
        for kind in FILES:
            self.build_base(kind)
        return self

    def build_base(self, kind):
        folder = self.folder / kind
        folder.mkdir()
        init = filled(INIT, SCAN=SCAN, CLEAR="exec env -i" if kind == "contenv" else "exec env", AS="")
        for name, text in (("init", init), ("with-contenv", WITH_CONTENV)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "Dockerfile").write_text('FROM {}\n{}ENTRYPOINT ["/init"]\n'.format(BASE, FILES[kind]))
        self.call("podman", "build", "-t", "localhost/s6-" + kind, folder)


class Box:
    """A container of the page's image, seen from the computer."""

    def __init__(self, engine):
        self.lab, self.image = engine, None
        self.build_line, self.run_line = commands("s6-container-install")
        engine.port = free_port()

    def run(self, *words, options=(), kind="contenv", line=None, volume=True):
        """Build the page's image and run its container, with more options and other words."""
        self.lab.write("s6.Dockerfile", self.lab.page("s6.Dockerfile", IMAGE="localhost/s6-" + kind))
        self.lab.shell(fill(self.build_line, **self.lab.places()))
        line = (line or self.run_line).replace("run -d ", "run -d {} ".format(" ".join(options)))
        line = line if volume else line.replace("-v hermes-state:/state", "")
        self.lab.shell(fill(line, **self.lab.places()) + " " + " ".join(map(shlex.quote, words)))
        return self

    def follow(self, name, **places):
        return [self.lab.shell(fill(line, **dict(self.lab.places(), **places))) for line in commands(name)]

    def volumes(self, *names):
        """Options for folders that anybody may write."""
        folder = Path(tempfile.mkdtemp(dir=str(self.lab.folder)))
        for path in (folder, *(folder / name for name in names)):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        return ["-v {}:/{}".format(folder / name, name) for name in names]

    def inside(self, *words, options=()):
        return self.lab.call("podman", "exec", *options, "hermes-webui", *words, check=False)

    def wanted(self, name=SLUG + "-default"):
        return self.inside("s6-svstat", "-o", "up,wantedup", SCAN + "/" + name).stdout.strip() == "true true"

    @property
    def init(self):
        """Host pid of the container's pid 1."""
        machine = self.lab.ask("podman", "inspect", "--format", "{{.State.Pid}}", "hermes-webui")
        return next((pid for pid in pids() if status_of(pid, "NSpid")[1:2] == [machine]), None)

    def heartbeats(self):
        init = self.init
        return [pid for pid in pids() if arguments_of(pid)[1:] == [b"infinity"] and init in ancestors(pid)]

    def has_handed_over(self, user=0, after=()):
        server = self.lab.settle(after)
        assert len(until(self.heartbeats, "the command has become a sleep")) == 1
        assert b"s6-supervise" in arguments_of(parent_of(server))[0] and self.wanted()
        assert {int(uid) for uid in status_of(server, "Uid")} == {user}
        said = json.loads(self.inside("bash", "start.sh", "--status", "--json").stdout)
        assert (said["mode"], said["supervisor"], said["state"]) == ("foreground", "s6", "running")
        return server

    def is_over(self):
        return is_over(self.lab) and self.lab.is_clean()

    def exit_status(self):
        until(self.is_over, "the container has ended")
        return int(self.lab.ask("podman", "inspect", "--format", "{{.State.ExitCode}}", "hermes-webui"))

    def stop(self):
        self.follow("s6-container-stop")
        until(self.is_over, "nothing of ours runs")

    def remove(self):
        self.lab.shell("podman logs hermes-webui; podman rm -f -a -t 0; podman volume rm -a -f", check=False)


@pytest.fixture(scope="module")
def engine():
    if why_no_machine():
        pytest.skip(why_no_machine())
    before = control_groups()
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    folder.chmod(0o755)
    machine = Engine(folder)
    try:
        yield machine.boot().prepare()
    finally:
        machine.close()
        shutil.rmtree(str(folder))
        for folder in sorted(control_groups() - before, reverse=True):
            until(lambda: is_removed(folder), "{} is removed".format(folder))


@pytest.fixture
def box(engine):
    box = Box(engine)
    yield box
    box.remove()


def test_the_image_of_the_page_hands_over_to_s6(box, proving):
    with proving(ROW, "detected", "tracked pid"):
        server = box.run(options=["-e", "MARK=of-the-container"]).has_handed_over()
        assert inner_pid(server) == int(box.inside("s6-svstat", "-o", "pid", SLOT).stdout)
        assert b"MARK=of-the-container\0" in Path("/proc/{}/environ".format(server)).read_bytes()
        box.lab.call("podman", "healthcheck", "run", "hermes-webui")
        assert "s6 supervision" in box.lab.shell("podman logs hermes-webui").stderr
    with proving(ROW, "10 kills", "no orphan"):
        seen = [server]
        for _ in range(10):
            os.kill(seen[-1], signal.SIGKILL)
            seen.append(box.lab.settle(after=seen))
        assert len(box.heartbeats()) == 1
    box.follow("s6-container-reload")
    box.lab.settle(after=seen)
    assert "up (pid" in box.follow("s6-container-logs")[0].stdout
    with proving(ROW, "stops clean"):
        box.stop()


def test_an_unprivileged_container_hands_over_and_so_does_its_next_start(box, proving):
    """/run is a part of the container's files where it is no tmpfs: the slot is there already."""
    with proving(ROW + ", not root", "detected", "tracked pid", "stops clean"):
        box.run(options=["--user nobody"] + box.volumes("run", "state"), volume=False)
        first = box.has_handed_over(user=NOBODY)
        box.lab.call("podman", "restart", "-t", "15", "hermes-webui")
        second = box.has_handed_over(user=NOBODY, after=[first])
        os.kill(box.init, signal.SIGKILL)
        box.has_handed_over(user=NOBODY, after=[first, second])
        box.stop()


def test_a_command_that_leaves_root_behind_stays_in_the_foreground(box):
    """The scan folder is root's: that is said, and the server is the container's command."""
    line = box.run_line.replace("unless-stopped", "no")
    box.run("runuser", "-u", "nobody", "--", "bash", "start.sh", options=box.volumes("state"),
            volume=False, line=line)
    server = box.lab.settle()
    assert {int(uid) for uid in status_of(server, "Uid")} == {NOBODY} and box.heartbeats() == []
    said = box.lab.shell("podman logs hermes-webui").stderr
    assert SCAN in said and "Traceback" not in said
    os.kill(server, signal.SIGKILL)
    assert box.exit_status() == 128 + signal.SIGKILL and not is_alive(server)


def test_a_read_only_root_folder_and_an_empty_path(box):
    box.run("/usr/bin/python3", "-I", "-S", "/app/bootstrap.py", kind="plain",
            options=["--read-only", "--tmpfs /run:exec", "-e PATH="])
    box.lab.settle()
    until(box.heartbeats, "the command has become a sleep")
    assert box.inside("/usr/bin/touch", "/app/x").returncode != 0


def test_who_enters_gets_the_url(box):
    box.run("tail", "-f", "/dev/null", kind="plain")
    until(lambda: box.inside("s6-svscanctl", "-a", SCAN).returncode == 0, "s6-svscan listens")
    for options in ((), ("-t",)):
        done = box.inside("bash", "start.sh", options=options)
        assert done.returncode == 0 and done.stdout.rstrip().endswith(box.lab.url)
        assert box.wanted() and box.heartbeats() == []
        box.lab.settle()
        assert box.inside("bash", "start.sh", "--unregister").returncode == 0 and not box.lab.servers()


def test_the_commands_of_the_page_for_a_second_instance(box):
    first, other = box.run().has_handed_over(), free_port()
    url = box.follow("s6-container-instance", OTHER=other)[0].stdout
    assert url == "http://127.0.0.1:{}/\n".format(other)
    assert box.lab.servers() == [first]
    assert box.inside("ls", SCAN).stdout.split() == [SLUG + "-default", SLUG + "-watchdog"]


def test_the_container_of_the_page_without_supervision_ends_with_its_server(box):
    line, = commands("s6-container-plain")
    box.run(line=line.replace("--restart on-failure:5 ", ""))
    os.kill(box.lab.settle(), signal.SIGKILL)
    assert box.exit_status() == 128 + signal.SIGKILL


def test_the_container_of_the_page_with_a_watchdog_has_one(box):
    line, = commands("s6-container-watchdog")
    box.run(line=line).has_handed_over()
    until(lambda: box.wanted(SLUG + "-watchdog"), "the watchdog is up")
