#!/usr/bin/env python3
"""Reference web server: what a well-behaved process looks like to a supervisor.

Standard library only, Python 3.8 and newer. The main thread is an event loop that holds every
conversation; it answers what is cheap and hands the rest to a bounded number of workers, so a slow
client costs a socket and never a thread. Settings come from the environment, after PREFIX: HOST,
PORT, STATE_DIR, ALLOWED_HOSTS (separated by commas), TLS_CERT and TLS_KEY (both or none); and
HERMES_HOME. Exit status: 0 when told to stop, 69 for a taken address, 78 for a bad setting.
"""
import collections
import contextlib
import functools
import json
import os
import re
import resource
import selectors
import signal
import socket
import sys
import threading
import time
import types
from http import HTTPStatus

# ---- constants and data --------------------------------------------------------------------------
NAME, PREFIX = "Hermes Web UI", "HERMES_WEBUI_"
MAX_CONNECTIONS, MAX_STREAMS, MAX_WORKERS, MAX_ROWS, FILES = 1000, 64, 16, 500, 4096
MAX_HEAD, MAX_FILE, DISK_FREE = 16 << 10, 16 << 20, 64 << 20  # bytes
HEAD_SECONDS, IDLE_SECONDS, WRITE_SECONDS, STOP_SECONDS = 10.0, 15.0, 20.0, 10.0
DRAIN_SECONDS, LOCK_SECONDS, BEAT_SECONDS = 0.3, 0.5, 2.0
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
HEAD = re.compile(r"([A-Z-]{1,32}) ([!-~]+) HTTP/1\.([01])"
                  r"((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*)*)")  # RFC 9112, 3 and 5
FIELDS = ("Allow: GET, HEAD\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n"
          "X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: "
          "same-origin\r\nContent-Security-Policy: default-src 'none'; frame-ancestors 'none'; ")
POLICY = ("base-uri 'none'; form-action 'none'; connect-src 'self'; img-src data:; "
          "style-src 'nonce-{0}'; script-src 'nonce-{0}'")  # CSP Level 3
WANTS = {"SSLWantReadError": READ, "SSLWantWriteError": WRITE}
TEXT, JSON, EVENTS = "text/plain; charset=utf-8", "application/json", "text/event-stream"
SESSION = {"session_id": "session_id id", "title": "title", "source": "source", "model": "model",
           "message_count": "message_count", "created_at": "created_at started_at",
           "updated_at": "updated_at ended_at created_at started_at", "project_id": "project_id",
           "active_stream_id": "active_stream_id", "pending_user_message": "pending_user_message"}
PROJECT = {"project_id": "project_id id", "name": "name", "color": "color"}
SOURCES = {"sessions": ("{0.state_dir}/sessions", SESSION),
           "projects": ("{0.state_dir}/projects.json", PROJECT),
           "state_db": ("{0.home}/state.db", SESSION, "sessions", "started_at"),
           "projects_db": ("{0.home}/projects.db", PROJECT, "projects", "created_at")}
Request = collections.namedtuple("Request", "method path deep host close")
Request.__doc__ = "Method, path str; deep bool, for every check; host str or None; close bool."
Response = collections.namedtuple("Response", "status body type policy", defaults=(TEXT, ""))
Response.__doc__ = "Status int, body bytes, media type str, what its content may do (CSP) str."


class Refused(Exception):
    """A request that is not served: status (int) and reason (str)."""


class Broken(OSError):
    """State that cannot be had: strerror tells why, without any path; rows, list, could be had."""

    def __init__(self, text, rows=()):
        OSError.__init__(self, 0, text)
        self.rows = rows


