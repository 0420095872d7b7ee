"""What --unit prints is judged by the tool that it is meant for."""
import plistlib
import shutil

import pytest

from page import printed_steps
from systemd_lab import UID, USER, Site, run

pytestmark = pytest.mark.once

AWKWARD = "it's 100% $HOME\\ \"so\" ;ö"


def printed(app, kind, *words, **options):
    result = app.run("--unit", kind, *words, **options)
    assert (result.code, result.err) == (0, ""), result.err
    return result.out


def verified(text, folder, *scope, **options):
    """What systemd-analyze has to say against a unit file; it warns where it does not fail."""
    path = folder / "hermes-web-ui.service"
    path.write_text(text, encoding="utf-8")
    return run("systemd-analyze", *scope, "verify", "--man=no", path, **options).strip()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
@pytest.mark.parametrize("name", ["my checkout", AWKWARD])
def test_systemd_analyze_finds_nothing_in_the_system_unit(app, name):
    app.repo = app.repo.rename(app.folder / name)
    assert verified(printed(app, "systemd"), app.folder) == ""


def test_systemd_analyze_finds_nothing_in_the_user_unit(systemd):
    site = Site(systemd.folder / USER / "verify", UID)
    text = systemd.run("bash", site.start_sh, site.port, "--unit", "systemd-user", user=USER)
    path = site.folder / "hermes-web-ui.service"
    path.write_text(text, encoding="utf-8")
    assert systemd.run("systemd-analyze", "--user", "verify", "--man=no", path, user=USER) == ""


def test_a_verdict_against_a_unit_would_be_noticed(app):
    assert verified(printed(app, "systemd").replace("Restart=", "Rstart="), app.folder)


@pytest.mark.parametrize("name", ["my checkout", AWKWARD])
def test_the_launchd_agent_says_what_launchd_needs(app, name):
    app.repo = app.repo.rename(app.folder / name)
    text = printed(app, "launchd", "--host", "0.0.0.0")
    agent = plistlib.loads(text.encode())
    words = agent["ProgramArguments"]
    assert words[1:] == [str(app.repo / "start.sh"), str(app.port), "--host", "0.0.0.0",
                         "--foreground"] and words[0].startswith("/")
    assert agent["Label"] == "local.hermes-web-ui" and agent["WorkingDirectory"] == str(app.repo)
    assert agent["RunAtLoad"] is True and agent["KeepAlive"] and agent["ExitTimeOut"] > 10
    assert agent["EnvironmentVariables"]["HERMES_WEBUI_STATE_DIR"] == str(app.state)
    assert agent["SoftResourceLimits"] == {"NumberOfFiles": 4096}
    assert "~/Library/LaunchAgents/local.hermes-web-ui.plist" in text


@pytest.mark.parametrize("kind", ["systemd", "launchd", "supervisord"])
@pytest.mark.parametrize("name", ["A & B <2>", "50% -- \"off\"", "ünïcode", "-"])
def test_an_awkward_name_spoils_no_printed_file(app, kind, name):
    app.configure(name=name)
    text = printed(app, kind)
    if kind == "launchd":
        plistlib.loads(text.encode())
    elif kind == "systemd" and shutil.which("systemd-analyze"):
        assert verified(text, app.folder) == ""
    assert name in text or kind == "launchd"


@pytest.mark.parametrize("kind", ["systemd", "systemd-user", "launchd", "supervisord"])
def test_printing_changes_nothing(app, kind):
    before = sorted(str(path) for path in app.folder.rglob("*"))
    printed(app, kind)
    assert sorted(str(path) for path in app.folder.rglob("*")) == before


@pytest.mark.parametrize("kind", ["systemd", "systemd-user", "launchd", "supervisord"])
def test_the_printed_file_names_this_checkout_and_its_settings(app, kind):
    text = printed(app, kind, "--host", "0.0.0.0")
    for wanted in (app.repo, app.state, app.port, "0.0.0.0", "/health", "4096"):
        assert str(wanted) in text or (kind, wanted) == ("supervisord", "4096")
    assert "--foreground" in text


def test_systemd_starts_what_stands_in_an_awkward_place(systemd):
    """The comments at the top of the file are followed as they stand."""
    site = Site(systemd.folder / "root" / "awkward", repo=AWKWARD)
    text = systemd.run("env", "HERMES_WEBUI_STATE_DIR={}".format(site.state), "bash",
                       site.start_sh, site.port, "--unit", "systemd")
    place, steps = printed_steps(text)
    (systemd.root / place[1:]).write_text(text, encoding="utf-8")
    try:
        for step in steps:
            systemd.run("sh", "-c", step)
        assert site.served()
        systemd.systemctl("disable", "--now", "hermes-web-ui")
        assert site.is_gone()
    finally:
        systemd.systemctl("stop", "hermes-web-ui", check=False)
        systemd.run("journalctl", "--no-pager", "-q", "-n", "20", "-u", "hermes-web-ui", check=False)
        site.kill_all()
