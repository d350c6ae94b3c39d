#!/usr/bin/env bash
# The README's incidents: makes each in a network namespace of its own, asks kmesh-trace about it with one command line, and
# prints the command and what it really said, as the README shows it.
#   sudo tests/readme/incidents.sh            (needs python3, jq, ip, nft; KMESH_TRACE_BIN names another binary)
set -euo pipefail
cd "$(dirname "$0")/../.."

tool=$(realpath "${KMESH_TRACE_BIN:-target/release/kmesh-trace}")
work=$(mktemp -d)
namespace=kmesh-incidents-$$
cleanup() {
    trap - EXIT
    ip netns pids "$namespace" 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns del "$namespace" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
# The commands are shown as one would type them; this notes whom to interrupt.
printf '#!/bin/sh\necho $$ >%s/pid\nexec %s "$@"\n' "$work" "$tool" >"$work/kmesh-trace"
chmod +x "$work/kmesh-trace"
# The system's own python: a version manager's takes seconds to start.
export PATH=$work:/usr/bin:/bin:$PATH

inside() {
    ip netns exec "$namespace" "$@"
}

# in_python NAME CODE: runs it as a process of that name, with what every incident's code uses.
in_python() {
    inside python3 -c "
import socket, threading, time
open('/proc/self/comm', 'w').write('$1')
def listen(address, port, backlog=64):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(backlog); return s
def dial(address, port):
    return socket.create_connection((address, port))
$2"
}

# listening PORT: waits until somebody does.
listening() {
    until inside ss -Hltn "sport = :$1" | grep -q .; do sleep 0.05; done
}

# incident TITLE COMMAND: what it says about what incident_traffic does meanwhile.
incident() {
    ip netns add "$namespace"
    inside ip link set lo up
    printf '\n**%s**\n\n```console\n# %s\n' "$1" "$2"
    bash -c "$2" 2>"$work/said" >"$work/out" &
    local command=$!
    until grep -q tracing "$work/said"; do
        kill -0 $command 2>/dev/null || { cat "$work/said" >&2; exit 1; }
        sleep 0.05
    done
    traffic >/dev/null
    kill -INT "$(cat "$work/pid")"
    wait $command
    cat "$work/out"
    echo '```'
    ip netns pids "$namespace" | xargs -r kill 2>/dev/null || true
    ip netns del "$namespace"
}

traffic() {
    in_python checkout '
for _ in range(3):
    try: dial("127.0.0.1", 8080)
    except ConnectionRefusedError: time.sleep(0.3)' &
    local one=$!
    in_python billing '
try: dial("127.0.0.9", 8080)
except ConnectionRefusedError: pass'
    wait $one
}
incident "A service refuses: whom?" \
    "kmesh-trace --outcome refused -o json | jq -r 'select(.type == \"conn\") | \"\\(.process.comm) \\(.process.pid) → \\(.dst.ip):\\(.dst.port)  \\(.errno)\"'"

traffic() {
    # Every second SYN to the port is lost, so its answer takes the second that the kernel waits before the next.
    inside nft -f - <<'RULES'
table inet t {
    chain c { type filter hook input priority 0; tcp dport 9090 tcp flags & (syn|ack) == syn numgen inc mod 2 0 drop; }
}
RULES
    in_python server '
s = listen("127.0.0.1", 9090)
for _ in range(2): s.accept()[0].close()' &
    local one=$!
    listening 9090
    in_python gateway '
for _ in range(2): dial("127.0.0.1", 9090).recv(1)'
    wait $one
}
incident "Handshakes are slow: whose?" \
    "kmesh-trace --direction outbound -o json | jq -r 'select(.connect_ns > 1e8) | \"\\(.process.comm) → \\(.dst.ip):\\(.dst.port)  \\(.connect_ns / 1e6 | floor) ms, \\(.tcp.total_retrans) retransmitted\"'"

traffic() {
    in_python server '
s = listen("127.0.0.1", 6379); kept = [s.accept() for _ in range(3)]; time.sleep(60)' &
    listening 6379
    in_python worker '
leaked = [dial("127.0.0.1", 6379) for _ in range(3)]; leaked[0].send(b"PING"); time.sleep(60)' &
    # Until a window begins in which they are older than asked for.
    sleep 8
}
incident "Connections leak: who holds idle ones?" \
    "kmesh-trace --events update --interval 2s --min-duration 3s --direction outbound -o json | jq -r 'select(.type == \"conn\") | \"\\(.process.comm) \\(.process.pid) → port \\(.dst.port)  open \\(.duration_ns / 1e9 | floor) s, \\(.sent_bytes + .received_bytes) bytes\"'"

traffic() {
    # The server gives up requests over its limit: it closes without reading them, which the kernel answers with a RST.
    in_python server '
s = listen("127.0.0.1", 8443)
for number in range(20):
    peer = s.accept()[0]
    time.sleep(0.02)
    if number < 12: peer.recv(5); peer.send(b"ok")
    peer.close()' &
    local one=$!
    listening 8443
    in_python gateway '
def one():
    try:
        s = dial("127.0.0.1", 8443); s.send(b"hello"); s.recv(2)
    except OSError: pass
threads = [threading.Thread(target=one) for _ in range(20)]
[t.start() for t in threads]; [t.join() for t in threads]'
    wait $one
}
incident "Resets under load: who sends them?" \
    "kmesh-trace --to-port 8443 --direction outbound -o json | jq -r 'select(.type == \"conn\") | \"\\(.process.comm) → port \\(.dst.port)  \\(.outcome), closed by \\(.closed_by)\"' | sort | uniq -c"

traffic() {
    in_python server '
s = listen("127.0.0.5", 5432)
while True: s.accept()[0].close()' &
    listening 5432
    in_python billing '
for _ in range(5): dial("127.0.0.5", 5432).recv(1)'
    in_python reports '
for _ in range(2): dial("127.0.0.5", 5432).recv(1)'
    in_python worker '
dial("127.0.0.5", 5432).recv(1)'
}
incident "Who talks to the database?" \
    "kmesh-trace --to-ip 127.0.0.5 --to-port 5432 --direction outbound -o json | jq -r 'select(.type == \"conn\") | .process.comm' | sort | uniq -c"
