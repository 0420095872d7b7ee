"""honcho: with the Procfile of docs/supervisor.md."""
import os
import signal

import pytest

from harness import until
from lab import FLAGS, children_of, lab, name_of, pypi  # noqa: F401
from page import commands, fill

pytestmark = pytest.mark.once


def install(lab, flag=True):
    lab.on_path(pypi("honcho"))
    lab.write("Procfile", lab.page("Procfile", flag))
    command, = commands("honcho-start")
    lab.spawn("sh", "-c", "exec " + fill(command, **lab.places()))
    lab.tracked = None
    return lab.settle()


def honcho(lab):
    """honcho itself, the child of pid 1."""
    return [pid for pid in children_of(lab.init) if name_of(pid) == "honcho"]


@FLAGS
def test_honcho_has_the_server_as_its_child_and_ends_with_it(lab, proving, record_cell, flag):
    with proving("honcho", "detected", "tracked pid", "no orphan"):
        server = install(lab, flag)
        report = lab.status_inside()
        assert (report["mode"], report["supervisor"]) == ("foreground", "honcho")
    os.kill(server, signal.SIGKILL)
    until(lambda: not honcho(lab) and lab.is_clean(), "honcho has ended, and nothing of ours runs")
    assert len(lab.starts()) == 1
    record_cell("honcho", "10 kills", "never restarts")
    record_cell("honcho", "permanent error stops", "never restarts")


def test_honcho_told_to_end_ends_the_server(lab, proving):
    with proving("honcho", "stops clean"):
        install(lab)
        os.kill(honcho(lab)[0], signal.SIGTERM)
        until(lambda: not honcho(lab) and lab.is_clean(), "nothing of ours runs")


def test_honcho_is_detected_through_shells_and_runuser(lab, proving):
    with proving("honcho", "detected"):
        lab.on_path(pypi("honcho"))
        shapes = lab.shapes()
        lab.write("Procfile", "".join(
            "{}: {}\n".format(shape.replace("-", "_"), script) for shape, (_, script) in shapes.items()))
        lab.spawn("honcho", "start", "-f", lab.repo / "Procfile")
        lab.came_up(shapes)
