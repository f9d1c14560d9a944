#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Run every fuzz target for so many seconds: tests/fuzz/run.sh SECONDS. A finding ends it with an error and stays in
# .build/fuzz/TARGET-crash-…; what reaches new code is collected in .build/fuzz/TARGET.
set -euo pipefail
cd "$(dirname "$0")/../.." || exit
seconds=${1:?how many seconds for each target}
tools=.build/fuzz/venv

if [ ! -x "$tools/bin/python" ] || ! "$tools/bin/python" -c 'import atheris' 2>/dev/null; then
    mkdir -p .build/fuzz
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement requirements/fuzz.txt
fi
for program in tests/fuzz/*.py; do
    target=$(basename "$program" .py)
    mkdir -p ".build/fuzz/$target"
    echo "fuzz: $target for $seconds s"
    "$tools/bin/python" "$program" ".build/fuzz/$target" "tests/fuzz/corpus/$target" \
        -max_total_time="$seconds" -max_len=5000 -artifact_prefix=".build/fuzz/$target-" -print_final_stats=1 2>&1 |
        tee ".build/fuzz/$target.log" | grep -E 'exec/s|number_of_executed_units|ERROR|Uncaught|Error:' | tail -n 5
done
