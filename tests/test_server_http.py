"""server.py as an HTTP server: what it says, what it refuses, and what it outlives."""
import contextlib
import email.utils
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from server_support import Events, Running, read_all, start, statuses, until  # noqa: F401

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("server"))
    yield running
    running.end()


def test_health_says_what_the_contract_names(server):
    status, fields, _ = server.get("/health")
    report = server.json("/health")
    assert (status, fields["content-type"], report["status"]) == (200, "application/json", "ok")
    assert report["active_streams"] == 0 and report["uptime_seconds"] >= 0
    assert abs(report["accept_loop"]["last_request_at"] - time.time()) < 60


def test_every_accepted_connection_counts(server):
    before = server.json("/health")["accept_loop"]["requests_total"]
    assert server.json("/health")["accept_loop"]["requests_total"] == before + 1


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_deep_health_runs_every_check_and_times_it(server, word):
    checks = server.json("/health?deep=" + word)["checks"]
    assert set(checks) >= {"stream_lock", "sessions", "projects", "state_db", "file_descriptors",
                           "disk"}
    assert {check["status"] for check in checks.values()} <= {"ok", "missing"}
    assert all(check["ms"] >= 0 for check in checks.values())


@pytest.mark.parametrize("query", ["", "?deep=0", "?deep=", "?deeper=1", "?x=deep=1"])
def test_health_stays_cheap_unless_it_is_asked_for_more(server, query):
    assert "checks" not in server.json("/health" + query)


@pytest.mark.parametrize("path", ["/", "/health", "/health?deep=1", "/metrics", "/api/sessions",
                                  "/api/events", "/nothing"])
def test_head_is_get_without_the_body(server, path):
    answer = server.raw(GET.replace(b"GET", b"HEAD") % path.encode())
    assert answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1


def test_an_http_1_0_probe_gets_a_length_and_a_close(server):
    answer = server.raw(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Connection: close" in head
    assert b"Content-Length: %d\r\n" % len(body) in head


def test_a_connection_serves_many_requests_also_pipelined(server):
    keep = GET.replace(b"close", b"keep-alive") % b"/health"
    assert statuses(server.raw(keep * 20 + GET % b"/metrics")) == [200] * 21


def test_metrics_are_prometheus_text(server):
    status, fields, body = server.get("/metrics")
    assert (status, fields["content-type"]) == (200, "text/plain; version=0.0.4")
    for line in body.decode().splitlines():
        assert re.fullmatch(r'# TYPE \w+ (counter|gauge)|\w+(\{code="\d+"\})? [0-9.e+-]+',
                            line), line
    assert b"\nwebui_connections_accepted_total " in body and b"\nprocess_open_fds " in body


PARSE = """
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = text_string_to_metric_families(sys.stdin.read())
print(json.dumps({family.name: [family.type, [sample[1:3] for sample in family.samples]]
                  for family in families}))
"""


@pytest.mark.once
def test_prometheus_itself_understands_the_metrics(server):
    sys.path.append(os.path.join(os.path.dirname(__file__), "supervisors"))
    from lab import pypi
    server.get("/nothing")
    done = subprocess.run([str(pypi("prometheus_client") / "python"), "-c", PARSE], check=True,
                          input=server.get("/metrics")[2], stdout=subprocess.PIPE)
    families = json.loads(done.stdout.decode())
    assert {name: family[0] for name, family in families.items()} == {
        "webui_connections_accepted": "counter", "webui_connections": "gauge",
        "webui_active_streams": "gauge", "webui_responses": "counter",
        "process_start_time_seconds": "gauge", "process_open_fds": "gauge",
        "process_max_fds": "gauge"}
    assert families["process_open_fds"][1][0][1] > 3
    assert abs(families["process_start_time_seconds"][1][0][1] - time.time()) < 600
    assert dict((labels["code"], value > 0) for labels, value in families["webui_responses"][1])[
        "404"]


def test_every_answer_is_dated(server):
    date = email.utils.parsedate_to_datetime(server.get("/health")[1]["date"])
    assert abs(date.timestamp() - time.time()) < 60


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8787", "[::1]:8787"])
def test_loopback_names_are_served(server, host):
    assert server.get("/health", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "localhost.evil.example",
                                  "127.0.0.1.evil.example", "192.0.2.1", "[::2]", ""])
def test_a_host_that_is_not_ours_is_refused(server, host):
    assert server.get("/health", Host=host)[0] in (400, 403) or host == ""


def test_further_hosts_are_served_once_they_are_allowed(start):
    server = start(HERMES_WEBUI_ALLOWED_HOSTS="box.example, other.example")
    assert [server.get("/", Host=host)[0] for host in ("box.example:99", "other.example",
                                                       "third.example")] == [200, 200, 403]


