#!/bin/sh
# Records into at most five files of 10 MB until a connection matches the filter, and AFTER seconds longer.
#
#   AFTER=0 sh flight-recorder.sh --outcome refused --to-port 5432
#
# prints for tests/data/incident.jsonl.zst:
#
#   03:19:40.915  shop/checkout (checkout/22241) → shop/database 10.244.0.40:5432  refused by peer  0.02ms
#   replay with: kmesh-trace --read recorder.jsonl.zst

set -eu
kmesh-trace --quiet --output none --write recorder.jsonl.zst --rotate 10M,5 &
recorder=$!
trap 'kill -INT $recorder 2>/dev/null || true; wait $recorder' EXIT
kmesh-trace --quiet --output short --count 1 "$@"
sleep "${AFTER:-10}"
echo "replay with: kmesh-trace --read recorder.jsonl.zst"
