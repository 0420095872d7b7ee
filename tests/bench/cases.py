"""The ways to start the same server: this launcher, and what people would use instead."""
import os
import shutil
from collections import namedtuple
from pathlib import Path

from bench.timing import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

Way = namedtuple("Way", "name needs start ask returns slow")
Way.__doc__ = """One way to start the server.

needs: programs it is made of; start: function of a lab and a Case to the command that is timed,
from nothing; ask: the same to the commands that a person types and believes, None where that is
start itself; returns: whether start comes back; slow: whether it is run in few rounds only."""


class Lab:
    """What the bench has at hand: interpreters, programs, and a folder for everything."""

    def __init__(self, folder, python, tools, root=ROOT):
        self.folder, self.python, self.tools = folder, python, tools
        self.source = os.path.join(folder, "source")    # a copy: nobody edits it while we measure
        os.makedirs(self.source)
        for name in ("bootstrap.py", "start.sh", "server.py"):
            shutil.copy(os.path.join(str(root), name), self.source)
        self.count = 0
        # The interpreter's own folder first: a shim on PATH may take longer than any start.
        node = shutil.which("node")
        self.search = [os.path.dirname(self.python)] + [os.path.dirname(node)] * bool(node) + [
            "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]

    def find(self, program):
        """Path of a program, from the bench's own environment, PATH, or the system's folders."""
        places = [str(self.tools / "bin"), str(self.tools / "node_modules" / ".bin")]
        return shutil.which(program, path=os.pathsep.join(
            places + self.search + [os.environ.get("PATH", "")]))

    def missing(self, way):
        """Why a way cannot be measured here, "" where it can."""
        gone = [name for name in way.needs if not self.find(name)]
        return "%s is not installed" % ", ".join(gone) if gone else ""

    def case(self, python=None, **environ):
        """A new Case with the tiny server and the launcher, vendored for it."""
        self.count += 1
        folder = [os.path.dirname(python)] if python else []
        case = Case(os.path.join(self.folder, "case%d" % self.count),
                    PATH=os.pathsep.join(folder + self.search), LANG="C.UTF-8", **environ)
        for name in ("bootstrap.py", "start.sh"):
            shutil.copy(os.path.join(self.source, name), case.folder)
        for name in ("tiny.py", "wsgi.py", "floor.py"):
            shutil.copy(str(HERE / name), case.folder)
        case.write("bootstrap.cfg", "[bootstrap]\nname = tiny\ncommand = {python} {root}/tiny.py\n"
                   "health = /health\nstate_dir = state\n")
        return case

    def reference(self, python=None):
        """A new Case with this repository's own server, and the launcher as it is."""
        case = self.case(python)
        os.unlink(case.path("bootstrap.cfg"))
        shutil.copy(os.path.join(self.source, "server.py"), case.folder)
        case.env["HERMES_WEBUI_PORT"] = str(case.port)
        return case


def launcher(*words):
    """The command line of this launcher, as a person types it."""
    return lambda lab, case: ["bash", "start.sh", case.port, *words]


def floor(*words):
    """A launcher that does nothing else; what remains is the price of bash and a second Python."""
    text = 'exec "{python}" -I -S floor.py ' + " ".join(words)
    return lambda lab, case: ["bash", case.write("floor.sh", text.format(python=lab.python))]


def shell(text):
    return lambda lab, case: ["sh", "-c", text.format(python=lab.python, port=case.port)]


def bare(lab, case, script="tiny.py"):
    return [lab.python, script]


def start_stop_daemon(lab, case):
    return [lab.find("start-stop-daemon"), "--start", "--background", "--make-pidfile",
            "--pidfile", case.path("pid"), "--chdir", case.folder, "--exec", lab.python, "--",
            "tiny.py"]


def honcho(lab, case):
    case.write("Procfile", "web: %s tiny.py\n" % lab.python)
    return [lab.find("honcho"), "start", "-p", case.port]


def supervisord(lab, case, auto="true"):
    case.write("supervisord.conf", """\
[supervisord]
logfile = supervisord.log
pidfile = supervisord.pid
[unix_http_server]
file = control
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://control
[program:tiny]
command = {} tiny.py
autostart = {}
""".format(lab.python, auto))
    return [lab.find("supervisord"), "-n", "-c", "supervisord.conf"]


def ask_supervisord(lab, case):
    return [supervisord(lab, case, "false"),
            [lab.find("supervisorctl"), "-c", "supervisord.conf", "start", "tiny"]]


def circus(lab, case, auto="True"):
    case.write("circus.ini", """\
[circus]
check_delay = 1
endpoint = ipc://{folder}/control
pubsub_endpoint = ipc://{folder}/events
[watcher:tiny]
cmd = {python} tiny.py
copy_env = True
autostart = {auto}
""".format(folder=case.folder, python=lab.python, auto=auto))
    return [lab.find("circusd"), "circus.ini"]


def ask_circus(lab, case):
    return [circus(lab, case, "False"),
            [lab.find("circusctl"), "--endpoint", "ipc://%s/control" % case.folder, "start", "tiny"]]


def gunicorn(*words):
    return lambda lab, case: [lab.find("gunicorn"), "--bind", "127.0.0.1:%d" % case.port,
                              *words, "wsgi:app"]


def uv_run(lab, case):
    return [lab.find("uv"), "run", "--no-project", "--offline", "--python", lab.python, "tiny.py"]


def pm2(lab, case):
    case.env["PM2_HOME"] = case.path("pm2")
    return [lab.find("pm2"), "start", "tiny.py", "--interpreter", lab.python]


def service(lab, case):
    """A service folder as runit and s6 read it."""
    run = case.write("service/run", "#!/bin/sh\nexec %s ../tiny.py\n" % lab.python)
    os.chmod(run, 0o755)
    return case.path("service")


def runit(lab, case):
    return [lab.find("runsv"), service(lab, case)]


def ask_runit(lab, case):
    down = runit(lab, case)
    case.write("service/down", "")
    return [down, [lab.find("sv"), "start", case.path("service")]]


def s6(lab, case):
    return [lab.find("s6-supervise"), service(lab, case)]


def ask_s6(lab, case):
    down = s6(lab, case)
    case.write("service/down", "")
    return [down, [lab.find("s6-svc"), "-u", "-wu", "-T", "5000", case.path("service")]]


NOHUP = "nohup {python} tiny.py >>log 2>&1 &"
LOOP = " until curl -fs http://127.0.0.1:{port}/health >/dev/null; do sleep 0.1; done"
FOREGROUND, DETACHED = "start.sh --foreground", "start.sh"
LAUNCHER = (
    Way(FOREGROUND, ["bash"], launcher("--foreground"), None, False, False),
    Way(DETACHED, ["bash"], launcher(), None, True, False))
FLOOR = (
    Way("no features --foreground", ["bash"], floor("--foreground"), None, False, False),
    Way("no features", ["bash"], floor(), None, True, False),
    Way("no features, by subprocess", ["bash"], floor("--popen"), None, True, False))
BARE = Way("python3 server.py", [], bare, None, False, False)
PEERS = (
    Way("nohup ... &", ["nohup"], shell(NOHUP), None, True, False),
    Way("nohup ... & and a curl loop", ["nohup", "curl"], shell(NOHUP + LOOP), None, True, False),
    Way("start-stop-daemon", ["start-stop-daemon"], start_stop_daemon, None, True, False),
    Way("runit", ["runsv", "sv"], runit, ask_runit, False, False),
    Way("s6", ["s6-supervise", "s6-svc"], s6, ask_s6, False, False),
    Way("uv run", ["uv"], uv_run, None, False, False),
    Way("honcho", ["honcho"], honcho, None, False, True),
    Way("supervisord", ["supervisord"], supervisord, ask_supervisord, False, True),
    Way("gunicorn", ["gunicorn"], gunicorn(), None, False, True),
    Way("gunicorn --daemon", ["gunicorn"], gunicorn("--daemon"), None, True, True),
    Way("circus", ["circusd", "circusctl"], circus, ask_circus, False, True),
    Way("PM2", ["pm2", "node"], pm2, None, True, True))
WAYS = (BARE,) + LAUNCHER + FLOOR + PEERS
