"""docs/supervisor.md and the tests agree: nothing stands there that is not proved here."""
import re
from pathlib import Path

import pytest

from page import PAGE, blocks, table

pytestmark = pytest.mark.once

SOURCES = sorted(Path(__file__).parent.glob("*.py"))


def test_every_block_of_the_page_has_a_name_and_a_test():
    fences = re.findall(r"^```(.*)$", PAGE.read_text(encoding="utf-8"), re.M)[::2]
    assert [fence for fence in fences if " " not in fence and fence != "text"] == []
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    # Some are asked for as what they belong to and a suffix, such as -reload.
    assert [name for name in blocks() if name not in code and
            '"{}"'.format(name.rpartition("-")[0]) not in code.lower()] == []


def test_the_page_names_every_variable_and_parent_that_counts(bootstrap):
    rows = " ".join(table("## What is detected"))
    for name in [name for name, _ in bootstrap.MARKERS] + list(bootstrap.PARENTS) + [
            "SYSTEMD_EXEC_PID"] + sorted(bootstrap.CONTAINER_INITS | bootstrap.WRAPPERS - {"sh"}):
        assert name in PAGE.read_text(encoding="utf-8") and (
            name in bootstrap.WRAPPERS or "`{}`".format(name) in rows), name


def test_the_page_lists_the_exit_codes_that_the_printed_unit_lists(app):
    text = app.run("--unit", "systemd").out
    codes = re.search(r"RestartPreventExitStatus=(.*)", text).group(1).split()
    rows = table("## Exit codes that must not restart")
    assert [code.strip("*") for code in rows if code.startswith("**")] == codes


@pytest.mark.parametrize("kind, heading", [
    ("supervisor", "### Each supervisor"), ("counter-case", "### Each counter-case")])
def test_the_tables_of_the_page_are_what_this_run_has_proved(recorded_cells, kind, heading):
    """Rows of supervisors that were not run, or are not installed, are left alone."""
    written, proved = table(heading), recorded_cells[kind]
    assert sorted(set(proved) - set(written)) == []
    wrong = ["{}, {}: the page says {!r}, this run {!r}".format(
        row, column, written[row].get(column), text) for row, cells in proved.items()
        for column, text in cells.items() if written[row].get(column) != text]
    assert wrong == []
