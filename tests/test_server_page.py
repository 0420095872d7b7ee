"""The page at / in a real browser: what it shows, and that it comes back by itself."""
import base64
import json
import os
import signal

import pytest

from server_support import BROWSER, Browser, start, until  # noqa: F401

pytestmark = [pytest.mark.once,
              pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")]
WEDGED = ("import server, signal, threading\n"
          "signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait()); server.main()")


@pytest.fixture
def browse(tmp_path):
    """Opens browsers that end with the test; none may report a fault of the page."""
    opened = []

    def launch(server, **options):
        opened.append(Browser(tmp_path / ("browser%d" % len(opened)), **options))
        opened[-1].open("http://127.0.0.1:%d/" % server.port)
        return opened[-1]
    yield launch
    for browser in opened:
        browser.end()
    assert not [fault for browser in opened for fault in browser.faults]


def write_session(server, name, **fields):
    (server.state / "sessions").mkdir(parents=True, exist_ok=True)
    (server.state / "sessions" / (name + ".json")).write_text(json.dumps(
        {"session_id": name, **fields}), encoding="utf-8")


def test_it_shows_what_runs_here(start, browse):
    server = start()
    write_session(server, "one", title="Plan", messages=[{}])
    browser = browse(server)
    browser.sees("Healthy")
    for text in ("answers in", "Up for", "Watched by", "Open streams", "File descriptors",
                 "stream lock", "live"):
        browser.sees(text)
    assert browser.run("document.getElementById('count').textContent") == "1"
    assert browser.run("document.title") == "Hermes Web UI"
    until(lambda: "M" in (browser.run("document.getElementById('line').getAttribute('d')") or ""))


def test_it_says_why_it_is_not_well_and_that_it_is_well_again(start, browse):
    server = start()
    server.state.mkdir()
    (server.state / "projects.json").write_text("{")
    browser = browse(server)
    browser.sees("Not well")
    browser.sees("projects: not a JSON list.")
    assert browser.run("document.title").startswith("Not well")
    (server.state / "projects.json").write_text("[]")
    browser.sees("Healthy")


def test_it_shows_a_wedged_accept_loop(start, browse):
    server = start(code=WEDGED)
    browser = browse(server)
    browser.sees("Healthy")
    server.process.send_signal(signal.SIGUSR1)
    browser.sees("The accept loop does not answer.")


def test_it_comes_back_by_itself_after_a_restart(start, browse):
    server = start()
    browser = browse(server)
    browser.sees("Healthy")
    server.process.kill()
    server.process.wait()
    browser.sees("Not reachable")
    browser.sees("connecting")
    start(port=server.port)
    browser.sees("Healthy")


def test_back_from_the_cache_it_shows_the_present(start, browse):
    server = start()
    browser = browse(server)
    browser.sees("Healthy")
    browser.run("window.mark = 'kept'; addEventListener('pageshow', e => mark = e.persisted)")
    browser.open("http://127.0.0.1:%d/health" % server.port)
    browser.sees('"uptime_seconds"')
    until(lambda: server.json("/health")["active_streams"] == 0)
    write_session(server, "new", title="Made meanwhile")
    browser.run("history.back()")
    browser.sees("Healthy")
    until(lambda: browser.run("document.getElementById('count').textContent") == "1")
    assert browser.run("window.mark") is True
    until(lambda: server.json("/health")["active_streams"] == 1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_reads_well(start, browse, tmp_path, width, dark):
    server = start()
    browser = browse(server, width=width, dark=dark)
    browser.sees("Healthy")
    until(lambda: "L" in (browser.run("document.getElementById('line').getAttribute('d')") or ""))
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CONTRAST) >= 4.5
    shot = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    assert shot.startswith(b"\x89PNG")
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        with open(os.path.join(folder, "page-%d-%s.png" % (width, dark)), "wb") as file:
            file.write(shot)


# The least contrast of any text with what is behind it, by the formula of WCAG 2.2.
CONTRAST = """(() => {
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => { v /= 255;
    return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = node => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color; } return 'rgb(255, 255, 255)'; };
  return Math.min(...[...document.querySelectorAll('h1,h2,b,small,td,p,a,span')].map(node => {
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }));
})()"""


def test_it_can_be_heard_and_walked_by_keyboard(start, browse):
    browser = browse(start())
    browser.sees("Healthy")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree
             if "role" in node}
    assert ("table", "Checks") in names and ("heading", "Accept loop") in names
    assert any(role == "image" and name for role, name in names)
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.getElementById('verdict').getAttribute('role')") == "status"
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                         windowsVirtualKeyCode=9)
    assert browser.run("document.activeElement.textContent") == "Sessions"


def test_it_asks_nobody_else_for_anything(start, browse):
    server = start()
    browser = browse(server)
    browser.sees("Healthy")
    urls = browser.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert all(url.startswith(("http://127.0.0.1:%d/" % server.port, "data:")) for url in urls)
