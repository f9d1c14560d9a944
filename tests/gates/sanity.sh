#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Run ansible-test sanity on a copy of the tree, at a path that ansible-test accepts. It creates its environments from the
# package index only: instead of downloading a script that installs pip, it finds ours in its cache, with a wheel of pip.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$PWD/.build/sanity
python=$PWD/.build/venv/bin/python
collection=$build/ansible_collections/trueip/l4proxy
cache=$build/home/.ansible/test/cache

pip=$("$python" -c '
from types import SimpleNamespace
from ansible_test._internal.python_requirements import get_venv_packages
print(get_venv_packages(SimpleNamespace(version="3.11"))["pip"])')
if [ ! -e "$cache/get_pip_${pip//./_}.py" ]; then
    mkdir -p "$cache"
    "$python" -m pip download --quiet --no-deps --dest "$cache" "pip==$pip"
    cp tests/gates/get_pip.py "$cache/get_pip_${pip//./_}.py"
fi

rm -rf "$collection"
mkdir -p "$collection"
git ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' file; do
    [ ! -e "$file" ] || cp --parents "$file" "$collection"
done
# Without its own repository ansible-test would use that of this checkout, which ignores .build.
git init --quiet "$collection"
git -C "$collection" add --all

# The Python of the controller, and those of the targets that this machine has. Interpreters come before the shims of
# version managers on the path, because shims need settings.
own=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
targets=()
path=$PWD/.build/venv/bin
for version in 3.9 3.11 3.13; do
    found=$("$python" -m tests.gates.interpreters "$version") || continue
    path+=:$(dirname "$found")
    targets+=(--target-python "$version")
done
cd "$collection"
HOME=$build/home PATH=$path:/usr/bin:/bin exec ansible-test sanity --controller "origin:python=venv/$own" "${targets[@]}" "$@"
