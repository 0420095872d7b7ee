"""The page at / in a real browser: what it shows, and that it comes back by itself."""
import json
import os
import signal
import time

import pytest

from server_support import BROWSER, Browser, start, until  # noqa: F401

pytestmark = [pytest.mark.once,
              pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")]
WEDGED = ("import server, signal, threading\n"
          "signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait()); server.main()")

# 100 file descriptors, of which so many are taken.
LEAKY = ("import os, resource, server; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
         "held = [os.dup(0) for _ in range(%d)]; server.main()")


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
    browser = browse(server)
    browser.sees("Healthy")
    for text in ("answers in", "Up for", "Tracked by", "Open streams", "File descriptors", "live",
                 "stream lock", "state db", "7 checks, none failed."):
        browser.sees(text)
    assert browser.run("document.title") == "Hermes Web UI"
    checks = server.json("/health?deep=1")["checks"]
    assert [(row[0], row[1]) for row in browser.rows("checks")] == [
        (name.replace("_", " "), check["status"]) for name, check in checks.items()]
    assert all(row[2].endswith(" ms") for row in browser.rows("checks"))


def test_the_plot_moves_with_the_accept_loop(start, browse):
    browser = browse(start(code="import server; server.BEAT_SECONDS = 0.1; server.main()"))
    browser.sees("Healthy")
    until(lambda: browser.drawn("bars").count("M") == 60, what="a full plot")
    before = browser.drawn("bars")
    until(lambda: browser.drawn("bars") != before, what="another plot")
    assert browser.drawn("gaps") == ""


def test_it_lists_the_latest_sessions_and_what_they_do(start, browse):
    server = start()
    write_session(server, "a", title="Plan", source="cli", updated_at=time.time() - 7500)
    write_session(server, "b", title="<b>Build</b>", active_stream_id="s1", updated_at=time.time())
    write_session(server, "c", pending_user_message="go on", updated_at=time.time() - 130)
    browser = browse(server)
    browser.sees("Sessions (3)")
    assert browser.rows("sessions") == [
        ["<b>Build</b>", "running", "now"], ["c", "waiting", "2 min ago"],
        ["Plan", "cli", "2 h ago"]]
    for number in range(20):
        write_session(server, "more%d" % number, updated_at=number)
    browser.sees("Sessions (23)")
    assert len(browser.rows("sessions")) == 8


def test_it_tells_who_tracks_the_server(start, browse):
    server = start()
    server.state.mkdir()
    (server.state / ("bootstrap-%d.record" % server.port)).write_text(
        "pid=%d\nsupervisor=systemd\n" % server.process.pid)
    browser = browse(server)
    until(lambda: browser.text("tracked") == "systemd")


@pytest.mark.parametrize("held, style", [(0, "ok"), (85, "error")], ids=["few", "nearly all"])
def test_it_weighs_file_descriptors_against_their_limit(start, browse, held, style):
    server = start(code=LEAKY % held)
    browser = browse(server)
    browser.sees("of 100")
    used, limit = map(int, browser.text("files").split(" of "))
    meter = [browser.run("document.getElementById('meter').getAttribute('aria-value%s')" % name)
             for name in ("min", "now", "max")]
    assert meter == ["0", str(used), "100"] and held < used <= limit
    assert browser.drawn("used") == "M0 2H%d" % used
    assert browser.run("document.getElementById('used').getAttribute('class')") == style


def test_without_javascript_it_says_where_to_look(start, browse):
    browser = browse(start(), script=False)
    until(lambda: "Without JavaScript" in str(browser.call("DOMSnapshot.captureSnapshot",
                                                           computedStyles=[])["strings"]))
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = [node.get("name", {}).get("value", "") for node in tree]
    assert any(name.startswith("Without JavaScript") for name in names)
    assert {"Health", "Metrics", "Sessions"} <= set(names)


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
    assert browser.text("loop") == "does not answer" and browser.drawn("gaps").startswith("M")


def test_it_comes_back_by_itself_after_a_restart(start, browse):
    server = start(code="import server; server.BEAT_SECONDS = 60; server.main()")
    browser = browse(server)
    browser.sees("Healthy")
    browser.run("window.mark = 'not loaded again'")
    server.process.kill()
    server.process.wait()
    browser.sees("No answer")
    browser.sees("connecting")
    assert browser.run("document.title") == "No answer · Hermes Web UI"
    again = start(port=server.port)
    write_session(again, "new", title="Made meanwhile", updated_at=1)
    browser.sees("Healthy")
    browser.sees("Made meanwhile")
    assert browser.run("window.mark") == "not loaded again"


def test_a_server_that_falls_silent_is_noticed(start, browse):
    server = start(code="import server; server.BEAT_SECONDS = 0.2; server.main()")
    browser = browse(server)
    browser.sees("Healthy")
    server.process.send_signal(signal.SIGSTOP)
    browser.sees("No answer")
    server.process.send_signal(signal.SIGCONT)
    browser.sees("Healthy")


# Whether the page came from the back-forward cache, and what it showed at that moment.
NOTING = """addEventListener('pageshow', event => {
    window.restored = [event.persisted, document.getElementById('verdict').innerText]; })"""


def test_back_from_the_cache_it_shows_the_present(start, browse):
    server = start()
    browser = browse(server)
    browser.sees("Healthy")
    browser.run(NOTING)
    browser.open("http://127.0.0.1:%d/health" % server.port)
    browser.sees('"uptime_seconds"')
    until(lambda: server.json("/health")["active_streams"] == 0)
    write_session(server, "new", title="Made meanwhile")
    browser.run("history.back()")
    browser.sees("Made meanwhile")
    assert browser.run("window.restored") == [True, "One moment"]
    until(lambda: server.json("/health")["active_streams"] == 1)


def test_back_from_the_cache_it_does_not_show_a_server_that_is_gone(start, browse):
    server, other = start(), start()
    browser = browse(server)
    browser.sees("Healthy")
    browser.run(NOTING)
    browser.open("http://127.0.0.1:%d/health" % other.port)
    browser.sees('"uptime_seconds"')
    assert server.stop() == 0
    browser.run("history.back()")
    browser.sees("No answer")
    assert browser.run("window.restored") == [True, "One moment"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("broken", [False, True], ids=["well", "not well"])
def test_it_fits_and_reads_well(start, browse, width, dark, broken):
    server = start()
    write_session(server, "long", title="A" * 300, source="s" * 300, updated_at=time.time())
    write_session(server, "run", title="Plan the garden", active_stream_id="1", updated_at=1e9)
    if broken:
        (server.state / "projects.json").write_text("{")
    browser = browse(server, width=width, dark=dark)
    browser.sees("Not well" if broken else "Healthy")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert len(browser.rows("sessions")[0][0]) == 80
    assert browser.run(CONTRAST) >= 4.5
    shot = browser.shoot()
    assert shot.startswith(b"\x89PNG")
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        name = "page-%d-%s-%s.png" % (width, "dark" if dark else "light", broken)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(shot)


# The least contrast of any text with what is behind it, by the formula of WCAG 2.2.
CONTRAST = """(() => {
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => { v /= 255;
    return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = node => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color; } return 'rgb(255, 255, 255)'; };
  return Math.min(...[...document.querySelectorAll('h1,h2,dt,dd,small,th,td,p,a,span')].map(node => {
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }));
})()"""


def test_it_can_be_heard(start, browse):
    server = start()
    write_session(server, "one", title="Plan", updated_at=time.time())
    browser = browse(server)
    browser.sees("Healthy")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree
             if "role" in node}
    for node in [("heading", "Healthy"), ("heading", "Checks"), ("heading", "Sessions (1)"),
                 ("table", "Checks"), ("table", "Sessions (1)"), ("region", "Facts"),
                 ("rowheader", "Plan"), ("rowheader", "disk"), ("image", "Its latest answers"),
                 ("meter", "File descriptors in use")]:
        assert node in names, (node, names)
    roles = {role for role, _ in names}
    assert {"banner", "main", "contentinfo", "status"} <= roles
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.querySelectorAll('[aria-live],[role=status]').length") == 1
    assert browser.run("document.querySelectorAll('h1').length") == 1


def test_what_is_spoken_changes_with_the_verdict_only(start, browse):
    browser = browse(start(code="import server; server.BEAT_SECONDS = 0.1; server.main()"))
    browser.sees("Healthy")
    browser.run("""window.spoken = 0; new MutationObserver(() => spoken++).observe(
        document.querySelector('[role=status]'),
        {subtree: true, childList: true, characterData: true})""")
    before = browser.drawn("bars").count("M")
    until(lambda: browser.drawn("bars").count("M") > before + 5)
    assert browser.run("window.spoken") == 0


def test_it_can_be_walked_by_keyboard_and_nothing_moves_that_was_asked_not_to(start, browse):
    browser = browse(start())
    browser.sees("Healthy")
    seen = []
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                         windowsVirtualKeyCode=9)
        seen.append(browser.run("document.activeElement.textContent + ' ' + "
                                "getComputedStyle(document.activeElement).outlineStyle"))
    assert seen == ["Health solid", "Metrics solid", "Sessions solid"]
    assert browser.run("document.getAnimations().length") == 0
    assert browser.run("[...document.querySelectorAll('*')].every("
                       "node => getComputedStyle(node).transitionDuration === '0s')")


def test_it_asks_nobody_else_for_anything(start, browse):
    server = start()
    browser = browse(server)
    browser.sees("Healthy")
    urls = browser.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert all(url.startswith(("http://127.0.0.1:%d/" % server.port, "data:")) for url in urls)
