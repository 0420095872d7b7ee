"""Start a Python web server from its checkout, and hand it over the right way.

Modes: where a supervisor provably tracks this process, it becomes the server (os.execv) and
keeps its pid. Elsewhere the server is detached, and the prompt comes back once it has answered
its health check. --print-plan says which, and why.

Settings, first one wins: command line, environment, .env, bootstrap.cfg, built-in. Their names:
HERMES_WEBUI_HOST (bootstrap.cfg may name another prefix), and likewise PORT PYTHON STATE_DIR
AGENT_DIR FOREGROUND SERVER_CWD DISABLE_LOCAL_VENV NO_SUPERVISE; DOTENV_OVERRIDE=1 lets .env win.

Exit codes:
  0 done            1 the server ended before it was healthy, or a supervisor has it
  2 usage           3 not running (--status)         69 the port or instance is taken
  73, 74 state folder cannot be made, is full        75 not healthy within the time limit
  78 configuration  126 not executable  127 not found  130 interrupted  143 terminated

This file needs nothing but the standard library, and is copied unedited into any repository.
"""
import sys

if sys.version_info < (3, 8):
    sys.exit("bootstrap: Python 3.8 or newer is needed, this is %d.%d (%s)"
             % (sys.version_info[0], sys.version_info[1], sys.executable))

import contextlib
import errno
import itertools
import os
import shlex
import time
from collections import namedtuple
from enum import IntEnum

# -- constants ---------------------------------------------------------------------------------

__version__ = "1.0.0"
REPO_ROOT = os.path.dirname(os.path.realpath(__file__))
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8787
BOOT_ID = "/proc/sys/kernel/random/boot_id"        # see random(4)
HAS_PROC = os.path.exists("/proc/self/stat")

FOREGROUND, DETACHED, LEAVE, REFUSE = "foreground", "detached", "leave alone", "refuse"
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
CONTAINER_INITS = frozenset(
    "tini dumb-init docker-init catatonit podman-init s6-svscan".split())
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


class Exit(IntEnum):
    """Exit codes: sysexits(3), the shell's 126, 127 and 128+n, and the LSB's 3 for --status."""

    OK, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3
    TAKEN, CANNOT_CREATE, IO_ERROR, NOT_HEALTHY, CONFIG = 69, 73, 74, 75, 78
    NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 126, 127, 128


class LaunchError(RuntimeError):
    """What the operator can put right: exit code, problem, remedy, lines to show in between."""

    def __init__(self, code, problem, remedy, detail=()):
        super().__init__("%s\n  %s" % (problem, remedy))
        self.code, self.problem, self.remedy, self.detail = code, problem, remedy, detail


# -- data --------------------------------------------------------------------------------------


def data(name, fields, doc):
    """A named tuple type with its docstring."""
    kind = namedtuple(name, fields)
    kind.__doc__ = doc
    return kind


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


class Launch(namedtuple("Launch", "app settings additions notes")):
    """What is to be started: additions go from .env to os.environ, notes to the operator."""

    __slots__ = ()
    host = property(lambda self: self.settings["HOST"].value)
    port = property(lambda self: self.settings["PORT"].value)
    state_dir = property(lambda self: self.settings["STATE_DIR"].value)

    def path(self, kind):
        """Path of the instance's lock, record or log."""
        return os.path.join(self.state_dir, "bootstrap-%d.%s" % (self.port, kind))


class Health(namedtuple("Health", "code problem")):
    """Outcome of waiting for a server: true where it is healthy, else why it is not."""

    __slots__ = ()

    def __bool__(self):
        return self.code == Exit.OK


Setting = data("Setting", "value origin", "A value (None where there is none), and its origin.")
Entry = data("Entry", "name value line", "One assignment of a .env file.")
Complaint = data("Complaint", "line why", "A bad line of a .env file; never quotes its text.")
Process = data("Process", "pid ppid sid start state name", """One row of the process table.

start: clock ticks since boot (str, proc(5)); from ps(1) its lstart.""")
Facts = data("Facts", (
    "pid parent chain at_init watcher exec_pid journal marker terminal leader"), """\
What was observed about this process, once.

pid, parent: 0 where nothing is to be concluded from them; chain: the Process of each ancestor,
nearest first; at_init: True where the chain reaches pid 1, False where it ends at ppid 0 without
(docker exec), None if unknown; watcher: name of the nearest ancestor that does not only wait for
its command, "" without one; exec_pid: SYSTEMD_EXEC_PID as int, or None; journal: whether
JOURNAL_STREAM is our output; marker: name of a supervisor's variable, or None; terminal: on
stdin and stdout; leader: whether we lead our process group.""")
Verdict = data("Verdict", "mode why supervisor hearsay",
               "A mode, its evidence, who tracks us (or None), the variable not believed.")
