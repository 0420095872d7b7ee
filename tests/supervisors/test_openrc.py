"""OpenRC: openrc-run and supervise-daemon, with the init script of docs/supervisor.md."""
import shutil

import pytest

from harness import until
from lab import FLAGS, PERMANENT, debian, lab, prove_revival, prove_tracking  # noqa: F401

pytestmark = pytest.mark.once


def boot(lab):
    """A machine that OpenRC has booted; on any other init system its packages are only unpacked."""
    if not shutil.which("openrc-run"):
        for package in debian("openrc", "librc1", "libeinfo1"):
            lab.shell("dpkg-deb --fsys-tarfile {} | tar -x --keep-directory-symlink -C /".format(package))
    lab.shell("rm -rf /etc/runlevels/* && mkdir -p /etc/runlevels/default /run/openrc"
              " && echo default >/run/openrc/softlevel && rc-update -u")


def install(lab, flag=True, **places):
    boot(lab)
    lab.put("openrc-script", flag, **places)
    lab.tracked = lambda: int(lab.ask("cat", "/run/openrc/options/hermes-webui/child_pid") or 0)


@FLAGS
def test_supervise_daemon_tracks_the_server(lab, proving, flag):
    install(lab, flag)
    lab.follow("openrc-install")
    prove_tracking(lab, proving, "OpenRC")


def test_supervise_daemon_replaces_each_killed_server_by_one(lab, proving):
    install(lab, flag=False)
    lab.follow("openrc-install")
    prove_revival(lab, proving, "OpenRC")


@pytest.mark.parametrize("code", [code for code in PERMANENT if code in (2, 78)])
def test_a_start_is_refused_that_cannot_work(lab, proving, code):
    with proving("OpenRC", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(code))
        lab.call("chmod", "+x", "/etc/init.d/hermes-webui")
        done = lab.call("rc-service", "hermes-webui", "start", check=False)
        assert done.returncode != 0 and done.stderr.count("bootstrap: ") == 1
        assert not lab.ours() and lab.starts() == []


@pytest.mark.parametrize("code", [code for code in PERMANENT if code in (126, 127)])
def test_a_start_that_keeps_failing_is_given_up(lab, proving, code):
    with proving("OpenRC", "permanent error stops"):
        install(lab, flag=False, **lab.spoil(code))
        lab.shell("sed -i 's/^respawn_max=.*/respawn_max=2/' /etc/init.d/hermes-webui")
        lab.follow("openrc-install")
        until(lambda: not lab.ask("pgrep", "-f", "^supervise-daemon"), "supervise-daemon has given up")
        assert lab.ask("cat", "/var/log/hermes-webui.log").count("bootstrap: ") == 3
        assert not lab.ours() and lab.starts() == []


def test_supervise_daemon_is_detected_through_shells_and_runuser(lab, proving):
    with proving("OpenRC", "detected"):
        boot(lab)
        shapes = lab.shapes()
        for shape, (_, script) in shapes.items():
            lab.write_file("/etc/init.d/" + shape, "#!/sbin/openrc-run\nsupervisor=supervise-daemon\n"
                           "command={}\nrespawn_delay=1\n".format(script), 0o755)
            lab.call("rc-service", shape, "start")
        lab.came_up(shapes)
