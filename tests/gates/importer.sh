#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Run galaxy-importer on the tarball, as Galaxy does after an upload. It must succeed without warnings.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/.build/importer
tarball=$(ls "$PWD"/.build/dist/*.tar.gz)
rm -rf "$out"
mkdir -p "$out/home"
# ansible-lint and ansible-test run in other stages.
cat >"$out/galaxy-importer.cfg" <<CFG
[galaxy-importer]
run_ansible_lint = False
run_ansible_test = False
check_required_tags = True
local_image_docker = False
CFG
cd "$out"
export HOME=$out/home GALAXY_IMPORTER_CONFIG=$out/galaxy-importer.cfg
run() { PYTHONPATH=$OLDPWD "$OLDPWD/.build/venv/bin/python" -m tests.gates.environments importer "$@"; }
run -m galaxy_importer.main "$tarball" 2>&1 | tee importer.log
grep --quiet 'Importer processing completed successfully' importer.log
if grep --extended-regexp '^(WARNING|ERROR|CRITICAL)' importer.log; then
    echo 'galaxy-importer has warnings: see above' >&2
    exit 1
fi