def log(text, status=None):
    """One line on stderr, whoever reads it; with a status (int), the end: raises SystemExit."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno() if sys.stderr else -1, ("server: %s\n" % text).encode())
    if status:
        sys.exit(status)


# ---- requests and responses ----------------------------------------------------------------------
def parse_request(head):
    """The Request in `head` (bytes up to its empty line), by RFC 9112; raises Refused."""
    match = HEAD.fullmatch(head.decode("latin-1"))
    if not match:
        raise Refused(505 if re.match(rb"\S+ \S+ HTTP/[02-9]", head) else 400, "not HTTP/1.1")
    (method, target, minor, lines), fields = match.groups(), {}
    for name, _, value in (line.partition(":") for line in lines.split("\r\n")[1:]):
        if name.lower() == "host" and "host" in fields:
            raise Refused(400, "more than one Host")
        fields[name.lower()] = value.strip(" \t").lower()
    if minor == "1" and "host" not in fields:
        raise Refused(400, "no Host")
    deep = re.search("[?&]deep=(?:1|true|yes|on)(?:&|$)", target, re.I)
    wish = fields.get("connection", "close" if minor == "0" else "")
    unwanted = "transfer-encoding" in fields or fields.get("content-length", "0") != "0"
    return Request(method, target.partition("?")[0], bool(deep), fields.get("host"),
                   "close" in wish or unwanted)  # no body is read: it ends the connection


def host_name(authority):
    """The host of a Host header, lower case, without port, brackets and final dot."""
    host = re.match(r"\s*(\[[^\]]*|[^:]*)", authority).group(1)
    return host.lstrip("[").rstrip(" .").lower()


def reply(status, value):
    """A Response that says `value`: a str as a line of text, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return Response(status, (text + "\n").encode(), TEXT if text is value else JSON)


def encode(response, close, head_only=False):
    """The bytes of a Response; without its body for HEAD."""
    length = "" if response.type == EVENTS else "Content-Length: %d\r\n" % len(response.body)
    head = "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%sConnection: %s\r\n%s%s\r\n\r\n" % (
        response.status, HTTPStatus(response.status).phrase, response.type, length,
        "close" if close else "keep-alive", FIELDS, response.policy)
    return head.encode() + (b"" if head_only else response.body)


