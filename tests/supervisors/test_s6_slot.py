"""The slot that a start writes where s6-svscan is pid 1: its files, its user, its ends, its logs."""
import os
import signal

import pytest

import servers
from harness import free_port, is_alive, refused, until
from lab import PERMANENT, arguments_of, needs, parent_of, status_of
from s6_lab import DEV, PREFIX, PROGRAMS, SCAN, SENTINEL, SLUG, s6, watching  # noqa: F401

pytestmark = [pytest.mark.once, needs(*PROGRAMS)]
ROW = "s6-svscan as pid 1"
SPEAKING = servers.small("note()", "print('said on stdout', flush=True)",
                         "print('said on stderr', file=sys.stderr, flush=True)", "serve(listen(), OK)")
TALKATIVE = servers.small("note()", "for number in range(60000):",
                          "    print('a line to fill the log with', number, 'x' * 60)",
                          "print('the last line', flush=True)", "serve(listen(), OK)")


def mode(path):
    return path.stat().st_mode & 0o777


# -- files -------------------------------------------------------------------------------------


def test_a_slot_has_what_s6_runs_and_nothing_that_others_may_write(s6):
    box = s6()
    box.start()
    slot = box.outside(box.slot())
    for name in ("run", "finish", "log/run"):
        assert mode(slot / name) == 0o755, name
        assert box.call("sh", "-n", box.slot() + "/" + name).stderr == ""
    assert mode(slot) in (0o755, 0o700) and int((slot / "timeout-kill").read_text()) >= 10000
    run = (slot / "run").read_text()
    assert "--foreground" in run and "--replace" in run and SENTINEL in run


def test_the_server_has_the_settings_of_the_start_that_wrote_the_slot(s6):
    box = s6()
    box.write(".env", "MY_TOKEN=hunter2\n")
    box.start(env={"HERMES_HOME": box.home / "other", "MARK": "of the container"})
    environ = box.starts()[-1]["environ"]
    assert environ[PREFIX + "PORT"] == str(box.port) and environ[PREFIX + "HOST"] == "127.0.0.1"
    assert environ[PREFIX + "STATE_DIR"] == str(box.home / "other" / "webui")
    assert environ["HOME"] == box.env["HOME"]
    assert environ["PATH"].split(":")[:len(box.env["PATH"].split(":"))] == box.env["PATH"].split(":")
    assert environ["MY_TOKEN"] == "hunter2" and environ["MARK"] == "of the container"
    assert environ[SENTINEL].strip()


def test_a_slot_holds_no_secret(s6):
    box = s6()
    box.write(".env", "MY_TOKEN=hunter2\n{}HOST=127.0.0.1\n".format(PREFIX))
    box.start(env={"API_KEY": "hunter3"})
    for path in box.outside(SCAN).glob("**/*"):
        if path.is_file() and not path.is_symlink():
            assert b"hunter" not in path.read_bytes(), path


def test_the_environment_of_the_container_reaches_the_server_and_the_start_outranks_it(s6):
    box = s6(contenv=True).boot(env={"MARK": "of the container", PREFIX + "PORT": free_port()})
    assert box.enter().code == 0
    environ = box.starts()[-1]["environ"]
    assert (environ["MARK"], environ[PREFIX + "PORT"]) == ("of the container", str(box.port))
    assert box.outside(box.slot() + "/run").read_text().startswith("#!/usr/bin/with-contenv sh\n")


def test_paths_may_hold_what_a_shell_would_obey(s6):
    box = s6()
    odd = box.folder / "it's \"a\" $(touch spoilt) `x` ; ch\u00ebckout"
    box.repo.rename(odd)
    box.repo, box.place = odd, str(odd)
    state = box.folder / "st'ate $HOME \"\\ %i"
    box.start(env={PREFIX + "STATE_DIR": state, "HOME": str(box.home) + " '$x"})
    environ = box.starts()[-1]["environ"]
    assert environ[PREFIX + "STATE_DIR"] == str(state) and environ["HOME"] == str(box.home) + " '$x"
    assert not list(box.folder.glob("**/spoilt"))
    until(lambda: list(state.glob("s6-log-*/current")), "its log lies in the state folder")


def test_a_service_that_somebody_else_wrote_is_not_touched(s6):
    box = s6().boot()
    box.write_slot(SLUG + "-default", "#!/bin/sh\nexec sleep 1000000\n")
    done = box.enter("--unregister")
    assert done.code == 78 and SLUG + "-default" in done.err
    assert SLUG + "-default" in box.slots()


