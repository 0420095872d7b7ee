"""Real containers by podman and runc: the Dockerfile and the commands of docs/supervisor.md."""
import json
import os
import shlex
import signal
import tarfile
from pathlib import Path

import pytest

from harness import PYTHON, free_port, until
from lab import (  # noqa: F401
    FLAGS, PATH, PERMANENT, ancestors, arguments_of, inner_pid, lab, machine_pid, needs, parent_of, status_of)
from page import commands, fill

pytestmark = [pytest.mark.once, needs("podman", "runc", "conmon")]
# A small machine: no limits that it cannot raise, no network of its own, the host's programs.
CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
netns = "host"
env = ["PATH={path}"]
volumes = [{volumes}]
init_path = "/usr/bin/tini"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
STORAGE_CONF = """[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""
BASE = "docker.io/library/python:3.12-slim"
INIT = "docker run --init, by podman"
ROOTS = sorted({"/usr", "/etc/alternatives", os.path.dirname(os.path.dirname(PYTHON))})




class Container:
    """What the engine runs, seen from the computer."""

    def __init__(self, lab):
        self.lab = lab
        lab.place, lab.is_ours, lab.starts = "/app", self.holds, self.starts

    def holds(self, pid):
        return len(status_of(pid, "NSpid")) > 2 and self.lab.init in ancestors(pid)

    def starts(self):
        """What the servers left in the container's own files."""
        path = "/proc/{}/root/app/starts".format(self.lab.servers()[0])
        return Path(path).read_text().splitlines()


@pytest.fixture
def engine(lab):
    """podman with one image, which has nothing but places for the host's programs."""
    before = control_groups()
    lab.write_file("/etc/containers/containers.conf", CONTAINERS_CONF.format(
        path=PATH, volumes=", ".join('"{0}:{0}:ro"'.format(root) for root in ROOTS)))
    lab.write_file("/etc/containers/storage.conf", STORAGE_CONF)
    lab.call("podman", "import", base_image(lab), BASE)
    lab.shell('ln -sf "$(command -v podman)" /usr/local/bin/docker')
    lab.write("Dockerfile", lab.page("Dockerfile"))
    lab.tracked = lambda: tracked(lab)
    Container(lab)
    yield lab
    lab.shell("podman logs hermes-webui; podman rm -f -a -t 0", check=False)
    for folder in sorted(control_groups() - before, reverse=True):
        until(lambda: is_removed(folder), "{} is removed".format(folder))


