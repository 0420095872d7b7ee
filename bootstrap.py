"""Start a Python web server from its checkout, and hand it over the right way.

Modes: where a supervisor provably tracks this process, it becomes the server (os.execv) and
keeps its pid. In a container whose pid 1 is s6-svscan, the server becomes a service of s6.
Elsewhere it is detached, and the prompt comes back once it has answered its health check.
--print-plan says which, and why.

Settings, first one wins: command line, environment, .env, bootstrap.cfg, built-in. Their names:
HERMES_WEBUI_HOST (bootstrap.cfg may name another prefix), and likewise PORT PYTHON STATE_DIR
AGENT_DIR FOREGROUND SERVER_CWD DISABLE_LOCAL_VENV NO_SUPERVISE WATCHDOG TLS_CERT TLS_KEY;
DOTENV_OVERRIDE=1 lets .env win.

Exit codes:
  0 done            1 the server ended before it was healthy, is sick, or a supervisor has it
  2 usage           3 not running, no such instance  69 the port or instance is taken
  73, 74 state folder cannot be made, is full        75 not healthy within the time limit
  78 configuration  126 not executable  127 not found  130 interrupted  143 terminated

This file needs nothing but the standard library, and is copied unedited into any repository.
"""
import sys

if sys.version_info < (3, 8):
    sys.exit("bootstrap: Python 3.8 or newer is needed, this is %d.%d (%s)"
             % (sys.version_info[0], sys.version_info[1], sys.executable))

# Every other module is imported where it is used. Of argparse, collections, configparser,
# contextlib, enum, json, socket, subprocess and urllib a start needs little, and to import one
# takes from a fifth of Python's own start to more than the whole: that little is written out below.
import errno
import gc
import itertools
import os
import time

# -- constants ---------------------------------------------------------------------------------

__version__ = "1.0.0"
REPO_ROOT = os.path.dirname(os.path.realpath(__file__))
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8787
VENV = os.path.join(REPO_ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
VENV_STAMP = os.path.join(VENV, "bootstrap-stamp")
BOOT_ID = "/proc/sys/kernel/random/boot_id"        # see random(4)
HAS_PROC = os.path.exists("/proc/self/stat")

FOREGROUND, DETACHED, SUPERVISED = "foreground", "detached", "supervised by s6"
LEAVE, REFUSE = "leave alone", "refuse"
YES = ("1", "true", "yes", "on")
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_INTEROP")
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}    # wildcard: the address to reach it at
SETTINGS = ("HOST", "PORT", "STATE_DIR", "PYTHON", "AGENT_DIR", "FOREGROUND",
            "DISABLE_LOCAL_VENV", "SERVER_CWD", "NO_SUPERVISE")

LOG_LIMIT = 10 * 1024 * 1024    # bytes after which a log is set aside at the next start
ANSWER_LIMIT = 64 * 1024        # bytes of a health answer that are read
PROBE_LIMIT = 5.0               # seconds that one health probe may take
SLICE = 0.1                     # seconds that a wait may last without looking up
ENTRY_LIMIT = 128 * 1024 - 2    # bytes of one variable without = and NUL, see execve(2)
TAIL = 20                       # lines of a log shown where no number is asked for
HEARTBEAT = 5                   # seconds between two signs of life of an installer
CHANGED = "the requirements have changed"

USUAL_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin")
ENVIRONMENT_MARKS = ("pyvenv.cfg", "bin/python", "bin/python3", "bin/activate")
PACKAGES = ("site-packages", "dist-packages")
PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
PROJECT_TABLES = ("[project]", "[build-system]", "[tool.poetry]")
FILE_FLAGS = ("--requirement", "--constraint", "--editable", "-r", "-c", "-e")
SIGNS = {                       # clause of a version rule: how the version may compare
    "==": (0,), "!=": (-1, 1), "<": (-1,), ">": (1,), "<=": (-1, 0), ">=": (0, 1), "~=": (0, 1)}

MARKERS = (                     # variable, the supervisor that sets it
    ("INVOCATION_ID", "systemd"), ("JOURNAL_STREAM", "systemd"), ("NOTIFY_SOCKET", "systemd"),
    ("XPC_SERVICE_NAME", "launchd"), ("SUPERVISOR_ENABLED", "supervisord"))
# What supervisors say to the one process they track; a detached server is not that process.
SUPERVISOR_VARIABLES = frozenset(
    [name for name, _ in MARKERS] + "SYSTEMD_EXEC_PID MANAGERPID WATCHDOG_PID WATCHDOG_USEC"
    " LISTEN_PID LISTEN_FDS LISTEN_FDNAMES SUPERVISOR_PROCESS_NAME SUPERVISOR_GROUP_NAME"
    " SUPERVISOR_SERVER_URL HONCHO_PROCESS_NAME RC_SVCNAME MONIT_SERVICE NODE_CHANNEL_FD"
    " pm_id pm_pid_path".split())
SHELLS = frozenset("sh bash dash ash zsh ksh mksh fish busybox".split())
WRAPPERS = frozenset("runuser su sudo doas timeout flock".split())
CONTAINER_INITS = frozenset("tini dumb-init docker-init catatonit podman-init s6-svscan".split())
PARENTS = {                     # name of the parent process: the supervisor that it belongs to
    "runsv": "runit", "s6-supervise": "s6", "supervise": "daemontools", "PM2": "PM2",
    "supervise-daemon": "OpenRC", "supervisord": "supervisord", "circusd": "circus",
    "honcho": "honcho"}
SUPERVISORS = {                 # supervisor: its command for a service, its verbs stop and restart
    "systemd": ("systemctl {user}{verb} {unit}", "stop", "restart"),
    "launchd": ("launchctl {verb} gui/{uid}/{XPC_SERVICE_NAME}", "bootout", "kickstart -k"),
    "supervisord": ("supervisorctl {verb} {SUPERVISOR_GROUP_NAME}:{SUPERVISOR_PROCESS_NAME}",
                    "stop", "restart"),
    "runit": ("sv {verb} {folder}", "down", "restart"),
    "s6": ("s6-svc {verb} {folder}", "-d", "-r"),
    "daemontools": ("svc {verb} {folder}", "-d", "-t"),
    "OpenRC": ("rc-service {RC_SVCNAME} {verb}", "stop", "restart"),
    "circus": ("circusctl {verb}", "stop", "restart"),
    "honcho": ("{verb} honcho itself", "end", "start"),
    "PM2": ("pm2 {verb} {name}", "stop", "restart"),
    "the container engine": ("{verb} the container", "stop", "restart")}

# -- errors ------------------------------------------------------------------------------------


class Exit:
    """Exit codes: sysexits(3), the shell's 126, 127 and 128+n, and the LSB's 3 for --status."""

    OK, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3
    TAKEN, CANNOT_CREATE, IO_ERROR, NOT_HEALTHY, CONFIG = 69, 73, 74, 75, 78
    NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 126, 127, 128


class LaunchError(RuntimeError):
    """What the operator can put right: exit code, problem, remedy, lines to show in between."""

    def __init__(self, code, problem, remedy, detail=()):
        super().__init__("%s\n  %s" % (problem, remedy))
        self.code, self.problem, self.remedy, self.detail = code, problem, remedy, detail


class suppress:
    """As contextlib.suppress."""

    def __init__(self, *kinds):
        self.kinds = kinds

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        return kind is not None and issubclass(kind, self.kinds)


# -- data --------------------------------------------------------------------------------------


class Row(tuple):
    """A tuple with names, as collections.namedtuple makes it."""

    _fields = ()

    def __init_subclass__(cls):
        for number, name in enumerate(cls._fields):
            setattr(cls, name, property(lambda self, number=number: self[number]))

    def __new__(cls, *values, **named):
        missing = cls._fields[len(values):]
        if len(values) > len(cls._fields) or set(missing) != set(named):
            raise TypeError("%s has the fields %s" % (cls.__name__, ", ".join(cls._fields)))
        return super().__new__(cls, values + tuple(map(named.get, missing)))

    def __getnewargs__(self):
        return tuple(self)

    def _replace(self, **changes):
        return type(self)(**dict(zip(self._fields, self), **changes))


def data(name, fields, doc):
    """A type of Row with its docstring."""
    return type(name, (Row,), {"_fields": fields.split(), "__doc__": doc})


class App(Row):
    """What differs between repositories; one field per key of bootstrap.cfg, times in seconds.

    source: path of the file, None for this repository's own; given: the keys it names.
    """

    _fields = ("name command host port health env_prefix state_dir install requires_python"
              " start_timeout stop_timeout companion companion_marker companion_command"
              " source given").split()

    def env(self, name):
        """Name of one of our environment variables: env("PORT") is HERMES_WEBUI_PORT here."""
        return self.env_prefix + name

    @property
    def slug(self):
        """The name in small letters, digits and dashes, as units and slots are called."""
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in self.name.lower())
        return "-".join(words.split()) or "app"


class Launch(Row):
    """What is to be started: additions go from .env to os.environ, notes to the operator."""

    _fields = "app settings additions notes".split()
    host = property(lambda self: self.settings["HOST"].value)
    port = property(lambda self: self.settings["PORT"].value)
    state_dir = property(lambda self: self.settings["STATE_DIR"].value)
    is_tcp = property(lambda self: self.app.health == "tcp")
    has_own_server = property(lambda self: self.app.source is None)

    def path(self, kind):
        """Path of the instance's lock, record or log."""
        return os.path.join(self.state_dir, "bootstrap-%d.%s" % (self.port, kind))

    @property
    def url(self):
        """URL (str) under which this machine reaches the server; wildcards become loopback."""
        host = LOOPBACK.get(self.host, self.host)
        key = self.app.env("TLS_CERT")
        cert = self.additions.get(key, os.environ.get(key, ""))
        scheme = "https" if cert.strip() else "http"
        return "%s://%s:%d/" % (scheme, "[%s]" % host if ":" in host else host, self.port)

    def health_url(self, record=None, query=""):
        path = "" if self.is_tcp else self.app.health[1:]
        mark = query and ("&" if "?" in path else "?")
        return (record or {}).get("url", self.url) + path + mark + query

    def probe(self, record, query=""):
        """What the server answers to one question now, "healthy" where that is good."""
        return probe(split_url(self.health_url(record, query)), time.monotonic() + PROBE_LIMIT,
                     self.is_tcp, self.has_own_server)


class Health(Row):
    """Outcome of waiting for a server: true where it is healthy, else why it is not."""

    _fields = "code problem".split()

    def __bool__(self):
        return self.code == Exit.OK


Setting = data("Setting", "value origin", "A value (None where there is none), and its origin.")
Entry = data("Entry", "name value line", "One assignment of a .env file.")
Complaint = data("Complaint", "line why", "A bad line of a .env file; never quotes its text.")
Process = data("Process", "pid ppid sid start state name", """One row of the process table.

start: clock ticks since boot (str, proc(5)); from ps(1) its lstart.""")
Facts = data("Facts", (
    "pid parent chain at_init watcher exec_pid journal marker terminal leader scan"), """\
What was observed about this process, once.

pid, parent: 0 where nothing is to be concluded from them; chain: the Process of each ancestor,
nearest first; at_init: True where the chain reaches pid 1, False where it ends at ppid 0 without
(docker exec), None if unknown; watcher: name of the nearest ancestor that does not only wait for
its command, "" without one; exec_pid: SYSTEMD_EXEC_PID as int, or None; journal: whether
JOURNAL_STREAM is our output; marker: name of a supervisor's variable, or None; terminal: on
stdin and stdout; leader: whether we lead our process group; scan: folder of the s6-svscan that
is pid 1, None where its gates are closed.""")
Verdict = data("Verdict", "mode why supervisor hearsay",
               "A mode, its evidence, who tracks us (or None), the variable not believed.")
Plan = data("Plan", "mode why record error", """\
What a start does: FOREGROUND, DETACHED, SUPERVISED, LEAVE or REFUSE.

record: of the running instance that is left alone; error: the LaunchError that refuses.""")

OWN = App(
    name="Hermes Web UI", command="{python} {root}/server.py", host=DEFAULT_HOST,
    port=DEFAULT_PORT, health="/health", env_prefix="HERMES_WEBUI_", state_dir="", install="",
    requires_python="", start_timeout=60.0, stop_timeout=10.0, companion="hermes-agent",
    companion_marker="run_agent.py", companion_command="hermes", source=None, given=frozenset())
APP = OWN


def __getattr__(name):
    """bootstrap.subprocess, loaded at its first use (PEP 562): the foreground never needs it."""
    if name == "subprocess":
        import subprocess
        return subprocess
    raise AttributeError("module 'bootstrap' has no attribute %r" % name)


def split_words(text):
    """Words (list of str) of a line as a shell takes them; most lines need no shlex for that."""
    if not set(text) & set("\\'\""):
        return text.split()
    import shlex
    return shlex.split(text)


def quote_words(*words):
    """The words as one line for a shell."""
    import shlex
    return shlex.join(words)


# -- configuration -----------------------------------------------------------------------------


def read_app(path=None):
    """The App of this repository, from path (str), else bootstrap.cfg; LaunchError (78)."""
    source = path or os.path.join(REPO_ROOT, "bootstrap.cfg")
    if not path and not os.path.lexists(source):
        return OWN
    given = read_config(source)
    name = given.get("name") or os.path.basename(REPO_ROOT) or "app"
    prefix = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.upper()) + "_"
    neutral = OWN._replace(
        name=name, env_prefix="_" + prefix if prefix[0].isdigit() else prefix, companion="",
        companion_marker="", companion_command="", source=source, given=frozenset(given))
    return neutral._replace(**given)


