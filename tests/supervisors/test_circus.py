"""circus: circusd, with the file of docs/supervisor.md."""
import shlex

import pytest

from harness import until
from lab import FLAGS, lab, prove_revival, prove_tracking, pypi  # noqa: F401

pytestmark = pytest.mark.once
CONTROL = ("circusctl", "--endpoint", "ipc:///run/circus-endpoint")


def install(lab, flag=True, **places):
    lab.on_path(pypi("circus"))
    lab.put("circus.ini", flag, **places)
    lab.tracked = lambda: tracked(lab)
    lab.follow("circus-install")


def tracked(lab):
    pids = lab.ask(*CONTROL, "list", "hermes-webui")
    return int(pids) if pids.isdigit() else 0


@FLAGS
def test_circusd_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "circus")


def test_circusd_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "circus")


def test_circusd_knows_no_exit_code_and_its_log_says_what_is_wrong(lab, proving, record_cell):
    with proving("circus", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(78))
        until(lambda: lab.count_messages("circus-logs") > 1, "it was tried again")
        lab.follow("circus-stop")
        until(lab.is_clean, "nothing of ours runs")
        assert lab.starts() == []
    record_cell("circus", "permanent error stops", "no rule")


def test_circusd_is_detected_through_shells_and_runuser(lab, proving):
    """Also with shell = true, where a sh stands between."""
    with proving("circus", "detected"):
        lab.on_path(pypi("circus"))
        shapes = lab.shapes("shell-true")
        text = "[circus]\nendpoint = ipc:///run/circus-endpoint\npubsub_endpoint = ipc:///run/circus-pubsub\n"
        for shape, (_, script) in shapes.items():
            text += "[watcher:{}]\ncmd = {}\nshell = {}\n".format(
                shape, shlex.quote(script), "true" if shape == "shell-true" else "false")
        lab.write_file("/etc/circus.ini", text)
        lab.spawn("circusd", "/etc/circus.ini")
        lab.came_up(shapes)
