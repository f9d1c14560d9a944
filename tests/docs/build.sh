#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Build the documentation as a site in .build/docs/html: reference of plugins and roles, guides and their pictures.
#   build.sh lint    only check the sources, with antsibull-docs and the link checker
#   build.sh         check the sources, build the site with warnings as errors, and check each link
# It needs what tests/lab/bootstrap.sh docs installs, and the network only for packages.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=.build/docs
site=tests/docs/site
guides=docs/docsite/rst
log=$build/build.log
mkdir --parents "$build"
: > "$log"
trap 'echo "docs: FAILED; see $log" >&2' ERR

# Run a tool of requirements/docs.txt: MODULE ARGUMENTS
run() { .build/venv/bin/python -m tests.gates.environments docs "$@"; }

reference() {
    run -m antsibull_docs.cli.antsibull_docs lint-collection-docs --plugin-docs --validate-collection-refs=all \
        --disallow-unknown-collection-refs --check-extra-docs-refs .
}

lint() {
    # antsibull-docs 2.28 writes the name of its temporary directory into what it checks. One name in 37 ends in "_",
    # which is a reference in RST. A real error is there the second time too.
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
    mkdir --mode 755 "$build/rst" # antsibull-docs requires that others cannot write to it
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
