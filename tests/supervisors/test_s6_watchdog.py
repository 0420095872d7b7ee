"""The watchdog's slot beside a server under s6, and the single probe that it is made of."""
import os
import signal

import pytest

import servers
from harness import free_port, get, is_alive, until
from lab import needs
from s6_lab import DEV, PREFIX, PROGRAMS, SLUG, s6  # noqa: F401

pytestmark = [pytest.mark.once, needs(*PROGRAMS)]
SICK_WHEN_DEEP = servers.small(
    "note()",
    "def reply(path):",
    "    if 'deep' in path:",
    "        return [http(b'{\"status\": \"error\"}', '503 Service Unavailable')]",
    "    return [OK]",
    "answer(listen(), reply)")


def watchdog_of(box, instance=""):
    return box.scan + "/" + SLUG + "-watchdog" + instance


def is_watching(box, instance=""):
    return box.ask_root("s6-svstat", "-o", "up,wantedup", watchdog_of(box, instance)) == "true true"


def test_the_watchdog_is_there_and_stays_down(s6):  # noqa: F811
    box = s6()
    box.start()
    folder = box.outside(watchdog_of(box))
    assert (folder / "down").exists() and (folder / "run").stat().st_mode & 0o777 == 0o755
    assert box.call("sh", "-n", watchdog_of(box) + "/run").stderr == ""
    assert box.ask_root("s6-svstat", "-o", "up,wantedup", watchdog_of(box)) == "false false"


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_the_variable_brings_the_watchdog_up(s6, value):  # noqa: F811
    box = s6()
    box.start(env={PREFIX + "WATCHDOG": value})
    until(lambda: is_watching(box), "the watchdog is up")
    assert not (box.outside(watchdog_of(box)) / "down").exists()


def test_each_instance_has_a_watchdog_of_its_own(s6):  # noqa: F811
    box = s6().boot()
    assert box.enter().code == 0
    done = box.enter("--instance", "blue", port=free_port(), env={PREFIX + "WATCHDOG": "1"})
    assert done.code == 0 and is_watching(box, "-blue") and not is_watching(box)


def test_a_server_that_listens_and_does_not_answer_is_restarted(s6):  # noqa: F811
    box = s6(owner=DEV, contenv=True)
    box.configure(start_timeout=1, stop_timeout=1)
    server = box.start(env={PREFIX + "WATCHDOG": "1"})
    until(lambda: is_watching(box), "the watchdog is up")
    os.kill(server, signal.SIGSTOP)
    new = box.settle(after=[server], seconds=90)
    assert not is_alive(server) and box.is_supervised(new) and is_watching(box)
    assert len(box.heartbeats()) == 1


def test_a_check_that_cannot_be_made_is_no_reason_to_restart(s6):  # noqa: F811
    """The settings are wrong by now: the server that runs is well, and the next one could not start."""
    box = s6()
    box.configure(start_timeout=1)
    server = box.start()
    run = box.outside(watchdog_of(box) + "/run")
    assert "sleep 5" in run.read_text()
    run.write_text(run.read_text().replace("sleep 5", "sleep 0.1"))
    until(lambda: int(box.stat_of("updownfor")) > 1, "the server is not new any more")
    box.write("bootstrap.cfg", "[bootstrap]\nnonsense = 1\n")
    box.ask_root("s6-svc", "-u", watchdog_of(box))
    until(lambda: (box.out() + box.err()).count("nonsense") > 4, "it has been asked again and again")
    assert box.settle() == server


# -- one probe ---------------------------------------------------------------------------------


def test_the_probe_tells_a_healthy_server_from_none(app):
    assert app.run("--check").code == 3
    app.start()
    for words in ((), ("--deep",)):
        assert app.run("--check", *words).code == 0
    assert app.run("--stop").code == 0
    assert app.run("--check").code == 3


def test_the_probe_says_no_to_a_stopped_process_that_still_listens(app):
    pid = app.start()
    os.kill(pid, signal.SIGSTOP)
    done = app.run("--check")
    os.kill(pid, signal.SIGCONT)
    assert done.code == 1 and "Traceback" not in done.err


def test_the_probe_goes_deep_where_it_is_asked_to(app):
    app.serve(SICK_WHEN_DEEP)
    app.start()
    assert app.run("--check").code == 0
    assert app.run("--check", "--deep").code == 1


def test_the_probe_does_not_vouch_for_a_stranger(app):
    app.foreign(servers.foreign_http(
        b"HTTP/1.0 200 OK\r\nContent-Length: 16\r\n\r\n{\"status\": \"ok\"}"))
    assert get(app.url + "health")[0] == 200
    assert app.run("--check").code == 3


def test_the_probe_works_on_a_server_of_s6(s6):  # noqa: F811
    box = s6()
    server = box.start()
    for words in ((), ("--deep",)):
        assert box.enter("--check", *words).code == 0
    os.kill(server, signal.SIGSTOP)
    assert box.enter("--check", "--deep").code == 1
    os.kill(server, signal.SIGCONT)
    assert box.enter("--stop", port=None).code == 0
    assert box.enter("--check", "--deep").code == 3
