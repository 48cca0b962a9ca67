#!/bin/sh
# sh requirements/venv.sh [FILE ...]: makes .venv here, with the packages of requirements.txt and of the FILEs.
#
# $PYTHON is the interpreter; if it is not set, python3, or that of a .venv which is complete. A .venv of another Python
# or of older requirements, or that was not finished, is replaced. Its packages are then listed in .venv/replaced.txt.
# .venv/installed has copies of the requirements that are installed. .venv/ready, which the Makefile writes, is removed
# before packages are added.
set -eu
OLDEST=11 NEWEST=12 # Python 3.x: labmaze, which dm_control needs, has no files for newer ones; pyproject.toml has both
GIVEN=${PYTHON:-}
case $GIVEN in "~/"*) GIVEN=$HOME/${GIVEN#"~/"} ;; esac

fail() {
    echo "error: $*" >&2
    exit 2
}

version() { # "3.11.7", or nothing if $1 does not run or is no Python
    "$1" --version 2>&1 | sed -n 's/^Python \([0-9][0-9]*\.[0-9][0-9.]*\).*/\1/p' | head -n 1
}

minor() { # "3.11" of "3.11.7"
    echo "$1" | cut -d . -f 1,2
}

supported() {
    case $1 in 3.*) ;; *) return 1 ;; esac
    second=$(echo "$1" | cut -d . -f 2)
    [ "$second" -ge $OLDEST ] && [ "$second" -le $NEWEST ]
}

why_replace() { # why the .venv that exists cannot be used; nothing if it can
    [ -f .venv/installed/requirements.txt ] || { echo "it was not finished, or is of an earlier version" && return; }
    there=$(version .venv/bin/python)
    made_by=$(cat .venv/installed/python 2>/dev/null) || made_by=
    [ "$(minor "$there")" = "$made_by" ] || { echo "Python $made_by, which made it, is gone" && return; }
    supported "$there" || { echo "it has Python $there" && return; }
    [ -z "$GIVEN" ] || [ "$(version "$GIVEN")" = "$there" ] ||
        { echo "it has Python $there, not $(version "$GIVEN")" && return; }
    for copy in .venv/installed/*.txt; do
        file=requirements/${copy##*/}
        [ "$file" != requirements/requirements.txt ] || file=requirements.txt
        cmp -s "$file" "$copy" || { echo "$file has changed" && return; }
    done
}

check_python() { # exits if $1 cannot make a .venv
    path=$(command -v "$1") || fail "$1 is not there. $(advice)"
    [ "$path" = "$1" ] && where=$1 || where="$1 ($path)"
    found=$(version "$1")
    [ -n "$found" ] || fail "$where is no Python: it prints no version. $(advice)"
    supported "$found" || fail "Python 3.$OLDEST or 3.$NEWEST is needed, and $where is Python $found. $(advice)"
}

advice() { # names a Python that will do, or says how to get one
    number=$NEWEST
    while [ $number -ge $OLDEST ]; do
        if [ -n "$(version python3.$number)" ]; then
            echo "This one will do: make PYTHON=$(command -v python3.$number)${MAKECMDGOALS:+ $MAKECMDGOALS}"
            return
        fi
        number=$((number - 1))
    done
    echo "Install one (docs/troubleshooting.md, \"Set-up\"), then: make PYTHON=/path/to/python3.$NEWEST${MAKECMDGOALS:+ $MAKECMDGOALS}"
}

make_venv() { # a new .venv by the interpreter $1, in place of one that cannot be used
    # The interpreter itself, not one in a virtual environment: that may be the .venv to be replaced.
    base=$("$1" -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))')
    number=$(minor "$(version "$1")")
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no module ensurepip; install it (Debian, Ubuntu: apt-get install python$number-venv) and run make again"
    replaced=
    if [ -e .venv ] || [ -L .venv ]; then
        user=$(grep -ls "$(pwd -P)/.venv/" /proc/[0-9]*/maps 2>/dev/null | cut -d / -f 3 | head -n 1) || user=
        [ -z "$user" ] || fail ".venv has to be replaced ($reason), but process $user uses it: end it first"
        replaced=$(.venv/bin/python -m pip --disable-pip-version-check freeze 2>/dev/null) || replaced=
        echo "replacing .venv: $reason${replaced:+ (the packages that it had: .venv/replaced.txt)}" >&2
        rm -rf .venv # if it is a link, the link alone
    fi
    "$base" -m venv .venv || fail "$base cannot make .venv"
    mkdir .venv/installed
    echo "$number" >.venv/installed/python
    [ -z "$replaced" ] || echo "$replaced" >.venv/replaced.txt
}

reason=$(why_replace)
if [ -n "$reason" ]; then
    check_python "${GIVEN:-python3}"
    make_venv "${GIVEN:-python3}"
fi

missing=
for file in requirements.txt "$@"; do
    [ -f "$file" ] || fail "$file is not there"
    [ -f ".venv/installed/${file##*/}" ] || missing="$missing $file"
done
[ -n "$missing" ] || exit 0
rm -f .venv/ready
echo "installing$missing into .venv, with Python $(version .venv/bin/python): this takes a minute or more" >&2
set --
for file in $missing; do set -- "$@" -r "$file"; done
[ -f .venv/installed/requirements.txt ] || [ -e /dev/nvidiactl ] || [ -n "${PIP_EXTRA_INDEX_URL:-}" ] ||
    echo "note: no GPU here; docs/troubleshooting.md, \"Set-up\", says how to get the smaller PyTorch for processors" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@" ||
    fail "pip could not install$missing (see above); .venv is not complete. The same command tries again"
for file in $missing; do cp "$file" .venv/installed/; done
