"""docs/vendoring.md as the tests read it: the files and the commands of its examples."""
import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vendoring.md"
FENCE = re.compile(r"^( *)```\w+[ ]+(\S+)[ ]*\n(.*?)^ *```[ ]*$", re.M | re.S)


def text():
    return PAGE.read_text(encoding="utf-8")


def blocks():
    """The content of every fenced block by its name, which is EXAMPLE/FILE."""
    found = {}
    for _, name, content in FENCE.findall(text()):
        assert name not in found, "{} stands twice on {}".format(name, PAGE.name)
        found[name] = textwrap.dedent(content)
    return found


def block(name):
    found = blocks()
    assert name in found, "{} is not on {}; it has {}".format(name, PAGE.name, ", ".join(found))
    return found[name]


def files(example):
    """Files of an example by name, the commands (language sh) left out."""
    return {name.partition("/")[2]: content for name, content in blocks().items()
            if name.partition("/")[0] == example and "." in name.partition("/")[2]}


def table(heading):
    """The rows below a heading, each a list of cells without back-ticks around them."""
    _, found, below = text().partition("\n{}\n".format(heading))
    assert found, "there is no heading {}".format(heading)
    lines = re.search(r"(?:^\|.*\|[ ]*\n)+", below, re.M).group().splitlines()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in lines[:1] + lines[2:]]
