"""docs/vendoring.md holds: its first steps, its table of keys, and what makes a copy a copy."""
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import PYTHON, ROOT

sys.path.insert(0, str(Path(__file__).resolve().parent / "apps"))
import manual  # noqa: E402

SOURCES = [*Path(__file__).parent.glob("apps/*.py"), Path(__file__)]


def run(app, name, **options):
    """Carry out the commands of the page in the repository; what they print."""
    text = manual.block(name).replace("@CHECKOUT@", str(ROOT))
    return subprocess.check_output(["bash", "-euc", text], cwd=str(app.repo), encoding="utf-8",
                                   env=dict(app.env, **options), timeout=100)


@pytest.fixture
def fresh(app):
    """A repository in which nothing is."""
    for path in app.repo.iterdir():
        path.unlink()
    app.env["DEMO_PORT"] = str(app.port)
    return app


def test_three_minutes_from_zero(fresh):
    run(fresh, "start/copy")
    fresh.write("bootstrap.cfg", manual.block("start/bootstrap.cfg"))
    assert len(manual.block("start/bootstrap.cfg").splitlines()) <= 6
    assert run(fresh, "start/run") == fresh.url + "\n"
    assert fresh.run("--stop").code == 0 and fresh.is_gone()
    made = {path.name for path in fresh.repo.iterdir()} - {"__pycache__"}
    assert made == {"bootstrap.py", "start.sh", "bootstrap.cfg"}


def test_the_copy_is_the_checkouts_and_says_so_itself(fresh):
    run(fresh, "start/copy")
    fresh.write("bootstrap.cfg", manual.block("start/bootstrap.cfg"))
    digest = hashlib.sha256((ROOT / "bootstrap.py").read_bytes()).hexdigest()
    assert digest in run(fresh, "check/version")
    lines = run(fresh, "check/sha256").splitlines()
    assert lines[:2] == lines[2:] and digest in lines[0]
    (fresh.repo / "bootstrap.py").write_bytes((ROOT / "bootstrap.py").read_bytes() + b"#\n")
    assert digest not in run(fresh, "check/version")
    run(fresh, "start/copy")
    assert digest in run(fresh, "check/version")


def test_an_upgrade_by_copying_leaves_a_running_server_and_its_settings_alone(app):
    app.configure(name="demo", port=app.port, env_prefix=None, health="/health")
    app.env["HERMES_WEBUI_HOST"], app.env["HERMES_WEBUI_PORT"] = "127.0.0.1", str(app.port)
    pid = app.start()
    for name in ("bootstrap.py", "start.sh"):
        shutil.copy(str(ROOT / name), str(app.repo))
    assert app.status()["pid"] == pid and app.answers()
    assert app.run("--restart").code == 0
    assert app.pid() != pid and app.answers()


def test_another_applications_settings_mean_nothing_here(app):
    app.write("bootstrap.cfg", manual.block("start/bootstrap.cfg"))
    foreign = {"HERMES_WEBUI_" + name: value for name, value in (
        ("PORT", "9"), ("HOST", "nowhere.invalid"), ("PYTHON", "/no/such/python"),
        ("STATE_DIR", "/proc/none"), ("FOREGROUND", "1"), ("SERVER_CWD", "/no/such/folder"),
        ("DISABLE_LOCAL_VENV", "1"))}
    plan = app.plan(port=None, env=dict(foreign, HERMES_HOME="/proc/none"))
    assert plan["settings"]["PORT"] == {"value": 8000, "origin": "bootstrap.cfg"}
    assert plan["mode"] == "detached" and plan["interpreter"]["path"] == PYTHON
    assert plan["url"] == "http://127.0.0.1:8000/" and plan["folder"] == str(app.repo)
    assert all(setting["value"] is None or name in ("HOST", "PORT", "STATE_DIR")
               for name, setting in plan["settings"].items())
    mine = app.plan(port=None, env=dict(foreign, DEMO_PORT="9001"))
    assert mine["settings"]["PORT"] == {"value": 9001, "origin": "environment"}


DERIVED = {     # what the page says of a default that follows from something else
    "the folder's name": {"name": "my chëckout"},
    "the name's": {"env_prefix": "MY_CH_CKOUT_", "state_dir": ""},
    "nothing": dict.fromkeys(("install", "requires_python", "companion", "companion_marker",
                              "companion_command"), "")}


def test_the_table_of_keys_is_what_the_code_reads(app, bootstrap):
    rows = manual.table("## bootstrap.cfg")[1:]
    assert [row[0].strip("`") for row in rows] == list(bootstrap.CONFIG_KEYS)
    app.write("bootstrap.cfg", "[bootstrap]\n")
    neutral = bootstrap.read_app()
    for cell, default, meaning in rows:
        key = cell.strip("`")
        found = getattr(neutral, key)
        text = "{:g}".format(found) if isinstance(found, float) else str(found)
        said = default.strip("`") if default.startswith("`") else DERIVED[default][key]
        assert (said, bool(meaning)) == (text, True), key


def test_the_ranges_of_the_page_are_the_launchers(bootstrap):
    for folder in bootstrap.USUAL_FOLDERS:
        assert "`{}`".format(folder) in manual.text()


def test_every_block_of_the_page_is_named_and_used():
    openings = re.findall(r"^ *```(.*)$", manual.text(), re.M)[::2]
    assert [line for line in openings if "/" not in line] == []
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    unused = [name for name in manual.blocks() if name not in code and
              'Example("{}"'.format(name.partition("/")[0]) not in code]
    assert unused == []


def test_what_the_launcher_makes_is_ignored_as_the_page_says():
    ignored = manual.block("start/.gitignore").split()
    assert ".venv/" in ignored and ".env" in ignored