def read_config(source):
    """Checked values of section [bootstrap] of the INI file at source, by key."""
    def fail(problem):
        raise LaunchError(Exit.CONFIG, f"{source} {problem}",
                          "valid keys in [bootstrap]: " + ", ".join(sorted(CONFIG_KEYS)))
    given = {}
    try:
        with open(source, "rb") as file:
            rows = read_section(file.read().decode("utf-8").lstrip("\ufeff"), "bootstrap")
    except (OSError, ValueError) as error:
        fail(f"cannot be read: {error}")
    if rows is None:
        fail("has no section [bootstrap]")
    for key, text in rows.items():
        if key not in CONFIG_KEYS:
            fail("has an unknown key %r" % key)
        try:
            given[key] = checked(text, *CONFIG_KEYS[key])
        except ValueError as error:
            fail("%s = %s: %s" % (key, text, error))
    return given


def read_section(text, wanted):
    """Values (dict of str) of one section of an INI file, None where it has none; ValueError.

    As configparser reads it without interpolation, but with every value on its own line.
    """
    sections, name = {}, None
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        is_header = line[:1] == "[" and line[-1:] == "]"
        cut = min((line.find(mark) for mark in "=:" if mark in line), default=0)
        key = line[:cut].strip().lower()
        if line[:1] in ("", "#", ";"):
            continue
        if line[1:-1] in sections if is_header else key in sections.get(name, ()):
            raise ValueError(f"line {number} says {key or line} again")
        if is_header:
            name = line[1:-1]
            sections[name] = {}
        elif name is None or not key:
            raise ValueError(f"line {number} is not KEY = VALUE in a section")
        else:
            sections[name][key] = line[cut + 1:].strip()
    rows = sections.get(wanted)
    return rows if rows is None else dict(sections.get("DEFAULT", {}), **rows)


def checked(text, convert, is_good, wanted):
    """convert(text), or ValueError that says what is wanted."""
    try:
        value = convert(text)
    except (ValueError, KeyError, IndexError, AttributeError):
        value = None
    if value is None or not is_good(value):
        raise ValueError("must be " + wanted)
    return value


def checked_command(text):
    words = [word.format(python="", host="", port="", root="") for word in split_words(text)]
    return text if words else None


NUMBER = (lambda text: int(text) if text.isascii() and text.isdigit() else None,
          lambda value: 1 <= value <= 65535, "a number from 1 to 65535")
SECONDS = (float, lambda value: 0 < value < 1e6, "a number of seconds above 0")
LINE = (str, str.isprintable, "one line of printable text")
CONFIG_KEYS = {                 # key: how it is read, when it is good, what is wanted
    "name": (str, lambda text: text.isprintable() and text.strip(".") and "/" not in text,
             "a name without a slash"),
    "command": (checked_command, str.isprintable, "a command of {python} {host} {port} {root}"),
    "host": LINE, "port": NUMBER,
    "health": (str, lambda text: text == "tcp" or text[:1] == "/" and text.isprintable() and
               text.isascii() and " " not in text, "a path that starts with /, or tcp"),
    "env_prefix": (str, lambda text: text.isascii() and text.isidentifier() and
                   text[-1] == "_", "letters, digits and _, with a _ at its end"),
    "state_dir": LINE, "install": LINE,
    "requires_python": (lambda text: parse_rule(text) and text, bool,
                        "versions of Python such as >=3.9,<3.13"),
    "start_timeout": SECONDS, "stop_timeout": SECONDS,
    "companion": LINE, "companion_marker": LINE, "companion_command": LINE}

# -- .env --------------------------------------------------------------------------------------

# Linear: an opening quote closes every one before it, so no two of them scan the same text.
DOTENV = r"""
    [^\S\n]* (?: \#[^\n]* )? (?: \n | \Z )
  | [^\S\n]* (?: export [^\S\n]+ )? (?P<name> [A-Za-z_]\w* ) [^\S\n]* =
    (?: [^\S\n]* (?: ' (?P<literal> [^']* ) ' | " (?P<quoted> [^"\\]* (?: \\. [^"\\]* )* ) " )
        [^\S\n]* (?: \#[^\n]* )?
      | (?! [^\S\n]* ['"] ) (?P<plain> [^\n]* ) ) (?: \n | \Z )
  | (?P<bad> [^\n]* ) (?: \n | \Z )
"""
ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def parse_dotenv(text):
    """Assignments of a .env file: (list of Entry, list of Complaint); executes nothing.

    text: str, decoded with surrogateescape, so that a byte that is not UTF-8 spoils one entry
    only. The grammar is what python-dotenv and docker compose agree on.
    """
    import re
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    entries, complaints, number = [], [], 1
    for match in re.finditer(DOTENV, text, re.ASCII | re.VERBOSE | re.DOTALL):
        name, value, quoted, plain, bad = match.groups()
        if quoted is not None:
            value = re.sub(r'\\([nt"\\])', lambda escape: ESCAPES[escape.group(1)], quoted)
        elif plain is not None:
            value = re.split(r"\s#", plain, maxsplit=1)[0].strip()
        complaint = complain(name, value, bad)
        if complaint:
            complaints.append(Complaint(number, complaint))
        elif name:
            entries.append(Entry(name, value, number))
        number += match.group().count("\n")
    return entries, complaints


def complain(name, value, bad):
    """What is wrong with an entry, or with a line that is none; names it only if that is safe."""
    if name:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return name + " is not UTF-8"
        return name + " holds a NUL byte" if "\0" in value else ""
    before, equals, _ = (bad or "").partition("=")
    name = " ".join(before.split()[before.split()[:1] == ["export"]:])
    if bad and not equals:
        return "no = follows the name"
    if bad and not (name.isascii() and name.isidentifier()):
        return "not a valid name before the ="
    return bad and name + " has a quote that is not closed, or text behind it"


def read_dotenv(path):
    """Entries by name (the last one wins), and what there is to say about the file at path."""
    if not os.path.lexists(path):
        return {}, []
    try:
        if not os.path.isfile(path):
            raise OSError(errno.EINVAL, "it is not a file")
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except OSError as error:
        return {}, ["%s is ignored: %s" % (path, error.strerror)]
    entries, complaints = parse_dotenv(text)
    return ({entry.name: entry for entry in entries},
            [".env:%d: %s" % complaint for complaint in complaints])


# -- settings ----------------------------------------------------------------------------------


def settle(app, options):
    """The Launch that app, command line, environment and .env lead to; LaunchError (2, 78)."""
    dotenv, notes = read_dotenv(os.path.join(REPO_ROOT, ".env"))
    file_wins = is_yes(os.environ.get(app.env("DOTENV_OVERRIDE")))
    ours = frozenset(app.env(name) for name in SETTINGS)
    additions = {}
    for name, entry in dotenv.items():
        outside = os.environ.get(name)
        if name in ours and not entry.value.strip():
            continue
        if len(name) + len(entry.value.encode()) > ENTRY_LIMIT:
            notes.append(".env:%d: %s is longer than any program can be given" % (entry.line, name))
        elif outside is None or file_wins or name in ours and not outside.strip():
            additions[name] = entry.value
        elif name in ours and entry.value.strip() != outside.strip():
            notes.append(".env:%d: %s is set otherwise in the environment, which wins"
                         % (entry.line, name))
    settings = {name: find_setting(name, app, options, additions, dotenv) for name in SETTINGS}
    settings["HOST"] = settings["HOST"]._replace(value=settings["HOST"].value.strip("[]"))
    value, origin = settings["PORT"]
    try:
        settings["PORT"] = Setting(checked(value, *NUMBER), origin)
    except ValueError as error:
        code = Exit.USAGE if origin == "command line" else Exit.CONFIG
        raise LaunchError(code, f"{app.env('PORT')} is {value!r} ({origin}), it {error}",
                          "correct or remove it", notes)
    settings["STATE_DIR"] = settings["STATE_DIR"]._replace(
        value=state_folder(settings["STATE_DIR"].value, app, dict(os.environ, **additions)))
    return Launch(app, settings, additions, notes)


def find_setting(name, app, options, additions, dotenv):
    """The winning Setting; a blank one counts as not set."""
    key, field = app.env(name), name.lower()
    candidates = (
        (getattr(options, field, None) if name in ("HOST", "PORT") else None, "command line"),
        (additions.get(key), ".env:%d" % dotenv[key].line if key in additions else None),
        (os.environ.get(key), "environment"),
        (getattr(app, field, None),
         os.path.basename(app.source) if field in app.given else "built-in"))
    for value, origin in candidates:
        if value is not None and str(value).strip():
            return Setting(str(value).strip(), origin)
    return Setting(None, "built-in")


def is_yes(value, words=YES):
    return (value or "").strip().lower() in words


def state_folder(folder, app, environ):
    """Absolute path (str) of the folder for record, lock and log; LaunchError (78) without HOME."""
    if folder and folder == app.state_dir:
        folder = os.path.join(REPO_ROOT, os.path.expanduser(folder))
    elif not folder and app.source:
        folder = os.path.join(environ.get("XDG_STATE_HOME") or "~/.local/state", app.name)
    folder = os.path.expanduser(folder or os.path.join(
        environ.get("HERMES_HOME") or "~/.hermes", "webui"))
    if folder.startswith("~"):
        raise LaunchError(Exit.CONFIG, f"no home folder is known for {folder}",
                          f"set HOME, or {app.env('STATE_DIR')} to a folder")
    return os.path.abspath(folder)


# -- facts -------------------------------------------------------------------------------------


def observe(may_supervise):
    """Gather the Facts; the only reader of pids, ancestors and terminals for a start.

    Where another program imported this module, that process is not ours to judge: flag and
    marker alone decide.
    """
    marker = _detect_supervisor()
    if __name__ != "__main__":
        return Facts(0, 0, (), None, "", None, False, marker, False, False, None)
    chain, at_init = read_ancestors(os.getppid())
    exec_pid = os.environ.get("SYSTEMD_EXEC_PID", "")
    streams = ["%d:%d" % (file.st_dev, file.st_ino) for file in map(os.fstat, (1, 2))]
    return Facts(
        pid=os.getpid(), parent=os.getppid(), chain=chain, at_init=at_init,
        watcher=next((process.name for process in chain if not waits(process)), ""),
        exec_pid=int(exec_pid) if exec_pid.isascii() and exec_pid.isdigit() else None,
        journal=os.environ.get("JOURNAL_STREAM") in streams,
        marker=marker, terminal=os.isatty(0) and os.isatty(1),
        leader=os.getpgrp() == os.getpid(),
        scan=scan_folder() if may_supervise and not setting_now(SENTINEL) else None)


def read_ancestors(pid):
    """(tuple of Process from pid upwards, whether it reaches pid 1: True, False or None)."""
    chain = []
    while pid > 0:
        process = read_process(pid)
        if process is None:
            return tuple(chain), None
        chain.append(process)
        pid = process.ppid
    return tuple(chain), any(process.pid == 1 for process in chain) if HAS_PROC else None


def read_process(pid):
    """The Process with this pid, or None where there is none to be seen (proc(5))."""
    before, _, after = read_text("/proc/%d/stat" % pid).rpartition(")")
    if not before:
        return None
    fields = after.split()
    return Process(pid, int(fields[1]), int(fields[3]), fields[19], fields[0],
                   program_name(read_arguments(pid)) or before.partition("(")[2])


def read_arguments(pid):
    """Arguments (list of str) of a process; [""] for a zombie, a kernel thread, a stranger."""
    return read_text("/proc/%d/cmdline" % pid, 65536).rstrip("\0").split("\0")


def program_name(arguments):
    """What a process is called by its arguments: its program, for a Python its script or module."""
    if arguments[0].startswith("PM2 "):
        return "PM2"
    name = os.path.basename(arguments[0]).lstrip("-")
    if not name.startswith(("python", "pypy")):
        return name
    words = iter(arguments[1:])
    for word in words:
        if word in ("-W", "-X"):
            next(words, None)
        elif word[:1] != "-":
            return os.path.basename(word)
        elif word[-1:] in ("c", "m") and word[:2] != "--":
            return next(words, "").rpartition(".")[2] if word[-1] == "m" else name
    return name


# -- supervision -------------------------------------------------------------------------------


def _is_real_supervisor_value(name, value):
    """Whether a marker variable's value (str) can come from a supervisor.

    launchd gives XPC_SERVICE_NAME to every process of a login session: "0", or the name of
    the application around it. Only a service has a label of its own (launchd.plist(5)).
    """
    if name == "XPC_SERVICE_NAME":
        return bool(value) and value != "0" and not value.startswith("application.")
    return bool(value)


def _detect_supervisor():
    """Name of the variable in os.environ that speaks for a supervisor, or None."""
    wish = APP.env("FOREGROUND")
    if is_yes(os.environ.get(wish)):
        return wish
    for name, _ in MARKERS:
        if _is_real_supervisor_value(name, os.environ.get(name, "")):
            return name
    return None


def waits(process):
    """Whether a process only waits for its command: a shell, or a wrapper such as sudo."""
    return process.name in SHELLS or process.name in WRAPPERS


def is_exec_pid_above(facts):
    """Whether SYSTEMD_EXEC_PID is an ancestor that, like all between, only waits for us."""
    # A shell with job control at a terminal is a person's, even as a unit's main process.
    above = itertools.takewhile(waits, facts.chain)
    return any(process.pid == facts.exec_pid for process in above) and not (
        facts.terminal and facts.leader)


def is_init_waiting(facts):
    """Whether pid 1 is a shell or a container's init, and only waits for us, without a terminal."""
    return facts.at_init and not facts.terminal and all(map(waits, facts.chain[:-1])) and (
        waits(facts.chain[-1]) or facts.chain[-1].name in CONTAINER_INITS)