# ---- settings and state --------------------------------------------------------------------------
def read_json(path, kind=list):
    """The value in a JSON file, a `kind` (list or dict); raises OSError."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(data.decode("utf-8-sig"), parse_constant=lambda name: None)
        if isinstance(value, kind):
            return value
    raise Broken("too large" if len(data) > MAX_FILE else "not a JSON %s" % kind.__name__)


@functools.lru_cache(maxsize=2 * MAX_ROWS)
def read_session(mtime_ns, size, path):
    """A session from its file, dict, {} if broken; read again where mtime_ns or size differ."""
    with contextlib.suppress(OSError):
        record = read_json(path, dict)
        messages = record.pop("messages", None)
        return dict({"message_count": len(messages) if isinstance(messages, list) else 0}, **record)
    return {}


def read_folder(folder):
    """The sessions in the newest files of a folder, list of dict; raises OSError."""
    with os.scandir(folder) as entries:
        files = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry
                       in entries if re.fullmatch(r"[^_.].*\.json", entry.name))
    return [read_session(*file) for file in files[-MAX_ROWS:]]


def read_table(path, table, order):
    """The newest rows of a SQLite table, list of dict, nothing changed; raises OSError."""
    os.stat(path)
    import sqlite3
    import urllib.parse
    # WAL needs shared memory beside the file (sqlite.org/wal.html), so a folder to write to.
    frozen = not os.access(os.path.dirname(path), os.W_OK) and not os.path.exists(path + "-wal")
    uri = "file:%s?mode=ro%s" % (urllib.parse.quote(path), "&immutable=1" if frozen else "")
    query = "SELECT * FROM %s ORDER BY %s DESC LIMIT %d" % (table, order, MAX_ROWS)
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as db:
            db.text_factory = lambda text: text.decode("utf-8", "replace")
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query)]
    except sqlite3.Error as error:
        raise Broken(str(error))


class Settings:
    """What the environment (a mapping of str) says, and the state on disk; raises SystemExit 78."""

    def __init__(self, environ):
        def get(name, default=""):
            return environ.get(PREFIX + name, "").strip() or default
        self.host, port = get("HOST", "127.0.0.1"), get("PORT", "8787")
        self.home = os.path.expanduser(environ.get("HERMES_HOME", "").strip() or "~/.hermes")
        self.state_dir = os.path.expanduser(get("STATE_DIR", self.home + "/webui"))
        self.hosts = {host_name(host) for host in get("ALLOWED_HOSTS").split(",") if host.strip()}
        self.hosts |= {"localhost", "127.0.0.1", "::1", self.host.lower()}
        self.cert, self.key = get("TLS_CERT"), get("TLS_KEY")
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            log("%sPORT=%s is not a port (1-65535)" % (PREFIX, port), 78)
        if bool(self.cert) != bool(self.key):
            log("set both of %sTLS_CERT and %sTLS_KEY" % (PREFIX, PREFIX), 78)
        self.port = int(port)

    def read_source(self, source):
        """What is told of the records in a source, list of dict; raises OSError."""
        path, fields, *table = SOURCES[source]
        read = read_table if table else read_folder if source == "sessions" else read_json
        rows = read(path.format(self), *table)
        good = [row for row in rows if row and isinstance(row, dict)]
        told = [{field: next((row[key] for key in keys.split() if row.get(key) is not None), None)
                 for field, keys in fields.items()} for row in good]
        if len(good) < len(rows):
            raise Broken("%d of %d cannot be read" % (len(rows) - len(good), len(rows)), told)
        return told

    def gather(self, *sources):
        """Each record of some sources once, list of dict, the latest first; what is wrong, list."""
        rows, problems = [], []
        for source in sources:
            try:
                rows += self.read_source(source)
            except FileNotFoundError:
                continue
            except OSError as error:
                rows += getattr(error, "rows", ())
                problems.append("%s: %s" % (source, error.strerror))
        once = {str(next(iter(row.values()))): row for row in rows}
        return sorted(once.values(), reverse=True, key=lambda row: row["updated_at"] if isinstance(
            row.get("updated_at"), (int, float)) else 0), problems

    def tracked_by(self):
        """Who watches this process, str: as the launcher's record says, else its parent's name."""
        with contextlib.suppress(OSError):
            known = read_json("%s/bootstrap-%d.record" % (self.state_dir, self.port), dict)
            if known.get("pid") == os.getpid():
                return known.get("supervisor") or "nobody"
        with contextlib.suppress(OSError, ValueError), open("/proc/%d/comm" % os.getppid()) as file:
            return file.read().strip()
        return "unknown"


# ---- health --------------------------------------------------------------------------------------
def run_check(check):
    """A check's outcome, dict: status (ok, missing, error), ms, and why it failed."""
    start, result = time.perf_counter(), {"status": "ok"}
    try:
        result.update(check())
    except FileNotFoundError:
        result["status"] = "missing"
    except OSError as error:
        result.update(status="error", why=error.strerror)
    return dict(result, ms=round((time.perf_counter() - start) * 1000, 3))


# ---- streams -------------------------------------------------------------------------------------
class Streams:
    """The clients that listen to events, sockets, and the thread that tells them."""

    def __init__(self, server):
        self.server, self.lock, self.all = server, threading.Lock(), set()
        self.arrivals, self.wake = collections.deque(), threading.Event()
        threading.Thread(target=self.publish, daemon=True).start()

    def count(self):
        """How many there are, int; raises Broken where that takes over LOCK_SECONDS."""
        if not self.lock.acquire(timeout=LOCK_SECONDS):
            raise Broken("held for longer than %.1f s" % LOCK_SECONDS)
        self.lock.release()
        return len(self.all)

    def publish(self):
        """Tell every client how we are, again and again, while there is one."""
        while True:
            self.wake.wait(BEAT_SECONDS if self.all else None)
            self.wake.clear()
            self.send(b": beat\n\n")
            if self.all:
                self.send(b"event: status\ndata: %s\n" % reply(200, self.server.snapshot()).body)

    def send(self, event):
        """Send to all; forget those who left, and those who do not take it at once."""
        with self.lock:
            while self.arrivals:
                self.all.add(self.arrivals.popleft())
            for sock in list(self.all):
                with contextlib.suppress(OSError):
                    with contextlib.suppress(*self.server.again):
                        if not sock.recv(4096):
                            raise ConnectionError("the client left")
                    if sock.send(event) == len(event):
                        continue
                self.all.discard(sock)
                sock.close()


