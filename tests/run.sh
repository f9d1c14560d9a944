#!/usr/bin/env bash
# Run stages one after the other and end with a table of times and one closing line. The first stage that fails ends the
# run; with KEEP_GOING=1 the others run all the same, and the closing line names those that failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export L4PROXY_TEST_EXAMPLES=same
table='' passed=0 failed=()
for stage in "$@"; do
    printf '\n=== %s\n' "$stage"
    started=$SECONDS
    if make --no-print-directory "$stage"; then result=passed; passed=$((passed + 1)); else result=FAILED; failed+=("$stage"); fi
    table+=$(printf '%-18s %-7s %5d s' "$stage" "$result" $((SECONDS - started)))$'\n'
    [ "${#failed[@]}" -eq 0 ] || [ -n "${KEEP_GOING-}" ] || break
done
printf '\n=== stages\n%s%-26s %5d s\n' "$table" total "$SECONDS"
printf '\n%d passed, %d failed%s\n' "$passed" "${#failed[@]}" "${failed[*]:+: ${failed[*]}}"
[ "${#failed[@]}" -eq 0 ]
