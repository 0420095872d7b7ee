"""The project's own commands where s6 manages its instances."""
import json
import os
import signal

import pytest

from harness import free_port, refused, until
from lab import needs
from s6_lab import DEV, PROGRAMS, SCAN, SLUG, s6  # noqa: F401

pytestmark = [pytest.mark.once, needs(*PROGRAMS)]
ALL = ("blue", "default", "green")
WHO = pytest.mark.parametrize("options", [
    pytest.param({}, id="root"), pytest.param({"owner": DEV}, id="unprivileged")])
FOREIGN = "#!/bin/sh\nexec sleep 1000000\n"


@pytest.fixture
def three(s6):  # noqa: F811
    """A container with three instances, and a service that is not ours."""
    box = s6(owner=DEV).boot()
    box.write_slot("aardvark", FOREIGN)
    box.ports = {name: free_port() for name in ALL}
    for name, port in box.ports.items():
        words = () if name == "default" else ("--instance", name)
        assert box.enter(*words, port=port).code == 0
    return box


def wanted(box):
    return [name for name in ALL if box.is_wanted(name)]


def is_foreign_untouched(box):
    return box.ask_root("s6-svstat", "-o", "up,wantedup", SCAN + "/aardvark") == "true true"


# -- one instance ------------------------------------------------------------------------------


@WHO
def test_an_instance_is_stopped_started_and_restarted_through_s6(s6, options):  # noqa: F811
    box = s6(**options)
    first = box.start()
    assert box.enter("--stop", port=None).code == 0
    assert box.stat_of("up,wantedup") == "false false" and box.is_clean()
    assert box.enter("--stop", port=None).code == 0, "it is stopped already"
    assert box.enter("--start", port=None).code == 0
    second = box.settle(after=[first])
    assert box.enter("--start", port=None).code == 0
    assert box.settle() == second, "it runs already"
    assert box.enter("--restart", port=None).code == 0
    box.settle(after=[first, second])
    box.has_handed_over()


def test_a_stopped_instance_is_brought_up_by_restart(s6):  # noqa: F811
    box = s6().boot()
    assert box.enter().code == 0 and box.enter("--stop").code == 0
    assert box.enter("--restart").code == 0
    box.settle()


def test_the_status_is_what_s6_and_the_server_say(s6):  # noqa: F811
    box = s6()
    box.start()
    done = box.enter("--status", port=None)
    assert done.code == 0 and "up (pid {}".format(box.pid_of()) in done.out
    assert "running" in done.out and box.url in done.out
    assert box.enter("--stop", port=None).code == 0
    done = box.enter("--status", port=None)
    assert done.code == 3 and "down" in done.out and "not running" in done.out


def test_the_status_for_programs_is_one_json_object(s6):  # noqa: F811
    box = s6()
    box.start()
    for port in (None, box.port):
        done = box.enter("--status", "--json", port=port)
        said = json.loads(done.out)
        assert (done.code, said["pid"], said["healthy"]) == (0, box.pid_of(), True)


def test_an_instance_is_meant_by_its_name_and_no_other(three):
    assert three.enter("--stop", "--instance", "blue", port=None).code == 0
    assert wanted(three) == ["default", "green"]
    done = three.enter("--status", "--instance", "green", port=None)
    assert done.code == 0 and ":{}/".format(three.ports["green"]) in done.out
    assert three.enter("--status", "--instance", "blue", port=None).code == 3


@pytest.mark.parametrize("action", ["--start", "--stop", "--restart", "--status", "--unregister"])
def test_an_instance_that_is_not_there_is_named_with_what_makes_it(s6, action):  # noqa: F811
    box = s6().boot()
    done = box.enter(action, "--instance", "typo", port=None)
    refused(done, 3, "no such instance 'typo'", "bash start.sh --instance typo")
    assert box.slots() == []


@pytest.mark.parametrize("action", ["--start", "--stop", "--restart", "--status", "--unregister"])
def test_without_s6_there_is_no_instance_with_a_name(app, action):
    refused(app.run(action, "--instance", "typo"), 3, "no such instance 'typo'",
            "bash start.sh --instance typo")
    app.is_gone()


def test_what_s6_does_not_know_goes_the_ordinary_way(s6):  # noqa: F811
    box = s6()
    server = box.start()
    refused(box.enter("--logs"), 3, "foreground")
    assert box.enter("--print-plan").code == 0
    assert box.enter("--unit", "systemd").out.startswith("# Hermes Web UI")
    assert box.settle() == server


def test_without_a_slot_the_commands_are_the_ordinary_ones(s6):  # noqa: F811
    box = s6().boot()
    assert box.enter("--detach").code == 0
    assert box.enter("--status").code == 0
    assert box.enter("--stop").code == 0 and box.is_clean()
    assert box.enter("--status").code == 3


