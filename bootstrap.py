"""Start a Python web server from its checkout, and hand it over the right way.

A person at a shell gets a detached server that was proved healthy, and the prompt back.
A supervisor (systemd, launchd, supervisord, s6, runit, a container engine) gets the server
itself: this process becomes it. Nothing outside the standard library is needed, and the file
is copied unedited into any repository; what differs stands in an optional bootstrap.cfg.

Settings, first one wins: command line, environment, .env, bootstrap.cfg, built-in.
Exit codes: see Exit below, or --help.
"""
import sys

if sys.version_info < (3, 8):
    sys.exit("bootstrap: Python 3.8 or newer is needed, this is %d.%d (%s)"
             % (sys.version_info[0], sys.version_info[1], sys.executable))

import errno
import os
import time
from collections import namedtuple

# -- constants ---------------------------------------------------------------------------------

__version__ = "1.0.0"

REPO_ROOT = os.path.dirname(os.path.realpath(__file__))
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8787

FOREGROUND, DETACHED = "foreground", "detached"
YES = ("1", "true", "yes", "on")
WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}

LOG_LIMIT = 10 * 1024 * 1024    # bytes after which a log is set aside at the next start
ANSWER_LIMIT = 64 * 1024        # bytes of a health answer that are read
PROBE_LIMIT = 5.0               # seconds that one health probe may take
SLICE = 0.1                     # seconds that a probe may block without looking up
TAIL = 20                       # lines of a log shown where none are asked for

MARKERS = (                     # variable, the supervisor that sets it
    ("INVOCATION_ID", "systemd"),
    ("JOURNAL_STREAM", "systemd"),
    ("NOTIFY_SOCKET", "systemd"),
    ("XPC_SERVICE_NAME", "launchd"),
    ("SUPERVISOR_ENABLED", "supervisord"),
)
# What supervisors say to the one process they track; a detached server is not that process.
SUPERVISOR_VARIABLES = tuple(name for name, _ in MARKERS) + (
    "SYSTEMD_EXEC_PID", "MANAGERPID", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID",
    "LISTEN_FDS", "LISTEN_FDNAMES", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_GROUP_NAME",
    "SUPERVISOR_SERVER_URL", "HONCHO_PROCESS_NAME", "RC_SVCNAME", "MONIT_SERVICE",
    "NODE_CHANNEL_FD", "pm_id", "pm_pid_path",
)
SHELLS = frozenset("sh bash dash ash zsh ksh mksh fish busybox".split())
WRAPPERS = frozenset("runuser su sudo doas timeout flock".split())
CONTAINER_INITS = frozenset(
    "tini dumb-init docker-init catatonit podman-init s6-svscan".split())
SUPERVISORS = {                 # supervisor: its way to stop a service, its way to restart it
    "systemd": ("systemctl {user}stop {unit}", "systemctl {user}restart {unit}"),
    "launchd": ("launchctl bootout gui/{uid}/{XPC_SERVICE_NAME}",
                "launchctl kickstart -k gui/{uid}/{XPC_SERVICE_NAME}"),
    "supervisord": ("supervisorctl stop {SUPERVISOR_GROUP_NAME}:{SUPERVISOR_PROCESS_NAME}",
                    "supervisorctl restart {SUPERVISOR_GROUP_NAME}:{SUPERVISOR_PROCESS_NAME}"),
    "runit": ("sv down {folder}", "sv restart {folder}"),
    "s6": ("s6-svc -d {folder}", "s6-svc -r {folder}"),
    "daemontools": ("svc -d {folder}", "svc -t {folder}"),
    "OpenRC": ("rc-service {RC_SVCNAME} stop", "rc-service {RC_SVCNAME} restart"),
    "circus": ("circusctl stop", "circusctl restart"),
    "honcho": ("end honcho itself", "start honcho again"),
    "PM2": ("pm2 stop {name}", "pm2 restart {name}"),
    "the container engine": ("stop the container", "restart the container"),
}
PARENTS = {                     # name of the parent process: the supervisor that it belongs to
    "runsv": "runit", "s6-supervise": "s6", "supervise": "daemontools",
    "supervise-daemon": "OpenRC", "supervisord": "supervisord", "circusd": "circus",
    "honcho": "honcho", "PM2": "PM2",
}
OPTIONS = (                     # flag, name of its value or None, help; a title stands alone
    "Where to serve",
    ("--host", "HOST", "address to bind (default: {host})"),
    ("--config", "PATH", "read this instead of bootstrap.cfg"),
    "How to start",
    ("--foreground", None, "become the server, for launchd, systemd and supervisord"),
    ("--detach", None, "leave a healthy server in the background, whoever watches us"),
    ("--replace", None, "end a running instance first, if it is ours and untracked"),
    ("--timeout", "SECONDS", "how long a start may take to be healthy (default: {timeout:g})"),
    ("--no-browser", None, "open no browser"),
    ("--skip-agent-install", None, "accepted, without effect: nothing is installed unasked"),
    "Instead of a start",
    ("--status", None, "diagnose the instance on PORT"),
    ("--stop", None, "end the instance on PORT, with all its processes"),
    ("--restart", None, "end it and start it again"),
    ("--logs", None, "show the end of its log; -n N lines, -f to follow"),
    ("--print-plan", None, "say what a start would do, and why"),
    ("--version", None, "print the version and this file's sha256"),
    ("--help", None, "print this"),
    "Details",
    ("-n", "N", "how many lines --logs shows (default: {lines})"),
    ("-f", None, "--logs goes on as the log grows"),
    ("--json", None, "--status and --print-plan answer in JSON"),
)
ACTIONS = ("status", "stop", "restart", "logs", "print_plan", "version", "help")
EPILOG = """
Modes: where a supervisor provably tracks this process, it becomes the server (os.execv) and
keeps its pid. Elsewhere the server is detached and the prompt comes back once the server has
answered its health check. --print-plan says which, and why.

Settings, first one wins: command line, environment, .env, bootstrap.cfg, built-in. They are
{prefix}HOST PORT PYTHON STATE_DIR AGENT_DIR FOREGROUND SERVER_CWD
DISABLE_LOCAL_VENV NO_SUPERVISE. {prefix}DOTENV_OVERRIDE=1 lets .env win.

Exit codes:
  0 done            1 the server ended before it was healthy, or a supervisor has it
  2 usage           3 not running (--status)         69 the port or instance is taken
  73, 74 state folder cannot be made, is full        75 not healthy within the time limit
  78 configuration  126 interpreter not executable   127 not found
  130 interrupted   143 terminated
"""

# -- errors ------------------------------------------------------------------------------------


class Exit:
    """Exit codes: sysexits(3), the shell's 126, 127 and 128+n, and the LSB's 3 for --status.

    A plain class: enum would cost every start more than everything else it imports.
    """

    OK, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3
    TAKEN, CANNOT_CREATE, IO_ERROR, NOT_HEALTHY, CONFIG = 69, 73, 74, 75, 78
    NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 126, 127, 128


class LaunchError(RuntimeError):
    """What the operator can put right: a problem, its remedy, and the exit code it ends with.

    detail: lines shown between the two, such as the end of a log.
    """

    def __init__(self, code, problem, remedy, detail=()):
        super().__init__("%s\n  %s" % (problem, remedy))
        self.code, self.problem, self.remedy, self.detail = code, problem, remedy, detail


# -- data --------------------------------------------------------------------------------------


class App(namedtuple("App", (
        "name command host port health env_prefix state_dir install requires_python"
        " start_timeout stop_timeout companion companion_marker companion_command source given"))):
    """What differs between repositories; one field per key of bootstrap.cfg, times in seconds.

    source: path of the file, None for this repository's own; given: the keys it names.
    """

    __slots__ = ()

    def env(self, name):
        """Name of one of our environment variables: env("PORT") is HERMES_WEBUI_PORT here."""
        return self.env_prefix + name


class Setting(namedtuple("Setting", "value origin")):
    """A value (str, or int for PORT; None where there is none) and where it came from."""

    __slots__ = ()


class Entry(namedtuple("Entry", "name value line")):
    """One assignment of a .env file."""

    __slots__ = ()


class Complaint(namedtuple("Complaint", "line why")):
    """One line of a .env file that is not an assignment; never quotes its text."""

    __slots__ = ()


class Launch(namedtuple("Launch", "app settings additions notes")):
    """What is to be started: additions go from .env to os.environ, notes to the operator."""

    __slots__ = ()

    host = property(lambda self: self.settings["HOST"].value)
    port = property(lambda self: self.settings["PORT"].value)
    state_dir = property(lambda self: self.settings["STATE_DIR"].value)

    def path(self, kind):
        """Path of the instance's lock, record or log."""
        return os.path.join(self.state_dir, "bootstrap-%d.%s" % (self.port, kind))


class Process(namedtuple("Process", "pid ppid pgid sid start state name")):
    """One row of the process table; start in clock ticks since boot (str), see proc(5)."""

    __slots__ = ()


class Facts(namedtuple("Facts", (
        "pid parent chain ends_at_init exec_pid journal marker terminal leads_group environ"))):
    """What was observed about this process, once.

    parent: pid (int, 0 where nothing is to be concluded from it); chain: Process of each
    ancestor, nearest first; ends_at_init: True where the chain reaches pid 1, False where it
    ends at ppid 0 without (docker exec), None where that is not known; exec_pid: int or None;
    journal, terminal, leads_group: bool; marker: name of a supervisor's variable, or None.
    """

    __slots__ = ()


