#!/usr/bin/env bash
# Prints what kmesh-trace shows in a terminal of 100 columns, without the last line. The README's picture of the table is:
#   tests/readme/table.sh --read tests/data/incident.jsonl.zst -o table --interval 10s --sort -failed
# It needs tmux. KMESH_TRACE_BIN names another binary.
set -euo pipefail
cd "$(dirname "$0")/../.."

export LC_ALL=C.UTF-8
tool=$(realpath "${KMESH_TRACE_BIN:-target/release/kmesh-trace}")
tmux=(tmux -L "kmesh-trace-readme-$$" -f /dev/null)
trap '"${tmux[@]}" kill-server 2>/dev/null || true' EXIT
# `cat` keeps the terminal open if the tool fails, so that its message is printed below.
"${tmux[@]}" new-session -d -x 100 -y 12 "'$tool' ${*@Q}; cat"
# The last window of the incident has the refused connections.
for _ in {1..600}; do
    screen=$("${tmux[@]}" capture-pane -p)
    if grep -q '40 refused' <<<"$screen"; then
        sed '$d' <<<"$screen"
        exit
    fi
    sleep 0.05
done
printf 'the last window does not appear:\n%s\n' "$screen" >&2
exit 1