Plan = data("Plan", "mode why record error", """\
What a start does: FOREGROUND, DETACHED, LEAVE or REFUSE.

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
    import configparser
    parser = configparser.ConfigParser(interpolation=None)

    def fail(problem):
        raise LaunchError(Exit.CONFIG, f"{source} {problem}",
                          "valid keys in [bootstrap]: " + ", ".join(sorted(CONFIG_KEYS)))
    try:
        with open(source, encoding="utf-8-sig") as file:
            parser.read_file(file)
        section = parser["bootstrap"]
    except KeyError:
        fail("has no section [bootstrap]")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        fail("cannot be read: " + " ".join(str(error).split()))
    given = {}
    for key, text in section.items():
        if key not in CONFIG_KEYS:
            fail("has an unknown key %r" % key)
        try:
            given[key] = checked(text, *CONFIG_KEYS[key])
        except ValueError as error:
            fail("%s = %s: %s" % (key, text, error))
    return given


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
    words = [word.format(python="", host="", port="", root="") for word in shlex.split(text)]
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
    "state_dir": LINE, "install": LINE, "requires_python": LINE,
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
            notes.append(".env:%d: %s is longer than any program can be given" % (
                entry.line, name))
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
                          "correct or remove it")
    settings["STATE_DIR"] = settings["STATE_DIR"]._replace(
        value=state_folder(settings["STATE_DIR"].value, app, dict(os.environ, **additions)))
    return Launch(app, settings, additions, notes)


def find_setting(name, app, options, additions, dotenv):
    """The winning Setting; a blank one counts as not set."""
    key, field = app.env(name), name.lower()
    flag = getattr(options, field, None) if name in ("HOST", "PORT") else None
    default = getattr(app, field) if name in ("HOST", "PORT", "STATE_DIR") else None
    candidates = (
        (flag, "command line"),
        (additions.get(key), ".env:%d" % dotenv[key].line if key in additions else None),
        (os.environ.get(key), "environment"),
        (default, os.path.basename(app.source) if field in app.given else "built-in"))
    for value, origin in candidates:
        if value is not None and str(value).strip():
            return Setting(str(value).strip(), origin)
    return Setting(None, "built-in")


def is_yes(value):
    return (value or "").strip().lower() in YES


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


def observe():
    """Gather the Facts; the only reader of pids, ancestors and terminals for a start.

    Where another program imported this module, that process is not ours to judge: flag and
    marker alone decide.
    """
    marker = _detect_supervisor()
    if __name__ != "__main__":
        return Facts(0, 0, (), None, "", None, False, marker, False, False)
    chain, at_init = read_ancestors(os.getppid())
    watcher = next((process for process in chain if not waits(process)), None)
    exec_pid = os.environ.get("SYSTEMD_EXEC_PID", "")
    streams = ["%d:%d" % (file.st_dev, file.st_ino) for file in map(os.fstat, (1, 2))]
    return Facts(
        pid=os.getpid(), parent=os.getppid(), chain=chain, at_init=at_init,
        watcher=watcher.name if watcher else "",
        exec_pid=int(exec_pid) if exec_pid.isascii() and exec_pid.isdigit() else None,
        journal=os.environ.get("JOURNAL_STREAM") in streams,
        marker=marker, terminal=os.isatty(0) and os.isatty(1),
        leader=os.getpgrp() == os.getpid())


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
    return tuple(chain), False if HAS_PROC else None


def read_process(pid):
    """The Process with this pid, or None where there is none to be seen (proc(5))."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return None
    fields = after.decode("ascii").split()
    comm = before.partition(b"(")[2].decode("utf-8", "replace")
    return Process(pid, int(fields[1]), int(fields[3]), fields[19], fields[0],
                   program_name(read_arguments(pid)) or comm)


def read_arguments(pid):
    """Arguments (list of str) of a process; [""] for a zombie, a kernel thread, a stranger."""
    with contextlib.suppress(OSError), open("/proc/%d/cmdline" % pid, "rb") as file:
        return file.read(65536).decode("utf-8", "replace").rstrip("\0").split("\0")
    return [""]


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
    (is_init_waiting, FOREGROUND, "pid 1 waits for this process", ENGINE, None),
    (lambda it: it.watcher in PARENTS, FOREGROUND, "child of {watcher}", "{supervisor}", None),
    (lambda it: it.watcher == "monit", DETACHED, "child of monit, it wants daemons", None, None),
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
    try:
        watcher = next(process for process in facts.chain if process.name == facts.watcher)
        fields["folder"] = os.readlink("/proc/%d/cwd" % watcher.pid)
    except (OSError, StopIteration, AttributeError):
        pass
    command, *verbs = SUPERVISORS.get(supervisor, ("", "", ""))
    stop, restart = (command.format_map(dict(fields, verb=verb)) for verb in verbs)
    return {"supervisor": supervisor or "", "stop_command": stop, "restart_command": restart}


# -- interpreter and dependencies --------------------------------------------------------------


def ensure_supported_platform():
    """Raise LaunchError (78) on native Windows, which has neither exec nor sessions."""
    if sys.platform == "win32" or os.name == "nt":
        raise LaunchError(Exit.CONFIG, "native Windows is not supported",
                          "run it inside WSL2, where it works as on Linux")


def find_program(name):
    """Path of an executable file on PATH, or None."""
    paths = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in paths if is_program(path)), None)


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
    words = read_text(programs[0], 4096).replace("#!", " ").replace('"', " ") if programs else ""
    programs += [word for word in words.split() if os.path.basename(word).startswith("python")]
    for program in programs + [setting_now("PYTHON") or sys.executable]:
        yield os.path.dirname(os.path.dirname(os.path.dirname(program)))
        yield from site_folders(program)


def site_folders(python):
    """The site-packages beside an interpreter, found without running it."""
    import glob
    prefix = glob.escape(os.path.dirname(os.path.dirname(python)))
    return sorted(glob.glob(prefix + "/lib/python3*/site-packages"), reverse=True)


def discover_launcher_python(agent_dir):
    """Path (str) of the interpreter to use; PYTHON is final, whatever it names."""
    return find_python(agent_dir)[0]


def find_python(agent_dir):
    """(path, where it comes from) of the first candidate that is there; LaunchError (127)."""
    chosen = setting_now("PYTHON")
    if chosen:
        path = os.path.join(os.getcwd(), chosen) if "/" in chosen else find_program(chosen)
        return path or chosen, APP.env("PYTHON")
    for path, origin in python_candidates(agent_dir):
        if path and is_program(path):
            return path, origin
    raise LaunchError(Exit.NOT_FOUND, "no Python was found",
                      f"install Python 3.8 or newer, or set {APP.env('PYTHON')}")


