"""supervisord, with the file that --unit prints; supervisord itself reads it."""
import pytest

from harness import until
from lab import FLAGS, PERMANENT, lab, prove_one_start, prove_revival, prove_tracking, pypi  # noqa: F401
from page import printed_steps
from test_inherited_variables import Screen, answer_at

pytestmark = pytest.mark.once
PROGRAM = "/etc/supervisor/conf.d/hermes-web-ui.conf"


def install(lab, flag=True, code=None):
    """The printed file in its place, spoiled for an exit code, and supervisord started."""
    lab.on_path(pypi("supervisor"))
    lab.put("supervisord.conf")
    lab.follow("supervisord-unit")
    text = lab.ask("cat", PROGRAM) + "\n"
    assert " --foreground\n" in text
    if not flag:
        text = text.replace(" --foreground\n", "\n")
    if code:
        text = text.replace(" {} ".format(lab.port), " {} ".format(
            lab.spoil(code).get("PORT", lab.port)))
    lab.write_file(PROGRAM, text)
    lab.tracked = lambda: tracked(lab)
    lab.follow("supervisord-install")


def tracked(lab):
    pid = lab.ask("supervisorctl", "pid", "hermes-web-ui")
    return int(pid) if pid.isdigit() else 0


def state(lab):
    return (lab.ask("supervisorctl", "status", "hermes-web-ui").split() + ["", ""])[1]


@FLAGS
def test_supervisord_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    prove_tracking(lab, proving, "supervisord")


def test_supervisord_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    prove_revival(lab, proving, "supervisord")


@pytest.mark.parametrize("code", PERMANENT)
def test_an_expected_exit_code_is_not_started_again(lab, proving, code):
    with proving("supervisord", "permanent error stops"):
        install(lab, flag=False, code=code)
        until(lambda: state(lab) in ("EXITED", "FATAL"), "supervisord has given it up")
        prove_one_start(lab, "supervisord-logs")


def test_supervisord_is_detected_through_shells_and_runuser(lab, proving):
    with proving("supervisord", "detected"):
        lab.on_path(pypi("supervisor"))
        shapes = lab.shapes()
        lab.put("supervisord.conf")
        lab.shell("mkdir -p /etc/supervisor/conf.d")
        lab.write_file("/etc/supervisor/conf.d/shapes.conf", "".join(
            "[program:{}]\ncommand={}\n".format(shape, script)
            for shape, (_, script) in shapes.items()))
        lab.follow("supervisord-install")
        lab.came_up(shapes)


def test_the_printed_file_is_all_it_takes(lab):
    """What its first comments say is done as it stands there, below a supervisord that runs."""
    lab.on_path(pypi("supervisor"))
    lab.put("supervisord.conf")
    lab.shell("mkdir -p /etc/supervisor/conf.d")
    lab.follow("supervisord-install")
    text = lab.call("bash", lab.repo / "start.sh", lab.port, "--unit", "supervisord").stdout
    place, steps = printed_steps(text, ";")
    lab.write_file(place, text)
    for step in steps:
        lab.shell(step)
    lab.tracked = lambda: tracked(lab)
    lab.settle()


def test_a_supervisord_run_as_a_module_is_known_too(lab):
    """Its name is then an argument: python -m supervisor.supervisord."""
    lab.on_path(pypi("supervisor"))
    lab.put("supervisord.conf")
    lab.follow("supervisord-unit")
    lab.write_file(PROGRAM, lab.ask("cat", PROGRAM).replace(" --foreground", "") + "\n")
    lab.tracked = lambda: tracked(lab)
    lab.spawn(pypi("supervisor") / "python", "-m", "supervisor.supervisord", "-n", "-c",
              "/etc/supervisor/supervisord.conf")
    lab.settle()
    assert lab.status_inside()["supervisor"] == "supervisord"


class Site:
    """What answer_at() asks of a checkout, on this machine."""

    def __init__(self, lab):
        self.lab, self.state, self.port = lab, lab.state, lab.port
        self.start_sh = lab.repo / "start.sh"

    def served(self):
        return until(lambda: (self.lab.servers(self.port) or [None])[0], "it serves")

    def environ(self, pid):
        text = open("/proc/{}/environ".format(pid), "rb").read().decode("utf-8", "replace")
        return dict(pair.partition("=")[::2] for pair in text.split("\0") if pair)


def test_a_job_under_supervisord_without_a_terminal_becomes_the_server(lab):
    """Inherited too, but nothing proves it: a wrong foreground is the lesser harm."""
    lab.on_path(pypi("supervisor"))
    lab.put("supervisord.conf")
    runner = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stdout=subprocess.PIPE))"
    lab.write("runner.py", runner)
    lab.write_file("/etc/supervisor/conf.d/runner.conf", (
        "[program:runner]\nautorestart=false\ncommand=python3 {0}/runner.py bash {0}/start.sh {1}\n").format(
            lab.repo, lab.port))
    lab.tracked = None
    lab.follow("supervisord-install")
    lab.settle()
    said = lab.status_inside()
    assert (said["mode"], said["supervisor"]) == ("foreground", None)


def test_a_shell_under_supervisord_gets_its_prompt_back(lab, proving, record_cell):
    """A terminal emulator that supervisord runs; its shell has inherited SUPERVISOR_ENABLED."""
    lab.on_path(pypi("supervisor"))
    lab.put("supervisord.conf")
    lab.shell("mkdir -p /etc/supervisor/conf.d; true".format(lab.folder))
    lab.write_file("/etc/supervisor/conf.d/emulator.conf", (
        "[program:emulator]\nstopsignal=KILL\nstopasgroup=true\ncommand=sh -c 'exec 0<>{0}/keys"
        " >{0}/screen; exec script -qfc \"bash --noprofile --norc -i\" /dev/null'\n").format(lab.folder))
    lab.follow("supervisord-install")
    shell = Screen(lab.folder)
    try:
        answer_at(shell, Site(lab), "terminal emulator under supervisord", "SUPERVISOR_ENABLED",
                  proving, record_cell)
    finally:
        shell.close()
