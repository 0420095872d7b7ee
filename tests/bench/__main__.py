"""The bench: bash tests/bench/run.sh [--full] [--only NAME,...] [--json PATH] [--write]"""
import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import cases, costs, page, plot, readiness, starts, targets, trace, verdicts

MEASUREMENTS = {
    "starts": starts.measure_starts, "reference": starts.measure_reference,
    "lag": readiness.measure_lag, "wakes": readiness.measure_wakes,
    "failures": readiness.measure_failures,
    "verdicts": verdicts.measure_verdicts, "pythons": starts.measure_pythons,
    "dotenv": costs.measure_dotenv, "logs": costs.measure_logs, "check": costs.measure_check,
    "timeline": trace.measure_timeline, "crowd": starts.measure_crowd,
    "first": costs.measure_first}
FULL_ONLY = frozenset(["first"])
MACHINE = "Measured {when}, {system} on {machine}, {cpus} CPUs, Python {python}, load {load:.1f}."
DOCS = cases.ROOT / "docs"


def parse():
    parser = argparse.ArgumentParser(
        usage="bash tests/bench/run.sh [options]", description="Measure this launcher beside others.")
    parser.add_argument("--full", action="store_true", help="more rounds, 200 instances, installs")
    parser.add_argument("--only", metavar="NAME,...", type=lambda text: text.split(","),
                        help="of: " + ", ".join(MEASUREMENTS))
    parser.add_argument("--json", metavar="PATH", help="where the figures go; by default figures.json"
                        " among what the bench has installed")
    parser.add_argument("--write", action="store_true",
                        help="renew the tables of docs/performance.md, and its plots")
    parser.add_argument("--root", metavar="PATH", default=cases.ROOT,
                        help="measure the launcher and the server of another checkout")
    parser.add_argument("--tools", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(MEASUREMENTS)
    return parser.error("no such measurement: " + ", ".join(unknown)) if unknown else options


def find_pythons(tools):
    """{version: interpreter} of the bare environments that run.sh has made."""
    return {path.name[len("plain-"):]: str(path / "bin" / "python3")
            for path in sorted(tools.glob("plain-*"), key=lambda path: (len(path.name), path.name))}


def machine():
    """On what it was measured."""
    return {"when": time.strftime("%Y-%m-%d"), "system": platform.system(),
            "machine": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
            "python": platform.python_version()}


def draw(tables):
    """{name: SVG} of the plots that these tables have the figures for."""
    drawn = {}
    if "starts" in tables:
        figures = tables["starts"].figures
        returns = {way.name for way in cases.WAYS if way.returns}
        ours = {way.name for way in cases.LAUNCHER}
        rows = [(name, row["healthy"], row["returned"] if name in returns else None, name in ours)
                for name, row in figures.items() if row["healthy"]]
        rows.sort(key=lambda row: row[1])
        drawn["starts.svg"] = plot.draw_starts(rows, figures[cases.BARE.name]["healthy"])
    if tables.get("timeline") and tables["timeline"].figures:
        drawn["timeline.svg"] = plot.draw_timeline(tables["timeline"].figures)
    return drawn


def measure(options, lab):
    """Tables (dict) of all that was asked for, each shown as soon as it is there."""
    tables = {}
    for name, function in MEASUREMENTS.items():
        if name in options.only if options.only else options.full or name not in FULL_ONLY:
            begin = time.monotonic()
            tables[name] = function(lab, not options.full)
            print(page.plain(tables[name]), flush=True)
            print("  (%.0f s)\n" % (time.monotonic() - begin), file=sys.stderr)
    judged = targets.judge(tables)
    if judged.rows:
        print(page.plain(judged), flush=True)
    return tables if options.only else dict(tables, targets=judged)


def measure_server(options, folder):
    """Run the server's own bench, where there is one; what it measured, or None."""
    script, found = cases.HERE / "server.py", Path(folder, "server.json")
    if options.only or not script.exists():
        return None
    words = ["--full"] if options.full else []
    subprocess.call([sys.executable, str(script), "--json", str(found), *words])
    return json.loads(found.read_text()) if found.exists() else None


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that everything is ended
    folder = tempfile.mkdtemp(prefix="bench-")
    try:
        pythons = find_pythons(options.tools)
        lab = cases.Lab(folder, pythons["%d.%d" % sys.version_info[:2]], options.tools, options.root)
        lab.pythons = pythons
        tables = measure(options, lab)
        result = {"machine": machine(), "full": options.full, "server": measure_server(options, folder),
                  **{name: table.figures for name, table in tables.items()}}
        path = Path(options.json or options.tools / "figures.json")
        path.write_text(json.dumps(result, indent=1) + "\n")
        if options.write:
            for name, svg in draw(tables).items():
                (DOCS / name).write_text(svg)
            contents = {name: page.markdown(table) for name, table in tables.items()}
            contents["machine"] = MACHINE.format(**result["machine"])
            path = DOCS / "performance.md"
            path.write_text(page.fill(path.read_text(), contents))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