def test_a_wildcard_server_answers_to_the_address_that_was_called(start):
    server = start(host="0.0.0.0")
    with socket.create_connection(("127.0.0.2", server.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.2\r\nConnection: close\r\n\r\n")
        assert statuses(read_all(sock)) == [200]


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_addresses_are_served(start, host):
    server = start(host=host)
    assert server.get("/health", Host="[::1]:%d" % server.port)[0] == 200


@pytest.mark.parametrize("data, status", [
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS hello"),
    pytest.param(bytes(range(256)) * 8, 400, id="binary noise"),
    pytest.param(b"get / http/1.1\r\n\r\n", 400, id="lower case"),
    pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two Hosts"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Length: 0\r\n"
                 b"\r\n", 400, id="two lengths"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", 400, id="folded header"),
    pytest.param(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, id="blank before the colon"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n", 400, id="NUL"),
    pytest.param(b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="two blanks"),
    pytest.param(b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="raw bytes"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\n", 505, id="HTTP/2"),
    pytest.param(b"GET /" + b"a" * 70000, 431, id="endless request line"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000, 431, id="endless head"),
    pytest.param(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", 405,
                 id="POST"),
    pytest.param(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
                 + b"x" * 200000, 405, id="large body"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nb\xe9: 1\r\n\r\n", 400, id="odd name"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n", 400, id="bare CR"),
    pytest.param(b"BREW / HTTP/1.0\r\n\r\n", 405, id="unknown method"),
    pytest.param(b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                 404, id="way up"),
])
def test_nonsense_gets_one_refusal_and_a_close(server, data, status):
    with contextlib.suppress(BrokenPipeError):
        assert statuses(server.raw(data)) == [status]
    assert server.get("/health")[0] == 200


def test_a_request_hidden_in_a_body_is_not_served(server):
    smuggled = GET % b"/metrics"
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    assert statuses(server.raw(head + smuggled)) == [200]
    chunked = b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert statuses(server.raw(chunked + smuggled)) == [200]


def test_garbage_behind_a_good_request_ends_the_connection_only(server):
    keep = GET.replace(b"close", b"keep-alive") % b"/health"
    assert statuses(server.raw(keep + b"\0\1\2 garbage\r\n\r\n" + keep)) == [200, 400]


def test_who_pipelines_without_end_keeps_nobody_waiting(start):
    server = start(code="import server, time\nserved = []\n"
                   "def slow(self, request):\n    served.append(1); time.sleep(0.01)\n"
                   "    return server.reply(200, {'place': len(served)})\n"
                   "server.ROUTES['/slow'] = slow; server.main()")
    with server.connect() as greedy:
        greedy.sendall(GET.replace(b"close", b"keep-alive") % b"/slow" * 200)
        assert greedy.recv(1)
        assert server.json("/slow")["place"] < 200


def test_every_answer_is_guarded_and_none_opens_the_door_to_other_sites(server):
    for path in ("/", "/health", "/metrics", "/api/sessions", "/nothing"):
        fields = server.get(path, Origin="http://evil.example")[1]
        assert "default-src 'none'" in fields["content-security-policy"]
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["x-frame-options"] == "DENY" and fields["referrer-policy"] == "no-referrer"
        assert not any(name.startswith("access-control") or name == "server" for name in fields)


def test_the_page_allows_itself_alone_and_a_nonce_is_never_used_twice(server):
    policies = {server.get("/")[1]["content-security-policy"] for _ in range(5)}
    assert len(policies) == 5 and not any("unsafe" in policy for policy in policies)
    page = server.get("/")[2]
    assert b"//" not in re.sub(rb"http://www.w3.org/2000/svg|https?://", b"", page)


def test_no_answer_tells_of_the_machine(start, tmp_path):
    server = start(SECRET="s3cret-value")
    (server.state / "sessions").mkdir(parents=True)
    (server.state / "sessions" / "broken.json").write_text("{")
    (server.state / "projects.json").mkdir()
    server.home.mkdir()
    (server.home / "state.db").write_bytes(b"no database, for sure" * 99)
    said = b"".join(server.get(path)[2] for path in (
        "/", "/health?deep=1", "/metrics", "/api/sessions", "/nothing"))
    said += Events(server).read_until(b"event: status") + server.raw(b"garbage")
    for told in (str(tmp_path), str(server.folder), "s3cret-value", "Traceback", "server.py"):
        assert told.encode() not in said


def test_a_bug_is_a_500_without_a_word_about_it(start):
    code = ("import server; server.ROUTES['/metrics'] = lambda *_: 1 / 0; server.main()")
    server = start(code=code)
    for _ in range(40):
        status, _, body = server.get("/metrics")
        assert (status, body) == (500, b"internal error\n")
    assert server.get("/health")[0] == 200
    assert "ZeroDivisionError" in server.output()


def test_500_slow_clients_leave_health_answering_within_a_second(start):
    server = start()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(500)]
        for number, sock in enumerate(slow):
            sock.sendall(b"GET /health HTTP/1.1\r\nX-%d: " % number)
        until(lambda: server.json("/health")["accept_loop"]["requests_total"] > 500)
        started = time.monotonic()
        assert server.get("/health")[0] == 200
        assert time.monotonic() - started < 1
        assert server.get("/health?deep=1")[0] == 200


def test_a_client_that_never_ends_its_head_is_told_and_dropped(start):
    server = start(code="import server; server.HEAD_SECONDS = 0.2; server.main()")
    assert statuses(server.raw(b"GET /health HTTP/1.1\r\nX: ")) == [408]
    assert server.raw(b"") == b""


def test_a_client_that_takes_nothing_is_dropped(start):
    server = start(code="import server; server.WRITE_SECONDS = 0.2\n"
                   "server.ROUTES['/'] = lambda *_: server.Response(200, bytes(1 << 24))\n"
                   "server.main()")
    with server.connect() as sock:
        sock.sendall(GET % b"/")
        until(lambda: b"\nwebui_connections 1\n" in server.get("/metrics")[2])
    assert server.get("/health")[0] == 200


def test_overload_is_a_503_at_once(start):
    server = start(code="import server, threading\n"
                   "server.ROUTES['/metrics'] = lambda *_: threading.Event().wait()\n"
                   "server.main()")
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(16)]
        for sock in waiting:
            sock.sendall(GET % b"/metrics")
        until(lambda: server.get("/api/sessions")[0] == 503, what="a refusal")
        assert server.get("/health")[0] == 200


def test_where_no_thread_can_be_had_the_answer_is_503(start):
    server = start(code="import server, threading\nstart = threading.Thread.start\n"
                   "def scarce(self):\n"
                   "    if getattr(self, '_target', None).__name__ == 'work':\n"
                   "        raise RuntimeError('cannot start new thread')\n"
                   "    start(self)\n"
                   "threading.Thread.start = scarce; server.main()")
    for _ in range(20):
        assert server.get("/metrics")[0] == 503
    assert server.get("/health")[0] == 200


def test_too_many_connections_are_a_503_at_once_and_pass(start):
    server = start(code="import server; server.MAX_CONNECTIONS = 10; server.main()")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(server.connect()).sendall(b"GET ")
        until(lambda: statuses(server.raw(GET % b"/health")) == [503], what="a refusal")
    until(lambda: server.get("/health")[0] == 200, what="an answer")


def test_connections_leave_half_of_the_files_to_everything_else(start):
    import resource
    server = start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)))
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(server.connect()).sendall(b"GET ")
        until(lambda: statuses(server.raw(GET % b"/health")) == [503], what="a refusal")
        assert len(os.listdir("/proc/%d/fd" % server.process.pid)) < 50
    until(lambda: server.get("/health")[0] == 200, what="an answer")


