"""The interpreter and the companion: which candidates there are, and why each one is passed over."""
import os
import shutil
import sys
from pathlib import Path

import pytest

from harness import PYTHON, refused, until
from packages import QUICK, environment, equip, executed, greet, site_of, tracing, wheel
from test_source import python as find_python

PREFIX = "HERMES_WEBUI_"
VERSION = "{}.{}.{}".format(*sys.version_info[:3])
MINOR = "{}.{}".format(*sys.version_info[:2])
AGENT = os.environ.get("HERMES_AGENT_PYTHON", "")
OTHERS = [minor for minor in ("3.13", "3.12", "3.11", "3.10", "3.9", "3.8")
          if minor != MINOR and find_python(minor)]


def link(path, target=PYTHON):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return str(path)


def on_path(app, *names):
    """A PATH with nothing but these Pythons and the system's commands; the folder."""
    folder = app.folder / "pythons"
    for name in names:
        target = find_python(name[len("python"):]) if name[len("python"):] in OTHERS else PYTHON
        link(folder / name, target)
    for name in ("sh", "env"):
        link(folder / name, shutil.which(name))
    app.env["PATH"] = str(folder)
    return folder


def chosen(app, **options):
    """(path, why) of the interpreter that a start would use."""
    found = app.plan(**options)["interpreter"]
    return found["path"], found["why"]


@pytest.fixture
def agent(app):
    folder = app.home / ".hermes" / "hermes-agent"
    folder.mkdir(parents=True)
    (folder / "run_agent.py").write_text("")
    return folder


def another():
    """A minor version of Python that is here, and is not the one of the tests."""
    if not OTHERS:
        pytest.skip("this machine has no second Python")
    return OTHERS[0]


# -- candidates --------------------------------------------------------------------------------


def test_the_python_that_runs_the_launcher_comes_before_those_on_path(app):
    on_path(app, *["python" + minor for minor in OTHERS], "python3")
    assert chosen(app)[0] == PYTHON


def test_the_newest_python_on_path_comes_first_where_the_running_one_does_not_fit(app):
    newest = another()
    folder = on_path(app, *["python" + minor for minor in OTHERS])
    app.configure(requires_python="!={}.*".format(MINOR))
    path, why = chosen(app)
    assert path == str(folder / ("python" + newest)) and "PATH" in why


def test_a_number_in_a_name_is_not_believed(app):
    """A link may be called python3.99 or 3.8; what it says of itself counts."""
    minor = another()
    folder = on_path(app)
    link(folder / "python3", find_python(minor))
    app.configure(requires_python="=={}.*".format(minor))
    assert chosen(app)[0] == str(folder / "python3")


def test_python3_alone_on_path_is_a_candidate_too(app):
    minor = another()
    folder = on_path(app)
    link(folder / "python3", find_python(minor))
    app.configure(requires_python="!={}.*".format(MINOR))
    assert chosen(app)[0] == str(folder / "python3")


@pytest.mark.parametrize("name", ["venv", ".venv"])
def test_a_companions_environment_out_of_range_is_passed_over(app, agent, name):
    link(agent / name / "bin" / "python", find_python(another()))
    app.configure(requires_python="=={}.*".format(MINOR), companion="hermes-agent",
                  companion_marker="run_agent.py")
    assert chosen(app)[0] == PYTHON


PLACES = ("/opt/homebrew/bin", "/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin")


