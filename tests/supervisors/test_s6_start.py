"""A start where s6-svscan is pid 1: it hands over to s6, unless it is told otherwise."""
import os
import signal

import pytest

import servers
from harness import free_port, is_alive, refused, until
from lab import arguments_of, lab, needs, parent_of  # noqa: F401
from s6_lab import DEV, PREFIX, PROGRAMS, SCAN, SENTINEL, SLUG, s6  # noqa: F401

pytestmark = [pytest.mark.once, needs(*PROGRAMS)]
ROW = "s6-svscan as pid 1"
ENTERED = "docker exec, s6-svscan is pid 1"
SLOTS = [SLUG + "-default", SLUG + "-watchdog"]
# s6-supervise makes its files one after the other; here it takes a while between two of them.
SLOW_SUPERVISE = """
mv /usr/bin/s6-supervise /usr/bin/slow-supervise
cat >/usr/bin/s6-supervise <<'END'
#!/bin/bash
[ ! -e "$1/supervise" ] && mkdir -p "$1/supervise" && mkfifo -m 600 "$1/supervise/control" && sleep 0.5
exec -a s6-supervise /usr/bin/slow-supervise "$@"
END
chmod +x /usr/bin/s6-supervise
"""
WHO = pytest.mark.parametrize("options", [
    pytest.param({}, id="root"), pytest.param({"owner": DEV}, id="unprivileged")])


def has_told(text):
    return all(words in text for words in (
        "runs under s6 supervision", SLOTS[0], "restarted when it crashes", "--no-supervise",
        PREFIX + "NO_SUPERVISE=1"))


def has_told_nothing(text):
    return "s6 supervision" not in text


# -- handing over ------------------------------------------------------------------------------


@WHO
@pytest.mark.parametrize("contenv", [False, True], ids=["plain", "with-contenv"])
def test_the_command_of_a_container_becomes_a_sleep_beside_a_supervised_server(
        s6, proving, options, contenv):
    with proving(ROW, "detected", "tracked pid"):
        box = s6(contenv=contenv, **options)
        server = box.start()
        box.has_handed_over()
        assert box.slots() == SLOTS and has_told(box.err())
        said = box.status_inside()
        assert (said["mode"], said["supervisor"], said["state"]) == ("foreground", "s6", "running")
    with proving(ROW, "no orphan"):
        os.kill(server, signal.SIGKILL)
        box.settle(after=[server])
        box.has_handed_over()
        assert box.machine.poll() is None, "the container outlives its server"
    with proving(ROW, "stops clean"):
        os.kill(box.init, signal.SIGTERM)
        assert box.exit_status() == 0
        until(box.is_clean, "nothing of ours runs")


def test_an_s6_supervise_that_is_slow_to_listen_is_waited_for(s6):
    box = s6(prepare=SLOW_SUPERVISE)
    box.start()
    box.has_handed_over()


def test_a_terminal_of_the_container_changes_nothing_for_its_command(s6):
    box = s6()
    box.start(terminal=True)
    box.has_handed_over()
    assert has_told(os.read(box.screen, 65536).decode())
    os.close(box.screen)


def test_the_scan_folder_is_the_one_that_pid_1_names(s6):
    box = s6(scan="/run/elsewhere")
    box.start()
    box.has_handed_over()
    assert box.slots() == SLOTS


@WHO
@pytest.mark.parametrize("path", [("PATH=",), ("-u", "PATH")], ids=["empty", "unset"])
def test_s6_is_found_without_a_path(s6, options, path):
    box = s6(**options)
    box.boot("/usr/bin/env", *path, PREFIX + "PYTHON=/usr/bin/python3", "/bin/bash", box.start_sh, box.port)
    box.settle()
    box.has_handed_over()


@WHO
def test_a_read_only_root_folder_is_no_hindrance(s6, options):
    """Beside /run, only the state folder can be written."""
    box = s6(writable=("home",), **options)
    box.serve_for_real()
    box.start()
    box.has_handed_over()
    os.kill(box.init, signal.SIGTERM)
    assert box.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_a_sleep_the_launcher_waits_and_ends_by_the_signal(s6, number):
    box = s6(prepare="chmod a-x /usr/bin/sleep")
    server = box.start()
    assert has_told(box.err())
    waiting, = set(box.pythons()) - {server}
    until(lambda: "sleep" in box.err(), "it says what is missing")
    os.kill(waiting, number)
    assert box.exit_status() == 128 + number
    until(box.is_clean, "nothing of ours runs")


