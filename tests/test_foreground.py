"""A foreground start: the launcher becomes the server, for whoever watches its pid."""
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import servers
from harness import AS_ANYBODY, PYTHON, is_alive, refused, until

ECHO = servers.small("note()", "print('served', flush=True)")


def is_possible(*command):
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
needs_namespaces = pytest.mark.skipif(
    not shutil.which("unshare") or not is_possible(*NAMESPACE, "true"),
    reason="no PID namespaces for this user")


def test_foreground_server_keeps_the_launchers_pid(app):
    """A supervisor watches one pid; it must be the server's."""
    process = app("import os; print(os.getpid())", "--foreground")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "{}\n".format(process.pid)), err


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_from_start_sh_to_the_server_there_is_one_process_with_one_pid(project, shell):
    if not shutil.which(shell):
        pytest.skip(shell + " is not installed")
    process = project.launch("--foreground", by=(shell, project.repo / "start.sh"))
    until(project.answers, "the server answers")
    command = Path("/proc/{}/cmdline".format(process.pid)).read_bytes().split(b"\0")
    assert os.path.basename(command[0]).startswith(b"python")
    assert command[1:] == [os.fsencode(str(project.repo / "server.py")), b""]
    assert list(project.processes()) == [process.pid]
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - began < 3
    assert project.is_free() and project.is_gone()


def test_standard_streams_are_the_launchers_own(app):
    result = app.result(app("import sys; print(sys.stdin.read() + ' out'); "
                            "print('err', file=sys.stderr)", "--foreground", stdin=subprocess.DEVNULL))
    assert (result.code, result.out) == (0, " out\n")
    assert result.err.endswith("err\n")


def test_the_exit_code_is_the_servers(app):
    assert app("raise SystemExit(41)", "--foreground").wait(timeout=30) == 41


def test_folder_and_settings_are_the_servers(app):
    agent = app.home / ".hermes" / "hermes-agent"
    agent.mkdir(parents=True)
    (agent / "run_agent.py").write_text("")
    assert app(ECHO, "--foreground", env={"PWD": "/"}).wait(timeout=30) == 0
    server = app.started()
    wanted = {"HOST": "127.0.0.1", "PORT": str(app.port), "STATE_DIR": str(app.state),
              "AGENT_DIR": str(agent)}
    assert {name: server["environ"]["HERMES_WEBUI_" + name] for name in wanted} == wanted
    assert server["cwd"] == str(agent)
    assert server["argv"] == [str(app.repo / "server.py")]


@pytest.mark.parametrize("name, value", [
    ("NOTIFY_SOCKET", "/run/systemd/notify"), ("WATCHDOG_USEC", "2000000"), ("LISTEN_FDS", "1"),
    ("INVOCATION_ID", "e5b0a3b9"), ("SUPERVISOR_ENABLED", "1")])
def test_what_a_supervisor_says_passes_through(app, name, value):
    assert app(ECHO, "--foreground", env={name: value}).wait(timeout=30) == 0
    assert app.started()["environ"][name] == value


def test_sockets_passed_by_a_supervisor_reach_the_server_and_no_port_is_checked(app):
    """Socket activation: the supervisor itself holds the port, as file descriptor 3."""
    with socket.create_server(("127.0.0.1", app.port)) as listener:
        source = servers.small(
            "note()", "passed = socket.socket(fileno=3)", "print(passed.getsockname()[1], flush=True)")
        app.serve(source)
        script = 'exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'.format(listener.fileno())
        result = app.run("--foreground", under=("bash", "-c", script, "sh"),
                         pass_fds=(listener.fileno(),))
    assert (result.code, result.out) == (0, "{}\n".format(app.port)), result.err


def test_sockets_passed_to_another_process_do_not_skip_the_check(app):
    with socket.create_server(("127.0.0.1", app.port)):
        result = app.run("--foreground", env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    refused(result, 69, app.port)


def test_no_signal_is_ignored_that_the_launcher_was_not_told_to_ignore(app):
    """Python ignores SIGPIPE and SIGXFSZ for itself, and what is ignored stays so across exec."""
    app.configure(command="grep SigIgn /proc/self/status")
    result = app.run("--foreground")
    assert (result.code, int(result.out.split()[1], 16)) == (0, 0), result.err


# -- guards ------------------------------------------------------------------------------------


def no_x_bit(path):
    path.write_text("#!/bin/sh\n")


def folder(path):
    path.mkdir()


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


def no_interpreter(path):
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)


def not_a_program(path):
    path.write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 57)
    path.chmod(0o755)


