# Counts the failures of each second, by outcome. The first line tells when the incident began.
#
#   zstdcat incident.jsonl.zst | jq -rn -f timeline.jq
#
# prints for tests/data/incident.jsonl.zst:
#
#   03:19:38  reset_by_local 1, reset_by_peer 1
#   03:19:39  connect_aborted 1, reset_by_local 1, reset_by_peer 1
#   03:19:40  connect_aborted 2, refused 1, reset_by_local 2, reset_by_peer 2
#   03:19:41  refused 11
#   03:19:42  connect_aborted 1, refused 9, reset_by_local 1, reset_by_peer 1
#   03:19:43  refused 10
#   03:19:44  refused 9, reset_by_local 1, reset_by_peer 1
#   03:19:45  connect_aborted 1

[inputs | select(.type == "conn" and .event == "close" and .outcome != "ok")]
| group_by(.time[:19])[]
| "\(.[0].time[11:19])  "
    + (group_by(.outcome) | map("\(.[0].outcome) \(length)") | join(", "))
