"""The module `bootstrap`: its names, and main() where each of them is replaced."""
import argparse
import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import zipfile

import pytest

import servers
from harness import PYTHON

MARKERS = ["INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "XPC_SERVICE_NAME",
           "SUPERVISOR_ENABLED"]
REAL = [pytest.param(name, value, id=name + "=" + value) for name, value in (
    ("INVOCATION_ID", "e5b0a3b9"), ("JOURNAL_STREAM", "9:34565"), ("JOURNAL_STREAM", "deadbeef"),
    ("NOTIFY_SOCKET", "/run/systemd/notify"), ("XPC_SERVICE_NAME", "com.example.hermes-webui"),
    ("SUPERVISOR_ENABLED", "1"), ("HERMES_WEBUI_FOREGROUND", "1"))]
# No process has it, whatever is done to it: it is above the kernel's limit.
NO_PID = 2 ** 22 + 1


class Exec(BaseException):
    """What a replaced os.execv may raise, as nothing comes back from the real one."""


class FakePopen:
    """A child that has a pid and nothing else."""

    __slots__ = ("pid",)

    def __init__(self, calls, *args, **keywords):
        calls.append(("Popen", args, keywords))
        self.pid = NO_PID


class FailingPopen(FakePopen):
    """A child that may be asked more, as it did not become a server."""

    returncode = None

    def poll(self):
        return None

    def wait(self, timeout=None):
        return None


class Calls(list):
    def count_of(self, name):
        return sum(call[0] == name for call in self)

    def of(self, name):
        return [call[1:] for call in self if call[0] == name]


@pytest.fixture
def calls(app, bootstrap, monkeypatch):
    """Everything that main() reaches through the module, replaced; a list of what it called."""
    calls = Calls()

    def replace(where, name, function):
        def replacement(*args, **keywords):
            calls.append((name, args, keywords))
            return function(*args, **keywords)
        monkeypatch.setattr(where, name, replacement)

    words = {"port": app.port, "host": "127.0.0.1", "no_browser": False, "foreground": False}
    replace(bootstrap, "parse_args", lambda: argparse.Namespace(**words))
    replace(bootstrap, "ensure_supported_platform", lambda: None)
    replace(bootstrap, "discover_agent_dir", lambda: None)
    replace(bootstrap, "hermes_command_exists", lambda: False)
    replace(bootstrap, "discover_launcher_python", lambda agent_dir: PYTHON)
    replace(bootstrap, "ensure_python_has_webui_deps", lambda python: python)
    replace(bootstrap, "wait_for_health", lambda url, *args, **keywords: True)
    replace(bootstrap, "open_browser", lambda url: None)
    replace(os, "execv", lambda path, arguments: None)
    replace(os, "chdir", lambda path: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: FakePopen(calls, *a, **k))
    calls.words = words
    return calls


def assert_detached(calls):
    assert calls.count_of("Popen") == 1 and calls.count_of("execv") == 0


def assert_became(calls, app, folder=None):
    """chdir once, then execv once; no child, no wait, no browser."""
    names = [call[0] for call in calls]
    assert [name for name in names if name in ("chdir", "execv")] == ["chdir", "execv"]
    assert calls.of("chdir") == [((str(folder or app.repo),), {})]
    (python, arguments), _ = calls.of("execv")[0]
    assert (python, arguments) == (PYTHON, [PYTHON, str(app.repo / "server.py")])
    assert not {"Popen", "wait_for_health", "open_browser"} & set(names)


# -- default mode ------------------------------------------------------------------------------


def test_main_spawns_one_child_waits_for_its_health_and_returns_0(app, bootstrap, calls):
    assert bootstrap.main() == 0
    assert_detached(calls)
    (url, *_), _ = calls.of("wait_for_health")[0]
    assert url == app.url + "health" and calls.count_of("wait_for_health") == 1
    (command,), options = calls.of("Popen")[0]
    assert list(command) == [PYTHON, str(app.repo / "server.py")]
    assert options["start_new_session"] is True


