"""Who watches us, as tables: each row is one piece of evidence, or one that is not."""
import pytest

MARKERS = ("INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "XPC_SERVICE_NAME",
           "SUPERVISOR_ENABLED")
US = 4242


@pytest.mark.parametrize("name, value, real", [
    ("XPC_SERVICE_NAME", "", False), ("XPC_SERVICE_NAME", "0", False),
    ("XPC_SERVICE_NAME", "application.com.apple.Terminal.123", False),
    ("XPC_SERVICE_NAME", "com.example.hermes-webui", True),
    ("XPC_SERVICE_NAME", "local.app", True),
    ("INVOCATION_ID", "", False), ("INVOCATION_ID", "0", True),
    ("SUPERVISOR_ENABLED", "application.x", True),
])
def test_a_value_is_real_or_noise(bootstrap, name, value, real):
    assert bootstrap._is_real_supervisor_value(name, value) is real


@pytest.mark.parametrize("environ, found", [
    pytest.param({}, None, id="nothing"),
    pytest.param({"XPC_SERVICE_NAME": "0"}, None, id="noise"),
    pytest.param({"XPC_SERVICE_NAME": "0", "INVOCATION_ID": "a"}, "INVOCATION_ID", id="both"),
    pytest.param({"HERMES_WEBUI_FOREGROUND": "0", "NOTIFY_SOCKET": "/x"}, "NOTIFY_SOCKET", id="no"),
    pytest.param({"HERMES_WEBUI_FOREGROUND": " On ", "NOTIFY_SOCKET": "/x"},
                 "HERMES_WEBUI_FOREGROUND", id="yes comes first"),
    pytest.param({name: "x" for name in MARKERS}, "INVOCATION_ID", id="the first of all"),
])
def test_the_marker_that_speaks(bootstrap, monkeypatch, environ, found):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert bootstrap._detect_supervisor() == found


@pytest.mark.parametrize("arguments, name", [
    (["/bin/bash", "start.sh"], "bash"), (["-bash"], "bash"), (["runsv", "simple"], "runsv"),
    (["/usr/bin/s6-supervise", "x"], "s6-supervise"),
    (["/usr/bin/python3", "/usr/bin/supervisord", "-c", "x"], "supervisord"),
    (["python3.11", "-m", "supervisor.supervisord"], "supervisord"),
    (["python", "-I", "-W", "ignore", "-m", "honcho", "start"], "honcho"),
    (["python3", "-X", "dev", "/venv/bin/circusd", "c.ini"], "circusd"),
    (["python3", "-Im", "circus.circusd"], "circusd"),
    (["python3", "-c", "import runsv", "runsv"], "python3"), (["python3"], "python3"),
    (["pypy3", "/x/honcho"], "honcho"),
    (["PM2 v7.0.4: God Daemon (/home/me/.pm2)"], "PM2"), ([""], ""),
])
def test_a_process_is_called_after_its_program(bootstrap, arguments, name):
    assert bootstrap.program_name(arguments) == name


def facts(bootstrap, chain="bash:900 sshd:800 systemd:1", **seen):
    """Facts with ancestors given as name:pid words, the nearest first."""
    ancestors = tuple(
        bootstrap.Process(int(pid), 0, 0, "0", "S", name)
        for name, pid in (word.rsplit(":", 1) for word in chain.split()))
    known = dict(
        pid=US, parent=ancestors[0].pid if ancestors else 0, chain=ancestors,
        at_init=bool(ancestors) and ancestors[-1].pid == 1, exec_pid=None, journal=False,
        marker=None, terminal=False, leader=False, scan=None,
        watcher=next((p.name for p in ancestors if not bootstrap.waits(p)), ""))
    return bootstrap.Facts(**dict(known, **seen))


TERMINAL = dict(terminal=True, leader=True)
FOREGROUND, DETACHED = "foreground", "detached"