# ---- the event loop ------------------------------------------------------------------------------
class Server:
    """What is served, and the event loop that serves it."""

    def __init__(self, settings, listeners, inherited=False):
        self.settings, self.limits = settings, resource.getrlimit(resource.RLIMIT_NOFILE)
        self.born, self.started = round(time.time(), 3), time.monotonic()
        self.accepted, self.latest, self.responses = 0, None, collections.Counter()
        self.connections, self.streams = {}, Streams(self)
        self.checks = {"stream_lock": lambda: {"count": self.streams.count()},
                       "file_descriptors": self.check_descriptors, "disk": self.check_disk}
        self.checks.update((name, lambda name=name: {"count": len(settings.read_source(name))})
                           for name in SOURCES)
        self.listeners, self.inherited, self.stopping = listeners, inherited, None
        self.tls, self.again = None, (BlockingIOError,)
        if settings.cert:
            import ssl
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(settings.cert, settings.key)
            self.again += (ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self.address, self.family = listeners[0].getsockname(), listeners[0].family
        self.workers, self.done = 0, collections.deque()
        self.selector, (self.bell, self.clapper) = selectors.DefaultSelector(), socket.socketpair()
        for sock in listeners + [self.bell, self.clapper]:
            sock.setblocking(False)

    def check_descriptors(self):
        """Room for more files and sockets; the descriptor that lists them is not counted."""
        used, limit = len(os.listdir("/dev/fd")) - 1, self.limits[0]
        if 0 < limit * 0.9 < used:
            raise Broken("%d of %d are open" % (used, limit))
        return {"open": used, "limit": limit}

    def check_disk(self):
        """Room in the state folder."""
        disk = os.statvfs(self.settings.state_dir)
        if disk.f_bavail * disk.f_frsize < DISK_FREE:
            raise Broken("%d MB are left" % (disk.f_bavail * disk.f_frsize >> 20))
        return {"free_bytes": disk.f_bavail * disk.f_frsize}

    def vitals(self, deep=False):
        """Status, and what /health says, dict: degraded where a check or the stream count fails."""
        report = {"status": "ok", "active_streams": None, "started_at": self.born,
                  "uptime_seconds": round(time.monotonic() - self.started, 3),
                  "accept_loop": {"requests_total": self.accepted, "last_request_at": self.latest},
                  "file_limit": dict(zip(("soft", "hard"), self.limits))}
        with contextlib.suppress(Broken):
            report["active_streams"] = self.streams.count()
        if deep:
            report["checks"] = {name: run_check(check) for name, check in self.checks.items()}
        if report["active_streams"] is None or deep and any(
                check["status"] == "error" for check in report["checks"].values()):
            report["status"] = "degraded"
        return 200 if report["status"] == "ok" else 503, report

    def snapshot(self):
        """What the page shows, dict: deep health, a request to itself, who tracks it, sessions."""
        rows = self.settings.gather("state_db", "sessions")[0]
        return dict(self.vitals(deep=True)[1], probe_ms=self.probe(BEAT_SECONDS), beat=BEAT_SECONDS,
                    tracked_by=self.settings.tracked_by(), session_count=len(rows))

    def metrics(self, request):
        """/metrics, in the Prometheus text format 0.0.4."""
        rows = (("webui_connections_accepted_total counter", self.accepted),
                ("webui_connections gauge", len(self.connections)),
                ("webui_active_streams gauge", len(self.streams.all)),
                ("process_open_fds gauge", len(os.listdir("/dev/fd")) - 1),
                ("process_max_fds gauge", self.limits[0]))
        lines = ["# TYPE %s\n%s %s" % (name, name.split()[0], value) for name, value in rows]
        lines += ['webui_responses_total{code="%d"} %d' % r for r in sorted(self.responses.items())]
        return reply(200, "\n".join(lines))._replace(type="text/plain; version=0.0.4")

    def sessions(self, request):
        """/api/sessions: sessions and projects as they are on disk."""
        sessions, problems = self.settings.gather("state_db", "sessions")
        projects, more = self.settings.gather("projects_db", "projects")
        return reply(200, dict(sessions=sessions, projects=projects, problems=problems + more))

    def page(self, request):
        """/: the page; its own style and script alone are allowed, by a nonce."""
        nonce = os.urandom(16).hex()
        body = PAGE.replace("{nonce}", nonce).replace("{name}", NAME)
        return Response(200, body.encode(), "text/html; charset=utf-8", POLICY.format(nonce))

    def run(self):
        """Serve until a signal asks to stop and what was under way is answered."""
        self.selector.register(self.bell, READ, self.woken)
        sweep_at = 0.0
        while not self.stopping or self.listeners or (
                self.connections and time.monotonic() < self.stopping + STOP_SECONDS):
            if self.stopping or time.monotonic() >= sweep_at:
                self.sweep()
                sweep_at = time.monotonic() + 1.0
            for key, _ in self.selector.select(0.05 if self.stopping else 1.0):
                key.data(key.fileobj)
            while self.done:
                self.workers -= 1
                self.step(*self.done.popleft())

    def stop(self, signum, frame=None):
        """Signal handler: ask the loop to stop; the second time, exit at once (as pid 1 too)."""
        if self.stopping:
            os._exit(128 + signum)
        self.stopping = time.monotonic()
        signal.alarm(int(STOP_SECONDS) + 2)

    def woken(self, bell):
        """A worker is done, or a signal asks to stop: shut the door, take in who waits there."""
        bell.recv(4096)
        if not self.stopping or not self.listeners:
            return
        notify("STOPPING=1\nSTATUS=Answering what is under way")
        for sock in self.listeners:
            if not self.inherited:  # else its queue is for the next process
                self.accept(sock)
            if sock in self.selector.get_map():
                self.selector.unregister(sock)
            sock.close()
        self.listeners = []
        for sock in list(self.streams.all) + list(self.streams.arrivals):
            sock.close()
        for conn in self.connections.values():
            if conn.phase == "read":
                conn.deadline = time.monotonic() + DRAIN_SECONDS

    def accept(self, listener):
        """Take in who waits, a hundred in one turn; where files run out, pause until the sweep."""
        for _ in range(100 if listener in self.listeners else 0):
            try:
                sock = listener.accept()[0]
            except self.again:
                return
            except OSError as error:
                log("cannot accept: %s" % error.strerror)
                return self.selector.unregister(listener)
            self.accepted, self.latest = self.accepted + 1, round(time.time(), 3)
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # a client may leave before TLS begins
                self.welcome(self.tls.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False) if self.tls else sock)

    def welcome(self, sock):
        """Begin a conversation."""
        full = len(self.connections) >= MAX_CONNECTIONS and reply(503, "too many connections")
        conn = self.connections[sock] = types.SimpleNamespace(
            sock=sock, inbox=bytearray(), events=0, phase="read")
        conn.talk, conn.deadline = self.talk(conn, full), time.monotonic() + HEAD_SECONDS
        self.step(sock)

    def step(self, sock, value=None, error=None):
        """Let a conversation go on, with a worker's answer or an error, until it must wait."""
        conn, events = self.connections[sock], None
        with contextlib.suppress(StopIteration, OSError):
            events = conn.talk.throw(error) if error else conn.talk.send(value)
        if conn.events and not events:
            self.selector.unregister(sock)
        elif events and events != conn.events:
            change = self.selector.modify if conn.events else self.selector.register
            change(sock, events, self.step)
        conn.events = events
        if events is None:
            del self.connections[sock]
            if conn.phase == "stream":
                self.streams.arrivals.append(sock)
                self.streams.wake.set()
            else:
                sock.close()

    def sweep(self):
        """End the conversations whose time is up; listen, also again after a pause."""
        for conn in list(self.connections.values()):
            if conn.deadline < time.monotonic():
                unfinished = conn.phase == "read" and conn.inbox
                self.step(conn.sock, None, Refused(408, "late") if unfinished else TimeoutError())
        for sock in self.listeners:
            if sock not in self.selector.get_map():
                self.selector.register(sock, READ, self.accept)

    def attempt(self, events, call, *args):
        """Generator: call what may have to wait for `events`; reading waits first, to be fair."""
        if events == READ:
            yield READ
        while True:
            try:
                return call(*args)
            except self.again as error:
                yield WANTS.get(type(error).__name__, events)

    def talk(self, conn, refusal):
        """Generator: serve a client, or only refuse it; yields the events it waits for, or 0."""
        close = False
        if self.tls:
            yield from self.attempt(READ, conn.sock.do_handshake)
        while not close:
            request = None
            try:
                request = None if refusal else (yield from self.read_request(conn))
                response = refusal or self.respond(conn, request) or (yield 0)
            except Refused as refused:
                response = reply(*refused.args)
            head_only, stream = request and request.method == "HEAD", response.type == EVENTS
            close = not request or request.close or stream or bool(self.stopping)
            self.responses[response.status] += 1
            conn.phase, conn.deadline = "write", time.monotonic() + WRITE_SECONDS
            data = encode(response, close, head_only)
            while data:
                data = data[(yield from self.attempt(WRITE, conn.sock.send, data)):]
            conn.phase, conn.deadline = "read", time.monotonic() + IDLE_SECONDS
        if stream and not head_only:
            conn.phase = "stream"
            return
        conn.phase, conn.deadline = "linger", time.monotonic() + DRAIN_SECONDS
        conn.sock.shutdown(socket.SHUT_WR)
        while (yield from self.attempt(READ, conn.sock.recv, MAX_HEAD)):
            pass

    def read_request(self, conn):
        """Generator: the next Request; raises Refused, and OSError where the client left."""
        while b"\r\n\r\n" not in conn.inbox[:MAX_HEAD]:
            if len(conn.inbox) >= MAX_HEAD:
                raise Refused(431, "the head is too large")
            if conn.inbox and not conn.inbox[:1].isupper():
                raise Refused(400, "not HTTP/1.1")
            data = yield from self.attempt(READ, conn.sock.recv, MAX_HEAD)
            if not data:
                raise ConnectionError("the client left")
            conn.inbox += data
        head, _, conn.inbox = conn.inbox.partition(b"\r\n\r\n")
        return parse_request(bytes(head))

    def respond(self, conn, request):
        """The Response to a Request, or None while a worker has it."""
        host, handler = host_name(request.host or "localhost"), ROUTES.get(request.path)
        if host not in self.settings.hosts:
            name = conn.sock.getsockname()  # a client may call us by the address it reached
            if not isinstance(name, tuple) or host != name[0].replace("::ffff:", ""):
                return reply(403, "this host name is not served here")
        if not handler or request.method not in ("GET", "HEAD"):
            return reply(405, "GET and HEAD only") if handler else reply(404, "not found")
        if request.path not in SLOW and not request.deep:
            return handler(self, request)
        if self.workers >= MAX_WORKERS:
            return reply(503, "too busy")
        self.workers += 1
        conn.phase, conn.deadline = "work", float("inf")
        return threading.Thread(target=self.work, args=(conn.sock, request), daemon=True).start()

    def work(self, sock, request):
        """A worker. A bug ends it, with a traceback in the log and a 500 for the client."""
        response = reply(500, "internal error")
        try:
            response = ROUTES[request.path](self, request)
        finally:
            self.done.append((sock, response))
            with contextlib.suppress(OSError):
                self.clapper.send(b"!")

    def probe(self, timeout):
        """Ask ourselves for /health as a client would; milliseconds that took, or None."""
        start = time.perf_counter()
        with contextlib.suppress(OSError), socket.socket(self.family) as sock:
            sock.settimeout(timeout)
            sock.connect(self.address)
            if self.tls:
                import ssl
                sock = ssl._create_unverified_context().wrap_socket(sock)
            with sock:
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if sock.recv(9) == b"HTTP/1.1 ":
                    return round((time.perf_counter() - start) * 1000, 3)

    def keep_watchdog(self, limit):
        """Ping twice in `limit` seconds, if a request is answered (sd_watchdog_enabled(3))."""
        while not threading.Event().wait(limit / 2):
            if self.probe(limit / 2) is not None:
                notify("WATCHDOG=1\nSTATUS=Serving %d streams" % len(self.streams.all))


