"""What must not grow: with the lines of .env, with the size of the log, with the requirements."""
import json
import os
import random
import shutil
import subprocess
import zipfile

from bench import cases
from bench.page import Table, ms
from bench.timing import median


def time_commands(lab, jobs, rounds):
    """Medians (dict) of the seconds that commands {key: (Case, words)} take, interleaved."""
    found = {key: [] for key in jobs}
    for number in range(-1, rounds):
        for key in random.sample(list(jobs), len(jobs)):
            case, words = jobs[key]
            running = case.launch(["bash", "start.sh", case.port, *words])
            if running.await_return(60) != 0:
                raise SystemExit("bench: %s ended with %s" % (" ".join(words), running.code))
            found[key] += [running.returned - running.begin] if number >= 0 else []
    return {key: median(values) for key, values in found.items()}


def measure_dotenv(lab, quick):
    """--print-plan reads .env as a start does, and starts nothing.

    Few of the lines are new names: the kernel takes no more than some megabytes of environment.
    """
    jobs = {}
    for count in (10, 1000, 100000):
        case = lab.case()
        case.write(".env", "".join("# line %d\nexport NAME_%d = 'some value'  # why\n" % (
            number, number % 1000) for number in range(count // 2)))
        jobs[str(count)] = case, ["--print-plan"]
    figures = time_commands(lab, jobs, 5 if quick else 20)
    least = figures["10"]
    rows = [[count, ms(seconds), ms(seconds - least)] for count, seconds in figures.items()]
    return Table("dotenv", "Lines of .env", ["lines", "--print-plan", "more than 10 lines"],
                 rows, figures)


def measure_logs(lab, quick):
    """--logs and --status beside an instance with a small log and one of 1 GiB."""
    jobs, used = {}, []
    try:
        for size in (1 << 10, 1 << 30):
            case = lab.case()
            used.append(case)
            if case.launch(cases.launcher("--detach")(lab, case)).await_return(60) != 0:
                raise SystemExit("bench: the instance for --logs does not start")
            log = case.path("state", "bootstrap-%d.log" % case.port)
            os.truncate(log, size)
            with open(log, "a") as file:
                file.write("a line like any other\n" * 100)
            for word in ("--logs", "--status"):
                jobs["%s %d" % (word, size)] = case, [word]
        figures = time_commands(lab, jobs, 8 if quick else 30)
    finally:
        for case in used:
            case.end()
    rows = [[word, ms(figures["%s %d" % (word, 1 << 10)]), ms(figures["%s %d" % (word, 1 << 30)])]
            for word in ("--logs", "--status")]
    return Table("logs", "Size of the log", ["", "1 KiB", "1 GiB"], rows, figures)


CHECK = """
import json, os, sys, time
import bootstrap
python = os.path.join(str(bootstrap.REPO_ROOT), ".venv", "bin", "python")
begin = time.perf_counter()
bootstrap.ensure_python_has_webui_deps(python)
middle = time.perf_counter()
bootstrap.ensure_python_has_webui_deps(python)
print(json.dumps([middle - begin, time.perf_counter() - middle, "subprocess" in sys.modules]))
"""


def wheel(folder, name):
    """A wheel of nothing but its own name (PEP 427)."""
    info = "%s-1.0.dist-info/" % name
    with zipfile.ZipFile(os.path.join(folder, name + "-1.0-py3-none-any.whl"), "w") as file:
        file.writestr(name + ".py", "")
        file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n" % name)
        file.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: bench\n"
                      "Root-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(info + "RECORD", "")


def require(lab, case, count):
    """Give a case a requirements file of local wheels, so that no network is timed."""
    os.makedirs(case.path("wheels"), exist_ok=True)
    names = ["benchwheel%d" % number for number in range(count)]
    for name in names:
        wheel(case.path("wheels"), name)
    case.write("requirements.txt", "--no-index\n--find-links %s\n%s\n" % (
        case.path("wheels"), "\n".join(names)))


def prefer(lab, case, program):
    """Put one more program on the PATH of a case."""
    os.makedirs(case.path("path"), exist_ok=True)
    os.symlink(lab.find(program), case.path("path", program))
    case.env["PATH"] = case.path("path") + os.pathsep + case.env["PATH"]


def measure_check(lab, quick):
    """The check of dependencies that are already there, in a new process each time."""
    figures, rows = {}, []
    for count in (1, 50, 300):
        case = lab.reference()
        shutil.copy(case.path("tiny.py"), case.path("server.py"))
        require(lab, case, count)
        if lab.find("uv"):
            prefer(lab, case, "uv")
        if case.launch(cases.launcher("--detach")(lab, case)).await_return(120) != 0:
            raise SystemExit("bench: %d requirements cannot be installed" % count)
        case.end()
        firsts, nexts, found = [], [], case.path("answer")
        for _ in range(5 if quick else 20):
            with open(found, "w") as out:
                if case.launch([lab.python, "-c", CHECK], {"PYTHONPATH": case.folder},
                               stdout=out).await_return(60) != 0:
                    raise SystemExit("bench: the check of %d requirements fails" % count)
            with open(found) as out:
                first, after, spawned = json.load(out)
            firsts.append(first)
            nexts.append(after)
        figures[str(count)] = {"first": median(firsts), "next": median(nexts), "spawned": spawned}
        rows.append([str(count), ms(median(firsts), 3), ms(median(nexts), 3),
                     "yes" if spawned else "no"])
    return Table("check", "Check of dependencies that are there", [
        "requirements", "first in a process", "once more", "runs a program"], rows, figures)


BY_HAND = ('"{python}" -m venv .venv && .venv/bin/python -m pip install -q --upgrade pip && '
           ".venv/bin/python -m pip install -q -r requirements.txt && exec .venv/bin/python tiny.py")
PACKAGES = "idna\nmarkupsafe\nitsdangerous\n"


def first_start(lab, case, command, warm):
    """Seconds from nothing to a healthy server with dependencies; None where it failed."""
    for name in ("home-cache",) if not warm else ():
        shutil.rmtree(case.path(name), ignore_errors=True)
    shutil.rmtree(case.path(".venv"), ignore_errors=True)
    case.write("requirements.txt", PACKAGES)
    return case.start(command, patience=240).healthy


def measure_first(lab, quick):
    """A first start with three small packages; cold caches are empty folders of the case.

    The Python that each begins with has pip, and no package.
    """
    figures, rows, python = {}, [], os.path.join(lab.folder, "base", "bin", "python3")
    subprocess.run([lab.python, "-m", "venv", os.path.join(lab.folder, "base")], check=True)
    for name, uses_uv, command in (
            ("venv, pip upgrade, pip install", False, None), ("start.sh with pip", False, launcher),
            ("start.sh with uv", True, launcher)):
        if uses_uv and not lab.find("uv"):
            rows.append([name, "uv is not installed", ""])
            continue
        case = lab.case(python, **package_settings())
        case.env.update(PIP_CACHE_DIR=case.path("home-cache", "pip"),
                        UV_CACHE_DIR=case.path("home-cache", "uv"))
        if uses_uv:
            prefer(lab, case, "uv")
        words = command(case) if command else ["sh", "-c", BY_HAND.format(python=python)]
        cold = first_start(lab, case, words, False)
        warm = median(first_start(lab, case, words, True) for _ in range(3))
        figures[name] = {"cold": cold, "warm": warm}
        rows.append([name, *("–" if seconds is None else "%.2f s" % seconds
                             for seconds in (cold, warm))])
    return Table("first", "First start with three small packages", [
        "", "empty cache", "filled cache"], rows, figures)


def launcher(case):
    return ["bash", "start.sh", case.port, "--foreground"]


def package_settings():
    """What this machine says about where packages are and whom to trust."""
    return {name: value for name, value in os.environ.items()
            if name.startswith(("PIP_", "UV_", "SSL_")) or name.lower().endswith("_proxy")}
