# A job of a test machine that has busybox only: traces a connection and an attempt, and shows the records.
# sh -c SCRIPT TOOL BYTES PORT CLOSED_PORT; busybox has no interrupts for what runs in the background, so the tracer is
# ended by SIGTERM.
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

# Its input stays open: `nc` would end its side with it.
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