class Verdict(namedtuple("Verdict", "mode why supervisor hearsay")):
    """A mode, its evidence, who tracks this process (or None), the variable not believed."""

    __slots__ = ()


class Become(namedtuple("Become", "why")):
    """Plan: replace this process by the server."""

    mode = FOREGROUND
    __slots__ = ()


class Detach(namedtuple("Detach", "why")):
    """Plan: spawn the server and prove it healthy."""

    mode = DETACHED
    __slots__ = ()


class Leave(namedtuple("Leave", "why record")):
    """Plan: start nothing, the instance runs."""

    mode = "leave alone"
    __slots__ = ()


class Refuse(namedtuple("Refuse", "why error")):
    """Plan: start nothing, raise the LaunchError."""

    mode = "refuse"
    __slots__ = ()


class Health(namedtuple("Health", "ok code problem remedy")):
    """Outcome of waiting: true where the server is healthy, else why not."""

    __slots__ = ()

    def __bool__(self):
        return self.ok


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


# -- configuration -----------------------------------------------------------------------------


def read_app(path=None):
    """The App of this repository: from path (str), else bootstrap.cfg, else built-in.

    Raises LaunchError (78) that names file, key and the valid keys.
    """
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
    """Keys and checked values of section [bootstrap] of the INI file at source."""
    import configparser
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(source, encoding="utf-8-sig") as file:
            parser.read_file(file)
        section = parser["bootstrap"]
    except KeyError:
        raise config_error(source, "has no section [bootstrap]")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise config_error(source, "cannot be read: " + " ".join(str(error).split()))
    for key in section:
        if key not in CONFIG_KEYS:
            raise config_error(source, "has an unknown key %r" % key)
    given = {}
    for key, text in section.items():
        try:
            given[key] = CONFIG_KEYS[key](text)
        except ValueError as error:
            raise config_error(source, "%s = %s: %s" % (key, text, error))
    return given


def config_error(source, problem):
    return LaunchError(Exit.CONFIG, "%s %s" % (source, problem),
                       "valid keys in [bootstrap]: " + ", ".join(sorted(CONFIG_KEYS)))


def plain_text(text):
    if not text.isprintable():
        raise ValueError("must be one line of printable text")
    return text


def file_name(text):
    if not plain_text(text) or "/" in text or text in (".", ".."):
        raise ValueError("must be a name without a slash")
    return text


def port_number(text):
    """TCP port from text (str); ValueError unless it is a number from 1 to 65535."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise ValueError("must be a number from 1 to 65535")
    return int(text)


def seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError("must be a number of seconds above 0")
    return value


def health_path(text):
    if text != "tcp" and not (text.startswith("/") and text.isprintable() and " " not in text):
        raise ValueError("must be a path that starts with /, or tcp")
    return text


def variable_prefix(text):
    if not (text.isascii() and text.isidentifier() and text.endswith("_")):
        raise ValueError("must be letters, digits and _, and end with _")
    return text


def command_line(text):
    import shlex
    try:
        words = [word.format(python="", host="", port="", root="") for word in shlex.split(text)]
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError("is not a command of words, {python}, {host}, {port}, {root} (%s)"
                         % error)
    if not words:
        raise ValueError("must not be empty")
    return text


CONFIG_KEYS = {
    "name": file_name, "command": command_line, "host": plain_text, "port": port_number,
    "health": health_path, "env_prefix": variable_prefix, "state_dir": plain_text,
    "install": plain_text, "requires_python": plain_text, "start_timeout": seconds,
    "stop_timeout": seconds, "companion": plain_text, "companion_marker": plain_text,
    "companion_command": plain_text,
}

# -- .env --------------------------------------------------------------------------------------


def parse_dotenv(text):
    """Assignments of a .env file: (list of Entry, list of Complaint); executes nothing.

    text: str, decoded with surrogateescape, so that a byte that is not UTF-8 spoils one entry
    only. The grammar is what python-dotenv and docker compose agree on.
    """
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    entries, complaints, unclosed = [], [], set()
    start, number = 0, 1
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        try:
            name, value, end = parse_assignment(text, start, end, unclosed)
            if name:
                entries.append(Entry(name, value, number))
        except ValueError as error:
            complaints.append(Complaint(number, str(error)))
        number += 1 if text.find("\n", start, end) < 0 else text.count("\n", start, end) + 1
        start = end + 1
    return entries, complaints


def parse_assignment(text, start, end, unclosed):
    """(name, value, end of the last line used) of the line text[start:end]; name "" if empty."""
    line = text[start:end]
    head, equals, rest = line.partition("=")
    name = head.strip()
    if not name and not equals or name[:1] == "#":
        return "", "", end
    if name[:6] == "export" and name[6:7].isspace():
        name = name[6:].lstrip()
    if not equals:
        raise ValueError("no = follows the name")
    if not (name.isascii() and name.isidentifier()):
        raise ValueError("not a valid name before the =")
    value = rest.strip()
    if value[:1] in ("'", '"'):
        value, end = parse_quoted(text, end - len(rest.lstrip()), end, unclosed, name)
    elif "#" in value:
        value = strip_comment(rest)
    if "\0" in value:
        raise ValueError("%s holds a NUL byte" % name)
    if not is_utf8(value):
        raise ValueError("%s is not UTF-8" % name)
    return name, value, end


def parse_quoted(text, opening, line_end, unclosed, name):
    """(value, end of its last line) of the quoted text that opens at this index.

    unclosed: the quotes that no later one closes; it keeps the parser linear.
    """
    quote = text[opening]
    closing = -1 if quote in unclosed else find_closing(text, quote, opening + 1)
    if closing < 0:
        unclosed.add(quote)
        raise ValueError("%s has a quote that is never closed" % name)
    end = text.find("\n", closing)
    end = len(text) if end < 0 else end
    after = text[closing + 1:end].strip()
    if after and after[0] != "#":
        raise ValueError("%s has text after its closing quote" % name)
    value = text[opening + 1:closing]
    return (unescape(value) if quote == '"' and "\\" in value else value), end


def find_closing(text, quote, start):
    """Index of the next quote, for a double one of the next that no backslash escapes, or -1."""
    closing = text.find(quote, start)
    while closing >= 0 and quote == '"':
        before = closing
        while before > start and text[before - 1] == "\\":
            before -= 1
        if (closing - before) % 2 == 0:
            break
        closing = text.find(quote, closing + 1)
    return closing


def unescape(value):
    pieces, after = [], {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}
    start, slash = 0, value.find("\\")
    while slash >= 0:
        pieces.append(value[start:slash])
        escaped = value[slash + 1:slash + 2]
        pieces.append(after.get(escaped, "\\" + escaped))
        start = slash + 2
        slash = value.find("\\", start)
    return "".join(pieces) + value[start:]


def strip_comment(rest):
    mark = rest.find("#")
    while mark > 0 and not rest[mark - 1].isspace():
        mark = rest.find("#", mark + 1)
    return (rest[:mark] if mark > 0 else rest).strip()


def is_utf8(value):
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_dotenv(path):
    """Entries by name (the last one wins) and what there is to say about the file at path."""
    if not os.path.lexists(path):
        return {}, []
    if not os.path.isfile(path):
        return {}, ["%s is not a file and is ignored" % path]
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except OSError as error:
        return {}, ["%s cannot be read and is ignored: %s" % (path, error.strerror)]
    entries, complaints = parse_dotenv(text)
    return ({entry.name: entry for entry in entries},
            [".env:%d: %s" % complaint for complaint in complaints])


# -- settings ----------------------------------------------------------------------------------

SETTINGS = ("HOST", "PORT", "STATE_DIR", "PYTHON", "AGENT_DIR", "FOREGROUND",
            "DISABLE_LOCAL_VENV", "SERVER_CWD", "NO_SUPERVISE")


def settle(app, options):
    """The Launch that app, options (a mapping), the environment and .env lead to.

    Raises LaunchError (78, or 2 for the command line) for a value that cannot be used.
    """
    dotenv, notes = read_dotenv(os.path.join(REPO_ROOT, ".env"))
    file_wins = os.environ.get(app.env("DOTENV_OVERRIDE"), "").strip().lower() in YES
    ours = frozenset(app.env(name) for name in SETTINGS)
    additions = {}
    for name, entry in dotenv.items():
        outside = os.environ.get(name)
        if outside is None or file_wins or name in ours and not outside.strip():
            additions[name] = entry.value
        elif name in ours and entry.value.strip() not in ("", outside.strip()):
            notes.append(".env:%d: %s is set otherwise in the environment, which wins"
                         % (entry.line, name))
    settings = {name: find_setting(name, app, options, additions, dotenv) for name in SETTINGS}
    settings["PORT"] = checked_port(settings["PORT"], app)
    settings["STATE_DIR"] = state_folder(settings["STATE_DIR"], app, additions)
    return Launch(app, settings, additions, notes)


def find_setting(name, app, options, additions, dotenv):
    """The winning Setting called name; a blank one counts as not set."""
    key, field = app.env(name), name.lower()
    flag = options.get(field) if field in ("host", "port") else None
    built_in = {"HOST": app.host, "PORT": str(app.port), "STATE_DIR": app.state_dir}.get(name)
    from_env = "environment" if key not in additions else ".env:%d" % dotenv[key].line
    layers = (
        (None if flag is None else str(flag), "command line"),
        (additions.get(key, os.environ.get(key)), from_env),
        (built_in, os.path.basename(app.source) if field in app.given else "built-in"),
    )
    for value, origin in layers:
        if value and value.strip():
            return Setting(value.strip(), origin)
    return Setting(None, "built-in")


def checked_port(setting, app):
    try:
        return Setting(port_number(setting.value), setting.origin)
    except ValueError as error:
        if setting.origin == "command line":
            raise usage_error("PORT %r %s" % (setting.value, error))
        raise LaunchError(Exit.CONFIG, "%s=%r (%s) %s" % (
            app.env("PORT"), setting.value, setting.origin, error), "correct or remove it")


def state_folder(setting, app, additions):
    """Absolute path of the folder that holds record, lock and log."""
    def lookup(name):
        return additions.get(name) or os.environ.get(name, "")
    folder = setting.value
    if not folder and app.source:
        base = lookup("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
        folder = os.path.join(base, app.name)
    elif not folder:
        folder = os.path.join(lookup("HERMES_HOME") or os.path.join("~", ".hermes"), "webui")
    elif "state_dir" in app.given and setting.value == app.state_dir:
        folder = os.path.join(REPO_ROOT, os.path.expanduser(folder))
    folder = os.path.expanduser(folder)
    if folder.startswith("~"):
        raise LaunchError(Exit.CONFIG, "no home folder is known for %s" % folder,
                          "set HOME, or %s to a folder" % app.env("STATE_DIR"))
    return Setting(os.path.abspath(folder), setting.origin)


def home_folder():
    """Path of the companion's home: HERMES_HOME, else ~/.hermes."""
    return os.environ.get("HERMES_HOME") or os.path.expanduser(os.path.join("~", ".hermes"))