def test_main_takes_the_words_of_its_own_parse_args(app, bootstrap, calls, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(bootstrap, "wait_for_health", lambda url, *a, **k: True)
    monkeypatch.setattr(bootstrap, "open_browser", lambda url: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: FakePopen(calls, *a, **k))
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", str(app.port), "--host", "127.0.0.1"])
    os.environ.clear()
    os.environ.update(app.env)
    assert bootstrap.main() == 0
    assert_detached(calls)


def test_main_can_be_called_again_in_one_process(bootstrap, calls):
    assert bootstrap.main() == 0
    assert bootstrap.main() == 0
    assert calls.count_of("Popen") == 2


@pytest.fixture
def unhealthy(bootstrap, calls, monkeypatch):
    """The server never answers."""
    monkeypatch.setattr(bootstrap, "wait_for_health", lambda url, *a, **k: False)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: FailingPopen(calls, *a, **k))


def test_main_without_health_raises(bootstrap, calls, unhealthy):
    with pytest.raises(RuntimeError):
        bootstrap.main()
    assert_detached(calls)


def test_main_uses_what_the_replaced_names_return(app, bootstrap, calls, monkeypatch):
    agent, other = app.folder / "agent", app.folder / "other python"
    agent.mkdir()
    other.symlink_to(PYTHON)
    monkeypatch.setattr(bootstrap, "discover_agent_dir", lambda: agent)
    monkeypatch.setattr(bootstrap, "ensure_python_has_webui_deps", lambda python: str(other))
    assert bootstrap.main() == 0
    (command,), options = calls.of("Popen")[0]
    assert command[0] == str(other) and options["cwd"] == str(agent)
    assert calls.of("discover_launcher_python") == [((agent,), {})]
    assert os.environ["HERMES_WEBUI_AGENT_DIR"] == str(agent)


@pytest.mark.parametrize("name, args", [
    ("parse_args", ()), ("ensure_supported_platform", ()), ("discover_agent_dir", ()),
    ("discover_launcher_python", (None,)), ("ensure_python_has_webui_deps", (PYTHON,))])
def test_main_reaches_through_the_module_with_just_its_arguments(bootstrap, calls, name, args):
    assert bootstrap.main() == 0
    assert (args, {}) in calls.of(name)


@pytest.mark.parametrize("env", [
    pytest.param({"SYSTEMD_EXEC_PID": str(os.getpid())}, id="SYSTEMD_EXEC_PID is this process"),
    pytest.param({"SYSTEMD_EXEC_PID": str(os.getppid())}, id="SYSTEMD_EXEC_PID is the parent"),
    pytest.param({"XPC_SERVICE_NAME": "0"}, id="XPC noise"),
    pytest.param({"XPC_SERVICE_NAME": "application.com.apple.Terminal.1"}, id="more XPC noise"),
    pytest.param({"INVOCATION_ID": "", "HERMES_WEBUI_FOREGROUND": " "}, id="blanks"),
    pytest.param({"HERMES_WEBUI_FOREGROUND": "no"}, id="no"),
])
def test_evidence_about_the_importing_process_is_not_weighed(bootstrap, calls, env):
    os.environ.update(env)
    assert bootstrap.main() == 0
    assert_detached(calls)


def test_a_port_that_is_taken_is_a_runtime_error(app, bootstrap, calls):
    with socket.create_server(("127.0.0.1", app.port)):
        with pytest.raises(RuntimeError, match=str(app.port)):
            bootstrap.main()
    assert not {"Popen", "execv"} & {call[0] for call in calls}


# -- foreground mode ---------------------------------------------------------------------------


@pytest.fixture(params=["returns", "raises"])
def exec_style(request, calls, monkeypatch):
    """A replaced os.execv returns, or raises to end main() as the real one does."""
    if request.param == "raises":
        replaced = os.execv

        def execv(path, arguments):
            replaced(path, arguments)
            raise Exec
        monkeypatch.setattr(os, "execv", execv)


def run_main(bootstrap):
    try:
        bootstrap.main()
    except Exec:
        pass


def test_foreground_becomes_the_server(app, bootstrap, calls, exec_style):
    calls.words["foreground"] = True
    run_main(bootstrap)
    assert_became(calls, app)


@pytest.mark.parametrize("name, value", REAL)
def test_any_real_marker_leads_to_execv(app, bootstrap, calls, exec_style, name, value):
    os.environ[name] = value
    run_main(bootstrap)
    assert_became(calls, app)


def test_foreground_runs_in_the_companions_folder(app, bootstrap, calls, monkeypatch):
    agent = app.folder / "agent"
    agent.mkdir()
    calls.words["foreground"] = True
    monkeypatch.setattr(bootstrap, "discover_agent_dir", lambda: agent)
    run_main(bootstrap)
    assert_became(calls, app, agent)


