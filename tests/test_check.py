"""--check, TLS and --status -v: the launcher asks a server how it is, and says it by its exit code."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import pytest

import servers
from harness import App, AS_ANYBODY, PYTHON, ROOT, free_port, is_alive, refused, until

pytestmark = pytest.mark.once     # it waits for servers that hang, on purpose

OTHER_PYTHON = "/usr/bin/python3"       # one that any user may run
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
as_anybody = pytest.mark.skipif(
    os.getuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv")
as_nobody = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv") or not os.path.exists(OTHER_PYTHON),
    reason="needs root, setpriv and a Python for everybody")

# It sends what the expression in the file `mood` makes of the path; SIGUSR1 wedges its accept
# loop, SIGUSR2 makes it let go of its port.
MOODY = servers.small(
    "import signal",
    "listener = listen()",
    "def on(number, action):",
    "    signal.signal(number, lambda *_: action())",
    "on(signal.SIGUSR1, lambda: time.sleep(3600))",
    "on(signal.SIGUSR2, lambda: os.dup2(0, listener.fileno()))",
    "def says(status, code='200 OK'):",
    "    return [http(b'{\"status\": \"%s\"}' % status.encode(), code)]",
    "def dripping(piece):",
    "    yield b'HTTP/1.1 200 OK\\r\\nContent-Length: 999999999\\r\\n\\r\\n'",
    "    while True:",
    "        yield piece",
    "        time.sleep(0.02)",
    "def reply(path):",
    "    try:",
    "        with open(os.path.join(here, 'mood')) as file:",
    "            return eval(file.read())",
    "    except FileNotFoundError:",
    "        return [OK]",
    "note()",
    "while True:",
    "    try:",
    "        answer(listener, reply)",
    "    except OSError:",
    "        time.sleep(3600)")
OK_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status": "ok"}'


@pytest.fixture
def moody(app):
    app.serve(MOODY)
    return app


def stands(app, **options):
    """Become a server in the foreground, and wait for its answer."""
    process = app.launch("--foreground", **options)
    until(app.answers, "the server answers")
    return process


def starts(app, *words, **options):
    """Start detached, whatever the server is."""
    result = app.run(*words, **options)
    assert result.code == 0, result.err


def is_well(result):
    """Success says nothing, so that cron has nothing to mail."""
    assert (result.code, result.out, result.err) == (0, "", "")
    return True


def is_sick(result, *words):
    refused(result, 1, "is sick", *words)
    return True


def is_absent(result):
    refused(result, 3, "is not running", "--status")
    return True


def die(pid):
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the server is dead")


# -- healthy and sick --------------------------------------------------------------------------


WAYS = pytest.mark.parametrize("start", [
    pytest.param(starts, id="detached"), pytest.param(stands, id="foreground")])


@WAYS
@pytest.mark.parametrize("deep", [(), ("--deep",)], ids=["", "deep"])
def test_a_healthy_server_is_0_and_nothing_is_said(project, start, deep):
    start(project)
    assert is_well(project.run("--check", *deep))


def test_start_sh_asks_as_well(moody):
    moody.start()
    ask = dict(by=("bash", moody.repo / "start.sh"))
    assert is_well(moody.run("--check", **ask))
    moody.write("mood", "says('degraded', '503 Service Unavailable')")
    assert is_sick(moody.run("--check", **ask), "503")


@WAYS
def test_a_server_that_says_it_is_degraded_is_1(moody, start):
    start(moody)
    moody.write("mood", "says('degraded', '503 Service Unavailable')")
    assert is_sick(moody.run("--check"), "HTTP status 503, degraded", "--status -v")
    moody.write("mood", "[OK]")
    assert is_well(moody.run("--check"))


@pytest.mark.parametrize("mood", [
    pytest.param("says('degraded')", id="degraded with 200"),
    pytest.param("[http(b'', '503 Service Unavailable')]", id="503 without a body"),
    pytest.param("[http(b'fine')]", id="no JSON"),
    pytest.param("[http(b'[\"ok\"]')]", id="JSON of another kind"),
    pytest.param("[http(b'', '302 Found', b'Location: /up\\r\\n')] if path != '/up' else [OK]",
                 id="a redirect to what is well"),
    pytest.param("[OK[:-1]]", id="half an answer"),
    pytest.param("[b'HTTP/1.1 200 OK\\r\\n\\r\\n{\"status\": \"ok\"}' + b' ' * 100000]",
                 id="more than anybody reads"),
    pytest.param("[b'SSH-2.0-OpenSSH_9.2\\r\\n']", id="not HTTP"),
    pytest.param("[]", id="hangs up"),
    pytest.param("says('\\x1b[2J', '503 X')", id="commands for a terminal")])
def test_an_answer_that_is_not_ok_is_1(moody, mood):
    moody.start()
    moody.write("mood", mood)
    result = moody.run("--check")
    assert is_sick(result) and "\x1b" not in result.err


@pytest.mark.parametrize("mood", [
    pytest.param("dripping(b' ')", id="one byte after the other"),
    pytest.param("dripping(b' ' * 1000000)", id="a flood")])
def test_a_question_has_an_end_whatever_answers(moody, mood):
    moody.start()
    moody.write("mood", mood)
    assert is_sick(moody.run("--check"))


def test_an_answer_that_takes_a_second_is_an_answer(moody):
    moody.start()
    moody.write("mood", "(time.sleep(1) or OK for _ in [0])")
    assert is_well(moody.run("--check"))


@pytest.mark.once
def test_a_caller_who_has_to_queue_is_patient(moody):
    """While the queue of connections is full the kernel lets callers try again after a second."""
    moody.serve(MOODY.replace("backlog=64", "backlog=0").replace("3600", "3"))
    os.kill(moody.start(), signal.SIGUSR1)
    with pytest.raises(OSError):
        while True:     # who has left again stays in the queue until the server looks
            socket.create_connection(("127.0.0.1", moody.port), timeout=0.5).close()
    assert is_well(moody.run("--check"))


@pytest.mark.parametrize("start, number", [
    pytest.param(starts, signal.SIGSTOP, id="stopped"),
    pytest.param(stands, signal.SIGUSR1, id="wedged")])
def test_a_server_that_listens_and_does_not_answer_is_1(moody, start, number):
    """The kernel goes on accepting for it."""
    start(moody)
    os.kill(moody.pid(), number)
    assert is_sick(moody.run("--check"), "no answer")


@WAYS
def test_a_server_that_lives_and_does_not_listen_is_1(moody, start):
    start(moody)
    os.kill(moody.pid(), signal.SIGUSR2)
    until(moody.is_free, "it has let its port go")
    assert is_sick(moody.run("--check"), "no answer")


def test_a_server_whose_port_went_to_another_is_1(moody):
    """What the other one answers is no word for it."""
    os.kill(moody.start(), signal.SIGUSR2)
    until(moody.is_free, "it has let its port go")
    moody.foreign(servers.foreign_http(OK_ANSWER))
    result = moody.run("--check")
    assert is_sick(result) and "healthy" not in result.err


def test_a_start_under_way_is_not_waited_for(app):
    app.serve(servers.WAITING)
    process = app.launch()
    app.started()
    assert is_sick(app.run("--check"))
    app.write("go", "")
    assert app.result(process).code == 0
    assert is_well(app.run("--check"))


def test_deep_asks_for_every_check(project):
    starts(project)
    (project.state / "projects.json").write_text("{ this is no JSON")
    assert is_well(project.run("--check"))
    assert is_sick(project.run("--check", "--deep"), "503, degraded")


# -- not running -------------------------------------------------------------------------------


def test_what_was_never_started_is_3_and_nothing_is_left_behind(app):
    assert is_absent(app.run("--check"))
    assert not app.state.exists()


@WAYS
def test_what_was_stopped_is_3(moody, start):
    start(moody)
    assert moody.run("--stop").code == 0
    assert is_absent(moody.run("--check"))


@WAYS
def test_what_was_killed_is_3(moody, start):
    start(moody)
    die(moody.pid())
    assert is_absent(moody.run("--check"))


@pytest.mark.parametrize("recorded", [True, False], ids=["with a record", "without one"])
def test_a_stranger_who_answers_well_is_not_ours(moody, recorded):
    if recorded:
        die(moody.start())
    moody.foreign(servers.foreign_http(OK_ANSWER))
    assert is_absent(moody.run("--check"))


def test_a_stranger_who_got_the_pid_of_ours_is_not_ours(moody):
    pid = moody.start()
    die(pid)
    other = moody.foreign(servers.foreign_http(OK_ANSWER))
    record = moody.file("record")
    record.write_text(record.read_text().replace("pid=%d\n" % pid, "pid=%d\n" % other.pid))
    assert is_absent(moody.run("--check"))


def test_a_record_that_cannot_be_read_is_no_obstacle(moody):
    stands(moody)
    for text in ("", "=", "pid=1", "pid=\\x", "{}"):
        moody.file("record").write_text(text)
        assert is_well(moody.run("--check"))


def test_asking_changes_nothing(moody):
    moody.start()

    def files():
        return {path: (path.stat().st_mtime_ns, path.read_bytes())
                for path in moody.state.iterdir()}
    before = files()
    assert is_well(moody.run("--check"))
    moody.write("mood", "[]")
    assert is_sick(moody.run("--check", "--deep"))
    assert files() == before and len(moody.starts()) == 1


# -- without a record --------------------------------------------------------------------------


@pytest.fixture
def recordless(moody):
    """A foreground server whose state folder cannot be written; ask(...) checks it."""
    moody.state.mkdir(parents=True)
    moody.state.chmod(0o500)
    moody.ask = lambda *words: moody.run("--check", *words, under=AS_ANYBODY)
    yield moody
    moody.state.chmod(0o700)


@as_anybody
def test_a_server_without_a_record_is_found_by_its_port(recordless):
    assert is_absent(recordless.ask())
    process = stands(recordless, under=AS_ANYBODY)
    assert not recordless.file("record").exists()
    assert is_well(recordless.ask()) and is_well(recordless.ask("--deep"))
    recordless.write("mood", "says('degraded', '503 Service Unavailable')")
    assert is_sick(recordless.ask(), "503")
    recordless.write("mood", "[OK]")
    os.kill(recordless.pid(), signal.SIGSTOP)
    assert is_sick(recordless.ask())
    process.kill()
    process.wait()
    assert is_absent(recordless.ask())
    recordless.foreign(servers.foreign_http(OK_ANSWER))
    assert is_absent(recordless.ask())


@as_anybody
def test_a_record_of_an_earlier_server_does_not_hide_the_one_that_runs(recordless):
    recordless.state.chmod(0o700)
    die(recordless.start())
    for path in recordless.state.iterdir():
        path.chmod(0o400)
    recordless.state.chmod(0o500)
    stands(recordless, under=AS_ANYBODY)
    assert is_well(recordless.ask())
    recordless.write("mood", "[]")
    assert is_sick(recordless.ask())


# -- other users, names and addresses ----------------------------------------------------------


@pytest.fixture
def public():
    """A moody project that any user may read."""
    app = App(Path(tempfile.mkdtemp(prefix="check-")))
    app.serve(MOODY)
    for path in (app.folder, app.repo, app.home):
        path.chmod(0o755)
    try:
        yield app
    finally:
        app.close()
        shutil.rmtree(str(app.folder))


def by_nobody(app, *words, **options):
    return app.run(*words, by=(OTHER_PYTHON, app.repo / "bootstrap.py"), under=NOBODY, **options)


@as_nobody
@pytest.mark.once
def test_root_asks_after_the_server_of_another_user(public):
    os.chown(str(public.home), 65534, 65534)
    (public.repo / "starts").touch()
    (public.repo / "starts").chmod(0o666)
    assert by_nobody(public).code == 0
    assert is_well(public.run("--check"))
    public.write("mood", "[]")
    assert is_sick(public.run("--check"))
    die(public.pid())
    assert is_absent(public.run("--check"))


@as_nobody
@pytest.mark.once
def test_another_user_asks_after_the_server_of_root(public):
    """Its record is closed to others; whose the socket is, the kernel tells."""
    public.start()
    assert is_well(by_nobody(public, "--check"))
    public.write("mood", "[]")
    assert is_sick(by_nobody(public, "--check"))
    assert public.run("--stop").code == 0
    assert is_absent(by_nobody(public, "--check"))


@as_nobody
@pytest.mark.once
def test_a_stranger_of_another_user_is_not_taken_for_ours(public):
    """The state folder can be read, and has no record of a server."""
    os.chown(str(public.home), 65534, 65534)
    public.foreign(servers.foreign_http(OK_ANSWER))
    assert is_absent(by_nobody(public, "--check"))


OTHER = dict(name="Other", env_prefix="OTHER_", health="/up?who=me", state_dir=None)


def other(source):
    return source.replace("HERMES_WEBUI_", "OTHER_")


@as_anybody
@pytest.mark.parametrize("recorded", [True, False], ids=["with a record", "without one"])
def test_another_project_is_asked_in_its_own_names(moody, recorded):
    moody.configure(**OTHER)
    moody.serve(other(MOODY))
    moody.write("mood", "[http(b'', '204 No Content')] if path.startswith('/up?who=me') else []")
    state = moody.home / ".local/state/Other"
    state.mkdir(parents=True)
    state.chmod(0o700 if recorded else 0o500)
    ask = dict(under=AS_ANYBODY)
    try:
        assert is_absent(moody.run("--check", **ask))
        moody.launch("--foreground", **ask)
        until(lambda: moody.starts() and not moody.is_free(), "it listens")
        assert is_well(moody.run("--check", **ask))
        assert is_well(moody.run("--check", "--deep", **ask))
        moody.write("mood", "[]")
        assert is_sick(moody.run("--check", **ask), "Other")
    finally:
        state.chmod(0o700)


def test_deep_is_added_to_a_question_that_the_health_path_has_already(moody):
    moody.configure(**OTHER)
    moody.serve(other(MOODY))
    moody.write("mood", "[OK] if path in ('/up?who=me', '/up?who=me&deep=1') else []")
    starts(moody)
    assert is_well(moody.run("--check", "--deep"))


def test_another_configuration_is_named_on_the_command_line(moody):
    config = moody.configure(**OTHER)
    elsewhere = moody.folder / "other.cfg"
    config.rename(elsewhere)
    moody.serve(other(MOODY))
    starts(moody, "--config", elsewhere)
    assert is_well(moody.run("--check", "--config", elsewhere))
    assert is_absent(moody.run("--check")), "the project's own instance does not run"


def test_where_the_health_is_tcp_accepting_is_enough(moody):
    moody.configure(health="tcp")
    moody.write("mood", "[]")
    pid = moody.start()
    assert is_well(moody.run("--check")) and is_well(moody.run("--check", "--deep"))
    os.kill(pid, signal.SIGUSR2)
    until(moody.is_free, "it has let its port go")
    assert is_sick(moody.run("--check"), "nothing accepts")
    assert moody.run("--stop").code == 0
    assert is_absent(moody.run("--check"))


def test_the_port_is_the_instance(moody):
    moody.start()
    assert is_absent(moody.run("--check", port=free_port()))
    assert is_well(moody.run("--check", port=None, env={"HERMES_WEBUI_PORT": moody.port}))


def test_a_server_is_asked_where_its_record_says_that_it_listens(moody):
    """Another shell has other settings."""
    starts(moody, "--host", "127.0.0.2")
    assert is_well(moody.run("--check"))
    moody.write("mood", "[]")
    assert is_sick(moody.run("--check"))


@pytest.mark.parametrize("words, code", [
    pytest.param(("--check", "--status"), 2, id="two questions at once"),
    pytest.param(("--check", "--host"), 2, id="half a word")])
def test_a_wrong_question_is_neither_sick_nor_absent(app, words, code):
    refused(app.run(*words), code)


def test_a_wrong_setting_is_neither_sick_nor_absent(app):
    refused(app.run("--check", port=None, env={"HERMES_WEBUI_PORT": "none"}), 78)
    app.write("bootstrap.cfg", "[bootstrap]\nnonsense = 1\n")
    refused(app.run("--check"), 78)


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The settings that name a self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=elsewhere",
                    "-keyout", "key.pem", "-out", "cert.pem"], cwd=str(folder), check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    return {"HERMES_WEBUI_TLS_CERT": str(folder / "cert.pem"),
            "HERMES_WEBUI_TLS_KEY": str(folder / "key.pem")}


def secure_url(app):
    return app.url.replace("http:", "https:")


def answers_secure(app):
    """Whether the server says ok over TLS."""
    with contextlib.suppress(OSError):
        address = secure_url(app) + "health"
        with urllib.request.urlopen(address, timeout=5,
                                    context=ssl._create_unverified_context()) as answer:
            return json.loads(answer.read().decode())["status"] == "ok"


def test_with_a_certificate_the_start_is_ready_on_https(project, certificate):
    result = project.run(env=certificate)
    assert (result.code, result.out) == (0, secure_url(project) + "\n"), result.err
    assert answers_secure(project)
    assert project.run(env=certificate).out == secure_url(project) + "\n", "it runs already"


def test_a_shell_without_the_variables_asks_over_tls_all_the_same(project, certificate):
    """The record knows how the server is reached."""
    starts(project, env=certificate)
    status = project.status("-v")
    assert (status["code"], status["state"], status["url"]) == (0, "running", secure_url(project))
    assert status["healthy"] is True and status["accept loop"].startswith("moves")
    assert is_well(project.run("--check")) and is_well(project.run("--check", "--deep"))
    os.kill(status["pid"], signal.SIGSTOP)
    assert is_sick(project.run("--check"))
    assert project.run("--stop").code == 0
    assert is_absent(project.run("--check"))


def test_a_foreground_server_with_a_certificate_is_asked_over_tls(project, certificate):
    project.launch("--foreground", env=certificate)
    until(lambda: answers_secure(project), "it answers")
    assert is_well(project.run("--check"))


@as_anybody
def test_a_server_with_a_certificate_and_without_a_record(project, certificate):
    """What the server was started with tells how it is reached, where the shell does not."""
    project.state.mkdir(parents=True)
    project.state.chmod(0o500)
    try:
        project.launch("--foreground", env=certificate, under=AS_ANYBODY)
        until(lambda: answers_secure(project), "it answers")
        assert is_well(project.run("--check", under=AS_ANYBODY, env=certificate))
        assert is_well(project.run("--check", under=AS_ANYBODY))
    finally:
        project.state.chmod(0o700)


def test_a_certificate_may_stand_in_dotenv(project, certificate):
    project.write(".env", "".join("%s='%s'\n" % row for row in certificate.items()))
    assert project.run().out == secure_url(project) + "\n"
    assert answers_secure(project) and is_well(project.run("--check"))


@pytest.mark.parametrize("missing", ["HERMES_WEBUI_TLS_CERT", "HERMES_WEBUI_TLS_KEY"])
def test_half_a_pair_is_a_start_that_fails_and_says_why(project, certificate, missing):
    refused(project.run(env=dict(certificate, **{missing: None})), 1, "exit status 78",
            "HERMES_WEBUI_TLS_CERT and HERMES_WEBUI_TLS_KEY")
    assert project.is_gone() and project.is_free() and is_absent(project.run("--check"))


def test_blank_settings_are_no_certificate(project):
    blank = {"HERMES_WEBUI_TLS_CERT": " ", "HERMES_WEBUI_TLS_KEY": ""}
    assert project.run("--timeout", 10, env=blank).out == project.url + "\n"


@pytest.mark.parametrize("source", [
    pytest.param("connection.sendall(OK)", id="plain HTTP"),
    pytest.param("time.sleep(3600)", id="silence")])
def test_a_server_that_does_not_speak_tls_is_not_ready(app, certificate, source):
    app.serve(servers.small("listener = listen()", "while True:",
                            "    connection, _ = listener.accept()", "    connection.recv(65536)",
                            "    " + source, "    connection.close()"))
    refused(app.run("--timeout", 1, env=certificate), 75, "https:")
    assert app.is_gone()


# -- status -v ---------------------------------------------------------------------------------


def leaking(count, limit):
    """The project's own server, which has leaked so many files and may have no more than limit."""
    return "\n".join([
        "import os, resource",
        "resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))".format(limit),
        "leaked = [os.open(os.devnull, os.O_RDONLY) for _ in range({})]".format(count),
        "pipes = [os.pipe() for _ in range(3)]",
        (ROOT / "server.py").read_text(encoding="utf-8")])


