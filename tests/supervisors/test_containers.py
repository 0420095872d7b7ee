"""Real containers by podman and runc: the Dockerfile and the commands of docs/supervisor.md."""
import json
import os
import signal
import sys
import tarfile

import pytest

from harness import PYTHON, until
from lab import FLAGS, PATH, lab, needs  # noqa: F401

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


@pytest.fixture
def engine(lab):
    """podman with one image, which has nothing but places for the host's programs."""
    roots = sorted({"/usr", "/etc/alternatives", os.path.dirname(os.path.dirname(PYTHON))})
    lab.write_file("/etc/containers/containers.conf", CONTAINERS_CONF.format(
        path=PATH, volumes=", ".join('"{0}:{0}:ro"'.format(root) for root in roots)))
    lab.write_file("/etc/containers/storage.conf", STORAGE_CONF)
    image = lab.folder / "base.tar"
    with tarfile.open(str(image), "w") as tar:
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if os.path.islink("/" + name):
                tar.add("/" + name, name, recursive=False)
        for name in ("tmp", "root", "etc", "usr", "proc", "sys", "dev", "run", "var"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    lab.call("podman", "import", image, BASE)
    lab.shell("ln -sf \"$(command -v podman)\" /usr/local/bin/docker")
    lab.write("Dockerfile", lab.page("Dockerfile"))
    lab.tracked = lambda: tracked(lab)
    yield lab
    lab.shell("podman rm -f -a -t 0", check=False)


def tracked(lab):
    answer = lab.ask("podman", "inspect", "--format", "{{.State.Pid}}", "hermes-webui")
    return int(answer) if answer.isdigit() else 0


def test_podman_tracks_pid_1_and_starts_it_again(engine, proving):
    with proving("podman", "detected", "tracked pid"):
        engine.follow("podman-install")
        first = engine.settle()
