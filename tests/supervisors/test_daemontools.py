"""daemontools: svscan, with the service folder of docs/supervisor.md."""
import pytest

from harness import until
from lab import FLAGS, lab, needs, prove_revival, prove_tracking  # noqa: F401

pytestmark = [pytest.mark.once, needs("svscan", "svstat", "svc", "multilog", "setuidgid")]
SERVICE = "/etc/service/hermes-webui"


def install(lab, flag=True, **places):
    for name in ("daemontools-run", "daemontools-log"):
        lab.put(name, flag or name != "daemontools-run", **places)
    lab.shell("rm -rf /etc/service && mkdir /etc/service")
    lab.follow("daemontools-install")
    lab.tracked = lambda: tracked(lab)
    lab.spawn("svscan", "/etc/service")


def tracked(lab):
    status = lab.ask("svstat", SERVICE)
    return int(status.partition("(pid ")[2].partition(")")[0] or 0)


@FLAGS
def test_supervise_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "daemontools")


def test_supervise_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "daemontools")


def test_supervise_knows_no_exit_code_and_its_log_says_what_is_wrong(lab, proving, record_cell):
    with proving("daemontools", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(78))
        until(lambda: lab.count_messages("daemontools-logs") > 1, "it was tried again")
        lab.follow("daemontools-stop")
        until(lab.is_clean, "nothing of ours runs")
        assert lab.starts() == []
    record_cell("daemontools", "permanent error stops", "no rule")


def test_supervise_is_detected_through_shells_and_runuser(lab, proving):
    with proving("daemontools", "detected"):
        shapes = lab.shapes()
        lab.shell("rm -rf /etc/service")
        for shape, (_, script) in shapes.items():
            lab.write_file("/etc/service/{}/run".format(shape), "#!/bin/sh\nexec " + script + "\n", 0o755)
        lab.spawn("svscan", "/etc/service")
        lab.came_up(shapes)
