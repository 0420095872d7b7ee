#!/usr/bin/env python3
"""Reference web server: what a well-behaved process looks like to a supervisor.

Standard library only, Python 3.8 and newer. The main thread is an event loop that holds every
conversation; it answers what is cheap and hands the rest to a bounded number of workers, so a slow
client costs a socket and never a thread. Settings come from the environment: HERMES_HOME and, after
PREFIX, HOST, PORT, STATE_DIR, ALLOWED_HOSTS (separated by commas), TLS_CERT and TLS_KEY (both or
none). Exit status: 0 when told to stop, 69 for an address that cannot be had, 78 for a bad setting.

Whoever copies this file edits one line, NAME and PREFIX; the launcher hands over under that prefix.
"""
import collections, contextlib, functools, json, os, re, resource, selectors, signal, socket, stat
import sys, threading, time, types
from http import HTTPStatus

# ---- constants and data --------------------------------------------------------------------------
NAME, PREFIX = "Hermes Web UI", "HERMES_WEBUI_"
MAX_CONNECTIONS, MAX_STREAMS, MAX_WORKERS, MAX_ROWS, MAX_SHOWN, FILES = 1000, 64, 4, 500, 8, 4096
MAX_HEAD, MAX_TEXT, MAX_FILE, DISK_FREE = 16 << 10, 2000, 16 << 20, 64 << 20  # bytes
HEAD_SECONDS, IDLE_SECONDS, WRITE_SECONDS, STOP_SECONDS = 10.0, 15.0, 20.0, 10.0
DRAIN_SECONDS, LOCK_SECONDS, BEAT_SECONDS = 0.5, 0.5, 2.0
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
HEAD = re.compile(r"([A-Z-]+) ([!-~]+) HTTP/1\.([01])((?:\r\n[!#-'*+.0-9A-Z^-z|~-]+:[^\r\n\0]*)*)")
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
KEYS = frozenset(" ".join([*SESSION.values(), *PROJECT.values()]).split())
Request = collections.namedtuple("Request", "method path deep host close")  # deep: every check
Response = collections.namedtuple("Response", "status body type policy", defaults=(TEXT, ""))


class Refused(Exception):
    """A request that is not served: status (int) and reason (str)."""


def log(text, status=None):
    """One line on stderr, whoever reads it; with a status (int), the end: raises SystemExit."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno() if sys.stderr else -1, os.fsencode("server: %s\n" % text))
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
        if name.lower() in fields and name.lower() in ("host", "content-length"):
            raise Refused(400, "more than one %s" % name.lower())
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
    return re.match(r"\s*\[?((?<=\[)[^\]]*|[^:]*)", authority).group(1).rstrip(" .").lower()


def reply(status, value):
    """A Response that says `value`: a str as a line of text, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return Response(status, (text + "\n").encode(), TEXT if text is value else JSON)


def encode(response, close, head_only=False):
    """The bytes of a Response; without its body for HEAD."""
    length = "" if response.type == EVENTS else "Content-Length: %d\r\n" % len(response.body)
    head = "HTTP/1.1 %d %s\r\n%sContent-Type: %s\r\n%sConnection: %s\r\n%s%s\r\n\r\n" % (
        response.status, HTTPStatus(response.status).phrase,
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime()), response.type, length,
        "close" if close else "keep-alive", FIELDS, response.policy)
    return head.encode() + (b"" if head_only else response.body)


# ---- settings and state --------------------------------------------------------------------------
def pick(row, fields):
    """What is told of a record, dict: of each field's keys the first text (cut) or number."""
    told = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in row.items()
            if isinstance(value, str) or isinstance(value, (int, float)) and abs(value) < 1e18}
    return {field: next((told[key] for key in keys.split() if key in told), None)
            for field, keys in fields.items()}