def descriptors(status):
    """The limit, and how many there are of each kind: {kind: count}."""
    total, limit, kinds = re.fullmatch(r"(\d+) of (\w+): (.*)", status["descriptors"]).groups()
    counts = {kind: int(number) for number, kind in map(str.split, kinds.split(", "))}
    assert sum(counts.values()) == int(total)
    return limit, counts


def test_the_examination_of_a_healthy_server(project):
    project.write(".env", "A B=1\nHERMES_WEBUI_HOST=127.0.0.9\n")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    starts(project, env={"HERMES_WEBUI_HOST": "127.0.0.1"},
           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard)))
    plain, status = project.status(), project.status("-v")
    assert (status["code"], status["state"]) == (0, "running")
    assert {name: status[name] for name in plain} == plain, "it adds, and changes nothing"
    for check in ("stream_lock", "file_descriptors", "disk"):
        assert re.fullmatch(r"ok, [\d.]+ ms", status[check]), status
    assert re.fullmatch(r"moves, \d+ requests", status["accept loop"])
    limit, kinds = descriptors(status)
    assert limit == "4096" and kinds["socket"] >= 1
    assert PYTHON in status["python"] and "(the Python that runs bootstrap.py)" in status["python"]
    assert [line.split(":")[1] for line in status[".env"]] == ["1"]
    assert ".env:2: " in str(project.status("-v", env={"HERMES_WEBUI_HOST": "127.0.0.1"})[".env"])
    text = project.run("--status", "-v").out
    for word in ("moves", "of 4096", PYTHON, ".env:1: ", "disk"):
        assert word in text