def python_candidates(agent_dir):
    for name in ("venv", ".venv") if agent_dir else ():
        yield os.path.join(agent_dir, name, "bin", "python"), "the companion's " + name
    if not is_yes(setting_now("DISABLE_LOCAL_VENV")):
        yield local_path("bin", "python"), "this repository's .venv"
    yield sys.executable, "the Python that runs bootstrap.py"
    for name in ["python3.%d" % minor for minor in range(13, 7, -1)] + ["python3"]:
        yield find_program(name), "%s on PATH" % name


def local_path(*names):
    return os.path.join(REPO_ROOT, ".venv", *names)


def ensure_python_has_webui_deps(python):
    """An interpreter (str) that has the dependencies: python, or a .venv made for it.

    Raises LaunchError (1, 78, 126, 127) where they cannot be had.
    """
    arguments = shlex.split(APP.install)
    if not arguments and os.path.isfile(os.path.join(REPO_ROOT, "requirements.txt")):
        arguments = ["-r", "requirements.txt"]
    if not arguments:
        return python
    check_executable(python)
    if python == local_path("bin", "python"):
        return make_environment(sys.executable, arguments)
    if not lacks_dependencies(python, arguments):
        return python
    if setting_now("PYTHON"):
        raise LaunchError(Exit.CONFIG, f"{python} lacks dependencies of {APP.name}",
                          f"{python} -m pip install {' '.join(arguments)}")
    if is_yes(setting_now("DISABLE_LOCAL_VENV")):
        problem = f"{python} lacks dependencies, and {APP.env('DISABLE_LOCAL_VENV')} forbids .venv"
        raise LaunchError(Exit.CONFIG, problem, f"set {APP.env('PYTHON')} to one that has them")
    return make_environment(python, arguments)


