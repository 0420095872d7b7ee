"""A detached start: the server is proved healthy, in a session of its own, and the prompt is back."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

import servers
from harness import PYTHON, get, has_ipv6, is_alive, refused, until

MARKERS = {"INVOCATION_ID": "e5b0a3b9", "JOURNAL_STREAM": "9:34565", "NOTIFY_SOCKET": "/run/notify",
           "XPC_SERVICE_NAME": "com.example.hermes-webui", "SUPERVISOR_ENABLED": "1"}
# The launcher spawns by itself; where a program has loaded subprocess, by its Popen.
IMPORTED = """
import subprocess, sys
sys.path.insert(0, {!r})
import bootstrap
sys.exit(bootstrap.run())
"""
WITHOUT = """
import os, sys
del os.posix_spawn
path = sys.argv.pop(1)
exec(compile(open(path, encoding="utf-8").read(), path, "exec"), dict(__name__="__main__", __file__=path))
"""
SPAWNS = pytest.mark.parametrize("by", [
    pytest.param(lambda app: None, id="posix_spawn"),
    pytest.param(lambda app: (PYTHON, "-c", WITHOUT, app.repo / "bootstrap.py"), id="none"),
    pytest.param(lambda app: (PYTHON, "-c", IMPORTED.format(str(app.repo))), id="Popen")])
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


def test_stdout_is_the_url_and_all_else_goes_to_stderr(app):
    result = app.run()
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert result.err == "bootstrap: Hermes Web UI is ready, pid {}, log {}\n".format(
        app.pid(), app.file("log"))
    assert app.answers()


def test_the_projects_own_server_is_ready_when_it_is_said(project):
    result = project.run()
    assert (result.code, result.out) == (0, project.url + "\n"), result.err
    status, body = get(project.url + "health")
    assert status == 200 and json.loads(body.decode())["status"] == "ok"


def test_a_second_start_says_it_is_already_running_and_starts_nothing(app):
    pid = app.start()
    second = app.run()
    assert (second.code, second.out) == (0, app.url + "\n")
    assert "is already running, pid {}".format(pid) in second.err and second.err.count("\n") == 1
    assert len(app.starts()) == 1 and list(app.processes()) == [pid]


def test_instances_on_two_ports_know_nothing_of_each_other(app):
    app.start()
    first, app.port = app.port, app.port + 1
    app.start()
    assert app.run("--stop").code == 0
    assert app.run("--status", port=first).code == 0


@pytest.mark.parametrize("count", [pytest.param(2, id="two"), pytest.param(20, id="twenty")])
def test_of_starts_at_once_one_makes_the_server_and_the_others_say_it_is_running(app, count):
    results = [app.result(process, 60) for process in [app.launch() for _ in range(count)]]
    assert [(r.code, r.out) for r in results] == [(0, app.url + "\n")] * count
    assert len(app.starts()) == 1 and list(app.processes()) == [app.pid()]
    assert sum("is ready, pid" in r.err for r in results) == 1
    assert sum("is already running, pid {}".format(app.pid()) in r.err for r in results) == count - 1


def test_a_start_waits_for_another_ones_verdict_only_within_its_own_time_limit(app):
    first = app(servers.WAITING)
    app.started()
    impatient = app.run("--timeout", "0.5")
    assert impatient.code in (69, 75) and impatient.out == ""
    app.write("go", "")
    assert app.result(first).out == app.url + "\n"
    assert len(app.starts()) == 1


def test_a_start_takes_over_where_the_one_before_it_failed(app):
    first = app(servers.SILENT)
    app.started()
    app.serve(servers.OK)
    second = app.launch()
    first.terminate()
    assert app.result(first).code == 143
    assert app.result(second).out == app.url + "\n"
    assert list(app.processes()) == [app.pid()]


def test_kill_9_on_the_server_and_a_new_start_at_once(app):
    pid = app.start()
    with socket.create_connection(("127.0.0.1", app.port)):
        os.kill(pid, signal.SIGKILL)
        assert app.start() != pid
    assert list(app.processes()) == [app.pid()]


@SPAWNS
def test_the_server_stands_alone(app, by):
    """Its own session, nothing on stdin, its output in the log, whatever the launcher has."""
    app.start(stdin=subprocess.PIPE, by=by(app))
    server = app.started()
    assert server["sid"] == server["pgid"] == server["pid"]
    assert server["fds"]["0"] == "/dev/null"
    assert server["fds"]["1"] == server["fds"]["2"] == str(app.file("log"))
    assert set(server["fds"]) <= {"0", "1", "2", "3"}  # 3 is its own look into /proc
    assert server["cwd"] == str(app.repo)


@SPAWNS
def test_no_signal_is_ignored_or_blocked_in_the_server(app, by):
    """Python ignores SIGPIPE and SIGXFSZ for itself, and what is ignored stays so across exec."""
    app.configure(command="""sh -c 'grep Sig /proc/self/status >"$0"; exec "$1" "$2"' """
                          "{root}/signals {python} {root}/server.py")
    app.start(by=by(app))
    rows = dict(line.split() for line in (app.repo / "signals").read_text().splitlines())
    own = 0b11 << 31    # 32 and 33, which the C library keeps for its threads
    assert int(rows["SigIgn:"], 16) & ~own == int(rows["SigBlk:"], 16) == 0


@SPAWNS
@pytest.mark.parametrize("last, told", [
    ("sys.exit(3)", "exit status 3"), ("os.kill(os.getpid(), 15)", "SIGTERM"),
    ("os.kill(os.getpid(), 40)", "signal 40")])
def test_the_end_of_a_server_is_told_as_it_was(app, by, last, told):
    app.serve(servers.small(last))
    refused(app.run(by=by(app)), 1, told)
    assert app.is_gone()


@SPAWNS
@pytest.mark.parametrize("first, code", [("#!/no/such/program\n", 126), ("", 126)])
def test_what_cannot_be_executed_is_said_of_the_program(app, by, first, code):
    program = app.write("serve", first + "\0")
    program.chmod(0o755)
    app.configure(command="{root}/serve")
    refused(app.run(by=by(app)), code, program, "not executable")


@SPAWNS
def test_extra_file_descriptors_are_not_passed_on(app, by):
    reading, writing = os.pipe()
    app.start(pass_fds=(writing,), by=by(app))
    os.close(writing)
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b"", "the end of the pipe, as nobody holds its other side"
    os.close(reading)


def test_supervisors_variables_are_not_passed_on(app):
    others = {"SYSTEMD_EXEC_PID": "1", "LISTEN_FDS": "1", "LISTEN_PID": "1", "WATCHDOG_USEC": "9",
              "WATCHDOG_PID": "1", "SUPERVISOR_PROCESS_NAME": "x", "SUPERVISOR_GROUP_NAME": "x"}
    app.start("--detach", env=dict(MARKERS, **others, PLAIN="stays"))
    environ = app.started()["environ"]
    assert not set(environ) & (set(MARKERS) | set(others))
    assert environ["PLAIN"] == "stays"


def test_the_server_gets_the_resolved_settings(app):
    agent = app.home / ".hermes" / "hermes-agent"
    agent.mkdir(parents=True)
    (agent / "run_agent.py").write_text("")
    app.start()
    server = app.started()
    wanted = {"HOST": "127.0.0.1", "PORT": str(app.port), "STATE_DIR": str(app.state),
              "AGENT_DIR": str(agent)}
    assert {name: server["environ"]["HERMES_WEBUI_" + name] for name in wanted} == wanted
    assert server["cwd"] == str(agent)


def test_server_cwd_moves_the_server(app):
    app.start(env={"HERMES_WEBUI_SERVER_CWD": app.home})
    assert app.started()["cwd"] == str(app.home)


def test_what_dotenv_says_reaches_the_server(app):
    app.write(".env", "API_KEY='a b'\nTAKEN=file\n")
    app.start(env={"TAKEN": "environment"})
    environ = app.started()["environ"]
    assert (environ["API_KEY"], environ["TAKEN"]) == ("a b", "environment")


# -- the terminal ------------------------------------------------------------------------------


def test_a_marker_variable_at_a_terminal_is_named_and_ignored(app):
    terminal = app.terminal(env={"INVOCATION_ID": "e5b0a3b9"})
    code, text = terminal.finish()
    assert code == 0 and app.url in text
    hint = next(line for line in text.splitlines() if "INVOCATION_ID" in line)
    assert hint.startswith("bootstrap: ") and "--foreground" in hint
    assert app.started()["sid"] == app.pid()


def test_the_server_outlives_its_terminal(app):
    terminal = app.terminal()
    assert terminal.finish()[0] == 0
    assert app.answers() and is_alive(app.pid())


def test_a_long_wait_shows_seconds_and_the_last_line_of_the_log_on_a_terminal(app):
    app.serve(servers.slow(2, "print('loading the model', flush=True)"))
    code, text = app.terminal().finish()
    assert code == 0, text
    waiting, shown, after = text.partition("loading the model")
    assert shown and re.search(r"\d s", waiting)
    assert "\n" not in waiting, "progress stays on one line"
    assert app.url in after


def test_a_long_wait_prints_nothing_but_the_result_without_a_terminal(app):
    app.serve(servers.slow(3, "print('loading the model', flush=True)"))
    result = app.run()
    assert (result.code, result.out) == (0, app.url + "\n")
    assert result.err.startswith("bootstrap: Hermes Web UI is ready") and result.err.count("\n") == 1


@pytest.fixture
def browser(app):
    """A browser that leaves the URL in a file, found by whatever way it is looked for."""
    opened, folder = app.folder / "opened", app.folder / "browsers"
    folder.mkdir()
    for name in ("browser", "xdg-open", "x-www-browser", "www-browser"):
        (folder / name).write_text('#!/bin/sh\necho "$1" >>"{}"\n'.format(opened))
        (folder / name).chmod(0o755)
    app.env.update(PATH=str(folder) + os.pathsep + app.env["PATH"], BROWSER=str(folder / "browser"))
    return opened


def test_a_person_at_a_desktop_gets_a_browser(app, browser):
    assert app.terminal(env={"DISPLAY": ":0"}).finish()[0] == 0
    until(browser.exists, "the browser was opened")
    assert browser.read_text() == app.url + "\n"


@pytest.mark.parametrize("words, env", [
    pytest.param(["--no-browser"], {"DISPLAY": ":0"}, id="--no-browser"),
    pytest.param([], {}, id="no display"),
    pytest.param([], {"DISPLAY": ":0", "SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22"}, id="ssh"),
])
def test_no_browser_opens_on_a_terminal_with(app, browser, words, env):
    assert app.terminal(*words, env=env).finish()[0] == 0
    assert not browser.exists()


def test_no_browser_opens_without_a_terminal(app, browser):
    app.start(env={"DISPLAY": ":0"})
    assert not browser.exists()


# -- the address -------------------------------------------------------------------------------


@pytest.mark.parametrize("host, shown", [
    pytest.param("127.0.0.1", "127.0.0.1", id="loopback"),
    pytest.param("0.0.0.0", "127.0.0.1", id="every IPv4 address"),
    pytest.param("localhost", "localhost", id="localhost"),
    pytest.param("::1", "[::1]", id="IPv6 loopback", marks=needs_ipv6),
    pytest.param("::", "[::1]", id="every address", marks=needs_ipv6),
])
def test_the_url_that_is_printed_answers_for(project, host, shown):
    result = project.run("--host", host)
    assert (result.code, result.out) == (0, "http://{}:{}/\n".format(shown, project.port)), result.err
    assert get(result.out.strip() + "health")[0] == 200
    assert project.run("--status").code == 0
    assert project.run("--stop").code == 0
    assert project.is_gone()


# -- the state folder --------------------------------------------------------------------------


def test_state_is_private(app):
    app.start()
    assert app.state.stat().st_mode & 0o777 == 0o700
    for suffix in ("log", "lock", "record"):
        assert app.file(suffix).stat().st_mode & 0o777 == 0o600, suffix


def test_state_is_private_under_any_umask(app):
    app.start(under=("sh", "-c", 'umask 0; exec "$@"', "sh"))
    assert app.state.stat().st_mode & 0o777 == 0o700
    assert app.file("log").stat().st_mode & 0o777 == 0o600


def test_output_of_the_server_goes_to_the_log_and_an_old_log_is_continued(app):
    app.state.mkdir(parents=True)
    app.file("log").write_text("from yesterday\n")
    app.serve(servers.small("print('out', flush=True)", "print('err', file=sys.stderr, flush=True)",
                            "note()", "serve(listen(), OK)"))
    app.start()
    assert app.file("log").read_text() == "from yesterday\nout\nerr\n"
    assert not app.file("log.1").exists()


@pytest.mark.parametrize("size", [pytest.param(10 * 1024 ** 2 + 1, id="over 10 MB"),
                                  pytest.param(20 * 1024 ** 3, id="gigantic")])
def test_a_large_log_is_set_aside_and_one_older_one_is_kept(app, size):
    app.state.mkdir(parents=True)
    app.file("log.1").write_text("older\n")
    with open(str(app.file("log")), "wb") as log:
        log.truncate(size)
    app.start()
    assert app.file("log.1").stat().st_size == size
    assert app.file("log").stat().st_size < 10000
    assert sorted(path.name for path in app.state.glob("*.log*")) == [
        "bootstrap-{}.log".format(app.port), "bootstrap-{}.log.1".format(app.port)]


def test_a_log_that_is_not_large_stays(app):
    app.state.mkdir(parents=True)
    with open(str(app.file("log")), "wb") as log:
        log.truncate(9 * 1024 ** 2)
    app.start()
    assert not app.file("log.1").exists()


# -- readiness ---------------------------------------------------------------------------------


@pytest.mark.once
def test_readiness_is_noticed_soon_after_the_server_listens(app):
    """However long it takes; one good round is enough, as this machine may be busy."""
    def delay(seconds):
        app.serve(servers.small("time.sleep({})".format(seconds), "listener = listen()",
                                "note(listens=time.time())", "serve(listener, OK)"))
        process = app.launch()
        process.stdout.readline()
        noticed = time.time()
        assert app.result(process).code == 0
        assert app.run("--stop").code == 0
        return noticed - app.starts()[-1]["listens"]

    assert any(max(map(delay, (0.25, 0.32, 0.39))) < 0.06 for _ in range(4))


def stopped_whole(app):
    """Assert that the instance is ours, runs once, and that --stop leaves nothing of it."""
    assert app.answers()
    assert app.run().out == app.url + "\n"
    assert len(app.starts()) == 1
    assert app.run("--status").code == 0
    assert app.run("--stop").code == 0
    assert app.is_free() and app.is_gone()


@pytest.mark.parametrize("source", [
    pytest.param(servers.FORKING, id="forks workers"),
    pytest.param(servers.ENDING_ITS_PARENT, id="ends its parent"),
    pytest.param(servers.BEHIND_A_WRAPPER, id="runs behind a wrapper"),
])
def test_a_server_of_several_processes_is_ours_and_is_stopped_whole(app, source):
    assert app(source).wait(timeout=30) == 0
    stopped_whole(app)


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_a_server_behind_uv_run_is_ours_and_is_stopped_whole(app):
    app.configure(command="{} run --offline --no-project --python {{python}} {{root}}/server.py".format(
        shutil.which("uv")))
    app.start()
    assert app.started()["ppid"] in app.processes()
    stopped_whole(app)


def test_a_tcp_server_is_ready_when_it_accepts(app):
    app.configure(health="tcp")
    app.serve(servers.small("note()", "listener = listen()", "time.sleep(3600)"))
    app.start()


@pytest.mark.parametrize("body, ready", [
    pytest.param("", True, id="nothing"),
    pytest.param("hello", True, id="text"),
    pytest.param('{"status": "pass"}', True, id="pass"),
    pytest.param('{"status": "up"}', True, id="up"),
    pytest.param('{"status": "healthy"}', True, id="healthy"),
    pytest.param('{"status": {"a": 1}}', True, id="no string"),
    pytest.param('{"status": "down"}', False, id="down"),
])
def test_a_configured_path_is_ready_unless_its_status_says_otherwise(app, body, ready):
    app.configure(health="/up")
    source = servers.small("note()", "answer(listen(), lambda path: [http({!r}) if path == '/up' "
                           "else http(b'', '404 Not Found')])".format(body.encode()))
    result = app.result(app(source, "--timeout", "20" if ready else "0.5"))
    assert result.code == (0 if ready else 75), result.err


def test_a_configured_command_is_split_first_and_filled_in_then(app):
    app.write("run me.py", servers.OK)
    app.configure(command="{python} '{root}/run me.py' --port={port} {host}")
    app.start()
    assert app.started()["argv"] == [str(app.repo / "run me.py"), "--port={}".format(app.port),
                                     "127.0.0.1"]
