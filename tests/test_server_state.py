"""server.py and the state on disk: what is there, what is missing, and what is broken."""
import contextlib
import json
import os
import sqlite3
import subprocess
import threading

import pytest

from harness import AS_ANYBODY
from server_support import Events, Running, start  # noqa: F401

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
    links = []
    for fd in os.listdir("/proc/%d/fd" % server.process.pid):
        with contextlib.suppress(FileNotFoundError):  # the last connection may be closing
            links.append(os.readlink("/proc/%d/fd/%s" % (server.process.pid, fd)))
    assert links and not [link for link in links if "state.db" in link]


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


def test_a_repaired_session_file_is_read_again_although_it_looks_the_same(server):
    path = server.state / "sessions" / "one.json"
    for data in ('{"session_id": "a"]', '{"session_id": "a"}'):
        path.write_text(data)
        os.utime(str(path), (1e9, 1e9))
        answer = server.json("/api/sessions")
    assert [row["session_id"] for row in answer["sessions"]] == ["a"]


def test_a_session_file_that_goes_away_hides_no_other(server):
    write_session(server, "good", title="Good")
    (server.state / "sessions" / "gone.json").symlink_to(server.folder / "nowhere")
    assert check(server, "sessions")["status"] == "ok"
    assert [row["title"] for row in server.json("/api/sessions")["sessions"]] == ["Good"]


def test_sessions_come_and_go_while_they_are_read(server):
    over = threading.Event()

    def churn():
        while not over.is_set():
            for number in range(50):
                write_session(server, "s%d" % number, title="t")
            for number in range(50):
                (server.state / "sessions" / ("s%d.json" % number)).unlink()
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        statuses = {server.get(path)[0] for _ in range(50)
                    for path in ("/api/sessions", "/health")}
    finally:
        over.set()
        thread.join()
    assert statuses == {200} and check(server, "sessions")["status"] == "ok"


def test_only_the_newest_of_many_sessions_are_read(server):
    for number in range(600):
        write_session(server, "s%d" % number, updated_at=number)
        path = server.state / "sessions" / ("s%d.json" % number)
        os.utime(str(path), (1e9 + number, 1e9 + number))
    listed = [row["session_id"] for row in server.json("/api/sessions")["sessions"]]
    assert listed == ["s%d" % number for number in range(599, 99, -1)]


@pytest.mark.parametrize("place", ["state/sessions/pipe.json", "state/projects.json",
                                   "hermes/state.db", "hermes/projects.db"])
def test_a_pipe_in_the_way_is_an_error_and_not_a_hang(server, place):
    os.mkfifo(str(server.folder / place))
    checks = server.json("/health?deep=1")["checks"]
    assert [check["status"] for check in checks.values()].count("error") == 1
    assert server.get("/api/sessions")[0] == 200


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


def test_no_more_projects_are_told_than_sessions(server):
    (server.state / "projects.json").write_text(json.dumps([{"id": n} for n in range(600)]))
    assert len(server.json("/api/sessions")["projects"]) == 500


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