@pytest.mark.parametrize("mode", ["--foreground", "--detach"])
@pytest.mark.parametrize("make, code", [
    pytest.param(lambda path: None, 127, id="missing"),
    pytest.param(no_x_bit, 126, id="no permission to execute"),
    pytest.param(folder, 126, id="a folder"),
    pytest.param(dangling, 126, id="a dangling link"),
    pytest.param(no_interpreter, 126, id="a bad interpreter line"),
    pytest.param(not_a_program, 126, id="another architecture"),
])
def test_an_interpreter_that_cannot_run_is_refused(app, make, code, mode):
    path = app.folder / "the python"
    make(path)
    result = app.run(mode, env={"HERMES_WEBUI_PYTHON": path})
    refused(result, code, path, "not executable", "HERMES_WEBUI_PYTHON")
    assert app.is_gone()


def test_the_chosen_interpreter_is_not_second_guessed(app):
    wrapper = app.folder / "my python"
    wrapper.write_text('#!/bin/sh\necho chosen >&2\nexec "{}" "$@"\n'.format(PYTHON))
    wrapper.chmod(0o755)
    result = app.result(app(ECHO, "--foreground", env={"HERMES_WEBUI_PYTHON": wrapper}))
    assert result.code == 0 and "chosen\n" in result.err


def test_a_foreground_start_that_cannot_serve_never_ends_with_0(app):
    with socket.create_server(("127.0.0.1", app.port)):
        refused(app.run("--foreground"), 69, app.port, "pid {}".format(os.getpid()))


@pytest.mark.parametrize("first", [pytest.param("--detach", id="detached"),
                                   pytest.param("--foreground", id="foreground")])
def test_a_running_instance_is_named_and_left_alone(app, first):
    app.launch(first)
    until(app.answers, "the server answers")
    pid = app.pid()
    until(lambda: app.run("--status").code == 0, "the first start is done")
    refused(app.run("--foreground"), 69, pid, "--stop")
    assert app.answers() and app.pid() == pid


@pytest.mark.parametrize("first", [pytest.param("--detach", id="detached"),
                                   pytest.param("--foreground", id="foreground")])
def test_replace_ends_a_running_instance_first(app, first):
    app.launch(first)
    until(app.answers, "the server answers")
    pid = app.pid()
    process = app.launch("--foreground", "--replace")
    until(lambda: app.pid() == process.pid and app.answers(), "the new server answers")
    assert not is_alive(pid) and list(app.processes()) == [process.pid]


def test_replace_leaves_an_instance_alone_that_a_supervisor_tracks(app):
    process = supervised(app, "runsv")
    until(app.answers, "the server answers")
    refused(app.run("--foreground", "--replace"), 69, app.pid(), "sv down")
    assert app.answers() and process.poll() is None


def test_sigterm_before_the_server_is_there_ends_the_launcher(app):
    """The start waits for a lock here; a supervisor that stops the service waits for nothing."""
    slow = app(servers.SILENT, "--timeout", "30")
    app.started()
    waiting = app.launch("--foreground")
    until(lambda: "bootstrap-{}.lock".format(app.port) in str(open_files(waiting.pid)), "it waits")
    waiting.terminate()
    assert waiting.wait(timeout=10) in (143, -signal.SIGTERM)
    assert slow.poll() is None


def open_files(pid):
    folder = Path("/proc", str(pid), "fd")
    try:
        return [os.readlink(str(fd)) for fd in folder.iterdir()]
    except OSError:
        return []


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv")
def test_a_read_only_state_folder_costs_one_warning(app):
    app.state.mkdir(parents=True, mode=0o500)
    process = app.launch("--foreground", under=AS_ANYBODY)
    until(app.answers, "the server answers")
    process.terminate()
    result = app.result(process)
    assert result.err.count("\n") == 1 and str(app.state) in result.err, result.err
    assert list(app.state.iterdir()) == []


# -- who is watching ---------------------------------------------------------------------------


def supervised(app, name, *words, **options):
    """Launch as the child of a program of that name, which waits for it."""
    script = 'exec -a "$0" timeout 60 "$@"'
    return app.launch(*words, under=("bash", "-c", script, name), **options)


def plan_under(app, name, *words, under=(), **options):
    script = 'exec -a "$0" timeout 60 "$@"'
    return app.plan(*words, under=("bash", "-c", script, name, *under), **options)


@pytest.mark.parametrize("name", [
    "runsv", "s6-supervise", "supervise", "supervise-daemon", "supervisord", "circusd", "honcho",
    "/usr/sbin/runsv", "PM2 v7.0.4: God Daemon (/home/me/.pm2)"])
def test_a_supervisors_child_becomes_the_server(app, name):
    plan = plan_under(app, name)
    assert plan["mode"] == "foreground"


