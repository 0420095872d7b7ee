"""Real applications from PyPI, in repositories that consist of what docs/vendoring.md shows."""
import os
import shutil
import signal

import pytest

import manual
from harness import ROOT, until
from packages import executed, tracing

pytestmark = pytest.mark.once

BY_SIGTERM = (0, -signal.SIGTERM, 128 + signal.SIGTERM)     # each framework has its own way to end
NO_DEPENDENCIES = ("http.server",)


def test_the_repository_is_the_two_files_a_configuration_and_the_quick_start(stopped):
    for name in ("bootstrap.py", "start.sh"):
        assert (stopped.repo / name).read_bytes() == (ROOT / name).read_bytes()
    lines = (stopped.repo / "bootstrap.cfg").read_text().splitlines()
    assert len(lines) <= 6
    code = set(manual.files(stopped.example.name)) | {"bootstrap.py", "start.sh"}
    created = {"manage.py", "mysite"} if stopped.commands() else set()
    assert {path.name for path in stopped.repo.iterdir()} - {
        ".venv", "data.db", "db.sqlite3", "__pycache__"} == code | created


def test_the_first_start_installs_and_is_healthy(stopped):
    shutil.rmtree(str(stopped.repo / ".venv"), ignore_errors=True)
    result = stopped.through_start_sh(timeout=110)
    assert (result.code, result.out) == (0, stopped.url + "\n"), result.err
    status = stopped.status()
    assert status["state"] == "running" and status["healthy"] and stopped.serves()
    assert stopped.is_right(status["pid"]) and os.getsid(status["pid"]) == status["pid"]
    needs = stopped.example.name not in NO_DEPENDENCIES
    assert ("making .venv" in result.err) is (stopped.repo / ".venv").exists() is needs
    end = stopped.run("--stop")
    assert end.code == 0 and "SIGTERM" in end.err and stopped.is_gone() and stopped.is_free()


def test_in_the_foreground_it_keeps_the_launchers_pid_and_ends_by_sigterm(stopped):
    process = stopped.launch("--foreground", by=("bash", stopped.repo / "start.sh"))
    until(stopped.serves, "the application answers", 110)
    status = stopped.status()
    assert status["pid"] == process.pid and status["healthy"] and stopped.is_right(process.pid)
    process.terminate()
    assert process.wait(timeout=20) in BY_SIGTERM
    assert stopped.is_gone() and stopped.is_free()


@pytest.mark.parametrize("mode", ["--detach", "--foreground"])
def test_a_warm_start_runs_no_interpreter_but_the_servers_own(stopped, tmp_path, mode):
    under = tracing(tmp_path / "trace")
    if not (stopped.repo / ".venv").exists():
        stopped.through_start_sh(timeout=110)
        stopped.run("--stop")
    command = stopped.plan(by=("bash", stopped.repo / "start.sh"))["command"]
    process = stopped.launch(mode, under=under, by=("bash", stopped.repo / "start.sh"))
    until(stopped.serves, "the application answers", 60)
    if mode == "--detach":
        assert process.stdout.readline() == stopped.url + "\n"
    assert stopped.run("--stop").code == 0
    process.communicate(timeout=20)
    shell, python, server, *itself = executed(tmp_path / "trace")
    assert (os.path.basename(shell), os.path.basename(python)) == ("bash", "python3")
    # A script in a folder whose name has a space finds its Python by one more exec.
    interpreters = [path for path in itself if "python" in os.path.basename(path)]
    own = str(stopped.repo / ".venv" / "bin" / "python")
    assert server == command[0] and interpreters in ([], [own])
    assert stopped.is_gone()
