"""s6: s6-svscan, with the service folder of docs/supervisor.md."""
import pytest

from harness import until
from lab import FLAGS, PERMANENT, lab, needs, prove_one_start, prove_revival, prove_tracking  # noqa: F401

pytestmark = [pytest.mark.once, needs("s6-svscan", "s6-svstat", "s6-log", "s6-setuidgid")]
SERVICE = "/run/service/hermes-webui"


def install(lab, flag=True, **places):
    for name in ("s6-run", "s6-finish", "s6-log"):
        lab.put(name, flag or name != "s6-run", **places)
    scan(lab)
    lab.tracked = lambda: int(lab.ask("s6-svstat", "-o", "pid", SERVICE) or 0)
    lab.follow("s6-install")


def scan(lab):
    lab.shell("mkdir /run/service")
    lab.spawn("s6-svscan", "/run/service")
    until(lambda: lab.ask("ls", "/run/service/.s6-svscan/control"), "s6-svscan listens")


@FLAGS
def test_s6_supervise_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "s6")


def test_s6_supervise_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "s6")


@pytest.mark.parametrize("code", PERMANENT)
def test_finish_takes_a_service_down_that_cannot_start(lab, proving, code):
    with proving("s6", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(code))
        until(lambda: lab.ask("s6-svstat", "-o", "up,wantedup", SERVICE) == "false false", "it is down")
        prove_one_start(lab, "s6-logs")


def test_s6_supervise_is_detected_through_shells_and_runuser(lab, proving):
    with proving("s6", "detected"):
        shapes = lab.shapes()
        for shape, (_, script) in shapes.items():
            lab.write_file("/run/service/{}/run".format(shape), "#!/bin/sh\nexec " + script + "\n", 0o755)
        lab.spawn("s6-svscan", "/run/service")
        lab.came_up(shapes)