def test_running_out_of_files_is_outlived(start):
    server = start(code="import os, resource, server\n"
                   "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
                   "held = [os.dup(0) for _ in range(20)]; server.main()")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(server.connect()).sendall(b"GET ")
        until(lambda: "cannot accept" in server.output(), what="a line about it")
    until(server.answers, what="an answer")


def test_the_soft_file_limit_is_raised_and_told(start):
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    server = start(preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    assert server.json("/health")["file_limit"]["soft"] == wanted


def test_a_held_stream_lock_is_degraded_and_not_a_hang(start):
    server = start(wait=False, code="import server\nclass Held(server.Server):\n"
                   "    def run(self):\n        self.lock.acquire(); super().run()\n"
                   "server.Server = Held; server.main()")
    until(server.answers)
    started = time.monotonic()
    status, _, body = server.get("/health")
    assert status == 503 and b'"degraded"' in body and time.monotonic() - started < 5
    assert server.json("/health?deep=1")["checks"]["stream_lock"]["status"] == "error"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a throw-away certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout",
                        "key.pem", "-out", "cert.pem"], cwd=str(folder), check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("no openssl on this machine")
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def secure(start, certificate):
    cert, key = certificate
    return start(tls=ssl.create_default_context(cafile=str(cert)), HERMES_WEBUI_TLS_CERT=str(cert),
                 HERMES_WEBUI_TLS_KEY=str(key))