# -- facts -------------------------------------------------------------------------------------


def observe():
    """Gather the Facts; the only reader of pids, ancestors and terminals for a start.

    Where another program imported this module, that process is not ours to judge: flag and
    marker alone decide.
    """
    marker = _detect_supervisor()
    if __name__ != "__main__":
        return Facts(os.getpid(), 0, (), None, None, False, marker, False, False, os.environ)
    chain, ends_at_init = read_ancestors(os.getppid())
    exec_pid = os.environ.get("SYSTEMD_EXEC_PID", "")
    return Facts(
        pid=os.getpid(), parent=os.getppid(), chain=chain, ends_at_init=ends_at_init,
        exec_pid=int(exec_pid) if exec_pid.isascii() and exec_pid.isdigit() else None,
        journal=os.environ.get("JOURNAL_STREAM") in (stream_name(1), stream_name(2)),
        marker=marker, terminal=os.isatty(0) and os.isatty(1),
        leads_group=os.getpgrp() == os.getpid(), environ=os.environ)


def stream_name(fd):
    """Device and inode of an open file as JOURNAL_STREAM spells them, see systemd.exec(5)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return ""
    return "%d:%d" % (status.st_dev, status.st_ino)


def read_ancestors(pid):
    """(tuple of Process from pid upwards, whether it reaches pid 1: True, False or None)."""
    chain = []
    while pid > 0:
        process = read_process(pid)
        if process is None:
            return tuple(chain), None
        chain.append(process)
        if pid == 1:
            return tuple(chain), True
        pid = process.ppid
    return tuple(chain), False if chain or os.path.exists("/proc/self/stat") else None


def read_process(pid):
    """The Process with this pid, or None where there is none to be seen (proc(5))."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return None
    fields = after.decode("ascii").split()
    comm = before.partition(b"(")[2].decode("utf-8", "replace")
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), fields[19], fields[0],
                   program_name(read_arguments(pid), comm))


def read_arguments(pid):
    """Arguments (list of str) of a process; empty for a zombie, a kernel thread, a stranger."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return file.read(65536).decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []


def program_name(arguments, comm):
    """What a process is called: its program, for a Python its script or module."""
    first = arguments[0] if arguments else ""
    if not first:
        return comm
    if first.startswith("PM2 "):
        return "PM2"
    name = os.path.basename(first).lstrip("-")
    if name.startswith(("python", "pypy")):
        return python_program(arguments[1:]) or name
    return name.rstrip(":")


def python_program(arguments):
    """Script or -m module that a Python's arguments name, or "" (python(1))."""
    words = iter(arguments)
    for word in words:
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            next(words, None)
        elif word[:1] == "-" and word[:2] != "--" and word[-1:] in ("c", "m") and len(word) > 1:
            return next(words, "").rpartition(".")[2] if word[-1] == "m" else ""
        elif word[:1] != "-":
            return os.path.basename(word)
    return ""


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
    if os.environ.get(wish, "").strip().lower() in YES:
        return wish
    for name, _ in MARKERS:
        if _is_real_supervisor_value(name, os.environ.get(name, "")):
            return name
    return None


def is_transparent(process):
    """Whether a process only waits for its command: a shell, or a wrapper such as sudo."""
    return process.name in SHELLS or process.name in WRAPPERS


def visible_parent(facts):
    """The nearest ancestor that is neither a shell nor a wrapper; None where there is none."""
    return next((process for process in facts.chain if not is_transparent(process)), None)


def judge_container(facts):
    if facts.pid == 1:
        return Verdict(FOREGROUND, "this is pid 1", "the container engine", None)
    if facts.ends_at_init is False:
        return Verdict(DETACHED, "entered this container from outside", None, None)
    if not facts.ends_at_init or facts.terminal:
        return None
    *between, init = facts.chain
    if all(map(is_transparent, between)) and (
            init.name in SHELLS or init.name in CONTAINER_INITS):
        return Verdict(FOREGROUND, "pid 1 (%s) waits for this process" % init.name,
                       "the container engine", None)
    return None


def judge_parent(facts):
    parent = visible_parent(facts)
    if parent and parent.name in PARENTS:
        supervisor = PARENTS[parent.name]
        return Verdict(FOREGROUND, "child of %s" % parent.name, supervisor, None)
    if parent and parent.name == "monit":
        return Verdict(DETACHED, "child of monit, which wants a daemon", None, None)
    return None


def judge_exec_pid(facts):
    if facts.exec_pid is None:
        return None
    if facts.exec_pid == facts.pid:
        return Verdict(FOREGROUND, "SYSTEMD_EXEC_PID is this process", "systemd", None)
    for process in facts.chain:
        if not is_transparent(process):
            break
        # A shell with job control at a terminal is a person's, even as a unit's main process.
        if process.pid == facts.exec_pid and not (facts.terminal and facts.leads_group):
            return Verdict(FOREGROUND, "SYSTEMD_EXEC_PID is the %s that waits for this process"
                           % process.name, "systemd", None)
    return Verdict(DETACHED, "SYSTEMD_EXEC_PID is another process", None, "SYSTEMD_EXEC_PID")


def judge_marker(facts):
    if facts.journal:
        return Verdict(FOREGROUND, "JOURNAL_STREAM is this process's output", "systemd", None)
    if not facts.marker:
        return None
    if facts.terminal:
        return Verdict(DETACHED, "a person sits at this terminal", None, facts.marker)
    # launchd is pid 1 and nothing else proves it; elsewhere a marker alone proves nobody.
    supervisor = dict(MARKERS).get(facts.marker) if facts.parent == 1 else None
    return Verdict(FOREGROUND, "%s is set" % facts.marker, supervisor, None)


def judge_nothing(_):
    return Verdict(DETACHED, "nothing supervises this process", None, None)


EVIDENCE = (judge_container, judge_parent, judge_exec_pid, judge_marker, judge_nothing)


def judge(facts):
    """The Verdict of the first piece of evidence that says something."""
    return next(verdict for verdict in (rule(facts) for rule in EVIDENCE) if verdict)


def supervisor_commands(supervisor, facts):
    """How an operator stops and restarts the service: (str, str)."""
    fields = dict(facts.environ, uid=os.getuid(), **systemd_unit())
    try:
        fields["folder"] = os.readlink("/proc/%d/cwd" % visible_parent(facts).pid)
    except (OSError, AttributeError):
        fields["folder"] = "its service folder"
    return tuple(fill(command, fields) for command in SUPERVISORS[supervisor])


def fill(template, fields):
    """template with each {name} replaced; a name without a value is left as NAME."""
    try:
        return template.format(**fields)
    except KeyError as error:
        return fill(template, dict(fields, **{error.args[0]: error.args[0]}))


def systemd_unit():
    """The unit that this process runs in, by the last part of its cgroup (systemd.unit(5))."""
    try:
        with open("/proc/self/cgroup") as file:
            paths = [line.rstrip("\n").partition(":")[2].partition(":")[2] for line in file]
    except OSError:
        paths = []
    path = next((path for path in paths if path.endswith(".service")), "")
    return {"unit": os.path.basename(path) or "UNIT",
            "user": "--user " if "/user@" in path else ""}

# -- interpreter and dependencies --------------------------------------------------------------


def ensure_supported_platform():
    """Raise LaunchError (78) on native Windows, which has neither exec nor sessions."""
    if sys.platform == "win32" or os.name == "nt":
        raise LaunchError(Exit.CONFIG, "native Windows is not supported",
                          "run it inside WSL2, where it works as on Linux")


def find_program(name):
    """Path of an executable file on PATH, or None."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def hermes_command_exists():
    """Whether the companion's command is on PATH."""
    return bool(APP.companion_command and find_program(APP.companion_command))


def discover_agent_dir():
    """Folder (str) of the companion's checkout, the first that holds its marker, or None."""
    if not APP.companion:
        return None
    for folder in companion_folders():
        if folder and os.path.isfile(os.path.join(folder, APP.companion_marker)):
            return os.path.abspath(folder)
    return None


