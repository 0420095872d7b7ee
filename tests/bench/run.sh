#!/usr/bin/env bash
# Measures the launcher beside what people would use instead: bash tests/bench/run.sh [--full] [--write]
# Takes less than two minutes; --help lists the options. What it installs stays in .test-venv/peers/;
# a tool that cannot be had is a row that says so. PYTHON names another Python than python3.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
    echo "tests/bench/run.sh: $python is not a Python 3.8 or newer with venv" >&2
    echo "  set PYTHON to one" >&2
    exit 1
fi
tools=$PWD/.test-venv/peers

# The peers, one by one, so that one that cannot be had costs only its row.
if [ ! -x "$tools/bin/python" ]; then
    echo "tests/bench/run.sh: installing the peers into $tools" >&2
    "$python" -m venv "$tools"
    for peer in honcho supervisor circus gunicorn uv; do
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "$peer" ||
            echo "tests/bench/run.sh: $peer cannot be installed" >&2
    done
    if command -v npm >/dev/null; then
        npm install --silent --no-fund --no-audit --prefix "$tools" pm2 ||
            echo "tests/bench/run.sh: pm2 cannot be installed" >&2
    fi
fi

# Interpreters without any package: a .pth file somewhere would be timed as part of every start.
for found in "$python" python3.8 python3.9 python3.10 python3.11 python3.12 python3.13 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2]);
sys.exit(sys.version_info < (3, 8))' 2>/dev/null) || continue
    plain=$tools/plain-$version
    [ -x "$plain/bin/python3" ] || "$found" -m venv --without-pip "$plain" 2>/dev/null || rm -rf "$plain"
done

export PYTHONDONTWRITEBYTECODE=1
cd tests
exec "$tools/bin/python" -m bench --tools "$tools" "$@"