def test_tls_serves_everything(secure):
    assert secure.get("/health")[0] == 200 and b"<title>" in secure.get("/")[2]
    report = Events(secure).status()
    assert report["probe_ms"] is not None and report["active_streams"] == 1
    keep = GET.replace(b"close", b"keep-alive") % b"/"
    assert statuses(secure.raw(keep * 9 + GET % b"/health")) == [200] * 10


def test_plain_text_and_silence_do_not_hurt_a_tls_server(secure):
    with contextlib.ExitStack() as stack:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01", bytes(range(256))):
            sock = stack.enter_context(socket.create_connection((secure.host, secure.port)))
            sock.sendall(data)
        assert secure.get("/health")[0] == 200


@pytest.mark.parametrize("settings, word", [
    ({"HERMES_WEBUI_PORT": "abc"}, "HERMES_WEBUI_PORT=abc"),
    ({"HERMES_WEBUI_PORT": "0"}, "not a port"),
    ({"HERMES_WEBUI_PORT": "70000"}, "not a port"),
    ({"HERMES_WEBUI_TLS_CERT": "/x"}, "both"),
    ({"HERMES_WEBUI_TLS_KEY": "/x"}, "both"),
    ({"HERMES_WEBUI_TLS_CERT": "/no/cert", "HERMES_WEBUI_TLS_KEY": "/no/key"}, "/no/cert"),
    ({"HERMES_WEBUI_TLS_CERT": os.devnull, "HERMES_WEBUI_TLS_KEY": os.devnull}, os.devnull),
])
def test_a_wrong_setting_is_one_line_and_78(start, settings, word):
    server = start(wait=False, **settings)
    assert server.process.wait(20) == 78
    assert server.output().count("\n") == 1 and word in server.output()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "[::1]", "x" * 300,
                                  "\udcff"])
def test_an_address_that_cannot_be_had_is_one_line_and_69(start, host):
    server = start(wait=False, HERMES_WEBUI_HOST=host)
    assert server.process.wait(60) == 69
    assert server.output().count("\n") == 1 and (host in server.output() or not host.isprintable())


def test_a_locked_key_is_one_line_and_78_and_not_a_prompt(start, certificate):
    cert, key = certificate
    locked = key.with_name("locked.pem")
    subprocess.run(["openssl", "rsa", "-aes256", "-passout", "pass:word", "-in", str(key), "-out",
                    str(locked)], check=True, stderr=subprocess.DEVNULL)
    server = start(wait=False, HERMES_WEBUI_TLS_CERT=str(cert), HERMES_WEBUI_TLS_KEY=str(locked))
    assert server.process.wait(20) == 78
    assert server.output().count("\n") == 1


def test_a_taken_port_is_one_line_and_69(start, server):
    second = start(wait=False, port=server.port)
    assert second.process.wait(20) == 69
    assert second.output().count("\n") == 1 and str(server.port) in second.output()


@pytest.mark.once
def test_nothing_leaks_over_100000_requests(start):
    server = start()
    (server.state / "sessions").mkdir(parents=True)
    for number in range(20):
        (server.state / "sessions" / ("s%d.json" % number)).write_text(
            json.dumps({"session_id": number, "title": "t" * 99, "messages": [{}] * 99}))
    kept = GET.replace(b"close", b"keep-alive") % b"/health" * 198

    def load(rounds):
        for _ in range(rounds):
            for path in (b"/", b"/metrics", b"/api/sessions", b"/health?deep=1", b"/nothing"):
                assert len(statuses(server.raw(kept + GET % path))) == 199
        Events(server).sock.close()

    def rest():
        """Resident pages and open files once nobody is connected."""
        until(lambda: b"\nwebui_active_streams 0\n" in server.get("/metrics")[2])
        with open("/proc/%d/statm" % server.process.pid) as file:
            return int(file.read().split()[1]), len(os.listdir(
                "/proc/%d/fd" % server.process.pid))
    load(10)
    pages, files = rest()
    threads = [threading.Thread(target=load, args=(26,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(int(line.split()[1]) for line in server.get("/metrics")[2].splitlines()
               if line.startswith(b"webui_responses_total")) > 100000
    assert rest()[0] < pages * 1.05
    until(lambda: rest()[1] <= files, what="as many files as before")


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_64_clients_at_once_meet_no_error(start):
    server = start()
    done = subprocess.run(["wrk", "-t", "1", "-c", "64", "-d", "2s", server.url + "health"],
                          check=True, stdout=subprocess.PIPE)
    assert b"Socket errors" not in done.stdout and b"Non-2xx" not in done.stdout, done.stdout
    codes = re.findall(rb'code="(\d+)"', server.get("/metrics")[2])
    assert codes == [b"200"]