ENGINE = "the container engine"
EVIDENCE = (    # what holds, the mode, why, who tracks us, the variable that is not believed
    (lambda it: it.pid == 1, FOREGROUND, "this is pid 1", ENGINE, None),
    (lambda it: it.watcher in PARENTS, FOREGROUND, "child of {watcher}", "{supervisor}", None),
    (lambda it: it.watcher == "monit", DETACHED, "child of monit, it wants daemons", None, None),
    (lambda it: it.scan, SUPERVISED, "s6 is pid 1 of this container", "s6", None),
    (is_init_waiting, FOREGROUND, "pid 1 waits for this process", ENGINE, None),
    (lambda it: it.at_init is False, DETACHED, "entered this container from outside", None, None),
    (lambda it: it.exec_pid == it.pid, FOREGROUND, "SYSTEMD_EXEC_PID is this pid", "systemd", None),
    (is_exec_pid_above, FOREGROUND, "SYSTEMD_EXEC_PID waits for this process", "systemd", None),
    (lambda it: it.exec_pid is not None, DETACHED, "it is another process's", None,
     "SYSTEMD_EXEC_PID"),
    (lambda it: it.journal, FOREGROUND, "JOURNAL_STREAM is this process's output", "systemd", None),
    (lambda it: it.marker and it.terminal, DETACHED, "a person is at a terminal", None, "{marker}"),
    # launchd is pid 1 and nothing else proves it; elsewhere a marker alone proves nobody.
    (lambda it: it.marker and it.parent == 1, FOREGROUND, "{marker} is set", "{setter}", None),
    (lambda it: it.marker, FOREGROUND, "{marker} is set", None, None),
    (lambda it: True, DETACHED, "nothing supervises this process", None, None))


def judge(facts):
    """The Verdict of the first row of EVIDENCE that holds."""
    row = next(row for row in EVIDENCE if row[0](facts))
    names = {"watcher": facts.watcher, "supervisor": PARENTS.get(facts.watcher),
             "marker": facts.marker, "setter": dict(MARKERS).get(facts.marker)}
    return Verdict(row[1], *(text and text.format(**names) for text in row[2:]))


def tracking_fields(supervisor, facts=None):
    """What the record keeps of who tracks us: its name, its stop and its restart command."""
    cgroups = (line.rpartition(":")[2] for line in read_text("/proc/self/cgroup").splitlines())
    unit = next((path for path in cgroups if path.endswith(".service")), "")    # cgroups(7)
    fields = dict(dict.fromkeys("SUPERVISOR_GROUP_NAME SUPERVISOR_PROCESS_NAME RC_SVCNAME name"
                                " XPC_SERVICE_NAME folder".split(), "SERVICE"), **os.environ)
    fields.update(uid=os.getuid(), unit=os.path.basename(unit) or "UNIT",
                  user="--user " if "/user@" in unit else "")
    with suppress(OSError, StopIteration, AttributeError):
        watcher = next(process for process in facts.chain if process.name == facts.watcher)
        fields["folder"] = os.readlink("/proc/%d/cwd" % watcher.pid)
    command, *verbs = SUPERVISORS.get(supervisor, ("", "", ""))
    stop, restart = (command.format_map(dict(fields, verb=verb)) for verb in verbs)
    return {"supervisor": supervisor or "", "stop_command": stop, "restart_command": restart}


# -- interpreter and dependencies --------------------------------------------------------------


def ensure_supported_platform():
    """Raise LaunchError (78) on native Windows, which has neither exec nor sessions."""
    if sys.platform == "win32" or os.name == "nt":
        raise LaunchError(Exit.CONFIG, "native Windows is not supported",
                          "run it inside WSL2, where it works as on Linux")


def find_program(name, more=()):
    """Path of an executable file on PATH, or in one of more folders, or None."""
    paths = (os.path.join(folder, name) for folder in (*os.get_exec_path(), *more))
    return next(filter(is_program, paths), None)


def is_program(path):
    return os.path.isfile(path) and os.access(path, os.X_OK)


def setting_now(name):
    """One of our settings as the environment has it now, "" where it is blank or not set."""
    return os.environ.get(APP.env(name), "").strip()


def hermes_command_exists():
    """Whether the companion's command is on PATH."""
    return bool(APP.companion_command and find_program(APP.companion_command))


def discover_agent_dir():
    """Folder (str) of the companion's checkout, the first that holds its marker, or None."""
    folders = companion_folders() if APP.companion else ()
    return next((os.path.abspath(folder) for folder in folders if folder and os.path.isfile(
        os.path.join(folder, APP.companion_marker))), None)


def companion_folders():
    """Where the companion may be, in the order in which it counts; the costly places last."""
    yield os.path.expanduser(setting_now("AGENT_DIR"))
    for parent in (os.path.expanduser(os.environ.get("HERMES_HOME") or "~/.hermes"),
                   os.path.dirname(REPO_ROOT), os.path.expanduser("~"), "/usr/local/lib"):
        yield os.path.join(parent, APP.companion)
    command = find_program(APP.companion_command) if APP.companion_command else None
    programs = [os.path.realpath(command)] if command else []
    yield from map(os.path.dirname, programs)
    words = read_text(programs[0], 4096).replace("#!", " ") if programs else ""
    names = ("python", APP.companion_command or "python")
    programs += [word for word in words.replace('"', " ").replace("'", " ").split()
                 if os.path.basename(word).startswith(names) and "/" in word]
    for program in programs + [setting_now("PYTHON") or sys.executable]:
        yield os.path.dirname(os.path.dirname(os.path.dirname(program)))
        yield from site_folders(program)


def site_folders(python):
    """Folders (list of str) of packages beside an interpreter, found without running it."""
    prefix, found = os.path.dirname(os.path.dirname(python)), []
    for library in (prefix + "/lib", prefix + "/local/lib"):
        with suppress(OSError):
            found += ["%s/%s/%s" % (library, name, kind) for kind in PACKAGES
                      for name in sorted(os.listdir(library), reverse=True) if "python3" in name]
    return [folder for folder in found if os.path.isdir(folder)]


def discover_launcher_python(agent_dir):
    """Path (str) of the interpreter to use; PYTHON is final, whatever it names."""
    return find_python(agent_dir)[0]


def find_python(agent_dir):
    """(path, where it comes from) of the first candidate that fits; LaunchError (127)."""
    chosen = setting_now("PYTHON")
    if chosen:
        path = os.path.join(os.getcwd(), chosen) if "/" in chosen else find_program(chosen)
        return path or chosen, APP.env("PYTHON")
    rule, rejected = APP.requires_python or pinned_version(), []
    for path, origin in python_candidates(agent_dir):
        why = why_not_executable(path) or rule and why_other_version(path, rule)
        if not why:
            return path, origin
        rejected.append("%s (%s): %s" % (path, origin, why))
    raise LaunchError(Exit.NOT_FOUND, "none of these is a Python " + (rule or "3"),
                      f"install one, or set {APP.env('PYTHON')} to one", rejected)


def python_candidates(agent_dir):
    """(path, where it comes from) of each interpreter that may be meant, the best first."""
    for name in ("venv", ".venv") if agent_dir else ():
        yield os.path.join(agent_dir, name, "bin", "python"), "the companion's " + name
    if agent_dir and os.path.basename(agent_dir) in PACKAGES:
        yield os.path.normpath(agent_dir + "/../../../bin/python"), "the companion's environment"
    is_complete = os.path.exists(VENV_STAMP) or not install_arguments()
    if is_complete and not is_yes(setting_now("DISABLE_LOCAL_VENV")):
        yield VENV_PYTHON, "this repository's .venv"
    yield sys.executable, "the Python that runs bootstrap.py"
    for name in ["python3.%d" % minor for minor in range(19, 7, -1)] + ["python3"]:
        path = find_program(name, USUAL_FOLDERS)
        if path:
            yield path, name + " on PATH"


def pinned_version():
    """The series (such as "3.11") that .python-version names, "" where it names none."""
    _, three, minor = read_text(os.path.join(REPO_ROOT, ".python-version"), 4096).partition("3.")
    digits = "".join(itertools.takewhile(str.isdigit, minor))
    return digits and three + digits


def parse_rule(rule):
    """[(sign, tuple of int)] of ">=3.9,<3.13"; a number alone means ==. ValueError if malformed."""
    import re
    clauses = [re.match(r"\s*(~=|[=!<>]=|[<>]|)\s*(\d+(?:\.\d+)*)(?:\.\*)?\s*$", clause)
               for clause in rule.split(",")]
    if not all(clauses):
        raise ValueError(rule)
    return [(clause.group(1) or "==", tuple(map(int, clause.group(2).split("."))))
            for clause in clauses]


def why_other_version(python, rule):
    """Why an interpreter's version breaks a rule, "" where it does not.

    As in PEP 440, but with as many numbers as the clause has: 3.9.5 is <=3.9 and not >3.9.
    """
    version = version_of(python)
    for sign, wanted in parse_rule(rule) if version else ():
        series = version[:len(wanted)]
        if (series > wanted) - (series < wanted) not in SIGNS[sign] or (
                sign == "~=" and series[:-1] != wanted[:-1]):
            return "it is Python %d.%d.%d" % version
    return "" if version else "it does not run"