def base_image(lab):
    image = lab.folder / "base.tar"
    with tarfile.open(str(image), "w") as tar:
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if os.path.islink("/" + name):
                tar.add("/" + name, name, recursive=False)
        for name in ("app", "tmp", "root", "etc", "usr", "proc", "sys", "dev", "run", "state", "var"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path in ("/etc/passwd", "/etc/group", "/etc/login.defs", "/etc/pam.d", "/etc/security"):
            tar.add(path)
    return image


def control_groups():
    """Folders of the engine's control groups, which it leaves behind (cgroups(7))."""
    return {folder for pattern in ("*/libpod_parent", "*/libpod_parent/*", "libpod_parent", "libpod_parent/*")
            for folder in map(str, Path("/sys/fs/cgroup").glob(pattern)) if os.path.isdir(folder)}


def is_removed(folder):
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def tracked(lab):
    answer = lab.ask("podman", "inspect", "--format", "{{.State.Pid}}", "hermes-webui")
    return int(answer) if answer.isdigit() else 0


def run_again(lab, *words, options=()):
    """The container of the page, with other words for it or for the engine."""
    build, run = commands("podman-install")
    lab.shell(fill(build, **lab.places()))
    run = fill(run, **lab.places()).replace(" --restart always ", " {} ".format(" ".join(options)))
    return lab.shell("{} {}".format(run, " ".join(map(shlex.quote, words))))


def said_inside(lab, name="hermes-webui", port=None):
    done = lab.call("podman", "exec", name, "bash", "start.sh", port or lab.port, "--status", "--json",
                    check=False)
    return json.loads(done.stdout)


def is_over(lab):
    return lab.ask("podman", "inspect", "--format", "{{.State.Status}}", "hermes-webui") == "exited"


@FLAGS
def test_pid_1_of_a_container_is_the_server(engine, proving, flag):
    with proving("podman", "detected", "tracked pid"):
        engine.write("Dockerfile", engine.page("Dockerfile", flag))
        engine.follow("podman-install")
        first = engine.settle()
        assert inner_pid(first) == 1
        said = said_inside(engine)
        assert (said["mode"], said["supervisor"]) == ("foreground", "the container engine")
        engine.follow("podman-reload")
        engine.settle(after=[first])
        engine.follow("podman-logs")
    with proving("podman", "stops clean"):
        engine.follow("podman-stop")
        until(engine.is_clean, "nothing of ours runs")


def test_podman_replaces_each_killed_server_by_one(engine, proving, record_cell):
    with proving("podman", "10 kills", "no orphan"):
        engine.write("Dockerfile", engine.page("Dockerfile", flag=False))
        engine.follow("podman-install")
        engine.kill_repeatedly()
    record_cell("podman", "permanent error stops", "no rule")


def test_below_an_init_the_server_is_its_child(engine, proving, record_cell):
    """docker run --init, with the words of the page carried out by podman."""
    with proving(INIT, "detected", "tracked pid", "no orphan"):
        engine.write("Dockerfile", engine.page("Dockerfile", flag=False))
        engine.tracked = None
        engine.follow("docker-install")
        first = engine.settle()
        assert machine_pid(parent_of(first)) == tracked(engine)
        assert said_inside(engine)["mode"] == "foreground"
        engine.follow("docker-reload")
        engine.settle(after=[first])
        engine.follow("docker-logs")
        engine.kill_repeatedly(5)
    record_cell(INIT, "10 kills", "5, as it was told")
    with proving(INIT, "stops clean"):
        engine.follow("docker-stop")
        until(engine.is_clean, "nothing of ours runs")


@pytest.mark.parametrize("code", PERMANENT)
def test_an_engine_gives_up_what_keeps_failing(engine, proving, code):
    with proving(INIT, "permanent error stops"):
        places = engine.spoil(code)
        build, run = commands("docker-install")
        engine.shell(fill(build, **engine.places()))
        words = " bash start.sh none" if places["PORT"] == "none" else ""
        engine.shell(fill(run, **engine.places()) + words)
        until(lambda: is_over(engine), "the engine has given it up")
        assert engine.ask("podman", "inspect", "--format", "{{.State.ExitCode}}", "hermes-webui") == str(code)
        done = engine.shell(commands("docker-logs")[0])
        assert (done.stdout + done.stderr).count("bootstrap: ") == 6
        assert not engine.ours()


def test_a_shell_that_stays_pid_1_is_seen_through(engine, proving):
    """Docker's shell form."""
    with proving("podman, sh -c as pid 1", "detected", "no orphan"):
        engine.tracked = None
        run_again(engine, "sh", "-c", "bash start.sh; exit $?")
        server = engine.settle()
        assert inner_pid(parent_of(server)) == 1 and b"sh" in arguments_of(parent_of(server))[0]
        assert said_inside(engine)["mode"] == "foreground"
        os.kill(server, signal.SIGKILL)
        until(lambda: is_over(engine) and engine.is_clean(), "the container has ended")


def test_a_wrapper_that_stays_pid_1_is_seen_through(engine, proving):
    with proving("podman, runuser as pid 1", "detected", "no orphan"):
        engine.serve_for_real()     # which writes nothing beside itself
        engine.tracked = None
        run_again(engine, "runuser", "-u", "nobody", "--", "bash", "start.sh")
        server = engine.settle()
        assert inner_pid(parent_of(server)) == 1 and b"runuser" in arguments_of(parent_of(server))[0]


def test_a_terminal_changes_nothing_for_pid_1(engine, proving):
    with proving("podman, with a terminal", "detected", "tracked pid", "stops clean"):
        run_again(engine, "bash", "start.sh", options=["-t"])
        assert inner_pid(engine.settle()) == 1
        assert said_inside(engine)["mode"] == "foreground"
        engine.follow("podman-stop")
        until(engine.is_clean, "nothing of ours runs")


@pytest.mark.parametrize("options", [(), ("-t",)], ids=["from a pipe", "with a terminal"])
def test_what_enters_a_container_is_detached(engine, proving, record_cell, options):
    row = "podman exec" + "".join(" " + word for word in options)
    with proving(row, "prompt returned", "detached"):
        engine.follow("podman-install")
        first, port = engine.settle(), free_port()
        done = engine.call("podman", "exec", *options, "hermes-webui", "bash", "start.sh", port)
        assert "is ready" in done.stdout + done.stderr
        said = said_inside(engine, port=port)
        assert (said["mode"], said["supervisor"]) == ("detached", None)
        assert engine.servers(engine.port) == [first] and len(engine.servers(port)) == 1
    record_cell(row, "line printed", "nothing to say")


def test_a_supervisor_that_entered_a_container_is_still_one(engine, proving):
    with proving("runit, by podman exec", "detected", "no orphan"):
        engine.follow("podman-install")
        engine.settle()
        port = free_port()
        engine.call("podman", "exec", "hermes-webui", "sh", "-c",
                    "mkdir -p /tmp/x/y && printf '#!/bin/sh\nexec bash /app/start.sh {}\n' >/tmp/x/y/run"
                    " && chmod +x /tmp/x/y/run".format(port))
        engine.call("podman", "exec", "-d", "hermes-webui", "runsvdir", "/tmp/x")
        until(lambda: engine.servers(port), "the second server has its port")
        until(lambda: said_inside(engine, port=port)["healthy"], "it is healthy")
        said = said_inside(engine, port=port)
        assert (said["mode"], said["supervisor"]) == ("foreground", "runit")


# -- runc alone --------------------------------------------------------------------------------


@pytest.fixture
def bundle(lab):
    """A bundle of runc's own making, with the host's programs and this checkout in it."""
    folder = lab.folder / "bundle"
    (folder / "rootfs").mkdir(parents=True)
    with tarfile.open(str(base_image(lab))) as tar:
        tar.extractall(str(folder / "rootfs"))
    lab.call("sh", "-c", 'cd "$1" && runc spec', "sh", folder)
    lab.tracked = None
    Container(lab)
    yield folder
    lab.call("runc", "delete", "--force", "hermes", check=False)


def compose(lab, folder, *words, terminal=False):
    spec = json.loads((folder / "config.json").read_text())
    spec["process"].update(terminal=terminal, args=list(words), cwd="/app", env=[
        "PATH=" + PATH, "HERMES_WEBUI_STATE_DIR=/state", "HERMES_WEBUI_PORT={}".format(lab.port)])
    spec["process"].pop("rlimits", None)
    spec["root"]["readonly"] = False
    spec["linux"]["namespaces"] = [
        row for row in spec["linux"]["namespaces"] if row["type"] not in ("network", "cgroup")]
    spec["linux"]["cgroupsPath"] = "/libpod_parent/hermes-lab"
    for source, place in [(root, root) for root in ROOTS] + [(str(lab.repo), "/app")]:
        spec["mounts"].append({"source": source, "destination": place, "type": "bind",
                               "options": ["rbind"]})
    (folder / "config.json").write_text(json.dumps(spec))


@pytest.mark.parametrize("terminal", [False, True], ids=["without a terminal", "with a terminal"])
def test_runc_has_the_server_as_pid_1(lab, bundle, proving, record_cell, terminal):
    before = control_groups()
    with proving("runc", "detected", "tracked pid", "no orphan"):
        compose(lab, bundle, "bash", "start.sh", terminal=terminal)
        run = ["runc", "run", "--bundle", str(bundle), "hermes"]
        lab.spawn(*(["script", "-qec", shlex.join(run), "/dev/null"] if terminal else run))
        server = lab.settle()
        assert inner_pid(server) == 1
        assert json.loads(lab.ask("runc", "state", "hermes"))["pid"] == machine_pid(server)
        status = ("runc", "exec", "hermes", "bash", "start.sh", "--status", "--json")
        assert json.loads(lab.ask(*status))["mode"] == "foreground"
    with proving("runc", "stops clean"):
        lab.call("runc", "kill", "hermes", "TERM")
        until(lab.is_clean, "nothing of ours runs")
    record_cell("runc", "10 kills", "ends with it")
    record_cell("runc", "permanent error stops", "ends with it")
    for folder in sorted(control_groups() - before, reverse=True):
        until(lambda: is_removed(folder), "{} is removed".format(folder))