@pytest.mark.once
@pytest.mark.parametrize("place", PLACES)
def test_a_short_path_is_completed_by(app, place):
    """A service's PATH is often no more than /usr/bin and /bin."""
    minor = another()
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("only root can put a folder there for one process")
    folder = app.folder / "there"
    link(folder / ("python" + minor), find_python(minor))
    top = "/" + place.split("/")[1]
    under = ("unshare", "--mount", "sh", "-c", """
        if [ -d "$1" ]; then mount --bind "$0" "$1" || exit 99
        else
            mount -t tmpfs tmpfs "$2" && mkdir -p "$1" && mount --bind "$0" "$1" || exit 99
        fi
        shift 2; exec "$@" """, folder, place, top)
    if find_python(minor).startswith(top + "/") and not os.path.isdir(place):
        pytest.skip("the Pythons of this machine are below " + top)
    on_path(app)
    app.configure(requires_python="=={}.*".format(minor))
    path, why = chosen(app, under=tuple(shutil.which(word) if word == "unshare" else word
                                        for word in map(str, under)),
                       env={"PATH": app.env["PATH"] + ":/usr/bin:/bin"})
    assert path == os.path.join(place, "python" + minor) and why


# -- range -------------------------------------------------------------------------------------

GOOD = [">=3.8", ">=3.8,<4", " >= 3.8 , < 4 ", "=={}.*".format(MINOR), "=={}".format(VERSION),
        "~={}".format(MINOR), "~={}".format(VERSION), MINOR, VERSION, "!=3.7.*", "<=3.99",
        ">3.7", "<4.0", ">={},<3.99".format(MINOR), "3", "==3.*", "~=3.8"]
OUT = [">=3.99", "<3.8", "!={}.*".format(MINOR), "==3.7.*", "3.7", "3.7.1", "!={}".format(VERSION),
       "<{}".format(MINOR), ">{}".format(VERSION), "~=3.99", "==2.*", ">=3.8,<3.8"]
BAD = ["abc", ">=", ">=3.x", "=>3.9", "3.9 3.10", ">=3.9;<3.12", "3.9,", "==", "latest",
       ">=3.9 <3.12", "3.*.1", "-3.9"]


@pytest.mark.parametrize("text", GOOD)
def test_a_range_that_holds_the_running_python(app, text):
    app.configure(requires_python=text)
    assert chosen(app)[0] == PYTHON


@pytest.mark.once
@pytest.mark.parametrize("text", OUT)
def test_a_range_that_no_python_fits_lists_every_candidate(app, agent, text):
    companions = link(agent / "venv" / "bin" / "python")
    folder = on_path(app, "python3")
    app.configure(requires_python=text, companion="hermes-agent", companion_marker="run_agent.py")
    result = app.run("--print-plan")
    refused(result, 127, text.strip())
    listed = [line for line in result.err.splitlines() if line.startswith("  | ")]
    for path in (PYTHON, companions, str(folder / "python3")):
        lines = [line for line in listed if path + " " in line or path + ":" in line]
        assert lines and all(VERSION in line for line in lines), path


def test_a_broken_candidate_is_listed_with_what_is_wrong(app):
    folder = on_path(app)
    broken = folder / "python3"
    broken.write_text("#!/bin/sh\necho no library >&2\nexit 1\n")
    broken.chmod(0o755)
    app.configure(requires_python=">=3.99")
    result = app.run()
    refused(result, 127, broken)
    line, = [line for line in result.err.splitlines() if str(broken) in line]
    assert line.startswith("  | ") and ":" in line
    assert app.is_gone()


@pytest.mark.once
@pytest.mark.parametrize("text", BAD)
def test_a_range_that_is_none_is_a_configuration_error(app, text):
    path = app.configure(requires_python=text)
    refused(app.run("--print-plan"), 78, path, "requires_python", text.strip())


@pytest.mark.once
@pytest.mark.parametrize("text, fits", [
    *((text, True) for text in (
        MINOR, VERSION, MINOR + "\n", "cpython-" + MINOR, "cpython-{}\n".format(VERSION), "3",
        "# a comment\n" + MINOR + "\n", MINOR + "\n3.7\n", "\n" + MINOR, "  {}  ".format(MINOR),
        "python" + MINOR, "python-" + MINOR)),
    *((text, False) for text in ("3.7", "3.7.16\n", "cpython-3.7.1"))])
def test_dot_python_version_says_which_python(app, text, fits):
    app.write(".python-version", text)
    if fits:
        assert chosen(app)[0] == PYTHON
    else:
        refused(app.run("--print-plan"), 127, "3.7", PYTHON)