def test_which_python_comes_with_its_reason(project):
    python = project.repo / "python"
    python.symlink_to(PYTHON)
    project.write(".env", "HERMES_WEBUI_PYTHON=./python\n")
    status = project.status("-v", cwd=str(project.repo), env={"HERMES_WEBUI_PYTHON": python})
    assert status["python"] == "{} (HERMES_WEBUI_PYTHON)".format(python)


def test_a_python_that_dotenv_names_is_the_one_that_is_told(project):
    python = project.repo / "python"
    python.symlink_to(PYTHON)
    project.write(".env", "HERMES_WEBUI_PYTHON='{}'\n".format(python))
    assert str(python) in project.status("-v")["python"]


def test_a_missing_python_is_a_row_and_not_the_end_of_the_diagnosis(project):
    starts(project)
    project.configure(requires_python=">=3.99")
    status = project.status("-v")
    assert (status["code"], status["state"]) == (0, "running") and "3.99" in status["python"]


def test_an_unreadable_dotenv_is_told(project):
    (project.repo / ".env").mkdir()
    assert "not a file" in str(project.status("-v")[".env"])


def test_the_examination_of_a_server_that_leaks(project):
    project.serve(leaking(365, 400))
    starts(project)
    status = project.status("-v")
    limit, kinds = descriptors(status)
    assert limit == "400" and kinds["file"] >= 365 and kinds["pipe"] >= 6
    assert status["file_descriptors"].startswith("error, ") and status["disk"].startswith("ok, ")
    assert is_well(project.run("--check")) and is_sick(project.run("--check", "--deep"))


