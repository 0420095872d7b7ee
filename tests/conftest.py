"""The fixtures; what they are made of stands in harness.py and servers.py."""
import importlib.util
import os
import signal
import sys

import pytest

pytest.register_assert_rewrite("harness")
from harness import App  # noqa: E402 (its assertions explain themselves only when registered first)


def pytest_configure(config):
    config.addinivalue_line("markers", "once: needs to run on one Python only")


@pytest.fixture(autouse=True)
def every_wait_has_an_end():
    """A test that hangs fails, and what it started is ended."""
    def ring(*_):
        pytest.fail("this test did not end within 120 s")
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def app(tmp_path):
    """The launcher with a small server of the test's choice."""
    app = App(tmp_path)
    yield app
    app.close()


@pytest.fixture
def project(app):
    """The launcher with the project's own server."""
    app.serve_for_real()
    return app


@pytest.fixture
def bootstrap(app, monkeypatch):
    """The module, imported from a repository of its own into a clean environment.

    Its main() works on this process: environment, folder, words and signal handlers are put back.
    """
    spec = importlib.util.spec_from_file_location("bootstrap", str(app.repo / "bootstrap.py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bootstrap", module)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    monkeypatch.chdir(app.folder)
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.clear()
    os.environ.update(app.env)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
