"""runit: runsvdir, with the service folder of docs/supervisor.md."""
import pytest

from harness import until
from lab import FLAGS, PERMANENT, lab, needs, prove_one_start, prove_revival, prove_tracking  # noqa: F401

pytestmark = [pytest.mark.once, needs("runsvdir", "sv", "chpst", "svlogd")]
SERVICE = "/etc/sv/hermes-webui"


def install(lab, flag=True, **places):
    for name in ("runit-run", "runit-finish", "runit-log"):
        lab.put(name, flag or name != "runit-run", **places)
    scan(lab)
    lab.tracked = lambda: int(lab.ask("cat", SERVICE + "/supervise/pid") or 0)
    lab.follow("runit-install")


def scan(lab):
    """runsvdir on a folder without the services of this computer."""
    lab.shell("rm -rf /etc/service && mkdir /etc/service")
    lab.spawn("runsvdir", "-P", "/etc/service")


def is_down(lab):
    """Whether runsv has given the service up: it is down and not wanted up."""
    status = lab.ask("sv", "status", SERVICE)
    return status.startswith("down: ") and "want up" not in status


@FLAGS
def test_runsv_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "runit")


def test_runsv_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "runit")


@pytest.mark.parametrize("code", PERMANENT)
def test_finish_takes_a_service_down_that_cannot_start(lab, proving, code):
    with proving("runit", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(code))
        until(lambda: is_down(lab), "it is down")
        prove_one_start(lab, "runit-logs")


def test_runsv_is_detected_through_shells_and_runuser(lab, proving):
    with proving("runit", "detected"):
        shapes = lab.shapes()
        scan(lab)
        for shape, (_, script) in shapes.items():
            lab.write_file("/etc/service/{}/run".format(shape), "#!/bin/sh\nexec " + script + "\n", 0o755)
        lab.came_up(shapes)