# -- being told otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize("words, env", [
    pytest.param(("--no-supervise",), {}, id="flag"),
    pytest.param((), {PREFIX + "NO_SUPERVISE": "1"}, id="1"),
    pytest.param((), {PREFIX + "NO_SUPERVISE": " True "}, id="True"),
    pytest.param((), {PREFIX + "NO_SUPERVISE": "yes"}, id="yes"),
    pytest.param(("--foreground",), {}, id="foreground"),
    pytest.param((), {PREFIX + "FOREGROUND": "on"}, id="FOREGROUND")])
def test_who_opts_out_has_the_server_as_the_containers_command(s6, words, env):
    box = s6(owner=DEV)
    box.tracked = None
    server = box.start(*words, env=env)
    assert box.slots() == [] and box.heartbeats() == [] and has_told_nothing(box.err())
    assert parent_of(parent_of(server)) == box.init and box.pythons() == [server]
    said = box.status_inside()
    assert (said["mode"], said["supervisor"]) == ("foreground", "the container engine")
    os.kill(server, signal.SIGKILL)
    assert box.exit_status() == 128 + signal.SIGKILL


def test_a_server_that_is_the_command_gives_the_container_its_exit_status(s6):
    box = s6()
    box.serve("import sys; sys.exit(7)")
    box.boot("bash", box.start_sh, box.port, "--no-supervise")
    assert box.exit_status() == 7


def test_what_is_not_clearly_a_yes_does_not_opt_out(s6):
    box = s6().boot()
    for number, value in enumerate(("0", "no", "on", "", "2")):
        name, port = "t{}".format(number), free_port()
        done = box.enter("--instance", name, port=port, env={PREFIX + "NO_SUPERVISE": value})
        assert done.code == 0 and box.is_wanted(name), value


@pytest.mark.parametrize("words, env", [
    pytest.param(("--no-supervise",), {}, id="opted out"),
    pytest.param(("--detach",), {}, id="detach"),
    pytest.param((), {SENTINEL: "1"}, id="supervised child")])
def test_what_does_not_hand_over_is_detached_when_it_entered_from_outside(s6, words, env):
    box = s6().boot()
    done = box.enter(*words, env=env)
    assert (done.code, done.out) == (0, box.url + "\n")
    assert box.slots() == [] and has_told_nothing(done.err)
    assert box.status_inside()["mode"] == "detached"


def test_a_blank_sentinel_is_none(s6):
    box = s6().boot()
    assert box.enter(env={SENTINEL: " "}).code == 0
    assert box.is_wanted()


def test_a_service_that_was_written_by_hand_is_left_as_it_is(s6):
    """Its parent is s6-supervise: it is tracked already."""
    box = s6().boot()
    box.write_slot("mine", "#!/bin/sh\nexec bash '{}' {}\n".format(box.start_sh, box.port))
    box.tracked = None
    server = box.settle()
    assert arguments_of(parent_of(server)) == [b"s6-supervise", b"mine"]
    assert box.slots() == ["mine"]


def test_s6_below_another_init_is_not_fooling_us(lab):  # noqa: F811
    lab.shell("mkdir -p /run/s6/basedir " + SCAN)
    lab.spawn("s6-svscan", SCAN)
    until(lambda: lab.ask("ls", SCAN + "/.s6-svscan/control"), "s6-svscan listens")
    done = lab.call("bash", lab.repo / "start.sh", lab.port)
    assert done.stdout == lab.url + "\n" and has_told_nothing(done.stderr)
    assert lab.ask("ls", SCAN) == "" and lab.status_inside()["mode"] == "detached"


def test_the_name_of_pid_1_alone_proves_nothing(s6):
    box = s6().boot()
    box.call("rmdir", "/run/s6/basedir")
    done = box.enter()
    assert (done.code, done.out) == (0, box.url + "\n") and has_told_nothing(done.err)
    assert box.slots() == [] and box.status_inside()["mode"] == "detached"


def test_the_plan_is_told_and_nothing_is_done(s6):
    box = s6().boot()
    done = box.enter("--print-plan")
    assert done.code == 0 and "s6" in done.out.splitlines()[0]
    assert box.slots() == [] and box.pythons() == []


# -- people ------------------------------------------------------------------------------------