def test_a_port_that_is_not_the_slots_means_the_instance_on_that_port(s6):  # noqa: F811
    box = s6()
    server, other = box.start(), free_port()
    assert box.enter("--detach", port=other).code == 0
    assert ":{}/".format(other) in box.enter("--status", port=other).out
    assert box.enter("--stop", port=other).code == 0
    assert box.settle() == server and box.servers() == [server]


def test_a_command_of_s6_that_fails_lends_its_status_and_its_words(s6):  # noqa: F811
    box = s6(owner=DEV)
    server = box.start()
    box.call("chmod", "0", box.slot() + "/supervise/control")
    for action in ("--stop", "--restart", "--start"):
        done = box.enter(action, port=None)
        refused(done, done.code, "s6-svc", "Permission denied", "exit status {}".format(done.code))
        assert done.code in (99, 111), "as s6-svc has it"
    assert box.settle() == server


def test_a_slot_of_somebody_else_is_out_of_reach_and_that_is_said(s6):  # noqa: F811
    box = s6()
    server = box.start()
    box.user = DEV
    done = box.enter("--stop", port=None)
    assert done.code not in (0, 3) and "Permission denied" in done.err and "Traceback" not in done.err
    box.user = 0
    assert box.settle() == server


# -- all of them -------------------------------------------------------------------------------


def test_all_are_stopped_restarted_and_counted(three):
    done = three.enter("--status", "--all", port=None)
    assert done.code == 0 and "Running: 3 of 3" in done.err
    assert three.enter("--stop", "--instance", "blue", port=None).code == 0
    done = three.enter("--status", "--all", port=None)
    assert "Running: 2 of 3" in done.err and done.code in (1, 3)
    done = three.enter("--restart", "--all", port=None)
    assert done.code == 0 and "Restarted 3 of 3" in done.err
    until(lambda: wanted(three) == list(ALL), "all run again")
    watchdogs = [three.scan + "/" + name for name in three.slots() if "-watchdog" in name]
    assert {three.ask_root("s6-svstat", "-o", "wantedup", path) for path in watchdogs} == {"false"}
    done = three.enter("--stop", "--all", port=None)
    assert done.code == 0 and "Stopped 3 of 3" in done.err
    assert wanted(three) == [] and three.pythons() == [] and is_foreign_untouched(three)
    places = [(done.out + done.err).find(SLUG + "-" + name) for name in ALL]
    assert -1 not in places and places == sorted(places), "one after the other, by name"


def test_one_failure_is_reported_and_hides_no_other(three):
    three.call("chmod", "0", three.slot("default") + "/supervise/control")
    done = three.enter("--stop", "--all", port=None)
    assert done.code == 1 and "Stopped 2 of 3" in done.err and "Traceback" not in done.err
    assert "Permission denied" in done.err and SLUG + "-default" in done.err
    assert wanted(three) == ["default"] and is_foreign_untouched(three)


@pytest.mark.parametrize("action", ["--stop", "--restart", "--status"])
def test_none_at_all_is_no_error(s6, action):  # noqa: F811
    box = s6().boot()
    box.write_slot("aardvark", FOREIGN)
    done = box.enter(action, "--all", port=None)
    assert done.code == 0 and len(done.err.splitlines()) == 1 and "0 of 0" not in done.err
    assert is_foreign_untouched(box)


def test_to_start_all_is_refused_in_words(three):
    assert three.enter("--stop", "--all", port=None).code == 0
    refused(three.enter("--start", "--all", port=None), 2, "--all")
    assert wanted(three) == []


def test_all_and_a_name_contradict_each_other(app):
    refused(app.run("--stop", "--all", "--instance", "a"), 2)


# -- the end of a slot -------------------------------------------------------------------------


@WHO
def test_a_slot_is_removed_with_its_processes_and_its_watchdog(s6, options):  # noqa: F811
    box = s6(**options)
    box.start()
    assert box.enter("--instance", "blue", port=free_port()).code == 0
    before = len(box.members())
    assert box.enter("--unregister", port=None).code == 0
    assert box.slots() == [SLUG + "-blue", SLUG + "-watchdog-blue"]
    # Gone are the server, its log, their two supervisors, and those of the watchdog.
    until(lambda: len(box.members()) <= before - 5, "their supervisors have ended")
    assert box.is_wanted("blue") and len(box.servers()) == 1
    refused(box.enter("--unregister", "--instance", "default", port=None), 3, "no such instance")
    done = box.enter()
    assert done.code == 0 and box.is_wanted(), "it can be made anew"


def test_a_removed_slot_leaves_the_containers_command_alone(s6):  # noqa: F811
    box = s6()
    box.start()
    box.has_handed_over()
    assert box.enter("--unregister", port=None).code == 0
    assert len(box.heartbeats()) == 1 and box.machine.poll() is None
    os.kill(box.init, signal.SIGTERM)
    assert box.exit_status() == 0
