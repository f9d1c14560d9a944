#!/usr/bin/env bash
# Run stages one after the other, stop at the first that fails, and end with a table of times and one closing line.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export L4PROXY_TEST_EXAMPLES=same
table='' passed=0 failed=0
for stage in "$@"; do
    printf '\n=== %s\n' "$stage"
    started=$SECONDS
    if make --no-print-directory "$stage"; then result=passed; passed=$((passed + 1)); else result=FAILED; failed=1; fi
    table+=$(printf '%-10s %-7s %4d s' "$stage" "$result" $((SECONDS - started)))$'\n'
    [ "$failed" -eq 0 ] || break
done
printf '\n=== stages\n%s%-18s %4d s\n' "$table" total "$SECONDS"
printf '\n%d passed, %d failed\n' "$passed" "$failed"
exit "$failed"
