#!/usr/bin/env bash
# Makes .venv with everything that graphkit needs; does nothing if that is done.
#
#   bash scripts/setup.sh [--no-dev]
#
# --no-dev leaves out what only tests and checks need. Variables, all optional:
#   PYTHON           the interpreter to use, 3.10 to 3.13 (python3)
#   CONSTRAINTS      versions to install (.ci/constraints.txt); /dev/null takes the newest
#   GRAPHKIT_WHEELS  keeps the built torch-scatter, a folder each for Python and torch (~/.cache/graphkit/wheels)
#   MAX_JOBS         compilers at once while building it (all cores)
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

CONSTRAINTS=${CONSTRAINTS:-.ci/constraints.txt}
GRAPHKIT_WHEELS=${GRAPHKIT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/graphkit/wheels}
python=.venv/bin/python
stamp=.venv/graphkit-setup

started=
fail() {
    printf '%ssetup: %s\n' "${started:+$'\n'}" "$*" >&2
    exit 1
}

step() { # ends the step before, begins this one
    [ -z "$started" ] || printf ' %d s\n' $((SECONDS - started))
    started=$SECONDS
    printf '%s ...' "$*"
}

pip() { "$python" -m pip -qq --disable-pip-version-check "$@"; }

extra='[dev]'
case "${1-}" in
    '') ;;
    --no-dev) extra= ;;
    *) fail "unknown argument '$1'; the only one is --no-dev" ;;
esac

# Which Python. An existing .venv decides, unless PYTHON asks for another.
chosen=${PYTHON:-python3}
[ -n "${PYTHON-}" ] || [ ! -x "$python" ] || chosen=$python
version=$("$chosen" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
    fail "'$chosen' doesn't run; set PYTHON to a Python 3.10, 3.11, 3.12 or 3.13"
case $version in
    3.10.* | 3.11.* | 3.12.* | 3.13.*) ;;
    *) fail "'$chosen' is Python $version; graphkit needs 3.10 to 3.13: set PYTHON, e.g. PYTHON=python3.12" ;;
esac

# Done before?
state="Python $version in $PWD: $(cat setup.cfg pyproject.toml scripts/setup.sh "$CONSTRAINTS" | cksum)"
case $(cat "$stamp" 2>/dev/null) in
    "$state [dev]") exit 0 ;;
    "$state") [ -n "$extra" ] || exit 0 ;;
esac

if [ -x "$python" ]; then
    have=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') || have=broken
    [ "$have" = "$version" ] || fail ".venv holds Python $have, not $version; remove it with: rm -r .venv"
    grep -qF "$PWD/.venv/bin/python" .venv/bin/pip 2>/dev/null ||
        fail ".venv was made in another folder or not finished; remove it with: rm -r .venv"
    rm -f "$stamp"
else
    step "virtual environment .venv with Python $version"
    "$chosen" -m venv .venv || fail "no virtual environment: Python's venv module is missing or .venv can't be written"
fi

step "pip, setuptools, wheel, ninja"
pip install --upgrade -c "$CONSTRAINTS" pip setuptools wheel ninja

step "torch (some 200 MB to fetch, 3 GB for CUDA)"
pip install -c "$CONSTRAINTS" torch

step "torch-scatter"
# It is published as source and its build imports torch, so it can't be one of many in `pip install`.
# pip's own cache would hand out a wheel built for another torch: wheels are kept in a folder for each.
scatter=$(grep -i '^torch[-_]scatter==' "$CONSTRAINTS" || echo torch-scatter)
wheels=$GRAPHKIT_WHEELS/$("$python" -W ignore -c '
import sys, torch
print("py%d%d-torch%s" % (*sys.version_info[:2], torch.__version__))')
install_wheel() { pip install --isolated --no-index --no-deps --force-reinstall --find-links "$wheels" "$scatter"; }
if ! install_wheel 2>/dev/null; then
    printf ' compiling it, once for this Python and torch: about 6 minutes on 2 cores ...'
    compiler=${CXX:-c++}
    command -v "${compiler%% *}" >/dev/null ||
        fail "torch-scatter needs a C++ compiler and '$compiler' isn't there; install one (g++ or clang++) or set CXX"
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -f "$header" ] ||
        fail "torch-scatter needs Python's headers and $header isn't there; install python3-dev or python3-devel"
    mkdir -p "$wheels"
    building=$(mktemp -d "$wheels/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    export MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    # The folder on PATH is for ninja, without which the build uses one core.
    if ! PATH=$PWD/.venv/bin:$PATH "$python" -m pip wheel "$scatter" --no-build-isolation --no-cache-dir --no-deps \
        -w "$building" >.venv/torch-scatter.log 2>&1; then
        tail -n 20 .venv/torch-scatter.log >&2
        fail "torch-scatter didn't build; the whole log is .venv/torch-scatter.log. Its usual wants: a C++17" \
            "compiler, 2 GB of memory for each of MAX_JOBS, and for a CUDA torch a CUDA toolkit of the same version"
    fi
    mv "$building"/*.whl "$wheels"
    install_wheel
fi

step "graphkit$extra and what it needs"
pip install --no-build-isolation -c "$CONSTRAINTS" -e ".$extra"

step "check"
"$python" -m pip check >.venv/pip-check.log || {
    cat .venv/pip-check.log >&2
    fail "the installed packages contradict each other (above)"
}
root=$PWD
(cd / && "$root/$python" -c 'import torch_scatter, torch_geometric, graphkit
from importlib.util import find_spec
assert find_spec("graphkit.models") and find_spec("graphkit.datasets")') || fail "the installation can't be imported"

printf ' %d s\nready: .venv (%d s in all)\n' $((SECONDS - started)) "$SECONDS"
printf '%s%s\n' "$state" "${extra:+ $extra}" >"$stamp"
