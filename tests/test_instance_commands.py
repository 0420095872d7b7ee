"""--status, --stop, --restart and --logs, for the instance on a port, however it was launched."""
import os
import shutil
import signal
import subprocess
import time

import pytest

import servers
from harness import AS_ANYBODY, get, is_alive, refused, until


def foreground(app, *words, **options):
    """Launch in the foreground and wait for the answer."""
    process = app.launch("--foreground", *words, **options)
    until(app.answers, "the server answers")
    return process


def tracked(app, supervisor="runsv"):
    """Launch as the child of a program of that name, which waits for it."""
    return foreground(app, under=("bash", "-c", 'exec -a "$0" timeout 60 "$@"', supervisor))


def forge(app, old, new):
    """Make the record speak of another process, as if its pid had been recycled."""
    record = app.file("record")
    text = record.read_text()
    assert str(old) in text
    record.write_text(text.replace(str(old), str(new)))


# -- status ------------------------------------------------------------------------------------


def test_status_of_nothing_is_3(app):
    status = app.status()
    assert (status["code"], status["state"], status["pid"]) == (3, "not running", None)
    assert status["healthy"] is False and status["listeners"] == []
    assert app.run("--status").code == 3
    assert not app.state.exists(), "a question leaves nothing behind"


WAYS = pytest.mark.parametrize("start", [
    pytest.param(lambda app: app.start(), id="detached"), pytest.param(foreground, id="foreground")])


@WAYS
def test_status_of_a_healthy_instance_is_0_and_has_nothing_to_advise(app, start):
    start(app)
    status = app.status()
    assert (status["code"], status["state"], status["pid"]) == (0, "running", app.pid())
    assert status["url"] == app.url and status["healthy"] is True
    assert len(status["listeners"]) == 1 and str(app.pid()) in str(status["listeners"])
    assert not status["verdict"] and not status["remedy"]
    text = app.run("--status")
    assert text.code == 0 and str(app.pid()) in text.out and app.url in text.out


@pytest.mark.parametrize("name", ["a=b", "a\\nb", "a\nb", "\u00fc'\"", os.fsdecode(b"\xff")],
                         ids=ascii)
def test_an_instance_is_found_again_in_a_folder_of_any_name(app, name):
    folder = str(app.folder / name)
    app.run("--detach", env={"HERMES_WEBUI_STATE_DIR": folder})
    status = app.status(env={"HERMES_WEBUI_STATE_DIR": folder})
    assert (status["pid"], status["state"]) == (app.pid(), "running")
    assert status["log"] == os.path.join(folder, "bootstrap-%d.log" % app.port)
    assert app.run("--stop", env={"HERMES_WEBUI_STATE_DIR": folder}).code == 0
    assert app.is_gone() and os.listdir(folder) and not [
        name for name in os.listdir(folder) if name.endswith(".record")]


def test_status_says_whose_child_the_instance_is(app):
    process = foreground(app)
    assert str(os.getpid()) in str(app.status())
    assert str(process.pid) in app.run("--status").out


def test_status_says_who_tracks_the_instance(app):
    tracked(app)
    assert "runit" in str(app.status()) and "runit" in app.run("--status").out


def assert_advice(app, code, *words):
    """One verdict and one remedy, which name these words."""
    status = app.status()
    assert status["code"] == code and status["healthy"] is False, status
    assert status["verdict"] and status["remedy"] and "\n" not in status["remedy"], status
    for word in words:
        assert str(word) in status["verdict"] + status["remedy"], status
    return status


def test_status_of_a_killed_instance_tells_of_a_record_without_a_process(app):
    pid = app.start()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the server is dead")
    status = assert_advice(app, 3, pid)
    assert status["state"] == "not running"
    text = app.run("--status")
    assert text.code == 3 and status["verdict"] in text.out and status["remedy"] in text.out