def companion_folders():
    """Candidates in the order in which they count; the costly ones are reached last."""
    name = APP.companion
    yield os.path.expanduser(os.environ.get(APP.env("AGENT_DIR"), "").strip())
    yield os.path.join(home_folder(), name)
    yield os.path.join(os.path.dirname(REPO_ROOT), name)
    yield os.path.join(os.path.expanduser("~"), name)
    yield os.path.join("/usr/local/lib", name)
    command = find_program(APP.companion_command) if APP.companion_command else None
    if command:
        yield from folders_of_script(os.path.realpath(command))
    yield from site_folders(os.environ.get(APP.env("PYTHON"), "").strip() or sys.executable)


def folders_of_script(path):
    """Folders that a launcher script stands for: above it, and those its Python installs to."""
    yield os.path.dirname(path)
    yield os.path.dirname(os.path.dirname(os.path.dirname(path)))
    try:
        with open(path, "rb") as file:
            text = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return
    for word in text.replace("#!", " ").replace('"', " ").replace("'", " ").split():
        if word.startswith("/") and os.path.basename(word).startswith("python"):
            yield os.path.dirname(os.path.dirname(os.path.dirname(word)))
            yield from site_folders(word)


def site_folders(python):
    """The site-packages beside an interpreter, found without running it."""
    library = os.path.join(os.path.dirname(os.path.dirname(python)), "lib")
    try:
        versions = sorted(os.listdir(library), reverse=True)
    except OSError:
        return
    for version in versions:
        if version.startswith("python3"):
            yield os.path.join(library, version, "site-packages")


def discover_launcher_python(agent_dir):
    """Path (str) of the interpreter to use; PYTHON is final, whatever it names."""
    return find_python(agent_dir)[0]


def find_python(agent_dir):
    """(path, where it comes from) of the first candidate that is there."""
    chosen = os.environ.get(APP.env("PYTHON"), "").strip()
    if chosen:
        return (chosen if "/" in chosen else find_program(chosen) or chosen), APP.env("PYTHON")
    for path, origin in python_candidates(agent_dir):
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return path, origin
    raise LaunchError(Exit.NOT_FOUND, "no Python was found",
                      "install Python 3.8 or newer, or set %s" % APP.env("PYTHON"))


def python_candidates(agent_dir):
    if agent_dir:
        for name in ("venv", ".venv"):
            yield os.path.join(agent_dir, name, "bin", "python"), "the companion's " + name
    if not os.environ.get(APP.env("DISABLE_LOCAL_VENV"), "").strip().lower() in YES:
        yield local_python(), "this repository's .venv"
    yield sys.executable, "the Python that runs bootstrap.py"
    for minor in range(13, 7, -1):
        yield find_program("python3.%d" % minor), "python3.%d on PATH" % minor
    yield find_program("python3"), "python3 on PATH"


def local_python():
    return os.path.join(REPO_ROOT, ".venv", "bin", "python")


def install_arguments():
    """The installer's arguments (list of str) for this repository; empty: nothing to install."""
    import shlex
    if APP.install:
        return shlex.split(APP.install)
    if os.path.isfile(os.path.join(REPO_ROOT, "requirements.txt")):
        return ["-r", "requirements.txt"]
    return []


def ensure_python_has_webui_deps(python):
    """An interpreter (str) that has the dependencies: python, or a .venv made for it.

    Raises LaunchError (1, 78, 126, 127) where they cannot be had.
    """
    arguments = install_arguments()
    if not arguments:
        return python
    check_executable(python)
    stamp = requirements_stamp(arguments)
    if python == local_python() and read_text(stamp_path()) == stamp:
        return python
    if python != local_python() and not lacks_dependencies(python, arguments):
        return python
    if os.environ.get(APP.env("PYTHON"), "").strip():
        raise LaunchError(Exit.CONFIG, "%s lacks dependencies of %s" % (python, APP.name),
                          "%s -m pip install %s" % (python, " ".join(arguments)))
    if os.environ.get(APP.env("DISABLE_LOCAL_VENV"), "").strip().lower() in YES:
        raise LaunchError(Exit.CONFIG, "%s lacks dependencies, and %s forbids a .venv"
                          % (python, APP.env("DISABLE_LOCAL_VENV")),
                          "set %s to an interpreter that has them" % APP.env("PYTHON"))
    return make_environment(python, arguments, stamp)


def requirements_stamp(arguments):
    """What an environment was made from: the arguments and the files they name, hashed."""
    import hashlib
    digest = hashlib.sha256("\0".join(arguments).encode())
    for word in arguments:
        digest.update(read_text(os.path.join(REPO_ROOT, word)).encode("utf-8", "replace"))
    return digest.hexdigest()


def stamp_path():
    return os.path.join(REPO_ROOT, ".venv", "bootstrap-stamp")