def lacks_dependencies(python, arguments):
    """Whether an interpreter's own pip would have something to install (pip install(1))."""
    import json
    import subprocess
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--no-input",
               "--disable-pip-version-check", "--report", "-"] + arguments
    done = subprocess.run(command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        return done.returncode != 0 or bool(json.loads(done.stdout.decode())["install"])
    except (ValueError, KeyError):
        return True


def make_environment(base, arguments):
    """Make .venv, or bring it up to date; its stamp is a hash of all that it was made from."""
    import hashlib
    texts = [word + "\0" + read_text(os.path.join(REPO_ROOT, word)) for word in arguments]
    stamp = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
    python, kept = local_path("bin", "python"), local_path("bootstrap-stamp")
    if read_text(kept) != stamp or not is_program(python):
        lock = take_lock(local_path() + ".lock", 600.0, "an installation into .venv")
        try:
            if read_text(kept) != stamp or not is_program(python):
                install_into(python, base, arguments, is_program(python) and read_text(kept))
                write_file(kept, stamp)
        finally:
            os.close(lock)
    return python


def install_into(python, base, arguments, is_complete):
    """Run the installers, their output on stderr; LaunchError (1) where one fails."""
    import shutil
    import subprocess
    say("installing dependencies into %s" % local_path())
    uv = find_program("uv")
    make = [uv, "venv", "--python", base] if uv else [base, "-m", "venv"]
    fill = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    if not is_complete:
        shutil.rmtree(local_path(), ignore_errors=True)
    for command in ([] if is_complete else [make + [local_path()]]) + [fill + arguments]:
        done = subprocess.run(command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL, stdout=2)
        if done.returncode:
            problem = f"{' '.join(command)} ended with exit status {done.returncode}"
            raise LaunchError(Exit.FAILED, problem,
                              "see the lines above; a venv without pip: apt install python3-venv")


def check_executable(path):
    """Raise LaunchError (126 or 127) unless path can be executed; looked at, never run."""
    if not os.path.lexists(path):
        raise not_executable(path, "there is no such file", Exit.NOT_FOUND)
    if not os.path.exists(path):
        raise not_executable(path, "it is a link to %s, which is missing" % os.path.realpath(path))
    if os.path.isdir(path):
        raise not_executable(path, "it is a folder")
    if not os.access(path, os.X_OK):
        raise not_executable(path, "no permission to execute it")


def not_executable(path, why, code=Exit.NOT_EXECUTABLE):
    return LaunchError(code, "%s is not executable: %s" % (path, why),
                       "point %s at a working python" % APP.env("PYTHON"))


def server_command(python, launch):
    """Arguments (list of str) that run the server with this interpreter."""
    fields = {"python": python, "host": launch.host, "port": launch.port, "root": REPO_ROOT}
    program, *arguments = [word.format(**fields) for word in shlex.split(launch.app.command)]
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
    if not os.path.isdir(folder):
        problem = f"{APP.env('SERVER_CWD')}={chosen.value} ({chosen.origin}) is not a folder"
        raise LaunchError(Exit.CONFIG, problem, "correct or remove it")
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
        with contextlib.suppress(OSError):
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
    """Content of a text file (its first limit characters), "" where it cannot be read."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(limit)
    return ""


def write_file(path, text):
    """Replace a file whole, private to its user; LaunchError (73, 74)."""
    fresh = "%s.%d" % (path, os.getpid())
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise state_error(path, error)


def state_error(path, error):
    """The LaunchError for an OSError of the state folder: 74 where it is full, else 73."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = Exit.IO_ERROR if full else Exit.CANNOT_CREATE
    remedy = "make room there" if full else f"set {APP.env('STATE_DIR')} to a folder of yours"
    return LaunchError(code, f"{error.filename or path}: {error.strerror}", remedy)


def take_lock(path, patience, what):
    """Descriptor that holds the lock, close-on-exec; waits at most patience seconds (flock(2))."""
    import fcntl
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
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


RECORD_KEYS = frozenset("pid start boot session parent token url log from_byte launched mode"
                        " supervisor stop_command restart_command".split())


def make_record(launch, pid, **fields):
    """What is kept of an instance (dict): its identity, and what its commands need."""
    process = read_process(pid)
    is_ours = process and os.getpid() in (pid, process.ppid)
    return dict(fields, pid=pid, start=process.start if is_ours else "",
                boot=read_text(BOOT_ID).strip(), launched=time.time(), url=server_url(launch))


def write_record(launch, record):
    import json
    write_file(launch.path("record"), json.dumps(record, indent=1, sort_keys=True))


def read_record(launch):
    """The record of the instance, or None where there is none that can be read."""
    import json
    try:
        record = json.loads(read_text(launch.path("record")))
        return record if record.keys() >= RECORD_KEYS else None
    except (ValueError, AttributeError):
        return None


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


def last_lines(path, count, from_byte=0, end=None):
    """The last lines (list of str) of a file between two bytes, read backwards in pieces."""
    data = b""
    try:
        with open(path, "rb") as file:
            position = file.seek(0, os.SEEK_END) if end is None else end
            while position > from_byte and data.count(b"\n") <= count and len(data) < 1 << 24:
                step = min(65536, position - from_byte)
                position = file.seek(position - step)
                data = file.read(step) + data
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").split("\n")
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
        rows = [Process(int(words[0]), int(words[1]), int(words[2]), " ".join(words[4:9]),
                        words[3], program_name((words[9:] or [""])[0].split() or [""]))
                for words in lines]
    return {row.pid: row for row in rows if row and row.state[0] != "Z" and row.pid != os.getpid()}


def run_tool(*command):
    """Lines (list of str) that a diagnostic tool prints; none where it is missing or fails."""
    import subprocess
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode("utf-8", "replace").splitlines()


def family(record, table):
    """Processes (sorted list) of an instance: its own, all descendants, and its session.

    A session whose leader is gone counts only while its members carry the launch's token,
    as the kernel may have given its number to another (credentials(7)).
    """
    root, token = table.get(record["pid"]), APP.env("LAUNCH_ID").encode()
    alive = bool(root and is_same(record, root))
    members = {root.pid} if alive else set()
    if record["session"] and (alive or not root):
        members.update(pid for pid, process in table.items() if process.sid == record["session"]
                       and (alive or read_environ(pid).get(token) == record["token"].encode()))
    found = set(members)
    while found:
        found = {pid for pid, process in table.items() if process.ppid in found} - members
        members |= found
    return [table[pid] for pid in sorted(members)]


def read_environ(pid):
    """Environment (dict of bytes) that a process was started with; empty if not for us to see."""
    with contextlib.suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
        return dict(pair.partition(b"=")[::2] for pair in file.read().split(b"\0"))
    return {}


def is_same(record, process):
    """Whether a Process is the recorded one: a recycled pid has another start time."""
    if HAS_PROC:
        return record["start"] == process.start and record["boot"] == read_text(BOOT_ID).strip()
    started = time.mktime(time.strptime(process.start, "%a %b %d %H:%M:%S %Y"))
    return abs(started - record["launched"]) < 3


def is_running(record):
    """Whether the recorded process lives; runs no program, so without /proc any pid will do."""
    if HAS_PROC:
        process = read_process(record["pid"])
        return bool(process and process.state != "Z" and is_same(record, process))
    try:
        os.kill(record["pid"], 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def find_running(launch):
    """The record of the instance if it lives, else None."""
    record = read_record(launch)
    return record if record and is_running(record) else None


def end_family(record, grace):
    """End every process of an instance: SIGTERM, after grace seconds SIGKILL.

    Returns the name of the strongest signal that was needed, "" where nothing lived;
    raises LaunchError (1) where a process belongs to another user or does not end.
    """
    import signal
    number, told, begin = signal.SIGTERM, {}, time.monotonic()
    while True:
        table = process_table()
        # Who was told once is remembered: its parent may be gone, and with it the connection.
        members = {process for process in table.values() if process[::3] in told}
        members.update(family(record, table))
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
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        time.sleep(0.01)


def listening_sockets(port):
    """User (str) by inode (str) of the TCP sockets that listen on a port (proc(5))."""
    found = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, "rb", buffering=4096) as file:
                file.readline()
                for fields in map(bytes.split, file):
                    if fields[3] != b"0A":      # those that listen come first
                        break
                    if int(fields[1].rpartition(b":")[2], 16) == port:
                        found[fields[9].decode()] = fields[7].decode()
        except OSError:
            continue
    return found


def holds_socket(pid, inodes):
    """Whether a process has one of the sockets open; None where that cannot be seen."""
    names = {"socket:[%s]" % inode for inode in inodes}
    try:
        with os.scandir("/proc/%d/fd" % pid) as entries:
            return any(os.readlink(entry.path) in names for entry in entries)
    except PermissionError:
        return None
    except OSError:
        return False


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
    import socket
    host = launch.host.encode() if launch.host.isascii() else launch.host   # bytes: no idna
    try:
        found = socket.getaddrinfo(host, launch.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = ()
    failures = {bind_failure(row[0], row[4]) for row in found}
    if errno.EADDRINUSE in failures:
        holders = ", ".join(text for _, text in listeners(launch.port)) or "nobody to be seen"
        return LaunchError(Exit.TAKEN, f"port {launch.port} is taken by {holders}",
                           "end it, or choose another: bash start.sh PORT")
    if None in failures:
        return None
    if errno.EACCES in failures:
        return LaunchError(Exit.CONFIG, f"port {launch.port} needs a privilege this user lacks",
                           "choose a port from 1024 up")
    problem = "host %s (%s) is not an address of this machine" % launch.settings["HOST"]
    return LaunchError(Exit.CONFIG, problem, "use 127.0.0.1, 0.0.0.0, or one that is")


def bind_failure(kind, address):
    """errno that binding a TCP socket ends with, or None."""
    import socket
    try:
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # With SO_REUSEADDR, BSD lets an address join the wildcard of somebody else.
            if sys.platform == "darwin" and accepts(address):
                return errno.EADDRINUSE
    except OSError as error:
        return error.errno
    return None


def server_url(launch):
    """URL (str) under which this machine reaches the server; wildcards become loopback."""
    host = LOOPBACK.get(launch.host, launch.host)
    return "http://%s:%d/" % ("[%s]" % host if ":" in host else host, launch.port)


# -- effects: health ---------------------------------------------------------------------------


def wait_for_health(url, timeout=60.0, tcp=False, strict=True, ended=None, owns=None,
                    signals=None, progress=None):
    """Poll url until the server answers; a Health, true or false.

    timeout: seconds; tcp: accepting is enough; strict: the answer must be JSON with "status":
    "ok", else 2xx and no status that says otherwise; ended: a function that says how the server
    ended, "" while it may still come up; owns: one that says whether our processes hold the
    port (None: unknown). Raises ValueError for a URL that is not http(s).
    """
    address = split_url(url)
    begin = time.monotonic()
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
    """(scheme, host, port, path) of an http(s) URL; ValueError for any other."""
    from urllib.parse import urlsplit
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http(s) URL: %r" % (url,))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname, port, parts._replace(scheme="", netloc="").geturl() or "/"


def accepts(address):
    import socket
    with contextlib.suppress(OSError):
        socket.create_connection(address, timeout=SLICE).close()
        return True
    return False


def probe(address, deadline, tcp, strict):
    """One question to the server: "healthy", or what came back instead."""
    import json
    if tcp:
        return "healthy" if accepts(address[1:3]) else "nothing accepts"
    try:
        status, body, whole = http_get(address, min(deadline, time.monotonic() + PROBE_LIMIT))
    except OSError as error:
        return "no answer (%s)" % error
    except ValueError as error:
        return str(error)
    try:
        said = json.loads(body.decode("utf-8"))["status"]
    except (ValueError, LookupError, TypeError, RecursionError):
        said = None
    said = said if isinstance(said, str) else None
    good = ("ok",) if strict else ("ok", "pass", "up", "healthy", None)
    if whole and 200 <= status < 300 and said in good:
        return "healthy"
    return "HTTP status %d%s%s" % (status, "" if said is None else ", " + printable(said)[:40],
                                   "" if whole else ", cut short")


def http_get(address, deadline):
    """One GET (RFC 9112) without proxies or redirects: (status, body, whether it is whole).

    Reads ANSWER_LIMIT bytes at most, until deadline, however slowly they drip: urllib bounds a
    single read only, and its import takes longer than most servers need to start. Raises OSError
    where nothing answers, ValueError for an answer that is not HTTP.
    """
    import socket
    scheme, host, port, path = address
    request = "GET %s HTTP/1.0\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % (
        path, "[%s]" % host if ":" in host else host, port)
    answer = b""
    with connect(scheme, host, port) as stream:
        stream.sendall(request.encode("ascii"))
        while len(answer) < ANSWER_LIMIT and missing_bytes(answer) != 0:
            if time.monotonic() > deadline:
                raise socket.timeout("no whole answer in time")
            try:
                piece = stream.recv(65536)
            except socket.timeout:
                continue
            if not piece:
                break
            answer += piece
    head, blank, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not blank or not words[1:] or words[0][:5] != b"HTTP/" or not words[1].isdigit():
        raise ValueError("an answer that is not HTTP")
    return int(words[1]), body, len(answer) < ANSWER_LIMIT and not missing_bytes(answer)


def connect(scheme, host, port):
    import socket
    stream = socket.create_connection((host, port), timeout=SLICE)
    if scheme == "https":
        import ssl
        # The question is whether our own child serves; whom its certificate names is not.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream.settimeout(PROBE_LIMIT)
        stream = context.wrap_socket(stream)
        stream.settimeout(SLICE)
    return stream


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
        import signal
        self.signal, self.caught, self.before, self.ends = signal, [], {}, os.pipe()
        for end in self.ends:
            os.set_blocking(end, False)
        try:
            self.wakeup = signal.set_wakeup_fd(self.ends[1], warn_on_full_buffer=False)
        except ValueError:
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, _):
        self.caught += [self.signal.Signals(number)] if number != self.signal.SIGCHLD else []

    def wait(self, duration):
        """Sleep for duration (seconds), or until a signal arrives."""
        import select
        if select.select([self.ends[0]], [], [], min(duration, SLICE))[0]:
            os.read(self.ends[0], 512)

    def check(self):
        """Raise LaunchError (128+n) if a signal asked for the end."""
        if self.caught:
            number = self.caught[0]
            raise LaunchError(Exit.SIGNALLED + number, f"interrupted by {number.name}",
                              "nothing was left running")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            self.signal.signal(number, handler)
        if self.before:
            self.signal.set_wakeup_fd(self.wakeup)
        for end in self.ends:
            os.close(end)


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
    with contextlib.suppress(Exception):
        import webbrowser
        webbrowser.open(url)