def test_status_of_a_port_that_somebody_else_holds_names_the_holder(app):
    holder = app.foreign(servers.foreign_http(
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"status": "ok"}'))
    status = assert_advice(app, 3, holder.pid)
    assert status["pid"] is None and str(holder.pid) in str(status["listeners"])


def test_status_of_a_server_that_stopped_answering_says_it_is_wedged(app):
    """The state of a server whose threads are stuck: the kernel accepts, nobody answers."""
    pid = app.start()
    os.kill(pid, signal.SIGSTOP)
    status = assert_advice(app, 0, "--restart")
    assert status["pid"] == pid and status["state"] != "running"


def test_status_of_a_server_that_says_it_is_sick_repeats_it(app):
    sick = "os.path.join(here, 'sick')"
    app.serve(servers.small(
        "note()", "answer(listen(), lambda path: [http(b'{\"status\": \"degraded\"}', '503 X') "
        "if os.path.exists(%s) else OK])" % sick))
    app.start()
    app.write("sick", "")
    assert_advice(app, 0, "degraded")


def test_status_of_an_instance_whose_port_went_to_another(app):
    app.serve(servers.small(
        "import signal", "listener = listen()",
        "signal.signal(signal.SIGUSR1, lambda *_: os.dup2(0, listener.fileno()))", "note()",
        "while True:", "    try:", "        serve(listener, OK)", "    except OSError:",
        "        time.sleep(3600)"))
    pid = app.start()
    os.kill(pid, signal.SIGUSR1)
    until(app.is_free, "the server let its port go")
    assert_advice(app, 0, pid)
    holder = app.foreign(servers.foreign_http(b"HTTP/1.1 404 Not Found\r\n\r\n"))
    assert_advice(app, 0, holder.pid)


def test_status_knows_an_orphan_that_makes_its_supervisor_start_in_vain(app):
    """It carries a supervisor's variables, nobody tracks it, and it holds the port."""
    app.serve(servers.small("if os.fork():", "    os._exit(0)", "os.setsid()", "note()",
                            "serve(listen(), OK)"))
    app.launch("--foreground", env={"SUPERVISOR_ENABLED": "1"}).wait(timeout=30)
    until(app.answers, "the orphan answers")
    status = assert_advice(app, 3, app.pid(), "supervisord")
    assert status["state"] == "orphan"


# -- stop --------------------------------------------------------------------------------------


def test_stop_of_nothing_is_0(app):
    result = app.run("--stop")
    assert (result.code, result.out) == (0, "") and "not running" in result.err


@WAYS
def test_stop_ends_the_server_and_says_by_which_signal(app, start):
    start(app)
    result = app.run("--stop")
    assert (result.code, result.out) == (0, "")
    assert "SIGTERM" in result.err and "SIGKILL" not in result.err
    assert app.is_free() and app.is_gone()
    assert app.run("--stop").code == 0


def test_stop_lets_the_server_end_in_its_own_way(app):
    app.serve(servers.small(
        "import signal", "def end(*_):", "    open(os.path.join(here, 'farewell'), 'w').close()",
        "    sys.exit(0)", "signal.signal(signal.SIGTERM, end)", "note()", "serve(listen(), OK)"))
    app.start()
    assert app.run("--stop").code == 0
    assert (app.repo / "farewell").exists()


def test_stop_kills_what_ignores_sigterm_and_says_so(app):
    app.configure(stop_timeout=0.5)
    app.serve(servers.DEAF)
    app.start()
    result = app.run("--stop")
    assert result.code == 0 and "SIGKILL" in result.err
    assert app.is_free() and app.is_gone()


def test_stop_kills_children_that_ignore_sigterm(app):
    app.configure(stop_timeout=0.5)
    app.serve(servers.small(
        "import signal", "if not os.fork():", "    signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "    time.sleep(3600)", "note()", "serve(listen(), OK)"))
    app.start()
    result = app.run("--stop")
    assert result.code == 0 and "SIGKILL" in result.err
    assert app.is_gone()


def test_stop_reaches_a_child_in_a_process_group_of_its_own(app):
    app.serve(servers.small("if not os.fork():", "    os.setpgid(0, 0)", "    time.sleep(3600)",
                            "note()", "serve(listen(), OK)"))
    app.start()
    assert app.run("--stop").code == 0
    assert app.is_gone()


def test_stop_wakes_a_stopped_server_or_kills_it(app):
    app.configure(stop_timeout=0.5)
    os.kill(app.start(), signal.SIGSTOP)
    assert app.run("--stop").code == 0
    assert app.is_gone()


def test_stop_leaves_the_process_group_of_a_foreground_start_alone(app):
    """Its group may be a shell's, with others in it."""
    bystander = subprocess.Popen(["sleep", "60"])
    app.launched.append(bystander)
    foreground(app)
    assert os.getpgid(app.pid()) == os.getpgid(bystander.pid)
    assert app.run("--stop").code == 0
    assert bystander.poll() is None


def test_stop_never_touches_a_recycled_pid(app):
    pid = app.start()
    other = app.foreign(servers.foreign("time.sleep(3600)").replace("int(sys.argv[1])", "0"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the server is dead")
    forge(app, pid, other.pid)
    assert app.status()["code"] == 3
    assert app.run("--stop").code == 0
    assert other.poll() is None
    assert app.start() != pid
    assert other.poll() is None


def test_stop_never_touches_a_process_of_another_boot(app):
    pid = app.start()
    with open("/proc/sys/kernel/random/boot_id") as file:
        forge(app, file.read().strip(), "00000000-0000-0000-0000-000000000000")
    app.run("--stop")
    assert is_alive(pid)


def test_stop_never_touches_a_session_that_got_the_number_of_ours(app):
    """Its leader is gone, as ours is, and it may have been given the same number since."""
    pid = app.start()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the server is dead")
    other = app.stranger("import os, time\nos.setsid()\nleader = os.getpid()\nif os.fork():\n"
                        "    os._exit(0)\nwhile os.getppid() == leader:\n    time.sleep(0.01)\n"
                        "print(os.getpid(), flush=True)\ntime.sleep(60)")
    member = int(other.stdout.readline())
    forge(app, pid, other.pid)
    try:
        assert app.run("--stop").code == 0
        assert is_alive(member)
    finally:
        os.kill(member, signal.SIGKILL)


def test_stop_leaves_a_foreign_holder_of_the_port_alone(app):
    holder = app.foreign(servers.foreign("time.sleep(3600)"))
    assert app.run("--stop").code == 0
    assert holder.poll() is None


def test_stop_of_a_tracked_instance_ends_nothing_and_names_the_supervisors_command(app):
    process = tracked(app)
    refused(app.run("--stop"), 1, app.pid(), "runit", "sv down")
    assert process.poll() is None and app.answers()


def test_an_instance_whose_supervisor_is_gone_can_be_stopped(app):
    supervisor = tracked(app)
    supervisor.kill()
    supervisor.wait()
    assert app.run("--stop").code == 0
    assert app.is_gone()


def test_a_start_during_a_stop_keeps_its_record(app):
    app.configure(stop_timeout=3)
    app.serve(servers.small(
        "import signal", "if not os.path.exists('deaf') and not os.fork():",
        "    open('deaf', 'w').close()", "    signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "    time.sleep(3600)", "note()", "serve(listen(), OK)"))
    app.start()
    stop = app.launch("--stop")
    until(app.is_free, "the first server has ended")
    pid = app.start()
    assert app.result(stop).code == 0
    assert app.status()["pid"] == pid
    assert app.run("--stop").code == 0 and app.is_gone()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a record that is hidden from others")
def test_stop_of_another_users_instance_is_a_failure(app):
    app.start()
    os.chown(str(app.file("record")), 65534, 65534)
    refused(app.run("--stop", under=AS_ANYBODY), 1, app.file("record"))
    assert app.answers()


def test_the_plan_knows_what_would_be_replaced(app):
    app.start()
    assert app.plan("--foreground")["mode"] == "refuse"
    assert app.plan("--foreground", "--replace")["mode"] == "foreground"


def test_two_stops_at_once_both_succeed(app):
    app.start()
    both = [app.launch("--stop"), app.launch("--stop")]
    assert [app.result(process).code for process in both] == [0, 0]
    assert app.is_gone()


# -- restart -----------------------------------------------------------------------------------


def test_restart_puts_a_new_server_on_the_same_port(app):
    pid = app.start()
    result = app.run("--restart")
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert app.pid() != pid and not is_alive(pid)
    assert list(app.processes()) == [app.pid()]


def test_restart_of_nothing_starts(app):
    assert app.run("--restart").out == app.url + "\n"


def test_restart_of_a_tracked_instance_ends_nothing(app):
    process = tracked(app)
    result = app.run("--restart")
    assert result.code == 1 and "sv restart" in result.err
    assert process.poll() is None and app.answers() and len(app.starts()) == 1


# -- logs --------------------------------------------------------------------------------------

CHATTY = servers.small("print(*range(100), sep='\\n', flush=True)", "note()", "listener = listen()",
                       "while True:", "    connection, _ = listener.accept()",
                       "    with connection:", "        connection.recv(65536)",
                       "        connection.sendall(OK)", "        print('asked', flush=True)")


def test_logs_shows_the_last_lines(app):
    app.serve(servers.small("print(*range(100), sep='\\n', flush=True)", "note()",
                            "serve(listen(), OK)"))
    app.start()
    assert app.run("--logs", "-n", "2").out == "98\n99\n"
    assert app.run("--logs", "-n", "0").out == ""
    assert app.run("--logs", "-n", "1000").out.split() == [str(n) for n in range(100)]
    lines = app.run("--logs").out.split()
    assert lines and lines[-1] == "99" and len(lines) < 100


def test_logs_of_a_failed_start_can_still_be_read(app):
    assert app("raise SystemExit('no luck')").wait(timeout=30) == 1
    assert app.run("--logs", "-n", "1").out == "no luck\n"


def test_logs_follows_what_the_server_writes(app):
    app.serve(CHATTY)
    app.start()
    process = app.launch("--logs", "-n", "1", "-f")
    assert process.stdout.readline().strip() in ("99", "asked")
    get(app.url + "one")
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    result = app.result(process)
    assert result.code == 130 and "Traceback" not in result.err


def test_logs_follows_a_log_that_was_set_aside(app):
    app.serve(CHATTY)
    app.start()
    process = app.launch("--logs", "-n", "1", "-f")
    process.stdout.readline()
    shutil.move(str(app.file("log")), str(app.file("log.1")))
    app.file("log").write_text("a new log\n")
    assert until(process.stdout.readline, "the new log is followed").endswith("a new log\n")


def test_logs_follows_until_the_reader_leaves(app):
    app.serve(CHATTY)
    app.start()
    process = app.launch("--logs", "-f")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        get(app.url)
    assert process.poll() is not None
    assert "Traceback" not in process.stderr.read()


def test_logs_of_nothing_is_3(app):
    refused(app.run("--logs"), 3)


def test_logs_of_a_foreground_instance_says_where_they_are(app):
    foreground(app)
    result = app.run("--logs")
    assert result.code == 3 and "foreground" in result.err
