"""docs/supervisor.md as the tests read it: its files, its commands, its tables."""
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "supervisor.md"
FENCE = re.compile(r"^```(\w+)[ ]+(\S.*?)[ ]*\n(.*?)^```[ ]*$", re.M | re.S)


def blocks():
    """Every named fenced block: its text by its name."""
    found = {}
    for language, name, text in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        assert name not in found, "{} stands twice on {}".format(name, PAGE.name)
        found[name] = text
    return found


def block(name):
    """The content of the block whose info string is a language and this name."""
    found = blocks()
    assert name in found, "{} is not on {}; it has {}".format(name, PAGE.name, ", ".join(found))
    return found[name]


def commands(name):
    """The commands of a block, one per line, without comments."""
    lines = (line.strip() for line in block(name).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def fill(text, **values):
    """The text with each @NAME@ replaced; a place without a value is an error."""
    for name, value in values.items():
        text = text.replace("@{}@".format(name), str(value))
    left = sorted(set(re.findall(r"@[A-Z]+@", text)))
    assert not left, "nothing is said for {}".format(", ".join(left))
    return text


def table(heading):
    """The table that comes first below a heading: {first cell: {column: cell}}."""
    _, found, below = PAGE.read_text(encoding="utf-8").partition("\n{}\n".format(heading))
    assert found, "there is no heading {}".format(heading)
    lines = re.search(r"(?:^\|.*\|[ ]*\n)+", below, re.M).group().splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:])) for row in rows[2:]}


def printed_steps(text, mark="#"):
    """Where the first comments of a printed file want it saved, and the commands to run then."""
    lines = []
    for line in text.splitlines():
        if not line.startswith(mark):
            break
        lines.append(line[len(mark):].strip())
    place = re.search(r"save this as (\S+), then$", lines[0]).group(1)
    return place, [line for line in lines[1:] if not line.startswith("It is well")]