# -- effects: starts ---------------------------------------------------------------------------


def start(launch, options):
    """Observe, plan, and carry the plan out; returns the exit code."""
    facts = observe()
    os.environ.update(launch.additions)
    verdict = choose_mode(judge(facts), options, launch)
    agent_dir = discover_agent_dir()
    if options.print_plan:
        return print_plan(launch, options, verdict, agent_dir)
    lock = None
    try:
        lock = take_lock(launch.path("lock"), options.timeout, f"a start on port {launch.port}")
    except LaunchError as error:
        if verdict.mode == DETACHED or error.code == Exit.TAKEN:
            raise
        say(f"no record is kept: {error.problem}")
    try:
        running = find_running(launch)
        if running and options.replace and not tracking_supervisor(running):
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
    python = ensure_python_has_webui_deps(discover_launcher_python(agent_dir))
    command = server_command(str(python), launch)
    check_executable(command[0])
    folder = working_folder(launch, agent_dir)
    resolved = {"HOST": launch.host, "PORT": str(launch.port), "STATE_DIR": launch.state_dir}
    if agent_dir:
        resolved["AGENT_DIR"] = str(agent_dir)
    os.environ.update((launch.app.env(name), value) for name, value in resolved.items())
    if plan.mode == FOREGROUND:
        return become(launch, command, folder, tracking_fields(verdict.supervisor, facts), keep)
    return detach(launch, command, folder, options)