def test_the_examination_of_a_server_whose_accept_loop_is_wedged(project):
    wedge = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))\n"
    project.serve(wedge + (ROOT / "server.py").read_text(encoding="utf-8"))
    starts(project)
    pid = project.status()["pid"]
    os.kill(pid, signal.SIGUSR1)
    status = project.status("-v")
    assert (status["code"], status["state"], status["pid"]) == (0, "wedged", pid)
    assert not status.get("accept loop", "").startswith("moves")
    assert descriptors(status)[1]["socket"] >= 1 and PYTHON in status["python"]


def test_a_counter_that_does_not_move_is_told(moody):
    moody.start()
    moody.write("mood", "[http(b'{\"status\": \"ok\", \"accept_loop\": {\"requests_total\": 7}}')]")
    assert moody.status("-v")["accept loop"] == "stands still, 7 requests"


def test_the_examination_of_an_orphan_in_its_loop(project):
    """The server that lost its supervisor has the port, and every new start ends at once."""
    project.serve("import os\nif os.fork():\n    os._exit(0)\nos.setsid()\n" +
                  (ROOT / "server.py").read_text(encoding="utf-8"))
    supervised = {"SUPERVISOR_ENABLED": "1"}
    project.launch("--foreground", env=supervised).wait(timeout=30)
    until(project.answers, "the orphan answers")
    for _ in range(2):
        refused(project.run("--foreground", env=supervised), 69)
    status = project.status("-v")
    assert (status["code"], status["state"], status["pid"]) == (3, "orphan", None)
    assert "kill " in status["remedy"] and "--foreground" in status["remedy"]
    assert status["disk"].startswith("ok, ") and status["accept loop"].startswith("moves")
    text = project.run("--status", "-v")
    assert text.code == 3 and status["remedy"] in text.out and "Traceback" not in text.err


