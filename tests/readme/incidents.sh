#!/usr/bin/env bash
# Makes the incidents of the README, each in its own network namespace, and prints each command with its real output, as the
# README shows them. The first block is the README's first example.
#   sudo tests/readme/incidents.sh
# It needs python3, ip, nft, script and tmux. KMESH_TRACE_BIN names another binary.
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
# The commands call `kmesh-trace`. This wrapper notes its process ID, and traces only 127.0.0.2 to 127.0.0.15, the addresses of the
# incidents, because other connections of this machine would be in the output, too.
printf '#!/bin/sh\necho $$ >%s/pid\nexec %s --no-resolve --to-ip 127.0.0.2/31,127.0.0.4/30,127.0.0.8/29 "$@" 2>%s/messages\n' "$work" "$tool" "$work" \
    >"$work/kmesh-trace"
chmod +x "$work/kmesh-trace"
# /usr/bin first: the shim of a Python version manager takes seconds to start.
export PATH=$work:/usr/bin:/bin:$PATH NO_COLOR=1

inside() {
    ip netns exec "$namespace" "$@"
}

# in_python NAME CODE: runs the code as a process of that name, with functions to listen and dial.
in_python() {
    inside python3 -c "
import socket, threading, time
open('/proc/self/comm', 'w').write('$1')
def listen(address, port, backlog=64):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(backlog); return s
def dial(address, port, timeout=None):
    return socket.create_connection((address, port), timeout)
def refused(address, port):
    try: dial(address, port)
    except ConnectionRefusedError: time.sleep(0.3)
$2"
}

# listening PORT: waits until a socket listens on the port.
listening() {
    until inside ss -Hltn "sport = :$1" | grep -q .; do sleep 0.05; done
}

# incident TITLE COMMAND: runs the command in a terminal while the function `traffic` makes the incident.
incident() {
    ip netns add "$namespace"
    inside ip link set lo up
    [ -z "$1" ] || printf '\n### %s\n\n' "$1"
    printf '```console\n# %s\n' "$2"
    script --quiet --return --command "$2" /dev/null >"$work/out" </dev/null &
    local command=$!
    until grep -q tracing "$work/messages" 2>/dev/null; do
        kill -0 $command 2>/dev/null || { cat "$work/messages" "$work/out" >&2; exit 1; }
        sleep 0.05
    done
    traffic >/dev/null
    kill -INT "$(cat "$work/pid")"
    wait $command
    tr -d '\r' <"$work/out"
    echo '```'
    rm "$work/messages"
    ip netns pids "$namespace" | xargs -r kill 2>/dev/null || true
    ip netns del "$namespace"
}

# table_incident TITLE COMMAND PATTERN: runs the command, which shows a table, in a terminal while the function `traffic`
# makes the incident. Prints the screen when it matches the pattern, without the last line.
table_incident() {
    ip netns add "$namespace"
    inside ip link set lo up
    printf '\n### %s\n\n```console\n# %s\n' "$1" "$2"
    local tmux=(tmux -L "$namespace" -f /dev/null)
    inside "${tmux[@]}" new-session -d -x 100 -y 12 "$2"
    until "${tmux[@]}" capture-pane -p | grep -q 'q quit'; do sleep 0.05; done
    traffic >/dev/null &
    local screen=
    until grep -Pzq "$3" <<<"$screen"; do
        sleep 0.05
        screen=$("${tmux[@]}" capture-pane -p)
    done
    sed '$d' <<<"$screen" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
    echo '```'
    "${tmux[@]}" kill-server
    ip netns pids "$namespace" | xargs -r kill 2>/dev/null || true
    wait
    rm -f "$work/messages"
    ip netns del "$namespace"
}

traffic() {
    in_python cart 'for _ in range(2): refused("127.0.0.5", 5432)'
    in_python shop 'refused("127.0.0.9", 8080)'
}
incident "" "kmesh-trace --failed"

traffic() {
    in_python checkout 'for _ in range(3): refused("127.0.0.2", 8080)' &
    local one=$!
    in_python billing 'refused("127.0.0.9", 8080)'
    wait $one
}
incident "A service refuses: whom?" \
    "kmesh-trace --outcome refused"