def test_foreground_runs_in_server_cwd(app, bootstrap, calls):
    calls.words["foreground"] = True
    os.environ["HERMES_WEBUI_SERVER_CWD"] = str(app.home)
    run_main(bootstrap)
    assert_became(calls, app, app.home)


@pytest.mark.parametrize("exists", [pytest.param(True, id="no x-bit"), pytest.param(False, id="missing")])
def test_foreground_refuses_an_interpreter_that_is_not_executable(
        app, bootstrap, calls, monkeypatch, exists):
    path = app.folder / "the python"
    if exists:
        path.write_text("#!/bin/sh\n")
    calls.words["foreground"] = True
    monkeypatch.setattr(bootstrap, "ensure_python_has_webui_deps", lambda python: str(path))
    with pytest.raises(RuntimeError) as caught:
        bootstrap.main()
    assert "not executable" in str(caught.value) and str(path) in str(caught.value)
    assert calls.count_of("execv") == 0


def test_the_guard_stands_before_anything_runs_the_interpreter(app, bootstrap, calls, monkeypatch):
    path = app.folder / "missing"
    app.write("requirements.txt", "something\n")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", str(app.port), "--foreground"])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: FakePopen(calls, *a, **k))
    os.environ.clear()
    os.environ.update(app.env, HERMES_WEBUI_PYTHON=str(path))
    with pytest.raises(RuntimeError, match="not executable"):
        bootstrap.main()
    assert calls.count_of("Popen") == 0


@pytest.mark.parametrize("foreground", [False, True], ids=["default", "foreground"])
def test_resolved_settings_are_exported(app, bootstrap, calls, monkeypatch, foreground):
    seen = {}
    calls.words.update(foreground=foreground, host="127.0.0.2")
    monkeypatch.setattr(os, "execv", lambda *_: seen.update(os.environ))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: [
        seen.update(k.get("env") or os.environ), FakePopen(calls, *a, **k)][1])
    bootstrap.main()
    for environ in (seen, os.environ):
        assert environ["HERMES_WEBUI_HOST"] == "127.0.0.2"
        assert environ["HERMES_WEBUI_PORT"] == str(app.port)
        assert environ["HERMES_WEBUI_STATE_DIR"] == str(app.state)
        assert "HERMES_WEBUI_AGENT_DIR" not in environ


# -- either mode -------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    """Handlers of the caller, for the signals that a launcher may care about."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE,
               signal.SIGUSR1)
    before = {number: signal.signal(number, print) for number in numbers}
    wakeup = signal.set_wakeup_fd(-1)
    yield lambda: ([signal.getsignal(number) for number in numbers], signal.set_wakeup_fd(-1))
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)


UNTOUCHED = ([print] * 6, -1)


@pytest.mark.parametrize("foreground", [False, True], ids=["default", "foreground"])
def test_signal_handlers_are_as_before_when_main_returns(bootstrap, calls, handlers, foreground):
    calls.words["foreground"] = foreground
    bootstrap.main()
    assert handlers() == UNTOUCHED


def test_signal_handlers_are_as_before_when_the_server_is_not_healthy(
        bootstrap, calls, handlers, unhealthy):
    with pytest.raises(RuntimeError):
        bootstrap.main()
    assert handlers() == UNTOUCHED


def test_signal_handlers_are_as_before_when_execv_fails(bootstrap, calls, handlers, monkeypatch):
    calls.words["foreground"] = True
    monkeypatch.setattr(os, "execv", lambda *_: os.open("/no/such/file", os.O_RDONLY))
    with pytest.raises(RuntimeError, match="not executable"):
        bootstrap.main()
    assert handlers() == UNTOUCHED


@pytest.mark.parametrize("foreground", [False, True], ids=["default", "foreground"])
def test_main_works_outside_the_main_thread(bootstrap, calls, foreground):
    calls.words["foreground"] = foreground
    results = []
    thread = threading.Thread(target=lambda: results.append(bootstrap.main()))
    thread.start()
    thread.join(30)
    assert results == [0]


def test_no_file_descriptor_is_left_behind(bootstrap, calls):
    bootstrap.main()
    before = os.listdir("/proc/self/fd")
    bootstrap.main()
    assert len(os.listdir("/proc/self/fd")) == len(before)


# -- the names ---------------------------------------------------------------------------------


