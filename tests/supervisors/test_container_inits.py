"""tini and dumb-init as pid 1 of a PID namespace, with the entry points of docs/supervisor.md."""
import os
import signal

import pytest

from harness import is_alive, until
from lab import FLAGS, SHAPES, ancestors, arguments_of, children_of, lab, needs  # noqa: F401

pytestmark = pytest.mark.once
INITS = pytest.mark.parametrize("init", [
    pytest.param("tini", marks=needs("tini")), pytest.param("dumb-init", marks=needs("dumb-init"))])
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def start(lab, init, line):
    """Host pid of an init that is pid 1 and runs this shell line's command."""
    lab.tracked = None
    lab.spawn(*CONTAINER, "sh", "-c", "exec " + line, env={"HERMES_WEBUI_STATE_DIR": str(lab.state)})
    server = lab.settle()
    return next(pid for pid in ancestors(server) if os.path.basename(arguments_of(pid)[0]) == init.encode())


@INITS
@FLAGS
def test_the_server_is_the_inits_child_and_ends_with_it(lab, proving, record_cell, init, flag):
    with proving(init, "detected", "tracked pid", "no orphan"):
        pid = start(lab, init, lab.page(init + "-entrypoint", flag))
        assert children_of(pid) == lab.servers()
        said = lab.status_inside(inside=pid)
        assert (said["mode"], said["supervisor"]) == ("foreground", "the container engine")
    with proving(init, "stops clean"):
        os.kill(pid, signal.SIGTERM)
        until(lambda: not is_alive(pid) and lab.is_clean(), "the container has ended")
    record_cell(init, "10 kills", "ends with it")
    record_cell(init, "permanent error stops", "ends with it")


@INITS
def test_a_killed_server_ends_the_container(lab, proving, init):
    with proving(init, "no orphan"):
        pid = start(lab, init, lab.page(init + "-entrypoint", flag=False))
        os.kill(lab.servers()[0], signal.SIGKILL)
        until(lambda: not is_alive(pid) and lab.is_clean(), "the container has ended")
        assert len(lab.starts()) == 1


@INITS
@pytest.mark.parametrize("shape", SHAPES)
def test_the_init_is_detected_through_shells_and_runuser(lab, proving, init, shape):
    with proving(init, "detected"):
        shapes = lab.shapes()
        port, script = shapes[shape]
        lab.spawn(*CONTAINER, init, "--", script)
        lab.came_up({shape: shapes[shape]})
        pid = next(pid for pid in ancestors(lab.servers()[0])
                   if os.path.basename(arguments_of(pid)[0]) == init.encode())
        said = lab.status_inside(port, inside=pid, state=lab.home / shape)
        assert (said["mode"], said["supervisor"]) == ("foreground", "the container engine")
