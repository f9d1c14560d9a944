#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The site: reference of plugins and roles, the guides of docs/docsite/rst, their pictures; .build/docs/html/index.html.
#   build.sh lint    only what antsibull-docs and the link checker say about the sources
#   build.sh         that, and the site, in which a warning is an error and every link is followed
# Needs .build/venv (tests/lab/bootstrap.sh check) for ansible-doc, and the network only for packages.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=.build/docs
venv=.build/docs-venv
requirements=requirements/docs.txt
site=tests/docs/site
guides=docs/docsite/rst
log=$build/build.log
mkdir --parents "$build"
: > "$log"
trap 'echo "docs: FAILED; the whole log: $log" >&2' ERR

make_venv() {
    local wanted
    wanted=$(cat "$requirements" <(/usr/bin/python3 --version) | sha256sum)
    [ "$(cat "$venv/.requirements" 2> /dev/null)" != "$wanted" ] || return 0
    echo "docs: installing $requirements into $venv"
    rm --recursive --force "$venv"
    /usr/bin/python3 -m venv "$venv" >> "$log" 2>&1
    "$venv/bin/python" -m pip install --requirement "$requirements" >> "$log" 2>&1
    echo "$wanted" > "$venv/.requirements"
}

lint() {
    antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all --disallow-unknown-collection-refs .
    python -m tests.docs.links markdown .
}

pictures() { # DIRECTORY
    local source
    command -v dot > /dev/null || {
        echo "docs: the pictures are drawn by graphviz: apt-get install --yes --no-install-recommends graphviz" >&2
        return 1
    }
    mkdir --parents "$1"
    for source in "$guides"/pictures/*.dot; do
        dot -Tsvg -o "$1/$(basename "$source" .dot).svg" "$source"
    done
}

html() {
    rm --recursive --force "$build/rst" "$build/html"
    mkdir --parents --mode 755 "$build/rst" # antsibull-docs wants it not to be writable by others
    antsibull-docs --config-file "$site/antsibull-docs.cfg" collection --use-current --squash-hierarchy \
        --fail-on-error --cleanup everything --dest-dir "$build/rst" trueip.l4proxy >> "$log" 2>&1
    pictures "$build/rst/docsite/pictures"
    sphinx-build -W --keep-going -q -b html -c "$site" -d "$build/doctrees" "$build/rst" "$build/html"
    python -m tests.docs.links site "$build/html"
}

make_venv
PATH="$PWD/$venv/bin:$PWD/.build/venv/bin:$PATH"
ANSIBLE_COLLECTIONS_PATH=$PWD/.build/collections
ANSIBLE_HOME=$PWD/.build/ansible
export PATH ANSIBLE_COLLECTIONS_PATH ANSIBLE_HOME
lint
[ "${1:-}" = lint ] || html
[ "${1:-}" = lint ] || echo "docs: open $build/html/index.html"
