"""How soon the launcher says what is so: ready, dead, taken."""
import os
import select

from bench import cases
from bench.page import Table, ms
from bench.timing import await_health, median, now

DELAYS = (0, 0.05, 0.3, 1, 3)


def watch(lab, case, **env):
    """One detached start, to its end: (when it spoke on stdout, the Running)."""
    reader, writer = os.pipe()
    try:
        running = case.launch(cases.launcher("--detach")(lab, case), env, stdout=writer)
        os.close(writer)
        select.select([reader], [], [], 60)
        spoke = now()
        running.await_return(60)
        return spoke, running
    finally:
        os.close(reader)


def noted(case, event):
    """When the server noted an event last."""
    with open(case.path("notes")) as file:
        return [float(line.split()[1]) for line in file if line.startswith(event)][-1]


def measure_lag(lab, quick):
    """From the server's listen to the launcher's "ready", by the time that the server takes."""
    case = lab.case()
    case.env["TINY_NOTES"] = case.path("notes")
    figures, rows = {}, []
    for delay in DELAYS:
        lags, backs, cpus = [], [], []
        for _ in range((8 if delay < 1 else 2 if delay < 3 else 1) * (1 if quick else 4)):
            with case:
                spoke, running = watch(lab, case, TINY_DELAY=delay)
                listens = noted(case, "listens")
            lags.append(spoke - listens)
            backs.append(running.returned - listens)
            cpus.append(running.cpu)
        figures[str(delay)] = row = {"lag": median(lags), "returned": median(backs),
                                     "cpu": median(cpus), "runs": len(lags)}
        rows.append(["%g s" % delay, ms(row["lag"]), ms(row["returned"]), ms(row["cpu"])])
    return Table("lag", "From the server's listen to the launcher's word", [
        "the server takes", "says ready after", "returns after", "the launcher's CPU"],
        rows, figures)


WAKES = """
import _socket, sys, time
begin, elapsed = time.monotonic(), 0.0
while elapsed < float(sys.argv[1]):
    time.sleep(max(0.001, elapsed * 0.02))
    if "ask" in sys.argv:
        stream = _socket.socket()
        stream.connect_ex(("127.0.0.1", 9))
        stream.close()
    elapsed = time.monotonic() - begin
"""


def measure_wakes(lab, quick):
    """CPU that no wait of 3 s can go below that looks up every millisecond, later every 2 %."""
    case, figures = lab.case(), {}
    kinds = {"only to look up": [], "and to be refused a connection": ["ask"]}
    for name, words in dict({"": []}, **kinds).items():
        cpus = []
        for _ in range(2 if quick else 5):
            running = case.launch([lab.python, "-I", "-S", "-c", WAKES, 3 if name else 0, *words])
            running.await_return()
            cpus.append(running.cpu)
        figures[name] = median(cpus)
    figures = {name: figures[name] - figures[""] for name in kinds}
    return Table("wakes", "CPU of a wait of 3 s, at the least", ["", "CPU"], [
        [name, ms(cpu)] for name, cpu in figures.items()], figures)


def measure_failures(lab, quick):
    """From the server's death, and from the start on a taken port, to the launcher's return."""
    case, rounds = lab.case(), 10 if quick else 40
    case.env["TINY_NOTES"] = case.path("notes")
    deaths, refusals = [], []
    for _ in range(rounds):
        with case:
            _, running = watch(lab, case, TINY_DIES=1)
            deaths += [running.returned - noted(case, "dies")] if running.code == 1 else []
        with case:
            await_health(case.port, case.launch([lab.python, "tiny.py"]), 10, False)
            _, running = watch(lab, case)
            refusals += [running.returned - running.begin] if running.code == 69 else []
    figures = {"death": median(deaths), "taken": median(refusals), "runs": rounds}
    counts = ["%d of %d" % (len(found), rounds) for found in (deaths, refusals)]
    return Table("failures", "From the failure to the launcher's word", [
        "", "after", "right verdicts"], [
        ["the server dies at once: from its death", ms(figures["death"]), counts[0]],
        ["the port is taken: from the command", ms(figures["taken"]), counts[1]]], figures)
