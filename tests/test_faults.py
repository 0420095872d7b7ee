"""What can go wrong with a start: each ends with its own code, says what to do, and leaves nothing."""
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

import servers
from harness import AS_ANYBODY, PYTHON, get, has_ipv6, is_alive, refused, until

DEAD = "http://127.0.0.1:9"
PROXIES = {name: DEAD for word in ("http_proxy", "https_proxy", "all_proxy")
           for name in (word, word.upper())}
as_anybody = pytest.mark.skipif(
    os.getuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv")


# -- the server ends ---------------------------------------------------------------------------


def test_a_server_that_fails_at_import_is_reported_with_the_end_of_its_log(app):
    process = app("import no_such_module_anywhere")
    refused(app.result(process), 1, "exit status 1", app.file("log"),
            "  | ModuleNotFoundError: No module named 'no_such_module_anywhere'")
    assert app.is_gone()


def test_a_server_that_ends_with_0_is_not_ready_either(app):
    refused(app.result(app("print('nothing to do')")), 1, "exit status 0", "  | nothing to do")
    assert app.is_gone()


def test_only_lines_of_this_start_are_shown(app):
    app.state.mkdir(parents=True)
    app.file("log").write_text("of another start\n")
    result = app.result(app("raise SystemExit('of this start')"))
    refused(result, 1, "  | of this start")
    assert "of another start" not in result.err


def test_the_log_cannot_command_the_terminal(app):
    result = app.result(app(r"raise SystemExit('\x1b]0;owned\x07 \x1b[2J')"))
    refused(result, 1)
    assert "\x1b" not in result.err and "\x07" not in result.err


def test_a_log_of_any_bytes_can_be_shown(app):
    refused(app.result(app("import os; os.write(2, bytes(range(256)) * 1000); os._exit(7)")), 1,
            "exit status 7")


@pytest.mark.once
def test_the_end_of_the_server_is_noticed_at_once(app):
    """Within 200 ms; one good round is enough, as this machine may be busy."""
    app.serve(servers.small("time.sleep(0.5)", "note(ends=time.time())", "os._exit(3)"))

    def delay():
        result = app.run()
        refused(result, 1, "exit status 3")
        return time.time() - app.starts()[-1]["ends"]

    assert any(delay() < 0.2 for _ in range(4))


def test_a_server_killed_while_it_starts_is_reported_with_the_signal(app):
    process = app(servers.SILENT)
    os.kill(app.started()["pid"], signal.SIGKILL)
    refused(app.result(process), 1, "SIGKILL")
    assert app.is_gone()


def test_children_of_a_server_that_failed_are_ended_too(app):
    source = servers.small("if not os.fork():", "    note()", "    time.sleep(3600)",
                           "while not os.path.exists(os.path.join(here, 'starts')):",
                           "    time.sleep(0.01)", "sys.exit(3)")
    refused(app.result(app(source)), 1, "exit status 3")
    assert len(app.starts()) == 1 and app.is_gone()


# -- the launcher ends -------------------------------------------------------------------------


def test_kill_9_on_the_launcher_leaves_an_instance_that_the_next_start_finds(app):
    first = app(servers.WAITING)
    pid = app.started()["pid"]
    until(app.file("record").exists, "the instance is recorded")
    first.kill()
    first.wait()
    second = app.launch()
    app.write("go", "")
    result = app.result(second)
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert list(app.processes()) == [pid] and len(app.starts()) == 1
    assert app.run("--stop").code == 0
    assert app.is_gone()


def test_kill_9_on_the_launcher_leaves_a_silent_server_that_stop_ends(app):
    first = app(servers.SILENT)
    app.started()
    until(app.file("record").exists, "the instance is recorded")
    first.kill()
    first.wait()
    assert app.run("--stop").code == 0
    assert app.is_gone()


@pytest.mark.parametrize("number, code", [
    pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    pytest.param(signal.SIGHUP, 129, id="SIGHUP")])
def test_a_signal_during_the_wait_ends_the_server_too(app, number, code):
    process = app(servers.SILENT)
    app.started()
    process.send_signal(number)
    refused(app.result(process), code, number.name)
    assert app.is_gone()


def test_ctrl_c_on_a_terminal_ends_the_server_too(app):
    app.serve(servers.SILENT)
    terminal = app.terminal()
    app.started()
    terminal.type("\x03")
    code, text = terminal.finish()
    assert code == 130 and "Traceback" not in text
    assert app.is_gone()


def test_a_server_that_ignores_sigterm_does_not_outlive_a_failed_start(app):
    app.configure(stop_timeout=0.5)
    process = app(servers.small(
        "import signal", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "note()",
        "time.sleep(3600)"))
    app.started()
    process.send_signal(signal.SIGINT)
    assert app.result(process).code == 130
    assert app.is_gone()


# -- the port is taken -------------------------------------------------------------------------

HOLDERS = [
    pytest.param(servers.foreign_http(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                 id="answers 404"),
    pytest.param(servers.foreign_http(
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status": "ok"}'), id="says ok"),
    pytest.param(servers.foreign("while True: held = listener.accept()"), id="never answers"),
    pytest.param(servers.foreign("time.sleep(3600)"), id="never accepts"),
    pytest.param(servers.foreign("while True: held = listener.accept()", "0.0.0.0"),
                 id="listens on the wildcard only"),
]


@pytest.mark.parametrize("mode", ["--detach", "--foreground"])
@pytest.mark.parametrize("source", HOLDERS)
def test_a_port_is_taken_by_somebody_who(app, source, mode):
    holder = app.foreign(source)
    result = app.run(mode)
    refused(result, 69, app.port, "pid {}".format(holder.pid), os.path.basename(PYTHON))
    assert "ready" not in result.err
    assert app.starts() == [] and app.is_gone() and is_alive(holder.pid)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_a_wildcard_is_taken_where_one_address_is(app):
    app.foreign(servers.foreign("time.sleep(3600)"))
    refused(app.run("--host", "0.0.0.0"), 69, app.port)


def test_a_port_taken_after_the_check_is_never_reported_as_ready(app):
    """Somebody else answers ok on our port, while our own server lives and does not listen."""
    stranger = servers.foreign_http(
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status": "ok"}')
    process = app(servers.SILENT, "--timeout", "1.5")
    app.started()
    app.foreign(stranger)
    refused(app.result(process), 75)
    assert get(app.url)[0] == 200 and app.is_gone()


# -- health ------------------------------------------------------------------------------------


def test_a_server_that_never_listens_is_ended_at_the_time_limit(app):
    result = app.result(app(servers.SILENT, "--timeout", "2"), began=time.monotonic())
    refused(result, 75, "2 s", "--timeout", app.file("log"))
    assert 2 <= result.seconds < 10
    assert len(app.starts()) == 1 and app.is_gone()


def test_health_that_is_503_first_and_200_later_is_waited_for(app):
    source = servers.small(
        "note()", "begin = time.monotonic()", "answer(listen(), lambda path: [OK if "
        "time.monotonic() > begin + 0.3 else http(b'{\"status\": \"ok\"}', '503 Busy')])")
    result = app.result(app(source), began=time.monotonic())
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert result.seconds > 0.3


@pytest.mark.parametrize("reply", [
    pytest.param("http(b'{\"status\":\"ok\"}')", id="compact"),
    pytest.param("http(b'{\\n  \"uptime\": 1,\\n  \"status\" :\\t\"ok\"\\n}\\n')", id="spaced out"),
    pytest.param("http(b'{\"status\": \"\\\\u006fk\"}')", id="escaped"),
    pytest.param("b'HTTP/1.0 200 OK\\r\\n\\r\\n{\"status\": \"ok\"}'", id="ended by the connection"),
    pytest.param("b'HTTP/1.1 200\\r\\nContent-Length: 16\\r\\n\\r\\n{\"status\": \"ok\"}'", id="no reason"),
    pytest.param("http(b'{\"status\": \"ok\"}')[:30], b'', http(b'{\"status\": \"ok\"}')[30:]",
                 id="in pieces"),
])
def test_json_that_says_ok_is_ready_however_it_is_spelled(app, reply):
    app.serve(servers.answering(reply))
    app.start()


@pytest.mark.parametrize("reply", [
    pytest.param("http(b'', '302 Found', b'Location: /elsewhere\\r\\n')", id="a redirect"),
    pytest.param("b'HTTP/1.1 200 OK\\r\\n\\r\\n{\"status\": \"ok\", \"x\": \"', *[b'x' * 65536] * 10**5",
                 id="an endless body"),
    pytest.param("http(b'{\"status\": \"ok\"}', '302 Found', b'Location: /elsewhere\\r\\n')",
                 id="a redirect that says ok"),
    pytest.param("b'HTTP/1.1 200 OK\\r\\nX: ' + b'x' * 10**7 + b'\\r\\n\\r\\n{\"status\": \"ok\"}'",
                 id="a header of 10 MB"),
    pytest.param("b'HTTP/1.1 200 OK\\r\\n' + b'X: x\\r\\n' * 10**6 + b'\\r\\n{\"status\": \"ok\"}'",
                 id="a million headers"),
    pytest.param("b'HTTP/1.1 200 OK\\r\\nContent-Length: 50\\r\\n\\r\\n{\"status\": \"ok\"}'",
                 id="half a response"),
    pytest.param("b'HTTP/1.1 200 OK\\r\\nContent-Length: 16\\r\\n\\r\\n{\"status'", id="half a body"),
    pytest.param("b'HTTP/1.1 20'", id="half a status line"),
    pytest.param("b''", id="nothing"),
    pytest.param("b'SSH-2.0-OpenSSH_9.2\\r\\n'", id="another protocol"),
    pytest.param("http(b'{\"status\": \"degraded\"}')", id="degraded"),
    pytest.param("http(b'{\"status\": \"ok\"}', '503 Service Unavailable')", id="503"),
    pytest.param("http(b'{\"status\": \"ok\"}', '404 Not Found')", id="404"),
    pytest.param("http(b'{\"checks\": {\"status\": \"ok\"}}')", id="ok further down"),
    pytest.param("http(b'\"status\": \"ok\"')", id="no JSON"),
    pytest.param("http(b'[\"status\", \"ok\"]')", id="a list"),
    pytest.param("http(b'{\"status\": [\"ok\"]}')", id="a status that is a list"),
    pytest.param("http(b'{\"status\": \"ok\", \"x\": \"\\xff\"}')", id="not UTF-8"),
    pytest.param("http(b'[' * 60000)", id="deeply nested"),
])
def test_no_other_answer_is_ready(app, reply):
    """A slow machine gets more time, as the server has to come to its answer."""
    source = servers.small(
        "def reply(path):", "    if path == '/elsewhere':", "        return [OK]",
        "    note()", "    return [{}]".format(reply), "answer(listen(), reply)")
    for seconds in ("0.4", "4", "20"):
        refused(app.result(app(source, "--timeout", seconds)), 75)
        assert app.is_gone()
        if app.starts():
            break
    assert app.starts(), "the server was never asked"


def test_an_answer_that_drips_does_not_outlast_the_time_limit(app):
    source = servers.small(
        "def drip():", "    yield b'HTTP/1.1 200 OK\\r\\n'",
        "    while True:", "        time.sleep(0.05)", "        yield b'X: x\\r\\n'",
        "note()", "answer(listen(), lambda path: drip())")
    result = app.result(app(source, "--timeout", "1"), began=time.monotonic())
    refused(result, 75)
    assert result.seconds < 10 and app.is_gone()


def test_an_answer_that_never_comes_does_not_outlast_the_time_limit(app):
    source = servers.small("note()", "listener = listen()", "held = []",
                           "while True: held.append(listener.accept())")
    result = app.result(app(source, "--timeout", "1"), began=time.monotonic())
    refused(result, 75)
    assert result.seconds < 10 and app.is_gone()


def test_proxies_are_ignored(app):
    app.start(env=PROXIES)


# -- state -------------------------------------------------------------------------------------


def test_a_state_folder_that_is_missing_is_made(app):
    state = app.folder / "not" / "yet" / "thëre"
    app.start(env={"HERMES_WEBUI_STATE_DIR": state})
    assert (state / "bootstrap-{}.log".format(app.port)).exists()


def test_a_state_folder_that_is_a_file_is_refused(app):
    state = app.folder / "file"
    state.write_text("mine")
    refused(app.run(env={"HERMES_WEBUI_STATE_DIR": state}), 73, state, "HERMES_WEBUI_STATE_DIR")
    assert state.read_text() == "mine" and app.is_gone()


@as_anybody
def test_a_state_folder_that_is_read_only_is_refused(app):
    app.state.mkdir(parents=True, mode=0o500)
    refused(app.run(under=AS_ANYBODY), 73, app.state, "HERMES_WEBUI_STATE_DIR")
    assert app.is_gone()


@as_anybody
def test_a_state_folder_that_cannot_be_made_is_refused(app):
    locked = app.folder / "locked"
    locked.mkdir(mode=0o500)
    refused(app.run(under=AS_ANYBODY, env={"HERMES_WEBUI_STATE_DIR": locked / "state"}), 73, locked)
    assert app.is_gone()


FULL_DISK = ("unshare", "--mount", "sh", "-c", """
mount -t tmpfs -o size=16k,mode=700 tmpfs "$0" || exit 99
cat /dev/zero >"$0/filler" 2>/dev/null
"$@"
""")


@pytest.fixture
def full_disk(app):
    """What to launch under, so that the state folder is a tiny file system without room."""
    app.state.mkdir(parents=True)
    under = FULL_DISK + (app.state,)
    if not shutil.which("unshare") or subprocess.call(
            [str(word) for word in under + ("true",)], stderr=subprocess.DEVNULL):
        pytest.skip("no mounts of its own for this user")
    return under


def test_a_full_disk_is_refused(app, full_disk):
    refused(app.run(under=full_disk), 74, app.state)
    assert app.is_gone()


def test_a_full_disk_costs_a_foreground_start_one_warning(app, full_disk):
    process = app.launch("--foreground", under=full_disk)
    until(app.answers, "the server answers")
    os.kill(app.pid(), signal.SIGTERM)
    result = app.result(process)
    assert result.err.count("bootstrap: ") == 1 and str(app.state) in result.err, result.err


def test_a_record_of_any_bytes_is_no_obstacle(app):
    app.state.mkdir(parents=True)
    for content in (b"", b"\0" * 100, b"\xff\xfe", b"pid=abc\n", b"{", b"pid=1\n", b"{\"pid\": 1}"):
        app.file("record").write_bytes(content)
        assert app.run("--status").code == 3
    app.start()


def test_a_lock_file_that_nobody_holds_is_no_obstacle(app):
    app.state.mkdir(parents=True)
    app.file("lock").write_text("99999\n")
    app.start()


# -- words and settings ------------------------------------------------------------------------

BAD_PORTS = [pytest.param(port, id=repr(port)) for port in (
    "abc", "0", "-1", "65536", "70000", "70000\n", "8787.0", "0x50", "8 7", "1e3", "٣٣٣٣")]


@pytest.mark.parametrize("port", BAD_PORTS)
def test_a_bad_port_on_the_command_line_is_a_usage_error(app, port):
    refused(app.run(port=port), 2, port.strip())
    assert app.is_gone()


@pytest.mark.parametrize("port", BAD_PORTS)
def test_a_bad_port_in_the_environment_is_a_configuration_error(app, port):
    refused(app.run(port=None, env={"HERMES_WEBUI_PORT": port}), 78, port.strip(), "HERMES_WEBUI_PORT",
            "environment")
    assert app.is_gone()


def test_a_bad_port_in_dotenv_is_a_configuration_error(app):
    app.write(".env", "A=1\nHERMES_WEBUI_PORT=abc\n")
    refused(app.run(port=None), 78, "abc", "HERMES_WEBUI_PORT", ".env:2")
    assert app.is_gone()


@pytest.mark.parametrize("blank", [pytest.param("", id="empty"), pytest.param("  \t", id="spaces")])
def test_a_blank_port_counts_as_not_set(app, blank):
    app.write(".env", "HERMES_WEBUI_PORT={}\n".format(app.port))
    app.start(port=blank, env={"HERMES_WEBUI_PORT": blank})


@pytest.mark.parametrize("words", [
    pytest.param(["--no-such-option"], id="unknown option"),
    pytest.param(["--host"], id="a value is missing"),
    pytest.param(["--timeout", "soon"], id="a time that is no number"),
    pytest.param(["--timeout", "-1"], id="a negative time"),
    pytest.param(["--timeout", "nan"], id="a time that is not a number"),
    pytest.param(["-n", "x"], id="a count that is no number"),
    pytest.param(["9999"], id="two ports"),
    pytest.param(["--stop", "--restart"], id="two commands"),
    pytest.param(["--foreground", "--detach"], id="two modes"),
])
def test_words_that_make_no_sense_are_a_usage_error(app, words):
    refused(app.run(*words), 2)
    assert app.is_gone()


@pytest.mark.parametrize("host", [
    pytest.param("192.0.2.1", id="an address of others"),
    pytest.param("no.such.host.invalid", id="an unknown name"),
    pytest.param("300.1.1.1", id="no address"),
    pytest.param("a" * 300, id="too long a name"),
])
@pytest.mark.parametrize("mode", ["--detach", "--foreground"])
def test_a_host_that_is_not_ours_is_a_configuration_error(app, host, mode):
    refused(app.run(mode, "--host", host), 78, host)
    assert app.is_gone()


@pytest.mark.parametrize("content, complaint", [
    pytest.param(b"\xef\xbb\xbfHERMES_WEBUI_PORT=%d\n", None, id="BOM"),
    pytest.param(b"A=1\r\nHERMES_WEBUI_PORT=%d\r\nB=2\r\n", None, id="CRLF"),
    pytest.param(b"A=x\0y\nHERMES_WEBUI_PORT=%d\n", ".env:1: ", id="NUL"),
    pytest.param(b"HERMES_WEBUI_PORT=%d\nA=\xff\xfe\n", ".env:2: ", id="invalid UTF-8"),
    pytest.param(b"A=" + b"x" * 10 ** 6 + b"\nHERMES_WEBUI_PORT=%d\n", ".env:1: ",
                 id="a line of 1 MB"),
    pytest.param(b"A='" + b"x" * 10 ** 6 + b"\nHERMES_WEBUI_PORT=%d\n", ".env:1: ",
                 id="an unclosed quote before 1 MB"),
    pytest.param(b"sk-secret\nHERMES_WEBUI_PORT=%d\n", ".env:1: ", id="a bare word"),
])
def test_a_dotenv_with(app, content, complaint):
    app.write(".env", content.replace(b"%d", str(app.port).encode()))
    result = app.run(port=None)
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    lines = [line for line in result.err.splitlines() if ".env" in line]
    assert len(lines) == (1 if complaint else 0)
    assert all(complaint in line and "secret" not in line and "xxx" not in line for line in lines)


def test_a_dotenv_that_is_a_folder_is_a_warning(app):
    (app.repo / ".env").mkdir()
    result = app.run()
    assert (result.code, result.out) == (0, app.url + "\n")
    assert ".env" in result.err.splitlines()[0]


@as_anybody
def test_a_dotenv_that_cannot_be_read_is_a_warning(app):
    app.write(".env", "HERMES_WEBUI_PORT=abc\n").chmod(0)
    result = app.run(under=AS_ANYBODY)
    assert (result.code, result.out) == (0, app.url + "\n")
    assert ".env" in result.err.splitlines()[0]


# -- what the launcher is born with ------------------------------------------------------------


def test_without_home_a_named_state_folder_is_enough(app):
    app.start(env={"HOME": None, "HERMES_WEBUI_STATE_DIR": app.state})


def test_without_home_and_state_folder_the_users_home_is_asked_for(app):
    assert app.plan(env={"HOME": None})["settings"]["STATE_DIR"]["value"].endswith(".hermes/webui")


def test_an_empty_environment_is_enough(app):
    result = app.run("--print-plan", under=("env", "-i"))
    assert result.code == 0, result.err


def test_a_working_folder_that_is_gone_is_no_obstacle(app):
    gone = app.folder / "gone"
    gone.mkdir()
    app.start(under=("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"), cwd=str(gone))


STREAMS = [pytest.param("<&-", id="stdin"), pytest.param(">&-", id="stdout"),
           pytest.param("2>&-", id="stderr"), pytest.param("<&- >&- 2>&-", id="all three")]


@pytest.mark.parametrize("closed", STREAMS)
def test_a_detached_start_works_with_a_closed(app, closed):
    result = app.run(under=("sh", "-c", 'exec "$@" ' + closed, "sh"))
    assert result.code == 0, result.err
    fds = app.started()["fds"]
    assert (fds["0"], fds["1"], fds["2"]) == ("/dev/null", str(app.file("log")), str(app.file("log")))
    assert app.answers()
    assert app.run("--stop").code == 0


@pytest.mark.parametrize("closed", STREAMS)
def test_a_foreground_start_works_with_a_closed(app, closed):
    process = app.launch("--foreground", under=("sh", "-c", 'exec "$@" ' + closed, "sh"))
    until(app.answers, "the server answers")
    fds = app.started()["fds"]
    assert app.started()["pid"] == process.pid
    assert not any("socket:" in fds.get(fd, "") for fd in "012")


def test_a_result_that_nobody_reads_is_no_crash(app):
    reading, writing = os.pipe()
    os.close(reading)
    result = app.run(stdout=writing)
    os.close(writing)
    assert result.code == 141 and "Exception" not in result.err and "Traceback" not in result.err
    assert app.answers()


def test_ids_of_a_recycled_socket_state_are_no_obstacle(app):
    """Connections of the server before may linger in TIME_WAIT on the port."""
    app.start()
    with socket.create_connection(("127.0.0.1", app.port)) as client:
        assert app.run("--stop").code == 0
        app.start()
        client.close()
