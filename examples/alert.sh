#!/bin/sh
# Prints a line for each second in which more than LIMIT connections of a client to a server failed.
#
#   LIMIT=5 sh alert.sh -n shop
#
# prints for tests/data/incident.jsonl.zst:
#
#   03:19:41  checkout → database  11 of 11 failed
#   03:19:42  checkout → database  9 of 9 failed
#   03:19:43  checkout → database  10 of 10 failed
#   03:19:44  checkout → database  9 of 9 failed

kmesh-trace --quiet --output json --rollup --interval 1s --direction outbound "$@" |
    jq --raw-output --unbuffered --argjson limit "${LIMIT:-10}" '
        select(.type == "rollup" and .failed > $limit)
        | "\(.window_start[11:19])  \(.group.src.workload // "unknown") → \(.group.dst.workload // "unknown")"
            + "  \(.failed) of \(.closed) failed"'