@pytest.mark.once
@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "my-env\n", "system\n", "cpython-\n", "3.x\n",
                                  "3.\n", b"\xff\xfe\n"])
def test_a_dot_python_version_that_names_no_version_asks_for_nothing(app, text):
    """pyenv writes names of environments there too."""
    app.write(".python-version", text)
    assert chosen(app)[0] == PYTHON


def test_the_key_outranks_dot_python_version(app):
    app.write(".python-version", "3.7\n")
    app.configure(requires_python="=={}.*".format(MINOR))
    assert chosen(app)[0] == PYTHON


def test_a_chosen_python_is_not_second_guessed(app):
    app.configure(requires_python="!={}.*".format(MINOR))
    app.start(env={PREFIX + "PYTHON": PYTHON})


@pytest.mark.once
def test_an_environment_out_of_range_is_made_anew(app):
    minor = another()
    equip(app, QUICK)
    greet(app)
    app.configure()
    app.start(timeout=100)
    assert app.run("--stop").code == 0
    app.configure(requires_python="=={}.*".format(minor))
    app.env["PATH"] += os.pathsep + os.path.dirname(find_python(minor))
    app.start(timeout=100)
    found, = (app.repo / ".venv" / "lib").glob("python3*/site-packages/greeting.py")
    assert "python" + minor in str(found)


# -- the warm path -----------------------------------------------------------------------------


def served_traced(app, mode):
    """The programs that a start in this mode, through start.sh, runs until the server answers."""
    note = app.folder / "trace"
    process = app.launch(mode, under=tracing(note), by=("sh", app.repo / "start.sh"))
    until(app.answers, "the server answers")
    if mode == "--detach":
        assert process.stdout.readline() == app.url + "\n"
    assert app.run("--stop").code == 0
    app.result(process)
    return [os.path.basename(path) for path in executed(note)]


@pytest.mark.once
@pytest.mark.parametrize("mode", ["--foreground", "--detach"])
@pytest.mark.parametrize("shape", ["no dependencies", "a range", "our own environment",
                                   "a chosen Python", "the running Python"])
def test_a_warm_start_runs_no_interpreter_but_the_servers_own(app, shape, mode):
    app.configure(requires_python=">=3.8,<3.99" if shape == "a range" else None)
    if "dependencies" not in shape and "range" not in shape:
        equip(app, QUICK)
        greet(app)
    if shape == "a chosen Python":
        app.env[PREFIX + "PYTHON"] = environment(app.folder / "own", wheel(app.repo / "wheels"))
    if shape == "the running Python":
        python = environment(app.folder / "own", wheel(app.repo / "wheels"))
        app.env["PATH"] = "{}:{}".format(python.parent, app.env["PATH"])
    app.start(by=("sh", app.repo / "start.sh"), timeout=100)
    python = os.path.basename(app.starts()[-1]["python"])
    assert app.run("--stop").code == 0
    assert served_traced(app, mode) == ["sh", "python3", python]


# -- the companion -----------------------------------------------------------------------------


def a_companion(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run_agent.py").write_text("")
    return folder


def launcher(app, text):
    """The companion's command on PATH, as a script of this text."""
    path = app.folder / "bin" / "hermes"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o755)
    app.env["PATH"] = "{}:{}".format(path.parent, app.env["PATH"])


