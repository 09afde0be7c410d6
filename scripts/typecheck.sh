#!/usr/bin/env bash
# Type-checks graphkit, models/ and datasets/ with mypy; arguments are passed on to it.
#
# A type checker doesn't follow setup.cfg's package_dir, nor the hook of an editable installation. So the three
# folders are linked together as the package that they become, and paths in messages are put back.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/graphkit"
ln -s "$root"/graphkit/* "$root/models" "$root/datasets" "$tree/graphkit"

cd "$tree"
"$root/.venv/bin/mypy" --config-file "$root/setup.cfg" --cache-dir "$root/.mypy_cache" "$@" graphkit |
    sed -E 's#^graphkit/(models|datasets)/#\1/#'
