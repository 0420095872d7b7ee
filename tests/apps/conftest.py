"""A repository of somebody else: the two copied files, a configuration, and a quick-start."""
import json
import os
import shutil
import subprocess
from collections import namedtuple

import pytest

pytest.register_assert_rewrite("manual", "packages")
import manual  # noqa: E402
from harness import App, ROOT, get, is_alive, until  # noqa: E402
from packages import UV  # noqa: E402

COPIED = ("bootstrap.py", "start.sh")
CACHE = ROOT / ".test-venv" / "cache"
# uv and pip bring certificates of their own; a machine may have to trust others.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

Example = namedtuple("Example", "name path says program workers")
EXAMPLES = (    # name on the page, what is asked of it, what it answers, what runs it, its workers
    Example("fastapi", "", b'{"Hello":"World"}', "uvicorn", 0),
    Example("flask", "", b"<p>Hello, World!</p>", "gunicorn", 2),
    Example("django", "", b"The install worked successfully", "manage.py", 0),
    Example("datasette", "data.json", b'"data"', "datasette", 0),
    Example("aiohttp", "Ada", b"Hello, Ada", "hello.py", 0),
    Example("http.server", "start.sh", b"#!/bin/sh", "http.server", 0),
    Example("radicale", ".web/", b"Radicale", "radicale", 0))


class Repository(App):
    """What is on the page, copied as the page says, and nothing else."""

    def __init__(self, folder, example):
        super().__init__(folder)
        self.example = example
        (self.repo / "server.py").unlink()
        self.state = self.home / ".local" / "state" / "demo"
        self.env.update(PIP_CACHE_DIR=str(CACHE / "pip"), UV_CACHE_DIR=str(CACHE / "uv"),
                        PIP_DISABLE_PIP_VERSION_CHECK="1")
        if os.path.exists(CERTIFICATES):
            self.env.update(SSL_CERT_FILE=CERTIFICATES, PIP_CERT=CERTIFICATES)
        for name, content in manual.files(example.name).items():
            self.write(name, content)
        for command in self.commands():
            subprocess.check_call(["sh", "-c", command], cwd=str(self.repo), env=self.env)

    def commands(self):
        return manual.blocks().get(self.example.name + "/create", "").splitlines()

    def through_start_sh(self, *words, **options):
        return self.run(*words, by=("bash", self.repo / "start.sh"), **options)

    def serves(self):
        """Whether the application itself answers, and not just anything."""
        status, body = get(self.url + self.example.path)
        return status == 200 and self.example.says in body

    def status(self):
        result = self.run("--status", "--json")
        return json.loads(result.out)

    def is_right(self, pid):
        """Assert that this pid is the server's own: the master's, where there are workers."""
        command = open("/proc/{}/cmdline".format(pid), "rb").read().decode().split("\0")
        assert any(self.example.program in os.path.basename(word) or word == self.example.program
                   for word in command[:4]), command
        others = {other for other in self.processes() if other != pid}
        assert len(others) == self.example.workers
        assert all(parent_of(other) == pid for other in others)
        assert is_alive(pid)
        return True


def parent_of(pid):
    with open("/proc/{}/stat".format(pid)) as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module", params=EXAMPLES, ids=[example.name for example in EXAMPLES])
def repository(request, tmp_path_factory):
    """One repository per example; its environment is made by whatever start comes first."""
    app = Repository(tmp_path_factory.mktemp("repository"), request.param)
    try:
        if UV:
            (app.folder / "uv").mkdir()
            (app.folder / "uv" / "uv").symlink_to(UV)
            app.env["PATH"] = "{}:{}".format(app.folder / "uv", app.env["PATH"])
        yield app
    finally:
        app.close()
        shutil.rmtree(str(app.repo / ".venv"), ignore_errors=True)


@pytest.fixture
def stopped(repository):
    """The repository while nothing of it runs, whatever happened before and happens now."""
    yield repository
    for process in repository.launched:
        if process.poll() is None:
            process.kill()
            process.wait()
    until(lambda: not repository.kill_all(), "all processes have ended")