def version_of(python):
    """Version (tuple of int) of an interpreter, () if unknown; only those from PATH are run."""
    if python == sys.executable:
        return sys.version_info[:3]
    about = read_text(os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg"))
    answer = about.partition("\nversion")[2].partition("=")[2].split()[:1] or run_tool(
        python, "-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
    numbers = [int(part) for part in "".join(answer).split(".") if part.isdigit()]
    return tuple(numbers[:3]) if len(numbers) > 2 else ()


def ensure_python_has_webui_deps(python):
    """An interpreter (str) that has the dependencies: python, or a .venv made for it.

    Only .venv is installed into; what another interpreter has is asked once, and remembered.
    Raises LaunchError (1, 69, 73, 74, 78, 126, 127) where they cannot be had.
    """
    arguments = install_arguments()
    if not arguments:
        return python
    check_executable(python)
    if python == VENV_PYTHON and not setting_now("PYTHON"):
        return make_environment(python, arguments)
    stamp = os.path.join(state_folder(setting_now("STATE_DIR"), APP, os.environ), "python.stamp")
    packages = (set(os.listdir(folder)) - {"__pycache__"} for folder in site_folders(python))
    made = made_from(os.path.realpath(python), python, arguments)
    state = "\n".join([made, *map(repr, map(sorted, packages))])
    if read_text(stamp) == state:
        return python
    lacking = ask_installer(python, arguments)
    if lacking == []:
        with suppress(LaunchError):
            write_file(stamp, state)
        return python
    return settle_lack(python, arguments, lacking)


def settle_lack(python, arguments, lacking):
    """What to do about an interpreter that is not ours to change: .venv, a warning, an error."""
    chosen, disabled = setting_now("PYTHON"), is_yes(setting_now("DISABLE_LOCAL_VENV"))
    is_environment = os.path.exists(os.path.join(os.path.dirname(python), "../pyvenv.cfg"))
    if lacking is None and (chosen or disabled or is_environment):
        say(f"nobody can tell whether {python} has the dependencies: uv is not on PATH, and its "
            "pip cannot")
        return python
    if not (chosen or disabled):
        return make_environment(python, arguments)
    why = "" if chosen else f", and {APP.env('DISABLE_LOCAL_VENV')} forbids to make .venv"
    remedy = f"install into it: {quote_words(*arguments)}" if chosen else \
        f"set {APP.env('PYTHON')} to one that has them"
    problem = f"{python} lacks dependencies of {APP.name}{why}"
    raise LaunchError(Exit.CONFIG, problem, remedy, lacking)


def install_arguments():
    """Arguments (list of str) for the installer: as configured, else what the checkout offers."""
    if APP.install or os.path.isfile(os.path.join(REPO_ROOT, "requirements.txt")):
        return split_words(APP.install) or ["-r", "requirements.txt"]
    lines = read_text(os.path.join(REPO_ROOT, "pyproject.toml")).split("\n")
    return ["-e", "."] if any(line.startswith(PROJECT_TABLES) for line in lines) else []


def made_from(python, place, arguments):
    """All that decides what is installed (str): interpreter, place, arguments, and each file that
    they name with -r, -c or -e. What is asked for there is the installer's to know."""
    texts, seen, words = [python, place], set(), "\n" + "\n".join(arguments)
    for flag in FILE_FLAGS:
        words = words.replace("\n%s\n" % flag, "\n%s " % flag)
    todo = [(words, REPO_ROOT)]
    while todo:
        text, folder = todo.pop()
        texts.append(text)
        for path in named_paths(text, folder):
            files = [path] if os.path.isfile(path) else filter(os.path.isfile, (
                os.path.join(path, project) for project in PROJECT_FILES))
            for file in files:
                todo += [] if file in seen else [(read_text(file), os.path.dirname(file))]
                seen.add(file)
    return "\n".join(texts).encode("utf-8", "replace").decode()


def named_paths(text, folder):
    """The paths (str) that lines of a requirements file name; most lines are never looked at."""
    for mark in "-./":
        for piece in ("\n" + text).split("\n" + mark)[1:]:
            line = mark + piece.partition("\n")[0]
            flag = next(filter(line.startswith, FILE_FLAGS), "")
            if flag or mark != "-":
                name = line[len(flag):].partition(" #")[0].partition("[")[0].strip(" =\t")
                yield os.path.normpath(os.path.join(folder, name))


def ask_installer(python, arguments):
    """What an interpreter lacks (list of str), in the words of uv or of its own pip, which judge
    by what is there, without an index; empty for nothing, None where neither can tell."""
    import subprocess
    uv = find_program("uv")
    folders = (os.path.join(REPO_ROOT, word.partition("[")[0]) for word in arguments)
    if not uv and any(map(os.path.isdir, folders)):     # pip builds these anew each time
        return None
    question = [uv, "pip", "install", "--dry-run", "--offline", "--python", python] if uv else [
        python, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check"]
    # A dry run breaks nothing, but a system's Python refuses it otherwise (PEP 668).
    environ = dict(os.environ, UV_BREAK_SYSTEM_PACKAGES="1", PIP_BREAK_SYSTEM_PACKAGES="1",
                   UV_QUIET="", PIP_QUIET="0")
    done = subprocess.run(question + arguments, cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ)
    answer = done.stdout.decode("utf-8", "replace")
    if not uv and ("No module named pip" in answer or "no such option" in answer):
        return None
    is_there = done.returncode == 0 and "Would install" not in answer
    return [] if is_there else [printable(line) for line in answer.splitlines()[-TAIL:]] or [
        "exit status %d, without a word" % done.returncode]


def make_environment(base, arguments):
    """The interpreter (str) of .venv, made from base or renewed where its stamp says otherwise."""
    base = os.path.realpath(base)
    wanted = made_from(base, VENV, arguments)
    if why_unready(wanted):
        lock = take_lock(REPO_ROOT, 600.0, "an installation into .venv")
        try:
            why = why_unready(wanted)
            if why:
                say("%s .venv: %s" % ("renewing" if why == CHANGED else "making", why))
                install(base, arguments, why == CHANGED, lock)
                write_file(VENV_STAMP, wanted)
        finally:
            os.close(lock)
    return VENV_PYTHON


def why_unready(wanted):
    """Why .venv is not what its stamp has to say (str), "" where it is."""
    kept, is_there = read_text(VENV_STAMP), is_program(VENV_PYTHON)
    if kept == wanted and is_there:
        return ""
    was, now = kept.split("\n"), wanted.split("\n")
    return next(why for holds, why in (
        (not os.path.lexists(VENV), "there is none yet"),
        (not kept, "it was never completed"),
        (was[1:2] != now[1:2], "it was moved here"),
        (not is_there or was[0] != now[0], "it is bound to " + was[0]),
        (True, CHANGED)) if holds)


def install(base, arguments, is_whole, lock):
    """Fill .venv, which is made anew unless it is whole; LaunchError (1, 73, 78, 130, 143)."""
    uv = find_program("uv")
    commands = [[uv, "pip", "install", "--python", VENV_PYTHON, *arguments] if uv else [
        VENV_PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check", *arguments]]
    has_pip = any(os.path.isdir(folder + "/pip") for folder in site_folders(VENV_PYTHON))
    if not is_whole or not (uv or has_pip):
        if not uv and not run_tool(base, "-I", "-c", "import ensurepip; print(1)"):
            series = ".".join(map(str, version_of(base)[:2]))
            raise LaunchError(Exit.CONFIG, f"{base} cannot make .venv: it has no ensurepip",
                              f"apt install python{series}-venv, or install uv")
        clear_environment()
        make = [uv, "venv", "--python", base] if uv else [base, "-I", "-m", "venv"]
        commands.insert(0, make + [VENV])
    remove_file(VENV_STAMP)
    with Signals() as signals:
        for command in commands:
            code = run_installer(command, lock, signals)
            if code:
                raise LaunchError(Exit.FAILED, f"exit status {code} of: {quote_words(*command)}",
                                  "its own lines stand above; the next start makes .venv anew")


def clear_environment():
    """Remove what is left of .venv; LaunchError (73, 78) where it is no environment of its own."""
    import shutil
    is_folder = os.path.isdir(VENV) and not os.path.islink(VENV)
    is_empty = is_folder and not any(files for _, _, files in os.walk(VENV))
    is_ours = is_empty or bool(site_folders(VENV_PYTHON)) or any(
        os.path.lexists(os.path.join(VENV, mark)) for mark in ENVIRONMENT_MARKS)
    if os.path.lexists(VENV) and not (is_folder and is_ours):
        raise LaunchError(Exit.CONFIG, f"{VENV} is in the way: it is no environment of its own",
                          f"remove it, or set {APP.env('PYTHON')}")
    try:
        if is_folder:
            shutil.rmtree(VENV)
    except OSError as error:
        raise LaunchError(Exit.CANNOT_CREATE, f"{error.filename}: {error.strerror}",
                          f"remove {VENV}")


def run_installer(command, lock, signals):
    """Exit status of an installer, which speaks for itself on stderr, and ends when we do.

    It inherits the lock: should we be killed, the next start waits for its end.
    """
    import signal
    import subprocess
    begin = told = time.monotonic()
    child = subprocess.Popen(command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL, stdout=2,
                             pass_fds=[lock], start_new_session=True)
    try:
        while child.poll() is None:
            signals.wait(SLICE)
            signals.check()
            if time.monotonic() > told + HEARTBEAT and not os.isatty(2):
                told = time.monotonic()
                say("still installing, %.0f s" % (told - begin))
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):      # on the first, pip clears up
            if child.poll() is None:
                os.killpg(child.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(2)
    return child.returncode


def check_executable(path):
    """Raise LaunchError (126 or 127) unless path can be executed; looked at, never run."""
    why = why_not_executable(path)
    if why:
        raise not_executable(path, why)


def why_not_executable(path):
    """Why a path cannot be executed (str), "" where nothing is to be seen against it."""
    return "" if is_program(path) else next((why for holds, why in (
        (not os.path.lexists(path), "there is no such file"),
        (not os.path.exists(path), "it is a link to %s, which is missing" % os.path.realpath(path)),
        (os.path.isdir(path), "it is a folder"),
        (not os.access(path, os.X_OK), "no permission to execute it")) if holds), "")


def not_executable(path, why):
    return LaunchError(Exit.NOT_EXECUTABLE if os.path.lexists(path) else Exit.NOT_FOUND,
                       "%s is not executable: %s" % (path, why),
                       "point %s at a working python" % APP.env("PYTHON"))


def server_command(python, launch):
    """Arguments (list of str) that run the server with this interpreter."""
    fields = {"python": python, "host": launch.host, "port": launch.port, "root": REPO_ROOT}
    program, *arguments = [word.format(**fields) for word in split_words(launch.app.command)]
    if "/" in program:
        program = os.path.join(REPO_ROOT, program)
    else:
        beside = os.path.join(os.path.dirname(python), program)
        program = beside if is_program(beside) else find_program(program) or program
    return [program] + arguments


def working_folder(launch, agent_dir):
    """Folder (str) that the server runs in: SERVER_CWD, the companion's, or this one."""
    chosen = launch.settings["SERVER_CWD"]
    if not chosen.value:
        return str(agent_dir or REPO_ROOT)
    folder = os.path.abspath(os.path.expanduser(chosen.value))
    if not (os.path.isdir(folder) and os.access(folder, os.X_OK)):
        problem = f"{APP.env('SERVER_CWD')}={chosen.value} ({chosen.origin}) is not a folder"
        raise LaunchError(Exit.CONFIG, problem + " to work in", "correct or remove it")
    return folder


# -- plans -------------------------------------------------------------------------------------


def choose_mode(verdict, options, launch):
    """The Verdict after the operator's own wish, which outranks all evidence."""
    wish = launch.settings["FOREGROUND"]
    for wanted, mode, why in (
            (options.foreground, FOREGROUND, "--foreground"),
            (options.detach, DETACHED, "--detach"),
            (is_yes(wish.value), FOREGROUND, "%s is set" % launch.app.env("FOREGROUND"))):
        if wanted:
            return verdict._replace(mode=mode, why=why, hearsay=None)
    return verdict


def plan_start(verdict, running, port_error):
    """The Plan for a Verdict, the record of a living instance, what stands against the port."""
    if verdict.mode == SUPERVISED:
        return Plan(SUPERVISED, verdict.why, None, None)
    if running and verdict.mode == DETACHED:
        return Plan(LEAVE, "the instance runs already, pid %d" % running["pid"], running, None)
    if running:
        problem = "the instance runs already, pid {pid}, at {url}".format(**running)
        remedy = running["stop_command"] or "end it with --stop, or let --replace end it"
        port_error = LaunchError(Exit.TAKEN, problem, remedy)
    if port_error:
        return Plan(REFUSE, port_error.problem, None, port_error)
    return Plan(verdict.mode, verdict.why, None, None)


# -- effects: output and files -----------------------------------------------------------------


def say(text, prefix="bootstrap: "):
    """One line to the operator, on stderr; a closed one is nobody's loss."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(prefix + text, file=sys.stderr, flush=True)


def show(text, end="\n"):
    """A result, on stdout; LaunchError (74) where it cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write((text + end).encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LaunchError(Exit.IO_ERROR, "stdout: %s" % error.strerror, "give it a place to go")


def printable(text):
    """text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def read_text(path, limit=-1):
    """Content of a text file (its first limit bytes), "" where it cannot be read."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        text = file.read(limit).decode("utf-8", "replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return ""


def write_file(path, text, mode=0o600):
    """Replace a file whole; LaunchError (73, 74)."""
    fresh = "%s.%d" % (path, os.getpid())
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w",
                  encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError as error:
        remove_file(fresh)
        raise file_error(path, error)


def remove_file(path):
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def file_error(path, error):
    """The LaunchError for an OSError at path: 74 where the disk is full, else 73."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = Exit.IO_ERROR if full else Exit.CANNOT_CREATE
    remedy = "make room there" if full else f"set {APP.env('STATE_DIR')} to a folder of yours"
    return LaunchError(code, f"{error.filename or path}: {error.strerror}", remedy)


def take_lock(path, patience, what):
    """Descriptor that holds the lock of a file or folder, close-on-exec (flock(2)).

    Waits at most patience seconds; LaunchError (69, 73, 74).
    """
    import fcntl
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    lock, begin, told = None, time.monotonic(), False
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        lock = os.open(path, flags | os.O_CLOEXEC, 0o600)
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            waited = time.monotonic() - begin
            if waited > patience:
                os.close(lock)
                raise LaunchError(Exit.TAKEN, "%s is under way (%s)" % (what, path),
                                  "wait for its end, or allow more with --timeout")
            if waited > HEARTBEAT and not told:
                say("%s is under way, waiting for its end" % what)
                told = True
            time.sleep(0.01)
    except OSError as error:        # a file system without locks is one
        if lock is not None:
            os.close(lock)
        raise file_error(path, error)


def last_lines(path, count, from_byte=0, end=None):
    """The last lines (list of str) of a file between two bytes, read backwards in pieces."""
    text = b""
    with suppress(OSError), open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END) if end is None else end
        while position > from_byte and text.count(b"\n") <= count and len(text) < 1 << 24:
            step = min(65536, position - from_byte)
            position = file.seek(position - step)
            text = file.read(step) + text
    lines = text.decode("utf-8", "replace").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    return [printable(line.rstrip("\r")) for line in lines[max(len(lines) - count, 0):]]


# -- effects: processes and ports --------------------------------------------------------------


def process_table():
    """Every living Process by pid, without ourselves; from /proc, elsewhere from ps(1)."""
    if HAS_PROC:
        rows = [read_process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    else:
        lines = (line.split(None, 9) for line in run_tool(
            "ps", "-axo", "pid=,ppid=,pgid=,state=,lstart=,command="))
        rows = [Process(*map(int, words[:3]), " ".join(words[4:9]), words[3],
                        program_name((words[9:] or [""])[0].split() or [""])) for words in lines]
    return {row.pid: row for row in rows if row and row.state[0] != "Z" and row.pid != os.getpid()}


def run_tool(*command):
    """Lines (list of str) that a diagnostic tool prints; none where it is missing or fails."""
    import subprocess
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=10)
        return done.stdout.decode("utf-8", "replace").splitlines()
    return []


def read_environ(pid):
    """Environment (dict of str) that a process was started with; empty if not for us to see."""
    with suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
        return dict(pair.partition("=")[::2] for pair in os.fsdecode(file.read()).split("\0"))
    return {}


def listening_sockets(port):
    """User (str) by inode (str) of the TCP sockets that listen on a port (proc(5))."""
    found = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        if found:       # the second costs milliseconds where nobody listens on IPv6
            break
        with suppress(OSError), open(path, "rb", buffering=4096) as file:
            file.readline()
            for fields in map(bytes.split, file):
                if fields[3] != b"0A":      # those that listen come first
                    break
                if int(fields[1].rpartition(b":")[2], 16) == port:
                    found[fields[9].decode()] = fields[7].decode()
    return found


def holds_socket(pid, inodes):
    """Whether a process has one of the sockets open; None where that cannot be seen."""
    names = {"socket:[%s]" % inode for inode in inodes}
    try:
        return not names.isdisjoint(open_files(pid))
    except OSError as error:
        return None if error.errno == errno.EACCES else False


def open_files(pid):
    """What each descriptor of a process is (str), see proc(5); OSError."""
    for number in os.listdir("/proc/%d/fd" % pid):
        with suppress(FileNotFoundError):
            yield os.readlink("/proc/%d/fd/%s" % (pid, number))


def listeners(port):
    """Who listens on a port: list of (pid or None, description)."""
    found = []
    if HAS_PROC:
        inodes = listening_sockets(port)
        known = process_table() if inodes else ()
        pids = [pid for pid in sorted(known) if holds_socket(pid, inodes)]
        found = [] if pids else [(None, "a process of user " + uid) for uid in inodes.values()]
    else:
        pids = map(int, run_tool("lsof", "-nP", "-t", "-iTCP:%d" % port, "-sTCP:LISTEN"))
    for pid in pids:
        words = read_arguments(pid) if HAS_PROC else run_tool(
            "ps", "-o", "command=", "-p", str(pid))
        found.append((pid, printable("pid %d (%s)" % (pid, " ".join(words)[:120]))))
    return found


def check_port(launch):
    """The LaunchError (69 or 78) that stands against listening on host and port, or None."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):    # nothing to bind, sd_listen_fds(3)
        return None
    import _socket as socket
    found = ()
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(plain(launch.host), launch.port, type=socket.SOCK_STREAM)
    failures = {bind_failure(row[0], row[4]) for row in found}
    if errno.EADDRINUSE in failures:
        holders = ", ".join(text for _, text in listeners(launch.port)) or "nobody to be seen"
        return LaunchError(Exit.TAKEN, f"port {launch.port} is taken by {holders}",
                           "end it, or choose another: bash start.sh PORT")
    if errno.EACCES in failures and None not in failures:
        return LaunchError(Exit.CONFIG, f"port {launch.port} needs a privilege this user lacks",
                           "choose a port from 1024 up")
    return None if None in failures else LaunchError(
        Exit.CONFIG, "host %s (%s) is not an address of this machine" % launch.settings["HOST"],
        "use 127.0.0.1, 0.0.0.0, or one that is")


def plain(host):
    """A host name as bytes where it is ASCII, which spares the import of the idna codec."""
    return host.encode() if host.isascii() else host


def bind_failure(kind, address):
    """errno that binding a TCP socket ends with, or None."""
    import _socket as socket
    try:
        trial = socket.socket(kind, socket.SOCK_STREAM)
        try:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            # With SO_REUSEADDR, BSD lets an address join the wildcard of somebody else.
            is_joined = sys.platform == "darwin" and accepts(address[:2], SLICE)
            return errno.EADDRINUSE if is_joined else None
        finally:
            trial.close()
    except OSError as error:
        return error.errno


# -- the instance ------------------------------------------------------------------------------


class Record(dict):
    """What is kept of an instance: who it is (pid, start, boot), and what its commands need.

    An exec changes none of the identity, a recycled pid has another start time.
    """

    KEYS = dict(dict.fromkeys("pid session parent from_byte".split(), int), launched=float,
                **dict.fromkeys("start boot token url log mode supervisor stop_command"
                                " restart_command".split(), str))

    @classmethod
    def of(cls, launch, pid, **fields):
        """The Record of a process that is our child, or ourselves."""
        process = read_process(pid)
        is_ours = process and os.getpid() in (pid, process.ppid)
        return cls(dict(pid=pid, start=process.start if is_ours else "", launched=time.time(),
                        boot=read_text(BOOT_ID).strip(), url=launch.url), **fields)

    @classmethod
    def read(cls, launch):
        """The Record on disk, or None where there is none that can be read."""
        def unescaped(text):
            return text.encode().decode("unicode_escape") if "\\" in text else text
        lines = read_text(launch.path("record")).split("\n")
        rows = dict(line.partition("=")[::2] for line in lines)
        with suppress(KeyError, ValueError):
            return cls((key, kind(unescaped(rows[key]))) for key, kind in cls.KEYS.items())
        return None

    def write(self, launch):
        """Write lines of NAME=VALUE, to read which needs no import, as json would."""
        write_file(launch.path("record"), "".join(
            "%s=%s\n" % (name, ascii(str(value))[1:-1]) for name, value in self.items()))

    def is_of(self, process):
        """Whether a Process is the recorded one."""
        if HAS_PROC:
            return self["start"] == process.start and self["boot"] == read_text(BOOT_ID).strip()
        started = time.mktime(time.strptime(process.start, "%a %b %d %H:%M:%S %Y"))
        return abs(started - self["launched"]) < 3

    def is_running(self):
        """Whether the process lives; runs no program, so without /proc any pid will do."""
        if HAS_PROC:
            process = read_process(self["pid"])
            return bool(process and process.state != "Z" and self.is_of(process))
        try:
            os.kill(self["pid"], 0)
        except OSError as error:
            return error.errno == errno.EPERM
        return True

    def tracker(self):
        """Who would start the process again, "" if nobody: an orphan has a new parent."""
        process = process_table().get(self["pid"])
        return self["supervisor"] if process and process.ppid == self["parent"] else ""

    def family(self, table):
        """Processes (sorted list) of the instance: its own, all descendants, and its session.

        A session whose leader is gone counts only while its members carry the launch's token,
        as the kernel may have given its number to another (credentials(7)).
        """
        root, token = table.get(self["pid"]), APP.env("LAUNCH_ID")
        alive = bool(root and self.is_of(root))
        members = {root.pid} if alive else set()
        if self["session"] and (alive or not root):
            members.update(pid for pid, process in table.items() if process.sid == self["session"]
                           and (alive or read_environ(pid).get(token) == self["token"]))
        found = set(members)
        while found:
            found = {pid for pid, process in table.items() if process.ppid in found} - members
            members |= found
        return [table[pid] for pid in sorted(members)]

    def end(self, grace):
        """End every process of the instance: SIGTERM, after grace seconds SIGKILL.

        Returns the name of the strongest signal that was needed, "" where nothing lived;
        raises LaunchError (1) where a process does not end, or is another user's.
        """
        import signal
        number, told, begin = signal.SIGTERM, {}, time.monotonic()
        while True:
            table = process_table()
            # Who was told is remembered: its parent may be gone, and with it the connection.
            members = {process for process in table.values() if process[::3] in told}
            members.update(self.family(table))
            if not members:
                return number.name if number in told.values() else "SIGTERM" if told else ""
            if time.monotonic() > begin + grace:
                number = signal.SIGKILL
            for process in members:
                if time.monotonic() > begin + grace + 10:
                    raise LaunchError(Exit.FAILED, "pid %d does not end" % process.pid,
                                      "look at it with --status")
                if told.get(process[::3]) != number:
                    told[process[::3]] = number
                    try:
                        os.kill(process.pid, number)
                        os.kill(process.pid, signal.SIGCONT)    # a stopped one hears nothing else
                    except ProcessLookupError:
                        pass
                    except PermissionError:
                        raise LaunchError(Exit.FAILED, "pid %d is another user's" % process.pid,
                                          "end it as that user, or as root")
            time.sleep(0.01)

    def owns_port(self, launch):
        """Whether the instance's processes hold the port: True, False, or None where unknown."""
        inodes = listening_sockets(launch.port)
        if not inodes:
            return None
        if holds_socket(self["pid"], inodes):
            return True
        answers = [(holds_socket(process.pid, inodes), process)
                   for process in self.family(process_table())]
        holder = next((process for holds, process in answers if holds), None)
        if holder and not self.is_running():    # its first process has left it to this one
            self.update(pid=holder.pid, start=holder.start)
            self.write(launch)
        return True if holder else None if None in [holds for holds, _ in answers] else False


def find_running(launch):
    """The Record of the instance if it lives, else None."""
    record = Record.read(launch)
    return record if record and record.is_running() else None


# -- effects: health ---------------------------------------------------------------------------


def wait_for_health(url, timeout=60.0, tcp=False, strict=True, ended=None, owns=None,
                    signals=None, progress=None):
    """Poll url until the server answers; a Health, true or false.

    timeout: seconds; tcp: accepting is enough; strict: the answer must be JSON with "status":
    "ok", else 2xx and no status that says otherwise; ended: a function that says how the server
    ended, "" while it may still come up; owns: one that says whether our processes hold the
    port (None: unknown). Raises ValueError for a URL that is not http(s).
    """
    address, begin = split_url(url), time.monotonic()
    read_json(b"{}")    # loads json while the server still boots
    while True:
        state = probe(address, begin + timeout, tcp, strict)
        if signals:
            signals.check()
        end = ended() if ended else ""
        if end:
            return Health(Exit.FAILED, "the server ended before it was healthy: " + end)
        if state == "healthy" and not (owns and owns() is False):
            return Health(Exit.OK, "")
        elapsed = time.monotonic() - begin
        if elapsed > timeout:
            state = "somebody else answers" if state == "healthy" else state
            return Health(Exit.NOT_HEALTHY, f"not healthy within {timeout:g} s at {url}: {state}")
        if progress:
            progress(elapsed)
        pause = min(max(0.001, elapsed * 0.02), timeout - elapsed + 0.001)
        signals.wait(pause) if signals else time.sleep(pause)


def split_url(url):
    """(scheme, host, port, path) of an http(s) URL (RFC 3986); ValueError for any other."""
    scheme, _, rest = str(url).partition("#")[0].partition("://")
    cut = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
    host, colon, port = rest[:cut].rpartition("@")[2].rpartition(":")
    if not colon or "]" in port:
        host, port = host + colon + port, ""
    name = host[1:-1] if host[:1] + host[-1:] == "[]" else host
    port = port or {"http": "80", "https": "443"}.get(scheme.lower(), "")
    if not (scheme.lower() in ("http", "https") and rest.isprintable() and " " not in rest and
            port.isascii() and port.isdigit() and 0 < int(port) < 65536 and
            name and not set(name) & set("[]") and (name != host or ":" not in name)):
        raise ValueError("not an http(s) URL: %r" % (url,))
    path = rest[cut:] if rest[cut:cut + 1] == "/" else "/" + rest[cut:]
    return scheme.lower(), name, int(port), path


def accepts(address, patience):
    with suppress(OSError):
        connect("tcp", *address, time.monotonic() + patience).close()
        return True
    return False


def probe(address, deadline, tcp, strict):
    """One question to the server: "healthy", or what came back instead."""
    patience = min(max(deadline - time.monotonic(), SLICE), PROBE_LIMIT)
    if tcp:
        return "healthy" if accepts(address[1:3], patience) else "nothing accepts"
    try:
        status, body, whole = http_get(address, time.monotonic() + patience)
    except OSError as error:
        return "no answer (%s)" % error
    except ValueError as error:
        return str(error)
    said = read_json(body).get("status")
    said = said if isinstance(said, str) else None
    good = ("ok",) if strict else ("ok", "pass", "up", "healthy", None)
    if whole and 200 <= status < 300 and said in good:
        return "healthy"
    return "HTTP status %d%s%s" % (status, "" if said is None else ", " + printable(said)[:40],
                                   "" if whole else ", cut short")


def read_json(body):
    """The JSON object (dict) in bytes, empty where there is none."""
    import json
    with suppress(ValueError, RecursionError):
        answer = json.loads(body.decode("utf-8"))
        return answer if isinstance(answer, dict) else {}
    return {}


def read_answer(url):
    """The JSON object (dict) that stands at a URL, empty where there is none."""
    with suppress(OSError, ValueError):
        return read_json(http_get(split_url(url), time.monotonic() + PROBE_LIMIT)[1])
    return {}


def http_get(address, deadline):
    """One GET (RFC 9112) without proxies or redirects: (status, body, whether it is whole).

    Reads ANSWER_LIMIT bytes at most, until deadline, however slowly they drip: urllib bounds a
    single read only. OSError where nothing answers, ValueError for an answer that is not HTTP.
    """
    from _socket import timeout
    scheme, host, port, path = address
    request = "GET %s HTTP/1.0\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % (
        path, "[%s]" % host if ":" in host else host, port)
    answer = b""
    stream = connect(scheme, host, port, deadline)
    try:
        stream.settimeout(SLICE)
        stream.sendall(request.encode("ascii"))
        while len(answer) < ANSWER_LIMIT and missing_bytes(answer) != 0:
            if time.monotonic() > deadline:
                raise timeout("no whole answer in time")
            with suppress(timeout):
                piece = stream.recv(65536)
                answer += piece
                if not piece:
                    break
    finally:
        stream.close()
    head, blank, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not blank or not words[1:] or words[0][:5] != b"HTTP/" or not words[1].isdigit():
        raise ValueError("an answer that is not HTTP")
    return int(words[1]), body, len(answer) < ANSWER_LIMIT and not missing_bytes(answer)


def connect(scheme, host, port, deadline):
    """A socket to the first address of a host that accepts, by TLS for https; OSError."""
    import _socket
    failure = OSError("the host has no address")
    for kind, _, _, _, address in _socket.getaddrinfo(plain(host), port, type=_socket.SOCK_STREAM):
        stream = None
        try:
            stream = _socket.socket(kind, _socket.SOCK_STREAM)
            stream.settimeout(max(deadline - time.monotonic(), 0.001))
            stream.connect(address)
            break
        except OSError as error:
            failure = error
            if stream:
                stream.close()
    else:
        raise failure
    return encrypted(stream, deadline) if scheme == "https" else stream


def encrypted(stream, deadline):
    import socket
    import ssl
    # The question is whether our own child serves; whom its certificate names is not.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = socket.socket(fileno=stream.detach())
    stream.settimeout(max(deadline - time.monotonic(), 0.001))
    return context.wrap_socket(stream)


def missing_bytes(answer):
    """How many bytes (int) an HTTP answer still lacks; None where it does not say."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:] if blank else ():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return max(int(value) - len(body), 0)
    return None


class Signals:
    """Notes SIGINT, SIGTERM, SIGHUP and the end of children while a start is under way.

    A noted signal ends the start only where check() is called, so that no child is lost
    between its birth and its record. Outside the main thread nothing is noted.
    """

    def __enter__(self):
        import _signal as signal
        self.signal, self.caught, self.before, self.ends = signal, [], {}, os.pipe()
        for end in self.ends:
            os.set_blocking(end, False)
        with suppress(ValueError):
            self.wakeup = signal.set_wakeup_fd(self.ends[1], warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, _):
        self.caught += [number] if number != self.signal.SIGCHLD else []

    def wait(self, duration):
        """Sleep for duration (seconds), or until a signal arrives."""
        import select
        if select.select([self.ends[0]], [], [], min(duration, SLICE))[0]:
            os.read(self.ends[0], 512)

    def check(self):
        """Raise LaunchError (128+n) if a signal asked for the end."""
        if self.caught:
            raise LaunchError(Exit.SIGNALLED + self.caught[0], "interrupted by " + signal_name(
                self.caught[0]), "nothing was left running")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            self.signal.signal(number, handler)
        if self.before:
            self.signal.set_wakeup_fd(self.wakeup)
        for end in self.ends:
            os.close(end)


def signal_name(number):
    import signal
    with suppress(ValueError):      # real-time signals have no names
        return signal.Signals(number).name
    return "signal %d" % number


def progress_line(record):
    """A function that renews one line on a terminal once a start takes longer than a second."""
    def draw(elapsed):
        if elapsed >= 1:
            line = "".join(last_lines(record["log"], 1, record["from_byte"]))
            text = "bootstrap: %.0f s  %s" % (elapsed, line)
            sys.stderr.write("\r\033[K" + text[:os.get_terminal_size(2).columns - 1])
            sys.stderr.flush()
    return draw if sys.stderr is not None and sys.stderr.isatty() else None


def open_browser(url):
    """Open url (str) in the person's browser; never raises."""
    # The drivers behind webbrowser are anybody's, and a browser is a courtesy.
    with suppress(Exception):
        import webbrowser
        webbrowser.open(url)


# -- effects: starts ---------------------------------------------------------------------------


def start(launch, options):
    """Observe, plan, and carry the plan out; returns the exit code."""
    says = {name: launch.settings[name].value for name in ("FOREGROUND", "NO_SUPERVISE")}
    facts = observe(not (options.foreground or options.detach or is_yes(says["FOREGROUND"]) or
                         options.no_supervise or is_yes(says["NO_SUPERVISE"], YES[:3])))
    os.environ.update(launch.additions)
    verdict = choose_mode(judge(facts), options, launch)
    agent_dir = discover_agent_dir()
    if options.print_plan:
        return print_plan(launch, options, verdict, agent_dir)
    if verdict.mode == SUPERVISED:
        slot = hand_over(launch, options, facts.scan)
        if slot and (facts.at_init is False or facts.terminal and facts.leader):
            return await_slot(launch, options, slot)
        if slot:
            return wait_forever()
        verdict = judge(facts._replace(scan=None))._replace(mode=FOREGROUND, hearsay=None)
    lock = None
    try:
        lock = take_lock(launch.path("lock"), options.timeout, f"a start on port {launch.port}")
    except LaunchError as error:
        if verdict.mode == DETACHED or error.code == Exit.TAKEN:
            raise
        say(f"no record is kept: {error.problem}")
    try:
        running = find_running(launch)
        if running and options.replace and not running.tracker():
            stop_instance(launch, running)
            running = None
        plan = plan_start(verdict, running, None if running else check_port(launch))
        return carry_out(plan, launch, options, verdict, facts, agent_dir, lock is not None)
    finally:
        if lock is not None:
            os.close(lock)


def carry_out(plan, launch, options, verdict, facts, agent_dir, keep):
    """The one place that acts on a plan; keep: whether there is a place for a record."""
    if plan.mode == REFUSE:
        raise plan.error
    if plan.mode == LEAVE:
        return report_running(launch, options, plan.record)
    if verdict.hearsay:
        say("%s is ignored: %s; --foreground becomes the server" % (verdict.hearsay, plan.why))
    resolved = {"HOST": launch.host, "PORT": str(launch.port), "STATE_DIR": launch.state_dir}
    if agent_dir:
        resolved["AGENT_DIR"] = str(agent_dir)
    os.environ.update((launch.app.env(name), value) for name, value in resolved.items())
    python = ensure_python_has_webui_deps(discover_launcher_python(agent_dir))
    command = server_command(str(python), launch)
    check_executable(command[0])
    folder = working_folder(launch, agent_dir)
    if plan.mode == FOREGROUND:
        return become(launch, command, folder, tracking_fields(verdict.supervisor, facts), keep)
    return detach(launch, command, folder, options)


def become(launch, command, folder, tracking, keep):
    """Replace this process by the server; the pid stays. LaunchError (126) where it cannot."""
    try:
        if keep:
            Record.of(launch, os.getpid(), session=0, parent=os.getppid(), mode=FOREGROUND, log="",
                      from_byte=0, token="", command=" ".join(command), **tracking).write(launch)
    except LaunchError as error:
        say("no record is kept: %s" % error.problem)
    try:
        os.chdir(folder)
        return replace_process(command)
    except (LaunchError, OSError):
        remove_file(launch.path("record"))
        raise


def replace_process(command):
    """Become another program; returns only where a test replaces os.execv. LaunchError (126)."""
    # What Python ignores would stay ignored, see execve(2). Only the main thread may change it.
    import _signal as signal    # signal adds names to it
    before = {}
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            with suppress(ValueError):
                before[number] = signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    except OSError as error:
        raise not_executable(command[0], error.strerror)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Exit.OK


def detach(launch, command, folder, options):
    """Spawn the server in a session of its own, and say ready only once it is."""
    log, from_byte = open_log(launch)
    token = os.urandom(8).hex()
    environ = {name: value for name, value in os.environ.items()
               if name not in SUPERVISOR_VARIABLES}
    environ[launch.app.env("LAUNCH_ID")] = token
    health = None
    with Signals() as signals:
        try:
            child = spawn(command, folder, environ, log)
        except OSError as error:
            raise not_executable(command[0], error.strerror)
        finally:
            os.close(log)
        record = Record.of(launch, child.pid, session=child.pid, parent=os.getpid(), mode=DETACHED,
                           log=launch.path("log"), from_byte=from_byte, token=token,
                           command=" ".join(command), **tracking_fields(None))
        try:
            record.write(launch)
            health = await_instance(launch, options, record, lambda: end_of(child), signals)
        finally:
            failure = None if health else abandon(launch, record, child, health)
    if failure:
        raise failure
    return report(launch, options, record, "ready")


def spawn(command, folder, environ, log):
    """The server as a child that leads a session; OSError where it cannot be executed.

    By Popen where another program imports this module: its folder and descriptors are its own.
    """
    if HAS_PROC and __name__ == "__main__":
        with suppress(AttributeError, NotImplementedError):     # PyPy, glibc before 2.26
            return Child(command, folder, environ, log)
    import subprocess
    return subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log,
                            stderr=log, start_new_session=True)


class Child:
    """What a start needs of subprocess.Popen: pid and poll(); see posix_spawn(3)."""

    def __init__(self, command, folder, environ, log):
        import _signal as signal
        os.chdir(folder)
        for number in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):     # the list's own is closed
                os.set_inheritable(number, number < 3)
        self.code, self.pid = None, os.posix_spawn(
            command[0], command, environ, setsid=True, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            file_actions=((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                          (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)))

    def poll(self):
        """Its exit code, as Popen has it, or None while it lives."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
            self.code = ended if pid else None
        return self.code


def open_log(launch):
    """(descriptor, size in bytes) of the log; a large one is set aside first."""
    path = launch.path("log")
    try:
        if os.path.lexists(path) and os.path.getsize(path) > LOG_LIMIT:
            os.replace(path, path + ".1")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return log, os.fstat(log).st_size
    except OSError as error:
        raise file_error(path, error)


def await_instance(launch, options, record, ended, signals=None):
    """Wait until the recorded instance is healthy; a Health."""
    progress = progress_line(record)
    try:
        return wait_for_health(
            launch.health_url(record), timeout=options.timeout, tcp=launch.is_tcp,
            strict=launch.has_own_server, ended=ended, owns=lambda: record.owns_port(launch),
            signals=signals, progress=progress)
    finally:
        if progress:
            sys.stderr.write("\r\033[K")


def end_of(child):
    """How a child ended (str); "" while it lives, or left others who may become the server."""
    code = child.poll()
    if code is None or code == 0 and any(
            process.sid == child.pid for process in process_table().values()):
        return ""
    return "exit status %d" % code if code >= 0 else "killed by " + signal_name(-code)


def abandon(launch, record, child, health):
    """End a child that did not become a healthy server, and its children; the LaunchError."""
    record.end(launch.app.stop_timeout)
    child.poll()
    remove_file(launch.path("record"))
    code = getattr(health, "code", Exit.NOT_HEALTHY)
    hint = "allow more with --timeout SECONDS; " if code == Exit.NOT_HEALTHY else ""
    return LaunchError(code, getattr(health, "problem", "the server is not healthy"),
                       f"{hint}its log: {record['log']}",
                       last_lines(record["log"], TAIL, record["from_byte"]))


def report(launch, options, record, state):
    """Say where the healthy server is, and show it to a person at a desktop."""
    log = f", log {record['log']}" if record["log"] else ""
    say(f"{launch.app.name} is {state}, pid {record['pid']}{log}")
    show(record["url"])
    display = sys.platform == "darwin" or any(map(os.environ.get, DISPLAYS))
    is_local = os.isatty(0) and os.isatty(1) and not os.environ.get("SSH_CONNECTION")
    if display and is_local and not options.no_browser:
        open_browser(record["url"])
    return Exit.OK


def report_running(launch, options, record):
    """Say where the running instance is, once it is healthy; LaunchError (69) if it is not."""
    health = await_instance(launch, options, record,
                            lambda: "" if record.is_running() else "pid %d is gone" % record["pid"])
    if not health:
        problem = f"the instance runs already, pid {record['pid']}, but is {health.problem}"
        raise LaunchError(Exit.TAKEN, problem, "start it anew with --restart")
    return report(launch, options, record, "already running")


def print_plan(launch, options, verdict, agent_dir):
    """Show what a start would do; starts and changes nothing."""
    running = find_running(launch)
    error = None if running else check_port(launch)
    if running and options.replace and not running.tracker():
        running = None
    plan = plan_start(verdict, running, error)
    python, origin = find_python(agent_dir)
    settings = {name: dict(zip(setting._fields, setting))
                for name, setting in launch.settings.items()}
    return show_rows(dict({
        "mode": plan.mode, "why": plan.why, "interpreter": {"path": python, "why": origin},
        "command": server_command(python, launch), "folder": working_folder(launch, agent_dir),
        "url": launch.url, "log": launch.path("log") if verdict.mode == DETACHED else None},
        **({"settings": settings} if options.json else settings)), options.json)


def show_rows(rows, as_json):
    """A report (dict) on stdout: as JSON, or as aligned lines without what is empty."""
    if as_json:
        import json
        show(json.dumps(rows, indent=2))
        return Exit.OK
    for name, value in rows.items():
        first, *others = value.values() if isinstance(value, dict) else (value,)
        if first not in (None, "", []):
            text = ", ".join(first) if isinstance(first, list) else first
            show("%-19s %s%s" % (name, text, "".join(" (%s)" % other for other in others)))
    return Exit.OK


# -- instance commands -------------------------------------------------------------------------


def stop_instance(launch, record, its_way="stop_command"):
    """End the recorded instance; name of the signal, or LaunchError (1) where it is tracked."""
    tracker = record.tracker()
    if tracker:
        problem = f"pid {record['pid']} is tracked by {tracker}, which would start it again"
        raise LaunchError(Exit.FAILED, problem, record[its_way])
    used = record.end(launch.app.stop_timeout)
    if Record.read(launch) == record:       # a start that came in between has one of its own
        remove_file(launch.path("record"))
    return used


def command_stop(launch, options):
    """End the instance, and with --restart start it again."""
    if is_hidden(launch.path("record")):
        raise LaunchError(Exit.FAILED, launch.path("record") + " is not for this user to read",
                          "ask as its owner, or as root")
    record = Record.read(launch)
    its_way = "restart_command" if options.restart else "stop_command"
    used = stop_instance(launch, record, its_way) if record else ""
    outcome = f"is stopped ({used})" if used else "is not running"
    say(f"{launch.app.name} on port {launch.port} {outcome}")
    return start(launch, options) if options.restart else Exit.OK


def command_logs(launch, options):
    """Show the end of the log, and with -f what comes."""
    path, record = launch.path("log"), Record.read(launch)
    if record and not record["log"]:
        raise LaunchError(Exit.NOT_RUNNING, "the instance runs in the foreground, its output goes "
                          "to whoever started it", "look there; for systemd: journalctl -u UNIT")
    if not os.path.exists(path):
        raise LaunchError(Exit.NOT_RUNNING, "there is no log %s" % path,
                          "start the instance first: bash start.sh %d" % launch.port)
    with open(path, "rb") as file:
        for line in last_lines(path, options.lines, end=file.seek(0, os.SEEK_END)):
            show(line)
        while options.follow:
            file = follow(file, path)
    return Exit.OK


def follow(file, path):
    """Copy what was appended to a file to stdout; returns the file to go on with."""
    was_set_aside = os.path.exists(path) and not os.path.samestat(
        os.stat(path), os.fstat(file.fileno()))
    for piece in iter(lambda: file.read(65536), b""):
        show(piece.decode("utf-8", "surrogateescape"), end="")
    if was_set_aside:
        file.close()
        return open(path, "rb")
    time.sleep(SLICE)
    return file


def command_check(launch, options):
    """Probe the instance once; LaunchError (1) where it is sick, (3) where it does not run."""
    record, here = find_running(launch), f"{launch.app.name} on port {launch.port}"
    found = record or find_unrecorded(launch)
    if not found:
        raise LaunchError(Exit.NOT_RUNNING, here + " is not running",
                          "bash start.sh %d --status tells more" % launch.port)
    health = launch.probe(found, "deep=1" if options.deep else "")
    if health == "healthy" and record and record.owns_port(launch) is False:
        health = "somebody else answers"
    if health != "healthy":
        raise LaunchError(Exit.FAILED, f"{here} is sick: {health}",
                          "bash start.sh %d --status -v tells more" % launch.port)
    return Exit.OK


def find_unrecorded(launch):
    """The url (dict) of a listener that was handed our settings but kept no record, or None.

    Whose environment cannot be seen counts only while its record may not be seen either.
    """
    cert, folder = launch.app.env("TLS_CERT"), launch.app.env("STATE_DIR")
    for pid, _ in listeners(launch.port):
        environ = read_environ(pid) if pid else {}
        if environ.get(folder) == launch.state_dir:
            return {"url": launch._replace(additions={cert: environ.get(cert, "")}).url}
        if not pid and is_hidden(launch.path("record")):
            return {"url": launch.url}
    return None


def is_hidden(path):
    """Whether a file may be there, and is not for us to see."""
    try:
        open(path).close()
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def command_status(launch, options, slot=None):
    """Diagnose the instance: what runs, who has the port, and one remedy if that is wrong."""
    rows = dict({"slot": slot.name + ": " + slot.state} if slot else {}, **diagnose(launch))
    if options.verbose:
        rows.update(dict(examine(launch, rows["url"], rows["pid"]), **rows))
    show_rows(rows, options.json)
    return Exit.OK if (slot.is_up if slot else rows["pid"]) else Exit.NOT_RUNNING


def diagnose(launch):
    """Everything that --status says (dict), in the order in which it is shown."""
    record, table, holders = Record.read(launch), process_table(), listeners(launch.port)
    members = [process.pid for process in record.family(table)] if record else []
    record = record or Record()
    health = launch.probe(record)
    ours = bool(members) and any(pid in members or pid is None for pid, _ in holders)
    state, verdict, remedy = conclude(launch, record, members, holders, health, table)
    return {
        "state": state, "pid": record["pid"] if members else None,
        "url": record.get("url") or launch.url,
        "healthy": ours and health == "healthy", "health": health, "mode": record.get("mode"),
        "supervisor": record and record.tracker() or None,
        "parent": parent_text(record["pid"], table) if members else None,
        "listeners": [text + ", child of " + parent_text(pid, table) for pid, text in holders],
        "log": record.get("log"), "verdict": verdict, "remedy": remedy}


def conclude(launch, record, members, holders, health, table):
    """(state, verdict, remedy) of what --status found; no verdict where nothing is wrong."""
    here = "bash start.sh %d" % launch.port
    again = record.get("restart_command") or here + " --restart"
    pid, text = next((holder for holder in holders if holder[0] not in members), (None, ""))
    if members and text:
        return "blocked", f"its port is held by {text}", "end that, then " + again
    if members and not holders:
        verdict = f"pid {record['pid']} lives, but nobody listens on port {launch.port}"
        return "not listening", verdict, "give it time, look at --logs, or " + again
    if members and health != "healthy":
        return "wedged", "it listens, but its health is: %s" % health, again
    if members:
        return "running", "", ""
    if text:
        lost = lost_supervisor(pid, table)
        if lost:
            verdict = f"{text} has lost its supervisor ({lost}), whose every start finds it there"
            return "orphan", verdict, f"kill {pid}, and start with --foreground there"
        verdict = f"port {launch.port} is held by {text}"
        return "foreign", verdict, "end it, or choose another port"
    return "not running", "pid %d ended without --stop" % record["pid"] if record else "", here


def lost_supervisor(pid, table):
    """The supervisor whose variables a process carries although init adopted it, or ""."""
    process = table.get(pid)
    environ = read_environ(pid) if process and process.ppid == 1 else {}
    if environ.get("SYSTEMD_EXEC_PID") == str(pid):
        return ""
    return next((supervisor for name, supervisor in MARKERS if _is_real_supervisor_value(
        name, environ.get(name, ""))), "")


def parent_text(pid, table):
    process = table.get(pid)
    parent = table.get(process.ppid) if process else None
    return "pid %d (%s)" % (parent.pid, parent.name) if parent else "an unknown process"


def examine(launch, url, pid):
    """What --status -v adds (dict): what the server says of itself, and what is seen of it."""
    first = {} if launch.is_tcp else read_answer(launch.health_url({"url": url}))
    second = first and read_answer(launch.health_url({"url": url}, "deep=1"))
    moved = [part(answer, "accept_loop").get("requests_total") for answer in (first, second)]
    checks = part(second, "checks")
    rows = {printable(name): printable("{status}, {ms} ms".format(**dict(
        {"status": "?", "ms": "?"}, **part(checks, name)))) for name in checks}
    if all(type(count) is int for count in moved):
        state = "moves" if moved[0] < moved[1] else "stands still"
        rows["accept loop"] = "%s, %d requests" % (state, moved[1])
    with suppress(OSError, TypeError, IndexError):
        kinds = [file.partition(":")[0] if ":" in file else "file" for file in open_files(pid)]
        limit = read_text("/proc/%d/limits" % pid).partition("Max open files")[2].split()[0]
        rows["descriptors"] = "%d of %s: " % (len(kinds), limit) + ", ".join(
            "%d %s" % (kinds.count(kind), kind) for kind in sorted(set(kinds)))
    os.environ.update(launch.additions)
    try:
        rows["python"] = "%s (%s)" % find_python(discover_agent_dir())
    except LaunchError as error:
        rows["python"] = error.problem
    return dict(rows, **{".env": launch.notes})


def part(answer, name):
    """What stands under a name of somebody's JSON, {} where that is no object."""
    return answer[name] if isinstance(answer.get(name), dict) else {}


# -- s6 slots ----------------------------------------------------------------------------------

SLOT_FILES = {                    # file of a service folder: its text, see servicedir of s6
    "run": """\
#!{shell}
# Written by bootstrap.py, which renews it at each start.
exec 2>&1
cd {root}
export {environ} {sentinel}=1
exec {drop}{command} --foreground --replace
""",
    "finish": """\
#!/bin/sh
# 125 tells s6-supervise to give up; a taken port is asked for again after a while.
case $1 in 2|78|126|127) exit 125 ;; 69) exec sleep 4 ;; esac
""",
    "timeout-kill": "{patience}\n",
    "log/run": "#!/bin/sh\nexport {environ}\nexec {drop}s6-log n9 s1000000 1 {log}\n"}
GUARD_FILES = {
    "run": """\
#!{shell}
# Written by bootstrap.py: starts {slot} anew after three checks in a row that found it sick.
exec 2>&1
export {environ}
failures=0
while sleep 5; do
    if [ "$(s6-svstat -o up,wantedup {slot})" = "true true" ] &&
            [ "$(s6-svstat -o updownfor {slot})" -ge {grace} ] &&
            {{ {command} --check --deep; [ $? = 1 ]; }}; then
        failures=$((failures + 1))
    else
        failures=0
    fi
    if [ $failures = 3 ]; then
        echo {slot} is sick, it is started anew
        s6-svc -wD -T {patience} -d {slot}
        s6-svc -u {slot}
    fi
done
"""}
S6_ACTIONS = {          # word: what s6-svc is told and s6-svwait waits for, what then is done
    "up": ("-u", (), ""), "start": ("-u", ("-u",), "Started"), "stop": ("-d", ("-D",), "Stopped"),
    "restart": ("-d", ("-D", "-u"), "Restarted"), "status": ("", (), "Running:"),
    "unregister": ("-d", ("-D",), "Unregistered")}
INSTANCE = "abcdefghijklmnopqrstuvwxyz0123456789_-"
S6_FOLDERS = ("/command", "/usr/local/bin", "/usr/bin", "/bin")
SENTINEL = "S6_SUPERVISED_CHILD"
SIGNATURE = "# Written by bootstrap.py"


class Slot(Row):
    """A service folder of ours below s6-svscan; patience: milliseconds that its end may take."""

    _fields = "scan name patience".split()
    path = property(lambda self: os.path.join(self.scan, self.name))
    state = property(lambda self: self.tell("s6-svstat", self.path))
    is_up = property(lambda self: self.state.startswith("up"))

    def tell(self, program, *words):
        """What one of s6's programs answers; LaunchError with its own exit status and words."""
        import subprocess
        path = os.pathsep.join([*os.get_exec_path(), *S6_FOLDERS])
        try:
            done = subprocess.run([program, *words], env=dict(os.environ, PATH=path),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        except OSError as error:
            raise LaunchError(Exit.NOT_FOUND, "%s: %s" % (program, error.strerror),
                              "put the programs of s6 on PATH")
        if done.returncode:
            problem = "exit status %d of: %s" % (done.returncode, quote_words(program, *words))
            raise LaunchError(done.returncode, problem, "s6 has to obey this user",
                              done.stderr.decode("utf-8", "replace").splitlines())
        return done.stdout.decode("utf-8", "replace").strip()

    def register(self, files):
        """Write the files (text by name, None to remove), complete before s6 can see them."""
        hidden = os.path.join(self.scan, "." + self.name)
        folder = self.path if os.path.isdir(self.path) else hidden
        self.check_ours()
        try:
            for name, text in files.items():
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                remove_file(path) if text is None else write_file(path, text, 0o755)
            os.rename(folder, self.path)
        except OSError as error:
            raise file_error(folder, error)

    def check_ours(self):
        """Raise LaunchError (78) for a service folder that somebody else wrote."""
        if os.path.isdir(self.path) and SIGNATURE not in read_text(self.path + "/run", 4096):
            raise LaunchError(Exit.CONFIG, f"{self.path} is somebody else's service",
                              "give the app another name, or the instance")

    def guard(self, app):
        """The Slot of this one's watchdog: APP-watchdog, or APP-watchdog-INSTANCE."""
        instance = self.name[len(app.slug):].replace("-default", "")
        return self._replace(name=app.slug + "-watchdog" + instance)

    def with_port(self, launch):
        """The Launch with the port that the slot serves on."""
        port = read_text(self.path + "/run").partition(" --host ")[0].rpartition(" ")[2]
        return launch._replace(settings=dict(launch.settings, PORT=Setting(
            int(port) if port.isdigit() else launch.port, self.path)))

    def is_supervised(self):
        """Whether s6-supervise listens; LaunchError where we may not know."""
        try:
            self.tell("s6-svok", self.path)
            return os.path.exists(self.path + "/supervise/status")
        except LaunchError as error:
            if error.code != 1:
                raise
        return False

    def bring(self, action):
        """Have s6 carry an action out; s6-supervise is given time to appear."""
        begin, (order, events, _) = time.monotonic(), S6_ACTIONS[action]
        while order and not self.is_supervised():
            if time.monotonic() > begin + 5:
                raise LaunchError(Exit.FAILED, f"s6-svscan has not taken {self.path} up",
                                  f"look at its own messages, or s6-svscanctl -a {self.scan}")
            time.sleep(0.01)
        if order:
            self.tell("s6-svc", order, self.path)
        for event in events:
            if event == "-u":
                self.tell("s6-svc", "-u", self.path)
            self.tell("s6-svwait", event, "-t", self.patience, self.path)
        if action == "unregister":
            self.check_ours()
            self.remove()

    def remove(self):
        """Take the folder away, once s6-svscan has ended what supervises it."""
        import shutil
        hidden, begin = self._replace(name="." + self.name), time.monotonic()
        with suppress(FileNotFoundError):
            os.rename(self.path, hidden.path)
            try:
                self.tell("s6-svscanctl", "-an", self.scan)
                while hidden.is_supervised() and time.monotonic() < begin + 10:
                    time.sleep(0.02)
            finally:        # what ends there writes its state once more
                while os.path.lexists(hidden.path) and time.monotonic() < begin + 15:
                    shutil.rmtree(hidden.path, ignore_errors=True)


def scan_folder():
    """Folder (str) of the s6-svscan(8) that is pid 1 of this container, or None."""
    if read_text("/proc/1/comm").strip() != "s6-svscan" or not os.path.lexists("/run/s6/basedir"):
        return None
    folder = read_arguments(1)[-1]
    return folder if folder[:1] == "/" and os.path.isdir(folder) else "/run/service"


def find_slots(launch, options, scan):
    """The Slots that a command is about: with --all every one of ours, else the instance's."""
    app, patience = launch.app, str(int(launch.app.stop_timeout * 1000) + 5000)
    names = ["%s-%s" % (app.slug, options.instance or "default")]
    if options.all:
        names = [name for name in sorted(os.listdir(scan) if scan else ()) if name[0] != "." and
                 app.env(SENTINEL) in read_text(os.path.join(scan, name, "run"))]
    return [Slot(scan or "/run/service", name, patience) for name in names]


def slot_fields(launch, options, slot):
    """What the files of a slot and of its watchdog are filled in with (dict of str)."""
    import pwd
    uid = os.getuid() or os.stat(launch.state_dir).st_uid
    drops = uid != os.getuid()
    account, home = "%d:%d" % (uid, os.stat(launch.state_dir).st_gid), launch.state_dir
    with suppress(KeyError):
        account, home = pwd.getpwuid(uid)[0], pwd.getpwuid(uid)[5]
    path = os.pathsep.join([*os.get_exec_path(), *S6_FOLDERS])
    environ = service_environment(launch, path, not drops and os.environ.get("HOME") or home)
    contenv = next(filter(is_program, ("/command/with-contenv", "/usr/bin/with-contenv")), "")
    return {
        "shell": contenv + " sh" if contenv else "/bin/sh", "root": quote_words(REPO_ROOT),
        "environ": " ".join(name + "=" + quote_words(value) for name, value in environ.items()),
        "drop": f"s6-setuidgid {account} " if drops else "", "slot": quote_words(slot.path),
        "command": quote_words(sys.executable, "-I", "-S", os.path.realpath(__file__),
                               *service_words(launch, options)),
        "log": quote_words(os.path.join(launch.state_dir, "s6-log-" + slot.name)),
        "sentinel": launch.app.env(SENTINEL), "patience": slot.patience,
        "grace": "%d" % launch.app.start_timeout}


def hand_over(launch, options, scan):
    """The Slot that supervises the instance from now on, or None where s6 cannot have it."""
    slot, lock, fresh = find_slots(launch, options, scan)[0], None, []
    guard, is_wanted = slot.guard(launch.app), is_yes(setting_now("WATCHDOG"))
    try:
        lock = take_lock(scan, options.timeout, "a registration with s6")
        os.makedirs(launch.state_dir, mode=0o700, exist_ok=True)
        fields = slot_fields(launch, options, slot)
        for one, files in ((guard, GUARD_FILES), (slot, SLOT_FILES)):
            fresh += [] if os.path.isdir(one.path) else [one]
            one.register(dict({name: text.format(**fields) for name, text in files.items()},
                              down="" if one is guard and not is_wanted else None))
        slot.tell("s6-svscanctl", "-a", scan)
        guard.bring("up" if is_wanted else "stop")
        slot.bring("up")
    except (LaunchError, OSError) as error:
        for one in fresh:
            with suppress(LaunchError, OSError):
                one.remove()
        words = "; ".join([str(getattr(error, "problem", error)), *getattr(error, "detail", ())])
        say(f"s6 cannot have {slot.name}: {words}; the server is started here instead")
        return None
    finally:
        if lock is not None:
            os.close(lock)
    say(f"{launch.app.name} runs under s6 supervision now, as {slot.path}: it is restarted when it "
        f"crashes; --no-supervise or {launch.app.env('NO_SUPERVISE')}=1 opts out")
    return slot


def await_slot(launch, options, slot):
    """Wait until the slot's server is healthy, and say where; LaunchError where it is not."""
    log, begin = f"its log: {launch.state_dir}/s6-log-{slot.name}/current", time.monotonic()
    with suppress(LaunchError):      # who is down after this has ended
        slot.tell("s6-svwait", "-u", "-t", "5000", slot.path)
    while True:
        record, state = find_running(launch), slot.state
        if record and record["pid"] == int(slot.tell("s6-svstat", "-o", "pid", slot.path)):
            break
        if state.startswith("down") or time.monotonic() > begin + options.timeout:
            code = state.partition("exitcode ")[2].partition(")")[0]
            raise LaunchError(int(code or 0) or Exit.FAILED,
                              f"{slot.path} does not come up: {state}", log)
        time.sleep(SLICE)
    health = await_instance(launch, options, record,
                            lambda: "" if record.is_running() else slot.state)
    if not health:
        raise LaunchError(health.code, health.problem, log)
    return report(launch, options, record, "ready")


def wait_forever():
    """Keep a container alive as sleep(1), or where there is none, until a signal arrives."""
    with suppress(LaunchError):
        return replace_process([find_program("sleep", S6_FOLDERS) or "/bin/sleep", "infinity"])
    say("no sleep can be executed: this process waits instead")
    with Signals() as signals:
        while True:
            signals.wait(SLICE)
            signals.check()


def command_slots(launch, options, action):
    """Have s6 carry an action out; None where it does not have the instance."""
    scan = scan_folder()
    slots = find_slots(launch, options, scan)
    is_other = launch.settings["PORT"].origin == "command line" and not options.all and \
        not options.instance and slots[0].with_port(launch).port != launch.port
    if is_other or not options.all and not (scan and os.path.isdir(slots[0].path)):
        if not options.instance and action != "unregister":
            return None
        name = options.instance or "default"
        raise LaunchError(Exit.NOT_RUNNING, f"no such instance '{name}'",
                          f"where s6 is pid 1, this makes it: bash start.sh --instance {name}")
    if action == "status" and not options.all:
        return command_status(slots[0].with_port(launch), options, slots[0])
    done = 0
    for slot in slots:
        try:
            slot.bring(action)
            if action != "unregister":
                show("%s: %s" % (slot.name, slot.state))
            elif os.path.isdir(slot.guard(launch.app).path):
                slot.guard(launch.app).bring(action)
            done += action != "status" or slot.is_up
        except LaunchError as error:
            if not options.all:
                raise
            print_error(error)
    if not slots:
        say(f"{launch.app.name} has no instance under s6, nothing to {action}")
    elif options.all:
        say("%s %d of %d" % (S6_ACTIONS[action][2], done, len(slots)))
    return Exit.OK if done == len(slots) else Exit.FAILED


# -- unit files --------------------------------------------------------------------------------

SYSTEMD_UNIT = """\
[Unit]
Description={name}
After=network.target
StartLimitIntervalSec=0

[Service]
Type=exec
{user}WorkingDirectory={root}
{environment}
ExecStart={command}
Restart=always
RestartSec=2
RestartPreventExitStatus=2 78 126 127
TimeoutStopSec=20
LimitNOFILE=4096

[Install]
WantedBy={target}
"""
SUPERVISORD_UNIT = """\
[program:{slug}]
command={command}
directory={root}
user={user}
environment={environment}
autorestart=unexpected
exitcodes=2,78,126,127
startsecs=0
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={log}
"""
UNITS = {                       # kind: where its file belongs, how it is started from there
    "systemd": ("/etc/systemd/system/{slug}.service",
                "systemctl daemon-reload && systemctl enable --now {slug}"),
    "systemd-user": ("~/.config/systemd/user/{slug}.service", "loginctl enable-linger {user}",
                     "systemctl --user daemon-reload && systemctl --user enable --now {slug}"),
    "launchd": ("~/Library/LaunchAgents/local.{slug}.plist",
                "launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/local.{slug}.plist"),
    "supervisord": ("/etc/supervisor/conf.d/{slug}.conf", "supervisorctl update")}
PASSED_ON = ("TLS_CERT", "TLS_KEY", "DOTENV_OVERRIDE")     # what else of ours a service is given


def service_environment(launch, path, home):
    """What a service needs of the environment (dict) to find the settings of this start."""
    names = ["HERMES_HOME", "XDG_STATE_HOME", *map(launch.app.env, PASSED_ON)]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return dict(kept, HOME=home, PATH=path, **{
        launch.app.env(name): str(value) for name, (value, origin) in launch.settings.items()
        if value and (origin == "environment" or name == "STATE_DIR")})


def service_words(launch, options):
    """The words (list of str) that make a service of this start."""
    words = [str(launch.port), "--host", launch.host]
    return words + (["--config", os.path.abspath(options.config)] if options.config else [])


def command_unit(launch, options):
    """Print a supervisor's file for this checkout, how to install it as comments at its top."""
    import pwd
    slug, (user, _, _, _, _, home, _) = launch.app.slug, pwd.getpwuid(os.getuid())
    place, *commands = [text.format(slug=slug, user=user) for text in UNITS[options.unit]]
    notes = [f"{launch.app.name}: save this as {place}, then",
             f"mkdir -p {quote_words(launch.state_dir)}", *commands,
             f"It is well while {launch.health_url()} says so."]
    command = [find_program("bash") or "/bin/sh", os.path.join(REPO_ROOT, "start.sh"),
               *service_words(launch, options), "--foreground"]
    path = ":".join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"])
    environ = dict(service_environment(launch, path, home), USER=user)
    unit = {"launchd": launchd_unit, "supervisord": supervisord_unit}.get(
        options.unit, systemd_unit)
    user = "" if options.unit == "systemd-user" else user
    show(unit(launch, slug, user, command, environ, notes), end="")
    return Exit.OK


def systemd_unit(launch, _, user, command, environ, notes):
    def quoted(text):
        return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(f"# {note}\n" for note in notes) + SYSTEMD_UNIT.format(
        name=launch.app.name, root=REPO_ROOT, user=user and f"User={user}\n",
        target="multi-user.target" if user else "default.target",
        environment="\n".join("Environment=" + quoted("%s=%s" % pair) for pair in environ.items()),
        command=" ".join(quoted(word).replace("$", "$$") for word in command)).replace("%", "%%")


def launchd_unit(launch, slug, _, command, environ, notes):
    import plistlib
    log = os.path.join(launch.state_dir, slug + ".log")
    text = plistlib.dumps({
        "Label": "local." + slug, "ProgramArguments": command, "WorkingDirectory": REPO_ROOT,
        "EnvironmentVariables": environ, "RunAtLoad": True, "KeepAlive": True,
        "ThrottleInterval": 10, "ExitTimeOut": 20, "StandardOutPath": log,
        "StandardErrorPath": log, "SoftResourceLimits": {"NumberOfFiles": 4096}}).decode()
    head, mark, body = text.partition("<plist")
    return head + "<!--\n%s\n-->\n" % "\n".join(notes).replace("--", "- -") + mark + body


def supervisord_unit(launch, slug, user, command, environ, notes):
    return "".join(f"; {note}\n" for note in notes) + SUPERVISORD_UNIT.format(
        slug=slug, user=user, root=REPO_ROOT, command=quote_words(*command),
        environment=",".join('%s="%s"' % pair for pair in environ.items()),
        log=os.path.join(launch.state_dir, slug + ".log")).replace("%", "%%")


# -- command line ------------------------------------------------------------------------------

OPTIONS = {             # word: what it takes, the group of which one may be given, its help
    "--host": ("HOST", "", "address to bind"),
    "--foreground": ("", "mode", "become the server, for launchd, systemd and supervisord"),
    "--detach": ("", "mode", "leave a healthy server in the background, whoever watches us"),
    "--no-supervise": ("", "", "never hand over to s6"),
    "--instance": ("NAME", "", "name of its slot, where s6 is pid 1 of the container"),
    "--replace": ("", "", "end a running instance first, if it is ours and untracked"),
    "--timeout": ("SECONDS", "", "how long a start may take to be healthy"),
    "--no-browser": ("", "", "open no browser"),
    "--config": ("PATH", "", "read this instead of bootstrap.cfg"),
    "--skip-agent-install": ("", "", "accepted, without effect"),
    "--print-plan": ("", "action", "say what a start would do, and why"),
    "--status": ("", "action", "diagnose the instance on PORT"),
    "--verbose": ("", "", "-v: --status tells all that is known"),
    "--json": ("", "", "--status and --print-plan answer in JSON"),
    "--check": ("", "action", "probe the instance once: exit 0 healthy, 1 sick, 3 not running"),
    "--deep": ("", "", "--check asks for the deep health"),
    "--logs": ("", "action", "show the end of its log"),
    "--lines": ("N", "", "-n: --logs shows N lines"),
    "--follow": ("", "", "-f: --logs goes on as the log grows"),
    "--start": ("", "action", "start it; where s6 has it, s6 does this and the next two"),
    "--stop": ("", "action", "end the instance on PORT, with all its processes"),
    "--restart": ("", "action", "end it and start it again"),
    "--all": ("", "", "act on every slot of ours that s6 has"),
    "--unregister": ("", "action", "end the instance's slot of s6, and remove it"),
    "--unit": ("KIND", "action", "print a file for " + ", ".join(sorted(UNITS))),
    "--version": ("", "", "print the version and this file's sha256"),
    "--help": ("", "", "-h: print this")}
SHORT = {"-v": "--verbose", "-n": "--lines", "-f": "--follow", "-h": "--help"}


class Options:
    """What the command line says: host, port, and every word of OPTIONS in small letters."""

    def __init__(self, **values):
        vars(self).update(values)


def name_of(word):
    return word[2:].replace("-", "_")


def usage_error(problem):
    return LaunchError(Exit.USAGE, problem, "bash start.sh --help lists every word")


def read_words(words):
    """What the command line says (dict), None or False for what it does not; LaunchError (2)."""
    values = {name_of(word): None if takes else False for word, (takes, _, _) in OPTIONS.items()}
    groups = {}
    port, words = None, list(words)
    while words:
        word, equals, value = words.pop(0).partition("=")
        word = SHORT.get(word, word)
        if word not in OPTIONS and word[:1] != "-" and port is None:
            port = word + equals + value
            continue
        takes, group, _ = OPTIONS.get(word, ("", "", ""))
        if word not in OPTIONS or equals and not takes:
            raise usage_error("unknown word %r" % (word + equals + value))
        if groups.setdefault(group or word, word) != word:
            raise usage_error(f"{groups[group]} and {word} exclude each other")
        if takes and not value and (equals or not words or words[0][:1] == "-"):
            raise usage_error(f"{word} needs a value: {takes}")
        values[name_of(word)] = (value if equals else words.pop(0)) if takes else True
    return dict(values, port=port)


def inform(options):
    """Answer --help or --version, and end."""
    if options.help:
        rows = ("  %-22s %s" % (" ".join([word, takes]), text)
                for word, (takes, _, text) in OPTIONS.items())
        show("usage: bash start.sh [PORT] [options]\n\n%s\n\n%s" % ("\n".join(rows), __doc__), "")
    else:
        import hashlib
        with open(os.path.realpath(__file__), "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        show("bootstrap %s\nsha256 %s" % (__version__, digest))
    raise SystemExit(Exit.OK)


def parse_args():
    """sys.argv with every setting resolved: port (int), host (str), ...; LaunchError (2, 78)."""
    options = Options(**read_words(sys.argv[1:]))
    if options.help or options.version:
        inform(options)
    try:
        if options.timeout is not None:
            options.timeout = checked(options.timeout, *SECONDS)
        options.lines = checked(options.lines or str(TAIL), int, lambda n: n >= 0, "a number")
    except ValueError as error:
        raise usage_error("the value of --timeout and -n %s" % error)
    name = options.instance
    if name is not None and (set(name) - set(INSTANCE) or name[:1] in ("", "_", "-") or
                             name.startswith("watchdog")):
        raise usage_error("%r is no name of an instance: small letters, digits, _ and -, at its "
                          "start a letter or digit; watchdog is taken" % name)
    if options.all and (options.start or name):
        raise usage_error("--start and --instance are for one slot at a time, not for --all")
    if options.unit is not None and options.unit not in UNITS:
        raise usage_error("--unit knows %s, not %r" % (", ".join(sorted(UNITS)), options.unit))
    options.launch = settle(read_app(options.config), options)
    if name and len(options.launch.app.slug + "-watchdog-" + name) > 251:
        raise usage_error("--instance %s is too long for s6-svscan(8)" % name)
    options.host, options.port = options.launch.host, options.launch.port
    return options


def main():
    """Run the command; returns its exit code, raises LaunchError for the operator."""
    global APP
    known = dict.fromkeys(["launch", *map(name_of, OPTIONS)])      # a replaced parse_args may not
    options = Options(**dict(known, **vars(parse_args())))
    ensure_supported_platform()
    launch = options.launch or settle(read_app(), options)
    APP = launch.app
    options.timeout = options.timeout or APP.start_timeout
    for note in launch.notes:
        say(note)
    action = next(filter(vars(options).get, S6_ACTIONS), None)
    code = command_slots(launch, options, action) if action else None
    if code is not None:
        return code
    commands = ((options.status, command_status), (options.stop or options.restart, command_stop),
                (options.logs, command_logs), (options.unit, command_unit),
                (options.check, command_check), (True, start))
    return next(command for wanted, command in commands if wanted)(launch, options)


def print_error(error):
    """A LaunchError on stderr; its exit code."""
    say(error.problem)
    for line in error.detail:
        say(line, "  | ")
    say(error.remedy, "  ")
    return error.code


def run():
    """main() as a program: an error becomes lines on stderr and an exit code."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:     # closed: a socket of the server's must not land there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.executable = sys.executable or os.path.realpath("/proc/self/exe")   # no PATH
    gc.disable()        # so short a life leaves nothing worth a search
    try:
        return main()
    except LaunchError as error:
        return print_error(error)
    except KeyboardInterrupt:
        say("interrupted by SIGINT")
        return Exit.SIGNALLED + 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.SIGNALLED + 13


if __name__ == "__main__":
    os._exit(run())     # all is written; taking the interpreter apart would only cost time
