"""Tables: on the terminal, in JSON, and between the markers of docs/performance.md."""
import re
from collections import namedtuple

Table = namedtuple("Table", "name title head rows figures")
Table.__doc__ = """What one measurement found. name: of its marker; head and rows: texts;
figures: the same as numbers (seconds, bytes), for JSON and for the targets."""


def ms(seconds, digits=1):
    """Seconds as a text in milliseconds; a dash for what was not seen."""
    return "–" if seconds is None else "%.*f ms" % (digits, seconds * 1000)


def times(ratio):
    return "–" if ratio is None else "%.2f" % ratio


def mib(size):
    return "–" if size is None else "0" if size < 1 << 14 else "%.1f MiB" % (size / (1 << 20))


def plain(table):
    """A Table as aligned lines for a terminal."""
    rows = [table.head] + table.rows
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]

    def line(row):
        cells = [text.ljust(width) if column == 0 else text.rjust(width)
                 for column, (text, width) in enumerate(zip(row, widths))]
        return "  ".join(cells).rstrip()
    return "\n".join([table.title, ""] + ["  " + line(row) for row in rows]) + "\n"


def markdown(table):
    """A Table as GitHub reads it."""
    def line(cells):
        return "| %s |" % " | ".join(cell.replace("|", "\\|") for cell in cells)
    rule = "|".join(["", "---"] + ["---:"] * (len(table.head) - 1) + [""])
    return "\n".join([line(table.head), rule] + [line(row) for row in table.rows])


def fill(text, contents):
    """The page with new contents (dict of str) between <!-- bench:NAME --> and <!-- end -->."""
    def renew(match):
        content = contents.get(match.group(2))
        return match.group(0) if content is None else "%s\n%s\n%s" % (
            match.group(1), content, match.group(4))
    return re.sub(r"(<!-- bench:(\w+) -->)\n(.*?)(<!-- end -->)", renew, text, flags=re.DOTALL)


def markers(text):
    return re.findall(r"<!-- bench:(\w+) -->", text)