@pytest.mark.once
@pytest.mark.parametrize("text", [
    pytest.param("#!{python}\nfrom cli import main\n", id="shebang"),
    pytest.param("#!/usr/bin/env {python}\n", id="shebang through env"),
    pytest.param("#!{python} -I\n", id="shebang with a flag"),
    pytest.param("#!/bin/sh\nexec {python} -m hermes \"$@\"\n", id="exec line"),
    pytest.param("#!/bin/sh\nexec \"{python}\" -m hermes \"$@\"\n", id="exec line in quotes"),
    pytest.param("#!/bin/sh\nexec '{python}' -m hermes \"$@\"\n", id="exec line in single quotes"),
    pytest.param("#!/usr/bin/env bash\nexec \"{python}\" \"{folder}/hermes\" \"$@\"\n",
                 id="exec line with a script"),
    pytest.param("#!/usr/bin/env bash\nunset PYTHONPATH\nexec \"{folder}/venv/bin/hermes\" \"$@\"\n",
                 id="exec line of the environment's own command"),
    pytest.param("#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\n",
                 id="exec line of a long shebang"),
])
def test_the_companion_is_found_through_its_commands(app, text):
    folder = a_companion(app.folder / "somewhere" / "agent")
    python = link(folder / "venv" / "bin" / "python")
    link(folder / "venv" / "bin" / "hermes", "/bin/true")
    launcher(app, text.format(python=python, folder=folder))
    plan = app.plan()
    assert plan["folder"] == str(folder) and plan["interpreter"]["path"] == python


@pytest.mark.once
@pytest.mark.parametrize("text", [
    pytest.param("#!{python}\nfrom cli import main\n", id="shebang"),
    pytest.param("#!/bin/sh\nexec \"{python}\" -m hermes \"$@\"\n", id="exec line")])
def test_a_companion_in_the_site_packages_behind_its_command_is_found(app, text):
    python = environment(app.folder / "tools", pip=False)
    site, = (app.folder / "tools").glob("lib/python3*/site-packages")
    a_companion(site)
    launcher(app, text.format(python=python))
    assert app.plan()["folder"] == str(site)


@pytest.mark.once
def test_the_companion_is_found_below_usr_local_lib(app):
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("only root can put a folder there for one process")
    a_companion(app.folder / "lib" / "hermes-agent")
    under = ("unshare", "--mount", "sh", "-c",
             'mount --bind "$0" /usr/local/lib && exec "$@"', app.folder / "lib")
    assert app.plan(under=under)["folder"] == "/usr/local/lib/hermes-agent"


@pytest.mark.once
@pytest.mark.parametrize("text", ["", "\0\xff", "#!\n", "exec\n", "#!/no/such/python\n"])
def test_a_command_that_says_nothing_of_its_companion_is_no_obstacle(app, text):
    launcher(app, text)
    assert app.plan()["folder"] == str(app.repo)


needs_agent = pytest.mark.skipif(
    not AGENT, reason="HERMES_AGENT_PYTHON names no Python with hermes-agent")


@needs_agent
@pytest.mark.once
def test_the_real_companion_is_found_by_its_command(app):
    folder = app.folder / "bin"
    link(folder / "hermes", os.path.join(os.path.dirname(AGENT), "hermes"))
    app.env["PATH"] = "{}:{}".format(folder, app.env["PATH"])
    plan = app.plan()
    assert os.path.isfile(os.path.join(plan["folder"], "run_agent.py"))
    assert os.path.basename(plan["folder"]) == "site-packages"
    app.start()
    assert app.starts()[-1]["cwd"] == plan["folder"]


@needs_agent
@pytest.mark.once
def test_the_real_companions_own_python_is_used(app):
    """What lies in its site-packages is of use to no other."""
    folder = app.folder / "bin"
    link(folder / "hermes", os.path.join(os.path.dirname(AGENT), "hermes"))
    app.env["PATH"] = "{}:{}".format(folder, app.env["PATH"])
    found = app.plan()["interpreter"]
    assert os.path.dirname(found["path"]) == os.path.dirname(AGENT), found


@needs_agent
@pytest.mark.once
def test_the_real_companion_is_found_beside_a_chosen_python(app):
    plan = app.plan(env={PREFIX + "PYTHON": AGENT})
    assert plan["interpreter"]["path"] == AGENT
    site = str(site_of(Path(AGENT)))
    assert plan["folder"] == site
    app.start(env={PREFIX + "PYTHON": AGENT})
    assert app.starts()[-1]["environ"][PREFIX + "AGENT_DIR"] == site