@pytest.mark.parametrize("chain, seen, mode, supervisor, hearsay", [
    pytest.param("", dict(pid=1, terminal=True), FOREGROUND, "the container engine", None, id="pid 1"),
    pytest.param("tini:1", {}, FOREGROUND, "the container engine", None, id="container init"),
    pytest.param("sh:7 tini:1", {}, FOREGROUND, "the container engine", None, id="shell under it"),
    pytest.param("sh:1", {}, FOREGROUND, "the container engine", None, id="shell form"),
    pytest.param("runuser:7 sh:1", {}, FOREGROUND, "the container engine", None, id="runuser"),
    pytest.param("bash:1", TERMINAL, DETACHED, None, None, id="docker run -it bash"),
    pytest.param("python3:7 tini:1", {}, DETACHED, None, None, id="a program between"),
    pytest.param("bash:7", {}, DETACHED, None, None, id="docker exec"),
    pytest.param("bash:7", dict(marker="INVOCATION_ID"), DETACHED, None, None, id="exec, marked"),
    pytest.param("runsv:7 runsvdir:6 systemd:1", {}, FOREGROUND, "runit", None, id="runit"),
    pytest.param("s6-supervise:7 s6-svscan:1", {}, FOREGROUND, "s6", None, id="s6"),
    pytest.param("supervise:7 svscan:1", {}, FOREGROUND, "daemontools", None, id="daemontools"),
    pytest.param("sh:8 supervisord:7 systemd:1", {}, FOREGROUND, "supervisord", None, id="supervisord"),
    pytest.param("circusd:7 systemd:1", {}, FOREGROUND, "circus", None, id="circus"),
    pytest.param("sh:8 honcho:7 bash:6 sshd:5 systemd:1", {}, FOREGROUND, "honcho", None, id="honcho"),
    pytest.param("PM2:7 systemd:1", {}, FOREGROUND, "PM2", None, id="PM2"),
    pytest.param("supervise-daemon:7 init:1", {}, FOREGROUND, "OpenRC", None, id="OpenRC"),
    pytest.param("runuser:8 runsv:7 systemd:1", {}, FOREGROUND, "runit", None, id="runuser in runit"),
    pytest.param("bash:9 ttyd:8 supervisord:7 systemd:1", dict(marker="SUPERVISOR_ENABLED", **TERMINAL),
                 DETACHED, None, "SUPERVISOR_ENABLED", id="a web shell under supervisord"),
    pytest.param("monit:7 systemd:1", dict(marker="INVOCATION_ID"), DETACHED, None, None, id="monit"),
    pytest.param("cron:7 systemd:1", {}, DETACHED, None, None, id="cron"),
    pytest.param("systemd:1", dict(exec_pid=US, marker="INVOCATION_ID"), FOREGROUND, "systemd", None,
                 id="a service"),
    pytest.param("systemd:1", dict(exec_pid=US, marker="INVOCATION_ID", **TERMINAL), FOREGROUND,
                 "systemd", None, id="systemd-run --pty"),
    pytest.param("sh:900 systemd:1", dict(exec_pid=900), FOREGROUND, "systemd", None, id="sh -c"),
    pytest.param("sh:901 runuser:900 systemd:1", dict(exec_pid=900), FOREGROUND, "systemd", None,
                 id="runuser -u in a unit"),
    pytest.param("bash:900 systemd:1", dict(exec_pid=900, **TERMINAL), DETACHED, None,
                 "SYSTEMD_EXEC_PID", id="systemd-run --pty bash, and a person"),
    pytest.param("sh:900 systemd:1", dict(exec_pid=900, terminal=True), FOREGROUND, "systemd", None,
                 id="systemd-run --pty sh -c"),
    pytest.param("bash:901 runner:900 systemd:1", dict(exec_pid=900, journal=True,
                 marker="INVOCATION_ID"), DETACHED, None, "SYSTEMD_EXEC_PID", id="a CI job"),
    pytest.param("bash:901 tmux:55 systemd:1", dict(exec_pid=54, **TERMINAL), DETACHED, None,
                 "SYSTEMD_EXEC_PID", id="tmux"),
    pytest.param("systemd:1", dict(journal=True, marker="INVOCATION_ID"), FOREGROUND, "systemd", None,
                 id="a systemd before 248"),
    pytest.param("bash:9 sshd:8 systemd:1", dict(marker="NOTIFY_SOCKET", **TERMINAL), DETACHED, None,
                 "NOTIFY_SOCKET", id="a leaked marker at a terminal"),
    pytest.param("bash:9 sshd:8 systemd:1", dict(marker="NOTIFY_SOCKET"), FOREGROUND, None, None,
                 id="a marker without a terminal"),
    pytest.param("", dict(parent=1, at_init=None, marker="XPC_SERVICE_NAME"), FOREGROUND, "launchd",
                 None, id="launchd"),
    pytest.param("", dict(parent=77, at_init=None, marker="XPC_SERVICE_NAME", **TERMINAL), DETACHED,
                 None, "XPC_SERVICE_NAME", id="an inherited label"),
    pytest.param("bash:9 sshd:8 systemd:1", TERMINAL, DETACHED, None, None, id="a person"),
    pytest.param("bash:9 sshd:8 systemd:1", {}, DETACHED, None, None, id="a script"),
])
def test_the_first_piece_of_evidence_decides(bootstrap, chain, seen, mode, supervisor, hearsay):
    verdict = bootstrap.judge(facts(bootstrap, chain, **seen))
    assert (verdict.mode, verdict.supervisor, verdict.hearsay) == (mode, supervisor, hearsay)


def test_every_supervisor_has_its_commands(bootstrap):
    named = set(bootstrap.PARENTS.values()) | {name for _, name in bootstrap.MARKERS}
    for supervisor in named | {bootstrap.ENGINE}:
        tracking = bootstrap.tracking_fields(supervisor)
        assert tracking["stop_command"] != tracking["restart_command"]
        assert "{" not in tracking["stop_command"]


RECORD = {"pid": 7, "url": "http://127.0.0.1:1/", "stop_command": ""}


@pytest.mark.parametrize("mode, running, refused, plan", [
    (DETACHED, None, False, DETACHED), (FOREGROUND, None, False, FOREGROUND),
    (DETACHED, RECORD, False, "leave alone"), (FOREGROUND, RECORD, False, "refuse"),
    (DETACHED, None, True, "refuse"), (FOREGROUND, None, True, "refuse"),
])
def test_a_plan_follows_from_verdict_instance_and_port(bootstrap, mode, running, refused, plan):
    error = bootstrap.LaunchError(69, "taken", "end it") if refused else None
    verdict = bootstrap.Verdict(mode, "because", None, None)
    assert bootstrap.plan_start(verdict, running, error).mode == plan
