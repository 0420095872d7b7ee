"""The bench measures what it says; docs/performance.md names only what exists."""
import os
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from bench import cases, page, plot, starts, targets, timing, trace
from bench.__main__ import MEASUREMENTS
from harness import PYTHON, ROOT

PAGE = ROOT / "docs" / "performance.md"
TRACE = """\
10 100.000 execve("/bin/bash", ["bash", "start.sh", "8000"], 0x1 /* 5 vars */) = 0
10 100.002 execve("/bin/python3", ["python3", "-I", "-S", "bootstrap.py"], 0x1 /* 5 vars */) = 0
10 100.012 openat(AT_FDCWD, "/x/bootstrap.py", O_RDONLY) = 3
10 100.030 openat(AT_FDCWD, "/x/bootstrap.cfg", O_RDONLY|O_CLOEXEC) = 3
10 100.031 flock(3, LOCK_EX|LOCK_NB) = 0
10 100.040 vfork( <unfinished ...>
11 100.041 execve("/bin/python3", ["python3", "/x/tiny.py"], 0x1 /* 5 vars */ <unfinished ...>
10 100.042 <... vfork resumed>) = 11
11 100.050 openat(AT_FDCWD, "/x/tiny.py", O_RDONLY|O_CLOEXEC) = 3
11 100.060 listen(3, 128) = 0
10 100.064 exit_group(0) = ?
"""


@pytest.fixture
def case(tmp_path):
    """A case with the tiny server."""
    found = cases.Lab(str(tmp_path), PYTHON, tmp_path).case()
    yield found
    found.end()


def test_what_was_not_seen_counts_for_nothing():
    assert timing.median([None, 3, 1, 2, None]) == 2 and timing.median([None]) is None
    assert timing.ratio(None, 2) is None and timing.ratio(3, 2) == 1.5


def test_a_start_is_timed_weighed_and_ended(case):
    sample = case.start([PYTHON, "tiny.py"])
    assert sample.healthy > 0 and sample.cpu > 0 and sample.beside == 0 and sample.code is None
    assert case.processes() == [] and timing.ask_health(case.port) is None


def test_a_start_that_fails_is_no_start(case):
    sample = case.start([PYTHON, "tiny.py"], env={"TINY_DIES": "1"})
    assert sample.healthy is None and sample.code == 1


def test_the_launcher_stays_beside_nothing_and_a_shell_is_seen(case):
    command = cases.LAUNCHER[1].start(None, case)
    sample = case.start(command, returns=True)
    assert sample.returned and sample.healthy and sample.beside == 0 and sample.code == 0
    waiting = case.start(["sh", "-c", PYTHON + " tiny.py; true"])
    assert waiting.beside > 0


def test_a_summary_is_of_medians_and_of_ratios():
    samples = [timing.Sample(seconds, None, 0.5, 0, None) for seconds in (0.4, 0.2, 0.3)]
    row = starts.summary(samples, {"healthy": 0.1, "cpu": 0.2})
    assert (row["healthy"], row["failed"], row["returned_ratio"]) == (0.3, 0, None)
    assert round(row["healthy_ratio"], 6) == 3 and round(row["cpu_more"], 6) == 0.3


def test_a_page_gets_new_tables_between_its_markers_only():
    table = page.Table("a", "A", ["x", "y"], [["1|2", "3"]], {})
    text = "<!-- bench:a -->\nold\n<!-- end -->\nkept\n<!-- bench:b -->\nkept\n<!-- end -->\n"
    new = page.fill(text, {"a": page.markdown(table)})
    assert new == text.replace("old", "| x | y |\n|---|---:|\n| 1\\|2 | 3 |")
    assert page.plain(table).splitlines() == ["A", "", "  x    y", "  1|2  3"]


@pytest.mark.parametrize("detached, lengths", [
    pytest.param(True, [2, 10, 18, 1, 9, 20, 4, 9, 10], id="detached"),
    pytest.param(False, [2, 10, 18, 1, 10, 9, 10], id="foreground")])
def test_a_trace_becomes_milestones(detached, lengths):
    rows = trace.milestones(trace.read_events(TRACE), detached)
    assert [round((end - begin) * 1000) for _, _, begin, end in rows] == lengths


def test_plots_are_well_formed_whatever_is_drawn():
    rows = [("a & b <c>", 0.02, None, False), ("start.sh", 0.04, 0.05, True)]
    modes = {"detached": trace.milestones(trace.read_events(TRACE), True)}
    for svg in (plot.draw_starts(rows, 0.02), plot.draw_timeline(modes)):
        assert "prefers-color-scheme" in svg and "nan" not in svg
        xml.etree.ElementTree.fromstring(svg)


def test_only_what_was_measured_is_held_against_a_target():
    assert targets.judge({}).rows == []
    tables = {"failures": page.Table("", "", [], [], {"death": 0.02, "taken": 0.01})}
    assert [row[-1] for row in targets.judge(tables).rows] == ["no", "yes"]


def test_the_page_has_a_place_for_every_measurement():
    assert sorted(page.markers(PAGE.read_text(encoding="utf-8"))) == sorted(
        [*MEASUREMENTS, "targets", "machine"])


def test_the_page_names_only_what_exists():
    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / "docs" / name).exists(), name
    for name in re.findall(r"\b(?:tests|docs)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name
    usage = subprocess.run([sys.executable, "-m", "bench", "--help"], stdout=subprocess.PIPE,
                           env=dict(os.environ, PYTHONPATH=str(ROOT / "tests")), encoding="utf-8")
    for line in re.findall(r"^bash tests/bench/run.sh(.*?)(?:#|$)", text, re.MULTILINE):
        for option in re.findall(r"--\w+", line):
            assert option in usage.stdout, option