def test_constants(app, bootstrap):
    assert str(bootstrap.REPO_ROOT) == str(app.repo)
    assert (bootstrap.DEFAULT_HOST, bootstrap.DEFAULT_PORT) == ("127.0.0.1", 8787)


@pytest.mark.parametrize("options", [
    pytest.param({}, id="as usual"),
    pytest.param({"env": {"HERMES_WEBUI_PORT": "abc", "HOME": None, "PATH": None}}, id="no environment"),
    pytest.param({"under": ("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh")}, id="no working folder"),
    pytest.param({"under": ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")}, id="no streams"),
])
def test_importing_has_no_effect_and_never_fails(app, options):
    app.write("bootstrap.cfg", "nonsense")
    app.write(".env", "HERMES_WEBUI_PORT=abc\n'")
    (app.folder / "here").mkdir()
    before = sorted(app.folder.rglob("*"))
    code = "import sys; sys.path.insert(0, {!r}); import bootstrap; bootstrap.APP.name".format(
        str(app.repo))
    result = app.run(by=(PYTHON, "-B", "-c", code), cwd=str(app.folder / "here"), **options)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert set(before) - set(app.folder.rglob("*")) <= {app.folder / "here"}
    assert set(app.folder.rglob("*")) <= set(before)


def test_app_is_this_repositorys_own_until_main_has_read_the_configuration(app, bootstrap, calls):
    app.configure(name="Other", env_prefix="OTHER_")
    assert bootstrap.APP.name == "Hermes Web UI" and bootstrap.APP.env("X") == "HERMES_WEBUI_X"
    assert bootstrap.main() == 0
    assert bootstrap.APP.name == "Other" and bootstrap.APP.env("X") == "OTHER_X"
    assert os.environ["OTHER_PORT"] == str(app.port)


def test_parse_args_reads_the_command_line(app, bootstrap, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "9001", "--host", "::1", "--no-browser", "--foreground"])
    words = bootstrap.parse_args()
    assert (words.port, words.host, words.no_browser, words.foreground) == (9001, "::1", True, True)
    monkeypatch.setattr(sys, "argv", ["x", "--skip-agent-install"])
    words = bootstrap.parse_args()
    assert (words.port, words.host, words.no_browser, words.foreground) == (
        8787, "127.0.0.1", False, False)


def test_parse_args_reads_the_environment_each_time_anew(bootstrap):
    for port in (9001, 9002):
        os.environ["HERMES_WEBUI_PORT"] = str(port)
        assert bootstrap.parse_args().port == port


def test_native_windows_is_refused_with_the_way_out(bootstrap, monkeypatch):
    assert not bootstrap.ensure_supported_platform()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RuntimeError, match="WSL2"):
        bootstrap.ensure_supported_platform()


@pytest.mark.parametrize("name, value, real", [
    *((name, "", False) for name in MARKERS), *((name, "x", True) for name in MARKERS),
    ("XPC_SERVICE_NAME", "0", False), ("XPC_SERVICE_NAME", "application.com.apple.Terminal", False),
    ("XPC_SERVICE_NAME", "application.", False), ("XPC_SERVICE_NAME", "00", True),
    ("XPC_SERVICE_NAME", "com.example.hermes-webui", True), ("XPC_SERVICE_NAME", "my.application.", True),
    ("INVOCATION_ID", "0", True), ("SUPERVISOR_ENABLED", "0", True)])
def test_a_supervisors_value_is_real_or_noise(bootstrap, name, value, real):
    assert bootstrap._is_real_supervisor_value(name, value) is real


@pytest.mark.parametrize("env, found", [
    ({}, None),
    ({"INVOCATION_ID": "", "XPC_SERVICE_NAME": "0"}, None),
    ({"PATH": "/bin", "TERM": "xterm", "SYSTEMD_EXEC_PID": "1"}, None),
    *(({name: "x"}, name) for name in MARKERS),
    ({name: "x" for name in MARKERS}, "INVOCATION_ID"),
    ({name: "x" for name in MARKERS[1:]}, "JOURNAL_STREAM"),
    ({name: "x" for name in MARKERS[2:]}, "NOTIFY_SOCKET"),
    ({name: "x" for name in MARKERS[3:]}, "XPC_SERVICE_NAME"),
    ({"XPC_SERVICE_NAME": "0", "SUPERVISOR_ENABLED": "1"}, "SUPERVISOR_ENABLED"),
    *(({"HERMES_WEBUI_FOREGROUND": yes, "INVOCATION_ID": "x"}, "HERMES_WEBUI_FOREGROUND")
      for yes in ("1", "true", "YES", "On")),
    *(({"HERMES_WEBUI_FOREGROUND": no}, None) for no in ("", " ", "0", "false", "no", "2")),
    ({"HERMES_WEBUI_FOREGROUND": "0", "INVOCATION_ID": "x"}, "INVOCATION_ID"),
])
def test_detect_supervisor_names_the_first_variable_that_speaks(bootstrap, env, found):
    os.environ.clear()
    os.environ.update(env)
    assert bootstrap._detect_supervisor() == found


