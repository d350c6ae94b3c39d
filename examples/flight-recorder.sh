#!/bin/sh
# Records into at most five files of 10 MB until a connection matches the filter, and AFTER seconds longer.
#
#   AFTER=0 sh flight-recorder.sh --outcome refused --to-port 5432
#
# prints for tests/data/incident.jsonl.zst:
#
#   03:19:40  checkout → 10.244.0.40:5432  refused
#   replay with: kmesh-trace --read recorder.jsonl.zst

set -eu
kmesh-trace --quiet --output none --write recorder.jsonl.zst --rotate 10M,5 &
recorder=$!
trap 'kill -INT $recorder 2>/dev/null || true; wait $recorder' EXIT
kmesh-trace --quiet --output json --count 1 "$@" |
    jq --raw-output 'select(.type == "conn") | "\(.time[11:19])  \(.process.comm) → \(.dst.ip):\(.dst.port)  \(.outcome)"'
sleep "${AFTER:-10}"
echo "replay with: kmesh-trace --read recorder.jsonl.zst"
