# What .ci/run and .ci/full share. They source this file.
#
# A step is one command. Its output goes to a log, which is printed when the command ends.
# A lane is a function that calls steps. Lanes run side by side; the steps of a lane run one after another.
# A failed step does not stop the others.

set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

# The eBPF toolchain brings Debian's rustc. Everything else is built by the stable toolchain.
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
export DEBIAN_FRONTEND=noninteractive

out=${CARGO_TARGET_DIR:-$PWD/target}/ci/$(basename "$0")
rm -rf "$out"
mkdir -p "$out"
lanes=()
# Ctrl-C ends the lanes too.
trap 'kill 0' INT

# step NAME COMMAND...: runs the command, prints its output, and records its state and times.
step() {
    local name=$1 state=ok real user system TIMEFORMAT='%R %U %S'
    shift
    printf -- '--- %s starts: %s\n' "$name" "$*"
    { time "$@" >"$out/$name.log" 2>&1; } 2>"$out/$name.time" || state=FAILED
    read -r real user system <"$out/$name.time"
    printf '%s %s %s %s %s\n' "$name" "$state" "$real" "$user" "$system" >>"$out/steps"
    # One lane prints at a time.
    {
        flock 9
        printf '\n=== %s: %s after %.0f s\n' "$name" "$state" "$real"
        cat "$out/$name.log"
    } 9>"$out/lock"
}

# lane FUNCTION: runs the function's steps beside those of the other lanes.
lane() {
    "$@" &
    lanes+=($!)
}

# join: waits for the lanes that run.
join() {
    local pid
    for pid in "${lanes[@]}"; do
        # A failed step does not fail its lane. An error in the script does.
        wait "$pid" || step lane false
    done
    lanes=()
}

# sum_of_counts: adds up the lines "N passed, N failed, N skipped" that end the logs of tests. Other failed steps count as one.
sum_of_counts() {
    local name state
    while read -r name state _; do
        echo "$state $(tail -n 1 "$out/$name.log")"
    done <"$out/steps" |
        awk '/^[^ ]+ [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $2; f += $4; s += $6; next }
             $1 == "FAILED" { f += 1 }
             END { printf "%d passed, %d failed, %d skipped\n", p, f, s }'
}

# show_failures: prints which tests failed, and the first lines of why. Of a step without tests it prints the end.
show_failures() {
    local name state log
    while read -r name state _; do
        [ "$state" = FAILED ] || continue
        log=$out/$name.log
        printf '\nfailed: %s\n' "$name"
        if grep -q -E '^---- .* ----$|^ *failed: ' "$log"; then
            awk '/^---- .* ----$/ || /^ *failed: / { left = 4 } left-- > 0 { print substr($0, 1, 3000) }' "$log"
        else
            tail -n 20 "$log" | cut -c 1-300
        fi
    done <"$out/steps"
}

# show_times: prints the table of steps in the order in which they ended.
show_times() {
    awk 'BEGIN { printf "\n%-20s %-6s %8s %12s\n", "step", "state", "seconds", "CPU seconds" }
         { printf "%-20s %-6s %8.0f %12.0f\n", $1, $2, $3, $4 + $5; cpu += $4 + $5 }
         END { printf "%-20s %-6s %8.0f %12.0f\n", "all", "", seconds, cpu }' seconds="$SECONDS" "$out/steps"
}

# passed: whether every step is ok.
passed() {
    ! grep -q ' FAILED ' "$out/steps"
}

# finish: prints times, failures and, as the last line, the sum of all counts. Exits with 1 after a failure.
finish() {
    show_times
    show_failures
    sum_of_counts
    if passed; then exit 0; else exit 1; fi
}
