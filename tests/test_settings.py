"""Settings, configuration and the plan, as the command line shows them; nothing is started here."""
import hashlib
import json
import os

import pytest

from harness import AS_ANYBODY, PYTHON, refused

PREFIX = "HERMES_WEBUI_"


def setting(app, name, *words, **options):
    """(value, origin) of a setting."""
    options.setdefault("port", None)
    found = app.plan(*words, **options)["settings"][name]
    return found["value"], found["origin"]


def test_the_plan_starts_and_changes_nothing(app):
    before = sorted(app.folder.rglob("*"))
    assert app.plan()["mode"] == "detached"
    assert sorted(app.folder.rglob("*")) == before and app.is_gone()


def test_the_plan_says_all_that_a_start_would_do(app):
    plan = app.plan()
    assert plan["mode"] == "detached" and plan["why"]
    assert plan["interpreter"]["path"] == PYTHON and plan["interpreter"]["why"]
    assert plan["command"] == [PYTHON, str(app.repo / "server.py")]
    assert plan["folder"] == str(app.repo)
    assert plan["url"] == app.url and plan["log"] == str(app.file("log"))
    names = "HOST PORT STATE_DIR PYTHON AGENT_DIR FOREGROUND DISABLE_LOCAL_VENV SERVER_CWD " \
            "NO_SUPERVISE".split()
    assert set(plan["settings"]) >= set(names)


def test_the_plan_as_text_says_the_same(app):
    plan = app.plan(env={"INVOCATION_ID": "1"})
    text = app.run("--print-plan", env={"INVOCATION_ID": "1"})
    assert text.code == 0
    for word in (plan["mode"], plan["why"], plan["folder"], plan["url"], PYTHON,
                 str(app.repo / "server.py"), "command line", "built-in"):
        assert word in text.out


def test_the_plan_of_a_running_instance_is_to_leave_it_alone(app):
    app.start()
    plan = app.plan()
    assert plan["mode"] == "leave alone" and plan["why"]
    assert len(app.starts()) == 1


def test_the_plan_for_a_taken_port_is_to_refuse(app):
    app.foreign("import socket, sys, time\nlistener = socket.create_server(('127.0.0.1', "
                "int(sys.argv[1])))\nprint('ready', flush=True)\ntime.sleep(3600)")
    plan = app.plan()
    assert plan["mode"] == "refuse" and str(app.port) in plan["why"]


def test_no_secret_is_ever_shown(app):
    app.write(".env", "API_KEY=sk-one\nOTHER_KEY=sk-two\nsk-three\nBAD KEY=sk-four\n'sk-five\n"
                      "HERMES_WEBUI_PASSWORD=sk-six\nHERMES_WEBUI_HOST=::1\n")
    env = {"API_KEY": "sk-seven", PREFIX + "PASSWORD": "sk-eight", PREFIX + "HOST": "127.0.0.1"}
    for words in (["--print-plan"], ["--print-plan", "--json"], ["--status"], ["--help"], []):
        result = app.run(*words, env=env)
        assert "sk-" not in result.out + result.err, words


# -- precedence --------------------------------------------------------------------------------


def test_built_in_values(app):
    assert setting(app, "PORT") == (8787, "built-in")
    assert setting(app, "HOST") == ("127.0.0.1", "built-in")
    assert setting(app, "STATE_DIR") == (str(app.state), "built-in")


