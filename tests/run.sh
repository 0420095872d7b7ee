#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [arguments for pytest]
# Needs nothing but a Python 3.8 or newer; PYTHON names another one than python3. What it installs
# stays in .test-venv/, one environment for each Python version, and serves the next run too.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'tests/run.sh: %s\n  %s\n' "$1" "$2" >&2
    exit 1
}

is_usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null
}

python=${PYTHON:-}
if [ -n "$python" ]; then
    is_usable "$python" || fail "PYTHON=$python is not a Python 3.8 or newer" "name another one"
else
    for python in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 ""; do
        if [ -z "$python" ]; then
            fail "no Python 3.8 or newer on PATH" "install one, or set PYTHON to one"
        fi
        is_usable "$python" && break
    done
fi

version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
environment=$PWD/.test-venv/$version
tester=$environment/bin/python
if ! "$tester" -c 'import pytest, sys; assert sys.version.startswith(sys.argv[1] + " ")' \
        "$version" 2>/dev/null; then
    echo "tests/run.sh: installing pytest into $environment" >&2
    rm -rf "$environment"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv or no ensurepip" "on Debian or Ubuntu: apt install python3-venv"
    "$python" -m venv "$environment" ||
        fail "$python could not make $environment" "on Debian or Ubuntu: apt install python3-venv"
    "$tester" -m pip install --quiet --disable-pip-version-check pytest ||
        fail "pip could not install pytest" "see the lines above; pip has to reach a package index"
fi

export PYTHONDONTWRITEBYTECODE=1
exec "$tester" -m pytest -p no:cacheprovider -rs "$@"