def test_a_database_whose_fault_cannot_even_be_worded_is_an_error(server):
    """The message of SQLite quotes the spoiled text, which Python may fail to decode."""
    path = server.home / "state.db"
    make_database(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(id, source", b"(id) \xffurce"))
    assert path.read_bytes() != whole
    assert check(server, "state_db")["status"] == "error"
    stream = Events(server)
    assert stream.status()["checks"]["state_db"]["status"] == "error" and stream.status()


def test_odd_values_in_the_database_reach_nobody_as_a_crash(server):
    make_database(server.home / "state.db", title=b"\xff\xfe", model=b"\0blob", started_at="soon")
    write_session(server, "odd", title=["list"], updated_at={"no": "time"}, message_count="many")
    assert len(server.json("/api/sessions")["sessions"]) == 2


def test_numbers_that_json_does_not_have_are_left_out(server):
    path = server.state / "sessions" / "odd.json"
    path.write_text('{"session_id": "odd", "updated_at": 1e999, "created_at": NaN, "message_count":'
                    ' %s}' % ("1" * 5000))
    make_database(server.home / "state.db", message_count=9e999)
    text = server.get("/api/sessions")[2].decode()
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(name))["sessions"]
    odd = next(row for row in rows if row["session_id"] == "odd")
    assert (odd["updated_at"], odd["created_at"], odd["message_count"]) == (None, None, None)


def test_endless_digits_cost_no_time(server):
    """On Pythons without a limit, reading a number takes the square of its length."""
    (server.state / "sessions" / "long.json").write_text(
        '{"session_id": "long", "updated_at": %s}' % ("9" * (8 << 20)))
    assert server.get("/api/sessions", timeout=20)[0] == 200


def test_long_texts_are_cut(server):
    write_session(server, "one", title="x" * 100000, other="y" * 100000)
    make_database(server.home / "state.db", title="z" * 100000)
    assert {len(row["title"]) for row in server.json("/api/sessions")["sessions"]} == {2000}


def test_a_file_that_is_too_large_is_an_error(server):
    with (server.state / "projects.json").open("wb") as file:
        file.truncate(17 << 20)
    assert check(server, "projects")["why"] == "too large"


@pytest.mark.parametrize("name", [b"a b?c#d%41", "h\u00e9rmes".encode(), b"raw\xff"])
def test_the_folder_may_have_any_name(tmp_path, start, name):
    home = os.fsdecode(os.path.join(os.fsencode(str(tmp_path)), name))
    os.mkdir(home)
    make_database(os.path.join(home, "state.db"))
    server = start(HERMES_HOME=home)
    assert check(server, "state_db")["count"] == 1


@pytest.mark.parametrize("home", ["/{}", "hermes", "~/hermes", " {} "])
def test_the_folder_may_be_given_in_any_way(tmp_path, start, home):
    (tmp_path / "hermes").mkdir()
    make_database(tmp_path / "hermes" / "state.db")
    code = "import os, server; os.chdir(%r); server.main()" % str(tmp_path)
    server = start(code=code, HERMES_HOME=home.format(tmp_path / "hermes"))
    assert check(server, "state_db")["count"] == 1


def test_a_database_in_a_folder_that_cannot_be_written_is_read(server):
    make_database(server.home / "state.db", wal=True)
    server.home.chmod(0o555)
    reader = Running(server.folder, under=AS_ANYBODY)
    try:
        assert check(reader, "state_db")["count"] == 1
        assert os.listdir(str(server.home)) == ["state.db"]
    finally:
        server.home.chmod(0o755)
        reader.end()


def test_files_that_may_not_be_read_are_errors_until_they_may(server):
    make_database(server.home / "state.db")
    write_session(server, "one", title="One")
    paths = [server.home / "state.db", server.state / "sessions" / "one.json"]
    reader = Running(server.folder, under=AS_ANYBODY)
    try:
        for path in paths:
            path.chmod(0)
        told = reader.json("/health?deep=1")["checks"]
        assert told["sessions"]["status"] == told["state_db"]["status"] == "error"
        for path in paths:
            path.chmod(0o600)
        told = reader.json("/health?deep=1")["checks"]
        assert told["sessions"]["status"] == told["state_db"]["status"] == "ok"
    finally:
        reader.end()


def test_a_python_without_sqlite_says_so_in_the_check(tmp_path, start):
    (tmp_path / "hermes").mkdir()
    make_database(tmp_path / "hermes" / "state.db")
    server = start(code="import server, sys; sys.modules['sqlite3'] = None; server.main()")
    assert check(server, "state_db")["status"] == "error"
    assert server.get("/api/sessions")[0] == 200


def test_only_what_is_told_is_fetched_from_the_database(server):
    make_database(server.home / "state.db", system_prompt=b"\xff" * (60 << 20))
    assert check(server, "state_db")["count"] == 1
    with open("/proc/%d/status" % server.process.pid) as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    assert peak < 60 << 10


def test_folders_and_locks_in_the_way_are_errors_and_not_hangs(server):
    (server.state / "projects.json").mkdir()
    (server.state / "sessions" / "folder.json").mkdir()
    make_database(server.home / "state.db")
    with contextlib.closing(sqlite3.connect(str(server.home / "state.db"))) as db:
        db.execute("BEGIN EXCLUSIVE")
        checks = server.json("/health?deep=1")["checks"]
    assert {checks[name]["status"] for name in ("projects", "sessions", "state_db")} == {"error"}
    assert check(server, "state_db")["status"] == "ok"


def test_few_free_descriptors_are_an_error_in_the_check(start):
    server = start(code="import os, resource, server\n"
                   "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
                   "held = [os.dup(0) for _ in range(85)]; server.main()")
    found = check(server, "file_descriptors")
    assert found["status"] == "error" and 90 < found["open"] <= found["limit"] == 100
    assert found["why"] == "%d of 100 are open" % found["open"]
    assert server.get("/health")[0] == 200


def test_a_full_disk_is_an_error_in_the_check(start):
    server = start(code="import server; server.DISK_FREE = 1 << 80; server.main()")
    server.state.mkdir()
    found = check(server, "disk")
    assert found["status"] == "error" and found["why"].endswith(" MB are left")


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