ROUTES = {"/": Server.page, "/metrics": Server.metrics, "/api/sessions": Server.sessions,
          "/health": lambda server, request: reply(*server.vitals(request.deep)),
          "/api/events": lambda server, request: (  # WHATWG HTML, 9.2: server-sent events
              Response(200, b"retry: 1000\n\n", EVENTS) if MAX_STREAMS > len(server.streams.all)
              + len(server.streams.arrivals) else reply(503, "too many streams"))}
SLOW = ("/metrics", "/api/sessions")  # for a worker, as is deep health


# ---- sockets and supervisors ---------------------------------------------------------------------
def open_listeners(settings):
    """Listening sockets, list, and whether the supervisor gave them; raises SystemExit 69."""
    count = os.environ.get("LISTEN_FDS", "")  # sd_listen_fds(3)
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdigit() and int(count):
        return [socket.socket(fileno=3 + number) for number in range(int(count))], True
    address = settings.host, settings.port
    try:
        return [socket.create_server(
            address, family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=1024, dualstack_ipv6=settings.host == "::")], False
    except OSError as error:
        return log("cannot listen on %s, port %d: %s" % (*address, error.strerror), 69)


def notify(message):
    """Tell the service manager, as sd_notify(3) does; nobody there is fine."""
    path = re.sub("^@", "\0", os.environ.get("NOTIFY_SOCKET", ""))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        sock.connect(path)
        sock.send(message.encode())


