"""What the tests of the supervisors share, and the two tables that they leave behind.

A test records what it proved, one cell at a time:

    record_cell("runit", "10 kills", ok)        # ok: True, False, or a short text
    with proving("runit", "10 kills"):          # yes if the block passes, NO if it fails
        ...

The column tells which table it is. A cell that several tests record holds only if all agree.
"""
import contextlib

import pytest

pytest.register_assert_rewrite("page", "lab", "systemd_lab")
from systemd_lab import systemd  # noqa: E402,F401 (one container for all files)

TABLES = {
    "supervisor": ("detected", "tracked pid", "10 kills", "no orphan", "stops clean",
                   "permanent error stops"),
    "counter-case": ("prompt returned", "detached", "line printed")}
CELLS = {kind: {} for kind in TABLES}


def note(row, column, ok):
    """Keep one cell; NO outweighs everything else that was said of it."""
    kind = next((kind for kind, columns in TABLES.items() if column in columns), None)
    assert kind, "{!r} is no column of {}".format(column, TABLES)
    said = ok if isinstance(ok, str) else "yes" if ok else "NO"
    cells = CELLS[kind].setdefault(row, {})
    cells[column] = "NO" if "NO" in (said, cells.get(column)) else said


def lines_of(kind):
    """One table as lines of Markdown."""
    columns = TABLES[kind]
    rows = [(kind,) + columns, ("---",) * (len(columns) + 1)]
    rows += [(row,) + tuple(cells.get(column, "–") for column in columns)
             for row, cells in CELLS[kind].items()]
    return ["| {} |".format(" | ".join(row)) for row in rows]


@pytest.fixture(scope="session")
def record_cell():
    """record_cell(row, column, ok): a cell of the table at the end of the run."""
    return note


@pytest.fixture(scope="session")
def proving():
    """proving(row, column, ...): these cells hold if the block passes."""
    @contextlib.contextmanager
    def prove(row, *columns):
        try:
            yield
        except BaseException:
            for column in columns:
                note(row, column, False)
            raise
        for column in columns:
            note(row, column, True)
    return prove


@pytest.fixture(scope="session")
def recorded_cells():
    """{"supervisor": {row: {column: text}}, "counter-case": ...} so far."""
    return CELLS


def pytest_collection_modifyitems(items):
    """The comparison with the page's tables comes after all that fills them."""
    items.sort(key=lambda item: "recorded_cells" in getattr(item, "fixturenames", ()))


def pytest_terminal_summary(terminalreporter):
    for kind, rows in CELLS.items():
        if rows:
            terminalreporter.section("proved: each {}".format(kind))
            for line in lines_of(kind):
                terminalreporter.write_line(line)