def read_text(path):
    """Content of a text file, "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def lacks_dependencies(python, arguments):
    """Whether an interpreter's own pip would have something to install."""
    import subprocess
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--no-input",
               "--disable-pip-version-check", "--report", "-"] + arguments
    done = subprocess.run(command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    import json
    try:
        return done.returncode != 0 or bool(json.loads(done.stdout.decode())["install"])
    except (ValueError, KeyError):
        return True


def make_environment(python, arguments, stamp):
    """Make or bring up to date .venv; returns its interpreter."""
    folder = os.path.dirname(stamp_path())
    lock = take_lock(folder + ".lock", 600.0, "another installation into .venv")
    try:
        if read_text(stamp_path()) != stamp or not os.access(local_python(), os.X_OK):
            say("installing dependencies into %s" % folder)
            uv = find_program("uv")
            base = [uv, "venv", "--allow-existing", "--python", python] if uv else [
                python, "-m", "venv"]
            pip = [uv, "pip", "install", "--python", local_python()] if uv else [
                local_python(), "-m", "pip", "install", "--disable-pip-version-check"]
            run_installer(base + [folder])
            run_installer(pip + arguments)
            write_file(stamp_path(), stamp)
    finally:
        release_lock(lock)
    return local_python()


def run_installer(command):
    import subprocess
    try:
        code = subprocess.run(command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
                              stdout=2).returncode
    except OSError as error:
        raise not_executable(command[0], error)
    if code:
        hint = "apt install python3-venv" if "venv" in command else "see the lines above"
        raise LaunchError(Exit.FAILED, "%s ended with exit status %d"
                          % (" ".join(command), code), hint)


def check_executable(path):
    """Raise LaunchError (126 or 127) unless path can be executed; looked at, never run."""
    if not os.path.lexists(path):
        raise not_executable(path, "there is no such file", Exit.NOT_FOUND)
    if not os.path.exists(path):
        raise not_executable(path, "it is a link to %s, which is not there"
                             % os.path.realpath(path))
    if os.path.isdir(path):
        raise not_executable(path, "it is a folder")
    if not os.access(path, os.X_OK):
        raise not_executable(path, "it has no permission to be executed")


def not_executable(path, why, code=Exit.NOT_EXECUTABLE):
    return LaunchError(code, "%s is not executable: %s" % (path, getattr(why, "strerror", why)),
                       "point %s at a working python" % APP.env("PYTHON"))


def server_command(python, launch):
    """Arguments (list of str) that run the server with this interpreter."""
    fields = {"python": python, "host": launch.host, "port": launch.port, "root": REPO_ROOT}
    words = launch.app.command.split()
    if "command" in launch.app.given:
        import shlex
        words = shlex.split(launch.app.command)
    command = [word.format(**fields) for word in words]
    if "/" not in command[0]:
        beside = os.path.join(os.path.dirname(python), command[0])
        command[0] = beside if os.access(beside, os.X_OK) else (
            find_program(command[0]) or command[0])
    return command


def working_folder(launch, agent_dir):
    """Folder (str) that the server runs in: SERVER_CWD, the companion's, or this one."""
    chosen = launch.settings["SERVER_CWD"]
    if chosen.value and not os.path.isdir(os.path.expanduser(chosen.value)):
        raise LaunchError(Exit.CONFIG, "%s=%s (%s) is not a folder" % (
            launch.app.env("SERVER_CWD"), chosen.value, chosen.origin), "correct or remove it")
    return os.path.abspath(os.path.expanduser(chosen.value)) if chosen.value else str(
        agent_dir or REPO_ROOT)


# -- plans -------------------------------------------------------------------------------------


def choose_mode(options, launch, verdict):
    """The Verdict after the operator's own wish, which outranks all evidence."""
    if options["foreground"]:
        return verdict._replace(mode=FOREGROUND, why="--foreground", hearsay=None)
    if options["detach"]:
        return verdict._replace(mode=DETACHED, why="--detach", hearsay=None)
    wish = launch.settings["FOREGROUND"]
    if wish.value and wish.value.lower() in YES:
        why = "%s=%s (%s)" % (launch.app.env("FOREGROUND"), wish.value, wish.origin)
        return verdict._replace(mode=FOREGROUND, why=why, hearsay=None)
    return verdict


def plan_start(verdict, running, port_error):
    """Choose what a start does; reads nothing but its arguments.

    running: the record (dict) of the living instance, or None; port_error: LaunchError or None.
    """
    if running and verdict.mode == FOREGROUND:
        return Refuse("the instance runs", taken_by(running))
    if running:
        return Leave("the instance runs", running)
    if port_error:
        return Refuse(port_error.problem, port_error)
    return Become(verdict.why) if verdict.mode == FOREGROUND else Detach(verdict.why)


def taken_by(record):
    return LaunchError(
        Exit.TAKEN, "the instance runs already, pid %s, at %s" % (record["pid"], record["url"]),
        "end it with --stop, or let --replace end it" if not record.get("supervisor")
        else "%s has it: %s" % (record["supervisor"], record["stop_command"]))


# -- effects: output ---------------------------------------------------------------------------


def say(text, prefix="bootstrap: "):
    """One line to the operator, on stderr."""
    if sys.stderr is not None:
        try:
            print(prefix + text, file=sys.stderr, flush=True)
        except OSError:
            pass


def show(text):
    """A result, on stdout; raises OSError where it cannot be written."""
    if sys.stdout is not None:
        sys.stdout.buffer.write((text + "\n").encode("utf-8", "surrogateescape"))
        sys.stdout.flush()


def printable(text):
    """text with everything that a terminal would obey made visible."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


# -- effects: processes and ports --------------------------------------------------------------


def boot_id():
    """Identity of this boot of the kernel, "" where the system names none (random(4))."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def has_proc():
    return os.path.exists("/proc/self/stat")


def process_table():
    """Every Process by pid; from /proc, elsewhere from ps(1)."""
    if has_proc():
        rows = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
        return {row.pid: row for row in rows if row}
    table = {}
    for line in run_tool(["ps", "-axo", "pid=,ppid=,pgid=,state=,lstart=,command="]):
        words = line.split(None, 9)
        pid, ppid, pgid = map(int, words[:3])
        table[pid] = Process(pid, ppid, pgid, pgid, " ".join(words[4:9]), words[3],
                             program_name(words[9].split() if words[9:] else [], ""))
    return table


def run_tool(command):
    """Lines (list of str) that a diagnostic tool prints; none where it is missing or fails."""
    import subprocess
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode("utf-8", "replace").splitlines()


def family(record, table):
    """Living Processes of an instance: its process, all descendants, and its own session.

    A session whose leader is gone counts only while its members carry the launch's token:
    the kernel does not give a pid away that is still a session's name (credentials(7)).
    """
    living = {pid: p for pid, p in table.items() if p.state[:1] != "Z" and pid != os.getpid()}
    root = living.get(record["pid"])
    members = {root.pid} if root and is_same(record, root) else set()
    if record["session"] and (members or not root):
        members.update(pid for pid, p in living.items() if p.sid == record["session"]
                       and (members or carries_token(pid, record)))
    found = set(members)
    while found:
        found = {pid for pid, p in living.items() if p.ppid in found} - members
        members |= found
    return [living[pid] for pid in sorted(members)]


def carries_token(pid, record):
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return ("%s=%s" % (APP.env("LAUNCH_ID"), record["token"])).encode() in file.read()
    except OSError:
        return False


def is_same(record, process):
    """Whether a Process is the recorded one: a recycled pid has another start time."""
    if has_proc():
        return record["start"] == process.start and record["boot"] == boot_id()
    try:
        started = time.mktime(time.strptime(process.start, "%a %b %d %H:%M:%S %Y"))
    except ValueError:
        return False
    return abs(started - float(record["launched"])) < 3


def is_running(record):
    """Whether the recorded process lives; runs no helper program.

    Without /proc a pid that lives counts, as nobody but ps could tell more.
    """
    if not record:
        return False
    if has_proc():
        process = read_process(record["pid"])
        return bool(process and process.state != "Z" and is_same(record, process))
    try:
        os.kill(record["pid"], 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def end_family(record, grace):
    """End every process of an instance: SIGTERM, after grace seconds SIGKILL.

    Returns the name of the strongest signal that was needed, None where nothing lived.
    """
    import signal
    used, deadline, limit = None, time.monotonic() + grace, time.monotonic() + grace + 10
    wanted, told = signal.SIGTERM, {}
    while time.monotonic() < limit:
        members = family(record, process_table())
        if not members:
            return used
        if time.monotonic() > deadline:
            wanted = signal.SIGKILL
        for process in members:
            if told.get(process.pid) != wanted:
                told[process.pid] = wanted
                send_signal(process.pid, wanted)
                used = wanted.name
        time.sleep(0.01)
    return used


def send_signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise LaunchError(Exit.FAILED, "pid %d belongs to another user" % pid,
                          "end it as that user, or with sudo")


def listening_sockets(port):
    """Inodes (dict of str to uid str) of the TCP sockets that listen on a port (proc(5)).

    The kernel lists listening sockets first, so reading stops at the first other one.
    """
    found = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for fields in first_rows(path):
            if fields[3] != "0A":
                break
            if int(fields[1].rpartition(":")[2], 16) == port:
                found[fields[9]] = fields[7]
    return found


def first_rows(path):
    """Split rows of a /proc table without its title, read in small pieces."""
    try:
        with open(path, "rb", buffering=4096) as file:
            file.readline()
            for line in file:
                yield line.decode("ascii").split()
    except OSError:
        return


def holds_socket(pid, inodes):
    """Whether a process has one of the sockets open; None where that cannot be seen."""
    folder = "/proc/%d/fd" % pid
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        try:
            target = os.readlink(os.path.join(folder, name))
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            return True
    return False


def listeners(port):
    """Who listens on a port: list of (pid or None, description)."""
    if not has_proc():
        rows = run_tool(["lsof", "-nP", "-t", "-iTCP:%d" % port, "-sTCP:LISTEN"])
        return [(int(row), describe(int(row))) for row in rows if row.isdigit()]
    inodes = listening_sockets(port)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if inodes else []
    found = [(pid, describe(pid)) for pid in sorted(pids) if holds_socket(pid, inodes)]
    return found or [(None, "a process of user %s" % uid) for uid in sorted(inodes.values())]


def describe(pid):
    """pid and command of a process, short enough for one line."""
    words = read_arguments(pid) if has_proc() else run_tool(
        ["ps", "-o", "command=", "-p", str(pid)])
    return printable("pid %d (%s)" % (pid, " ".join(words)[:120]))


def check_port(launch):
    """The LaunchError (69 or 78) that stands against listening on host and port, or None.

    With sockets passed by a supervisor there is nothing to bind (sd_listen_fds(3)).
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return None
    import socket
    try:
        found = socket.getaddrinfo(launch.host if launch.host != "[::]" else "::", launch.port,
                                   type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        return host_error(launch, "cannot be resolved (%s)" % error)
    failures = [bind_failure(*row) for row in dict.fromkeys(
        (family, address) for family, _, _, _, address in found)]
    if errno.EADDRINUSE in failures:
        holders = [text for _, text in listeners(launch.port)] or ["an unknown process"]
        return LaunchError(Exit.TAKEN, "port %d is taken by %s" % (
            launch.port, ", ".join(holders)), "end it, or choose another: bash start.sh PORT")
    if None in failures:
        return None
    if errno.EACCES in failures:
        return LaunchError(Exit.CONFIG, "port %d needs a privilege that this user lacks"
                           % launch.port, "choose a port from 1024 up")
    return host_error(launch, "is not an address of this machine")


def host_error(launch, problem):
    return LaunchError(Exit.CONFIG, "host %r (%s) %s" % (
        launch.host, launch.settings["HOST"].origin, problem),
        "use 127.0.0.1, 0.0.0.0, or an address of this machine")


def bind_failure(family, address):
    """errno that binding a TCP socket ends with, or None."""
    import socket
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and address[0] != "::":
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            if sys.platform == "darwin" and probe.connect_ex(address) == 0:
                return errno.EADDRINUSE     # BSD lets a wildcard and an address share a port
            probe.listen(1)
    except OSError as error:
        return error.errno
    return None


def server_url(launch):
    """URL (str) under which this machine reaches the server; wildcards become loopback."""
    host = WILDCARDS.get(launch.host, launch.host)
    return "http://%s:%d/" % ("[%s]" % host if ":" in host else host, launch.port)


# -- effects: files ----------------------------------------------------------------------------


def prepare_state(launch):
    """Make the state folder, private to its user."""
    try:
        os.makedirs(launch.state_dir, mode=0o700, exist_ok=True)
    except OSError as error:
        raise state_error(launch.state_dir, error)
    if not os.access(launch.state_dir, os.W_OK | os.X_OK):
        raise state_error(launch.state_dir, OSError(errno.EACCES, "not writable"))


def state_error(path, error):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return LaunchError(
        Exit.IO_ERROR if full else Exit.CANNOT_CREATE,
        "%s: %s" % (path, error.strerror),
        "make room there" if full else "set %s to a folder of yours" % APP.env("STATE_DIR"))


def take_lock(path, patience, what):
    """Descriptor that holds the lock, close-on-exec; waits at most patience seconds."""
    import fcntl
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise state_error(path, error)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise LaunchError(Exit.TAKEN, "%s is under way (%s)" % (what, path),
                                  "wait for its end, or allow more with --timeout")
        time.sleep(0.01)


def release_lock(lock):
    if lock is not None:
        os.close(lock)


def write_file(path, text):
    """Replace a file whole, private to its user."""
    fresh = "%s.%d" % (path, os.getpid())
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii", errors="backslashreplace") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError as error:
        remove_file(fresh)
        raise state_error(path, error)


def remove_file(path):
    try:
        os.unlink(path)
    except OSError:
        pass


RECORD_NUMBERS = ("pid", "session", "parent", "port", "from_byte")


def write_record(launch, **fields):
    """Keep what is known of the instance as lines of name=value, values escaped to ASCII."""
    process = read_process(fields["pid"])
    start = process.start if process and fields["pid"] in (os.getpid(), process.pid) and (
        process.pid == os.getpid() or process.ppid == os.getpid()) else ""
    record = dict(fields, start=start, boot=boot_id(), launched="%.0f" % time.time(),
                  url=server_url(launch), port=launch.port, root=REPO_ROOT, version=__version__)
    write_file(launch.path("record"), "".join(
        "%s=%s\n" % (name, str(value).encode("unicode_escape").decode("ascii"))
        for name, value in sorted(record.items())))
    return record


def read_record(launch):
    """The record (dict) of the instance, or None where there is none that can be read."""
    pairs = (line.partition("=") for line in read_text(launch.path("record")).splitlines())
    try:
        record = {name: value.encode("ascii").decode("unicode_escape")
                  for name, _, value in pairs}
        record.update((name, int(record[name])) for name in RECORD_NUMBERS)
    except (KeyError, ValueError):
        return None
    return record


def open_log(launch):
    """(descriptor, size in bytes) of the log; a large one is set aside first."""
    path = launch.path("log")
    try:
        if os.path.lexists(path) and os.path.getsize(path) > LOG_LIMIT:
            os.replace(path, path + ".1")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return log, os.fstat(log).st_size
    except OSError as error:
        raise state_error(path, error)


def last_lines(path, count, from_byte=0):
    """The last lines (list of str) of a file from a byte on, read backwards in pieces."""
    data = b""
    try:
        with open(path, "rb") as file:
            position = file.seek(0, os.SEEK_END)
            while position > from_byte and data.count(b"\n") <= count and len(data) < 1 << 24:
                step = min(65536, position - from_byte)
                position = file.seek(position - step)
                data = file.read(step) + data
    except OSError:
        return []
    return [printable(line) for line in data.decode("utf-8", "replace").splitlines()[-count:]
            ] if count else []

# -- effects: health ---------------------------------------------------------------------------


def wait_for_health(url, timeout=60.0, child=None, tcp=False, strict=True, owns=None,
                    signals=None, progress=None):
    """Poll url until the server answers; a Health, true or false.

    timeout: seconds; child: the Popen whose end ends the wait; tcp: accepting is enough;
    strict: the answer must be JSON with "status": "ok", else 2xx and no other status will do;
    owns: says whether our own processes hold the port (True, False, None for unknown).
    Raises ValueError for a URL that is not http(s).
    """
    address = split_url(url)
    begin = time.monotonic()
    while True:
        elapsed = time.monotonic() - begin
        answer = "accepts" if tcp and accepts(address) else (
            None if tcp else ask_health(address, begin + timeout, strict))
        state = "no answer" if answer is None else answer
        if signals:
            signals.check()
        ended = child is not None and has_ended(child, owns)
        if answer in ("healthy", "accepts") and not ended:
            if owns is None or owns() is not False:
                return Health(True, Exit.OK, "", "")
            state = "somebody else answers there"
        if ended:
            return Health(False, Exit.FAILED, "the server ended before it was healthy: "
                          + exit_text(child.poll()), "")
        if elapsed > timeout:
            return Health(False, Exit.NOT_HEALTHY, "not healthy within %g s at %s: %s"
                          % (timeout, url, state), "allow more with --timeout SECONDS")
        if progress:
            progress(elapsed)
        pause(min(max(0.001, elapsed * 0.02), timeout - elapsed + 0.001), signals)


def split_url(url):
    """(scheme, host, port, path) of an http(s) URL; ValueError for any other."""
    from urllib.parse import urlsplit
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http(s) URL: %r" % (url,))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return parts.scheme, parts.hostname, port, path


def pause(duration, signals):
    if signals:
        signals.wait(duration)
    else:
        time.sleep(duration)


def accepts(address):
    import socket
    try:
        socket.create_connection(address[1:3], timeout=SLICE).close()
    except OSError:
        return False
    return True


def ask_health(address, deadline, strict):
    """One probe: "healthy", what else was answered, or None where nothing was."""
    try:
        status, body, whole = http_get(address, min(deadline, time.monotonic() + PROBE_LIMIT))
    except OSError:
        return None
    except ValueError as error:
        return str(error)
    if not whole and (strict or len(body) < ANSWER_LIMIT // 2):
        return "status %d with an incomplete body" % status
    said = health_status(body)
    good = ("ok",) if strict else ("ok", "pass", "up", "healthy")
    if 200 <= status < 300 and (said in good or said is None and not strict):
        return "healthy"
    return "status %d%s" % (status, "" if said is None else ", %s" % printable(said)[:40])


def health_status(body):
    """The string "status" of a JSON object (bytes), or None."""
    import json
    try:
        said = json.loads(body.decode("utf-8"))["status"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return said if isinstance(said, str) else None


def http_get(address, deadline):
    """One GET of RFC 9112 without proxies or redirects: (status, body, whether it is whole).

    Reads at most ANSWER_LIMIT bytes until deadline, however slowly they drip: urllib can
    bound a single read only, and its import takes longer than most servers need to start.
    Raises OSError where nothing answers, ValueError for an answer that is not HTTP.
    """
    scheme, host, port, path = address
    name = "[%s]" % host if ":" in host else host
    request = ("GET %s HTTP/1.0\r\nHost: %s:%d\r\nUser-Agent: bootstrap/%s\r\n"
               "Accept: application/json, */*\r\nConnection: close\r\n\r\n"
               % (path, name, port, __version__))
    data = b""
    with connect(scheme, host, port) as stream:
        stream.sendall(request.encode("latin-1"))
        while len(data) < ANSWER_LIMIT and not is_whole(data):
            piece = receive(stream, deadline)
            if not piece:
                break
            data += piece
    head, blank, body = data.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not blank or not head.startswith(b"HTTP/") or not words[1:] or not words[1].isdigit():
        raise ValueError("an answer that is not HTTP")
    length = content_length(head)
    return int(words[1]), body, len(data) < ANSWER_LIMIT and (
        length is None or len(body) >= length)


def connect(scheme, host, port):
    import socket
    stream = socket.create_connection((host, port), timeout=SLICE)
    if scheme == "http":
        return stream
    import ssl
    # The probe asks whether our own child serves; whom its certificate names is the clients'.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream.settimeout(PROBE_LIMIT)
    return context.wrap_socket(stream, server_hostname=host)


def receive(stream, deadline):
    import socket
    while True:
        stream.settimeout(SLICE)
        try:
            return stream.recv(65536)
        except socket.timeout:
            if time.monotonic() > deadline:
                raise


def is_whole(data):
    head, blank, body = data.partition(b"\r\n\r\n")
    length = content_length(head) if blank else None
    return length is not None and len(body) >= length


def content_length(head):
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def has_ended(child, owns):
    """Whether the child is gone and left nobody behind who could still become the server."""
    if child.poll() is None:
        return False
    return not (child.returncode == 0 and owns is not None and has_heirs(child.pid))


def has_heirs(session):
    """Whether a session has living members, although its leader ended."""
    if has_proc():
        return any(p.sid == session and p.state != "Z" for p in process_table().values())
    try:
        os.killpg(session, 0)
    except OSError:
        return False
    return True


def exit_text(code):
    if code is not None and code < 0:
        import signal
        return "killed by %s" % signal.Signals(-code).name
    return "exit status %s" % code


def owner_check(record, port):
    """A function that says whether the instance's processes hold the port, cheapest first."""
    def owns():
        inodes = listening_sockets(port)
        if not inodes:
            return None
        mine = holds_socket(record["pid"], inodes)
        if mine:
            return True
        relatives = family(record, process_table())
        answers = [holds_socket(process.pid, inodes) for process in relatives]
        return True if True in answers else None if None in answers else False
    return owns


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP, and the end of children, while a start is under way.

    A noted signal ends the start only where check() is called, so that no child is lost
    between its birth and its record. Outside the main thread it notes nothing.
    """

    def __enter__(self):
        import signal
        self.caught, self.before = [], {}
        self.ends = os.pipe()
        for end in self.ends:
            os.set_blocking(end, False)
        try:
            self.wakeup = signal.set_wakeup_fd(self.ends[1], warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        except ValueError:
            self.wakeup = -1
        return self

    def note(self, number, _):
        import signal
        if number != signal.SIGCHLD:
            self.caught.append(number)

    def wait(self, duration):
        """Sleep for duration (seconds), or until a signal arrives."""
        import select
        limit = duration if self.before else min(duration, SLICE)
        if select.select([self.ends[0]], [], [], limit)[0]:
            os.read(self.ends[0], 512)

    def check(self):
        """Raise LaunchError (128+n) if a signal asked for the end."""
        if self.caught:
            import signal
            raise LaunchError(Exit.SIGNALLED + self.caught[0], "interrupted by %s"
                              % signal.Signals(self.caught[0]).name, "nothing was left running")

    def __exit__(self, *_):
        import signal
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.before:
            signal.set_wakeup_fd(self.wakeup)
        for end in self.ends:
            os.close(end)


class Progress:
    """One line on a terminal, renewed while a start takes longer than a second."""

    def __init__(self, launch, from_byte):
        self.log, self.from_byte, self.shown = launch.path("log"), from_byte, 0.0
        self.live = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, elapsed):
        if self.live and elapsed >= 1 and elapsed - self.shown >= 0.1:
            self.shown = elapsed
            line = (last_lines(self.log, 1, self.from_byte) or [""])[0]
            self.draw("bootstrap: %.0f s  %s" % (elapsed, line))

    def draw(self, text):
        width = os.get_terminal_size(2).columns - 1
        sys.stderr.write("\r\033[K" + text[:max(width, 20)])
        sys.stderr.flush()

    def clear(self):
        if self.shown:
            self.draw("")


def open_browser(url):
    """Open url (str) in the person's browser; never raises."""
    import contextlib
    # The drivers behind webbrowser are anybody's, and a browser is a courtesy.
    with contextlib.suppress(Exception):
        import webbrowser
        webbrowser.open(url)


def has_desktop():
    """Whether a person sits at a desktop here: a terminal, no ssh, and a display."""
    if not (os.isatty(0) and os.isatty(1)) or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_INTEROP"))


# -- effects: starts ---------------------------------------------------------------------------


def start(launch, options):
    """Observe, plan and carry the plan out; returns the exit code."""
    facts = observe()
    os.environ.update(launch.additions)
    agent_dir = discover_agent_dir()
    verdict = choose_mode(options, launch, judge(facts))
    if options["print_plan"]:
        return print_plan(launch, options, verdict, agent_dir)
    lock = lock_instance(launch, options, verdict)
    try:
        running = find_running(launch)
        if running and options["replace"]:
            stop_instance(launch, running)
            running = None
        plan = plan_start(verdict, running, None if running else check_port(launch))
        return carry_out(plan, launch, options, verdict, facts, agent_dir)
    finally:
        release_lock(lock)


def lock_instance(launch, options, verdict):
    """The lock of this instance; None where a foreground start has nowhere to keep it."""
    try:
        prepare_state(launch)
        return take_lock(launch.path("lock"), time_limit(launch, options),
                         "another start on port %d" % launch.port)
    except LaunchError as error:
        if verdict.mode == DETACHED or error.code == Exit.TAKEN:
            raise
        say("no record is kept: %s" % error.problem)
        return None


def time_limit(launch, options):
    return launch.app.start_timeout if options["timeout"] is None else options["timeout"]


def find_running(launch):
    record = read_record(launch)
    return record if is_running(record) else None


def carry_out(plan, launch, options, verdict, facts, agent_dir):
    """The one place that acts on a plan; returns the exit code."""
    if isinstance(plan, Refuse):
        raise plan.error
    if isinstance(plan, Leave):
        return report_running(launch, options, plan.record)
    if verdict.hearsay:
        say("%s is ignored: %s; --foreground becomes the server" % (verdict.hearsay, plan.why))
    python = ensure_python_has_webui_deps(discover_launcher_python(agent_dir))
    command = server_command(python, launch)
    check_executable(command[0])
    folder = working_folder(launch, agent_dir)
    export(launch, agent_dir)
    if isinstance(plan, Become):
        return become(launch, command, folder, verdict, facts)
    return detach(launch, command, folder, options)


def export(launch, agent_dir):
    """Hand the resolved settings to the server, by the environment."""
    names = {"HOST": launch.host, "PORT": str(launch.port), "STATE_DIR": launch.state_dir}
    if agent_dir:
        names["AGENT_DIR"] = str(agent_dir)
    os.environ.update((launch.app.env(name), value) for name, value in names.items())


def become(launch, command, folder, verdict, facts):
    """Replace this process by the server; the pid stays."""
    supervisor = {"supervisor": verdict.supervisor or "", "stop_command": "",
                  "restart_command": ""}
    if verdict.supervisor:
        commands = supervisor_commands(verdict.supervisor, facts)
        supervisor.update(stop_command=commands[0], restart_command=commands[1])
    try:
        write_record(launch, pid=os.getpid(), session=0, parent=os.getppid(), mode=FOREGROUND,
                     command="\0".join(command), log="", from_byte=0, token="", **supervisor)
    except LaunchError as error:
        say("no record is kept: %s" % error.problem)
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # Python ignores SIGPIPE from its start, and an ignored signal stays so across execve(2).
    import _signal
    before = _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        raise not_executable(command[0], error)
    finally:
        _signal.signal(_signal.SIGPIPE, before)
    return Exit.OK


def detach(launch, command, folder, options):
    """Spawn the server in a session of its own, and say ready only once it is."""
    import subprocess
    log, from_byte = open_log(launch)
    os.environ[launch.app.env("LAUNCH_ID")] = token = os.urandom(8).hex()
    environ = {name: value for name, value in os.environ.items()
               if name not in SUPERVISOR_VARIABLES}
    with Signals() as signals:
        try:
            child = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise not_executable(command[0], error)
        finally:
            os.close(log)
        record = {"pid": child.pid, "session": child.pid, "start": "", "boot": "", "token": token}
        health = None
        try:
            record = write_record(
                launch, pid=child.pid, session=child.pid, parent=os.getpid(), mode=DETACHED,
                command="\0".join(command), log=launch.path("log"), from_byte=from_byte,
                token=token, supervisor="", stop_command="", restart_command="")
            health = await_instance(launch, options, record, child, signals)
        finally:
            if not health:
                abandon(launch, record, child)
    if not health:
        raise start_error(launch, record, health)
    return report_ready(launch, options, record)


def await_instance(launch, options, record, child, signals=None):
    """Wait until the recorded instance is healthy; a Health."""
    progress = Progress(launch, record["from_byte"])
    path = "" if launch.app.health == "tcp" else launch.app.health.lstrip("/")
    try:
        return wait_for_health(
            record["url"] + path, timeout=time_limit(launch, options), child=child,
            tcp=launch.app.health == "tcp", strict=launch.app.source is None,
            owns=owner_check(record, launch.port), signals=signals, progress=progress)
    finally:
        progress.clear()


def abandon(launch, record, child):
    """End a child that did not become a healthy server, and all its children."""
    child.poll()
    if has_proc():
        end_family(record, launch.app.stop_timeout)
    else:
        end_group(child, launch.app.stop_timeout)
    child.poll()
    remove_file(launch.path("record"))


def end_group(child, grace):
    import signal
    import subprocess
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def start_error(launch, record, health):
    log = launch.path("log")
    if not isinstance(health, Health):
        return LaunchError(Exit.NOT_HEALTHY, "%s is not healthy" % launch.app.name,
                           "see " + log)
    return LaunchError(
        health.code, health.problem, "; ".join(filter(None, (health.remedy, "its log: " + log))),
        last_lines(log, TAIL, record["from_byte"]))


def report_ready(launch, options, record):
    say("%s is ready, pid %d, log %s" % (launch.app.name, record["pid"], launch.path("log")))
    show(record.get("url") or server_url(launch))
    if not options["no_browser"] and has_desktop():
        open_browser(server_url(launch))
    return Exit.OK


def report_running(launch, options, record):
    """Say where the running instance is, once it is healthy; LaunchError (69) if it is not."""
    health = await_instance(launch, options, record, None)
    if not health:
        raise LaunchError(Exit.TAKEN, "the instance runs already, pid %d, but is %s"
                          % (record["pid"], health.problem), "start it anew with --restart")
    say("%s is already running, pid %d" % (launch.app.name, record["pid"]))
    show(record["url"])
    return Exit.OK


def print_plan(launch, options, verdict, agent_dir):
    """Show what a start would do; starts and changes nothing."""
    running = find_running(launch)
    plan = plan_start(verdict, running, None if running else check_port(launch))
    python, origin = find_python(agent_dir)
    facts = {
        "mode": plan.mode, "why": plan.why, "interpreter": {"path": python, "why": origin},
        "command": server_command(python, launch), "folder": working_folder(launch, agent_dir),
        "url": server_url(launch),
        "log": launch.path("log") if verdict.mode == DETACHED else None,
        "settings": {name: setting._asdict() for name, setting in launch.settings.items()},
    }
    if options["json"]:
        import json
        show(json.dumps(facts, indent=2))
        return Exit.OK
    facts.update(interpreter="%s (%s)" % (python, origin), command=" ".join(facts["command"]),
                 settings="")
    for name, value in facts.items():
        show("%-12s %s" % (name, value or ""))
    for name, setting in launch.settings.items():
        show("  %-18s %s  (%s)" % (name, setting.value or "", setting.origin))
    return Exit.OK


# -- instance commands -------------------------------------------------------------------------


def stop_instance(launch, record):
    """End the recorded instance; LaunchError (1) where a supervisor would bring it back."""
    tracker = tracking_supervisor(record)
    if tracker:
        raise LaunchError(Exit.FAILED, "pid %d is tracked by %s, which would start it again"
                          % (record["pid"], tracker), record["stop_command"])
    used = end_family(record, launch.app.stop_timeout)
    if family(record, process_table()):
        raise LaunchError(Exit.FAILED, "pid %d does not end" % record["pid"],
                          "look at it with --status")
    remove_file(launch.path("record"))
    return used


def tracking_supervisor(record):
    """Who would start the recorded process again, "" if nobody: an orphan has a new parent."""
    process = process_table().get(record["pid"])
    return record["supervisor"] if process and process.ppid == record["parent"] else ""


def command_stop(launch, _):
    record = read_record(launch)
    used = stop_instance(launch, record) if record else None
    if used:
        say("%s on port %d is stopped (%s)" % (launch.app.name, launch.port, used))
    else:
        say("%s on port %d is not running" % (launch.app.name, launch.port))
    return Exit.OK


def command_restart(launch, options):
    command_stop(launch, options)
    return start(launch, options)


def command_logs(launch, options):
    """Show the end of the log, and with -f what comes."""
    path = launch.path("log")
    record = read_record(launch)
    if record and not record["log"]:
        raise LaunchError(Exit.NOT_RUNNING, "the instance runs in the foreground: its output "
                          "goes to whoever started it", "look there, for systemd: journalctl")
    if not os.path.exists(path):
        raise LaunchError(Exit.NOT_RUNNING, "there is no log at %s" % path,
                          "start the instance first: bash start.sh %d" % launch.port)
    lines = TAIL if options["n"] is None else options["n"]
    for line in last_lines(path, lines):
        show(line)
    if options["f"]:
        follow(path)
    return Exit.OK


def follow(path):
    """Copy what is appended to a file to stdout, also after it was set aside; until a signal."""
    file = open(path, "rb")
    file.seek(0, os.SEEK_END)
    while True:
        data = file.read(65536)
        if data:
            show(data.decode("utf-8", "surrogateescape").rstrip("\n"))
            continue
        time.sleep(SLICE)
        if os.path.exists(path) and not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            file.close()
            file = open(path, "rb")


def command_status(launch, options):
    """Diagnose the instance: what runs, who has the port, and one remedy if that is wrong."""
    report = diagnose(launch)
    if options["json"]:
        import json
        show(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            if value not in (None, "", []):
                show("%-12s %s" % (name, ", ".join(value) if isinstance(value, list) else value))
    return Exit.OK if report["pid"] else Exit.NOT_RUNNING


def diagnose(launch):
    """Everything that --status says, as a dict in the order in which it is shown."""
    record = read_record(launch) or {}
    table = process_table()
    members = [process.pid for process in family(record, table)] if record else []
    holders = listeners(launch.port)
    url = record.get("url") or server_url(launch)
    probe = (accepts(split_url(url)) and "healthy") if launch.app.health == "tcp" else ask_health(
        split_url(url + launch.app.health.lstrip("/")), time.monotonic() + PROBE_LIMIT,
        launch.app.source is None) if holders else None
    ours = bool(members) and any(pid in members or pid is None for pid, _ in holders)
    state, verdict, remedy = conclude(launch, record, members, holders, ours, probe, table)
    return {
        "state": state, "pid": members and record["pid"] or None, "url": url,
        "healthy": ours and probe == "healthy", "health": probe,
        "mode": record.get("mode"), "supervisor": record.get("supervisor"),
        "parent": parent_text(record, table) if members else None,
        "listeners": [text + child_text(pid, table) for pid, text in holders],
        "log": record.get("log"), "verdict": verdict, "remedy": remedy,
    }


def conclude(launch, record, members, holders, ours, probe, table):
    """(state, verdict, remedy) of what --status found, "" where there is nothing to say."""
    here = "bash start.sh %d" % launch.port
    again = record.get("restart_command") or here + " --restart"
    foreign = [(pid, text) for pid, text in holders if pid not in members]
    if ours and probe == "healthy":
        return "running", "", ""
    if members and ours:
        return "wedged", "it listens, but its health is: %s" % (probe or "no answer"), again
    if members and foreign:
        return "blocked", "its port is held by %s" % foreign[0][1], "end that, then " + again
    if members:
        return "not listening", "pid %d lives, but nobody listens on port %d" % (
            members[0], launch.port), "wait, look at --logs, or " + again
    if foreign:
        pid, text = foreign[0]
        orphan = orphan_of(pid, table)
        if orphan:
            return "orphan", "%s holds the port and lost its supervisor (%s), which finds it " \
                "taken at every start" % (text, orphan), "kill %d, and start with --foreground" % pid
        return "foreign", "port %d is held by %s" % (launch.port, text), \
            "end it, or choose another port"
    if record:
        return "not running", "pid %d ended without --stop" % record["pid"], here
    return "not running", "", here


def orphan_of(pid, table):
    """The supervisor whose variables a process carries although nobody tracks it, or ""."""
    process = table.get(pid)
    parent = table.get(process.ppid) if process else None
    if not parent or parent.name in PARENTS or not (parent.pid == 1 or parent.name == "systemd"):
        return ""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            environ = dict(pair.partition(b"=")[::2] for pair in file.read().split(b"\0"))
    except OSError:
        return ""
    if environ.get(b"SYSTEMD_EXEC_PID") == str(pid).encode():
        return ""
    return next((supervisor for name, supervisor in MARKERS if _is_real_supervisor_value(
        name, environ.get(name.encode(), b"").decode("utf-8", "replace"))), "")


def parent_text(record, table):
    process = table.get(record["pid"])
    parent = table.get(process.ppid) if process else None
    if not parent:
        return None
    kept = record["supervisor"] and process.ppid == record["parent"]
    return "pid %d (%s)%s" % (parent.pid, parent.name, ", tracked" if kept else "")


def child_text(pid, table):
    process = table.get(pid)
    parent = table.get(process.ppid) if process else None
    return ", child of pid %d (%s)" % (parent.pid, parent.name) if parent else ""


def command_version(*_):
    import hashlib
    with open(os.path.realpath(__file__), "rb") as file:
        show("bootstrap %s\nsha256 %s" % (__version__, hashlib.sha256(file.read()).hexdigest()))
    return Exit.OK


# -- command line ------------------------------------------------------------------------------


class Namespace:
    """What parse_args returns: the words of the command line, resolved."""

    def __init__(self, **values):
        self.__dict__.update(values)


def usage_error(problem):
    return LaunchError(Exit.USAGE, problem, "bash start.sh --help lists every word")


def option_name(flag):
    return flag.lstrip("-").replace("-", "_")


def default_options():
    """Every option with the value it has when it is not given."""
    rows = (row for row in OPTIONS if not isinstance(row, str))
    return dict({option_name(flag): None if metavar else False for flag, metavar, _ in rows},
                port=None)


def read_words(words):
    """Options (dict) from the command line's words (list of str); LaunchError (2)."""
    metavars = {row[0]: row[1] for row in OPTIONS if not isinstance(row, str)}
    options, places, queue = default_options(), [], list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            places += queue
            break
        flag, equals, value = word.partition("=")
        if word == "-h":
            flag = "--help"
        if not word.startswith("-"):
            places.append(word)
        elif flag not in metavars:
            raise usage_error("there is no option %s" % flag)
        elif not metavars[flag]:
            if equals:
                raise usage_error("%s takes no value" % flag)
            options[option_name(flag)] = True
        else:
            if not equals and not queue:
                raise usage_error("%s wants a value, %s" % (flag, metavars[flag]))
            options[option_name(flag)] = value if equals else queue.pop(0)
    return check_options(options, [place for place in places if place.strip()])


def check_options(options, places):
    if len(places) > 1:
        raise usage_error("one PORT is enough: %s" % " ".join(places))
    options["port"] = places[0] if places else None
    chosen = ["--" + name.replace("_", "-") for name in ACTIONS if options[name]]
    if len(chosen) > 1:
        raise usage_error("%s do not go together" % " and ".join(chosen))
    if options["foreground"] and options["detach"]:
        raise usage_error("--foreground and --detach do not go together")
    try:
        if options["timeout"] is not None:
            options["timeout"] = seconds(options["timeout"])
    except ValueError as error:
        raise usage_error("--timeout %s %s" % (options["timeout"], error))
    if options["n"] is not None:
        if not options["n"].isdigit():
            raise usage_error("-n %s must be a number of lines" % options["n"])
        options["n"] = int(options["n"])
    return options


def help_text(app):
    fields = {"host": app.host, "timeout": app.start_timeout, "lines": TAIL,
              "prefix": app.env_prefix}
    lines = ["usage: bash start.sh [PORT] [options]", "",
             "Start %s on PORT (default: %d)." % (app.name, app.port)]
    for row in OPTIONS:
        if isinstance(row, str):
            lines += ["", row + ":"]
        else:
            flag, metavar, text = row
            lines.append("  %-22s %s" % (flag + (" " + metavar if metavar else ""),
                                         text.format(**fields)))
    return "\n".join(lines) + "\n" + EPILOG.format(**fields).rstrip()


def parse_args():
    """Read sys.argv and resolve every setting; a namespace with port, host and the options.

    Raises LaunchError (2, 78), and SystemExit (0) once --help is printed.
    """
    options = read_words(sys.argv[1:])
    app = read_app(options["config"])
    if options["help"]:
        show(help_text(app))
        raise SystemExit(Exit.OK)
    launch = settle(app, options)
    options.update(port=launch.port, host=launch.host)
    return Namespace(launch=launch, **options)


def main():
    """Run the command; returns its exit code, raises LaunchError for the operator."""
    global APP
    options = dict(default_options(), launch=None)
    options.update(vars(parse_args()))
    ensure_supported_platform()
    launch = options["launch"] or settle(read_app(), options)
    APP = launch.app
    for note in launch.notes:
        say(note)
    for name, command in (("version", command_version), ("status", command_status),
                          ("stop", command_stop), ("restart", command_restart),
                          ("logs", command_logs)):
        if options[name]:
            return command(launch, options)
    return start(launch, options)


def keep_standard_streams():
    """Open /dev/null in place of a closed stdin, stdout or stderr: no socket may land there."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def run():
    """main() as a program: every error becomes lines on stderr and an exit code."""
    keep_standard_streams()
    try:
        return main()
    except LaunchError as error:
        say(error.problem)
        for line in error.detail:
            say(line, "  | ")
        say(error.remedy, "  ")
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return Exit.SIGNALLED + 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.SIGNALLED + 13


if __name__ == "__main__":
    sys.exit(run())