STRANGE = [
    "", "null", "[]", '"ok"', "7", "\xff", "[" * 20000, '{"checks": null}', '{"checks": []}',
    '{"checks": "ok"}', '{"checks": {"disk": null}}', '{"checks": {"disk": "ok"}}',
    '{"checks": {"disk": {}}}', '{"checks": {"disk": {"status": ["ok"], "ms": {}}}}',
    '{"checks": {"\\u001b[2J": {"status": "\\u001b[2J"}}}',
    '{"accept_loop": null}', '{"accept_loop": [1]}', '{"accept_loop": {"requests_total": null}}',
    '{"accept_loop": {"requests_total": "many"}}', '{"accept_loop": {"requests_total": {}}}',
    '{"accept_loop": {"requests_total": Infinity}}', '{"accept_loop": {"requests_total": NaN}}']


def answering(text):
    body = text.encode("latin-1")
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def is_plain(result, code):
    """Assert that a diagnosis came to its end, and gives the terminal no command."""
    assert result.code == code and result.out and "Traceback" not in result.err, result.err
    assert "\x1b" not in result.out + result.err
    return True


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: text[:60] or "nothing")
def test_no_answer_of_a_foreign_server_disturbs_the_diagnosis(app, text):
    holder = app.foreign(servers.foreign_http(answering(text)))
    assert is_plain(app.run("--status", "-v"), 3)
    status = app.status("-v")
    assert status["state"] == "foreign" and str(holder.pid) in status["verdict"]