traffic() {
    # The filter drops every SYN.
    inside nft -f - <<'RULES'
table inet t {
    chain c { type filter hook input priority 0; tcp dport 9000 drop; }
}
RULES
    in_python storefront '
try: dial("127.0.0.3", 9000, 4.5)
except TimeoutError: pass'
}
incident "SYNs vanish: where are they dropped?" \
    "kmesh-trace --connecting --drops --events update --interval 2s"

traffic() {
    # The program accepts nothing. Its queue fills up, and the kernel drops further SYNs.
    in_python web '
s = listen("127.0.0.8", 8080, 2); time.sleep(60)' &
    listening 8080
    in_python storefront '
def one():
    try: dial("127.0.0.8", 8080, 4)
    except TimeoutError: pass
threads = [threading.Thread(target=one) for _ in range(5)]
[t.start() for t in threads]; [t.join() for t in threads]'
}
incident "The server is up, and nobody gets in: why?" \
    "kmesh-trace --events listener,close --failed --interval 2s"

traffic() {
    # The filter drops every second SYN. The kernel sends the next one after a second.
    inside nft -f - <<'RULES'
table inet t {
    chain c { type filter hook input priority 0; tcp dport 9090 tcp flags & (syn|ack) == syn numgen inc mod 2 0 drop; }
}
RULES
    in_python server '
s = listen("127.0.0.4", 9090)
for _ in range(2): s.accept()[0].close()' &
    local one=$!
    listening 9090
    in_python gateway '
for _ in range(2): dial("127.0.0.4", 9090).recv(1)'
    wait $one
}
incident "Handshakes are slow: which, and were SYNs lost?" \
    "kmesh-trace --events open --direction outbound --min-duration 500ms"

traffic() {
    in_python server '
s = listen("127.0.0.6", 6379); kept = [s.accept() for _ in range(12)]; time.sleep(60)' &
    listening 6379
    in_python worker '
leaked = [dial("127.0.0.6", 6379) for _ in range(12)]; time.sleep(60)' &
    in_python cache '
s = listen("127.0.0.7", 11211)
while True: s.accept()[0].close()' &
    listening 11211
    in_python web '
for _ in range(40): dial("127.0.0.7", 11211).recv(1)'
}
table_incident "Connections leak: which process holds them?" \
    "kmesh-trace -o table --by process --sort -open --interval all" "worker.* 12 .*\n.*server.* 12 |server.* 12 .*\n.*worker.* 12 "

traffic() {
    # The server closes some connections without reading the request. The kernel answers that with a RST.
    in_python server '
s = listen("127.0.0.7", 8443)
for number in range(20):
    peer = s.accept()[0]
    time.sleep(0.02)
    if number < 18: peer.recv(5); peer.send(b"ok")
    peer.close()' &
    local one=$!
    listening 8443
    in_python gateway '
def one():
    try:
        s = dial("127.0.0.7", 8443); s.send(b"hello"); s.recv(2)
    except OSError: pass
threads = [threading.Thread(target=one) for _ in range(20)]
[t.start() for t in threads]; [t.join() for t in threads]'
    wait $one
}
incident "Resets under load: who sends them, and why?" \
    "kmesh-trace --outcome reset"

traffic() {
    # Payments needs 40 ms for each answer. Checkout asks it for each request of the storefront, and needs 2 ms itself.
    in_python payments '
peer = listen("127.0.0.9", 8443).accept()[0]
while peer.recv(100): time.sleep(0.04); peer.send(b"paid")' &
    local payments=$!
    listening 8443
    in_python checkout '
peer = listen("127.0.0.8", 8080).accept()[0]; payments = dial("127.0.0.9", 8443)
while peer.recv(100): payments.send(b"pay"); payments.recv(100); time.sleep(0.002); peer.send(b"thanks")' &
    local checkout=$!
    listening 8080
    in_python storefront '
s = dial("127.0.0.8", 8080)
for _ in range(20): s.send(b"buy"); s.recv(100)'
    wait $payments $checkout
}
table_incident "Checkout is slow: is it checkout, payments or the network?" \
    "kmesh-trace --turns -o table --by process --sort -response --interval all" "(?s)storefront.*ms.*"

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
table_incident "Who uses the database?" \
    "kmesh-trace -o table --by process --to-port 5432 --direction outbound --sort -closed --interval all" "worker.* 1 "