def become(launch, command, folder, tracking, keep):
    """Replace this process by the server; the pid stays. LaunchError (126) where it cannot."""
    record = make_record(launch, os.getpid(), session=0, parent=os.getppid(), mode=FOREGROUND,
                         log="", from_byte=0, token="", command=command, **tracking)
    try:
        if keep:
            write_record(launch, record)
    except LaunchError as error:
        say("no record is kept: %s" % error.problem)
    os.chdir(folder)
    before = heed_signals()
    try:
        os.execv(command[0], command)
    except OSError as error:
        raise not_executable(command[0], error.strerror)
    finally:
        heed_signals(before)
    return Exit.OK


def heed_signals(handlers=None):
    """Stop ignoring (or set to handlers) what Python ignores from its start; the old handlers."""
    # An ignored signal stays ignored across execve(2). Only the main thread may change one.
    import signal
    try:
        return {number: signal.signal(number, (handlers or {}).get(number, signal.SIG_DFL))
                for number in handlers or (signal.SIGPIPE, signal.SIGXFSZ)}
    except ValueError:
        return {}


def detach(launch, command, folder, options):
    """Spawn the server in a session of its own, and say ready only once it is."""
    import subprocess
    log, from_byte = open_log(launch)
    token = os.urandom(8).hex()
    environ = {name: value for name, value in os.environ.items()
               if name not in SUPERVISOR_VARIABLES}
    environ[launch.app.env("LAUNCH_ID")] = token
    health = None
    with Signals() as signals:
        try:
            child = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise not_executable(command[0], error.strerror)
        finally:
            os.close(log)
        record = make_record(
            launch, child.pid, session=child.pid, parent=os.getpid(), mode=DETACHED,
            log=launch.path("log"), from_byte=from_byte, token=token,
            command=command, **tracking_fields(None))
        try:
            write_record(launch, record)
            health = await_instance(launch, options, record, lambda: end_of(child), signals)
        finally:
            failure = None if health else abandon(launch, record, child, health)
    if failure:
        raise failure
    return report(launch, options, record, "ready")


def await_instance(launch, options, record, ended, signals=None):
    """Wait until the recorded instance is healthy; a Health."""
    tcp = launch.app.health == "tcp"
    progress = progress_line(record)
    try:
        return wait_for_health(
            record["url"] + ("" if tcp else launch.app.health[1:]),
            timeout=options.timeout, tcp=tcp, strict=launch.app.source is None,
            ended=ended, owns=lambda: owns_port(record, launch), signals=signals,
            progress=progress)
    finally:
        if progress:
            sys.stderr.write("\r\033[K")


def owns_port(record, launch):
    """Whether the instance's processes hold the port: True, False, or None where unknown."""
    inodes = listening_sockets(launch.port)
    if not inodes:
        return None
    if holds_socket(record["pid"], inodes):
        return True
    answers = [(holds_socket(process.pid, inodes), process)
               for process in family(record, process_table())]
    holder = next((process for holds, process in answers if holds), None)
    if holder and not is_running(record):   # its first process has left it to this one
        record.update(pid=holder.pid, start=holder.start)
        write_record(launch, record)
    return True if holder else None if None in [holds for holds, _ in answers] else False


def end_of(child):
    """How a child ended (str); "" while it lives, or left others who may become the server."""
    code = child.poll()
    if code is None or code == 0 and any(
            process.sid == child.pid for process in process_table().values()):
        return ""
    if code >= 0:
        return "exit status %d" % code
    import signal
    return "killed by %s" % signal.Signals(-code).name


def abandon(launch, record, child, health):
    """End a child that did not become a healthy server, and its children; the LaunchError."""
    end_family(record, launch.app.stop_timeout)
    child.poll()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(launch.path("record"))
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
                            lambda: "" if is_running(record) else "pid %d is gone" % record["pid"])
    if not health:
        problem = f"the instance runs already, pid {record['pid']}, but is {health.problem}"
        raise LaunchError(Exit.TAKEN, problem, "start it anew with --restart")
    return report(launch, options, record, "already running")