def read_json(path, kind=list):
    """The value in a JSON file, a `kind` (list or dict); raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe waits for its other end
        raise OSError(0, "not a file")
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(data.decode("utf-8-sig"), parse_int=lambda digits: int(digits[:20]))
        if isinstance(value, kind):
            return value
    raise OSError(0, "too large" if len(data) > MAX_FILE else "not a JSON %s" % kind.__name__)


@functools.lru_cache(maxsize=2 * MAX_ROWS)
def read_session(mtime_ns, size, path):
    """A session from its file, dict, read again where mtime_ns or size differ; raises OSError."""
    record = read_json(path, dict)
    messages = record.get("messages")
    record.setdefault("message_count", len(messages) if isinstance(messages, list) else 0)
    return pick(record, SESSION)


def read_folder(folder):
    """The sessions in the newest files of a folder, list of dict; raises OSError."""
    files, rows = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # files come and go
                if re.fullmatch(r"[^_.].*\.json", entry.name):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    for file in sorted(files)[-MAX_ROWS:]:
        rows.append({})
        with contextlib.suppress(OSError):
            rows[-1] = read_session(*file)
    return rows


def read_table(path, table, order):
    """The newest rows of a SQLite table, list of dict, nothing changed; raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "not a file")
    import pathlib, sqlite3
    # WAL needs shared memory beside the file (sqlite.org/wal.html), so a folder to write to.
    frozen = not os.access(os.path.dirname(path), os.W_OK) and not os.path.exists(path + "-wal")
    uri = pathlib.Path(path).as_uri() + "?mode=ro" + "&immutable=1" * frozen
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as db:
            db.text_factory = lambda text: text.decode("utf-8", "replace")
            names = [name for _, name, *_ in db.execute("PRAGMA table_info(%s)" % table)]
            told = [name for name in names if name in KEYS] or ["*"]
            rows = db.execute("SELECT %s FROM %s ORDER BY %s DESC LIMIT %d" % (
                ", ".join(told), table, order, MAX_ROWS))
            return [dict(zip(told, row)) for row in rows]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise OSError(0, str(error))


SOURCES = {"sessions": (SESSION, read_folder, "{0.state_dir}/sessions"),
           "projects": (PROJECT, read_json, "{0.state_dir}/projects.json"),
           "state_db": (SESSION, read_table, "{0.home}/state.db", "sessions", "started_at"),
           "projects_db": (PROJECT, read_table, "{0.home}/projects.db", "projects", "created_at")}


class Settings:
    """What the environment (a mapping of str) says, and the state on disk; raises SystemExit 78."""

    def __init__(self, environ):
        def get(name, default="", prefix=PREFIX):
            return environ.get(prefix + name, "").strip() or default
        self.host, port = get("HOST", "127.0.0.1"), get("PORT", "8787")
        self.home = os.path.abspath(os.path.expanduser(get("HERMES_HOME", "~/.hermes", "")))
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
        """The check of a source: dict of its rows, their count, and why if some are broken."""
        fields, read, path, *table = SOURCES[source]
        rows = read(path.format(self), *table)[:MAX_ROWS]
        told = [pick(row, fields) for row in rows if isinstance(row, dict)]
        good = [row for row in told if next(iter(row.values())) is not None]
        bad = len(rows) - len(good)
        why = {"why": "%d of %d cannot be read" % (bad, len(rows))} if bad else {}
        return dict(why, count=len(good), rows=good)

    def gather(self, *sources):
        """Each record of some sources once, list of dict, the latest first; what is wrong, list."""
        once, problems = {}, []
        for source in sources:
            found = run_check(functools.partial(self.read_source, source))
            once.update((str(next(iter(row.values()))), row) for row in found.get("rows", ()))
            problems += ["%s: %s" % (source, found["why"])] if "why" in found else []
        return sorted(once.values(), reverse=True, key=lambda row: row["updated_at"] if isinstance(
            row.get("updated_at"), (int, float)) else 0), problems

    def tracked_by(self):
        """Who watches this process, str: as the launcher's record says, else its parent's name."""
        record = "%s/bootstrap-%d.record" % (self.state_dir, self.port)
        with contextlib.suppress(OSError), open(
                record if os.path.isfile(record) else os.devnull, errors="replace") as file:
            known = dict(line.partition("=")[::2] for line in file.read(MAX_FILE).split("\n"))
            if known.get("pid") == str(os.getpid()):
                return known.get("supervisor", "")[:MAX_TEXT] or "nobody"
        with contextlib.suppress(OSError), open("/proc/%d/comm" % os.getppid(), "rb") as file:
            return file.read().decode("utf-8", "replace").strip() + " (parent)"
        return "not known"


