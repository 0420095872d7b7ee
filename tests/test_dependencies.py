"""The dependencies: made once, broken in every way for real, and repaired by the next start."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import servers
from harness import App, PYTHON, refused, until
from packages import (
    GREETING, INSTALLERS, QUICK, UV, counting, environment, equip, gated, give, greet, require,
    site_of, standalone, wheel)

PREFIX = "HERMES_WEBUI_"
MAKING = re.compile("^bootstrap: (?:making|renewing|updating) [.]venv: (.*)$", re.M)
PATIENT = {"timeout": 100}      # venv and pip take their time beside other work


def started(app, *words, **options):
    """Start detached, which must succeed; what was said on the way."""
    result = app.run(*words, **dict(PATIENT, **options))
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert app.answers()
    return result.err


def stopped(app):
    """Stop the instance, which must leave nothing behind."""
    result = app.run("--stop")
    assert result.code == 0, result.err
    assert app.is_gone()


def is_warm(app, **options):
    """Assert that one more start installs nothing."""
    said = started(app, **options)
    stopped(app)
    assert reason(said) is None and "installing" not in said, said
    return True


def version(app):
    return app.starts()[-1]["version"]


def reason(said):
    """Why .venv was made, as the one line says it; None where it was not."""
    found = MAKING.findall(said)
    assert len(found) <= 1, said
    return found[0] if found else None


def venv(app, *names):
    return app.repo.joinpath(".venv", *names)


def stamp(app):
    return venv(app, "bootstrap-stamp")


@pytest.fixture(params=INSTALLERS)
def installer(request, app):
    return equip(app, request.param)


@pytest.fixture
def quick(app):
    return equip(app, QUICK)


# -- the first start ---------------------------------------------------------------------------


@pytest.mark.once
def test_a_first_start_installs_and_the_second_does_not(app, installer):
    said = started(greet(app))
    assert "there is none" in reason(said)
    assert version(app) == "1.0" and app.starts()[-1]["python"].startswith(str(venv(app)))
    assert stamp(app).exists()
    stopped(app)
    assert is_warm(app)


@pytest.mark.once
def test_a_first_start_in_the_foreground_installs_and_keeps_the_pid(app, quick):
    process = greet(app).launch("--foreground")
    until(app.answers, "the server answers", 100)
    assert app.pid() == process.pid and version(app) == "1.0"
    process.terminate()
    result = app.result(process)
    assert result.out == "" and "there is none" in reason(result.err)


@pytest.mark.once
def test_the_plan_installs_nothing(app, quick):
    greet(app)
    before = sorted(app.folder.rglob("*"))
    app.plan()
    assert sorted(app.folder.rglob("*")) == before


@pytest.mark.once
@pytest.mark.parametrize("install, files, found", [
    pytest.param("--no-index --find-links wheels greeting==2.0", {"requirements.txt": "nonsense =="},
                 "2.0", id="the key, before all files"),
    pytest.param(None, {"requirements.txt": "--no-index\n--find-links wheels\ngreeting==2.0\n",
                        "pyproject.toml": "[project]\n"}, "2.0", id="requirements.txt"),
    pytest.param(None, {"pyproject.toml": '[project]\nname = "it"\nversion = "1"\n'
                        'dependencies = ["greeting==2.0"]\n' + '[build-system]\nrequires = []\n'
                        'build-backend = "backend"\nbackend-path = ["."]\n'}, "2.0", id="a project"),
])
def test_what_is_installed_is_said_by(app, quick, install, files, found):
    greet(app)
    (app.repo / "requirements.txt").unlink()
    for name, text in files.items():
        app.write(name, text)
    if install:
        app.configure(install=install)
    app.write("backend.py", EDITABLE)
    folder = (app.repo / "wheels").as_uri()
    app.env.update(PIP_FIND_LINKS=folder, PIP_NO_INDEX="1", UV_FIND_LINKS=folder, UV_OFFLINE="1")
    started(app)
    assert version(app) == found


# A build backend of a project that has no code of its own.
EDITABLE = '''
import os, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    info = "it-1.dist-info/"
    with zipfile.ZipFile(os.path.join(folder, "it-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: it\\nVersion: 1\\n"
                                          "Requires-Dist: greeting==2.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\n"
                                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "it-1-py3-none-any.whl"

build_wheel = build_editable
'''


@pytest.mark.parametrize("text", [
    pytest.param(None, id="nothing"), pytest.param("[tool.black]\nline-length = 100\n", id="tools only"),
    pytest.param("# [project]\n", id="a comment")])
def test_nothing_is_installed_for_a_repository_with(app, text):
    if text:
        app.write("pyproject.toml", text)
    assert reason(started(app)) is None
    assert not venv(app).exists() and app.starts()[-1]["python"] == PYTHON


# -- broken environments -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(request, tmp_path_factory):
    """A repository whose environment is broken and repaired again and again."""
    app = App(tmp_path_factory.mktemp("site"))
    try:
        equip(app, request.param)
        yield greet(app)
    finally:
        app.close()


@pytest.fixture
def made(site):
    """The repository while its environment is complete and nothing runs."""
    require(site, "greeting==1.0")
    started(site)
    stopped(site)
    yield site
    site.run("--stop")


def without_stamp(app):
    stamp(app).unlink()


def without_python(app):
    venv(app, "bin", "python").unlink()


def with_a_python_that_is_gone(app):
    link = venv(app, "bin", "python")
    link.unlink()
    link.symlink_to(app.folder / "gone" / "python3.7")


def somewhere_else(app):
    place = app.repo.parent / (app.repo.name + " moved")
    app.repo.rename(place)
    app.repo = place


def empty(app):
    shutil.rmtree(str(venv(app)))
    venv(app).mkdir()


def without_its_description(app):
    stamp(app).unlink()
    venv(app, "pyvenv.cfg").unlink()


def with_a_stamp_of_nonsense(app):
    stamp(app).write_bytes(b"\xff\0")


BROKEN = [
    (without_stamp, "completed"), (without_python, "bound to"),
    (with_a_python_that_is_gone, "bound to"), (somewhere_else, "it was moved here"), (empty, "completed"),
    (without_its_description, "completed"), (with_a_stamp_of_nonsense, "")]
QUICK_SITE = pytest.mark.parametrize("site", [QUICK], indirect=True, scope="module")


def breaks_and_is_repaired(app, spoil, why):
    spoil(app)
    said = started(app)
    assert why in (reason(said) or "nothing was made"), said
    assert version(app) == "1.0"
    stopped(app)
    assert is_warm(app)


@pytest.mark.once
@QUICK_SITE
@pytest.mark.parametrize("spoil, why", [
    pytest.param(*row, id=row[0].__name__.replace("_", " ")) for row in BROKEN])
def test_the_next_start_repairs_an_environment(made, spoil, why):
    breaks_and_is_repaired(made, spoil, why)


@pytest.mark.once
@pytest.mark.parametrize("site", ["pip"], indirect=True, scope="module")
def test_an_environment_of_pip_is_repaired_and_renewed_too(made):
    breaks_and_is_repaired(made, *BROKEN[0])
    require(made, "greeting==2.0")
    started(made)
    assert version(made) == "2.0"
    stopped(made)


@pytest.mark.once
@QUICK_SITE
@pytest.mark.parametrize("lines, name", [
    pytest.param(["greeting=={}"], "requirements.txt", id="requirements.txt"),
    pytest.param(["# odd\r\r", "greeting=={}\r"], "requirements.txt", id="line ends of any kind"),
    *(pytest.param([line], "base.txt", id=line) for line in (
        "-r base.txt", "--requirement base.txt", "--requirement=base.txt")),
    *(pytest.param([line, "greeting"], "limits.txt", id=line) for line in (
        "-c limits.txt", "--constraint limits.txt", "--constraint=limits.txt")),
    pytest.param(["-r between.txt"], "base.txt", id="a file of a file"),
    pytest.param(["-r below/more.txt"], "below/base.txt", id="a file of a file in a folder"),
])
def test_a_change_is_installed_into_the_environment_that_is_there(made, lines, name):
    """Only what changed is done anew: the environment itself stays."""
    made.write("between.txt", "-r base.txt\n")
    (made.repo / "below").mkdir(exist_ok=True)
    made.write("below/more.txt", "-r base.txt\n")
    for found in ("2.0", "1.0"):
        require(made, *(line.format(found) for line in lines))
        if name != "requirements.txt":
            made.write(name, "greeting=={}\n".format(found))
        (venv(made) / "kept").write_text("")
        said = started(made)
        assert version(made) == found
        assert "change" in (reason(said) or "no change") and (venv(made) / "kept").exists()
        stopped(made)
        assert is_warm(made)


@pytest.mark.once
@QUICK_SITE
@pytest.mark.parametrize("key", ["greeting=={}", "-r named.txt", "-rnamed.txt", "--requirement=named.txt",
                                 "greeting -c named.txt", "-c named.txt greeting"])
def test_a_change_of_the_key_or_of_a_file_that_it_names_is_noticed(made, key):
    try:
        for found in ("2.0", "1.0"):
            made.configure(install="--no-index --find-links wheels " + key.format(found))
            made.write("named.txt", "greeting=={}\n".format(found))
            started(made)
            assert version(made) == found
            stopped(made)
            assert is_warm(made)
    finally:
        (made.repo / "bootstrap.cfg").unlink()


@pytest.mark.skipif(not UV, reason="uv is not installed")
@pytest.mark.once
@pytest.mark.parametrize("site", ["uv"], indirect=True, scope="module")
def test_an_environment_that_uv_made_serves_without_uv(made):
    """It has no pip: while nothing changed the stamp decides, and afterwards it is made anew."""
    path = made.env["PATH"]
    made.env["PATH"] = path.partition(os.pathsep)[2]
    try:
        assert is_warm(made)
        require(made, "greeting==2.0")
        started(made)
        assert version(made) == "2.0"
        stopped(made)
    finally:
        made.env["PATH"] = path


@pytest.mark.once
@QUICK_SITE
def test_the_plan_tells_a_complete_environment_from_one_that_is_not(made):
    python = str(venv(made, "bin", "python"))
    assert made.plan()["interpreter"]["path"] == python
    without_stamp(made)
    made.plan()
    assert not stamp(made).exists()


def a_file(app):
    venv(app).write_text("precious")


def a_link(app):
    (app.folder / "elsewhere").mkdir()
    (app.folder / "elsewhere" / "precious").write_text("")
    venv(app).symlink_to(app.folder / "elsewhere")


def a_link_to_nothing(app):
    venv(app).symlink_to(app.folder / "nothing")


def a_folder_of_somebody(app):
    (venv(app) / "notes").mkdir(parents=True)
    (venv(app) / "notes" / "precious").write_text("")


def a_folder_with_a_lib(app):
    (venv(app) / "lib").mkdir(parents=True)
    (venv(app) / "lib" / "precious").write_text("")


@pytest.mark.parametrize("make", [
    pytest.param(make, id=make.__name__.replace("_", " "))
    for make in (a_file, a_link, a_link_to_nothing, a_folder_of_somebody, a_folder_with_a_lib)])
def test_nothing_is_deleted_where_dot_venv_is(app, make):
    make(greet(app))
    before = sorted(app.folder.glob("elsewhere/**/*")) + sorted(app.repo.glob(".venv/**/*"))
    text = venv(app).read_text() if venv(app).is_file() else ""
    refused(app.run(**PATIENT), 78, venv(app))
    after = sorted(app.folder.glob("elsewhere/**/*")) + sorted(app.repo.glob(".venv/**/*"))
    assert after == before and os.path.lexists(str(venv(app)))
    assert not text or venv(app).read_text() == text
    assert app.is_gone()


# -- interruptions -----------------------------------------------------------------------------


def children(pid):
    """Process ids of the children of a process."""
    with contextlib.suppress(OSError):
        with open("/proc/{0}/task/{0}/children".format(pid)) as file:
            return [int(word) for word in file.read().split()]
    return []


def waits_for_a_lock(app, process):
    """Whether a start has opened the repository, which it does only to lock it."""
    with contextlib.suppress(OSError):
        folder = "/proc/{}/fd".format(process.pid)
        return str(app.repo) in [os.readlink(os.path.join(folder, fd)) for fd in os.listdir(folder)]
    return False


def completes(app, gate, why="completed"):
    """Assert that the next start makes what the one before it could not."""
    gate.open()
    said = started(app)
    assert why in reason(said) and version(app) == "1.0"
    stopped(app)
    assert is_warm(app)


@pytest.mark.once
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
                         ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("mode", ["--detach", "--foreground"])
def test_an_installation_ends_with_the_launcher(app, quick, number, code, mode):
    gate = gated(app)
    process = app.launch(mode)
    gate.reached()
    os.kill(process.pid, number)
    result = app.result(process)
    assert (result.code, result.out) == (code, ""), result.err
    assert "Traceback" not in result.err
    until(app.is_free, "nobody listens")
    until(lambda: not app.processes(), "the installer has ended")
    completes(app, gate)


@pytest.mark.once
def test_an_installation_by_pip_ends_with_the_launcher(app):
    equip(app, "pip")
    gate = gated(app)
    process = app.launch()
    gate.reached()
    process.terminate()
    result = app.result(process)
    assert (result.code, result.out) == (143, "") and "Traceback" not in result.err
    until(lambda: not app.processes(), "the installer has ended")
    completes(app, gate)


@pytest.mark.once
def test_ctrl_c_on_a_terminal_ends_the_installation(app, quick):
    gate = gated(app)
    terminal = app.terminal()
    gate.reached()
    terminal.type("\x03")
    code, text = terminal.finish()
    assert code == 130 and "Traceback" not in text
    until(lambda: not app.processes(), "the installer has ended")
    completes(app, gate)


@pytest.mark.once
def test_kill_9_on_the_installer_is_a_failure_that_the_next_start_repairs(app, quick):
    gate = gated(app)
    process = app.launch()
    gate.reached()
    worker, = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    gate.open()
    result = app.result(process)
    refused(result, 1)
    completes(app, gate)


@pytest.mark.once
def test_an_installer_without_its_launcher_keeps_everybody_else_out(app, quick):
    gate = gated(app)
    first = app.launch()
    gate.reached()
    first.kill()
    first.wait()
    second = app.launch()
    until(lambda: waits_for_a_lock(app, second), "the second start waits")
    assert second.poll() is None and len(gate.builds()) == 1 and children(second.pid) == []
    gate.open()
    result = app.result(second, **PATIENT)
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    stopped(app)
    assert is_warm(app)


HEAVY = 12      # packages, of many files each


def heavy(app):
    """Make a server that needs a lot."""
    names = ["heavy{:02d}".format(number) for number in range(HEAVY)]
    for name in names:
        wheel(app.repo / "wheels", name, files={
            "{}_data/{}.txt".format(name, number): "x" * 500 for number in range(120)})
    greet(app)
    require(app, "greeting==1.0", *names)
    app.serve(servers.small(*("import " + name for name in names)) + GREETING)


def exists(*names):
    return lambda app, _: os.path.lexists(str(app.repo.joinpath(*names)))


def installed(count):
    return lambda app, _: sum(1 for _ in app.repo.glob(
        ".venv/lib/python3*/site-packages/heavy*.dist-info")) >= count


MOMENTS = [lambda app, process: children(process.pid), exists(".venv"), exists(".venv", "pyvenv.cfg"),
           exists(".venv", "bin", "python"), installed(1), installed(3), installed(5), installed(8),
           installed(10), installed(HEAVY)]


def kill_at(app, moment, whole, env):
    """SIGKILL the launcher as soon as the moment has come, and all that it started if whole."""
    process = app.launch(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    end = time.monotonic() + 60
    while not moment(app, process) and process.poll() is None and time.monotonic() < end:
        pass    # the moments of uv are short
    process.kill()
    assert process.wait() == -signal.SIGKILL
    if whole:       # what is just being executed shows no environment for a moment, see execve(2)
        until(lambda: not any(app.kill_all() for _ in range(20)), "all have ended")


@pytest.mark.once
@pytest.mark.skipif(not UV, reason="uv is not installed")
@pytest.mark.parametrize("installer, whole", [
    pytest.param("uv", False, id="the launcher alone, uv goes on"),
    pytest.param("pip", True, id="everything at once, pip too")])
def test_kill_9_at_any_moment_is_repaired_each_time(app, installer, whole):
    """uv makes the repairs, as it is quick; what it meets is what each installer left."""
    heavy(app)
    slow = {"PATH": app.env["PATH"]}
    equip(app, "uv")
    for moment in MOMENTS if installer == "uv" else MOMENTS[::2]:
        shutil.rmtree(str(venv(app)), ignore_errors=True)
        kill_at(app, moment, whole, slow if installer == "pip" else {})
        assert reason(started(app))
        assert version(app) == "1.0"
        stopped(app)
    assert is_warm(app)


@pytest.fixture
def disk(app):
    """The repository on a small file system; a function that gives it another size."""
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("only root mounts a file system")
    content = app.folder / "content"
    app.repo.rename(content)
    app.repo.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(app.repo)]):
        content.rename(app.repo)
        pytest.skip("no mounts here")
    try:
        for entry in content.iterdir():
            shutil.copy2(str(entry), str(app.repo))
        yield lambda size: subprocess.check_call(
            ["mount", "-o", "remount,size=" + size, str(app.repo)])
    finally:
        until(lambda: not app.kill_all(), "all processes of the test have ended")
        subprocess.check_call(["umount", "-l", str(app.repo)])


@pytest.mark.once
def test_a_full_disk_is_a_failure_that_the_next_start_repairs(app, disk, quick):
    wheel(app.repo / "wheels", "large", files={"large_data": "x" * (80 << 20)})
    greet(app)
    require(app, "greeting==1.0", "large")
    result = app.run(**PATIENT)
    assert (result.code, result.out) == (1, "") and "No space left on device" in result.err
    disk("300m")
    assert "completed" in reason(started(app))
    assert version(app) == "1.0"
    stopped(app)
    assert is_warm(app)


@pytest.mark.once
def test_two_first_starts_at_once_install_once(app, quick):
    gate = gated(app)
    ports = (app.port, app.port + 1)
    both = [app.launch(port=port) for port in ports]
    gate.reached()
    until(lambda: all(waits_for_a_lock(app, process) for process in both), "both are under way")
    gate.open()
    results = [app.result(process, **PATIENT) for process in both]
    assert [result.code for result in results] == [0, 0]
    assert len([result for result in results if reason(result.err)]) == 1
    assert len(gate.builds()) == 1
    for port in ports:
        assert app.run("--stop", port=port).code == 0
    assert app.is_gone()


@pytest.mark.once
def test_whoever_waits_for_an_installation_installs_where_it_failed(app, quick):
    gate = gated(app)
    first = app.launch()
    gate.reached()
    second = app.launch(port=app.port + 1)
    until(lambda: waits_for_a_lock(app, second), "the second is under way")
    first.terminate()
    assert app.result(first).code == 143
    gate.reached(2)
    gate.open()
    result = app.result(second, **PATIENT)
    assert result.code == 0, result.err
    assert app.run("--stop", port=app.port + 1).code == 0


# -- what is shown -----------------------------------------------------------------------------


@pytest.mark.once
def test_a_failed_installation_shows_the_installers_own_lines(app, installer):
    greet(app, "no-such-package==1.2.3")
    result = app.run(**PATIENT)
    assert (result.code, result.out) == (1, "")
    assert [line for line in result.err.splitlines() if "no-such-package" in line and
            not line.startswith("bootstrap: ")], result.err
    assert app.is_gone() and not stamp(app).exists()
    require(app, "greeting==1.0")
    started(app)


@pytest.mark.once
def test_without_a_terminal_a_line_every_few_seconds_says_that_it_goes_on(app, quick):
    gate = gated(app)
    with open(str(app.folder / "said"), "wb") as file:
        process = app.launch(stderr=file)
    text = lambda: (app.folder / "said").read_text()    # noqa: E731
    until(lambda: re.search(r"^bootstrap: .*installing.*, \d+ s", text(), re.M),
          "a line says that it goes on", 60)
    gate.open()
    assert process.wait(timeout=60) == 0, text()
    assert "\r" not in text() and "\x1b" not in text()


@pytest.mark.once
def test_on_a_terminal_the_installers_own_lines_are_shown(app, installer):
    terminal = greet(app).terminal()
    code, text = terminal.finish()
    assert code == 0 and "bootstrap: making .venv: there is none" in text
    assert re.search(r"Successfully installed greeting-1\.0|greeting==1\.0", text)


# -- without a network -------------------------------------------------------------------------

OFFLINE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@pytest.fixture
def offline(app):
    """What to launch under, so that there is no network but the loopback."""
    if not all(map(shutil.which, ("unshare", "ip"))) or subprocess.call(
            OFFLINE + ("true",), stderr=subprocess.DEVNULL):
        pytest.skip("no network namespace for this user")
    return OFFLINE


def served_offline(app, offline, **options):
    """Start and stop where there is no network; what was said."""
    result = app.run(under=offline, **dict(PATIENT, **options))
    assert (result.code, result.out) == (0, app.url + "\n"), result.err
    assert app.run("--stop").code == 0
    return result.err


@pytest.mark.once
def test_no_network_is_needed_where_everything_is_installed(app, installer, offline):
    greet(app)
    app.write("requirements.txt", "greeting==1.0\n")
    folder = (app.repo / "wheels").as_uri()
    started(app, env={"PIP_FIND_LINKS": folder, "PIP_NO_INDEX": "1", "UV_FIND_LINKS": folder,
                      "UV_OFFLINE": "1"})
    stopped(app)
    assert reason(served_offline(app, offline)) is None
    assert version(app) == "1.0"


@pytest.mark.once
def test_no_network_is_needed_to_see_that_another_python_has_everything(app, installer, offline):
    greet(app)
    app.write("requirements.txt", "greeting==1.0\n")
    python = environment(app.folder / "own", wheel(app.repo / "wheels"))
    served_offline(app, offline, env={PREFIX + "PYTHON": python})
    assert app.starts()[-1]["python"] == str(python) and not venv(app).exists()


# -- a Python that is not ours -----------------------------------------------------------------


def content(folder):
    """What is in a folder, but for what Python and uv leave where they only look."""
    return sorted(str(path) for path in folder.rglob("*")
                  if "__pycache__" not in str(path) and path.name != ".lock")


def test_a_chosen_python_that_lacks_something_is_a_configuration_error(app, installer):
    python = environment(app.folder / "own")
    before = content(app.folder / "own")
    result = greet(app).run(env={PREFIX + "PYTHON": python}, **PATIENT)
    refused(result, 78, python, "greeting", "install")
    assert content(app.folder / "own") == before and not venv(app).exists()


def test_a_chosen_python_that_has_everything_is_asked_once(app, installer):
    greet(app)
    python, log = counting(environment(app.folder / "own", wheel(app.repo / "wheels")))
    env = {PREFIX + "PYTHON": python}
    started(app, env=env)
    stopped(app)
    assert version(app) == "1.0" and list(app.state.glob("python*.stamp"))
    log.write_text("")
    started(app, env=env)
    stopped(app)
    assert log.read_text().splitlines() == [str(app.repo / "server.py")]
    assert not venv(app).exists()


def test_a_chosen_python_is_asked_again_when_its_packages_change(app, installer):
    greet(app)
    python = environment(app.folder / "own", wheel(app.repo / "wheels"))
    env = {PREFIX + "PYTHON": python}
    started(app, env=env)
    stopped(app)
    shutil.rmtree(str(site_of(python) / "greeting-1.0.dist-info"))
    refused(app.run(env=env, **PATIENT), 78, "greeting")
    give(site_of(python), wheel(app.repo / "wheels"), pip=False)
    started(app, env=env)


def test_a_chosen_python_is_asked_again_when_the_requirements_change(app, installer):
    greet(app)
    env = {PREFIX + "PYTHON": environment(app.folder / "own", wheel(app.repo / "wheels"))}
    started(app, env=env)
    stopped(app)
    require(app, "greeting==2.0")
    refused(app.run(env=env, **PATIENT), 78, "greeting")


def test_a_python_without_pip_costs_one_warning_where_nobody_can_be_asked(app):
    equip(app, "pip")
    greet(app)
    python = environment(app.folder / "own", wheel(app.repo / "wheels"), pip=False)
    said = started(app, env={PREFIX + "PYTHON": python})
    warnings = [line for line in said.splitlines() if " is ready, pid " not in line]
    assert len(warnings) == 1 and str(python) in warnings[0], said
    assert version(app) == "1.0"


@pytest.mark.skipif(not UV, reason="uv is not installed")
def test_uv_answers_for_a_python_without_pip(app):
    equip(app, "uv")
    greet(app)
    full = environment(app.folder / "full", wheel(app.repo / "wheels"), pip=False)
    lacking = environment(app.folder / "lacking", pip=False)
    started(app, env={PREFIX + "PYTHON": full})
    stopped(app)
    refused(app.run(env={PREFIX + "PYTHON": lacking}), 78, lacking, "greeting")


def test_a_python_that_cannot_answer_is_not_taken_to_have_everything(app):
    mute = app.folder / "mute"
    mute.write_text("#!/bin/sh\nexit 9\n")
    mute.chmod(0o755)
    for _ in range(2):
        refused(greet(app).run(env={PREFIX + "PYTHON": mute}), 78, mute, "exit status")


def test_where_no_environment_may_be_made_the_setting_to_use_instead_is_named(app, installer):
    result = greet(app).run(env={PREFIX + "DISABLE_LOCAL_VENV": "1"}, **PATIENT)
    refused(result, 78, PREFIX + "PYTHON", PREFIX + "DISABLE_LOCAL_VENV")
    assert not venv(app).exists() and app.is_gone()


def test_where_no_environment_may_be_made_a_python_that_has_everything_is_used(app, installer):
    greet(app)
    python = environment(app.folder / "own", wheel(app.repo / "wheels"))
    started(app, by=(python, app.repo / "bootstrap.py"), env={PREFIX + "DISABLE_LOCAL_VENV": "1"})
    assert app.starts()[-1]["python"] == str(python) and not venv(app).exists()


def test_the_companions_environment_is_used_and_never_installed_into(app, installer):
    agent = app.home / ".hermes" / "hermes-agent"
    agent.mkdir(parents=True)
    (agent / "run_agent.py").write_text("")
    greet(app)
    python = environment(agent / "venv", wheel(app.repo / "wheels"))
    before = content(agent)
    started(app)
    stopped(app)
    first = app.starts()[-1]
    assert (first["python"], first["cwd"]) == (str(python), str(agent))
    assert content(agent) == before and not venv(app).exists()


@pytest.mark.once
def test_the_companions_environment_that_lacks_something_is_left_as_it_is(app, quick):
    agent = app.home / ".hermes" / "hermes-agent"
    agent.mkdir(parents=True)
    (agent / "run_agent.py").write_text("")
    environment(agent / "venv")
    before = content(agent)
    started(greet(app))
    assert content(agent) == before
    assert app.starts()[-1]["python"].startswith(str(venv(app)))


@pytest.mark.once
def test_a_python_without_ensurepip_is_told_which_package_it_lacks(app):
    equip(app, "pip")
    bare = standalone(app.folder / "bare", "ensurepip")
    result = greet(app).run(by=(bare, app.repo / "bootstrap.py"), **PATIENT)
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    refused(result, result.code, "apt install " + package)
    assert result.code in (1, 78)
    started(app)
    assert version(app) == "1.0"


@pytest.mark.skipif(not UV, reason="uv is not installed")
@pytest.mark.once
def test_uv_needs_no_ensurepip(app):
    equip(app, "uv")
    bare = standalone(app.folder / "bare", "ensurepip")
    started(greet(app), by=(bare, app.repo / "bootstrap.py"))
    assert version(app) == "1.0" and content(site_of(bare)) == []


@pytest.mark.once
def test_an_externally_managed_python_is_not_fought(app, installer):
    """PEP 668: what the system manages is the system's; an environment is made beside it."""
    managed = standalone(app.folder / "system", managed=True)
    give(site_of(managed))
    before = content(app.folder / "system")
    started(greet(app), by=(managed, app.repo / "bootstrap.py"))
    assert app.starts()[-1]["python"].startswith(str(venv(app)))
    assert content(app.folder / "system") == before


@pytest.mark.once
@pytest.mark.parametrize("has", [True, False], ids=["has everything", "lacks something"])
def test_an_externally_managed_python_that_was_chosen(app, installer, has):
    greet(app)
    managed = standalone(app.folder / "system", managed=True)
    give(site_of(managed), *([wheel(app.repo / "wheels")] if has else []))
    before = content(app.folder / "system")
    env = {PREFIX + "PYTHON": managed}
    if has:
        started(app, env=env)
        assert app.starts()[-1]["python"] == str(managed)
    else:
        refused(app.run(env=env, **PATIENT), 78, managed, "greeting")
    assert content(app.folder / "system") == before and not venv(app).exists()