@WHO
def test_at_a_terminal_the_prompt_comes_back_with_the_url(s6, options, proving, record_cell):
    with proving(ENTERED, "prompt returned"):
        box = s6(**options).boot()
        code, text = box.terminal(by=("bash", box.start_sh), under=box.inside()).finish()
        assert code == 0 and text.rstrip().endswith(box.url) and has_told(text)
        assert box.answers() and box.heartbeats() == []
        assert box.pythons() == box.servers() and box.is_wanted()
    record_cell(ENTERED, "detached", "handed to s6")
    record_cell(ENTERED, "line printed", "yes")


def test_a_shell_at_a_terminal_gets_its_prompt_back(s6):
    box = s6().boot()
    shell = box.terminal(by=("bash", "--noprofile", "--norc", "-i"), port=None, under=box.inside())
    shell.type("bash '{}' {}; echo ended=$?\n".format(box.start_sh, box.port))
    shell.read("ended=0")
    assert box.url in shell.text and box.answers() and box.heartbeats() == []
    shell.type("exit 3\n")
    assert shell.finish()[0] == 3


def test_a_shell_that_is_the_containers_command_gets_its_prompt_back(s6):
    """docker run -it IMAGE bash: a person's shell, which is to go on."""
    box = s6().boot("bash", "--noprofile", "--norc", "-i", terminal=True)
    screen = box.typed("bash '{}' {}; echo ended=$?\n".format(box.start_sh, box.port), "ended=0")
    assert box.url in screen and box.answers() and box.heartbeats() == []
    box.typed("exit 3\n", "exit")
    assert box.exit_status() == 3
    os.close(box.screen)


@WHO
def test_a_script_that_enters_waits_until_the_server_is_healthy(s6, options):
    box = s6(**options).boot()
    done = box.enter()
    assert (done.code, done.out) == (0, box.url + "\n") and has_told(done.err)
    assert box.answers() and box.is_wanted() and box.heartbeats() == []


def test_a_second_start_finds_what_the_first_one_made(s6):
    box = s6()
    server = box.start()
    box.has_handed_over()
    done = box.enter()
    assert (done.code, done.out) == (0, box.url + "\n")
    assert box.settle() == server and box.slots() == SLOTS
    assert len(box.heartbeats()) == 1 and len(box.starts()) == 1


def test_starts_at_once_make_one_slot(s6):
    box = s6().boot()
    starts = [box.launch(by=("bash", box.start_sh), under=box.inside()) for _ in range(6)]
    assert [(done.code, done.out) for done in map(box.result, starts)] == [(0, box.url + "\n")] * 6
    assert box.slots() == SLOTS
    box.settle()


def test_a_server_that_does_not_get_healthy_is_reported_in_time(s6):
    box = s6().boot()
    box.serve(servers.SILENT)
    refused(box.enter("--timeout", "2"), 75)


@pytest.mark.parametrize("code", [78, 126])
def test_a_start_that_no_restart_cures_is_reported_at_once(s6, code):
    """Long before its time limit, which would end this test."""
    box = s6().boot()
    box.spoil(code)
    done = box.enter("--timeout", "1000")
    assert done.code not in (0, 75) and "Traceback" not in done.err
    assert box.servers() == []


# -- for ever ----------------------------------------------------------------------------------


def test_twenty_killed_servers_are_twenty_restarts(s6, proving):
    with proving(ROW, "10 kills", "no orphan"):
        box = s6()
        box.start()
        box.kill_repeatedly(20)
        box.has_handed_over()


@pytest.mark.parametrize("left_out, times", [
    pytest.param("", 10, id="as written"),
    pytest.param(" --foreground", 2, id="without the flag"),
    pytest.param("--foreground", 2, id="with the flag alone")])
def test_a_supervised_start_never_hands_over_again(s6, left_out, times):
    """One server and one sleep, however often it is started; the flag and the sentinel each suffice."""
    box = s6()
    seen = [box.start()]
    run = box.outside(box.slot() + "/run")
    if left_out == " --foreground":
        run.write_text(run.read_text().replace(" --foreground", ""))
    elif left_out:
        run.write_text("\n".join(line for line in run.read_text().split("\n") if SENTINEL not in line))
    for _ in range(times):
        box.ask_root("s6-svc", "-r", box.slot())
        seen.append(box.settle(after=seen))
    box.has_handed_over()
    assert box.slots() == SLOTS and not any(map(is_alive, seen[:-1]))
