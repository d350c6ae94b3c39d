# A step of a VM that has only busybox: traces a connection and a refused attempt, and prints the records.
# Usage: sh -c SCRIPT TOOL BYTES PORT CLOSED_PORT. In busybox's shell, background processes ignore SIGINT, so the tracer
# gets SIGTERM.
set -e
cd /tmp
head -c "$1" /dev/zero >sent
mkfifo held
: >said

"$0" --verbose --output json >records 2>said &
tracer=$!
until grep -q 'ready in' said; do
    kill -0 "$tracer" || { cat said; exit 1; }
    usleep 10000
done

# The input stays open, because `nc` closes its side at the end of its input.
nc -l -p "$2" <>held >received &
server=$!
listening=$(printf ':%04X 0*:0000 0A' "$2")
until grep -q -s "$listening" /proc/net/tcp /proc/net/tcp6; do
    usleep 10000
done
nc 127.0.0.1 "$2" <sent
wait "$server"
cmp sent received
nc 127.0.0.1 "$3" </dev/null && exit 1

kill "$tracer"
wait "$tracer"
cat records