def test_a_slot_is_filled_under_a_hidden_name_and_then_renamed(s6):
    box = s6().boot()
    with watching(box.outside(SCAN)) as events:
        assert box.enter().code == 0
    arrived = [event.name for event in events if event.folder == "" and not event.made]
    assert sorted(arrived) == [SLUG + "-default", SLUG + "-watchdog"]
    for event in events:
        assert event.folder or event.name.startswith(".") or not event.made, event
    for name in arrived:
        since = events.index(next(event for event in events if event.name == name))
        late = {event.name for event in events[since:] if event.folder.lstrip(".").startswith(name)}
        assert not late & {"run", "finish", "log", "timeout-kill"}, late
    assert [name for name in box.slots() if name.startswith(".")] == []


def test_a_start_with_other_settings_renews_the_slot(s6):
    box = s6().boot()
    assert box.enter().code == 0
    box.call("s6-svc", "-wD", "-d", box.slot())
    box.port = free_port()
    done = box.enter()
    assert (done.code, done.out) == (0, box.url + "\n")
    box.settle()
    assert box.starts()[-1]["environ"][PREFIX + "PORT"] == str(box.port)


# -- instances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "", " ", "-a", "_a", "A", "aB", "a b", "a/b", ".", "..", "a.b", "\u00e9", "\u0661", "a\n",
    "x" * 252, "watchdog", "watchdog-a"])
def test_an_instance_needs_a_plain_name(app, name):
    refused(app.run("--instance=" + name), 2)
    app.is_gone()


@pytest.mark.parametrize("name", ["0", "a_b-c", "x" * 200], ids=["digit", "mixed", "long"])
def test_an_instance_has_a_slot_of_its_name(s6, name):
    box = s6().boot()
    assert box.enter("--instance", name).code == 0
    assert box.is_wanted(name) and SLUG + "-" + name in box.slots()


def test_instances_live_side_by_side(s6):
    box = s6()
    first, port = box.start(), free_port()
    done = box.enter("--instance", "blue", port=port)
    assert (done.code, done.out) == (0, "http://127.0.0.1:{}/\n".format(port))
    assert box.is_wanted("blue") and len(box.servers(port)) == 1 and box.servers(box.port) == [first]
    assert box.slots() == [SLUG + "-" + name for name in ("blue", "default", "watchdog", "watchdog-blue")]


def test_an_instance_on_the_port_of_another_is_not_called_ready(s6):
    box = s6()
    server = box.start()
    done = box.enter("--instance", "blue", "--timeout", "5")
    assert done.code not in (0, 3) and done.out == "" and "Traceback" not in done.err
    assert box.settle() == server


# -- whose server it is ------------------------------------------------------------------------


def user_of(pid):
    return {int(uid) for uid in status_of(pid, "Uid")}


@pytest.mark.parametrize("owner", [
    pytest.param(DEV, id="with a name"), pytest.param(23456, id="without a name"),
    pytest.param(0, id="root")])
