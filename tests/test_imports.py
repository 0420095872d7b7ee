"""What each mode imports: a start costs what it imports, so one module more has to be meant."""
import os
import subprocess

import pytest

from harness import PYTHON, until

ISOLATED = (PYTHON, "-I", "-S", "-X", "importtime")

# The modules that bootstrap.py itself asks for. What these import in turn differs between Pythons
# and is found by importing them; a module that no longer is asked for has to leave its list.
ALWAYS = {"os", "time", "errno", "gc", "itertools", "_socket"}
MODES = {
    "foreground": ALWAYS | {"fcntl", "_signal"}, "status": ALWAYS,
    "detached": ALWAYS | {"fcntl", "_signal", "select", "json"}}
LAZY = {"warnings"}     # of os.get_exec_path(), where PATH is searched
WITH_DOTENV = {"re"}


def modules(text):
    """Names in what -X importtime writes."""
    return {line.rpartition("|")[2].strip() for line in text.splitlines()
            if line.startswith("import time:")} - {"imported package"}


def closure(names):
    """All that importing these modules brings, on this Python."""
    done = subprocess.run([*ISOLATED, "-c", "import " + ", ".join(sorted(names))], env={},
                          stderr=subprocess.PIPE, encoding="utf-8", check=True)
    return modules(done.stderr)


def profile(app, *words):
    """The modules that one run of bootstrap.py imports; the server does not count."""
    path = app.folder / "profile"
    with open(str(path), "w") as file:
        process = app.launch(*words, by=(*ISOLATED, app.repo / "bootstrap.py"), stderr=file)
    if "--foreground" in words:
        until(app.answers, "the server answers")
    else:
        process.communicate(timeout=40)
    return modules(path.read_text(encoding="utf-8"))


def assert_only(found, names):
    allowed = closure(names | LAZY)
    assert sorted(found - allowed) == [], "imported, but not listed"
    start = closure({"sys"})
    assert sorted(name for name in names if name not in found | start) == [], "listed, but not imported"


WORDS = {"foreground": ["--foreground"], "detached": ["--detach"], "status": ["--status"]}


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_mode_imports_only_what_is_listed(app, mode):
    assert_only(profile(app, *WORDS[mode]), MODES[mode])


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_configuration_is_read_without_another_import(app, mode):
    app.configure()
    assert_only(profile(app, *WORDS[mode]), MODES[mode])


def test_only_who_has_a_dotenv_pays_for_reading_it(app):
    app.write(".env", "A=1\n")
    assert_only(profile(app, "--foreground"), MODES["foreground"] | WITH_DOTENV)


def test_the_record_of_an_instance_that_died_is_read_without_another_import(app):
    app.start("--detach")
    os.kill(app.pid(), 9)
    until(app.is_free, "the port is free again")
    assert_only(profile(app, "--foreground"), MODES["foreground"])
