"""How long a start takes, what it costs and what stays; by way, by Python, by number."""
import random
import sys
import threading

from bench import cases
from bench.page import Table, mib, ms, times
from bench.timing import await_health, median, now, ratio


def interleave(lab, jobs, rounds):
    """Run every job {key: (Way, Case, rounds between two runs)}; {key: [Sample]}, warm-up left out.

    All jobs of a round run in random order, so that what disturbs the machine disturbs them alike.
    A job that fails is left out from there on.
    """
    samples, broken = {key: [] for key in jobs}, set()
    for number in range(-1, rounds):
        keys = [key for key, job in jobs.items() if number < 0 or number % job[2] == 0]
        for key in random.sample(keys, len(keys)):
            way, case, _ = jobs[key]
            if key in broken:
                continue
            sample = case.start(way.start(lab, case), way.returns, patience=15)
            samples[key] += [sample] if number >= 0 else []
            if sample.healthy is None or way.returns and sample.code != 0:
                print("bench: %s failed: %s" % (key, sample), file=sys.stderr)
                broken.add(key)
    return samples


def summary(samples, base):
    """Medians (dict) of some Samples, the ratios to the bare server's, and how many failed."""
    healthy = median(sample.healthy for sample in samples)
    returned = median(sample.returned for sample in samples)
    cpu = median(sample.cpu for sample in samples)
    return {"healthy": healthy, "returned": returned, "cpu": cpu,
            "beside": median(sample.beside for sample in samples), "runs": len(samples),
            "failed": sum(sample.healthy is None for sample in samples),
            "healthy_ratio": ratio(healthy, base and base["healthy"]),
            "returned_ratio": ratio(returned, base and base["healthy"]),
            "cpu_more": cpu - base["cpu"] if base and cpu is not None else 0.0}


def measure_starts(lab, quick):
    """Every way to start the tiny server, in one interleaved run."""
    present = [way for way in cases.WAYS if not lab.missing(way)]
    jobs = {way.name: (way, lab.case(), 6 if way.slow else 1) for way in present}
    samples = interleave(lab, jobs, 8 if quick else 60)
    base = summary(samples[cases.BARE.name], None)
    figures = {name: summary(found, base) for name, found in samples.items()}
    rows = []
    for way in cases.WAYS:
        if lab.missing(way):
            rows.append([way.name, lab.missing(way), "", "", "", "", ""])
            continue
        row = figures[way.name]
        back = (ms(row["returned"]), times(row["returned_ratio"])) if way.returns else ("–", "–")
        rows.append([way.name, ms(row["healthy"]), times(row["healthy_ratio"]), *back,
                     ms(row["cpu_more"]), mib(row["beside"])])
    return Table("starts", "From the command to a healthy server", [
        "start", "healthy", "ratio", "returned", "ratio", "CPU more", "resident beside"],
        rows, figures)


def measure_reference(lab, quick):
    """The same for this repository's own server.py."""
    ways = {
        cases.BARE.name: cases.BARE._replace(
            start=lambda lab, case: cases.bare(lab, case, "server.py")),
        **{way.name: way for way in cases.LAUNCHER}}
    jobs = {name: (way, lab.reference(), 1) for name, way in ways.items()}
    samples = interleave(lab, jobs, 8 if quick else 60)
    base = summary(samples[cases.BARE.name], None)
    figures = {name: summary(found, base) for name, found in samples.items()}
    rows = [[name, ms(row["healthy"]), times(row["healthy_ratio"]),
             *((ms(row["returned"]), times(row["returned_ratio"])) if ways[name].returns
               else ("–", "–"))] for name, row in figures.items()]
    return Table("reference", "The same with this repository's server.py", [
        "start", "healthy", "ratio", "returned", "ratio"], rows, figures)


def measure_pythons(lab, quick):
    """Both modes under other Pythons, each beside its own bare server."""
    ways = (cases.BARE,) + cases.LAUNCHER
    jobs = {}
    versions = list(lab.pythons)
    if quick and len(versions) > 3:
        versions = [versions[0], "%d.%d" % sys.version_info[:2], versions[-1]]
    for version in versions:
        python = lab.pythons[version]
        for way in ways:
            own = way._replace(start=start_with(way, python))
            jobs[version, way.name] = own, lab.case(python), 1
    samples = interleave(lab, jobs, 5 if quick else 30)
    figures, rows = {}, []
    for version in versions:
        base = summary(samples[version, cases.BARE.name], None)
        found = [summary(samples[version, way.name], base) for way in ways]
        figures[version] = dict(zip((way.name for way in ways), found))
        rows.append(["Python " + version, ms(base["healthy"])] + [
            text for row in found[1:] for text in (ms(row["healthy"]), times(row["healthy_ratio"]))])
    return Table("pythons", "By Python, from the command to a healthy server", [
        "", "bare", "foreground", "ratio", "detached", "ratio"], rows, figures)


def start_with(way, python):
    """way.start for another interpreter."""
    def start(lab, case):
        command = way.start(lab, case)
        return [python if word == lab.python else word for word in command]
    return start


def measure_crowd(lab, quick):
    """Many instances at once: each launcher has its own port and its own folder."""
    figures, rows = {}, []
    for count in (1, 10, 50) if quick else (1, 10, 50, 200):
        found = {way.name: start_many(lab, way, count)
                 for way in (cases.BARE, cases.LAUNCHER[1])}
        figures[count] = found
        seconds, failed = found[cases.DETACHED]
        rows.append([str(count), ms(found[cases.BARE.name][0] / count), ms(seconds / count),
                     times(seconds / found[cases.BARE.name][0]), str(failed)])
    return Table("crowd", "Many instances at once: time until all are healthy, for each", [
        "instances", "bare", "start.sh", "ratio", "failed"], rows, figures)


def start_many(lab, way, count):
    """(seconds until all are healthy, how many failed) of this many starts at once."""
    folder = [lab.case() for _ in range(count)]
    samples = []
    begin = now()
    try:
        running = [case.launch(way.start(lab, case)) for case in folder]
        threads = [threading.Thread(target=settle, args=(case, one, way, samples))
                   for case, one in zip(folder, running)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return now() - begin, count - sum(samples)
    finally:
        for case in folder:
            case.end()


def settle(case, running, way, samples):
    """Note whether one of many starts came to a healthy server."""
    if way.returns:
        running.await_return(120)
    samples.append(await_health(case.port, running, 120, way.returns, 0.01) is not None)