def print_plan(launch, options, verdict, agent_dir):
    """Show what a start would do; starts and changes nothing."""
    running = find_running(launch)
    plan = plan_start(verdict, running, None if running else check_port(launch))
    python, origin = find_python(agent_dir)
    rows = {
        "mode": plan.mode, "why": plan.why,
        "interpreter": {"path": python, "why": origin},
        "command": server_command(python, launch), "folder": working_folder(launch, agent_dir),
        "url": server_url(launch),
        "log": launch.path("log") if verdict.mode == DETACHED else None,
        "settings": {name: setting._asdict() for name, setting in launch.settings.items()}}
    show_rows(rows, options.json)
    return Exit.OK


def show_rows(rows, as_json):
    """A report (dict) on stdout: as JSON, or as aligned lines without what is empty."""
    if as_json:
        import json
        show(json.dumps(rows, indent=2))
        return
    for name, value in rows.items():
        if name == "settings":
            show_rows(value, False)
            continue
        first, *others = value.values() if isinstance(value, dict) else (value,)
        if first not in (None, "", []):
            text = ", ".join(first) if isinstance(first, list) else first
            show("%-19s %s%s" % (name, text, "".join(" (%s)" % other for other in others)))


# -- instance commands -------------------------------------------------------------------------


def tracking_supervisor(record):
    """Who would start the recorded process again, "" if nobody: an orphan has a new parent."""
    process = process_table().get(record["pid"])
    return record["supervisor"] if process and process.ppid == record["parent"] else ""


def stop_instance(launch, record, its_way="stop_command"):
    """End the recorded instance; name of the signal, or LaunchError (1) where it is tracked."""
    tracker = tracking_supervisor(record)
    if tracker:
        problem = f"pid {record['pid']} is tracked by {tracker}, which would start it again"
        raise LaunchError(Exit.FAILED, problem, record[its_way])
    used = end_family(record, launch.app.stop_timeout)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(launch.path("record"))
    return used


def command_stop(launch, options):
    """End the instance, and with --restart start it again."""
    record = read_record(launch)
    its_way = "restart_command" if options.restart else "stop_command"
    used = stop_instance(launch, record, its_way) if record else ""
    outcome = f"is stopped ({used})" if used else "is not running"
    say(f"{launch.app.name} on port {launch.port} {outcome}")
    return start(launch, options) if options.restart else Exit.OK


def command_logs(launch, options):
    """Show the end of the log, and with -f what comes."""
    path = launch.path("log")
    record = read_record(launch)
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
    for data in iter(lambda: file.read(65536), b""):
        show(data.decode("utf-8", "surrogateescape"), end="")
    if was_set_aside:
        file.close()
        return open(path, "rb")
    time.sleep(SLICE)
    return file


def command_status(launch, options):
    """Diagnose the instance: what runs, who has the port, and one remedy if that is wrong."""
    report = diagnose(launch)
    show_rows(report, options.json)
    return Exit.OK if report["pid"] else Exit.NOT_RUNNING


def diagnose(launch):
    """Everything that --status says (dict), in the order in which it is shown."""
    record = read_record(launch) or {}
    table = process_table()
    members = [process.pid for process in family(record, table)] if record else []
    holders = listeners(launch.port)
    tcp = launch.app.health == "tcp"
    url = record.get("url") or server_url(launch)
    health = probe(split_url(url + ("" if tcp else launch.app.health[1:])),
                   time.monotonic() + PROBE_LIMIT, tcp, launch.app.source is None)
    ours = bool(members) and any(pid in members or pid is None for pid, _ in holders)
    state, verdict, remedy = conclude(launch, record, members, holders, health, table)
    return {
        "state": state, "pid": record["pid"] if members else None, "url": url,
        "healthy": ours and health == "healthy", "health": health, "mode": record.get("mode"),
        "supervisor": record and tracking_supervisor(record) or None,
        "parent": parent_text(record["pid"], table) if members else None,
        "listeners": [text + ", child of " + parent_text(pid, table) for pid, text in holders],
        "log": record.get("log"), "verdict": verdict, "remedy": remedy}


def conclude(launch, record, members, holders, health, table):
    """(state, verdict, remedy) of what --status found; no verdict where nothing is wrong."""
    here = "bash start.sh %d" % launch.port
    again = record.get("restart_command") or here + " --restart"
    strangers = [(pid, text) for pid, text in holders if pid not in members]
    if members and strangers:
        return "blocked", "its port is held by %s" % strangers[0][1], "end that, then " + again
    if members and not holders:
        verdict = f"pid {record['pid']} lives, but nobody listens on port {launch.port}"
        return "not listening", verdict, "give it time, look at --logs, or " + again
    if members and health != "healthy":
        return "wedged", "it listens, but its health is: %s" % health, again
    if members:
        return "running", "", ""
    if strangers:
        pid, text = strangers[0]
        lost = lost_supervisor(pid, table)
        if lost:
            verdict = f"{text} has lost its supervisor ({lost}), whose every start finds it there"
            return "orphan", verdict, f"kill {pid}, and start with --foreground there"
        verdict = f"port {launch.port} is held by {text}"
        return "foreign", verdict, "end it, or choose another port"
    if record:
        return "not running", "pid %d ended without --stop" % record["pid"], here
    return "not running", "", here


def lost_supervisor(pid, table):
    """The supervisor whose variables a process carries although init adopted it, or ""."""
    process = table.get(pid)
    environ = read_environ(pid) if process and process.ppid == 1 else {}
    if environ.get(b"SYSTEMD_EXEC_PID") == b"%d" % (pid or 0):
        return ""
    return next((supervisor for name, supervisor in MARKERS if _is_real_supervisor_value(
        name, environ.get(name.encode(), b"").decode("utf-8", "replace"))), "")


def parent_text(pid, table):
    process = table.get(pid)
    parent = table.get(process.ppid) if process else None
    return "pid %d (%s)" % (parent.pid, parent.name) if parent else "an unknown process"


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


