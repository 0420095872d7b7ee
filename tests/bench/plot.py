"""Two plots in SVG, written by hand: they follow the reader's light or dark scheme."""
import math
from html import escape

STYLE = """<style>
svg{font:13px system-ui,sans-serif;background:#fff}text{fill:#1d1f21}.dim{fill:#6a7076}
.rule{stroke:#e3e5e8}.ours{fill:#1f7350}.peer{fill:#7a828a}.back{fill:#fff;stroke-width:2}
.back.ours{stroke:#1f7350}.back.peer{stroke:#7a828a}.link{stroke:#b9bec4;stroke-width:2}
.head{font-weight:600}.c0{fill:#9fb8ad}.c1{fill:#5f9c82}.c2{fill:#1f7350}.c3{fill:#8f7fb8}
.c4{fill:#6a58a0}.c5{fill:#d9dde1}.c6{fill:#c7823b}.s0{fill:#8fb1d3}.s1{fill:#3f7cb8}
@media(prefers-color-scheme:dark){svg{background:#0f1114}text{fill:#e8e6e3}.dim{fill:#9a9ea5}
.rule{stroke:#2b2e33}.ours{fill:#6ccb9f}.peer{fill:#8d949c}.back{fill:#0f1114}
.back.ours{stroke:#6ccb9f}.back.peer{stroke:#8d949c}.link{stroke:#4a4f56}.c5{fill:#3a3f45}}
</style>"""


def document(width, height, title, parts):
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
        'role="img">'.format(width, height), "<title>%s</title>" % escape(title), STYLE,
        *parts, "</svg>"]) + "\n"


def text(x, y, words, style="", anchor="start"):
    return '<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>' % (
        x, y, style, anchor, escape(words))


def ticks(low, high):
    """Round numbers between two numbers, some for every power of ten."""
    digits = (1, 2, 5) if high < low * 100 else (1, 3)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [n for n in (digit * 10.0 ** power for power in powers for digit in digits)
            if low <= n <= high]


def draw_starts(rows, base):
    """Dots on a logarithmic scale: rows of (name, healthy, returned or None, is ours), seconds."""
    left, right, top, step = 210, 640, 64, 26
    values = [value for row in rows for value in row[1:3] if value]
    low, high = min(values) * 0.8, max(values) * 1.25
    bottom = top + step * len(rows)

    def x(value):
        return left + (right - left) * math.log(value / low) / math.log(high / low)
    parts = [text(16, 26, "From the command to a healthy server", "head"),
             text(16, 46, "median; filled: healthy, ring: the command has returned", "dim")]
    for tick in ticks(low, high):
        label = "%g ms" % (tick * 1000) if tick < 1 else "%g s" % tick
        parts.append('<path class="rule" d="M%.1f %dV%d"/>' % (x(tick), top, bottom))
        parts.append(text(x(tick), bottom + 18, label, "dim", "middle"))
    for number, (name, healthy, returned, ours) in enumerate(rows):
        y, style = top + step * (number + 0.5), "ours" if ours else "peer"
        parts.append(text(16, y + 4, name, "head" if ours else ""))
        if returned:
            parts.append('<path class="link" d="M%.1f %.1fH%.1f"/>' % (x(healthy), y, x(returned)))
            parts.append('<circle class="back %s" cx="%.1f" cy="%.1f" r="5"/>' % (style, x(returned), y))
        parts.append('<circle class="%s" cx="%.1f" cy="%.1f" r="5"/>' % (style, x(healthy), y))
        parts.append(text(right + 76, y + 4, "%.0f ms" % (healthy * 1000), "", "end"))
        parts.append(text(right + 134, y + 4, "× %.2f" % (healthy / base), "dim", "end"))
    return document(right + 150, bottom + 34, "Time to a healthy server", parts)


def draw_timeline(modes):
    """Bars by process for each mode: {mode: [(lane, label, begin, end)]}, seconds."""
    left, right, y, parts = 110, 740, 24, []
    longest = max(row[3] for rows in modes.values() for row in rows)

    def x(value):
        return left + (right - left) * value / longest
    for mode, rows in modes.items():
        parts.append(text(16, y + 4, "A %s start, %.0f ms" % (mode, 1000 * max(
            row[3] for row in rows)), "head"))
        legend = y + 84
        for index, lane in enumerate(dict.fromkeys(row[0] for row in rows)):
            top = y + 16 + 28 * index
            parts.append(text(16, top + 15, lane, "dim"))
            for number, (_, label, begin, end) in enumerate(r for r in rows if r[0] == lane):
                style = "%s%d" % (lane[0] if lane[0] == "s" else "c", number)
                parts.append('<rect class="%s" x="%.1f" y="%d" width="%.1f" height="20"/>' % (
                    style, x(begin), top, max(x(end) - x(begin) - 1, 0.5)))
                parts.append('<rect class="%s" x="%d" y="%d" width="10" height="10"/>' % (
                    style, left + 330 * index, legend + 18 * number))
                parts.append(text(left + 330 * index + 16, legend + 9 + 18 * number, "%s, %.1f ms" % (
                    label, (end - begin) * 1000)))
        lanes = [row[0] for row in rows]
        y = legend + 18 * max(map(lanes.count, lanes)) + 26
    return document(right + 20, y - 14, "Where time goes in a start", parts)
