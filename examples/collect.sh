#!/bin/sh
# Traces several machines at once over ssh, as root there, and adds up their failed connections by outcome.
#
#   SECONDS_EACH=30 sh collect.sh web-1 web-2
#
# prints for tests/data/incident.jsonl.zst (twice, once for each machine):
#
#        80 checkout → database  refused
#        12 checkout → payments  reset_by_local
#        12 checkout → payments  reset_by_peer
#        10 storefront → stock  connect_aborted

set -eu
for machine; do
    ssh "$machine" kmesh-trace --quiet --output none --duration "${SECONDS_EACH:-60}s" --write - >"$machine.jsonl" &
done
wait
for machine; do
    set -- "$@" --read "$machine.jsonl"
    shift
done
kmesh-trace --quiet "$@" --failed --output json |
    jq --raw-output 'select(.type == "conn") | "\(.src.workload // .src.ip) → \(.dst.workload // .dst.ip)  \(.outcome)"' |
    sort | uniq -c
