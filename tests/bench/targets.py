"""The targets, and whether the figures meet them."""
from bench import cases
from bench.page import Table
from bench.verdicts import READY

FOREGROUND, DETACHED = cases.FOREGROUND, cases.DETACHED


def at(tables, *path):
    """A figure by its path, or None where it was not measured."""
    value = tables.get(path[0]) and tables[path[0]].figures
    for key in path[1:]:
        value = value.get(key) if value else None
    return value


def slope(tables):
    small, large = (at(tables, "logs", "--logs %d" % size) for size in (1 << 10, 1 << 30))
    return large / small if small and large else None


def saving(tables):
    hand = at(tables, "first", "venv, pip upgrade, pip install", "cold")
    ours = at(tables, "first", "start.sh with uv", "cold")
    return hand / ours if hand and ours else None


def false_verdicts(tables):
    rows = [at(tables, "verdicts", name) for name in (FOREGROUND, DETACHED)]
    return sum(text == READY for row in rows for text in row.values()) if all(rows) else None


TARGETS = (     # what, how it is read from the tables, the limit, a factor and a unit to show
    ("foreground, healthy / bare", ("starts", FOREGROUND, "healthy_ratio"), 2.0, 1, ""),
    ("detached, healthy / bare", ("starts", DETACHED, "healthy_ratio"), 2.1, 1, ""),
    ("detached, returned / bare", ("starts", DETACHED, "returned_ratio"), 2.2, 1, ""),
    ("server.py, foreground / bare", ("reference", FOREGROUND, "healthy_ratio"), 2.0, 1, ""),
    ("server.py, detached, healthy / bare", ("reference", DETACHED, "healthy_ratio"), 2.1, 1, ""),
    ("server.py, detached, returned / bare", ("reference", DETACHED, "returned_ratio"), 2.2, 1, ""),
    ("ready after listen, server of 0 s", ("lag", "0", "lag"), 0.005, 1e3, " ms"),
    ("ready after listen, server of 1 s", ("lag", "1", "lag"), 0.02, 1e3, " ms"),
    ("ready after listen, server of 3 s", ("lag", "3", "lag"), 0.06, 1e3, " ms"),
    ("CPU of waiting for 3 s, beyond a start", lambda tables: at(tables, "lag", "3", "cpu") and
     at(tables, "lag", "3", "cpu") - at(tables, "lag", "0", "cpu"), 0.02, 1e3, " ms"),
    ("a death is told after", ("failures", "death"), 0.01, 1e3, " ms"),
    ("a taken port is told after", ("failures", "taken"), 0.03, 1e3, " ms"),
    ("says ready falsely", false_verdicts, 0, 1, ""),
    ("resident beside the server", ("starts", DETACHED, "beside"), 0, 1, " bytes"),
    ("200 instances at once, failed", lambda tables: (at(tables, "crowd", 200) or {}).get(
        DETACHED, (0, None))[1], 0, 1, ""),
    ("100,000 lines of .env", lambda tables: at(tables, "dotenv", "100000") and
     at(tables, "dotenv", "100000") - at(tables, "dotenv", "10"), 0.3, 1e3, " ms"),
    ("--logs, log of 1 GiB / 1 KiB", slope, 1.25, 1, ""),
    ("check of 300 requirements", ("check", "300", "first"), 0.0002, 1e3, " ms"),
    ("first start with uv, times faster than by hand", saving, None, 1, ""))


def judge(tables):
    """The Table of targets; what was not measured in this run is left out."""
    rows, figures = [], {}
    for name, path, limit, factor, unit in TARGETS:
        value = path(tables) if callable(path) else at(tables, *path)
        if value is None:
            continue
        met = value >= 10 if limit is None else value <= limit
        figures[name] = {"value": value, "limit": limit, "met": met}
        rows.append([name, "%.2f%s" % (value * factor, unit),
                     "at least 10" if limit is None else "%g%s" % (limit * factor, unit),
                     "yes" if met else "no"])
    return Table("targets", "The targets", ["", "measured", "at most", "met"], rows, figures)
