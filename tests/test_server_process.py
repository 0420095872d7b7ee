"""server.py as a process: signals, streams, and what it tells a supervisor."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from server_support import (  # noqa: F401
    SERVER, Events, free_port, read_all, start, statuses, until)

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SLOW = ("import server, time\n"
        "def slow(self, request):\n    time.sleep(1)\n    return server.reply(200, 'done')\n"
        "server.ROUTES['/metrics'] = slow; server.main()")
STUCK = ("import server, threading\n"
         "server.ROUTES['/metrics'] = lambda *_: threading.Event().wait(); server.main()")
WEDGED = ("import server, signal, threading\n"
          "def wedge(*_):\n    server.log('wedged')\n    threading.Event().wait()\n"
          "signal.signal(signal.SIGUSR1, wedge); server.main()")


@pytest.fixture
def manager(tmp_path):
    """A service manager's notification socket, as sd_notify(3) wants it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock, str(tmp_path / "notify")


def wedge(server):
    """Have the accept loop stand still."""
    server.process.send_signal(signal.SIGUSR1)
    until(lambda: "wedged" in server.output())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_within_a_second(start, signum):
    server = start()
    started = time.monotonic()
    server.process.send_signal(signum)
    assert server.process.wait(20) == 0
    assert time.monotonic() - started < 1


def test_idle_connections_do_not_hold_it_up(start):
    server = start()
    with server.connect() as fresh, server.connect() as partial, server.connect() as kept:
        partial.sendall(b"GET /he")
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(65536)
        assert server.stop() == 0
        assert fresh.recv(1) == b""


def test_running_requests_are_answered_before_it_ends(start):
    server = start(code=SLOW)
    with server.connect() as sock:
        sock.sendall(GET % b"/metrics")
        until(lambda: server.json("/health")["accept_loop"]["requests_total"] > 2)
        server.process.send_signal(signal.SIGTERM)
        assert read_all(sock).endswith(b"\r\n\r\ndone\n")
    assert server.process.wait(20) == 0


def test_a_request_that_was_sent_before_the_signal_is_answered(start):
    server = start()
    with server.connect() as sock:
        sock.sendall(GET % b"/")
        server.process.send_signal(signal.SIGTERM)
        assert statuses(read_all(sock)) == [200]
    assert server.process.wait(20) == 0


def test_the_port_is_closed_while_requests_end(start):
    server = start(code=SLOW)
    with server.connect() as sock:
        sock.sendall(GET % b"/metrics")
        until(lambda: server.json("/health")["accept_loop"]["requests_total"] > 2)
        server.process.send_signal(signal.SIGTERM)

        def refused():
            with contextlib.suppress(ConnectionRefusedError):
                server.connect().close()
                return False
            return True
        until(refused)
        assert statuses(read_all(sock)) == [200]


def test_a_request_that_never_ends_is_left_behind_after_the_grace(start):
    server = start(code="import server; server.STOP_SECONDS = 0.5\n" + STUCK)
    with server.connect() as sock:
        sock.sendall(GET % b"/metrics")
        until(lambda: server.json("/health")["accept_loop"]["requests_total"] > 2)
        assert server.stop() == 0