def test_a_server_cannot_put_words_into_the_diagnosis(app):
    checks = {name: {"status": "all is well"} for name in (
        "state", "pid", "verdict", "remedy", "listeners", "descriptors", "python", ".env", "settings")}
    holder = app.foreign(servers.foreign_http(answering(json.dumps({"checks": checks}))))
    plain, status = app.status(), app.status("-v")
    assert {name: status[name] for name in plain} == plain and str(holder.pid) in status["verdict"]
    assert PYTHON in status["python"] and status[".env"] == []
    assert is_plain(app.run("--status", "-v"), 3)


@pytest.mark.parametrize("lines", [
    pytest.param("time.sleep(3600)", id="silence"),
    pytest.param("while True:\n    listener.accept()[0].close()", id="hangs up"),
    pytest.param("while True:\n    listener.accept()[0].sendall(b'SSH-2.0-x\\r\\n')", id="not HTTP")])
def test_a_foreign_program_that_is_no_web_server_is_told(app, lines):
    app.foreign(servers.foreign(lines))
    assert is_plain(app.run("--status", "-v"), 3)


def test_the_examination_of_nothing(app):
    assert is_plain(app.run("--status", "-v"), 3)
    status = app.status("-v")
    assert (status["code"], status["state"]) == (3, "not running") and PYTHON in status["python"]
    assert not app.state.exists()


def test_a_server_that_speaks_no_http_is_not_asked_for_its_health(app):
    """A game or a database may take a question it does not know for an attack."""
    app.configure(health="tcp")
    app.serve(servers.small("heard = open(os.path.join(here, 'heard'), 'ab', 0)", "listener = listen()",
                            "note()", "while True:", "    heard.write(listener.accept()[0].recv(999))"))
    app.start()
    assert is_plain(app.run("--status", "-v"), 0)
    assert (app.repo / "heard").read_bytes() == b""