# ---- the page ------------------------------------------------------------------------------------
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><style nonce="{nonce}">
:root{--bg:#faf9f7;--card:#fff;--ink:#1d1f21;--dim:#5f646a;--rule:#e6e3de;--ok:#1f7350;--no:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#0f1114;--card:#1b1d20;--ink:#e8e6e3;--dim:#9a9ea5;
--rule:#2b2e33;--ok:#6ccb9f;--no:#ff8a80}}body{margin:0 auto;max-width:56rem;
padding:1.5rem clamp(1rem,4vw,2.5rem);background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
header,#reason,h2,small,caption,footer{color:var(--dim);font-size:.9rem;font-weight:400}
header{display:flex;justify-content:space-between}h2{margin:0}caption{text-align:left}
h1{margin:2rem 0 .2rem;font-size:clamp(1.9rem,6vw,2.8rem);line-height:1.15}h1::before{content:"";
display:inline-block;width:.42em;height:.42em;margin:0 .35em .08em 0;border:2px solid;
border-radius:50%}h1.ok::before{color:var(--ok);background:var(--ok)}h1.bad::before{color:var(--no);
background:var(--no);border-radius:2px}#facts{display:grid;
grid-template-columns:repeat(auto-fit,minmax(9.6rem,1fr));margin:2rem 0;background:var(--card);
border:1px solid var(--rule);border-radius:12px;overflow:hidden}#facts div{padding:1rem 1.1rem;
box-shadow:0 0 0 1px var(--rule)}#facts .wide{grid-column:1/-1}b{display:block;font-size:1.35rem}
td.ok{color:var(--ok)}.error{color:var(--no)}svg{display:block;width:100%;height:44px;
margin:.4rem 0;fill:none;stroke-width:1.6;stroke:var(--ok)}path{vector-effect:non-scaling-stroke}
#gaps{stroke:var(--no);stroke-width:3}table{width:100%;margin-bottom:2rem;border-collapse:collapse}
tbody{vertical-align:baseline}td{padding:.45rem .5rem .45rem 0;border-top:1px solid var(--rule)}
td:last-child{padding-right:0;color:var(--dim);text-align:right;white-space:nowrap}a{color:inherit;
margin-right:1.4rem}.stale section{opacity:.45}</style>
<header><span>{name}</span><span id="link">connecting</span></header>
<main><h1 id="verdict" role="status">One moment</h1><p id="reason">Asking the server how it is.</p>
<section id="facts" aria-label="Facts"><div class="wide"><h2>Accept loop</h2><b id="loop">–</b>
<svg viewBox="0 0 300 44" preserveAspectRatio="none" role="img" aria-label="Its latest answers">
<path id="line"/><path id="gaps"/></svg><small id="accepted"></small></div>
<div><h2>Up for</h2><b id="uptime">–</b></div><div><h2>Watched by</h2><b id="tracked">–</b></div>
<div><h2>Open streams</h2><b id="streams">–</b></div><div><h2>Sessions</h2><b id="count">–</b></div>
<div><h2>File descriptors</h2><b id="files">–</b></div></section>
<section><table><caption>Checks</caption><tbody id="checks"></tbody></table></section></main>
<footer><a href="/health?deep=1">Health</a><a href="/metrics">Metrics</a>
<a href="/api/sessions">Sessions</a></footer><script nonce="{nonce}">
const $ = id => document.getElementById(id), samples = [];
const put = (id, text) => { if ($(id).textContent !== String(text)) $(id).textContent = text; };
const span = time => (time < 86400 ? '' : Math.floor(time / 86400) + ' d ') +
  new Date(time * 1000).toISOString().slice(11, 19);