@pytest.mark.parametrize("wrapper", [
    pytest.param(("sh", "-c", '"$@"; exit $?', "sh"), id="a shell"),
    pytest.param(("timeout", "60"), id="timeout"),
    pytest.param(("sh", "-c", '"$@"; exit $?', "sh", "timeout", "60"), id="both"),
])
def test_shells_and_wrappers_between_a_supervisor_and_its_child_do_not_count(app, wrapper):
    assert plan_under(app, "runsv", under=wrapper)["mode"] == "foreground"


def test_a_supervisor_that_is_a_python_script_is_known_by_the_scripts_name(app):
    script = app.folder / "supervisord"
    script.write_text("import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")
    assert app.plan(under=(PYTHON, script))["mode"] == "foreground"


def test_another_program_between_a_supervisor_and_us_means_detached(app):
    assert plan_under(app, "runsv", under=("xargs", "-a", "/dev/null"))["mode"] == "detached"


def test_monit_wants_a_daemon(app):
    plan = plan_under(app, "monit", env={"INVOCATION_ID": "e5b0a3b9"})
    assert plan["mode"] == "detached" and "monit" in plan["why"]


@pytest.mark.parametrize("script, mode", [
    pytest.param('SYSTEMD_EXEC_PID=$$ exec "$@"', "foreground", id="our own pid"),
    pytest.param('SYSTEMD_EXEC_PID=$$ "$@"; exit $?', "foreground", id="the shell that waits for us"),
    pytest.param('SYSTEMD_EXEC_PID=1 exec "$@"', "detached", id="somebody else's pid"),
    pytest.param('SYSTEMD_EXEC_PID=1 INVOCATION_ID=1 exec "$@"', "detached", id="inherited"),
    pytest.param('SYSTEMD_EXEC_PID=$$ xargs -a /dev/null "$@"', "detached", id="a program between"),
    pytest.param('SYSTEMD_EXEC_PID=x exec "$@"', "detached", id="no number"),
])
def test_systemd_exec_pid_counts_when_it_is_ours(app, script, mode):
    assert app.plan(under=("sh", "-c", script, "sh"))["mode"] == mode


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_journal_stream_counts_when_it_names_our_output(app, stream):
    """A file plays the journal's socket: what counts is device and inode."""
    with open(str(app.folder / "journal"), "wb") as journal:
        status = os.fstat(journal.fileno())
        env = {"JOURNAL_STREAM": "{}:{}".format(status.st_dev, status.st_ino)}
        process = app.launch(env=env, **{stream: journal})
    until(app.answers, "the server answers")
    assert app.pid() == process.pid
    refused(app.run("--stop"), 1, "systemd", "systemctl")


def test_journal_stream_that_names_another_stream_proves_nobody(app):
    process = app.launch(env={"JOURNAL_STREAM": "9:34565"})
    until(app.answers, "the server answers")
    assert app.pid() == process.pid
    assert app.run("--stop").code == 0


@pytest.mark.parametrize("name, value, mode", [
    ("INVOCATION_ID", "e5b0a3b9", "foreground"), ("JOURNAL_STREAM", "deadbeef", "foreground"),
    ("NOTIFY_SOCKET", "/run/x", "foreground"), ("SUPERVISOR_ENABLED", "1", "foreground"),
    ("XPC_SERVICE_NAME", "com.example.hermes-webui", "foreground"),
    ("XPC_SERVICE_NAME", "0", "detached"), ("XPC_SERVICE_NAME", "application.x.1", "detached"),
    ("INVOCATION_ID", "", "detached")])
def test_a_marker_variable_alone_and_no_terminal(app, name, value, mode):
    assert app.plan(env={name: value})["mode"] == mode


def test_a_marker_variable_never_outranks_detach(app):
    assert app.plan("--detach", env={"INVOCATION_ID": "e5b0a3b9"})["mode"] == "detached"


def test_a_variable_that_is_not_believed_is_named_with_the_way_to_insist(app):
    result = app.run(env={"SYSTEMD_EXEC_PID": "1", "INVOCATION_ID": "e5b0a3b9"})
    assert (result.code, result.out) == (0, app.url + "\n")
    hints = [line for line in result.err.splitlines() if "SYSTEMD_EXEC_PID" in line]
    assert len(hints) == 1 and "--foreground" in hints[0]


@needs_namespaces
@pytest.mark.parametrize("under, mode", [
    pytest.param((), "foreground", id="pid 1"),
    pytest.param(("bash", "-c", '"$@"; exit $?', "sh"), "foreground", id="a shell that is pid 1"),
    pytest.param(("bash", "-c", 'exec -a tini bash -c \'"$@"; exit $?\' sh "$@"', "sh"), "foreground",
                 id="tini"),
    pytest.param(("xargs", "-a", "/dev/null"), "detached", id="another program that is pid 1"),
])
def test_in_a_container_the_child_of_its_init_becomes_the_server(app, under, mode):
    assert app.plan(under=NAMESPACE + under)["mode"] == mode
