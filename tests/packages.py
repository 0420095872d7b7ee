"""Packages, environments and Pythons that the tests build by hand: real installers, no network."""
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import servers
from harness import PYTHON, until

BESIDE = os.path.dirname(os.environ.get("HERMES_AGENT_PYTHON", ""))
UV = shutil.which("uv") or shutil.which("uv", path=BESIDE or os.curdir)
INSTALLERS = [
    pytest.param("uv", marks=pytest.mark.skipif(not UV, reason="uv is not installed")), "pip"]
QUICK = "uv" if UV else "pip"

# Says which version of the package it runs with.
GREETING = servers.small("import greeting", "note(version=greeting.version)", "serve(listen(), OK)")

# A build backend without requirements (PEP 517, 660) that waits for a file `go` beside it.
BACKEND = '''
import os, time, zipfile

here = os.path.dirname(os.path.abspath(__file__))
name, info = "greeting", "greeting-1.0.dist-info"
METADATA = "Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n"

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.makedirs(os.path.join(folder, info))
    with open(os.path.join(folder, info, "METADATA"), "w") as file:
        file.write(METADATA)
    return info

prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with open(os.path.join(here, "builds"), "a") as file:
        file.write("%d\\n" % os.getpid())
    end = time.monotonic() + 60
    while not os.path.exists(os.path.join(here, "go")) and time.monotonic() < end:
        time.sleep(0.01)
    files = {"greeting.py": "version = '1.0'\\n", info + "/METADATA": METADATA,
             info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\n"
                              "Tag: py3-none-any\\n"}
    files[info + "/RECORD"] = "".join(path + ",,\\n" for path in [*files, info + "/RECORD"])
    target = "greeting-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, target), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return target

build_editable = build_wheel
'''
PROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "greeting"
version = "1.0"
"""


def wheel(folder, name="greeting", version="1.0", files=None):
    """A wheel with one module that knows its version."""
    info = "{}-{}.dist-info/".format(name, version)
    content = {
        name + ".py": "version = {!r}\n".format(version),
        info + "METADATA": "Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(name, version),
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
                        "Tag: py3-none-any\n"}
    content.update(files or {})
    content[info + "RECORD"] = "".join("{},,\n".format(path) for path in [*content, info + "RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "{}-{}-py3-none-any.whl".format(name, version)
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as archive:
        for place, text in content.items():
            archive.writestr(place, text)
    return path


def require(app, *lines):
    """A requirements.txt whose packages come from the folder `wheels` alone."""
    app.write("requirements.txt", "\n".join(("--no-index", "--find-links wheels") + lines) + "\n")


def greet(app, *lines):
    """Make a server that needs the package `greeting`, of which there are two versions."""
    for version in ("1.0", "2.0"):
        wheel(app.repo / "wheels", version=version)
    require(app, *(lines or ("greeting==1.0",)))
    app.serve(GREETING)
    return app


def gated(app, folder="slow"):
    """Make a server that needs a project in a folder, which is built only once it is let go."""
    place = app.repo / folder
    place.mkdir(exist_ok=True)
    (place / "backend.py").write_text(BACKEND)
    (place / "pyproject.toml").write_text(PROJECT)
    app.write("requirements.txt", "--no-index\n./slow\n")
    app.serve(GREETING)
    return Gate(place)


class Gate:
    """The moment in which an installer builds a project: it stays until the test lets it go."""

    def __init__(self, folder):
        self.folder = folder

    def builds(self):
        """Process ids of all builds so far."""
        try:
            return [int(line) for line in (self.folder / "builds").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def reached(self, count=1):
        return until(lambda: len(self.builds()) >= count and self.builds(), "the build is under way", 60)

    def open(self):
        (self.folder / "go").write_text("")


def equip(app, installer):
    """Let the launcher find uv on its PATH, or no uv."""
    if installer == "uv":
        folder = app.folder / "uv"
        folder.mkdir()
        (folder / "uv").symlink_to(UV)
        app.env["PATH"] = "{}{}{}".format(folder, os.pathsep, app.env["PATH"])
    elif shutil.which("uv", path=app.env["PATH"]):
        pytest.skip("uv stands beside Python on PATH")
    return installer


# -- environments and Pythons ------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def pip_folders():
    """pip and what tells of it, as they lie beside the Python of the tests."""
    done = subprocess.run([PYTHON, "-I", "-c", "import pip; print(pip.__path__[0])"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    if done.returncode:
        pytest.skip("{} has no pip".format(PYTHON))
    folder = Path(done.stdout.strip())
    return [folder, *folder.parent.glob("pip-*-info")]


def give(site, *wheels, pip=True):
    """Fill a site-packages folder without an installer."""
    for folder in pip_folders() if pip else ():
        (site / folder.name).symlink_to(folder)
    for path in wheels:
        with zipfile.ZipFile(str(path)) as archive:
            archive.extractall(str(site))


def environment(folder, *wheels, pip=True):
    """The Python of a new environment that holds these wheels."""
    subprocess.check_call([PYTHON, "-m", "venv", "--without-pip", str(folder)])
    site, = folder.glob("lib/python3*/site-packages")
    give(site, *wheels, pip=pip)
    return folder / "bin" / "python"


def standalone(folder, *without, managed=False):
    """A Python of its own, without some of its library and all of its site-packages."""
    library = Path(sysconfig.get_paths()["stdlib"])
    home = folder / "lib" / library.name
    (home / "site-packages").mkdir(parents=True)
    left_out = without + ("site-packages", "dist-packages", "EXTERNALLY-MANAGED", "__pycache__")
    for entry in library.iterdir():
        if entry.name not in left_out:
            (home / entry.name).symlink_to(entry)
    if managed:
        (home / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Leave it alone.\n")
    python = folder / "bin" / "python{}.{}".format(*sys.version_info[:2])
    python.parent.mkdir()
    shutil.copy2(PYTHON, str(python))
    (python.parent / "python3").symlink_to(python.name)
    return python


def site_of(python):
    """The site-packages beside a Python."""
    site, = python.parent.parent.glob("lib/python3*/site-packages")
    return site


def counting(python):
    """A program that runs this Python, and the file in which it notes each time."""
    log, program = python.parent / "runs", python.parent / "counting python"
    log.write_text("")
    program.write_text('#!/bin/sh\necho "$@" >>"{}"\nexec "{}" "$@"\n'.format(log, python))
    program.chmod(0o755)
    return program, log


# -- programs that are run ---------------------------------------------------------------------


def tracing(note):
    """What to launch under, so that every program that is run is noted in a file; or skip."""
    under = ("strace", "-f", "-s", "4096", "-e", "trace=execve", "-o", str(note))
    if not shutil.which("strace") or subprocess.call(under + ("true",), stderr=subprocess.DEVNULL):
        pytest.skip("strace is not installed, or may not trace")
    return under


def executed(note):
    """The programs that were run, in their order; strace(1) writes bytes above 127 in octal."""
    found = re.findall(r'execve\("((?:[^"\\]|\\.)*)".*\) = 0$', note.read_text("ascii"), re.M)
    return [re.sub(rb"\\([0-7]{1,3})", lambda byte: bytes([int(byte.group(1), 8)]),
                   path.encode("ascii")).decode("utf-8") for path in found]
