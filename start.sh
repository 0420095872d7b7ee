#!/bin/sh
# Find a Python 3 and become bootstrap.py, which lies beside this file.
# Flags, settings and .env are read there and nowhere else.
case $0 in */*) self=$0 ;; *) self=./$0 ;; esac
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=${self%/*}/$link ;; esac
done
launcher=${self%/*}/bootstrap.py
fail() { printf 'start.sh: %s\n  %s\n' "$1" "$2" >&2; exit 127; }

for python in python3 python "${HERMES_WEBUI_PYTHON-}" ''; do
    case $python in
        python3) command -v python3 >/dev/null 2>&1 && break ;;
        ?*) "$python" -c 'import sys; sys.exit(sys.version_info[0] != 3)' 2>/dev/null && break ;;
    esac
done
[ -n "$python" ] || fail "no Python 3 on PATH, and HERMES_WEBUI_PYTHON names none" \
    "install Python 3.8 or newer, or set HERMES_WEBUI_PYTHON to one"
[ -f "$launcher" ] || fail "there is no $launcher" "copy it there, beside start.sh"
# -I -S keep environment and site-packages out; the loader keeps what it compiles, as for imports.
exec "$python" -I -S -c 'import sys; from importlib.machinery import SourceFileLoader as File
__file__ = sys.argv[0] = sys.argv.pop(1)
exec(File("__main__", __file__).get_code("__main__"))' "$launcher" "$@"
