#!/usr/bin/env bash
# Run stages, which are targets of the Makefile, and end with a table of their times and one closing line.
#
#     tests/run.sh lint unit [ molecule / docs units ] kernel
#
# Stages run one after the other. Between brackets, the lanes that "/" separates run at the same time; the second and
# later ones with low priority. The output of a stage in a lane is printed when the stage has ended; until then it is in
# .build/stages/STAGE.log.
#
# After a failure no further stage starts; with KEEP_GOING=1 all run. The closing line names the stages that failed. Kernel tests
# that passed only when they ran once more (tests/gates/once_more.py) are named above it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export L4PROXY_TEST_EXAMPLES=same
logs=.build/stages
results=$logs/results # a line for each ended stage: STAGE RESULT SECONDS
export L4PROXY_TEST_UNSTABLE=$PWD/$logs/unstable
mkdir -p "$logs"
rm -f "$logs"/*.log "$L4PROXY_TEST_UNSTABLE"
: >"$results"

may_start() {
    [ -n "${KEEP_GOING-}" ] || ! grep -q FAILED "$results"
}

run_stage() { # STAGE NICENESS
    local started=$SECONDS result=FAILED
    nice -n "$2" make --no-print-directory "$1" && result=passed
    echo "$1 $result $((SECONDS - started))" >>"$results"
}

run_lane() { # NICENESS STAGE...
    local niceness=$1 stage
    trap 'exit 130' INT
    for stage in "${@:2}"; do
        may_start || return
        printf '=== %s started; its output: %s\n' "$stage" "$logs/$stage.log"
        run_stage "$stage" "$niceness" >"$logs/$stage.log" 2>&1
        flock "$results" cat - "$logs/$stage.log" <<<$'\n'"=== $stage"
    done
}

lanes=()
start_lane() { # STAGE...: the first lane has normal priority
    run_lane "$((${#lanes[@]} ? 10 : 0))" "$@" &
    lanes+=($!)
}

lane=() bracket=''
for argument in "$@"; do
    case $argument in
        '[') bracket=open lane=() lanes=() ;;
        /) start_lane "${lane[@]}" && lane=() ;;
        ']') start_lane "${lane[@]}" && bracket='' && wait "${lanes[@]}" ;;
        *)
            if [ -n "$bracket" ]; then
                lane+=("$argument")
            elif may_start; then
                printf '\n=== %s\n' "$argument"
                run_stage "$argument" 0
                # The other stages test this package, even if files change meanwhile.
                [ "$argument" != package ] || export L4PROXY_TEST_PACKAGE=built
            fi
            ;;
    esac
done

# A runner may cut the middle of the output: the reasons of a failure are repeated at its end.
while read -r stage result _seconds; do
    if [ "$result" = FAILED ] && [ -f "$logs/$stage.log" ]; then
        printf '\n=== %s failed:\n' "$stage"
        sed 's/\x1b\[[0-9;]*m//g' "$logs/$stage.log" | grep -E '^ *(>|E |FAILED|ERROR|fatal:)' | awk '!seen[$0]++' | cut -c 1-300 | head -n 30
    fi
done <"$results"
printf '\n=== stages\n'
while read -r stage result seconds; do printf '%-18s %-7s %5d s\n' "$stage" "$result" "$seconds"; done <"$results"
printf '%-26s %5d s\n' total "$SECONDS"
[ ! -e "$L4PROXY_TEST_UNSTABLE" ] || sort -u "$L4PROXY_TEST_UNSTABLE"
mapfile -t failed < <(awk '$2 == "FAILED" { print $1 }' "$results")
printf '\n%d passed, %d failed%s\n' "$(grep -c passed "$results")" "${#failed[@]}" "${failed[*]:+: ${failed[*]}}"
[ "${#failed[@]}" -eq 0 ]