def test_detect_supervisor_uses_the_prefix_of_the_app(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "APP", bootstrap.APP._replace(env_prefix="OTHER_"))
    os.environ["HERMES_WEBUI_FOREGROUND"] = "1"
    assert bootstrap._detect_supervisor() is None
    os.environ["OTHER_FOREGROUND"] = "1"
    assert bootstrap._detect_supervisor() == "OTHER_FOREGROUND"


def test_the_app_is_a_tuple_with_names(bootstrap):
    """As collections.namedtuple makes it: it can be replaced, copied and pickled."""
    app = bootstrap.APP
    assert app._replace(port=1).port == 1 and app.port == bootstrap.DEFAULT_PORT
    assert copy.deepcopy(app) == app and pickle.loads(pickle.dumps(app)).command == app.command
    for wrong in (lambda: app._replace(prot=1), lambda: type(app)("x"), lambda: type(app)(*app, 1)):
        with pytest.raises(TypeError, match="env_prefix"):
            wrong()


# -- companion and interpreter -----------------------------------------------------------------


def a_companion(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run_agent.py").write_text("")
    return folder


def a_program(path, text="#!/bin/sh\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def found_companion(bootstrap):
    found = bootstrap.discover_agent_dir()
    return found and str(found)


def test_the_companion_is_found_in_the_order_of_its_places(app, bootstrap):
    """Each place outranks those that were filled before it."""
    assert found_companion(bootstrap) is None
    os.environ["HERMES_HOME"] = str(app.folder / "hermes")
    os.environ["HERMES_WEBUI_AGENT_DIR"] = str(app.folder / "chosen")
    for folder in (app.home / "hermes-agent", app.folder / "hermes-agent",
                   app.folder / "hermes" / "hermes-agent", app.folder / "chosen"):
        folder.mkdir(parents=True)
        before = found_companion(bootstrap)
        a_companion(folder)
        assert found_companion(bootstrap) == str(folder) != before


def test_the_companion_is_found_in_the_default_home(app, bootstrap):
    folder = a_companion(app.home / ".hermes" / "hermes-agent")
    assert found_companion(bootstrap) == str(folder)


def test_the_companion_is_found_by_its_commands_own_launcher(app, bootstrap):
    agent = a_companion(app.folder / "somewhere" / "agent")
    script = a_program(agent / "venv" / "bin" / "hermes", "#!{}\n".format(
        agent / "venv" / "bin" / "python"))
    link = app.folder / "bin" / "hermes"
    link.parent.mkdir()
    link.symlink_to(script)
    os.environ["PATH"] = str(link.parent)
    assert found_companion(bootstrap) == str(agent)


def test_the_companion_is_found_in_the_site_packages_of_the_interpreter(app, bootstrap):
    site = a_companion(app.folder / "env" / "lib" / "python3.11" / "site-packages")
    os.environ["HERMES_WEBUI_PYTHON"] = str(a_program(app.folder / "env" / "bin" / "python"))
    assert found_companion(bootstrap) == str(site)


def test_the_companions_command_is_looked_up_on_path(app, bootstrap):
    assert not bootstrap.hermes_command_exists()
    a_program(app.folder / "bin" / "hermes")
    os.environ["PATH"] += os.pathsep + str(app.folder / "bin")
    assert bootstrap.hermes_command_exists()
    (app.folder / "bin" / "hermes").chmod(0o644)
    assert not bootstrap.hermes_command_exists()


def test_the_interpreter_is_found_in_the_order_of_its_places(app, bootstrap):
    agent = a_companion(app.folder / "agent")
    path = app.folder / "bin" / "python3"
    a_program(path)
    os.environ["PATH"] = str(path.parent)
    assert bootstrap.discover_launcher_python(None) in (sys.executable, str(path))
    for python in (app.repo / ".venv" / "bin" / "python", agent / ".venv" / "bin" / "python",
                   agent / "venv" / "bin" / "python"):
        a_program(python)
        assert bootstrap.discover_launcher_python(agent) == str(python)
    os.environ["HERMES_WEBUI_PYTHON"] = "/no/such/python"
    assert bootstrap.discover_launcher_python(agent) == "/no/such/python"


def test_a_repository_without_dependencies_takes_the_interpreter_as_it_is(bootstrap):
    assert bootstrap.ensure_python_has_webui_deps(PYTHON) == PYTHON


def test_an_interpreter_that_has_the_dependencies_is_taken(app, bootstrap):
    app.write("requirements.txt", "pytest\n")
    os.environ["PIP_NO_INDEX"] = "1"
    assert bootstrap.ensure_python_has_webui_deps(sys.executable) == sys.executable
    assert not (app.repo / ".venv").exists()


@pytest.fixture
def wheels(app):
    """A package index of one package, in a folder, and a requirement of it."""
    with zipfile.ZipFile(str(app.write("greeting-1.0-py3-none-any.whl", "")), "w") as wheel:
        info = "greeting-1.0.dist-info/"
        wheel.writestr("greeting.py", "text = 'hello'\n")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
                                       "Tag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "")
    app.write("requirements.txt", "--no-index\n--find-links .\ngreeting==1.0\n")
    return app


def test_what_is_missing_is_installed_into_a_local_environment(wheels, bootstrap):
    assert bootstrap.ensure_python_has_webui_deps(PYTHON) == str(
        wheels.repo / ".venv" / "bin" / "python")
    process = wheels("import greeting; print(greeting.text)", "--foreground")
    result = wheels.result(process)
    assert (result.code, result.out) == (0, "hello\n"), result.err


def test_nothing_is_installed_where_a_local_environment_is_forbidden(wheels, bootstrap):
    os.environ["HERMES_WEBUI_DISABLE_LOCAL_VENV"] = "1"
    with pytest.raises(RuntimeError, match="DISABLE_LOCAL_VENV"):
        bootstrap.ensure_python_has_webui_deps(PYTHON)
    assert not (wheels.repo / ".venv").exists()


# -- health and browser ------------------------------------------------------------------------


@pytest.mark.parametrize("url", [
    "ftp://127.0.0.1/", "ftp://127.0.0.1:80/", "file:///etc/passwd", "127.0.0.1:80", "", "http://",
    "http://:80/", "http://h:ab/", "http://h:0/", "http://h:65536/", "http://h:80:90/", "http://::1/",
    "http://[::1/", "http://[h/", "http://h/a b", "http://h/\r\nX:y"])
def test_a_url_that_is_not_http_is_a_value_error(bootstrap, url):
    with pytest.raises(ValueError):
        bootstrap.wait_for_health(url)


@pytest.mark.parametrize("url", ["HTTP://127.0.0.1:9", "http://[::1]", "http://[::1]:9?a#b",
                                 "http://user:word@127.0.0.1:9/a@b:c", "https://127.0.0.1:9/?a=http://b"])
def test_a_url_of_any_http_server_is_asked(bootstrap, url):
    assert not bootstrap.wait_for_health(url, timeout=0.01)


def test_wait_for_health_is_true_once_the_server_answers(app, bootstrap):
    process = app.foreign(servers.foreign(
        "time.sleep(0.2)\nwhile True:\n    connection, _ = listener.accept(); connection.recv(9999)\n"
        "    connection.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n{\"status\": \"ok\"}'); connection.close()"))
    assert bootstrap.wait_for_health(app.url + "health")
    process.kill()
    process.wait()
    assert not bootstrap.wait_for_health(app.url + "health", timeout=0.2)


@pytest.mark.parametrize("env", [
    pytest.param({}, id="nothing is known"), pytest.param({"BROWSER": "/no/such"}, id="missing"),
    pytest.param({"BROWSER": "'%s %d %"}, id="nonsense")])
def test_open_browser_never_raises(app, env):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); "
            "import bootstrap; bootstrap.open_browser('http://127.0.0.1:9/')")
    result = app.run(by=(PYTHON, "-c", code, app.repo), env=dict(env, PATH="/nowhere"), port=None)
    assert result.code == 0 and "Traceback" not in result.err
