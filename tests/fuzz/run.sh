#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Run all fuzz targets at the same time: tests/fuzz/run.sh SECONDS. A target that finds an error ends with it and saves the
# input as .build/fuzz/TARGET-crash-…; inputs that reach new code are saved in .build/fuzz/TARGET.
set -euo pipefail
cd "$(dirname "$0")/../.." || exit
seconds=${1:?give the seconds for each target}
tools=.build/fuzz/venv

if [ ! -x "$tools/bin/python" ] || ! "$tools/bin/python" -c 'import atheris' 2>/dev/null; then
    mkdir -p .build/fuzz
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement requirements/fuzz.txt
fi
fuzz() {
    mkdir -p ".build/fuzz/$1"
    "$tools/bin/python" "tests/fuzz/$1.py" ".build/fuzz/$1" "tests/fuzz/corpus/$1" \
        -max_total_time="$seconds" -max_len=5000 -artifact_prefix=".build/fuzz/$1-" -print_final_stats=1 2>&1 |
        tee ".build/fuzz/$1.log" | grep -E 'exec/s|number_of_executed_units|ERROR|Uncaught|Error:' | tail -n 5 | sed "s/^/$1: /"
}

running=()
for program in tests/fuzz/*.py; do
    fuzz "$(basename "$program" .py)" &
    running+=($!)
done
echo "fuzz: ${#running[@]} targets for $seconds s"
found=0
for process in "${running[@]}"; do
    wait "$process" || found=1
done
exit "$found"
