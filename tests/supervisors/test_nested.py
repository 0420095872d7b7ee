"""A supervisor that is itself a systemd service: the nearest one tracks the server."""
import os
import shutil
import signal

import pytest

from harness import until
from lab import inner_pid, pypi
from page import block, fill
from systemd_lab import PATH, Site

pytestmark = pytest.mark.once
UNIT = "nested-supervisor"


class Nested:
    """A checkout that a supervisor runs which systemd runs."""

    def __init__(self, systemd, name):
        self.systemd, self.site = systemd, Site(systemd.folder / "root" / name)
        self.places = dict(CHECKOUT=self.site.repo, PORT=self.site.port, USER="root",
                           STATE=self.site.state)
        self.path = PATH

    def put(self, path, text, mode=0o644):
        place = self.systemd.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        place.chmod(mode)

    def run(self, *words, **options):
        return self.systemd.run("env", "PATH=" + self.path, *words, **options)

    def spawn(self, *words):
        self.systemd.run("systemd-run", "--unit=" + UNIT, "--setenv=PATH=" + self.path, *words)

    def close(self):
        self.systemd.systemctl("stop", UNIT, check=False)
        self.systemd.systemctl("reset-failed", UNIT, check=False)
        self.systemd.run("journalctl", "--no-pager", "-q", "-n", "40", "-u", UNIT, check=False)
        self.site.kill_all()


@pytest.fixture
def nested(systemd, request):
    nested = Nested(systemd, "nested-{}".format(request.node.name[5:20]))
    yield nested
    nested.close()


def prove(nested, tracked, stop, row, proving, record_cell):
    with proving(row, "detected"):
        pid = nested.site.served()
        environ = nested.site.environ(pid)
        assert environ["SYSTEMD_EXEC_PID"] != str(inner_pid(pid)) and "INVOCATION_ID" in environ
    with proving(row, "tracked pid", "no orphan"):
        assert tracked() == inner_pid(pid)
        for _ in range(3):
            os.kill(pid, signal.SIGKILL)
            pid = nested.site.served(other_than=pid)
            until(lambda: tracked() == inner_pid(pid), "the new server is tracked")
            assert nested.site.servers() == [pid]
    record_cell(row, "10 kills", "3 of 3")
    with proving(row, "stops clean"):
        nested.run(*stop)
        until(lambda: not nested.site.servers(), "the server has ended")
        assert nested.systemd.systemctl("is-active", UNIT).strip() == "active"


def test_supervisord_in_a_unit_tracks_the_server(nested, proving, record_cell):
    nested.path = "{}:{}".format(pypi("supervisor"), PATH)
    text = nested.run("HERMES_WEBUI_STATE_DIR={}".format(nested.site.state), "bash",
                      nested.site.start_sh, nested.site.port, "--unit", "supervisord")
    nested.put("/etc/supervisor/conf.d/hermes-web-ui.conf", text.replace(" --foreground", ""))
    nested.put("/etc/supervisor/supervisord.conf", block("supervisord.conf"))
    nested.spawn(pypi("supervisor") / "supervisord", "-n", "-c", "/etc/supervisor/supervisord.conf")

    def tracked():
        said = nested.run("supervisorctl", "pid", "hermes-web-ui").strip()
        return int(said) if said.isdigit() else 0
    prove(nested, tracked, ("supervisorctl", "stop", "hermes-web-ui"),
          "supervisord in a systemd unit", proving, record_cell)


def test_runit_in_a_unit_tracks_the_server(nested, proving, record_cell):
    if not shutil.which("runsvdir"):
        pytest.skip("there is no runsvdir: apt install runit")
    folder = "/etc/sv/hermes-webui"
    text = fill(block("runit-run"), **nested.places)
    assert "--foreground" in text
    nested.put(folder + "/run", text.replace(" --foreground", ""), 0o755)
    nested.put(folder + "/finish", block("runit-finish"), 0o755)
    nested.put(folder + "/log/run", block("runit-log"), 0o755)
    nested.run("mkdir", "-p", "/etc/service", folder + "/log/main")
    nested.run("ln", "-sfn", folder, "/etc/service/")
    nested.spawn("runsvdir", "-P", "/etc/service")

    def tracked():
        return int(nested.run("cat", folder + "/supervise/pid").strip() or 0)
    prove(nested, tracked, ("sv", "stop", folder), "runit in a systemd unit", proving, record_cell)