def test_root_leaves_the_server_to_the_owner_of_the_state_folder(s6, owner):
    box = s6()
    box.env["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    box.state.mkdir(parents=True)
    os.chown(str(box.state), owner, owner)
    box.repo.chmod(0o777)
    server = box.start()
    assert user_of(server) == {owner} and {int(gid) for gid in status_of(server, "Gid")} == {owner}
    assert owner == 0 or "0" not in status_of(server, "Groups")
    assert box.status_inside()["state"] == "running"


def test_whoever_is_not_root_stays_who_he_is(s6):
    box = s6(owner=DEV)
    assert user_of(box.start()) == {DEV}


# -- how a server ends -------------------------------------------------------------------------


@pytest.mark.parametrize("code", PERMANENT)
def test_what_a_restart_cannot_cure_is_started_once(s6, proving, code):
    with proving(ROW, "permanent error stops"):
        box = s6()
        box.serve(servers.small("note()", "sys.exit({})".format(code)))
        box.boot("bash", box.start_sh, box.port)
        until(box.starts, "the server was started", 30)
        until(lambda: box.stat_of("up,wantedup") == "false false", "it is down for good")
        assert len(box.starts()) == 1 and len(until(box.heartbeats, "the container lives on")) == 1


def test_a_stop_that_lasts_is_ended(s6):
    """timeout-kill: what does not heed SIGTERM holds up no container."""
    box = s6()
    box.serve(servers.DEAF)
    box.boot("bash", box.start_sh, box.port)
    until(box.answers, "the server answers")
    box.outside(box.slot() + "/timeout-kill").write_text("100\n")
    box.ask_root("s6-svc", "-wD", "-d", box.slot())
    assert box.stat_of("up,wantedup") == "false false" and box.pythons() == []


def holding(box):
    """Host pids of what keeps the slot from its next attempt: its finish script."""
    return [pid for pid in box.members() if box.is_supervised(pid) and (
        b"./finish" in arguments_of(pid) or arguments_of(pid)[0] == b"sleep")]


def test_a_stranger_on_the_port_is_left_alone_and_the_slot_backs_off(s6):
    box = s6()
    stranger = box.foreign(servers.foreign_http(b"HTTP/1.0 200 OK\r\n\r\nhello"))
    box.boot("bash", box.start_sh, box.port)
    until(lambda: holding(box), "the slot holds before its next attempt", 30)
    until(lambda: "is taken" in box.out() + box.err(), "it says why")
    assert stranger.poll() is None and box.servers() == [] and len(until(box.heartbeats, "a sleep")) == 1
    stranger.kill()
    box.settle()
    box.has_handed_over()


def test_a_stray_server_of_ours_is_replaced(s6):
    box = s6().boot()
    assert box.enter("--detach").code == 0
    stray, = box.servers()
    done = box.enter()
    assert (done.code, done.out) == (0, box.url + "\n")
    assert not is_alive(stray) and box.is_supervised(box.settle())


def test_an_instance_on_another_port_is_no_stray(s6):
    box = s6().boot()
    other = free_port()
    assert box.enter("--detach", port=other).code == 0
    assert box.enter().code == 0
    assert len(box.servers(other)) == len(box.servers(box.port)) == 1


# -- where its words go ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    pytest.param({}, id="root"), pytest.param({"owner": DEV}, id="unprivileged"),
    pytest.param({"contenv": True}, id="with-contenv")])
def test_what_the_server_says_is_in_the_containers_output_and_in_the_state_folder(s6, options):
    box = s6(**options)
    box.serve(SPEAKING)
    box.start()
    kept = box.state / ("s6-log-" + SLUG + "-default") / "current"
    for words in ("said on stdout", "said on stderr"):
        until(lambda: words in box.out(), "the container says it")
        until(lambda: kept.exists() and words in kept.read_text(), "the folder keeps it")


def test_the_folder_is_rotated(s6):
    box = s6()
    box.serve(TALKATIVE)
    box.start()
    folder = box.state / ("s6-log-" + SLUG + "-default")
    until(lambda: "the last line" in box.out(), "all of it has been said")
    until(lambda: list(folder.glob("@*")), "a full file was set aside")


def test_a_full_state_folder_holds_no_server_up(s6):
    """The server says more than a pipe holds, and somebody has to go on reading."""
    box = s6(prepare='mount -t tmpfs -o size=300k full "$HOME"')
    box.serve(TALKATIVE)
    box.start()
    until(lambda: "the last line" in box.out(), "the container says it")


# -- when s6 cannot be had ---------------------------------------------------------------------


def in_the_foreground(box):
    """The server is the command of the container after all, and stderr says why."""
    box.tracked = None
    server = box.start()
    assert parent_of(parent_of(server)) == box.init and box.pythons() == [server]
    assert box.heartbeats() == [] and "s6 supervision" not in box.err()
    lines = [line for line in box.err().splitlines() if line.startswith("bootstrap: ")]
    assert lines and "Traceback" not in box.err()
    slots = box.slots()
    os.kill(server, signal.SIGKILL)
    assert box.exit_status() == 128 + signal.SIGKILL
    return lines, slots


def test_a_scan_folder_of_somebody_else_is_named_and_the_start_goes_on(s6):
    lines, slots = in_the_foreground(s6(user=DEV))
    assert any(SCAN in line for line in lines) and slots == []


def test_a_state_folder_that_cannot_be_made_is_named_and_the_start_goes_on(s6):
    box = s6(writable=())
    box.serve_for_real()
    lines, slots = in_the_foreground(box)
    assert any(str(box.home) in line for line in lines) and slots == []


def test_an_s6_svscan_of_somebody_else_is_named_and_no_slot_is_left(s6):
    lines, slots = in_the_foreground(
        s6(user=DEV, prepare="mkdir -p {0}; chown {1} {0}".format(SCAN, DEV)))
    assert any("s6-svscanctl" in line for line in lines) and slots == []


def test_a_program_of_s6_that_is_missing_is_named_and_the_start_goes_on(s6):
    lines, slots = in_the_foreground(s6(prepare="chmod a-x /usr/bin/s6-svc"))
    assert any("s6-svc" in line for line in lines) and slots == []
