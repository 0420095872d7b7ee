"""start.sh finds a Python 3 and becomes bootstrap.py, from anywhere, under any shell."""
import os
import shutil

import pytest

from harness import AS_ANYBODY, PYTHON, refused

SHELLS = [pytest.param(shell, id=shell, marks=pytest.mark.skipif(
    not shutil.which(shell), reason=shell + " is not installed")) for shell in ("bash", "dash")]


@pytest.fixture
def tools(app):
    """A PATH with the system's commands, but no Python; tests add their own to it."""
    folder = app.folder / "tools"
    folder.mkdir()
    for source in ("/usr/bin", "/bin"):
        for name in os.listdir(source):
            if "python" not in name and not os.path.lexists(str(folder / name)):
                os.symlink(os.path.join(source, name), str(folder / name))
    app.env["PATH"] = str(folder)
    return folder


def program(path, text):
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(0o755)
    return path


def through(shell, path):
    return (shutil.which(shell), path)


@pytest.mark.parametrize("shell", SHELLS)
def test_it_starts_shows_and_stops_the_projects_server(project, shell):
    launcher = through(shell, project.repo / "start.sh")
    first = project.run("--no-browser", by=launcher)
    assert (first.code, first.out) == (0, project.url + "\n"), first.err
    assert "bootstrap: Hermes Web UI is ready, pid " in first.err
    assert project.answers()

    second = project.run("--no-browser", by=launcher)
    assert (second.code, second.out) == (0, project.url + "\n"), second.err
    assert "is already running" in second.err

    assert project.run("--status", by=launcher).code == 0
    assert project.run("--stop", by=launcher).code == 0
    assert project.is_free() and project.is_gone()
    assert project.run("--status", by=launcher).code == 3


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("place", ["its folder", "another folder", "a link", "a link to a link",
                                   "a relative link", "PATH"])
def test_it_works_from(app, shell, place):
    start = app.repo / "start.sh"
    link, second = app.folder / "lïnk", app.folder / "second link"
    options = {}
    if place == "its folder":
        start, options = "start.sh", {"cwd": str(app.repo)}
    elif place == "a link":
        link.symlink_to(start)
        start = link
    elif place == "a link to a link":
        link.symlink_to(start)
        second.symlink_to(link.name)
        start = second
    elif place == "a relative link":
        link.symlink_to(os.path.join(app.repo.name, "start.sh"))
        start, options = link.name, {"cwd": str(app.folder)}
    elif place == "PATH":
        start.chmod(0o755)
        app.env["PATH"] = str(app.repo) + os.pathsep + app.env["PATH"]
        result = app.run("--version", by=("start.sh",), port=None)
        assert result.code == 0, result.err
        return
    result = app.run("--version", by=through(shell, start), port=None, **options)
    assert result.code == 0, result.err
    assert result.out.strip()


def test_it_hands_over_every_word_as_it_stands(app):
    config = app.configure(name="spaced")
    config.rename(app.repo / "a  *  'config'.cfg")
    plan = app.plan("--host", "::1", "--config", app.repo / "a  *  'config'.cfg",
                    by=through("sh", app.repo / "start.sh"))
    assert plan["settings"]["HOST"] == {"value": "::1", "origin": "command line"}


def test_it_hands_back_the_exit_code(app):
    refused(app.run(by=through("sh", app.repo / "start.sh"), port="abc"), 2, "abc")


def test_without_any_python_it_says_so_and_ends_with_127(app, tools):
    result = app.run(by=through("bash", app.repo / "start.sh"))
    assert (result.code, result.out) == (127, "")
    problem, remedy = result.err.splitlines()
    assert "no Python 3" in problem and remedy.startswith("  ") and "HERMES_WEBUI_PYTHON" in remedy
    assert app.is_gone()


def test_without_its_launcher_it_says_so_and_ends_with_127(app):
    (app.repo / "bootstrap.py").unlink()
    result = app.run(by=through("sh", app.repo / "start.sh"))
    assert (result.code, result.out) == (127, "")
    problem, remedy = result.err.splitlines()
    assert str(app.repo / "bootstrap.py") in problem and remedy.startswith("  ")


def test_a_start_keeps_what_it_compiled_and_does_without_where_it_cannot(app):
    cache = app.repo / "__pycache__"
    app.start(by=through("sh", app.repo / "start.sh"))
    assert [path.name.partition(".")[0] for path in cache.iterdir()] == ["bootstrap"]
    app.run("--stop")
    shutil.rmtree(str(cache))
    cache.write_text("in the way")
    app.start(by=through("sh", app.repo / "start.sh"))


def test_python_serves_where_python3_is_missing(app, tools):
    program(tools / "python", 'exec "{}" "$@"'.format(PYTHON))
    assert app.run("--version", by=through("sh", app.repo / "start.sh")).code == 0


def test_a_python_that_is_a_2_is_passed_over(app, tools):
    program(tools / "python", "case $* in *version_info*) exit 1;; esac; echo wrong; exit 9")
    result = app.run("--version", by=through("sh", app.repo / "start.sh"))
    assert result.code == 127 and "wrong" not in result.out
    result = app.run("--version", by=through("sh", app.repo / "start.sh"),
                     env={"HERMES_WEBUI_PYTHON": PYTHON})
    assert result.code == 0, result.err


def test_python3_is_tried_before_the_setting(app, tools):
    program(tools / "python3", "echo from python3")
    result = app.run(by=through("sh", app.repo / "start.sh"), env={"HERMES_WEBUI_PYTHON": PYTHON})
    assert (result.code, result.out) == (0, "from python3\n")


def test_a_setting_that_names_nothing_is_passed_over(app, tools):
    result = app.run(by=through("sh", app.repo / "start.sh"),
                     env={"HERMES_WEBUI_PYTHON": str(tools / "missing")})
    assert result.code == 127 and "HERMES_WEBUI_PYTHON" in result.err


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="needs setpriv")
def test_it_needs_no_permission_to_write_its_own_folder(app):
    app.repo.chmod(0o555)
    result = app.run("--print-plan", by=through("sh", app.repo / "start.sh"), under=AS_ANYBODY)
    assert result.code == 0, result.err
    app.repo.chmod(0o755)


def test_it_is_short(app):
    assert len((app.repo / "start.sh").read_text().splitlines()) <= 25
