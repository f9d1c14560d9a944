#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The site: reference of plugins and roles, the guides of docs/docsite/rst, their pictures; .build/docs/html/index.html.
#   build.sh lint    only what antsibull-docs and the link checker say about the sources
#   build.sh         that, and the site, in which a warning is an error and every link is followed
# Needs what tests/lab/bootstrap.sh docs installs, and the network only for packages.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=.build/docs
site=tests/docs/site
guides=docs/docsite/rst
log=$build/build.log
mkdir --parents "$build"
: > "$log"
trap 'echo "docs: FAILED; the whole log: $log" >&2' ERR

# One tool of requirements/docs.txt, by module and arguments.
run() { .build/venv/bin/python -m tests.gates.environments docs "$@"; }

reference() {
    run -m antsibull_docs.cli.antsibull_docs lint-collection-docs --plugin-docs --validate-collection-refs=all \
        --disallow-unknown-collection-refs --check-extra-docs-refs .
}

lint() {
    # It writes the name of its temporary directory into what it checks; one name in 37 ends in "_", which RST takes for
    # a reference (antsibull-docs 2.28). A real fault is there the second time, too.
    reference > "$log" 2>&1 || reference
    .build/venv/bin/python -m tests.docs.links markdown .
}

pictures() { # DIRECTORY
    local source
    mkdir --parents "$1"
    for source in "$guides"/pictures/*.dot; do
        dot -Tsvg -o "$1/$(basename "$source" .dot).svg" "$source"
    done
}

html() {
    rm --recursive --force "$build/rst" "$build/html"
    mkdir --mode 755 "$build/rst" # antsibull-docs wants it not to be writable by others
    run -m antsibull_docs.cli.antsibull_docs --config-file "$site/antsibull-docs.cfg" collection --use-current --squash-hierarchy \
        --fail-on-error --cleanup everything --dest-dir "$build/rst" trueip.l4proxy >> "$log" 2>&1
    pictures "$build/rst/docsite/pictures"
    run -m sphinx -E -W --keep-going -q -b html -c "$site" -d "$build/doctrees" "$build/rst" "$build/html"
    .build/venv/bin/python -m tests.docs.links site "$build/html"
}

PATH="$PWD/.build/venv/bin:$PATH" # ansible-doc
ANSIBLE_COLLECTIONS_PATH=$PWD/.build/collections
ANSIBLE_HOME=$PWD/.build/ansible
export PATH ANSIBLE_COLLECTIONS_PATH ANSIBLE_HOME
lint
[ "${1:-}" = lint ] && exit
html
echo "docs: open $build/html/index.html"
