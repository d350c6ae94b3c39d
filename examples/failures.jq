# Counts the connections that failed, by client, server and outcome. Most frequent first.
#
#   zstdcat incident.jsonl.zst | jq -rn -f failures.jq
#
# prints for tests/data/incident.jsonl.zst:
#
#   40  shop/checkout → shop/database:5432  refused
#   6  shop/checkout → shop/payments:8443  reset_by_local
#   6  shop/checkout → shop/payments:8443  reset_by_peer
#   5  shop/storefront → shop/stock:9000  connect_aborted

# The name of an end: its workload if it is a pod, otherwise its address.
def name: if .workload then "\(.namespace)/\(.workload)" else .ip end;

[inputs | select(.type == "conn" and .event == "close" and .outcome != "ok")]
| group_by([(.src | name), (.dst | name), .dst.port, .outcome])
| sort_by(-length)[]
| "\(length)  \(.[0] | .src | name) → \(.[0] | .dst | name):\(.[0].dst.port)  \(.[0].outcome)"
