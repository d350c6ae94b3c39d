# Prints the median, the 95th percentile and the maximum of the handshake time of each server, in microseconds.
#
#   zstdcat incident.jsonl.zst | jq -rn -f handshakes.jq
#
# prints for tests/data/incident.jsonl.zst:
#
#   checkout:8080  p50 42  p95 54  max 62  of 60
#   payments:8443  p50 21  p95 30  max 54  of 60
#   database:5432  p50 22  p95 45  max 51  of 40
#   stock:9000  p50 22  p95 22  max 22  of 1

# The value below which the share $q of a sorted list lies.
def quantile($q): .[(length * $q | ceil) - 1];

# Only the client's end measures the handshake: the other end has connect_ns null.
[inputs | select(.event == "close" and .connect_ns)]
| group_by([.dst.ip, .dst.port])[]
| (map(.connect_ns / 1000 | round) | sort) as $us
| "\(.[0].dst.workload // .[0].dst.ip):\(.[0].dst.port)"
    + "  p50 \($us | quantile(0.5))  p95 \($us | quantile(0.95))  max \($us[-1])  of \($us | length)"
