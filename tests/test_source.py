"""The files themselves: they run where they land, need nothing, and stay readable."""
import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from harness import ROOT

LIMITS = {"bootstrap.py": (2720, 40), "server.py": (700, 40)}
FILES = pytest.mark.parametrize("name", sorted(LIMITS))


def python(version):
    """The interpreter of a version, among pyenv's or on PATH, that really runs; or None."""
    versions = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions")
    for path in [*versions.glob(version + ".*/bin/python"), shutil.which("python" + version)]:
        # What is found may be a shim; what it runs is the interpreter.
        asked = path and subprocess.run(
            [str(path), "-c", "import os, sys; print(os.path.realpath(sys.executable))"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        if asked and asked.returncode == 0:
            return asked.stdout.strip()
    return None


def pythons(*versions):
    return pytest.mark.parametrize("interpreter", [
        pytest.param(python(version), id=version, marks=pytest.mark.skipif(
            not python(version), reason="no Python {} on this machine".format(version)))
        for version in versions])


def tree(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def functions(name):
    return {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(tree(name))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.once
@pythons("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
@FILES
def test_it_compiles_without_a_warning(interpreter, name):
    code = "import sys; compile(open(sys.argv[1], encoding='utf-8').read(), sys.argv[1], 'exec')"
    subprocess.check_call([interpreter, "-W", "error", "-c", code, str(ROOT / name)])


@pytest.mark.once
@pythons("3.6", "3.7")
def test_an_old_python_is_refused_in_one_line(interpreter):
    done = subprocess.run([interpreter, str(ROOT / "bootstrap.py")], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env={}, timeout=30)
    assert done.returncode not in (0, -1) and done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and b"Python 3.8" in done.stderr


def test_the_grammar_is_that_of_3_6_so_that_old_pythons_reach_the_guard():
    ast.parse((ROOT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = [node for node in ast.walk(tree("bootstrap.py")) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in imported if node.module == "__future__"]


@pytest.mark.skipif(sys.version_info < (3, 10), reason="this Python does not know its own modules")
@FILES
def test_only_the_standard_library_is_imported(name):
    nodes = list(ast.walk(tree(name)))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= sys.stdlib_module_names


@FILES
def test_it_is_small(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < LIMITS[name][0]
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []


@FILES
def test_functions_are_small(name):
    sizes = functions(name)
    ordered = sorted(sizes.values())
    assert statistics.median(ordered) <= 10
    assert ordered[int(len(ordered) * 0.9)] <= 25
    allowed = {"parse_args": 60}
    assert [n for n, size in sizes.items() if size > allowed.get(n, LIMITS[name][1])] == []


@FILES
def test_no_error_is_swallowed_unseen(name):
    broad = [node.lineno for node in ast.walk(tree(name)) if isinstance(node, ast.ExceptHandler) and (
        node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))]
    assert broad == []


@FILES
def test_comments_tell_no_story(name):
    with open(str(ROOT / name), "rb") as file:
        comments = [token.string[1:] for token in tokenize.tokenize(file.readline)
                    if token.type == tokenize.COMMENT]
    assert [text for text in comments if re.search(r"#\d|\bPR\b|\bissue\b|TODO|FIXME", text)] == []
    blocks = re.findall(r"(?:^ *# .*\n)+", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert [block for block in blocks if block.count("\n") > 3] == []


def test_the_test_command_says_which_python_it_cannot_use():
    done = subprocess.run(["bash", str(ROOT / "tests" / "run.sh")], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=dict(os.environ, PYTHON="/no/such/python"))
    assert done.returncode == 1 and done.stdout == b"" and b"/no/such/python" in done.stderr
    assert done.stderr.splitlines()[1].startswith(b"  ")


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name, dialect", [
    ("start.sh", "sh"), ("start.sh", "bash"), ("tests/run.sh", "bash"), (".ci/run", "bash")])
def test_shell_scripts_are_clean(name, dialect):
    subprocess.check_call(["shellcheck", "--shell", dialect, str(ROOT / name)])
