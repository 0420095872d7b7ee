"""server.py and the state on disk: what is there, what is missing, and what is broken."""
import contextlib
import json
import os
import sqlite3
import subprocess

import pytest

from server_support import Running

AGENT = os.environ.get("HERMES_AGENT_PYTHON", "")
MAKE_AGENT_STATE = """
import sys, pathlib
from hermes_state import SessionDB
from hermes_cli import projects_db
home = pathlib.Path(sys.argv[1])
db = SessionDB(home / "state.db")
for number in range(3):
    db.create_session("s%d" % number, "cli", model="some-model")
    db.append_message("s%d" % number, "user", "a secret question")
    db.set_session_title("s%d" % number, "Title %d" % number)
db.end_session("s0", "done")
with projects_db.connect_closing(home / "projects.db") as projects:
    projects_db.create_project(projects, name="Garden")
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "state" / "sessions").mkdir(parents=True)
    (tmp_path / "hermes").mkdir()
    running = Running(tmp_path)
    yield running
    running.end()


def check(server, name):
    return server.json("/health?deep=1")["checks"][name]


def write_session(server, name, **fields):
    path = server.state / "sessions" / (name + ".json")
    path.write_text(json.dumps({"session_id": name, **fields}), encoding="utf-8")


def make_database(path, wal=False, **columns):
    """A sessions table with one row."""
    row = {"id": "agent-1", "source": "cli", "started_at": 1700000000.5, "title": "From the agent",
           "system_prompt": "hidden", "cwd": "/secret/place", "message_count": 4, **columns}
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        if wal:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE sessions (%s)" % ", ".join(row))
        marks = ",".join("?" * len(row))
        db.execute("INSERT INTO sessions VALUES (%s)" % marks, list(row.values()))
        db.commit()


def test_nothing_on_disk_is_missing_and_well(tmp_path):
    server = Running(tmp_path)
    try:
        status, _, body = server.get("/health?deep=1")
        checks = json.loads(body.decode())["checks"]
        assert status == 200
        assert {name for name, check in checks.items() if check["status"] == "missing"} == {
            "disk", "sessions", "projects", "state_db", "projects_db"}
        assert server.json("/api/sessions") == {"sessions": [], "projects": [], "problems": []}
        assert not server.state.exists() and not server.home.exists()
    finally:
        server.end()


def test_sessions_of_the_app_are_listed_with_what_runs_and_what_waits(server):
    write_session(server, "old", title="Old", updated_at=1.5, messages=[{}, {}])
    write_session(server, "new", title="Néw", updated_at=2, active_stream_id="stream-9",
                  pending_user_message="go on", workspace="/secret/place")
    new, old = server.json("/api/sessions")["sessions"]
    assert (new["title"], new["active_stream_id"], new["pending_user_message"]) == (
        "Néw", "stream-9", "go on")
    assert (old["active_stream_id"], old["pending_user_message"], old["message_count"]) == (
        None, None, 2)
    assert b"/secret/place" not in server.get("/api/sessions")[2]
    assert check(server, "sessions")["count"] == 2


def test_a_changed_session_file_is_read_again(server):
    write_session(server, "one", title="Before")
    assert server.json("/api/sessions")["sessions"][0]["title"] == "Before"
    write_session(server, "one", title="After that")
    assert server.json("/api/sessions")["sessions"][0]["title"] == "After that"


def test_the_agents_sessions_are_listed_once_each_and_the_apps_word_counts(server):
    make_database(server.home / "state.db")
    write_session(server, "agent-1", title="From the app", updated_at=1700000001)
    write_session(server, "other", title="Other", updated_at=1)
    answer = server.json("/api/sessions")
    assert [row["title"] for row in answer["sessions"]] == ["From the app", "Other"]
    assert check(server, "state_db")["count"] == 1


def test_the_agents_database_stays_as_it_is_and_closed(server):
    path = server.home / "state.db"
    make_database(path, wal=True)
    before = path.read_bytes()
    for _ in range(20):
        row, = server.json("/api/sessions")["sessions"]
    assert (row["title"], row["created_at"], row["active_stream_id"]) == (
        "From the agent", 1700000000.5, None)
    assert b"hidden" not in server.get("/api/sessions")[2]
    assert path.read_bytes() == before
    links = [os.readlink("/proc/%d/fd/%s" % (server.process.pid, fd))
             for fd in os.listdir("/proc/%d/fd" % server.process.pid)]
    assert not [link for link in links if "state.db" in link]


def test_a_database_that_is_being_written_is_read_too(server):
    path = server.home / "state.db"
    make_database(path, wal=True)
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("INSERT INTO sessions (id, started_at) VALUES ('second', 1)")
        assert check(server, "state_db")["count"] == 1
        db.commit()
        assert check(server, "state_db")["count"] == 2


def test_projects_of_app_and_agent_are_listed(server):
    (server.state / "projects.json").write_text('[{"project_id": "p1", "name": "Garden"}]')
    with contextlib.closing(sqlite3.connect(str(server.home / "projects.db"))) as db:
        db.execute("CREATE TABLE projects (id, name, color, created_at)")
        db.execute("INSERT INTO projects VALUES ('p2', 'House', 'red', 5)")
        db.commit()
    names = {row["project_id"]: row["name"] for row in server.json("/api/sessions")["projects"]}
    assert names == {"p1": "Garden", "p2": "House"}


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 100000, b"\0" * 100,
    b'{"a": NaN, "b": ' + b"1" * 5000 + b"}{"])
def test_a_broken_session_file_is_an_error_in_the_check_and_hides_no_other(server, data):
    write_session(server, "good", title="Good")
    (server.state / "sessions" / "bad.json").write_bytes(data)
    status, _, body = server.get("/health?deep=1")
    told = json.loads(body.decode())
    assert (status, told["status"], told["checks"]["sessions"]["status"]) == (
        503, "degraded", "error")
    answer = server.json("/api/sessions")
    assert [row["title"] for row in answer["sessions"]] == ["Good"]
    assert answer["problems"] == ["sessions: 1 of 2 cannot be read"]
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize("data", [b"", b"{}", b"{", b"[1, 2]", b"7", b"\xff"])
def test_broken_projects_are_an_error_in_the_check(server, data):
    (server.state / "projects.json").write_bytes(data)
    assert check(server, "projects")["status"] == "error"
    assert server.json("/api/sessions")["projects"] == []


@pytest.mark.parametrize("data", [b"", b"not a database at all" * 99,
                                  b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_broken_database_is_an_error_in_the_check(server, data):
    (server.home / "state.db").write_bytes(data)
    assert check(server, "state_db")["status"] == "error"
    write_session(server, "good", title="Good")
    assert [row["title"] for row in server.json("/api/sessions")["sessions"]] == ["Good"]


def test_odd_values_in_the_database_reach_nobody_as_a_crash(server):
    make_database(server.home / "state.db", title=b"\xff\xfe", model=b"\0blob", started_at="soon")
    write_session(server, "odd", title=["list"], updated_at={"no": "time"}, message_count="many")
    assert len(server.json("/api/sessions")["sessions"]) == 2


def test_folders_and_locks_in_the_way_are_errors_and_not_hangs(server):
    (server.state / "projects.json").mkdir()
    (server.state / "sessions" / "folder.json").mkdir()
    make_database(server.home / "state.db")
    with contextlib.closing(sqlite3.connect(str(server.home / "state.db"))) as db:
        db.execute("BEGIN EXCLUSIVE")
        checks = server.json("/health?deep=1")["checks"]
    assert {checks[name]["status"] for name in ("projects", "sessions", "state_db")} == {"error"}
    assert check(server, "state_db")["status"] == "ok"


def test_few_free_descriptors_are_an_error_in_the_check(tmp_path):
    import resource
    low = (100, 100)
    server = Running(tmp_path, preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, low))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(85):
                stack.enter_context(server.connect()).sendall(b"GET ")
            assert check(server, "file_descriptors")["status"] == "error"
    finally:
        server.end()


@pytest.mark.skipif(not AGENT, reason="HERMES_AGENT_PYTHON names no Python with hermes-agent")
def test_state_made_by_the_real_agent_is_read(server):
    subprocess.run([AGENT, "-c", MAKE_AGENT_STATE, str(server.home)], check=True, timeout=120,
                   env={"HOME": str(server.folder), "HERMES_HOME": str(server.home),
                        "PATH": os.environ["PATH"]})
    status, _, body = server.get("/health?deep=1")
    checks = json.loads(body.decode())["checks"]
    assert (status, checks["state_db"]["count"], checks["projects_db"]["count"]) == (200, 3, 1)
    answer = server.json("/api/sessions")
    assert {row["title"] for row in answer["sessions"]} == {"Title 0", "Title 1", "Title 2"}
    assert {row["message_count"] for row in answer["sessions"]} == {1}
    assert [row["name"] for row in answer["projects"]] == ["Garden"]
    assert b"secret question" not in server.get("/api/sessions")[2]