@pytest.mark.parametrize("name, key, values", [
    pytest.param("PORT", "port", ["9001", "9002", "9003", "9004"], id="PORT"),
    pytest.param("HOST", "host", ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"], id="HOST"),
])
def test_command_line_then_environment_then_dotenv_then_configuration(app, name, key, values):
    """Each layer is put on top of the ones that it outranks."""
    def now(words=(), env=None):
        value, origin = setting(app, name, *words, env=env)
        return str(value), origin

    app.configure(**{key: values[0]})
    assert now() == (values[0], "bootstrap.cfg")
    app.write(".env", "# nothing\n\n{}{}={}\n".format(PREFIX, name, values[1]))
    assert now() == (values[1], ".env:3")
    env = {PREFIX + name: values[2]}
    assert now(env=env) == (values[2], "environment")
    words = [values[3]] if name == "PORT" else ["--host", values[3]]
    assert now(words, env) == (values[3], "command line")


def test_state_dir_has_its_place_in_every_layer(app):
    state = app.folder / "a" / "b"
    app.configure(state_dir=state)
    assert setting(app, "STATE_DIR") == (str(state), "bootstrap.cfg")
    app.write(".env", "HERMES_WEBUI_STATE_DIR={}x\n".format(state))
    assert setting(app, "STATE_DIR") == (str(state) + "x", ".env:1")
    assert setting(app, "STATE_DIR", env={PREFIX + "STATE_DIR": state}) == (str(state), "environment")


def test_the_last_duplicate_in_dotenv_wins(app):
    app.write(".env", "HERMES_WEBUI_PORT=9001\nexport HERMES_WEBUI_PORT = '9002' # twice\n")
    assert setting(app, "PORT") == (9002, ".env:2")


def test_where_dotenv_loses_to_the_environment_one_line_says_so(app):
    app.write(".env", "HERMES_WEBUI_PORT=9001\nPLAIN=file\n")
    result = app.run("--print-plan", port=None, env={PREFIX + "PORT": "9002", "PLAIN": "outside"})
    lines = result.err.splitlines()
    assert len(lines) == 1 and PREFIX + "PORT" in lines[0] and ".env:1" in lines[0]


def test_nothing_is_said_where_both_agree(app):
    app.write(".env", "HERMES_WEBUI_PORT=9002\n")
    assert app.run("--print-plan", port=None, env={PREFIX + "PORT": "9002"}).err == ""


def test_dotenv_override_lets_the_file_win(app):
    app.write(".env", "HERMES_WEBUI_PORT=9001\n")
    env = {PREFIX + "PORT": "9002", PREFIX + "DOTENV_OVERRIDE": "1"}
    assert setting(app, "PORT", env=env) == (9001, ".env:1")
    assert setting(app, "PORT", "9003", env=env) == (9003, "command line")


def test_dotenv_cannot_let_itself_win(app):
    app.write(".env", "HERMES_WEBUI_DOTENV_OVERRIDE=1\nHERMES_WEBUI_PORT=9001\n")
    assert setting(app, "PORT", env={PREFIX + "PORT": "9002"}) == (9002, "environment")


@pytest.mark.parametrize("blank", [pytest.param("", id="empty"), pytest.param(" \t", id="spaces")])
@pytest.mark.parametrize("name", ["PORT", "HOST", "STATE_DIR"])
def test_a_blank_setting_counts_as_not_set(app, name, blank):
    expected = {"PORT": 9001, "HOST": "127.0.0.9", "STATE_DIR": str(app.folder / "s")}[name]
    app.write(".env", "{}{}={}\n".format(PREFIX, name, expected))
    assert setting(app, name, env={PREFIX + name: blank}) == (expected, ".env:1")
    app.write(".env", "{}{}='{}'\n".format(PREFIX, name, blank))
    assert setting(app, name)[1] == "built-in"


def test_only_the_winning_value_is_validated(app):
    app.write(".env", "HERMES_WEBUI_PORT=abc\n")
    assert setting(app, "PORT", env={PREFIX + "PORT": "9001"}) == (9001, "environment")
    assert setting(app, "PORT", "9002", env={PREFIX + "PORT": "def"}) == (9002, "command line")


def test_a_program_without_our_prefix_is_not_asked(app):
    assert setting(app, "PORT", env={"PORT": "9001", "HOST": "::1"}) == (8787, "built-in")


def test_hermes_home_moves_the_state_folder(app):
    home = app.folder / "elsewhere"
    assert setting(app, "STATE_DIR", env={"HERMES_HOME": home})[0] == str(home / "webui")


def test_a_tilde_in_the_state_folder_is_home(app):
    env = {PREFIX + "STATE_DIR": "~/state"}
    assert setting(app, "STATE_DIR", env=env)[0] == str(app.home / "state")


def test_bytes_that_are_not_utf_8_are_no_obstacle(app):
    state = os.fsencode(str(app.folder)) + b"/st\xff\xfete"
    env = {PREFIX + "STATE_DIR": os.fsdecode(state), "OTHER": os.fsdecode(b"\xff")}
    raw = {"encoding": None, "errors": None}
    result = app.run("--print-plan", env=env, **raw)
    assert result.code == 0 and state in result.out, result.err
    result = app.run("--print-plan", "--json", env=env, **raw)
    assert result.code == 0, result.err
    found = json.loads(result.out.decode("utf-8"))["settings"]["STATE_DIR"]["value"]
    assert os.fsencode(found) == state


@pytest.mark.parametrize("value, mode", [
    *((word, "foreground") for word in ("1", "true", "yes", "on", "TRUE", "Yes", "oN")),
    *((word, "detached") for word in ("", " ", "0", "false", "no", "off", "2", "y", "foreground"))])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_foreground_says_yes_or_no(app, value, mode, place):
    env = {PREFIX + "FOREGROUND": value} if place == "environment" else {}
    if place == ".env":
        app.write(".env", "HERMES_WEBUI_FOREGROUND='{}'\n".format(value))
    assert app.plan(env=env)["mode"] == mode


def test_server_cwd_that_is_no_folder_is_a_configuration_error(app):
    missing = app.folder / "missing"
    refused(app.run(env={PREFIX + "SERVER_CWD": missing}), 78, missing, "SERVER_CWD")


def test_server_cwd_that_cannot_be_entered_is_a_configuration_error(app):
    closed = app.folder / "closed"
    closed.mkdir(mode=0o600)
    refused(app.run(env={PREFIX + "SERVER_CWD": closed}, under=AS_ANYBODY), 78, closed, "SERVER_CWD")


def test_a_port_that_is_none_does_not_hide_the_other_lines_of_dotenv(app):
    app.write(".env", "no assignment\nHERMES_WEBUI_PORT=abc\n")
    refused(app.run(port=None), 78, "HERMES_WEBUI_PORT", ".env:1: no = follows the name")


# -- interpreter -------------------------------------------------------------------------------


def a_python(path):
    path.parent.mkdir(parents=True)
    path.symlink_to(PYTHON)
    return str(path)


@pytest.fixture
def agent(app):
    folder = app.home / ".hermes" / "hermes-agent"
    folder.mkdir(parents=True)
    (folder / "run_agent.py").write_text("")
    return folder


def test_the_setting_is_used_unseen(app, agent):
    a_python(agent / "venv" / "bin" / "python")
    plan = app.plan(env={PREFIX + "PYTHON": "/opt/my python"})
    assert plan["interpreter"]["path"] == plan["command"][0] == "/opt/my python"
    assert PREFIX + "PYTHON" in plan["interpreter"]["why"]


@pytest.mark.parametrize("name", ["venv", ".venv"])
def test_the_companions_environment_comes_before_our_own(app, agent, name):
    a_python(app.repo / ".venv" / "bin" / "python")
    python = a_python(agent / name / "bin" / "python")
    plan = app.plan()
    assert plan["interpreter"]["path"] == python and plan["folder"] == str(agent)


def test_our_own_environment_comes_before_the_python_that_runs_us(app):
    python = a_python(app.repo / ".venv" / "bin" / "python")
    assert app.plan()["interpreter"]["path"] == python
    assert app.plan(env={PREFIX + "DISABLE_LOCAL_VENV": "1"})["interpreter"]["path"] == PYTHON


def test_an_environment_without_its_python_is_not_there(app):
    link = app.repo / ".venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(app.folder / "gone")
    assert app.plan()["interpreter"]["path"] == PYTHON


# -- bootstrap.cfg -----------------------------------------------------------------------------


def test_without_names_of_its_own_a_configured_app_is_neutral(app):
    app.write("bootstrap.cfg", "[bootstrap]\nname = My App 2\n")
    agent = app.home / ".hermes" / "hermes-agent"
    agent.mkdir(parents=True)
    (agent / "run_agent.py").write_text("")
    plan = app.plan(port=None, env={"MY_APP_2_PORT": "9001", "HERMES_WEBUI_PORT": "9002"})
    assert plan["settings"]["PORT"] == {"value": 9001, "origin": "environment"}
    state = app.home / ".local" / "state" / "My App 2"
    assert plan["settings"]["STATE_DIR"]["value"] == str(state)
    assert plan["folder"] == str(app.repo)
    assert plan["command"] == [PYTHON, str(app.repo / "server.py")]


def test_the_folder_names_an_app_that_does_not_name_itself(app):
    app.write("bootstrap.cfg", "[bootstrap]\nport = 9001\n")
    env = {"XDG_STATE_HOME": app.folder / "xdg"}
    state = app.folder / "xdg" / app.repo.name
    assert setting(app, "STATE_DIR", env=env)[0] == str(state)


def test_another_file_can_be_named(app):
    app.configure(port=9001)
    other = app.folder / "other.cfg"
    other.write_text("[bootstrap]\nport = 9002\n")
    assert setting(app, "PORT", "--config", other) == (9002, "other.cfg")


def test_a_program_of_the_environment_comes_before_one_on_path(app):
    a_python(app.repo / ".venv" / "bin" / "python")
    app.configure(command="serve --port {port} --host={host} '{root}/a b'")
    on_path = app.folder / "bin" / "serve"
    a_python(on_path)
    env = {"PATH": str(on_path.parent) + os.pathsep + app.env["PATH"]}
    words = ["--port", str(app.port), "--host=127.0.0.1", str(app.repo / "a b")]
    assert app.plan(env=env)["command"] == [str(on_path), *words]
    beside = app.repo / ".venv" / "bin" / "serve"
    beside.symlink_to(PYTHON)
    assert app.plan(env=env)["command"] == [str(beside), *words]


@pytest.mark.parametrize("text, words", [
    pytest.param("[bootstrap]\nprot = 1\n", ["prot", "port", "health"], id="an unknown key"),
    pytest.param("[bootstrap]\nport = abc\n", ["port", "abc"], id="a port that is no number"),
    pytest.param("[bootstrap]\nport = 70000\n", ["port", "70000"], id="a port out of range"),
    pytest.param("[bootstrap]\nstart_timeout = soon\n", ["start_timeout", "soon"], id="no time"),
    pytest.param("[bootstrap]\nstop_timeout = -1\n", ["stop_timeout", "-1"], id="a negative time"),
    pytest.param("[bootstrap]\nhealth = up\n", ["health", "up"], id="neither path nor tcp"),
    pytest.param("[bootstrap]\ncommand =\n", ["command"], id="an empty command"),
    pytest.param("[bootstrap]\ncommand = {pyhton} x\n", ["command", "pyhton"], id="an unknown field"),
    pytest.param("[bootstrap]\ncommand = {python\n", ["command"], id="an open brace"),
    pytest.param("[bootstrap]\ncommand = {port.x}\n", ["command"], id="an attribute"),
    pytest.param("[bootstrap]\ncommand = 'x\n", ["command"], id="an open quote"),
    pytest.param("[bootstrap]\nenv_prefix = A-B\n", ["env_prefix", "A-B"], id="no prefix"),
    pytest.param("[bootstrap]\nname = a/b\n", ["name", "a/b"], id="a name that is no file name"),
    pytest.param("[other]\nport = 1\n", ["[bootstrap]"], id="no section"),
    pytest.param("", ["[bootstrap]"], id="nothing"),
    pytest.param("port = 1\n", [], id="no section header"),
    pytest.param("[bootstrap]\nport = 1\nport = 2\n", ["port"], id="a key twice"),
    pytest.param(b"[bootstrap]\nname = \xff\n", [], id="not UTF-8"),
])
def test_a_configuration_error_names_the_file_the_key_and_the_valid_keys(app, text, words):
    path = app.write("bootstrap.cfg", text)
    result = app.run("--print-plan")
    refused(result, 78, path, "start_timeout", *words)


def test_a_named_file_that_is_missing_is_a_configuration_error(app):
    refused(app.run("--config", app.folder / "none.cfg"), 78, "none.cfg")


@pytest.mark.parametrize("text", [
    "\ufeff[bootstrap]\nport = 9001\n", "[DEFAULT]\nport = 9001\n[bootstrap]\n",
    "[bootstrap]\r\nport = 9001\r\n", "# a comment\n[bootstrap]\nname = 100%\nport: 9001\n"])
def test_a_configuration_of_any_editor_is_read(app, text):
    app.write("bootstrap.cfg", text.encode("utf-8"))
    assert setting(app, "PORT") == (9001, "bootstrap.cfg")


@pytest.mark.parametrize("words", [
    ["--host", "--foreground"], ["--host"], ["--config="], ["--json=1"], ["--status", "--stop"],
    ["9000"], ["--"], ["--foreground", "--detach"], ["-x"], ["--unit", "upstart"], ["--stat"], ["--lines", "many"],
    ["--start", "--all"], ["--stop", "--all", "--instance", "blue"]], ids=" ".join)
def test_words_that_are_not_ours_are_a_usage_error(app, words):
    refused(app.run(*words), 2)
    assert app.is_gone()


def test_a_value_may_stand_behind_an_equals_sign(app):
    assert app.plan("--host=127.0.0.2", "--timeout=3")["settings"]["HOST"]["value"] == "127.0.0.2"


# -- help and version --------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_explains_modes_settings_and_exit_codes(app, word):
    result = app.run(word, port=None)
    assert (result.code, result.err) == (0, "")
    for text in ("launchd", "systemd", "supervisord", ".env", "bootstrap.cfg", "Exit codes",
                 PREFIX, *"HOST PORT STATE_DIR --host --no-browser --skip-agent-install --foreground "
                 "--detach --timeout --config --print-plan --json --version --stop --status --restart "
                 "--logs -n -f --replace 69 73 74 75 78 126 127 130 143".split()):
        assert text in result.out, text
    assert all(len(line) <= 100 for line in result.out.splitlines())


def test_version_is_the_version_and_the_files_own_sha256(app):
    digest = hashlib.sha256((app.repo / "bootstrap.py").read_bytes()).hexdigest()
    result = app.run("--version", port=None)
    assert result.code == 0 and digest in result.out


def test_help_outranks_every_other_word(app):
    assert "usage:" in app.run("--status", "--help").out


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_question_is_answered_whatever_the_settings(app, word):
    result = app.run(word, port=None, env={PREFIX + "PORT": "abc"})
    assert result.code == 0, result.err