def run_check(check):
    """A check's outcome, dict: status (ok, missing, error), ms, and why it failed."""
    start, result = time.perf_counter(), {"status": "ok"}
    try:
        result.update(check())
    except FileNotFoundError:
        result["status"] = "missing"
    except (OSError, ImportError) as error:
        result["why"] = getattr(error, "strerror", None) or type(error).__name__
    result["status"] = "error" if "why" in result else result["status"]
    return dict(result, ms=round((time.perf_counter() - start) * 1000, 3))


# ---- the event loop ------------------------------------------------------------------------------
class Server:
    """What is served, and the event loop that serves it."""

    def __init__(self, settings, listeners, inherited=False):
        self.settings, self.limits = settings, resource.getrlimit(resource.RLIMIT_NOFILE)
        self.born, self.started = round(time.time(), 3), time.monotonic()
        self.accepted, self.latest, self.responses = 0, None, collections.Counter()
        self.connections, self.streams, self.arrivals = {}, set(), collections.deque()
        self.lock, self.wake = threading.Lock(), threading.Event()
        self.checks = {"stream_lock": lambda: {"count": self.count_streams()},
                       "file_descriptors": self.check_descriptors, "disk": self.check_disk}
        for name in SOURCES:
            self.checks[name] = functools.partial(settings.read_source, name)
        self.listeners, self.inherited, self.stopping = listeners, inherited, None
        self.tls, self.again = None, (BlockingIOError,)
        if settings.cert:
            import ssl
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(settings.cert, settings.key, str)  # str: ask nobody for a word
            self.again += (ssl.SSLWantReadError, ssl.SSLWantWriteError)
            self.trust = ssl._create_unverified_context()  # for requests to ourselves
        self.address, self.family = listeners[0].getsockname(), listeners[0].family
        self.room = min(MAX_CONNECTIONS, self.limits[0] // 2 if self.limits[0] > 0 else FILES)
        self.workers, self.done = 0, collections.deque()
        self.selector, (self.bell, self.clapper) = selectors.DefaultSelector(), socket.socketpair()
        for sock in listeners + [self.bell, self.clapper]:
            sock.setblocking(False)
        threading.Thread(target=self.publish, daemon=True).start()

    def check_descriptors(self):
        """Room for more files and sockets; the descriptor that lists them is not counted."""
        used, limit = len(os.listdir("/dev/fd")) - 1, self.limits[0]
        few = {"why": "%d of %d are open" % (used, limit)} if 0 < limit * 0.9 < used else {}
        return dict(few, open=used, limit=limit)

    def check_disk(self):
        disk = os.statvfs(self.settings.state_dir)
        free = disk.f_bavail * disk.f_frsize
        few = {"why": "%d MB are left" % (free >> 20)} if free < DISK_FREE else {}
        return dict(few, free_bytes=free)

    def vitals(self, deep=False):
        """Status, and what /health says, dict: degraded where a check or the stream count fails."""
        report = {"status": "ok", "active_streams": None, "started_at": self.born,
                  "uptime_seconds": round(time.monotonic() - self.started, 3),
                  "accept_loop": {"requests_total": self.accepted, "last_request_at": self.latest},
                  "file_limit": dict(zip(("soft", "hard"), self.limits))}
        with contextlib.suppress(OSError):
            report["active_streams"] = self.count_streams()
        checks = {name: run_check(check) for name, check in self.checks.items() if deep}
        for check in checks.values():
            check.pop("rows", None)
        sick = report["active_streams"] is None or any("why" in check for check in checks.values())
        report["status"] = "degraded" if sick else "ok"
        return 503 if sick else 200, dict(report, checks=checks) if deep else report

    def snapshot(self):
        """What the page shows, dict: deep health, a request to itself, who tracks it, sessions."""
        rows = self.settings.gather("state_db", "sessions")[0]
        return dict(self.vitals(deep=True)[1], probe_ms=self.probe(BEAT_SECONDS), beat=BEAT_SECONDS,
                    tracked_by=self.settings.tracked_by(), sessions=rows[:MAX_SHOWN],
                    session_count="%d%s" % (len(rows), "+" * (len(rows) >= MAX_ROWS)))

    def metrics(self, request):
        """/metrics, in the Prometheus text format 0.0.4."""
        rows = {"webui_connections_accepted_total counter": self.accepted,
                "webui_connections gauge": len(self.connections),
                "webui_active_streams gauge": len(self.streams),
                "process_start_time_seconds gauge": self.born,
                "process_open_fds gauge": run_check(self.check_descriptors).get("open", "NaN"),
                "process_max_fds gauge": self.limits[0]}
        lines = ["# TYPE %s\n%s %s" % (name, name.split()[0], rows[name]) for name in rows]
        lines += ["# TYPE webui_responses_total counter"] + [
            'webui_responses_total{code="%d"} %d' % row for row in sorted(self.responses.items())]
        return reply(200, "\n".join(lines))._replace(type="text/plain; version=0.0.4")

    def sessions(self, request):
        """/api/sessions: sessions and projects as they are on disk."""
        sessions, problems = self.settings.gather("state_db", "sessions")
        projects, more = self.settings.gather("projects_db", "projects")
        return reply(200, dict(sessions=sessions, projects=projects, problems=problems + more))

    def page(self, request):
        """/: the page; its own style and script alone are allowed, by a nonce."""
        nonce = os.urandom(16).hex()
        body = PAGE.replace("{nonce}", nonce).replace("{name}", NAME).encode()
        return Response(200, body, "text/html; charset=utf-8", POLICY.format(nonce))

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
            self.accept(sock)
            if sock in self.selector.get_map():
                self.selector.unregister(sock)
            sock.close()
        self.listeners = []
        for sock in list(self.streams) + list(self.arrivals):
            sock.close()
        for conn in self.connections.values():
            if conn.phase == "read":
                conn.deadline = time.monotonic() + DRAIN_SECONDS

    def accept(self, listener):
        """Take in who waits, a hundred in one turn; where files run out, pause until the sweep."""
        leave = self.stopping and self.inherited  # who waits there, to the next process
        for _ in range(100 if listener in self.listeners and not leave else 0):
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
                if self.tls:
                    sock = self.tls.wrap_socket(sock, True, do_handshake_on_connect=False)
                full = len(self.connections) >= self.room and reply(503, "too many connections")
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
                self.arrivals.append(sock)
                self.wake.set()
            else:
                sock.close()

    def sweep(self):
        """End the conversations whose time is up; listen, also again after a pause."""
        for conn in list(self.connections.values()):
            if conn.deadline < time.monotonic():
                late = conn.phase == "read" and conn.inbox
                self.step(conn.sock, None, Refused(408, "late") if late else TimeoutError())
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
        if conn.inbox:
            yield WRITE  # what is pipelined waits for its turn
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
                return reply(403, "this host name is not served here: see %sALLOWED_HOSTS" % PREFIX)
        if not handler or request.method not in ("GET", "HEAD"):
            return reply(405, "GET and HEAD only") if handler else reply(404, "not found")
        if request.path not in ("/metrics", "/api/sessions") and not request.deep:
            return handler(self, request)  # what reads no disk
        with contextlib.suppress(RuntimeError):  # the system may have no thread for us
            if self.workers < MAX_WORKERS:
                threading.Thread(target=self.work, args=(conn.sock, request), daemon=True).start()
                self.workers += 1
                conn.phase, conn.deadline = "work", float("inf")
                return None
        return reply(503, "too busy")

    def work(self, sock, request):
        """A worker. A bug ends it, with a traceback in the log and a 500 for the client."""
        response = reply(500, "internal error")
        try:
            response = ROUTES[request.path](self, request)
        finally:
            self.done.append((sock, response))
            with contextlib.suppress(OSError):
                self.clapper.send(b"!")

    def count_streams(self):
        """How many listen to events, int; raises OSError where that takes over LOCK_SECONDS."""
        if not self.lock.acquire(timeout=LOCK_SECONDS):
            raise OSError(0, "held for longer than %.1f s" % LOCK_SECONDS)
        self.lock.release()
        return len(self.streams)

    def publish(self):
        """A thread: tell who listens how we are, again and again, while there is one."""
        while True:
            self.wake.wait(BEAT_SECONDS if self.streams else None)
            self.wake.clear()
            self.send(b": beat\n\n")
            if self.streams:
                self.send(b"event: status\ndata: %s\n" % reply(200, self.snapshot()).body)

    def send(self, event):
        """Send to all; forget those who left, and those who do not take it at once."""
        with self.lock:
            while self.arrivals:
                self.streams.add(self.arrivals.popleft())
            for sock in list(self.streams):
                with contextlib.suppress(OSError):
                    with contextlib.suppress(*self.again):
                        if not sock.recv(4096):
                            raise ConnectionError("the client left")
                    if sock.send(event) == len(event):
                        continue
                self.streams.discard(sock)
                sock.close()

    def probe(self, timeout):
        """Ask ourselves for /health as a client would; milliseconds that took, or None."""
        start = time.perf_counter()
        with contextlib.suppress(OSError), socket.socket(self.family) as sock:
            sock.settimeout(timeout)
            sock.connect(self.address)
            with self.trust.wrap_socket(sock) if self.tls else sock as sock:
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if sock.recv(9) == b"HTTP/1.1 ":
                    return round((time.perf_counter() - start) * 1000, 3)

    def keep_watchdog(self, limit):
        """Ping within `limit` seconds, if a request is answered (sd_watchdog_enabled(3))."""
        while not threading.Event().wait(limit / 3):
            if self.probe(limit / 3) is not None:
                notify("WATCHDOG=1\nSTATUS=Serving %d streams" % len(self.streams))


ROUTES = {"/": Server.page, "/metrics": Server.metrics, "/api/sessions": Server.sessions,
          "/health": lambda server, request: reply(*server.vitals(request.deep)),
          "/api/events": lambda server, request: (  # WHATWG HTML, 9.2: server-sent events
              Response(200, b"retry: 1000\n\n", EVENTS) if MAX_STREAMS > len(server.streams)
              + len(server.arrivals) else reply(503, "too many streams"))}


# ---- sockets and supervisors ---------------------------------------------------------------------
def open_listeners(settings):
    """Listening sockets, list, and whether the supervisor gave them; raises SystemExit."""
    host, count = settings.host, os.environ.get("LISTEN_FDS", "")  # sd_listen_fds(3)
    try:
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdecimal() and int(count):
            return [socket.socket(fileno=3 + number) for number in range(int(count))], True
        return [socket.create_server(
            (host, settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=1024, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6())], False
    except (OSError, TypeError) as error:
        return log("cannot listen on %s, port %d: %s" % (
            host, settings.port, getattr(error, "strerror", "no name")), 69)


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
@media(prefers-color-scheme:dark){:root{--bg:#0f1114;--card:#17191d;--ink:#e8e6e3;--dim:#9a9ea5;
--rule:#2b2e33;--ok:#6ccb9f;--no:#ff8a80}}body{margin:0 auto;max-width:60em;background:var(--bg);
color:var(--ink);padding:1.5rem clamp(1rem,4vw,2.5rem);font:16px/1.5 system-ui,sans-serif;
font-variant-numeric:tabular-nums}header,footer,dl,.two{display:flex;flex-wrap:wrap;gap:.3rem
1.5rem}header{justify-content:space-between}header,footer,p,h2,dt,small,td{color:var(--dim);
font-size:.9rem;font-weight:400}p,h2,dd{margin:0}a{color:inherit}:focus-visible{border-radius:2px;
outline:2px solid var(--ok);outline-offset:4px}h1{margin:2rem 0 .3rem;line-height:1.15;
font-size:clamp(1.9rem,6vw,2.8rem)}h1::before{content:"";display:inline-block;width:.42em;
height:.42em;margin:0 .35em .08em 0;border:2px solid;border-radius:50%}h1.ok::before{
color:var(--ok);background:var(--ok)}h1.bad::before{color:var(--no);background:var(--no);
border-radius:2px}dl{gap:1px;margin:2rem 0;overflow:hidden;background:var(--rule);border:1px solid
var(--rule);border-radius:12px}dl div{flex:1 1 7rem;padding:1rem 1.1rem;background:var(--card)}dl
.wide{flex-basis:100%}dd{font-size:1.2rem;font-weight:600}svg{display:block;width:100%;height:48px;
margin:.6rem 0;fill:none;stroke:var(--ok);stroke-width:3}#meter{height:4px;stroke-width:8}path{
vector-effect:non-scaling-stroke}.rule{stroke:var(--rule)}.error{color:var(--no);stroke:var(--no)}
td.ok,.running{color:var(--ok)}.two{gap:0 3rem}.two section{flex:1 1 18rem}table{width:100%;
margin:.4rem 0 2rem;border-collapse:collapse}th,td{padding:.45rem 1rem .45rem 0;border-top:1px solid
var(--rule);font-weight:400;text-align:left;vertical-align:baseline}th{overflow-wrap:anywhere}td{
white-space:nowrap;max-width:6rem;overflow:hidden;text-overflow:ellipsis}td:last-child{
padding-right:0;text-align:right}.stale section{opacity:.5}</style><header><span>{name}</span>
<span id="link">connecting</span></header><main><div role="status"><h1 id="verdict">One moment</h1>
<p id="reason">Asking the server.</p></div><noscript><p>Without JavaScript nothing moves here; the
links below tell the same.</p></noscript><section aria-label="Facts"><dl><div class="wide">
<dt>Accept loop<dd id="loop">–<dd><svg viewBox="0 0 300 48" preserveAspectRatio="none" role="img"
aria-label="Its latest answers"><path class="rule" d="M0 48H300"/><path id="bars"/>
<path id="gaps" class="error"/></svg><small id="accepted"></small></div><div><dt>Up for
<dd id="uptime">–</div><div><dt>Tracked by<dd id="tracked">–</div><div><dt>Open streams
<dd id="streams">–</div><div><dt>File descriptors<dd id="files">–<dd><svg id="meter" role="meter"
viewBox="0 0 100 4" aria-label="File descriptors in use" aria-valuemin="0"
preserveAspectRatio="none"><path class="rule" d="M0 2H100"/><path id="used"/></svg></div></dl>
</section><div class="two"><section><h2 id="c">Checks</h2><table aria-labelledby="c" id="checks">
</table></section><section><h2 id="s">Sessions</h2><table aria-labelledby="s" id="sessions"></table>
</section></div></main><footer><a href="/health?deep=1">Health</a><a href="/metrics">Metrics</a>
<a href="/api/sessions">Sessions</a></footer><script nonce="{nonce}">
const $ = id => document.getElementById(id), samples = [], title = document.title;
let source, retry, last, heard;
const put = (node, text) => { if (node.textContent !== String(text)) node.textContent = text; };
const some = (age, size, unit) => age < size ? '' : Math.floor(age / size) + unit;
const since = (time, age = Date.now() / 1000 - time) => time > 0 ? some(age, 86400, ' d ago') ||
  some(age, 3600, ' h ago') || some(age, 60, ' min ago') || 'now' : '';
function verdict(style, text, reason) {
  [$('verdict').className, document.body.className] = [style, style ? '' : 'stale'];
  document.title = (style === 'ok' ? '' : text + ' · ') + title;
  put($('verdict'), text), put($('reason'), reason), put($('link'), style ? 'live' : 'connecting');
}
function fill(table, rows) {
  while (table.rows.length > rows.length) table.deleteRow(-1);
  rows.forEach((texts, i) => texts.forEach((text, j) => {
    const row = table.rows[i] || table.insertRow();
    const cell = row.cells[j] || row.appendChild(document.createElement(j ? 'td' : 'th'));
    put(cell, String(text).slice(0, 80)), cell.className = j ? text : '';
  }));
}
function show(now) {
  const checks = Object.entries(now.checks), {open, limit, status} = now.checks.file_descriptors;
  const stuck = now.probe_ms === null, sick = stuck ? ['The accept loop does not answer.'] : [];
  for (const [key, check] of checks) if (check.why) sick.push(`${key}: ${check.why}.`);
  if (sick.length) verdict('bad', 'Not well', sick.join(' '));
  else verdict('ok', 'Healthy', `${checks.length} checks, none failed.`);
  last = now, heard = performance.now(), samples.splice(0, samples.push(now.probe_ms) - 60);
  const top = Math.max(5, ...samples), bars = missed => samples.map((time, i) =>
    missed !== (time === null) ? '' : `M${303 - (samples.length - i) * 5} 48v${
      missed ? -44 : -4 - time / top * 40}`).join('');
  for (const [id, name, value] of [['bars', 'd', bars(false)], ['gaps', 'd', bars(true)],
    ['meter', 'aria-valuenow', open], ['meter', 'aria-valuemax', limit], ['used', 'class', status],
    ['used', 'd', `M0 2H${limit > 0 ? Math.max(1, open / limit * 100) : 0}`]])
    $(id).setAttribute(name, value);
  put($('loop'), stuck ? 'does not answer' : `answers in ${now.probe_ms.toFixed(1)} ms`);
  put($('accepted'), `${now.accept_loop.requests_total} connections, its own every ${now.beat} s`);
  put($('tracked'), now.tracked_by), put($('streams'), now.active_streams ?? '?'), tick();
  put($('files'), limit > 0 ? `${open} of ${limit}` : open ?? 'not known');
  fill($('checks'), checks.map(([key, check]) =>
    [key.replace('_', ' '), check.status, check.ms.toFixed(2) + ' ms']));
  put($('s'), `Sessions (${now.session_count})`);
  fill($('sessions'), now.sessions.map(row => [row.title || row.session_id, row.active_stream_id ?
    'running' : row.pending_user_message ? 'waiting' : row.source || '', since(row.updated_at)]));
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
const lose = () => connect(1000, 'No answer', 'Trying again every second.');
function tick() {
  const quiet = (performance.now() - heard) / 1000, time = last ? last.uptime_seconds + quiet : 0;
  if (last) quiet > 4 * last.beat ? lose() : put($('uptime'), some(time, 86400, ' d ') +
    new Date(time * 1000).toISOString().slice(11, 19));
}
setInterval(tick, 500);
addEventListener('pagehide', quit);  /* a page with an open stream is not kept for going back */
addEventListener('pageshow', () => connect(0, 'One moment', 'Asking the server.'));
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
    if limit.isdecimal() and int(limit) and os.environ.get("WATCHDOG_PID", ours) == ours:
        threading.Thread(target=server.keep_watchdog, args=(int(limit) / 1e6,), daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