def command_unit(launch, options):
    """Print a supervisor's file for this checkout, how to install it as comments at its top."""
    import pwd
    slug = "".join(c if c.isascii() and c.isalnum() else " " for c in launch.app.name.lower())
    slug = "-".join(slug.split()) or "app"
    user, _, _, _, _, home, _ = pwd.getpwuid(os.getuid())
    place, *commands = [text.format(slug=slug, user=user) for text in UNITS[options.unit]]
    notes = [f"{launch.app.name}: save this as {place}, then",
             f"mkdir -p {shlex.quote(launch.state_dir)}", *commands,
             f"It is well while {server_url(launch)}{launch.app.health[1:]} says so."]
    command = [find_program("bash") or "/bin/sh", os.path.join(REPO_ROOT, "start.sh"),
               str(launch.port), "--host", launch.host, "--foreground"]
    if options.config:
        command += ["--config", os.path.abspath(options.config)]
    path = ":".join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"])
    environ = {"HOME": home, "USER": user, "PATH": path}
    environ.update(pair for pair in os.environ.items() if pair[0] == "HERMES_HOME")
    environ.update((launch.app.env(name), str(value)) for name, (value, origin) in
                   launch.settings.items() if origin == "environment" or name == "STATE_DIR")
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
        slug=slug, user=user, root=REPO_ROOT, command=" ".join(map(shlex.quote, command)),
        environment=",".join('%s="%s"' % pair for pair in environ.items()),
        log=os.path.join(launch.state_dir, slug + ".log")).replace("%", "%%")


# -- command line ------------------------------------------------------------------------------

# What main() assumes of words that a replaced parse_args does not know.
WORDS = dict.fromkeys("launch config foreground detach replace timeout no_browser status stop"
                      " restart logs lines follow print_plan unit json".split())


def make_parser():
    """The command line as an ArgumentParser; its errors are LaunchErrors (2)."""
    import argparse

    def fail(problem):
        raise LaunchError(Exit.USAGE, problem, "bash start.sh --help lists every word")

    parser = argparse.ArgumentParser(
        usage="bash start.sh [PORT] [options]", epilog=__doc__, allow_abbrev=False,
        # Without a width, argparse imports shutil (and every compressor) to ask the terminal.
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100))
    parser.error = fail
    add = parser.add_argument
    add("port", metavar="PORT", nargs="?", help="port to serve on, 1-65535")
    add("--host", help="address to bind")
    add("--config", metavar="PATH", help="read this instead of bootstrap.cfg")
    add("--unit", choices=sorted(UNITS), help="print a supervisor's file for this checkout")
    add("--timeout", metavar="SECONDS", help="how long a start may take to be healthy")
    add("-n", dest="lines", metavar="N", default=str(TAIL), help="--logs shows N lines")
    add("-f", dest="follow", action="store_true", help="--logs goes on as the log grows")
    modes, actions = (parser.add_mutually_exclusive_group() for _ in range(2))
    for group, flag, text in (
            (modes, "--foreground", "become the server, for launchd, systemd and supervisord"),
            (modes, "--detach", "leave a healthy server in the background, whoever watches us"),
            (parser, "--replace", "end a running instance first, if it is ours and untracked"),
            (parser, "--no-browser", "open no browser"),
            (parser, "--skip-agent-install", "accepted, without effect"),
            (actions, "--status", "diagnose the instance on PORT"),
            (actions, "--stop", "end the instance on PORT, with all its processes"),
            (actions, "--restart", "end it and start it again"),
            (actions, "--logs", "show the end of its log"),
            (actions, "--print-plan", "say what a start would do, and why"),
            (actions, "--version", "print the version and this file's sha256"),
            (parser, "--json", "--status and --print-plan answer in JSON")):
        group.add_argument(flag, action="store_true", help=text)
    return parser


def parse_args():
    """sys.argv with every setting resolved: port (int), host (str), ...; LaunchError (2, 78)."""
    parser = make_parser()
    options = parser.parse_args()
    if options.version:
        import hashlib
        with open(os.path.realpath(__file__), "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        show("bootstrap %s\nsha256 %s" % (__version__, digest))
        raise SystemExit(Exit.OK)
    try:
        if options.timeout is not None:
            options.timeout = checked(options.timeout, *SECONDS)
        options.lines = checked(options.lines, int, lambda n: n >= 0, "a number of lines")
    except ValueError as error:
        parser.error("the value of --timeout and -n %s" % error)
    options.launch = settle(read_app(options.config), options)
    options.host, options.port = options.launch.host, options.launch.port
    return options


def main():
    """Run the command; returns its exit code, raises LaunchError for the operator."""
    global APP
    from types import SimpleNamespace
    options = SimpleNamespace(**dict(WORDS, **vars(parse_args())))
    ensure_supported_platform()
    launch = options.launch or settle(read_app(), options)
    APP = launch.app
    options.timeout = options.timeout or APP.start_timeout
    for note in launch.notes:
        say(note)
    commands = ((options.status, command_status), (options.stop or options.restart, command_stop),
                (options.logs, command_logs), (options.unit, command_unit), (True, start))
    return next(command for wanted, command in commands if wanted)(launch, options)


def run():
    """main() as a program: an error becomes lines on stderr and an exit code."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:     # closed: a socket of the server's must not land there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    try:
        return main()
    except LaunchError as error:
        say(error.problem)
        for line in error.detail:
            say(line, "  | ")
        say(error.remedy, "  ")
        return error.code
    except KeyboardInterrupt:
        say("interrupted by SIGINT")
        return Exit.SIGNALLED + 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.SIGNALLED + 13


if __name__ == "__main__":
    sys.exit(run())