let source, retry, last, heard;
function verdict(style, text, reason) {
  [$('verdict').className, document.body.className] = [style, style ? '' : 'stale'];
  document.title = (style === 'ok' ? '' : text + ' · ') + '{name}';
  put('verdict', text), put('reason', reason), put('link', style ? 'live' : 'connecting');
}
function plot() {
  const top = Math.max(5, ...samples), gap = i => i < 0 || samples[i] === null;
  const x = i => 305 - (samples.length - i) * 5, y = time => 42 - time / top * 38;
  const draw = (id, part) => $(id).setAttribute('d', samples.map(part).join(''));
  draw('line', (time, i) => gap(i) ? '' : (gap(i - 1) ? 'M' : 'L') + x(i) + ' ' + y(time));
  draw('gaps', (time, i) => gap(i) ? `M${x(i)} 43v-9` : '');
}
function show(now) {
  const files = now.checks.file_descriptors, checks = Object.entries(now.checks);
  const stuck = now.probe_ms === null, sick = stuck ? ['The accept loop does not answer.'] : [];
  for (const [key, check] of checks) if (check.why) sick.push(`${key}: ${check.why}.`);
  if (sick.length) verdict('bad', 'Not well', sick.join(' '));
  else verdict('ok', 'Healthy', `All ${checks.length} checks passed, and it answers itself.`);
  last = now, heard = performance.now(), samples.splice(0, samples.push(now.probe_ms) - 60);
  plot(), put('loop', stuck ? 'does not answer' : 'answers in ' + now.probe_ms + ' ms');
  put('accepted', now.accept_loop.requests_total + ' connections; one to itself with every beat');
  put('tracked', now.tracked_by), put('count', now.session_count);
  put('streams', now.active_streams), put('files', `${files.open ?? '?'} of ${files.limit ?? '?'}`);
  $('checks').replaceChildren(...checks.map(([key, check]) => {
    const row = document.createElement('tr');
    for (const text of [key.replace('_', ' '), check.status, check.ms + ' ms'])
      Object.assign(row.insertCell(), {textContent: text, className: text});
    return row;
  }));
}
function connect(delay, text, reason) {
  quit(), verdict('', text, reason), last = null, samples.length = 0;
  retry = setTimeout(() => {
    source = new EventSource('/api/events');
    source.addEventListener('status', event => show(JSON.parse(event.data)));
    source.onerror = lose;
  }, delay);
}
const quit = () => { clearTimeout(retry); if (source) source.close(); };
const lose = () => connect(1000, 'Not reachable', 'Trying again every second.');
setInterval(() => {
  const quiet = (performance.now() - heard) / 1000;
  if (last) quiet > 4 * last.beat ? lose() : put('uptime', span(last.uptime_seconds + quiet));
}, 500);
addEventListener('pagehide', quit);
addEventListener('pageshow', () => connect(0, 'One moment', 'Asking the server how it is.'));
</script>
"""


# ---- main ----------------------------------------------------------------------------------------
def main():
    """Serve until asked to stop; raises SystemExit where that cannot begin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard if hard > 0 else FILES), hard))
    settings = Settings(os.environ)
    try:
        server = Server(settings, *open_listeners(settings))
    except OSError as error:
        log("cannot use %s with %s: %s" % (settings.cert, settings.key, error.strerror), 78)
    signal.set_wakeup_fd(server.clapper.fileno(), warn_on_full_buffer=False)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, server.stop)
    notify("READY=1\nSTATUS=Serving")
    limit, ours = os.environ.get("WATCHDOG_USEC", ""), str(os.getpid())
    if limit.isdigit() and int(limit) and os.environ.get("WATCHDOG_PID", ours) == ours:
        threading.Thread(target=server.keep_watchdog, args=(int(limit) / 1e6,), daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