def test_a_second_signal_ends_it_at_once(start):
    server = start(code=STUCK)
    with server.connect() as sock:
        sock.sendall(GET % b"/metrics")
        until(lambda: server.json("/health")["accept_loop"]["requests_total"] > 2)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionRefusedError):
            until(lambda: server.connect().close(), seconds=5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 2


def test_a_restart_gets_the_port_again_at_once(start):
    server = start()
    for _ in range(5):
        server.get("/")
        assert server.stop() == 0
        server = start(port=server.port)


def test_events_tell_how_the_server_is_and_streams_are_counted(start):
    server = start()
    first, second = Events(server), Events(server)
    assert first.status()["status"] == "ok"
    until(lambda: server.json("/health")["active_streams"] == 2)
    report = second.status()
    assert report["probe_ms"] > 0 and set(report["checks"]) >= {"disk", "state_db"}
    assert first.read_until(b": beat\n\n") is not None


def test_the_launchers_record_tells_who_watches_it_unless_it_is_anothers(start):
    server = start()
    stream, record = Events(server), server.state / ("bootstrap-%d.record" % server.port)
    parent = stream.status()["tracked_by"]
    server.state.mkdir()
    for pid, supervisor, told in [(server.process.pid, "systemd", "systemd"), (1, "runit", parent),
                                  (server.process.pid, "", "nobody"), ("", "s6", parent)]:
        fresh = record.with_suffix(".new")
        fresh.write_text("pid=%s\nsupervisor=%s\n" % (pid, supervisor))
        fresh.replace(record)
        until(lambda: Events(server).status()["tracked_by"] == told)


def test_a_pipe_in_the_place_of_the_record_holds_nobody_up(start):
    server = start()
    server.state.mkdir()
    os.mkfifo(str(server.state / ("bootstrap-%d.record" % server.port)))
    assert Events(server).status()["tracked_by"]


def test_a_vanished_listener_is_noticed_within_a_heartbeat(start):
    server = start()
    staying, leaving = Events(server), Events(server)
    until(lambda: server.json("/health")["active_streams"] == 2)
    leaving.sock.close()
    until(lambda: server.json("/health")["active_streams"] == 1, seconds=3)
    staying.status()


def test_a_listener_that_takes_nothing_is_dropped(start):
    server = start(code="import server; server.BEAT_SECONDS = 0.01\n"
                   "big = 'x' * (1 << 20)\n"
                   "server.Server.snapshot = lambda self: {'big': big}; server.main()")
    Events(server)
    until(lambda: server.json("/health")["active_streams"] == 0)


def test_streams_are_bounded(start):
    server = start(code="import server; server.MAX_STREAMS = 2; server.main()")
    streams = [Events(server), Events(server)]
    assert server.get("/api/events")[0] == 503
    del streams


def test_streams_end_with_the_server(start):
    server = start()
    stream = Events(server)
    stream.status()
    assert server.stop() == 0
    with contextlib.suppress(ConnectionError):
        while stream.sock.recv(65536):
            pass


def test_a_service_manager_hears_ready_and_stopping(start, manager):
    sock, path = manager
    server = start(wait=False, NOTIFY_SOCKET=path)
    assert sock.recv(4096).startswith(b"READY=1\n")
    assert server.get("/health")[0] == 200
    assert server.stop() == 0
    assert sock.recv(4096).startswith(b"STOPPING=1\n")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_notification_socket_works(start):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0server-test-%d" % os.getpid())
        sock.settimeout(20)
        start(wait=False, NOTIFY_SOCKET="@server-test-%d" % os.getpid())
        assert sock.recv(4096).startswith(b"READY=1\n")


def test_a_manager_that_is_gone_is_no_trouble(start, tmp_path):
    assert start(NOTIFY_SOCKET=str(tmp_path / "gone")).stop() == 0


def test_the_watchdog_is_fed_while_requests_are_answered_and_starves_when_not(start, manager):
    sock, path = manager
    server = start(code=WEDGED, NOTIFY_SOCKET=path, WATCHDOG_USEC="400000")
    assert sock.recv(4096).startswith(b"READY=1")
    for _ in range(3):
        assert sock.recv(4096).startswith(b"WATCHDOG=1\n")
    assert server.json("/health")["accept_loop"]["requests_total"] >= 3
    wedge(server)
    sock.settimeout(2)
    with pytest.raises(socket.timeout):
        while True:
            sock.recv(4096)


def test_a_watchdog_of_another_process_is_not_fed(start, manager):
    sock, path = manager
    start(NOTIFY_SOCKET=path, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    assert sock.recv(4096).startswith(b"READY=1")
    sock.settimeout(0.5)
    with pytest.raises(socket.timeout):
        sock.recv(4096)


def test_listeners_hear_that_the_accept_loop_is_wedged(start):
    server = start(code="import server; server.BEAT_SECONDS = 0.3\n" + WEDGED)
    stream = Events(server)
    assert stream.status()["probe_ms"] is not None
    wedge(server)
    until(lambda: stream.status()["probe_ms"] is None)


def test_a_wedged_server_ends_at_the_second_signal(start):
    server = start(code=WEDGED)
    wedge(server)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.5)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 128 + signal.SIGTERM


def activated(listener, folder, *command):
    """A server with a listening socket at fd 3, LISTEN_PID set to its own pid by a shell."""
    def plumb():
        os.dup2(listener.fileno(), 3)
    log = open(str(folder / "log"), "ab")
    with log:
        return subprocess.Popen(
            ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"', sys.executable,
             *(command or [str(SERVER)])], cwd=str(SERVER.parent), pass_fds=(3,),
            env={"PATH": os.environ["PATH"], "HOME": str(folder)}, preexec_fn=plumb,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def test_a_restart_under_socket_activation_loses_no_request(tmp_path):
    answers, over = [], threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(128)
        address = listener.getsockname()

        def ask():
            while not over.is_set():
                with socket.create_connection(address, 20) as sock:
                    sock.sendall(GET % b"/health")
                    answers.append(statuses(read_all(sock)))
        asking = threading.Thread(target=ask)
        server = activated(listener, tmp_path)
        asking.start()
        try:
            for _ in range(20):
                count = len(answers)
                until(lambda: len(answers) > count + 3)
                server.send_signal(signal.SIGTERM)
                assert server.wait(20) == 0
                server = activated(listener, tmp_path)
        finally:
            count = len(answers)
            until(lambda: len(answers) > count)
            over.set()
            asking.join(20)
            server.kill()
            server.wait()
    assert set(map(tuple, answers)) == {(200,)}


def test_who_waits_at_a_passed_socket_when_the_server_ends_is_served_by_the_next(tmp_path):
    busy = ("import server, time\ndef work(*_):\n    open(%r, 'w').close()\n    time.sleep(1)\n"
            "    return server.reply(200, 'done')\n"
            "server.ROUTES['/busy'] = work; server.main()" % str(tmp_path / "busy"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(128)
        first = activated(listener, tmp_path, "-c", busy)
        second = None
        try:
            with socket.create_connection(listener.getsockname(), 20) as held:
                held.sendall(GET % b"/health")
                assert statuses(read_all(held)) == [200]
            with socket.create_connection(listener.getsockname(), 20) as held:
                held.sendall(GET % b"/busy")
                until((tmp_path / "busy").exists)
                with socket.create_connection(listener.getsockname(), 20) as waiting:
                    first.send_signal(signal.SIGTERM)
                    assert statuses(read_all(held)) == [200] and first.wait(20) == 0
                    second = activated(listener, tmp_path)
                    waiting.sendall(GET % b"/health")
                    assert statuses(read_all(waiting)) == [200]
        finally:
            for process in filter(None, (first, second)):
                process.kill()
                process.wait()


def test_sockets_for_another_process_are_not_taken(start):
    server = start(LISTEN_FDS="1", LISTEN_PID="1")
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1, 2)])
def test_closed_standard_streams_are_no_trouble(start, closed):
    def close():
        for fd in closed:
            os.close(fd)
    server = start(preexec=close)
    assert server.get("/")[0] == 200 and server.get("/health?deep=1")[0] == 200
    assert server.stop() == 0


def test_importing_it_does_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import server"], cwd=str(SERVER.parent),
                          env={"HERMES_WEBUI_PORT": "abc"}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=20)
    assert (done.returncode, done.stdout) == (0, b"")
